"""Files written whole or not at all, and the two forms that annotations have."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from avcap_zoo.errors import DataError


def write_error(path: Path, error: OSError) -> DataError:
    """The error of a path that cannot be written, with what mends it."""
    return DataError(
        f"cannot write {path}: {error.strerror or error}; free space or choose another folder, then call again: "
        f"what is there already is kept"
    )


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
