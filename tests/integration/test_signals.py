"""A run that is told to end, in any phase, goes on as if nothing had been."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException

from avcap_zoo.systems.signals import SaveOnSignal
from tests.integration.test_lavcap import assert_same, load
from tests.integration.tiny import tiny_data, tiny_lavcap, tiny_trainer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")


class Send(Callback):
    """Sends this process a signal in a hook of its system, when the step is reached."""

    def __init__(self, hook: str, step: int, number: int = signal.SIGTERM, skip: int = 0) -> None:
        self.hook, self.step, self.number, self.skip = hook, step, number, skip
        self.skipped = 0

    def _at(self, hook: str, trainer: Trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            self.skipped += 1
            if self.skipped == self.skip + 1:
                os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._at("train_batch", trainer)

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self._at("optimizer_step", trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._at("validation_batch", trainer)

    def on_validation_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._at("scores", trainer)


EPOCHS: dict[str, Any] = {"max_epochs": 2}
"""Of five steps, with a validation of two batches after each."""
SUMS: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 3}
"""Of steps of three batches and of two."""
STEPS: dict[str, Any] = {"max_epochs": 3, "max_steps": 9, "val_check_interval": 4, "check_val_every_n_epoch": None}


def run(root: Path, folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    seed_everything(1, verbose=False)
    trainer = tiny_trainer(folder, every=1, callbacks=[*callbacks, SaveOnSignal()], **options)
    trainer.fit(tiny_lavcap(training="lora"), datamodule=tiny_data(root), ckpt_path=ckpt_path)
    return trainer


def logged(folder: Path) -> list[dict[str, str]]:
    """What a run has logged, without the clock's part in it."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if v and k != "train/clips_per_s"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that nobody stopped, by their number of steps."""
    folder = tmp_path_factory.mktemp("whole")
    run(scenes_root, folder / "epochs", **EPOCHS)
    run(scenes_root, folder / "steps", **STEPS)
    run(scenes_root, folder / "sums", **SUMS)
    return {10: folder / "epochs", 9: folder / "steps", 4: folder / "sums"}


@pytest.mark.parametrize(
    ("options", "send", "saved_at"),
    [
        (EPOCHS, Send("train_batch", 6), 7),
        (EPOCHS, Send("validation_batch", 5, skip=1), 5),
        (EPOCHS, Send("scores", 5), 5),
        (STEPS, Send("optimizer_step", 3), 4),  # a validation is due after this step
        (SUMS, Send("train_batch", 2, skip=1), 2),  # the second batch of three
    ],
    ids=["step", "validation", "scores", "step before a validation", "half a step"],
)
def test_a_run_that_was_told_to_end_goes_on_bit_by_bit(
    options: dict[str, Any], send: Send, saved_at: int, whole: dict[int, Path], scenes_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(SIGTERMException):
        run(scenes_root, tmp_path / "stopped", send, **options)
    saved = tmp_path / "stopped/checkpoints/on_signal.ckpt"
    assert load(saved)["global_step"] == saved_at
    run(scenes_root, tmp_path / "resumed", ckpt_path=saved, **options)
    last = options.get("max_steps", 4 if "accumulate_grad_batches" in options else 10)
    resumed, wanted = (load(folder / f"checkpoints/step={last}.ckpt") for folder in (tmp_path / "resumed", whole[last]))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "avcap_zoo"):
        assert_same(resumed[key], wanted[key], key)
    assert logged(tmp_path / "stopped") + logged(tmp_path / "resumed") == logged(whole[last])


def test_a_run_that_was_told_to_save_goes_on(whole: dict[int, Path], scenes_root: Path, tmp_path: Path) -> None:
    told: list[int] = []
    earlier = signal.signal(signal.SIGUSR1, lambda number, _: told.append(number))  # such as Lightning's under SLURM
    try:
        run(scenes_root, tmp_path / "run", Send("validation_batch", 5, signal.SIGUSR1), **EPOCHS)
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert told == [signal.SIGUSR1]
    assert logged(tmp_path / "run") == logged(whole[10])
    run(scenes_root, tmp_path / "again", ckpt_path=tmp_path / "run/checkpoints/on_signal.ckpt", **EPOCHS)
    for folder in ("run", "again"):
        last = load(tmp_path / folder / "checkpoints/step=10.ckpt")
        for key in ("state_dict", "optimizer_states", "avcap_zoo"):
            assert_same(last[key], load(whole[10] / "checkpoints/step=10.ckpt")[key], key)
