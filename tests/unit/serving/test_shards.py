"""Shards in, files of captions out: shared by processes, taken up again, each id once, in little memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from avcap_zoo.batch import Batch
from avcap_zoo.data_modules.dataset import DecodeSettings
from avcap_zoo.errors import ConfigError, DataError
from avcap_zoo.serving.caption import Captioner
from avcap_zoo.serving.loading import Loaded
from avcap_zoo.serving.shards import Place, ShardReport, caption_shards, find_shards, place_of
from tests.unit.data_modules.test_images import picture, write_shard
from tests.unit.systems.vlrm import toy

ALONE = Place(0, 1, 0)


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    """A VLRM of toy size."""
    torch.manual_seed(0)
    system = toy.system()
    system.configure_model()
    decode = DecodeSettings(16_000, 1, 16, ("visual",), "skip", prefer_features=False)
    return Captioner(Loaded(system.eval(), decode, "32-true", (), "0123456789abcdef"), "cpu")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Two tar shards of five pictures and a list of seven, in one folder."""
    folder = tmp_path / "in"
    for shard in range(2):
        members = [(f"{shard}{number}.png", picture(20 * shard + 30 * number)) for number in range(5)]
        write_shard(folder / f"{shard}.tar", *members, (f"{shard}0.json", b"{}"))
    for number in range(7):
        Image.new("RGB", (8, 8), (10, 30 * number, 0)).save(folder / f"p{number}.png")
    (folder / "list.txt").write_text("".join(f"p{number}.png\n" for number in range(7)))
    return folder


def run(captioner: Captioner, inputs: Path, out: Path, place: Place = ALONE, **options: Any) -> list[ShardReport]:
    settings: dict[str, Any] = {"batch_size": 2, **options}
    return list(caption_shards(captioner, find_shards([str(inputs)], 3), out, place, **settings))


def rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by file."""
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(out.glob("*.jsonl"))
    }


def test_any_number_of_processes_writes_the_same_files(captioner: Captioner, inputs: Path, tmp_path: Path) -> None:
    reports = run(captioner, inputs, tmp_path / "one")
    names = ["0.tar", "1.tar", "list.txt-00000", "list.txt-00001", "list.txt-00002"]
    assert [report.name for report in reports] == names
    assert [report.captions for report in reports] == [5, 5, 3, 3, 1]
    assert all(0 < report.model_s < report.total_s for report in reports)
    files = rows(tmp_path / "one")
    assert list(files) == [f"{name}.jsonl" for name in names]
    assert [row["id"] for row in files["1.tar.jsonl"]] == ["10", "11", "12", "13", "14"]
    assert files["list.txt-00002.jsonl"][0]["id"] == str(inputs / "p6.png")
    assert files["0.tar.jsonl"][0].keys() == {"id", "caption", "system", "decode", "versions", "made_by"}
    for rank in range(3):
        done = run(captioner, inputs, tmp_path / "three", Place(rank, 3, rank), num_workers=2 * (rank == 0))
        assert [report.name for report in done] == names[rank::3]
    by_id = [{row["id"]: row for file in rows(tmp_path / where).values() for row in file} for where in ("one", "three")]
    assert by_id[0] == by_id[1]
    assert len(by_id[0]) == 17
    assert run(captioner, inputs, tmp_path / "three", Place(1, 2, 0)) == []  # finished, whoever did it
    assert not list((tmp_path / "three").glob(".*"))


def test_a_stopped_process_goes_on_within_its_shard(
    captioner: Captioner, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caption = captioner.system.caption
    calls: Iterator[int] = iter(range(100))

    def stopped(batch: Batch) -> list[str]:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return caption(batch)

    with monkeypatch.context() as patch:
        patch.setattr(captioner.system, "caption", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(captioner, inputs, tmp_path / "out")
    assert list(rows(tmp_path / "out")) == ["0.tar.jsonl"]
    (part,) = (tmp_path / "out").glob(".*.partial")
    part.write_bytes(part.read_bytes() + b'{"id": "1')  # as if the stop had come within a line
    reports = run(captioner, inputs, tmp_path / "out")
    assert (reports[0].name, reports[0].earlier, reports[0].captions) == ("1.tar", 2, 3)
    run(captioner, inputs, tmp_path / "whole")
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*"))


def test_what_fails_is_listed_and_tried_again(captioner: Captioner, inputs: Path, tmp_path: Path) -> None:
    (inputs / "p1.png").write_bytes(b"no picture")
    write_shard(inputs / "0.tar", ("a.png", picture(1)), ("b.png", b"broken"), ("a.jpg", picture(2, "jpg")))
    (inputs / "2.tar").write_bytes(b"no shard")
    reports = {report.name: report for report in run(captioner, inputs, tmp_path / "out")}
    assert [clip.clip_id for clip in reports["0.tar"].failures] == ["b"]
    assert [clip.clip_id for clip in reports["2.tar"].failures] == ["2.tar"]
    assert "no tar file" in reports["2.tar"].failures[0].reason
    found = rows(tmp_path / "out")
    assert "2.tar.jsonl" not in found
    assert [row["id"] for row in found["0.tar.jsonl"]] == ["a"]  # the second of this id is not captioned again
    assert found["0.tar.failed.jsonl"][0]["reason"].startswith("not decodable")
    assert [row["id"] for row in found["list.txt-00000.failed.jsonl"]] == [str(inputs / "p1.png")]
    Image.new("RGB", (8, 8)).save(inputs / "p1.png")
    write_shard(inputs / "2.tar", ("x.png", picture()))
    again = {report.name: (report.earlier, report.captions) for report in run(captioner, inputs, tmp_path / "out")}
    assert again == {"0.tar": (1, 0), "2.tar": (0, 1), "list.txt-00000": (2, 1)}
    found = rows(tmp_path / "out")
    assert [name for name in found if "failed" in name] == ["0.tar.failed.jsonl"]
    assert len(found["list.txt-00000.jsonl"]) == 3


def test_captions_of_other_weights_are_not_mixed_with(captioner: Captioner, inputs: Path, tmp_path: Path) -> None:
    run(captioner, inputs, tmp_path / "out")
    other = Captioner(Loaded(captioner.system, captioner.loaded.decode, "32-true", (), "f" * 16), "cpu")
    with pytest.raises(DataError, match=r"0\.tar\.jsonl holds captions made with other weights or settings"):
        run(other, inputs, tmp_path / "out")


def test_a_name_that_leads_nowhere(captioner: Captioner, inputs: Path, tmp_path: Path) -> None:
    for words, message in (
        (["gone.tar"], "gone.tar: no such file"),
        ([str(inputs / "*.zip")], "no file matches"),
        ([str(inputs / "p0.png")], "is neither a tar shard nor a list"),
        ([str(inputs), str(write_shard(tmp_path / "0.tar"))], r"would both be captioned into 0\.tar\.jsonl"),
    ):
        with pytest.raises(DataError, match=message):
            list(find_shards(words, 3))


def test_the_launcher_says_which_process_this_is() -> None:
    assert place_of({}) == Place(0, 1, 0)
    assert place_of({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "SLURM_PROCID": "3"}) == Place(9, 16, 1)
    assert place_of({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}) == Place(3, 4, 1)
    assert place_of({"RANK": "9", "WORLD_SIZE": "16"}, 2, 3) == Place(2, 3, 2)
    with pytest.raises(ConfigError, match="belong together"):
        place_of({}, rank=1)
    with pytest.raises(ConfigError, match="rank 3 is none of 3 processes, wanted 0 to 2"):
        place_of({}, 3, 3)


def test_a_long_list_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"id": "clip {number}", "path": "{number}.png"}}\n' for number in range(60_000))
    tracemalloc.start()
    try:
        count = sum(1 for _ in find_shards([str(path)], 500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 120
    assert peak < 2_000_000  # the rows of the list take 25 MB
