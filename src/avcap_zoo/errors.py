"""The few error types of the package: one line that says what was found, what was wanted, and what mends it.

`cli.main` prints these without a traceback and exits with 1; set `AVCAP_TRACEBACK=1` to see where they came from.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType


class AvcapError(Exception):
    """Base of every error that is the user's to mend, never a bug of ours."""


class ConfigError(AvcapError):
    """A configuration file, key or value is wrong; the message names the file and the key."""


class DataError(AvcapError):
    """A data folder, an annotation file or a whole split cannot be used."""


class MediaError(DataError):
    """One clip's sound or picture cannot be read.

    Args:
        clip_id: id of the clip as in the annotations.
        path: the file that was opened, or None when no file exists.
        reason: short cause, without the path.
    """

    def __init__(self, clip_id: str, path: Path | str | None, reason: str) -> None:
        self.clip_id = clip_id
        self.path = None if path is None else str(path)
        self.reason = reason
        where = f" ({self.path})" if self.path else ""
        super().__init__(f"clip {clip_id}{where}: {reason}")

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str | None, str]]:
        """Pickle by arguments, so that the error survives the way out of a data worker."""
        return type(self), (self.clip_id, self.path, self.reason)


class WeightsError(AvcapError):
    """A weight file is missing, unreadable, unsafe, or does not fit the model."""


class ShapeError(AvcapError, ValueError):
    """Tensors do not fit together; both shapes are in the message."""


class MissingExtraError(AvcapError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class DeviceError(AvcapError):
    """The device asked for is not there, or its software is missing."""


class NonFiniteLossError(AvcapError):
    """The training loss became NaN or infinite; the message names the clips of the batch."""


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra of avcap-zoo brings it.

    Args:
        module: dotted module name, such as "soxr".
        extra: name of the extra in setup.cfg, such as "metrics".

    Raises:
        MissingExtraError: the module cannot be found.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise MissingExtraError(
            f"this needs the package {error.name!r}, which is not installed: pip install 'avcap-zoo[{extra}]'"
        ) from error


def first_line(error: BaseException) -> str:
    """First line of an error's text, or its type when it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def free_bytes(path: Path) -> int:
    """Bytes that are free on the disk of a path, which need not be there yet."""
    for folder in (path.absolute(), *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


@contextmanager
def hub_error(source: str, key: str) -> Iterator[None]:
    """Turn the many ways in which transformers fails to find a model into one line that names the config key.

    Args:
        source: hub id or folder that is being loaded.
        key: config key the source came from.

    Raises:
        WeightsError: in place of OSError, ValueError and UnpicklingError.
    """
    try:
        yield
    except (OSError, ValueError, UnpicklingError) as error:
        raise WeightsError(
            f"{key}: cannot load {source!r}: {first_line(error)} "
            f"({how_to_get(source) or 'give a local folder in transformers format, or a hub id you have access to'})"
        ) from error


def how_to_get(source: str) -> str:
    """The command that makes a small model of ours; "" for any other file, and for one that is there.

    What `configs/tiny/NAME.yaml` trains is saved as `runs/pretrained/NAME`, with or without suffix.

    Args:
        source: what a configuration names.
    """
    path = Path(source)
    if path.exists() or path.parts[:-1] != ("runs", "pretrained"):
        return ""
    return f"make it: lightning fit -c configs/tiny/{path.stem}.yaml"
