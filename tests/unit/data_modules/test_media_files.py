"""Finding the file of a clip: names, suffixes, folders, links, and what is said when there is none."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from avcap_zoo.data_modules.media_files import AUDIO_SUFFIXES, FOLDERS, ClipFiles, MediaFiles
from avcap_zoo.data_modules.records import SplitIndex


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_earlier_folders_stems_and_suffixes_win(tmp_path: Path) -> None:
    touch(
        tmp_path / "one" / "a.flac", tmp_path / "two" / "a.wav", tmp_path / "one" / "b.mp3", tmp_path / "one" / "b.wav"
    )
    files = MediaFiles(tmp_path, ("none", "one", "two"), AUDIO_SUFFIXES)
    assert len(files) == 2
    assert files.find(["x", "a", "b"]) == str(tmp_path / "one" / "a.flac")
    assert files.find(["b"]) == str(tmp_path / "one" / "b.wav")
    assert files.find(["c"]) is None


def test_one_scan_and_no_question_per_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "one" / "a.wav")
    files = MediaFiles(tmp_path, ("one",), AUDIO_SUFFIXES)
    (tmp_path / "one" / "a.wav").unlink()
    for name in ("stat", "scandir", "lstat"):
        monkeypatch.delattr(os, name)
    assert files.find(["a"]) is not None


def test_names_with_dots_and_spaces(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "a.b 'c'.wav", tmp_path / "one" / ".hidden.wav", tmp_path / "one" / "._a.wav")
    files = MediaFiles(tmp_path, ("one",), AUDIO_SUFFIXES)
    assert len(files) == 1
    assert files.find(["a.b 'c'"])


def test_accents_in_either_spelling(tmp_path: Path) -> None:
    touch(tmp_path / "one" / (unicodedata.normalize("NFD", "café") + ".wav"))
    files = MediaFiles(tmp_path, ("one",), AUDIO_SUFFIXES)
    assert files.find([unicodedata.normalize("NFC", "café")])


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "a.wav" / "x", tmp_path / "one" / "b")
    assert len(MediaFiles(tmp_path, ("one",), AUDIO_SUFFIXES)) == 0
    folders = MediaFiles(tmp_path, ("one",), FOLDERS)
    assert folders.find(["a.wav"]) == str(tmp_path / "one" / "a.wav")
    assert folders.find(["b"]) is None


def test_sub_folders_only_when_asked_for(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "mnt" / "data" / "a.flac")
    assert MediaFiles(tmp_path, ("one",), AUDIO_SUFFIXES).find(["a"]) is None
    assert MediaFiles(tmp_path, ("one",), AUDIO_SUFFIXES, deep=True).find(["a"])


def test_links_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path / "one" / "two" / "a.flac")
    (tmp_path / "one" / "two" / "again").symlink_to(tmp_path / "one")
    assert len(MediaFiles(tmp_path, ("one",), AUDIO_SUFFIXES, deep=True)) == 1


def test_links_out_of_the_folder_are_not_followed_at_any_depth(tmp_path: Path) -> None:
    touch(tmp_path / "outside" / "a.flac")
    (tmp_path / "root" / "one" / "two").mkdir(parents=True)
    (tmp_path / "root" / "one" / "two" / "out").symlink_to(tmp_path / "outside")
    with pytest.warns(UserWarning, match="1 links in .*one lead out of it and are not followed, such as out"):
        files = MediaFiles(tmp_path / "root", ("one",), AUDIO_SUFFIXES, deep=True)
    assert len(files) == 0


def missing(root: Path, **folders: tuple[str, ...]) -> str:
    index = SplitIndex()
    ClipFiles(root, **folders).add(index, "c", ["x"], ["a"], ("audio", "visual"))  # type: ignore[arg-type]
    ((clip_id, reason),) = index.missing
    assert (clip_id, index.records) == ("c", [])
    return reason


def test_what_a_clip_lacks(tmp_path: Path) -> None:
    assert missing(tmp_path, sounds=("s",), videos=("v",)) == "no sound file and no video"
    touch(tmp_path / "s" / "a.wav")
    assert missing(tmp_path, sounds=("s",), videos=("v",), frames=("f",)) == "no video or frames"
    assert missing(tmp_path, sounds=("s",), pictures=("p",)) == "no picture"
    assert missing(tmp_path, sounds=("s",), videos=("v",), features=("n",)) == "no cached features"


def test_a_file_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "s" / "a.wma", tmp_path / "v" / "a.avi", tmp_path / "p" / "a.gif")
    said = missing(tmp_path, sounds=("s",), videos=("v",))
    assert "no sound file (a.wma is none of .wav .flac .mp3" in said
    assert "no video (a.avi is none of .mp4 .mkv .webm)" in said
    assert "no picture (a.gif is none of .jpg" in missing(tmp_path, pictures=("p",))


def test_details_of_a_record(tmp_path: Path) -> None:
    touch(tmp_path / "s" / "a.wav", tmp_path / "p" / "b.png")
    index = SplitIndex()
    files = ClipFiles(tmp_path, sounds=("s",), pictures=("p",))
    files.add(index, "c", ["x"], ["a", "b"], ("audio", "visual"), duration_s=2.0, instruction="Say.")
    (record,) = index.records
    assert (record.audio, record.visual) == (str(tmp_path / "s" / "a.wav"), str(tmp_path / "p" / "b.png"))
    assert (record.duration_s, record.instruction, record.captions) == (2.0, "Say.", ["x"])
