"""Keyword lists: AudioSet's, and those of a user's file, however it was saved."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from avcap_zoo.errors import ConfigError, DataError, ShapeError
from avcap_zoo.systems.zeraucap.keywords import audioset_labels, nearest_keywords, read_keywords, split_labels


def test_the_labels_are_the_published_file() -> None:
    content = files("avcap_zoo.systems.zeraucap").joinpath("audioset_labels.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "cdd1049833c4b86127c2773ac0d14a2754b6a6d0d1798002ed5c66e699708429"
    labels = audioset_labels()
    assert len(labels) == 527
    assert labels[0] == "Speech"
    assert labels[-1] == "Field recording"
    assert "Dental drill, dentist's drill" in labels
    assert sorted(label.count(",") for label in labels if "," in label) == [1] * 63 + [2] * 12


def test_labels_are_split_at_every_comma() -> None:
    assert split_labels(["Bee, wasp, etc.", "Dog", "Cats (lions, tigers)", " A ,B"]) == [
        "Bee", "wasp", "etc.", "Dog", "Cats (lions", "tigers)", "A", "B",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"dog\ncat\nrain, heavy\n",
        b"\xef\xbb\xbfdog\ncat\nrain, heavy",
        b"dog\r\ncat\r\nrain, heavy\r\n",
        b"\n  dog \n\ncat\ndog\n\train, heavy\n\n cat\n",
    ],
)
def test_a_users_list(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    assert read_keywords(path) == ["dog", "cat", "rain, heavy"]
    assert read_keywords(str(path)) == read_keywords(path)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf\n"])
def test_an_empty_list(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"words\.txt holds no keyword; give one per line, or set num_keywords to 0"):
        read_keywords(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^keywords\.source: .*missing\.txt does not exist; give a text file"):
        read_keywords(tmp_path / "missing.txt")
    with pytest.raises(ConfigError, match="is a folder"):
        read_keywords(tmp_path)
    (tmp_path / "latin.txt").write_bytes("Tür".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8: byte 1 is 0xfc"):
        read_keywords(tmp_path / "latin.txt")


def test_nearest_first() -> None:
    keywords = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]]), dim=1)
    clips = F.normalize(torch.tensor([[1.0, 0.1], [0.3, 1.0]]), dim=1)
    assert nearest_keywords(clips, keywords, 1).tolist() == [[0], [1]]
    assert set(nearest_keywords(clips, keywords, 3)[0].tolist()) == {0, 2, 3}  # copies are equally near
    assert nearest_keywords(clips, keywords, 4)[0, -1] == 1
    assert nearest_keywords(clips, keywords, 0).shape == (2, 0)


@pytest.mark.parametrize("count", [-1, 5, 614])
def test_more_keywords_than_there_are(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"keywords\.num_keywords is {count}, the list has 4; wanted 0 to 4"):
        nearest_keywords(torch.ones(1, 2), torch.ones(4, 2), count)


def test_other_widths() -> None:
    with pytest.raises(ShapeError, match=r"clips are \(1, 3\), keywords \(4, 2\)"):
        nearest_keywords(torch.ones(1, 3), torch.ones(4, 2), 1)
