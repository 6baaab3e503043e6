"""Rows of several processes become one file in order of id, whatever was held in memory and whichever run made them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from avcap_zoo.errors import DataError
from avcap_zoo.systems.predictions import SortedRows, ids_put_down, merge


def test_parts_of_two_processes_become_one_file(tmp_path: Path) -> None:
    folder, target = tmp_path / "parts", tmp_path / "run/predictions.jsonl"
    assert ids_put_down(folder) == set()
    ids = [f"clip {number:03d}" for number in range(500)]
    for rank in range(2):
        part = SortedRows(folder, held=2)
        # In another order, and the last process begins anew to fill its share, as a sampler does.
        for clip_id in [*reversed(ids[rank::2]), ids[0]]:
            part.add([{"id": clip_id, "caption": f"{clip_id} é"}])
            assert len(part.rows) < 2
        part.put_down()
    assert len(list(folder.iterdir())) == 252  # more than are open at once
    (folder / ".rows-1.partial").write_text('{"id": ')  # of a run that was killed
    assert ids_put_down(folder) == set(ids)
    assert merge(folder, target, {"system": "Toy"}) == 500
    text = target.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == ids
    assert rows[0] == {"id": "clip 000", "caption": "clip 000 é", "system": "Toy"}
    assert "é" in text
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "predictions.jsonl"]
    assert merge(folder, tmp_path / "none.jsonl", {}) == 0


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "parts").write_text("")
    rows = SortedRows(tmp_path / "parts", held=1)
    with pytest.raises(
        DataError, match=rf"^cannot write {re.escape(str(tmp_path))}/parts/rows-\w+: File exists; free "
    ):
        rows.add([{"id": "a"}])
