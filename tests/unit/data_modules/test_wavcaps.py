"""The four parts of WavCaps: where they lie, what is left out, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.data_modules.wavcaps import PARTS, WavCapsDataModule
from avcap_zoo.errors import ConfigError, DataError
from tests.unit.data_modules.media_files import write_sound

# As published: keys differ from part to part, ids are numbers in text or names of files.
ITEMS: dict[str, list[dict[str, Any]]] = {
    "AudioSet_SL": [{"id": "Yabc-_fghijk.wav", "caption": "A man speaks.", "audio": "wav_path", "duration": 10.0}],
    "BBC_Sound_Effects": [{"id": "07000001", "description": "Workshop", "category": "['x']", "caption": "A saw."}],
    "FreeSound": [
        {"id": "9001", "file_name": "rain.wav", "tags": ["rain"], "caption": "Rain falls.", "duration": 12.5},
        {"id": "9002", "file_name": "../b.wav", "tags": [], "caption": "Wind blows.", "duration": 3.0},
    ],
    "SoundBible": [{"id": "9001", "title": "Bell", "caption": "A bell rings."}],
}


def make(root: Path, **changed: Any) -> Path:
    for part, items in ITEMS.items():
        path = root / "json_files" / part / PARTS[part]
        path.parent.mkdir(parents=True)
        content = {"num_captions_per_audio": 1, "data": [*items, *changed.get(part, [])]}
        path.write_text(json.dumps(content), encoding="utf-8")
        for item in items:
            write_sound(root / "waveforms" / f"{part}_flac" / f"{item['id'].removesuffix('.wav')}.flac")
    return root


def wavcaps(root: Path, **options: Any) -> WavCapsDataModule:
    return WavCapsDataModule(str(root), **options)


def test_four_parts(tmp_path: Path) -> None:
    data = wavcaps(make(tmp_path), batch_size=5)
    index = data.read_split("train")
    assert [(record.clip_id, record.captions) for record in index.records] == [
        ("AudioSet_SL_Yabc-_fghijk", ["A man speaks."]),
        ("BBC_Sound_Effects_07000001", ["A saw."]),
        ("FreeSound_9001", ["Rain falls."]),
        ("FreeSound_9002", ["Wind blows."]),
        ("SoundBible_9001", ["A bell rings."]),
    ]
    assert len({record.audio for record in index.records}) == 5
    data.setup("fit")
    assert data.val_dataloader() == []  # type: ignore[comparison-overlap]
    (batch,) = data.train_dataloader()
    assert batch.waveform is not None
    assert batch.waveform.shape == (5, 16_000)


def test_some_parts_in_other_places(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "json_files" / "SoundBible" / "sb_final.json").rename(tmp_path / "sb_final.json")
    deep = tmp_path / "SoundBible" / "mnt" / "fast" / "waveforms"
    deep.parent.mkdir(parents=True)
    (tmp_path / "waveforms" / "SoundBible_flac").rename(deep)
    (record,) = wavcaps(tmp_path, parts=("SoundBible",)).read_split("train").records
    assert record.audio == str(deep / "9001.flac")


def test_published_overlaps_are_left_out(tmp_path: Path) -> None:
    make(tmp_path)
    blacklist = tmp_path / "json_files" / "blacklist"
    blacklist.mkdir()
    (blacklist / "ac.json").write_text('{"AudioSet": ["Yabc-_fghijk.wav"], "FreeSound": []}', encoding="utf-8")
    (blacklist / "ids.json").write_text('["9002"]', encoding="utf-8")
    (blacklist / "odd.json").write_text('{"a": 1}', encoding="utf-8")
    names = tuple(f"json_files/blacklist/{name}.json" for name in ("ac", "ids"))
    index = wavcaps(tmp_path, exclude=names).read_split("train")
    assert index.left_out == {"clips of data.init_args.exclude": 2}
    assert len(index.records) == 3
    with pytest.raises(DataError, match=r"odd.json holds neither a list of ids nor an object of such lists"):
        wavcaps(tmp_path, exclude=("json_files/blacklist/odd.json",)).read_split("train")
    with pytest.raises(DataError, match=r"gone.json does not exist; data.init_args.exclude names it"):
        wavcaps(tmp_path, exclude=("gone.json",)).read_split("train")


def test_repeated_captionless_and_absent_clips(tmp_path: Path) -> None:
    more = [{"id": "9001", "caption": "again"}, {"id": 5, "caption": " "}, {"id": "6", "caption": "no file"}]
    index = wavcaps(make(tmp_path, SoundBible=more)).read_split("train")
    assert index.left_out == {"entries that name a clip again": 1}
    assert index.missing == [("SoundBible_5", "the caption is empty"), ("SoundBible_6", "no sound file")]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"id": "../../x", "caption": "y"}, r"sb_final.json: item 2: id '../../x' is no safe id"),
        ({"id": "a b", "caption": "y"}, "item 2: id 'a b' is no safe id"),
        ({"id": None, "caption": "y"}, "item 2: id None is no safe id"),
        ({"id": "7", "caption": 3}, "item 2: caption 3 is no text"),
        ({"id": "7"}, "item 2: has no caption; found id"),
    ],
)
def test_items_that_cannot_be(tmp_path: Path, item: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        wavcaps(make(tmp_path, SoundBible=[item])).read_split("train")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"parts is \['Freesound'\], wanted some of AudioSet_SL, "):
        wavcaps(tmp_path, parts=("Freesound",))
    with pytest.raises(
        DataError, match=r"as_final.json does not exist; .*leave AudioSet_SL out of data.init_args.parts"
    ):
        wavcaps(tmp_path).read_split("train")
    with pytest.raises(DataError, match="WavCaps has no test split"):
        wavcaps(tmp_path).read_split("test")
