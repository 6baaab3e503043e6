"""Rows of millions of clips, gathered from all processes in order of id and written in little memory."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class SortedRows:
    """Rows of one process: so many are held, and put down in order of id in a file of their own when they are more.

    Args:
        folder: that all processes see.
        rank: this process.
        held: rows in memory.
    """

    def __init__(self, folder: Path, rank: int, held: int = 100_000) -> None:
        self.folder = folder
        self.rank = rank
        self.held = held
        self.rows: list[Row] = []
        self.files = 0
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f".rows-{rank}-*"):
            old.unlink()

    def add(self, rows: list[Row]) -> None:
        """Take rows, each with an `id`."""
        self.rows += rows
        if len(self.rows) >= self.held:
            self.put_down()

    def put_down(self) -> None:
        """Write what is held; needed before `merge`."""
        if self.rows:
            ordered = sorted(self.rows, key=lambda row: row["id"])
            path = self.folder / f".rows-{self.rank}-{self.files:05d}"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered), encoding="utf-8")
            self.rows = []
            self.files += 1


def merge(folder: Path, target: Path, more: Row) -> int:
    """Make one file of what the processes have put down, each id once, in order of id.

    Args:
        folder: of the parts, which are removed.
        target: JSON lines; appears when it is whole.
        more: further keys of each row.

    Returns:
        Number of rows.
    """
    parts = sorted(folder.glob(".rows-*"))
    staging = target.with_name(f".{target.name}.partial")
    count = 0
    last = None
    with ExitStack() as stack:
        out = stack.enter_context(staging.open("w", encoding="utf-8"))
        files = [stack.enter_context(part.open(encoding="utf-8")) for part in parts]
        for row in heapq.merge(*map(_rows, files), key=lambda row: row["id"]):
            if row["id"] != last:
                last = row["id"]
                count += 1
                out.write(json.dumps({**row, **more}, ensure_ascii=False) + "\n")
    staging.replace(target)
    for part in parts:
        part.unlink()
    return count


def _rows(lines: Iterator[str]) -> Iterator[Row]:
    return map(json.loads, lines)
