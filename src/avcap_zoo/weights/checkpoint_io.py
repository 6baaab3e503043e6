"""Checkpoints that survive a crash: a whole new file or the old one, never half of one."""

from __future__ import annotations

import errno
import glob
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor
from typing_extensions import override

from avcap_zoo.errors import AvcapError, WeightsError, first_line, free_bytes

HANDED_BACK = ".temp.ckpt"
"""What Lightning's `ddp_spawn` and `ddp_fork` call the bare weights that they hand to the process they came from."""


class CheckpointSaveError(AvcapError):
    """A checkpoint could not be written; the previous one is whole."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush to disk, verify, rename; read without running code from the file.

    Lightning 2.6 stages checkpoints in the system's temp folder, which loses atomicity when that is another
    filesystem, and swallows a PermissionError.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint.

        Raises:
            CheckpointSaveError: disk full, no permission, or any other I/O error, or what was written is not what can
                be read; names path and bytes. What was at the path before is untouched.
        """
        target = Path(path)
        staging = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for orphan in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):  # left by a killed process
                orphan.unlink(missing_ok=True)
            with staging.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            _verify(staging)
            staging.replace(target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:
            # torch reports a full disk as a RuntimeError of its zip writer, with the OSError as its context.
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(error, RuntimeError) and not isinstance(cause, OSError) and "write" not in str(error):
                raise
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else first_line(error)
            if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
                staging.unlink(missing_ok=True)
                reason += f", {free_bytes(target):,} bytes are free there"
            raise CheckpointSaveError(
                f"cannot save checkpoint {target} ({_num_bytes(checkpoint):,} bytes of tensors): {reason}; the "
                f"previous checkpoint is untouched. Free some space or choose another folder with "
                f"--trainer.default_root_dir"
            ) from error
        finally:
            with suppress(OSError):  # it is gone if all went well, and may never have been there
                staging.unlink()

    @override
    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint; only tensors and plain values are accepted, whatever `weights_only` says.

        Raises:
            WeightsError: the file is missing, corrupt, or holds other objects.
        """
        if not Path(path).is_file():
            raise WeightsError(f"checkpoint {path} does not exist")
        try:
            content = torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            raise WeightsError(
                f"checkpoint {path} cannot be read (damaged, or not made by us): {first_line(error)}"
            ) from error
        state = content.get("state_dict") if isinstance(content, dict) else None
        is_state = isinstance(state, dict) and all(isinstance(name, str) for name in state)
        if not isinstance(content, dict) or not (is_state or Path(path).name == HANDED_BACK):
            raise WeightsError(f"{path} is not a checkpoint of a training run: it has no 'state_dict'")
        return content


def _verify(path: Path) -> None:
    """Read a torch file back and compare the checksums in it.

    Raises:
        BadZipFile: it is cut off or changed.
    """
    with zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise zipfile.BadZipFile(f"{broken} in it does not read back as it was written")


def _num_bytes(checkpoint: Any) -> int:
    """Bytes of all tensors in nested containers; those that share memory count once, as in the file."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in _tensors(checkpoint)}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entry of the renamed file, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems flush no folders
            raise
    finally:
        os.close(descriptor)
