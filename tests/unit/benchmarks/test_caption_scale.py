"""The benchmark of captioning at scale runs the real code in real processes, and its model only waits."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from benchmarks.caption_scale import measure, write_shards


def test_two_processes_caption_every_picture_once(tmp_path: Path) -> None:
    write_shards(tmp_path, 4, 20, 16)
    options = Namespace(shards=2, pictures=20, side_px=16, seconds_per_batch=0.05)
    rows = measure(2, tmp_path, options)  # which counts the captions
    assert [row[0] for row in rows] == [40, 40]
    for _, model, _, _, total, processor in rows:
        assert 4 * 0.05 <= model < total  # two batches per shard
        assert processor < total
