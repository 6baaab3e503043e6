"""The official CSV files, every way of naming media, and folders that are not what they seem."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avcap_zoo.data_modules.base import SplitIndex
from avcap_zoo.errors import DataError, MediaError
from tests.unit.data_modules.folders import data_module, make_folder, sound, write_rows
from tests.unit.data_modules.media_files import encode, folder_of_pictures, numbered_frames, tone, write_sound
from tests.unit.data_modules.published import copy_of

HEADER = "audiocap_id,youtube_id,start_time,caption"
ROW = (91, "Ab-_9xyzQ1w", 30, "a dog barks")


def read(root: Path, **options: Any) -> SplitIndex:
    return data_module(root, **options).read_split("train")


def read_text(root: Path, text: str | bytes) -> list[tuple[str, list[str]]]:
    """Clips and captions of a train.csv; each clip has a sound."""
    content = text.encode() if isinstance(text, str) else text
    root.mkdir(exist_ok=True)
    (root / "train.csv").write_bytes(content)
    for clip_id in ("a", "b", "Ab-_9xyzQ1w", "--0w1YA1Hm4", "_9mgOkzm-xg"):
        write_sound(root / "train" / "waveforms" / f"{clip_id}.wav", sound(0))
    return [(record.clip_id, record.captions) for record in read(root).records]


# -- the CSV -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        f"{HEADER}\n1,a,30,A dog barks\n2,b,0,Rain\n",
        f"\ufeff{HEADER}\n1,a,30,A dog barks\n2,b,0,Rain\n",
        f"{HEADER}\r\n1,a,30,A dog barks\r\n2,b,0,Rain\r\n",
        f"{HEADER}\n1,a,30,A dog barks\n\n2,b,0,Rain",
        f"\ufeff{HEADER}\r\n1,a,30.0,  A dog barks  \r\n2,b, 0 ,Rain\r\n\r\n",
        "caption,start_time,extra,youtube_id,audiocap_id\nA dog barks,30,x,a,1\nRain,0,y,b,2\n",
        f'{HEADER}\n1,"a",30,"A dog barks"\n2,b,0,"Rain"\n',
    ],
)
def test_byte_order_marks_line_ends_and_column_order(tmp_path: Path, content: str) -> None:
    assert read_text(tmp_path, content) == [("a", ["A dog barks"]), ("b", ["Rain"])]


def test_quoted_commas_quotes_and_other_scripts(tmp_path: Path) -> None:
    captions = [
        "A dog barks, twice, then stops",
        'He says "yes", loudly',
        "Ein Hund bellt – draußen",
        "犬が吠える",
        "it's",
    ]
    write_rows(tmp_path / "train.csv", [(n, "a", 0, caption) for n, caption in enumerate(captions)])
    write_sound(tmp_path / "train" / "waveforms" / "a.wav", sound(0))
    (record,) = read(tmp_path).records
    assert record.captions == captions


def test_rows_of_one_clip_are_its_references(tmp_path: Path) -> None:
    text = f"{HEADER}\n1,a,30,one\n2,b,0,two\n3,a,30,three\n3,a,30,three\n"
    assert read_text(tmp_path, text) == [("a", ["one", "three"]), ("b", ["two"])]
    assert read(tmp_path).left_out == {"repeated rows": 1}


@pytest.mark.parametrize("clip_id", ["Ab-_9xyzQ1w", "--0w1YA1Hm4", "_9mgOkzm-xg"])
def test_ids_with_dashes_and_underscores(tmp_path: Path, clip_id: str) -> None:
    assert read_text(tmp_path, f"{HEADER}\n1,{clip_id},30,x\n") == [(clip_id, ["x"])]


def test_no_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.csv does not exist; AudioCaps publishes train.csv, val.csv"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"no column audiocap_id, youtube_id, start_time, caption; found nothing"),
        ("a,b\n1,2\n", r"no column audiocap_id, youtube_id, start_time, caption; found a, b"),
        (
            "audiocap_id,youtube_id,caption\n1,a,x\n",
            r"train.csv has no column start_time; found audiocap_id, youtube_id",
        ),
        ("1,a,30,A dog barks\n", r"no column .*found 1, a, 30, A dog barks"),
        (f"{HEADER}\n", r"train.csv holds no rows"),
        (f"{HEADER}\n1,a,30,caf\xe9\n".encode("latin-1"), r"train.csv is no CSV in UTF-8"),
        (f"{HEADER}\n1,a,30,x\n".encode("utf-16"), r"train.csv is no CSV in UTF-8"),
        (f"{HEADER}\n1,a,30,{'x' * 200_000}\n", r"train.csv is no CSV in UTF-8: line 2: field larger than"),
        (b"PK\3\4\xff\xfe binary", r"train.csv is no CSV in UTF-8"),
        (f"{HEADER}\n1,a\0b,30,x\n", r"train.csv is no CSV in UTF-8: it holds zero bytes"),
        (f'{HEADER}\n1,a,30,"a dog\n2,b,0,rain\n', r"train.csv is no CSV in UTF-8: line 3: unexpected end of data"),
        (f'{HEADER}\n1,a,30,"a dog" barks\n', r"train.csv is no CSV in UTF-8: line 2: ',' expected after"),
        (f"{HEADER}\n1,a,30,a dog barks, twice\n", r"line 2: 5 fields, wanted 4; quote text that holds commas"),
        (f"{HEADER.replace(',', ';')}\n1;a;30;x\n", r"no column .*; found audiocap_id;youtube_id;start_time;caption"),
        (f"{HEADER},caption\n1,a,30,x,y\n", r"train.csv has the column caption more than once"),
        (f"{HEADER}\n1,a,30,x\n1,b,30,y\n", r"line 3: audiocap_id '1' is that of another clip on line 2"),
    ],
)
def test_files_that_are_not_audiocaps(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_text(tmp_path, content)


@pytest.mark.parametrize("start", ["", "x", "-1", "nan", "inf", "1e999", "30 s", "0:30", "1,5"])
def test_start_times_that_are_no_numbers(tmp_path: Path, start: str) -> None:
    with pytest.raises(DataError, match=r"line 2: start_time .* is no number"):
        read_text(tmp_path, f'{HEADER}\n1,a,"{start}",x\n')


@pytest.mark.parametrize(
    "clip_id", ["../a", "..", "a/b", "/etc/passwd", "a\\b", "a b", "", "a.b", "ü", "*", "~", "$HOME"]
)
def test_unsafe_ids(tmp_path: Path, clip_id: str) -> None:
    write_rows(tmp_path / "train.csv", [(1, clip_id, 0, "x")])
    with pytest.raises(DataError, match="is no safe id") as caught:
        read(tmp_path)
    assert repr(clip_id) in str(caught.value)
    write_rows(tmp_path / "train.csv", [(clip_id, "a", 0, "x")])
    with pytest.raises(DataError, match="is no safe id"):
        read(tmp_path)


def test_all_problems_of_a_file_are_in_one_message(tmp_path: Path) -> None:
    lines = ["1,../a,0,x", "2,b,soon,x", "3,c,0", "4,d", "5,,0,x", "6,f g,0,x", "7,h,nan,x", "9,i j,0,x", "9,k l,0,x"]
    lines += ["10,m,-1,x", "8,ok,0,x"]
    with pytest.raises(DataError) as caught:
        read_text(tmp_path, "\n".join([HEADER, *lines]))
    message = str(caught.value)
    assert "line 2: id '../a' or '1' is no safe id; line 3: start_time 'soon' is no number" in message
    assert "line 4: 3 fields, wanted 4; line 5: 2 fields, wanted 4" in message
    assert message.endswith(
        "line 6: id '' or '5' is no safe id; line 7: id 'f g' or '6' is no safe id; line 8: "
        "start_time 'nan' is no number; line 9: id 'i j' or '9' is no safe id and 2 more"
    )


# -- names of media ----------------------------------------------------------------------------------------------


STEMS = ["Ab-_9xyzQ1w_30000", "YAb-_9xyzQ1w", "Ab-_9xyzQ1w", "91"]


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".m4a", ".WAV"])
def test_every_name_of_a_sound(tmp_path: Path, stem: str, suffix: str) -> None:
    write_rows(tmp_path / "train.csv", [ROW])
    path = tmp_path / "train" / "waveforms" / f"{stem}{suffix}"
    path.parent.mkdir(parents=True)
    path.touch()
    (record,) = read(tmp_path).records
    assert record.audio == str(path)


@pytest.mark.parametrize("stem", STEMS)
def test_every_name_of_a_video_frames_and_features(tmp_path: Path, stem: str) -> None:
    write_rows(tmp_path / "train.csv", [ROW])
    frames = tmp_path / "train" / "frames" / stem
    frames.mkdir(parents=True)
    (record,) = read(tmp_path, modalities=("visual",)).records
    assert record.visual == str(frames)
    for suffix in (".webm", ".mkv", ".mp4"):  # each is preferred to the one before
        video = tmp_path / "train" / "videos" / f"{stem}{suffix}"
        video.parent.mkdir(exist_ok=True)
        video.touch()
        (record,) = read(tmp_path, modalities=("visual",)).records
        assert record.visual == str(video)
    features = tmp_path / "visual_feature" / "train" / f"{stem}.npy"
    features.parent.mkdir(parents=True)
    features.touch()
    (record,) = read(tmp_path, modalities=("visual",)).records
    assert record.features == str(features)


def test_the_more_exact_name_and_the_better_format_win(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", [ROW])
    folder = tmp_path / "train" / "waveforms"
    folder.mkdir(parents=True)
    for name in ("91.wav", "Ab-_9xyzQ1w.wav", "Ab-_9xyzQ1w_30000.mp3", "Ab-_9xyzQ1w_30000.wav", "Ab-_9xyzQ1w_0.wav"):
        (folder / name).touch()
    (record,) = read(tmp_path).records
    assert record.audio == str(folder / "Ab-_9xyzQ1w_30000.wav")


def test_video_instead_of_a_waveform_for_sound(tmp_path: Path) -> None:
    write_rows(tmp_path / "val.csv", [(1, "with", 0, "x"), (2, "without", 0, "y")])
    videos = tmp_path / "val" / "videos"
    videos.mkdir(parents=True)
    (videos / "with.mp4").write_bytes(encode(numbered_frames(4), tone()[None]))
    (videos / "without.mp4").write_bytes(encode(numbered_frames(4)))
    data = data_module(tmp_path, modalities=("audio", "visual"), eval_batch_size=1)
    heard, silent = data.val_dataloader()
    assert heard.clip_ids == ["with"]
    assert heard.waveform is not None
    assert heard.frames is not None
    assert heard.waveform.shape[1] > 15_000
    assert silent.skipped[0].reason == "the file has no sound track"


def test_folders_of_frames(tmp_path: Path) -> None:
    write_rows(tmp_path / "val.csv", [ROW])
    (tmp_path / "val" / "frames").mkdir(parents=True)
    folder_of_pictures(tmp_path / "val" / "frames" / "Ab-_9xyzQ1w", 4)
    (batch,) = data_module(tmp_path, modalities=("visual",), num_frames=4).val_dataloader()
    assert batch.frames is not None
    assert batch.frames.shape == (1, 4, 3, 16, 16)
    assert batch.waveform is None


def test_what_is_lacking_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path)
    index = read(tmp_path, modalities=("audio", "visual"))
    assert index.records == []
    assert index.missing[0] == ("train0", "no video or frames")
    (tmp_path / "visual_feature" / "train").mkdir(parents=True)
    assert read(tmp_path, modalities=("audio", "visual")).missing[0] == ("train0", "no cached features")
    assert read(tmp_path, modalities=("visual",), use_cached_features=False).missing[0][1] == "no video or frames"
    assert len(read(tmp_path, modalities=("audio",)).records) == 6


def test_folders_and_pipes_are_no_media(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", [ROW])
    (tmp_path / "train" / "waveforms" / "Ab-_9xyzQ1w.wav").mkdir(parents=True)
    (tmp_path / "train" / "frames").mkdir()
    (tmp_path / "train" / "frames" / "Ab-_9xyzQ1w").touch()
    assert read(tmp_path, modalities=("audio", "visual")).missing == [
        ("Ab-_9xyzQ1w", "no sound file and no video or frames")
    ]


@pytest.mark.parametrize("stem", ["Ab-_9xyzQ1w_000030", "Ab-_9xyzQ1w_30_40", "YAb-_9xyzQ1w_30.000_40.000"])
def test_names_that_other_tools_give(tmp_path: Path, stem: str) -> None:
    write_rows(tmp_path / "train.csv", [ROW])
    write_sound(tmp_path / "audio" / f"{stem}.wav", sound(0))
    assert len(read(tmp_path).records) == 1


@pytest.mark.parametrize(
    "place", ["train/waveforms", "train/audio", "waveforms/train", "audio/train", "waveforms", "audio"]
)
def test_where_the_sounds_lie(tmp_path: Path, place: str) -> None:
    write_rows(tmp_path / "train.csv", [ROW])
    path = write_sound(tmp_path / place / "91.wav", sound(0))
    (record,) = read(tmp_path).records
    assert record.audio == str(path)


def test_several_clips_of_one_video(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", [(1, "a", 30, "x"), (2, "a", 50, "y"), (3, "b", 0, "z")])
    for stem in ("a_30000", "a", "b"):
        write_sound(tmp_path / "train" / "waveforms" / f"{stem}.wav", sound(0))
    index = read(tmp_path)
    assert [(record.clip_id, record.captions) for record in index.records] == [("a_30000", ["x"]), ("b", ["z"])]
    assert index.missing == [("a_50000", "no sound file")]  # whose sound a.wav is, nobody knows


def test_a_file_with_another_suffix_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", [ROW])
    (tmp_path / "train" / "waveforms").mkdir(parents=True)
    (tmp_path / "train" / "waveforms" / "Ab-_9xyzQ1w.wma").touch()
    ((_, reason),) = read(tmp_path).missing
    assert reason == "no sound file (Ab-_9xyzQ1w.wma is none of .wav .flac .mp3 .ogg .m4a .opus .aac)"


def test_the_generated_clips(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "audiocaps", tmp_path)
    before = data_module(root).read_split("test").records
    assert [len(record.captions) for record in before] == [5] * 6
    path = root / "test.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert data_module(root).read_split("test").records == before


def test_a_csv_that_breaks_off(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "audiocaps", tmp_path)
    names = [record.clip_id for record in data_module(root).read_split("test").records]
    content = (root / "test.csv").read_bytes()
    said = []
    for tenth in range(10):
        (root / "test.csv").write_bytes(content[: len(content) * tenth // 10])
        try:
            found = [record.clip_id for record in data_module(root).read_split("test").records]
        except DataError as error:
            said.append(str(error))
        else:  # within a caption, nobody can tell
            said.append("")
            assert found == names[: len(found)]
    assert "has no column audiocap_id, youtube_id, start_time, caption; found nothing" in said[0]
    assert all(not message or "test.csv" in message for message in said)


def test_fifty_thousand_rows_take_seconds(tmp_path: Path) -> None:
    names = [f"{number:011d}" for number in range(50_000)]
    write_rows(tmp_path / "train.csv", [(n, name, n % 300, "a dog barks, twice") for n, name in enumerate(names)])
    (tmp_path / "train" / "waveforms").mkdir(parents=True)
    begun = time.process_time()
    index = data_module(tmp_path).read_split("train")
    assert time.process_time() - begun < 6  # about 1.3 s on a free core
    assert len(index.missing) == 50_000


# -- JSON lists --------------------------------------------------------------------------------------------------


RELEASED = {"audio_path": "Ab-_9xyzQ1w_30000", "labels": "x", "video_path": "y", "caption": "a dog", "torch_id": 3}


def put(root: Path, name: str, content: Any) -> Path:
    (root / name).write_text(json.dumps(content), encoding="utf-8")
    return root


def test_the_list_with_coco_references(tmp_path: Path) -> None:
    put(tmp_path, "test.json", [{**RELEASED, "youtube_id": "Ab-_9xyzQ1w"}])
    sentences = [{"image_id": "Ab-_9xyzQ1w", "caption": text, "id": 1} for text in ("one", "two")]
    put(tmp_path, "test_coco.json", {"images": [{"id": "Ab-_9xyzQ1w"}], "annotations": sentences})
    write_sound(tmp_path / "test" / "waveforms" / "Ab-_9xyzQ1w_30000.wav", sound(0))
    features = tmp_path / "visual_feature" / "test" / "Ab-_9xyzQ1w_30000.npy"
    features.parent.mkdir(parents=True)
    np.save(features, np.zeros((20, 768), np.float32))
    data = data_module(tmp_path, modalities=("audio", "visual"))
    index = data.read_split("test")
    (record,) = index.records
    assert (record.clip_id, record.captions) == ("Ab-_9xyzQ1w", ["one", "two"])
    assert record.features == str(features)
    assert index.sources == ["test.json", "test_coco.json"]
    (batch,) = data.test_dataloader()
    assert batch.visual_features is not None
    assert batch.visual_features.shape == (1, 20, 768)


def test_the_list_without_youtube_ids(tmp_path: Path) -> None:
    put(
        tmp_path,
        "train.json",
        [RELEASED, {**RELEASED, "caption": "again"}, RELEASED, {**RELEASED, "audio_path": "x.wav"}],
    )
    for stem in ("YAb-_9xyzQ1w", "x"):
        write_sound(tmp_path / "train" / "waveforms" / f"{stem}.wav", sound(0))
    index = read(tmp_path)
    assert [(r.clip_id, r.captions) for r in index.records] == [("Ab-_9xyzQ1w", ["a dog", "again"]), ("x", ["a dog"])]
    assert index.left_out == {"repeated rows": 1}


def test_the_list_of_sound_names(tmp_path: Path) -> None:
    item = {
        "split": "train",
        "sound_name": "Ab-_9xyzQ1w_30000.wav",
        "file_path": "WHAT_IS_THIS?",
        "captions": ["x", "y"],
    }
    put(tmp_path, "AudioCaps_train.json", [item])
    write_sound(tmp_path / "train" / "waveforms" / "Ab-_9xyzQ1w_30000.wav", sound(0))
    (record,) = read(tmp_path).records
    assert (record.clip_id, record.captions) == ("Ab-_9xyzQ1w", ["x", "y"])
    write_rows(tmp_path / "train.csv", [ROW])
    assert read(tmp_path).sources == ["train.csv"]
    assert read(tmp_path, annotations="AudioCaps_{split}.json").sources == ["AudioCaps_train.json"]
    with pytest.raises(DataError, match=r"my_train.json does not exist; data.init_args.annotations names it"):
        read(tmp_path, annotations="my_{split}.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audio_path": "../../x"}, "item 2: audio_path '../../x' is no safe file name"),
        ({"audio_path": None}, "item 2: audio_path None is no safe file name"),
        ({"caption": ["x"]}, r"item 2: caption \['x'\] is no text"),
        ({"youtube_id": "../x"}, "item 2: youtube_id '../x' is no safe id"),
        ({"audio_path": "b", "youtube_id": "Ab-_9xyzQ1w"}, "item 2: youtube_id 'Ab-_9xyzQ1w' names 'b' and"),
    ],
)
def test_lists_that_cannot_be(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    put(tmp_path, "train.json", [RELEASED, {**RELEASED, **changes}])
    with pytest.raises(DataError, match=said):
        read(tmp_path)


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ([], "holds an empty list"),
        ([{"image_id": "other", "caption": "x"}], "no references for 1 clips, such as Ab-_9xyzQ1w"),
        ([{"image_id": "Ab-_9xyzQ1w", "caption": 3}], "item 1: caption 3 is no text"),
    ],
)
def test_references_that_cannot_be(tmp_path: Path, annotations: Any, said: str) -> None:
    put(tmp_path, "train.json", [RELEASED])
    put(tmp_path, "train_coco.json", {"annotations": annotations})
    with pytest.raises(DataError, match=said):
        read(tmp_path)


# -- subsets -----------------------------------------------------------------------------------------------------


def test_an_id_list_narrows_the_test_split(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "test" / "waveforms" / "test2_30000.wav").unlink()
    (tmp_path / "ids.txt").write_text("test2\r\ntest0\r\n", encoding="utf-8")
    data = data_module(tmp_path, subset="ids.txt")
    assert data.num_official("train") == 6
    assert data.num_official("test") == 2
    described = data.describe_split("test")
    assert described["subset"]["sha256"] == hashlib.sha256(b"test2\r\ntest0\r\n").hexdigest()
    assert (described["present"], described["official"]) == (1, 2)
    assert [batch.clip_ids for batch in data.test_dataloader()] == [["test0"]]


def test_an_id_list_for_each_split(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "ids.txt").write_text("train1\ntrain3\n", encoding="utf-8")
    data = data_module(tmp_path, subset={"train": "ids.txt"})
    assert (data.num_official("train"), data.num_official("test")) == (2, 3)
    assert data.training_captions() == ["train 1 caption 0", "train 3 caption 0"]


def test_an_id_list_of_other_clips(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "ids.txt").write_text("test0\nelse\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"ids.txt: 1 of 2 ids are not in test.csv, such as else; .* such as test0"):
        data_module(tmp_path, subset="ids.txt").num_official("test")


# -- features ----------------------------------------------------------------------------------------------------


def read_feature(root: Path, write: Any) -> Any:
    """Write `val`'s only feature file, and decode it."""
    write_rows(root / "val.csv", [ROW])
    path = root / "visual_feature" / "val" / "Ab-_9xyzQ1w.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    (batch,) = data_module(root, modalities=("visual",), on_error="raise").val_dataloader()
    return batch.visual_features


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_become_float32(tmp_path: Path, dtype: Any) -> None:
    features = read_feature(tmp_path, lambda path: np.save(path, np.full((3, 4), 0.5, dtype)))
    assert features.shape == (1, 3, 4)
    assert features.dtype.is_floating_point
    assert features.element_size() == 4
    assert (features == 0.5).all()


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(4, np.float32), r"is \(4,\) float32, wanted \(frames, width\) of floats"),
        (np.zeros((2, 3, 4), np.float32), r"is \(2, 3, 4\) float32"),
        (np.zeros((2, 3), np.int64), r"is \(2, 3\) int64"),
        (np.zeros((2, 3), np.complex64), r"is \(2, 3\) complex64"),
        (np.zeros((0, 3), np.float32), r"is \(0, 3\) float32"),
        (np.full((2, 3), np.nan, np.float32), "not finite"),
        (np.full((2, 3), 1e300), "not finite"),
    ],
)
def test_features_of_another_kind(tmp_path: Path, array: Any, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        read_feature(tmp_path, lambda path: np.save(path, array))


def test_object_arrays_run_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(MediaError, match=r"not readable as \.npy"):
        read_feature(tmp_path, lambda path: np.save(path, np.array([[Hostile(marker)]], dtype=object)))
    assert not marker.exists()


def _write_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((2, 3)))


def _write_header_of_a_giant(path: Path) -> None:
    np.save(path, np.zeros((2, 3), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(2, 3), }        ", b"(9000000, 99999),"))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "not readable as .npy"),
        (lambda path: path.write_bytes(b"<html>404</html>"), "not readable as .npy"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': [[[[[["), "not readable as .npy"),
        (_write_archive, "is an .npz archive"),
        (_write_header_of_a_giant, "not readable as .npy"),
    ],
)
def test_files_that_are_no_features(tmp_path: Path, write: Any, reason: str) -> None:
    with pytest.raises(MediaError, match=reason):
        read_feature(tmp_path, write)


# -- nothing outside ---------------------------------------------------------------------------------------------


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside = write_sound(tmp_path / "outside" / "secret.wav", sound(0))
    folder_of_pictures(tmp_path / "outside" / "pictures", 2)
    root = tmp_path / "root"
    write_rows(root / "train.csv", [ROW])
    for folder in ("waveforms", "frames"):
        (root / "train" / folder).mkdir(parents=True)
    (root / "train" / "waveforms" / "Ab-_9xyzQ1w.wav").symlink_to(outside)
    (root / "train" / "frames" / "Ab-_9xyzQ1w").symlink_to(tmp_path / "outside" / "pictures")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        index = read(root, modalities=("audio", "visual"))
    assert index.missing == [("Ab-_9xyzQ1w", "no sound file and no video or frames")]
    said = [str(warning.message) for warning in caught]
    assert any(
        "1 links in" in line and "lead out of it and are not followed, such as Ab-_9xyzQ1w.wav" in line for line in said
    )


def test_links_within_the_folder_and_of_whole_folders_are_followed(tmp_path: Path) -> None:
    store = write_sound(tmp_path / "root" / "store" / "1.wav", sound(0))
    write_sound(tmp_path / "disk" / "b.wav", sound(1))
    (tmp_path / "disk" / "c.wav").symlink_to("b.wav")
    root = tmp_path / "root"
    write_rows(root / "train.csv", [(1, "a", 0, "x")])
    write_rows(root / "val.csv", [(1, "b", 0, "x"), (2, "c", 0, "x")])
    (root / "train" / "waveforms").mkdir(parents=True)
    (root / "train" / "waveforms" / "a.wav").symlink_to(store)
    (root / "val").mkdir()
    (root / "val" / "waveforms").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(root)
    for place in (root, tmp_path / "link"):
        data = data_module(place)
        assert len(data.read_split("train").records) == 1
        assert len(data.read_split("val").records) == 2


def test_a_link_that_leads_nowhere_is_missing(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", [ROW])
    (tmp_path / "train" / "waveforms").mkdir(parents=True)
    (tmp_path / "train" / "waveforms" / "Ab-_9xyzQ1w.wav").symlink_to("gone.wav")
    assert read(tmp_path).missing == [("Ab-_9xyzQ1w", "no sound file")]
