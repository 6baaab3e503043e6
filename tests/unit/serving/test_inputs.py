from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from avcap_zoo.data_modules.records import ClipRecord
from avcap_zoo.errors import DataError
from avcap_zoo.serving.inputs import Inputs, cut_into_windows, find_inputs, windows, with_modalities
from tests.unit.data_modules.media_files import tone, write_sound


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of empty media files, which finding does not open."""
    monkeypatch.chdir(tmp_path)
    for name in ("clips/b.mp4", "clips/a.WAV", "clips/deep/c.jpg", "clips/notes.md", "clips/.hidden.mp4", "one.flac"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def ids(inputs: Inputs) -> list[str]:
    return [record.clip_id for record in inputs.clips]


def reasons(inputs: Inputs) -> dict[str, str]:
    return {problem.clip_id: problem.reason for problem in inputs.problems}


def test_files_folders_and_patterns() -> None:
    found = find_inputs(["one.flac", "clips", "clips/*.mp4"])
    assert ids(found) == ["one.flac", "clips/a.WAV", "clips/b.mp4", "clips/deep/c.jpg"]
    assert found.problems == []
    assert found.clips[2] == ClipRecord("clips/b.mp4", [], "clips/b.mp4", "clips/b.mp4")
    assert ids(find_inputs(["clips/**/*.jpg"])) == ["clips/deep/c.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file's name is text")
def test_a_name_that_is_no_text_is_spelled_out() -> None:
    Path(os.fsdecode(b"clips/caf\xe9.wav")).touch()
    found = find_inputs([os.fsdecode(b"clips/caf\xe9.wav")])
    assert ids(found) == ["clips/caf\\udce9.wav"]
    assert Path(str(found.clips[0].audio)).exists()


def test_what_cannot_be_used_is_named_and_does_not_stop_the_rest() -> None:
    Path("empty").mkdir()
    found = find_inputs(["gone.wav", "*.xyz", "clips/notes.md", "empty", "one.flac"])
    assert ids(found) == ["one.flac"]
    told = reasons(found)
    assert told["gone.wav"] == "no such file"
    assert told["*.xyz"] == "no file matches"
    assert told["clips/notes.md"].startswith(".md is none of .wav .flac")
    assert told["empty"] == "the folder holds no sound, video or picture"


def test_a_file_name_with_brackets_is_no_pattern() -> None:
    Path("a[1].wav").touch()
    assert ids(find_inputs(["a[1].wav"])) == ["a[1].wav"]


def test_lists_count_paths_from_their_folder(tmp_path: Path) -> None:
    Path("clips/list.csv").write_text("id,path,other\nx,a.WAV,1\n,b.mp4,2\n", encoding="utf-8-sig")
    Path("clips/list.txt").write_text("a.WAV\n\nb.mp4\ngone.mp4\n")
    rows = [{"id": "pair", "audio": "a.WAV", "visual": "deep"}, {"path": str(tmp_path / "one.flac"), "end_s": 2}]
    Path("clips/list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half\n')
    found = find_inputs(["clips/list.csv"])
    assert ids(found) == ["x", "clips/b.mp4"]
    found = find_inputs(["clips/list.txt"])
    assert ids(found) == ["clips/a.WAV", "clips/b.mp4"]
    assert reasons(found) == {"clips/gone.mp4": "no such file"}
    found = find_inputs(["clips/list.jsonl"])
    assert found.clips[0] == ClipRecord("pair", [], "clips/a.WAV", "clips/deep")
    assert found.clips[1].window_s == (0.0, 2.0)
    assert found.clips[1].clip_id.endswith("one.flac#t=0,2")
    assert reasons(found) == {"clips/list.jsonl:3": "the line is neither a path nor a JSON object"}


def test_standard_input_counts_paths_from_here() -> None:
    found = find_inputs(["-"], ["clips/b.mp4\n", '{"id": "w", "path": "one.flac"}\n', "{}\n"])
    assert ids(found) == ["clips/b.mp4", "w"]
    assert reasons(found) == {"standard input:3": "found the keys none; wanted path, or audio and visual"}


@pytest.mark.parametrize(("start", "end"), [(2, 1), (-1, 3), ("a", 2), (1, None)])
def test_a_part_needs_two_rising_times(start: object, end: object) -> None:
    row = json.dumps({"id": "x", "path": "one.flac", "start_s": start, "end_s": end})
    assert "wanted two rising numbers" in reasons(find_inputs(["-"], [row]))["x"]


def test_one_id_for_two_files_is_a_problem() -> None:
    rows = [json.dumps({"id": "x", "path": path}) for path in ("one.flac", "clips/b.mp4", "one.flac")]
    found = find_inputs(["-"], rows)
    assert ids(found) == ["x"]
    assert reasons(found) == {"x": "another clip of the list has this id"}


def test_a_table_without_paths_is_refused() -> None:
    Path("list.csv").write_text("youtube_id,caption\nx,y\n")
    with pytest.raises(DataError, match=r"list\.csv has the columns youtube_id, caption; wanted path"):
        find_inputs(["list.csv"])
    Path("list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"list\.txt cannot be read as a list of clips"):
        find_inputs(["list.txt"])


def test_a_system_takes_what_it_can_use() -> None:
    rows = [json.dumps({"id": "sound", "audio": "one.flac"}), json.dumps({"id": "looks", "visual": "clips/b.mp4"})]
    found = find_inputs(["clips", "-"], rows)
    both = with_modalities(found, ("audio", "visual"))
    assert ids(both) == ["clips/b.mp4"]
    assert reasons(both) == {
        "clips/a.WAV": "a sound file has no pictures, and the system looks",
        "clips/deep/c.jpg": "a picture has no sound, and the system listens",
        "sound": "the row names no pictures, and the system looks",
        "looks": "the row names no sound, and the system listens",
    }
    assert ids(with_modalities(found, ("visual",))) == ["clips/b.mp4", "clips/deep/c.jpg", "looks"]
    assert ids(with_modalities(found, ("audio",))) == ["clips/a.WAV", "clips/b.mp4", "sound"]


@pytest.mark.parametrize(
    ("duration_s", "window_s", "hop_s", "expected"),
    [
        (25.0, 10.0, 10.0, [(0, 10), (10, 20), (20, 25)]),
        (20.0, 10.0, 10.0, [(0, 10), (10, 20)]),
        (20.3, 10.0, 10.0, [(0, 10), (10, 20)]),  # a rest of less than half a second
        (4.0, 10.0, 10.0, [(0, 4)]),
        (0.2, 10.0, 10.0, [(0, 0.2)]),
        (12.0, 10.0, 5.0, [(0, 10), (5, 12)]),
        (10.0, 2.0, 4.0, [(0, 2), (4, 6), (8, 10)]),
        (1.0, 0.3, 0.3, [(0, 0.3), (0.3, 0.6)]),
    ],
)
def test_windows(duration_s: float, window_s: float, hop_s: float, expected: list[tuple[float, float]]) -> None:
    assert windows(duration_s, window_s, hop_s) == expected


def test_files_are_cut_and_pictures_are_not() -> None:
    write_sound(Path("long.wav"), tone(2.5))
    rows = [json.dumps({"id": "part", "path": "long.wav", "start_s": 1, "end_s": 2})]
    cut = cut_into_windows(find_inputs(["long.wav", "clips/deep", "one.flac", "-"], rows), 1.0, 1.0)
    assert ids(cut) == ["long.wav#t=0,1", "long.wav#t=1,2", "long.wav#t=2,2.5", "clips/deep/c.jpg", "part"]
    assert cut.clips[1].window_s == (1.0, 2.0)
    assert cut.clips[1].audio == "long.wav"
    assert list(reasons(cut)) == ["one.flac"]  # empty: it has no length
