"""Shards in, files of captions out: shared by processes, taken up again, each id once, in little memory."""

from __future__ import annotations

import gc
import io
import json
import os
import tarfile
import time
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
from avcap_zoo.serving.outputs import CaptionSaveError
from avcap_zoo.serving.shards import Place, ShardReport, caption_shards, find_shards, keep_settings, place_of
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
    reports = run(captioner, inputs, tmp_path / "out", Place(1, 2, 1))  # another number of processes
    assert (reports[0].name, reports[0].earlier, reports[0].captions) == ("1.tar", 2, 3)
    run(captioner, inputs, tmp_path / "out")
    run(captioner, inputs, tmp_path / "whole")
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    assert not list((tmp_path / "out").glob(".*"))


def test_a_list_that_has_grown_is_looked_through_again(captioner: Captioner, inputs: Path, tmp_path: Path) -> None:
    whole = (inputs / "list.txt").read_text()
    (inputs / "list.txt").write_text(whole[:35])  # five of seven rows
    run(captioner, inputs, tmp_path / "out")
    (inputs / "list.txt").write_text(whole)
    later = time.time() + 60
    os.utime(inputs / "list.txt", (later, later))
    again = [(report.name, report.earlier, report.captions) for report in run(captioner, inputs, tmp_path / "out")]
    assert again == [("list.txt-00000", 3, 0), ("list.txt-00001", 2, 1), ("list.txt-00002", 0, 1)]
    run(captioner, inputs, tmp_path / "whole")
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_a_folder_that_was_begun_with_other_settings(tmp_path: Path) -> None:
    for rank in range(2):
        keep_settings(tmp_path / "out", Place(rank, 2, rank), {"--rows_per_shard": 3, "--window_s": None})
    with pytest.raises(DataError, match=r"was begun with --rows_per_shard 3, found 4: give the same"):
        keep_settings(tmp_path / "out", ALONE, {"--rows_per_shard": 4, "--window_s": None})
    with pytest.raises(DataError, match=r"was begun with --window_s None, found 2\.0: give the same"):
        keep_settings(tmp_path / "out", ALONE, {"--rows_per_shard": 3, "--window_s": 2.0})


def test_a_full_disk_ends_the_run_and_loses_nothing(captioner: Captioner, inputs: Path, small_disk: Path) -> None:
    out = small_disk / "out"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2**20 - 12_288))
    with pytest.raises(CaptionSaveError, match=r"cannot write .*: No space left on device"):
        run(captioner, inputs, out)
    filler.unlink()
    run(captioner, inputs, out)
    found = [row["id"] for file in rows(out).values() for row in file]
    assert len(found) == len(set(found)) == 17


def test_names_that_are_no_text(captioner: Captioner, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as shard:
        member = tarfile.TarInfo("caf\u00e9.png")
        member.size = len(picture())
        shard.addfile(member, io.BytesIO(picture()))
    out = tmp_path / "out"
    (report,) = caption_shards(captioner, find_shards([str(tmp_path / "0.tar")], 3), out, ALONE)
    assert [clip.reason for clip in report.failures] == ["its name leads out of the shard or holds control characters"]
    assert rows(out)["0.tar.failed.jsonl"][0]["id"] == "caf\udce9"


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


def test_a_worker_that_hangs_ends_the_shard(
    captioner: Captioner, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avcap_zoo.serving.caption._WORKER_TIMEOUT_S", 1)
    monkeypatch.setattr("avcap_zoo.data_modules.images.decode_image", lambda *_: time.sleep(1000))
    (report,) = run(captioner, inputs / "0.tar", tmp_path / "out", num_workers=1)
    assert report.failures[0].reason.endswith("a file that takes for ever. --num_workers 0 shows where")


def test_shards_that_are_none_make_no_noise(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        (tmp_path / f"{number}.tar").write_bytes(b"no shard")
    # Workers of the second shard had inherited those of the first, and tried to end them.
    monkeypatch.setattr("avcap_zoo.serving.caption.leave_process_group", lambda worker: gc.collect())
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: os.write(2, repr(unraisable).encode()))
    gc.collect()  # loaders of other tests
    gc.disable()
    try:
        reports = run(captioner, tmp_path, tmp_path / "out", num_workers=1)
    finally:
        gc.enable()
    assert [len(report.failures) for report in reports] == [1, 1]
    assert capfd.readouterr().err == ""


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


def test_a_pattern_reaches_all_folders(tmp_path: Path) -> None:
    for name in ("top", "a/one", "a/b/two"):
        write_shard(tmp_path / f"{name}.tar")
    found = find_shards([str(tmp_path / "**/*.tar")], 3)
    assert [shard.name for shard in found] == ["two.tar", "one.tar", "top.tar"]


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
