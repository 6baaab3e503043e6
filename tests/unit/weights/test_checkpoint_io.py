"""A checkpoint is whole or the old one: whatever happens while it is written."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import re
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from avcap_zoo.errors import AvcapError, WeightsError
from avcap_zoo.weights import checkpoint_io
from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO, CheckpointSaveError
from tests.unit.weights.hostile import Hostile

IO = AtomicCheckpointIO()
NOBODY = 65534
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def checkpoint(number: int, size: int = 1000) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((size,), float(number))}, "epoch": number, "hyper": {"x": [1, "a", None]}}


def number_in(path: Path) -> int:
    """Which checkpoint is at a path; it must be whole."""
    content = IO.load_checkpoint(path)
    assert torch.equal(content["state_dict"]["w"], torch.full_like(content["state_dict"]["w"], content["epoch"]))
    return int(content["epoch"])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "last.ckpt"
    for number in (1, 2):
        IO.save_checkpoint(checkpoint(number), path)
        assert number_in(path) == number
        assert names_in(path.parent) == ["last.ckpt"]
    IO.save_checkpoint(checkpoint(3), str(path))
    assert number_in(path) == 3
    assert IO.load_checkpoint(str(path))["hyper"] == {"x": [1, "a", None]}


def test_file_and_folder_are_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flush, rename = os.fsync, Path.replace

    def noted_flush(descriptor: int) -> None:
        order.append("flush")
        flush(descriptor)

    def noted_rename(self: Path, target: Path) -> Path:
        order.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(Path, "replace", noted_rename)
    IO.save_checkpoint(checkpoint(1), tmp_path / "a.ckpt")
    assert order == ["flush", "rename", "flush"]


def test_a_file_system_that_flushes_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    IO.save_checkpoint(checkpoint(1), tmp_path / "a.ckpt")
    assert number_in(tmp_path / "a.ckpt") == 1


# -- killed while writing ----------------------------------------------------------------------------------------


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingFile(io.FileIO):
    """A file whose writer is killed after some bytes."""

    left = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= DyingFile.left:
            super().write(view[: DyingFile.left])
            die()
        DyingFile.left -= len(view)
        return super().write(view)


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process; minus the signal it died of, 1 after an exception, or 0."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_after(num_bytes: int) -> None:
    original = Path.open

    def opened(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" not in mode:
            return original(self, mode, *arguments, **options)
        DyingFile.left = num_bytes
        return DyingFile(self, "w")

    Path.open = opened  # type: ignore[method-assign]


def _die_at_the_rename() -> None:
    Path.replace = die  # type: ignore[method-assign]


def _die_at_the_flush() -> None:
    os.fsync = die


def _die_after_the_rename() -> None:
    checkpoint_io._sync_folder = die


MOMENTS: list[tuple[Callable[[], None], int]] = [
    (lambda: die_after(0), 1),
    (lambda: die_after(1), 1),
    (lambda: die_after(5_000), 1),
    (lambda: die_after(100_000), 1),
    (_die_at_the_flush, 1),
    (_die_at_the_rename, 1),
    (_die_after_the_rename, 2),
]


@forks
@pytest.mark.parametrize(("moment", "left"), MOMENTS)
def test_killed_at_any_moment(tmp_path: Path, moment: Callable[[], None], left: int) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(checkpoint(1), path)

    def save_and_die() -> None:
        moment()
        IO.save_checkpoint(checkpoint(2, size=50_000), path)

    assert in_child(save_and_die) == -signal.SIGKILL
    assert number_in(path) == left
    assert len(names_in(tmp_path)) == (2 if left == 1 else 1), "the orphan of the killed process"
    IO.save_checkpoint(checkpoint(3), path)
    assert names_in(tmp_path) == ["last.ckpt"]
    assert number_in(path) == 3


@forks
def test_killed_at_random_moments_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")  # another disk than the target's, where there is one
    path = tmp_path / "last.ckpt"
    moments = random.Random(0)
    begun = time.monotonic()
    IO.save_checkpoint(checkpoint(0, size=300_000), path)
    save_s = time.monotonic() - begun
    for _ in range(20):
        news, told = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for number in range(1, 10_000):
                    os.write(told, b".")
                    IO.save_checkpoint(checkpoint(number, size=300_000), path)
            finally:
                os._exit(0)
        for _ in range(3):
            os.read(news, 1)
        time.sleep(moments.uniform(0, save_s))  # in the third save
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        begun_saves = 3 + len(os.read(news, 10_000))
        os.close(news)
        assert number_in(path) in {begun_saves - 1, begun_saves}
    IO.save_checkpoint(checkpoint(1), path)
    assert names_in(tmp_path) == ["last.ckpt"]


def test_only_orphans_of_the_same_checkpoint_are_removed(tmp_path: Path) -> None:
    for name in (".a[1].ckpt.123.partial", ".a1.ckpt.7.partial", ".b.ckpt.123.partial", "a[1].ckpt.partial"):
        (tmp_path / name).touch()
    IO.save_checkpoint(checkpoint(1), tmp_path / "a[1].ckpt")
    assert names_in(tmp_path) == [".a1.ckpt.7.partial", ".b.ckpt.123.partial", "a[1].ckpt", "a[1].ckpt.partial"]


# -- disk full, no permission ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [262_000, 1_000_000, 10_000_000])
def test_a_full_disk(small_disk: Path, size: int) -> None:
    path = small_disk / "last.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    reason = r"No space left on device, [\d,]+ bytes are free there; the previous"
    with pytest.raises(CheckpointSaveError, match=rf"last.ckpt \({4 * size:,} bytes of tensors\): {reason}") as caught:
        IO.save_checkpoint(checkpoint(2, size=size), path)
    free = int(re.search(r"([\d,]+) bytes are free", str(caught.value))[1].replace(",", ""))  # type: ignore[index]
    assert 900_000 < free < 2**20, "what is free without the file that was begun"
    assert names_in(small_disk) == ["last.ckpt"]
    assert number_in(path) == 1
    IO.save_checkpoint(checkpoint(3), path)
    assert number_in(path) == 3


class FullFile(io.FileIO):
    """A file on a disk that is full after some bytes."""

    room = 0

    def write(self, data: Any) -> int:
        FullFile.room -= memoryview(data).nbytes
        if FullFile.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def full_after(room: int, patch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def opened(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" not in mode:
            return original(self, mode, *arguments, **options)
        FullFile.room = room
        return FullFile(self, "w")

    patch.setattr(Path, "open", opened)


def failing(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "break_it",
    [
        lambda patch: full_after(0, patch),
        lambda patch: full_after(2_000, patch),
        lambda patch: full_after(200_000, patch),
        lambda patch: patch.setattr(os, "fsync", failing),
        lambda patch: patch.setattr(Path, "replace", failing),
    ],
)
def test_no_space_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    with monkeypatch.context() as patch:
        break_it(patch)
        with pytest.raises(CheckpointSaveError) as caught:
            IO.save_checkpoint(checkpoint(2, size=100_000), path)
    message = str(caught.value)
    assert isinstance(caught.value, AvcapError)
    assert str(path) in message
    assert "last.ckpt (400,000 bytes of tensors): No space left on device, " in message
    assert " bytes are free there; the previous checkpoint is untouched" in message
    assert "--trainer.default_root_dir" in message
    assert "\n" not in message
    assert names_in(tmp_path) == ["last.ckpt"]
    assert number_in(path) == 1


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file" / "last.ckpt", tmp_path / "file" / "deeper" / "last.ckpt"):
        with pytest.raises(
            CheckpointSaveError, match=r"\(4,000 bytes of tensors\): (Not a directory|File exists); the"
        ):
            IO.save_checkpoint(checkpoint(1), path)
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(CheckpointSaveError, match=r"folder.ckpt \(4,000 .*\): Is a directory"):
        IO.save_checkpoint(checkpoint(1), tmp_path / "folder.ckpt")
    assert names_in(tmp_path) == ["file", "folder.ckpt"]


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    original = Path.open

    def opened(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(self, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(CheckpointSaveError, match=r"last.ckpt \(4,000 .*\): Permission denied; the previous"):
            IO.save_checkpoint(checkpoint(2), path)
    assert number_in(path) == 1


def test_a_read_only_disk(small_disk: Path) -> None:
    path = small_disk / "last.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    (small_disk / ".last.ckpt.1.partial").touch()  # an orphan that cannot be removed
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointSaveError, match=r"last.ckpt \(4,000 .*\): Read-only file system; the prev"):
        IO.save_checkpoint(checkpoint(2), path)
    assert number_in(path) == 1


@forks
def test_a_folder_of_somebody_else() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        path = folder / "last.ckpt"
        IO.save_checkpoint(checkpoint(1), path)
        path.chmod(0o644)
        folder.chmod(0o555)

        def save_as_nobody() -> None:
            if os.geteuid() == 0:  # root may write everywhere
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            with pytest.raises(
                CheckpointSaveError, match=r"last.ckpt \(4,000 bytes of tensors\): Permission denied; the"
            ):
                IO.save_checkpoint(checkpoint(2), path)
            assert number_in(path) == 1

        assert in_child(save_as_nobody) == 0
        folder.chmod(0o755)
        assert names_in(folder) == ["last.ckpt"]


def test_what_does_not_read_back_as_it_was_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    flush = os.fsync

    def flip_a_bit(descriptor: int) -> None:
        (staging,) = tmp_path.glob(".last.ckpt.*.partial")
        content = bytearray(staging.read_bytes())
        content[len(content) // 2] ^= 1
        staging.write_bytes(content)
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flip_a_bit)
        with pytest.raises(CheckpointSaveError, match=r"data/0 in it does not read back as it was written; the prev"):
            IO.save_checkpoint(checkpoint(2, size=100_000), path)
    assert names_in(tmp_path) == ["last.ckpt"]
    assert number_in(path) == 1


def test_what_cannot_be_pickled_leaves_no_orphan(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        IO.save_checkpoint({"state_dict": {}, "function": lambda: 0}, path)
    assert names_in(tmp_path) == ["last.ckpt"]
    assert number_in(path) == 1


def test_interrupted_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint(checkpoint(1), path)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            IO.save_checkpoint(checkpoint(2), path)
    assert names_in(tmp_path) == ["last.ckpt"]
    assert number_in(path) == 1


# -- loading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, True, False])
def test_code_is_not_run_whatever_is_asked(tmp_path: Path, asked: bool | None) -> None:
    torch.save({"state_dict": {}, "callbacks": Hostile(tmp_path / "ran")}, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=r"x.ckpt cannot be read \(damaged, or not made by us\)") as caught:
        IO.load_checkpoint(tmp_path / "x.ckpt", None, asked)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "does not exist"),
        (lambda path: path.touch(), "cannot be read"),
        (lambda path: path.write_text("<html>"), "cannot be read"),
        (lambda path: torch.save({"w": torch.ones(1)}, path), "is not a checkpoint of a training run"),
        (lambda path: torch.save({"state_dict": [1]}, path), "is not a checkpoint of a training run"),
        (lambda path: torch.save({"state_dict": {1: 1}}, path), "is not a checkpoint of a training run"),
        (lambda path: torch.save([1], path), "is not a checkpoint of a training run"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=rf"x.ckpt.*{message}"):
        IO.load_checkpoint(tmp_path / "x.ckpt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_checkpoint_that_breaks_off(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.ckpt"
    IO.save_checkpoint(checkpoint(1), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(WeightsError, match=r"x.ckpt cannot be read \(damaged"):
        IO.load_checkpoint(path)
