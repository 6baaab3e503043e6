"""Processes that train together without the same clips, one of them without a loss, or start in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from avcap_zoo.batch import Batch
from avcap_zoo.systems.base import OptimizerSettings, Requirements, System
from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO


class Line(System):
    """One weight; every process that computes a loss waits for the others."""

    def __init__(self) -> None:
        settings = OptimizerSettings(lr=0.1, warmup_steps=0, schedule="constant", on_non_finite_loss="skip")
        super().__init__(settings, {})
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.model.weight)

    @property
    def requirements(self) -> Requirements:
        return Requirements(None, ())

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        clips = self.mean_over_processes(torch.tensor(float(len(batch))))
        broken = torch.nan if "broken" in batch.clip_ids else 1.0
        return {"line": broken * clips * self.model(torch.ones(len(batch), 1)).mean()}


def batch_of(*ids: str) -> Batch:
    return Batch(clip_ids=list(ids), captions=[[] for _ in ids], caption=["" for _ in ids])


class Shares:
    """Of the first so many batches the second has no clips on the second process, and the third no finite loss."""

    def __init__(self, system: System, count: int) -> None:
        self.system, self.count = system, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.count):
            odd = {1: batch_of(), 2: batch_of("broken")} if self.system.global_rank == 1 else {}
            yield odd.get(number, batch_of("a", "b"))


class NoneOnTheSecond:
    """Two batches on the first process, none with clips on the second."""

    def __init__(self, system: System) -> None:
        self.system = system

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Batch]:
        first = [batch_of("a", "b"), batch_of("c", "d", "e")]
        yield from first if self.system.global_rank == 0 else [batch_of(), batch_of()]


def trainer(folder: Path, **options: object) -> Trainer:
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "plugins": [AtomicCheckpointIO()]}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, **(settings | options))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses CUDA cannot be forked")
@pytest.mark.filterwarnings("ignore:loss is not finite")
@pytest.mark.parametrize("batches_a_step", [1, 2])
def test_a_process_without_clips_or_loss_stops_nobody(tmp_path: Path, batches_a_step: int) -> None:
    system = Line()
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=60))
    options = {"strategy": strategy, "devices": 2, "accumulate_grad_batches": batches_a_step}
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False, **options).fit(system, Shares(system, 4))
    # Adam goes down by lr in a step: these are the weights after two, handed back by a forked process. Where two
    # batches make a step, each has one that counts.
    assert next(system.parameters()).item() == pytest.approx(0.8, abs=1e-3)


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses CUDA cannot be forked")
def test_a_process_without_validation_clips_stops_nobody(tmp_path: Path) -> None:
    system = Line()
    strategy = DDPStrategy(start_method="fork", timeout=timedelta(seconds=60))
    run = trainer(tmp_path, strategy=strategy, devices=2)
    run.validate(system, NoneOnTheSecond(system), verbose=False)
    assert run.callback_metrics["val/loss"].item() == pytest.approx((2 * 2 + 3 * 3) / 5)
