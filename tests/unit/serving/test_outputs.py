from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from avcap_zoo.errors import ConfigError, DataError
from avcap_zoo.serving.outputs import CaptionSaveError, Row, open_captions, subtitles

PROVENANCE = {"system": "Toy", "decode": {"beams": 2}}


def row(clip_id: str, caption: str = "a dog, barking", start_s: float | None = None, end_s: float | None = None) -> Row:
    return {"id": clip_id, "start_s": start_s, "end_s": end_s, "caption": caption}


def write(path: Path, *rows: Row, made_by: str = "abc") -> None:
    with open_captions(path, made_by, PROVENANCE) as file:
        for each in rows:
            file.write([each])


def test_json_lines_say_where_they_come_from(tmp_path: Path) -> None:
    write(tmp_path / "new/a.jsonl", row("x", "un chien \u00e9norme"), row("y", start_s=1.0, end_s=2.5))
    first, second = (json.loads(line) for line in (tmp_path / "new/a.jsonl").read_text("utf-8").splitlines())
    assert first == {"id": "x", "caption": "un chien \u00e9norme", **PROVENANCE, "made_by": "abc"}
    assert (second["start_s"], second["end_s"]) == (1.0, 2.5)


def test_a_table_quotes_what_needs_it(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", row('a "b",c.mp4'), row("y", start_s=0.0, end_s=2.5))
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["id"] for r in rows] == ['a "b",c.mp4', "y"]
    assert [(r["start_s"], r["end_s"]) for r in rows] == [("", ""), ("0.0", "2.5")]
    assert rows[0]["caption"] == "a dog, barking"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_stopped_file_goes_on_and_loses_its_half_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, row("x"), row("y"))
    whole = path.read_bytes()
    for lost in (1, 5, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-lost])
        with open_captions(path, "abc", PROVENANCE) as file:
            assert file.done == {"x"}
            file.write([row("y")])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_of_other_weights_is_not_mixed_with(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, row("x"))
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"made with other weights or settings \(x\); choose another --out"):
        write(path, row("y"), made_by="other")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"caption,score\n", "no file of captions"),
        ("a.jsonl", b'{"caption": "x"}\n', "line 1 has no id"),
        ("a.jsonl", b"\xff\xff\n", "no file of captions"),
        ("a.csv", b"id,caption\nx,y\n", "its columns are id, caption"),
    ],
)
def test_a_strangers_file_is_left_alone(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        write(path, row("x"))
    assert path.read_bytes() == content


def test_subtitles_appear_when_all_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    write(path, row("x#t=10,12.5", "rain", 10.0, 12.5))
    assert not path.exists()
    with open_captions(path, "abc", PROVENANCE) as file:
        assert file.done == {"x#t=10,12.5"}
        file.write([row("x#t=0,10", "a dog", 0.0, 10.0)])
        file.finish()
    expected = "1\n00:00:00,000 --> 00:00:10,000\na dog\n\n2\n00:00:10,000 --> 00:00:12,500\nrain\n\n"
    assert path.read_text() == expected
    assert [each.name for each in tmp_path.iterdir()] == ["a.srt"]


def test_subtitles_count_hours() -> None:
    text = subtitles([row("x", "late", 3661.0254, 7325.9999)])
    assert "01:01:01,025 --> 02:02:06,000" in text


def test_an_ending_says_the_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.txt must end in \.jsonl, \.csv, \.srt"):
        open_captions(tmp_path / "a.txt", "abc", {})


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*file/a\.jsonl"):
        open_captions(tmp_path / "file/a.jsonl", "abc", {})


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "a.jsonl"
    write(path, row("x"))
    lock = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    hold = f"{lock}; print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=r"another process writes .*a\.jsonl: let it end"):
            open_captions(path, "abc", PROVENANCE)
        other.kill()
    with open_captions(path, "abc", PROVENANCE) as file:
        assert file.done == {"x"}
        # And the other way round: what is open here cannot be taken there.
        refused = subprocess.run([sys.executable, "-c", lock, str(path)], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in refused.stderr


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_full_disk_keeps_what_is_there(small_disk: Path, suffix: str) -> None:
    path = small_disk / f"a{suffix}"
    with pytest.raises(CaptionSaveError, match=rf"cannot write .*a{suffix}: No space left on device"):
        write(path, *(row(f"{number}", "a dog " * 10_000) for number in range(30)))
    with open_captions(path, "abc", PROVENANCE) as file:
        assert file.done == {str(number) for number in range(len(file.done))}
        assert 10 < len(file.done) < 20


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_ids_may_hold_any_letter(tmp_path: Path, suffix: str) -> None:
    ids = ["a\u2028b.png", "c\x85d.png", "e\nf.png", "\u00e9.png"]
    path = tmp_path / f"a{suffix}"
    write(path, *map(row, ids))
    with open_captions(path, "abc", PROVENANCE) as file:
        assert file.done == set(ids)
