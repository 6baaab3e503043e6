"""`predict` that was killed goes on: what is captioned stays captioned, once, whatever the number of processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.utilities.exceptions import SIGTERMException

from avcap_zoo.batch import Batch
from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.systems.signals import SaveOnSignal
from avcap_zoo.systems.vlrm import VLRM
from tests.integration.test_two_processes import processes, rows, vlrm_data
from tests.integration.tiny import tiny_trainer
from tests.unit.data_modules.test_images import images, shards
from tests.unit.systems.vlrm import toy

pytestmark = pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses CUDA cannot be forked")

ALL = 10**6


class Noting(VLRM):
    """Puts its captions down by so many, notes in a file what it captions, and signals itself after so many."""

    notes: Path
    last = ALL
    held = 2
    signal = signal.SIGKILL

    def caption(self, batch: Batch) -> list[str]:
        if len(self.notes.read_text().split()) == self.last:
            os.kill(os.getpid(), self.signal)
        with self.notes.open("a") as file:
            file.write("".join(f"{clip_id}\n" for clip_id in batch.clip_ids))
        return super().caption(batch)

    def on_predict_epoch_start(self) -> None:
        super().on_predict_epoch_start()
        assert self._predictions is not None
        self._predictions.held = self.held


def predict(folder: Path, data: CaptionDataModule, number: int = 1, seed: int = 0, last: int = ALL) -> list[str]:
    """Ids of the clips that a run of so many processes captions."""
    torch.manual_seed(seed)
    system = toy.system()
    system.__class__ = Noting
    assert isinstance(system, Noting)
    system.configure_model()
    folder.mkdir(exist_ok=True)
    system.notes, system.last = folder / "notes", last
    system.notes.write_text("")
    trainer = tiny_trainer(folder, every=1, callbacks=[SaveOnSignal()], **processes(number))
    trainer.predict(system, datamodule=data, return_predictions=False)
    return sorted(system.notes.read_text().split())


def kill(folder: Path, data: CaptionDataModule, last: int) -> None:
    """Run until so many clips are captioned, not all of which are put down, and kill."""
    child = mp.get_context("fork").Process(target=predict, args=(folder, data), kwargs={"last": last})
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (folder / "predictions.jsonl").exists()


def test_clips_are_captioned_once(scenes_root: Path, tmp_path: Path) -> None:
    data = vlrm_data(scenes_root)
    data.eval_batch_size = 1
    everything = predict(tmp_path / "whole", data)
    wanted = rows(tmp_path / "whole/predictions.jsonl")
    assert [clip_id for clip_id, _ in wanted] == everything
    assert len(everything) == 6
    for number in (1, 2):
        folder = tmp_path / str(number)
        kill(folder, data, 3)
        left = predict(folder, data, number)
        assert len(left) == 4  # two of the three were put down
        assert rows(folder / "predictions.jsonl") == wanted
        assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    folder = tmp_path / "other weights"
    kill(folder, data, 5)
    assert predict(folder, data, seed=1) == everything  # nothing is mixed
    assert len(predict(folder, data)) == 2  # what was kept is taken up


def test_a_run_that_was_killed_before_its_parts_became_one_file(
    scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = vlrm_data(scenes_root)
    with monkeypatch.context() as patch:
        patch.setattr("avcap_zoo.systems.captions.merge", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        kill(tmp_path, data, ALL)
    assert len(predict(tmp_path, data)) == 1  # Lightning runs no epoch, nor its end, without a clip
    assert len(rows(tmp_path / "predictions.jsonl")) == 6


@pytest.mark.parametrize(
    ("number", "raises", "left"),
    [(signal.SIGTERM, SIGTERMException, 3), (signal.SIGINT, SystemExit, 4)],  # Ctrl-C does not wait for the batch
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_run_that_is_told_to_end_keeps_what_it_has_captioned(
    number: signal.Signals,
    raises: type[BaseException],
    left: int,
    scenes_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = vlrm_data(scenes_root)
    data.eval_batch_size = 1
    handlers = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    with monkeypatch.context() as patch, pytest.raises(raises):
        patch.setattr(Noting, "signal", number)
        patch.setattr(Noting, "held", ALL)
        predict(tmp_path, data, last=2)
    signal.signal(signal.SIGINT, handlers[1])  # Lightning ignores it from the first Ctrl-C on
    assert signal.getsignal(signal.SIGTERM) == handlers[0]
    assert not (tmp_path / "predictions.jsonl").exists()
    assert len(predict(tmp_path, data)) == left
    assert len(rows(tmp_path / "predictions.jsonl")) == 6


def test_pictures_of_shards_are_captioned_once(tmp_path: Path) -> None:
    data = images(shards(tmp_path / "shards", count=2), whole_set_as="test", image_size_px=16, eval_batch_size=1)
    everything = predict(tmp_path / "whole", data)
    assert len(everything) == 10
    kill(tmp_path / "run", data, 7)
    assert predict(tmp_path / "run", data, 2) == everything[6:]
    assert rows(tmp_path / "run/predictions.jsonl") == rows(tmp_path / "whole/predictions.jsonl")
