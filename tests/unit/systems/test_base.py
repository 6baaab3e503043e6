"""Learning-rate schedule, settings and losses of the base system."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from avcap_zoo.backbones.adapters import LoRASettings
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError, NonFiniteLossError
from avcap_zoo.systems.base import OptimizerSettings, Requirements, System, learning_rate_share, plain


def test_warm_up_rises_linearly_to_the_peak() -> None:
    settings = OptimizerSettings(schedule="constant")
    shares = [learning_rate_share(step, 100, 4, settings) for step in range(6)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_schedules_fall_from_the_peak_to_the_last_share(schedule: str, middle: float) -> None:
    settings = OptimizerSettings(schedule=schedule, min_lr_share=0.1)  # type: ignore[arg-type]
    assert learning_rate_share(10, 110, 10, settings) == pytest.approx(1.0)
    assert learning_rate_share(60, 110, 10, settings) == pytest.approx(middle)
    assert learning_rate_share(110, 110, 10, settings) == pytest.approx(0.1)
    assert learning_rate_share(500, 110, 10, settings) == pytest.approx(0.1)


def test_cosine_and_linear_differ_off_the_middle() -> None:
    quarter = [
        learning_rate_share(25, 100, 0, OptimizerSettings(schedule=schedule)) for schedule in ("cosine", "linear")
    ]
    assert quarter == pytest.approx([0.8536, 0.75], abs=1e-4)


def test_settings_become_plain_values() -> None:
    assert plain(LoRASettings(rank=3))["rank"] == 3
    assert plain(5) == 5
    assert plain(LoRASettings) is LoRASettings


class TwoLosses(System):
    """Trained by two losses, and captions nothing."""

    def __init__(self) -> None:
        super().__init__(OptimizerSettings(), {})
        self.model = nn.Linear(2, 1)

    @property
    def requirements(self) -> Requirements:
        return Requirements(None, ())

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"near": torch.tensor(1.0), "far": torch.tensor(float(len(batch)))}


class Untrained(TwoLosses):
    """Has no loss."""

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        return System.training_loss(self, batch)


def batch_of(*ids: str) -> Batch:
    return Batch(clip_ids=list(ids), captions=[["a"]] * len(ids), caption=["a"] * len(ids))


class OneBatch(Dataset[Batch]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Batch:
        return batch_of("x", "y", "z")


def test_validation_of_a_system_without_captions_logs_its_losses(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
    values = trainer.validate(TwoLosses(), DataLoader(OneBatch(), batch_size=None), verbose=False)[0]
    assert values == {"val/loss_near": 1.0, "val/loss_far": 3.0, "val/loss": 4.0}


class Breaks(TwoLosses):
    """Its loss is not a number on some batches; its norm sees every one of them."""

    def __init__(self, broken: set[int]) -> None:
        super().__init__()
        self.optimizer_settings = OptimizerSettings(lr=0.1, warmup_steps=0, on_non_finite_loss="skip")
        self.model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        self.broken = broken
        self.seen = 0
        self.weights: list[dict[str, Tensor]] = []

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        broken = self.seen in self.broken
        self.seen += 1
        numbers = torch.arange(6.0).view(3, 2) * (float("nan") if broken else 1)
        return {"only": self.model(numbers).square().sum()}

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
        self.weights.append({name: value.clone() for name, value in self.state_dict().items()})


def fit_breaks(system: Breaks, folder: Path, batches: int) -> None:
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        max_epochs=batches,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(system, DataLoader(OneBatch(), batch_size=None))


def test_a_batch_without_a_finite_loss_is_skipped_by_option(tmp_path: Path) -> None:
    system = Breaks({1})
    with pytest.warns(UserWarning, match=r"not finite at step 1 \(only nan\) on clips x, y, z; the batch is skipped"):
        fit_breaks(system, tmp_path, 3)
    first, second, third = system.weights
    assert all(torch.equal(second[name], value) for name, value in first.items()), "running statistics included"
    assert not torch.equal(third["model.1.weight"], first["model.1.weight"])
    assert all(value.isfinite().all() for value in third.values())


class BreaksBackward(Breaks):
    """Its loss is finite always, and has no derivative on some batches."""

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        broken = self.seen in self.broken
        self.seen += 1
        loss = self.model(torch.arange(6.0).view(3, 2)).square().sum()
        return {"only": loss + (0 * loss).sqrt() if broken else loss}


def test_a_step_without_finite_gradients_ends_the_run_or_is_skipped(tmp_path: Path) -> None:
    told = "a gradient is not finite at step 1, though the loss is, on clips x, y, z; the"
    system = BreaksBackward({1})
    with pytest.warns(UserWarning, match=f"{told} step is skipped"):
        fit_breaks(system, tmp_path, 3)
    first, second, third = (weights["model.1.weight"] for weights in system.weights)
    assert torch.equal(first, second)
    assert third.isfinite().all()
    assert not torch.equal(second, third)
    system = BreaksBackward({1})
    system.optimizer_settings.on_non_finite_loss = "raise"
    with pytest.raises(NonFiniteLossError, match=f"{told} weights are those of the step before"):
        fit_breaks(system, tmp_path, 3)
    assert torch.equal(system.state_dict()["model.1.weight"], system.weights[0]["model.1.weight"])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Breaks, "nor was it on the 10 batches before; the weights are those of"),
        (BreaksBackward, "though the loss is, on clips x, y, z; the weights are those of"),
    ],
)
@pytest.mark.filterwarnings("ignore:(loss|a gradient) is not finite")
def test_skipping_has_an_end(kind: type[Breaks], message: str, tmp_path: Path) -> None:
    system = kind(set(range(1, 100)))
    with pytest.raises(NonFiniteLossError, match=message):
        fit_breaks(system, tmp_path, 50)
    assert system.seen == 12


def test_a_system_without_a_loss_says_so() -> None:
    with pytest.raises(ConfigError, match="Untrained is not trained by a loss; use test or predict"):
        Untrained().training_step(batch_of("x"), 0)
