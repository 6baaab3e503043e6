"""Rows of millions of clips, put down by all processes as they come and made one file in little memory.

What a run has put down is found by the next one of the same name, whatever its number of processes.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from avcap_zoo.errors import DataError

Row = dict[str, Any]

_OPEN_FILES = 200


class SortedRows:
    """Rows of one process: so many are held, and put down in order of id in a file of their own when they are more.

    Args:
        folder: that all processes see.
        held: rows in memory, which a kill loses.
    """

    def __init__(self, folder: Path, held: int = 1000) -> None:
        self.folder = folder
        self.held = held
        self.rows: list[Row] = []

    def add(self, rows: list[Row]) -> None:
        """Take rows, each with an `id`.

        Raises:
            DataError: they cannot be written.
        """
        self.rows += rows
        if len(self.rows) >= self.held:
            self.put_down()

    def put_down(self) -> None:
        """Write what is held; needed before `merge`.

        Raises:
            DataError: it cannot be written.
        """
        if self.rows:
            ordered = sorted(self.rows, key=lambda row: row["id"])
            _write(self.folder / f"rows-{uuid4().hex}", ordered)
            self.rows = []


def ids_put_down(folder: Path) -> set[str]:
    """Ids of all rows in a folder of parts, which need not exist."""
    found: set[str] = set()
    for part in _parts(folder):
        with part.open(encoding="utf-8") as file:
            found.update(row["id"] for row in _rows(file))
    return found


def merge(folder: Path, target: Path, more: Row) -> int:
    """Make one file of what the processes have put down, each id once, in order of id.

    Args:
        folder: of the parts; it is removed.
        target: JSON lines; appears when it is whole.
        more: further keys of each row.

    Returns:
        Number of rows.

    Raises:
        DataError: the file cannot be written; the parts stay.
    """
    while len(few := _parts(folder)[:_OPEN_FILES]) == _OPEN_FILES:
        with _merged(few) as rows:
            _write(folder / f"rows-{uuid4().hex}", rows)
        for part in few:
            part.unlink()
    with _merged(few) as rows:
        count = _write(target, ({**row, **more} for row in rows))
    for file in folder.iterdir() if folder.is_dir() else ():
        file.unlink()
    if folder.is_dir():
        folder.rmdir()
    return count


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("rows-*"))


@contextmanager
def _merged(parts: Iterable[Path]) -> Iterator[Iterator[Row]]:
    """Rows of ordered files in order of id, each id once."""

    def unique(files: list[Iterator[str]]) -> Iterator[Row]:
        last = None
        for row in heapq.merge(*map(_rows, files), key=lambda row: row["id"]):
            if row["id"] != last:
                last = row["id"]
                yield row

    with ExitStack() as stack:
        yield unique([stack.enter_context(part.open(encoding="utf-8")) for part in parts])


def _write(target: Path, rows: Iterable[Row]) -> int:
    """Write rows into a file that appears when it is whole, and is on disk then; returns their number."""
    staging = target.with_name(f".{target.name}.partial")
    count = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        staging.replace(target)
    except OSError as error:
        raise DataError(
            f"cannot write {target}: {error.strerror or error}; free some space, then call again: what was captioned "
            f"before is kept"
        ) from error
    return count


def _rows(lines: Iterable[str]) -> Iterator[Row]:
    return map(json.loads, lines)
