"""Files written whole or not at all, and the two forms that annotations have."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from avcap_zoo.errors import DataError, free_bytes

FULL = {errno.ENOSPC, errno.EDQUOT}
NO_LEAVE = {errno.EACCES, errno.EROFS}
"""What the system answers where there is no space left, and where one may not write."""
CALL_AGAIN = "free space or choose another folder, then call again: what is there already is kept"


def write_error(path: Path, error: OSError, remedy: str = CALL_AGAIN) -> DataError:
    """The error of a path that cannot be written, with what mends it; how much is free, if that may be the reason.

    Args:
        path: need not be there.
        error: what the system said.
        remedy: what mends it.
    """
    free = f", {free_bytes(path):,} bytes are free there" if error.errno in NO_LEAVE | FULL else ""
    return DataError(f"cannot write {path}: {error.strerror or error}{free}; {remedy}")


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: under a temporary name first.

    Raises:
        DataError: it cannot be written; see `write_error`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise write_error(path, error) from error


def json_bytes(value: Any, *, indent: int | None = 1) -> bytes:
    """A JSON text in ASCII with a line end."""
    return (json.dumps(value, indent=indent, ensure_ascii=True) + "\n").encode()


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as CSV in UTF-8 with plain line ends."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()
