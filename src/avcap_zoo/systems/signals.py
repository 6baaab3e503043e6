"""Runs that are told to end, or to save, by a signal: nothing of them is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from avcap_zoo.batch import run_folder
from avcap_zoo.systems.base import Interruption, System, rng_states, set_rng_states
from avcap_zoo.systems.captions import CaptionSystem

CHECKPOINT_NAME = "on_signal.ckpt"
# SIGUSR1 first: where both are sent, the second ends the run.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name))


class SaveOnSignal(Checkpoint):
    """Saves `on_signal.ckpt` on SIGTERM and SIGUSR1, beside the other checkpoints.

    A signal that comes in the midst of a training step or of a validation batch is held back until that is done, on
    all processes of the run whichever of them got it. Then the checkpoint is written and the signal handed on to
    whoever had it before: on SIGTERM Lightning ends the run; on SIGUSR1 it requeues the job under SLURM, and elsewhere
    the run goes on. A run that goes on from the checkpoint is bitwise the one that was not stopped; a validation that
    was under way is done again from its start. A system whose steps take long may give a step up instead: then the
    checkpoint is that of before it.

    Of `predict` each process ends by itself, on SIGTERM after the batch under way; the captions that it holds are put
    down then, and whatever else ends it.

    Attributes:
        path: the checkpoint written last, or None.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._noted: set[int] = set()
        self._earlier: dict[int, Any] = {}
        self._stopping = False
        self._in_validation = False
        self._rng_before_validation: dict[str, Any] = {}
        self._in_step = False
        self._loops_before_step: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which has set its own handlers by now."""
        self._stopping = False
        self._take_over(_SIGNALS)
        self._loops_before_step = {}
        if isinstance(pl_module, System) and pl_module.gives_way:
            pl_module.interruption = Interruption(partial(self._waits, trainer), partial(self._give_way, trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._give_back()
        if isinstance(pl_module, System):
            pl_module.interruption = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Obey what came during the step."""
        self._obey(trainer)
        self._remember_loops(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the random states that a repeated validation begins with."""
        self._rng_before_validation = rng_states()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Obey what came during the batch."""
        self._in_validation = True
        self._obey(trainer)
        self._in_validation = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Obey what came while scores were computed."""
        self._obey(trainer)
        self._remember_loops(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the end of the epoch before: from there Lightning does not go on exactly."""
        self._loops_before_step = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over."""
        self._take_over((signal.SIGTERM,))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End if told to: without the other processes, which do not caption equally often, but with those begun here.

        Raises:
            SIGTERMException: to end the run.
        """
        if signal.SIGTERM in self._noted:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGTERM)
            raise SIGTERMException

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give SIGTERM back."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put down the captions of a `predict` that ends early."""
        if trainer.predicting and isinstance(pl_module, CaptionSystem):
            pl_module.put_predictions_down()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put down where a run goes on that is saved in the midst of a validation, or of a step.

        Of the validation the first batch is under way, so that it begins again. The step has not begun.
        """
        if self._in_step:
            checkpoint["loops"] = self._loops_before_step
        if not self._in_validation:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        before = progress["total"]["completed"] - progress["current"]["completed"]
        for part, done in (("total", before), ("current", 0)):
            progress[part] |= {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
        progress["is_last_batch"] = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the best checkpoints of the earlier part of a run count in a new folder, if they are there still.

        Lightning's ModelCheckpoint forgets them when its folder has changed, and would call the first one after it the
        best. It removes none outside its own folder.
        """
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                state = checkpoint.get("callbacks", {}).get(callback.state_key)
                if state is not None and all(Path(path).is_file() for path in state["best_k_models"]):
                    state["dirpath"] = callback.dirpath

    def _take_over(self, numbers: Iterable[int]) -> None:
        self._noted.clear()
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in numbers}

    def _give_back(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _note(self, number: int, _: Any) -> None:
        self._noted.add(number)

    def _remember_loops(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep where the run stands, at moments from which Lightning goes on exactly: within a step it would not."""
        if isinstance(pl_module, System) and pl_module.interruption is not None:
            self._loops_before_step = trainer._checkpoint_connector._get_loops_state_dict()

    def _waits(self, trainer: Trainer) -> bool:
        """Whether any process has noted a signal, and it is known where the run stood before the step."""
        noted = bool(self._noted) and bool(self._loops_before_step)
        return trainer.strategy.reduce_boolean_decision(noted, all=False)

    def _give_way(self, trainer: Trainer) -> None:
        """Obey in a step that was given up.

        Raises:
            SIGTERMException: the run is to end.
        """
        self._in_step = True
        self._obey(trainer)
        self._in_step = False
        if trainer.received_sigterm:
            raise SIGTERMException

    def _obey(self, trainer: Trainer) -> None:
        """Save and hand on the signals that any process has noted; once the run is ending, save what has come since."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if not trainer.strategy.reduce_boolean_decision(bool(self._noted) or self._stopping, all=False):
            return
        self._save(trainer)
        for number in _SIGNALS:
            if trainer.strategy.reduce_boolean_decision(number in self._noted, all=False):
                self._noted.discard(number)
                rank_zero_info(f"{signal.Signals(number).name}: saved {self.path}")
                self._stopping |= number == signal.SIGTERM
                earlier: Callable[[int, Any], Any] | Any = self._earlier[number]
                if callable(earlier):
                    earlier(number, None)

    def _save(self, trainer: Trainer) -> None:
        folders = (c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint))
        folder = next((folder for folder in folders if folder), None) or run_folder(trainer) / "checkpoints"
        self.path = Path(folder) / CHECKPOINT_NAME
        now = rng_states()
        if self._in_validation:
            set_rng_states(self._rng_before_validation)
        trainer.save_checkpoint(self.path)
        set_rng_states(now)
