"""The best checkpoint of a run stays the best when the run goes on in another folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avcap_zoo.batch import Batch
from avcap_zoo.systems.base import OptimizerSettings, Requirements, System
from avcap_zoo.systems.signals import SaveOnSignal
from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO


class Line(System):
    """One weight, and losses of validation by epoch."""

    def __init__(self, *val_losses: float) -> None:
        super().__init__(OptimizerSettings(lr=0.1, warmup_steps=0, schedule="constant"), {})
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.model.weight)
        self.val_losses = val_losses

    @property
    def requirements(self) -> Requirements:
        return Requirements(None, ())

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"line": self.model(torch.ones(len(batch), 1)).mean()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/loss", self.val_losses[self.current_epoch], batch_size=1)


def batch_of(*ids: str) -> Batch:
    return Batch(clip_ids=list(ids), captions=[[] for _ in ids], caption=["" for _ in ids])


def trainer(folder: Path, **options: object) -> Trainer:
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "plugins": [AtomicCheckpointIO()]}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, **(settings | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("losses", "best"), [((1.0, 3.0, 2.0), "first"), ((1.0, 3.0, 0.5), "second")])
def test_the_best_of_a_run_is_the_best_of_all_its_parts(losses: tuple[float, ...], best: str, tmp_path: Path) -> None:
    for number, part in enumerate(("first", "second")):
        checkpoint = ModelCheckpoint(tmp_path / part, "best", monitor="val/loss", save_last=True)
        run = trainer(tmp_path, callbacks=[checkpoint, SaveOnSignal()], max_epochs=2 + number)
        system = Line(*losses)
        batches: DataLoader[Batch] = DataLoader([batch_of("a")], batch_size=None)  # type: ignore[arg-type]
        last = tmp_path / "first/last.ckpt" if number else None
        run.fit(system, batches, batches, ckpt_path=last)
    assert checkpoint.best_model_path == str(tmp_path / best / "best.ckpt")
    assert checkpoint.best_model_score == min(losses)
    assert (tmp_path / "first/best.ckpt").is_file()
