"""Clotho as published, on the generated clips and on damaged copies of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.data_modules.clotho import CAPTION_COLUMNS, ClothoDataModule
from avcap_zoo.errors import ConfigError, DataError
from tests.unit.data_modules.media_files import tone, write_sound
from tests.unit.data_modules.published import change_text, copy_of

HEADER = ",".join(("file_name", *CAPTION_COLUMNS))
FIVE = "a,b,c,d,e"


def clotho(root: Path, **options: Any) -> ClothoDataModule:
    return ClothoDataModule(str(root), **options)


def folder_with(root: Path, *rows: str, files: tuple[str, ...] = ()) -> Path:
    root.mkdir(exist_ok=True)
    (root / "clotho_captions_evaluation.csv").write_text("\n".join([HEADER, *rows, ""]), encoding="utf-8")
    (root / "evaluation").mkdir(exist_ok=True)
    for name in files:
        (root / "evaluation" / name).touch()
    return root


def test_the_generated_clips(scenes_root: Path) -> None:
    data = clotho(scenes_root / "clotho", batch_size=3)
    assert [len(data.read_split(split).records) for split in ("train", "val", "test")] == [24, 6, 6]
    index = data.read_split("test")
    assert index.missing == []
    assert index.left_out == {}
    assert index.sources == ["clotho_captions_evaluation.csv", "clotho_metadata_evaluation.csv"]
    record = index.records[0]
    assert len(record.captions) == 5
    assert " " in record.clip_id
    assert not record.clip_id.endswith(".wav")
    batch = next(iter(data.test_dataloader()))
    assert batch.waveform is not None
    assert batch.num_samples is not None
    assert batch.num_samples[0].item() == pytest.approx(record.duration_s * 16_000, abs=2)
    assert batch.frames is None


@pytest.mark.parametrize(
    "place",
    ["clotho_audio_evaluation", "clotho_audio_evaluation/evaluation", "audio/evaluation", "audiofolder/evaluation"],
)
def test_where_the_sounds_lie(tmp_path: Path, scenes_root: Path, place: str) -> None:
    root = copy_of(scenes_root, "clotho", tmp_path)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / "evaluation", root / place)
    assert len(clotho(root).read_split("test").records) == 6


def test_names_with_spaces_quotes_and_other_scripts(tmp_path: Path) -> None:
    names = [
        "young artists.wav",
        'it\'s a "test".wav',
        "Straße – 犬.wav",
        "05-03-02 a, b.wav",
        "-dash_9.wav",
        "a..b.wav",
    ]
    rows = [f'"{name.replace(chr(34), chr(34) * 2)}",{FIVE}' for name in names]
    index = clotho(folder_with(tmp_path, *rows, files=tuple(names))).read_split("test")
    assert [record.clip_id + ".wav" for record in index.records] == names


def test_names_as_windows_unpacks_them(tmp_path: Path) -> None:
    index = clotho(folder_with(tmp_path, f'what? a: "b".wav,{FIVE}', files=("what_ a_ _b_.wav",))).read_split("test")
    assert [record.clip_id for record in index.records] == ['what? a: "b"']


def test_a_name_that_stands_twice(tmp_path: Path) -> None:
    rows = (f"young artists.wav,{FIVE}", f"young artists.wav,{FIVE}", "young artists.wav,f,g,h,i,j")
    index = clotho(folder_with(tmp_path, *rows, files=("young artists.wav",))).read_split("test")
    assert [record.captions for record in index.records] == [["a", "b", "c", "d", "e"]]
    assert index.left_out == {"repeated rows": 1, "further rows of a file that has captions already": 1}
    assert index.num_official == 1


def test_missing_and_captionless_clips(tmp_path: Path) -> None:
    rows = (f"a.wav,{FIVE}", f"b.wav,{FIVE}", "c.wav,,, ,,", f"d.wav,{FIVE}")
    index = clotho(folder_with(tmp_path, *rows, files=("a.wav", "b.aif", "c.wav"))).read_split("test")
    assert [record.clip_id for record in index.records] == ["a"]
    assert index.missing[0][0] == "b"
    assert "b.aif is none of .wav .flac" in index.missing[0][1]
    assert index.missing[1:] == [("c", "every caption is empty"), ("d", "no sound file")]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (f"../../etc/passwd.wav,{FIVE}", r"line 2: file name '../../etc/passwd.wav' leads to another folder"),
        (f",{FIVE}", r"line 2: '' is no file name"),
        ("a.wav,x,y", r"line 2: 3 fields, wanted 6"),
        (f"a.wav,{FIVE},f", r"line 2: 7 fields, wanted 6; quote text that holds commas"),
        (f'a.wav,"{FIVE}', r"line 2: unexpected end of data"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, row: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        clotho(folder_with(tmp_path, row)).read_split("test")


def test_all_problems_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: .*; line 3: .*; line 4: "):
        clotho(folder_with(tmp_path, f"a/b.wav,{FIVE}", "x", f"..,{FIVE}")).read_split("test")


def test_a_lacking_column(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "clotho", tmp_path)
    change_text(root / "clotho_captions_development.csv", "caption_3", "caption_9")
    with pytest.raises(DataError, match=r"development.csv has no column caption_3; found file_name, caption_1"):
        clotho(root).read_split("train")


def test_version_1_has_no_validation(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "clotho", tmp_path)
    (root / "clotho_captions_validation.csv").unlink()
    with pytest.raises(DataError, match=r"validation.csv does not exist; .*version 1 has none: take version 2"):
        clotho(root).setup("fit")


def test_byte_order_mark_and_windows_lines(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "clotho", tmp_path)
    path = root / "clotho_captions_evaluation.csv"
    before = clotho(root).read_split("test").records
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert clotho(root).read_split("test").records == before


def test_metadata_in_an_old_encoding_or_absent(tmp_path: Path) -> None:
    root = folder_with(tmp_path, f"a.wav,{FIVE}", f"b.wav,{FIVE}", files=("a.wav", "b.wav"))
    assert [record.duration_s for record in clotho(root).read_split("test").records] == [0.0, 0.0]
    rows = 'file_name,keywords,start_end_samples\na.wav,caf\xe9,"[44100, 132300]"\nb.wav,x,"[nan, nan]"\n'
    (root / "clotho_metadata_evaluation.csv").write_bytes(rows.encode("cp1252"))
    assert [record.duration_s for record in clotho(root).read_split("test").records] == [2.0, 0.0]


def test_captions_as_a_list(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "clotho", tmp_path)
    before = clotho(root).read_split("test")
    items = [{"sound_name": f"{record.clip_id}.wav", "captions": record.captions} for record in before.records]
    (root / "clotho_v2.1_test.json").write_text(json.dumps([*items, items[0]]), encoding="utf-8")
    assert clotho(root).read_split("test").sources == before.sources  # the CSV comes first
    index = clotho(root, annotations="clotho_v2.1_{split}.json").read_split("test")
    assert [(record.clip_id, record.captions, record.audio) for record in index.records] == [
        (record.clip_id, record.captions, record.audio) for record in before.records
    ]
    assert index.left_out == {"repeated rows": 1}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"sound_name": "../a.wav", "captions": ["x"]}, "item 2: file name '../a.wav' leads to another folder"),
        ({"sound_name": "b.wav", "captions": "x"}, "item 2: captions of 'b.wav' are no list of texts"),
        ({"sound_name": "b.wav", "captions": [None]}, "item 2: captions of 'b.wav' are no list of texts"),
        ({"sound_name": "a.wav", "captions": ["y"]}, "item 2: 'a.wav' stands for two clips or with two sets"),
        ({"sound_name": "b.wav"}, "item 2: has no captions; found sound_name"),
        ("b.wav", "item 2: is a text, wanted an object with sound_name, captions"),
    ],
)
def test_lists_that_cannot_be(tmp_path: Path, item: Any, said: str) -> None:
    content = json.dumps([{"sound_name": "a.wav", "captions": ["x"]}, item])
    (tmp_path / "clotho_v2.1_test.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        clotho(tmp_path).read_split("test")


def test_pictures_are_not_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"modalities is \['audio', 'visual'\], but clotho gives audio"):
        clotho(tmp_path, modalities=("audio", "visual"))


# -- crops -------------------------------------------------------------------------------------------------------


def samples_of(root: Path, **options: Any) -> Any:
    (batch,) = clotho(root, **options).test_dataloader()
    assert batch.waveform is not None
    return batch.waveform[0].numpy()


def test_crops_are_stated_and_repeat_themselves(tmp_path: Path) -> None:
    root = folder_with(tmp_path, f"a.wav,{FIVE}")
    ramp = tone(2.0) * 0
    ramp[:] = [(n % 16_000) / 32_768 for n in range(len(ramp))]
    write_sound(root / "evaluation" / "a.wav", ramp, subtype="FLOAT")
    whole = samples_of(root)
    assert len(whole) == 32_000
    assert (samples_of(root, max_duration_s=0.5) == whole[:8_000]).all()
    assert (samples_of(root, max_duration_s=0.5, crop="centre") == whole[12_000:20_000]).all()
    seeded = samples_of(root, max_duration_s=0.5, crop="seeded")
    assert (seeded == samples_of(root, max_duration_s=0.5, crop="seeded")).all()
    assert not (seeded == samples_of(root, max_duration_s=0.5, crop="seeded", seed=1)).all()
    described = clotho(root, max_duration_s=0.5, crop="seeded").describe_split("test")
    assert described["crop"] == {"max_duration_s": 0.5, "policy": "seeded"}
    assert "crop" not in clotho(root).describe_split("test")


def test_training_draws_another_part_in_each_epoch(scenes_root: Path) -> None:
    data = clotho(scenes_root / "clotho", max_duration_s=0.5, crop="seeded", batch_size=24)
    loader: Any = data.train_dataloader()
    parts = []
    for epoch in (0, 0, 1):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        order = sorted(range(24), key=batch.clip_ids.__getitem__)
        parts.append(batch.waveform[order])
    assert (parts[0] == parts[1]).all()
    assert (parts[0] != parts[2]).any(dim=1).all()


@pytest.mark.parametrize("longest", [0, -1.0, float("nan")])
def test_crops_to_nothing(tmp_path: Path, longest: float) -> None:
    with pytest.raises(ConfigError, match=r"max_duration_s is .*, wanted more than 0"):
        clotho(tmp_path, max_duration_s=longest)
