"""Rows of several processes become one file in order of id, whatever was held in memory."""

from __future__ import annotations

import json
from pathlib import Path

from avcap_zoo.systems.predictions import SortedRows, merge


def test_parts_of_two_processes_become_one_file(tmp_path: Path) -> None:
    (tmp_path / ".rows-1-00007").write_text('{"id": "old"}\n')  # of a run that was killed
    ids = [f"clip {number:02d}" for number in range(50)]
    for rank in range(2):
        part = SortedRows(tmp_path, rank, held=7)
        # In another order, and the last process begins anew to fill its share, as a sampler does.
        for clip_id in [*reversed(ids[rank::2]), ids[0]]:
            part.add([{"id": clip_id, "caption": f"{clip_id} {rank if clip_id != ids[0] else 'é'}"}])
            assert len(part.rows) < 7
        part.put_down()
    assert len(list(tmp_path.glob(".rows-*"))) == 8
    assert merge(tmp_path, tmp_path / "predictions.jsonl", {"system": "Toy"}) == 50
    text = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == ids
    assert rows[0] == {"id": "clip 00", "caption": "clip 00 é", "system": "Toy"}
    assert "é" in text
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert merge(tmp_path, tmp_path / "none.jsonl", {}) == 0
