"""VGGSS and VGGSound as published, on the generated clips and on damaged copies of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.data_modules.records import SplitIndex
from avcap_zoo.data_modules.vggss import VGGSSDataModule, read_vggsound, read_vggss
from avcap_zoo.errors import DataError
from tests.unit.data_modules.media_files import encode, numbered_frames, numbers_of, tone
from tests.unit.data_modules.published import copy_of

BOX = [0.1, 0.2, 0.6, 0.9]


def vggss(root: Path, **options: Any) -> VGGSSDataModule:
    return VGGSSDataModule(str(root), **{"image_size_px": 32, **options})


def entry(file: Any = "abcdefghijk_000030", label: Any = "dog barking", boxes: Any = (BOX,)) -> dict[str, Any]:
    return {"file": file, "class": label, "bbox": list(boxes) if isinstance(boxes, tuple) else boxes}


def write(root: Path, *entries: Any) -> Path:
    path = root / "vggss.json"
    path.write_text(json.dumps(list(entries)), encoding="utf-8")
    return path


def test_the_generated_clips(scenes_root: Path) -> None:
    data = vggss(scenes_root / "vggss", batch_size=6)
    assert data.has_validation()
    assert [len(data.read_split(split).records) for split in ("train", "val", "test")] == [24, 6, 6]
    (batch,) = data.test_dataloader()
    assert batch.frames is not None
    assert batch.frames.shape == (6, 1, 3, 32, 32)
    assert batch.waveform is not None
    assert batch.boxes is not None
    assert all(boxes and box.frame == 0 for boxes in batch.boxes for box in boxes)
    assert batch.caption == [boxes[0].label for boxes in batch.boxes]


def test_every_frame_shows_the_annotated_moment(scenes_root: Path) -> None:
    (batch,) = vggss(scenes_root / "vggss", batch_size=6, num_frames=3).test_dataloader()
    assert batch.frames is not None
    assert batch.boxes is not None
    assert (batch.frames == batch.frames[:, :1]).all()
    assert [box.frame for box in batch.boxes[0]][:3] == [0, 1, 2]


def test_the_whole_set_without_other_files_is_test_data(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "vggss", tmp_path)
    (root / "vggsound.csv").unlink()
    assert [len(vggss(root).read_split(split).records) for split in ("train", "val", "test")] == [30, 0, 6]
    (root / "vggss_test.csv").unlink()
    data = vggss(root)
    assert [data.read_split(split).num_official for split in ("train", "val", "test")] == [0, 0, 36]
    assert not data.has_validation()
    assert vggss(root, whole_set_as="train").read_split("train").num_official == 36
    with pytest.raises(DataError, match=r"vggss train: none of 0 clips"):
        data.setup("fit")


def test_clips_that_the_other_file_does_not_have_are_counted(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "vggss", tmp_path)
    lines = (root / "vggsound.csv").read_text(encoding="utf-8").splitlines()
    (root / "vggsound.csv").write_text("\n".join(lines[1:]), encoding="utf-8")
    index = vggss(root).read_split("train")
    assert index.left_out == {"clips that vggsound.csv does not have": 1}
    assert len(index.records) == 23


@pytest.mark.parametrize(
    "stem",
    [
        "a-_defghijk_000030",
        "a-_defghijk_30",
        "a-_defghijk_30000_40000",
        "a-_defghijk_30000",
        "a-_defghijk_30_40",
        "a-_defghijk",
    ],
)
@pytest.mark.parametrize("annotations", ["vggss", "vggsound"])
def test_names_of_media(tmp_path: Path, stem: str, annotations: Any) -> None:
    write(tmp_path, entry("a-_defghijk_000030"))
    if annotations == "vggsound":
        (tmp_path / "vggsound.csv").write_text('a-_defghijk,30,"donkey, ass braying",test\n', encoding="utf-8")
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / f"{stem}.mp4").touch()
    (record,) = vggss(tmp_path, annotations=annotations).read_split("test").records
    assert record.audio == record.visual == str(tmp_path / "video" / f"{stem}.mp4")
    assert record.clip_id == "a-_defghijk_000030"
    assert record.captions == ["dog barking" if annotations == "vggss" else "donkey, ass braying"]


def test_the_frame_at_five_seconds_of_a_video(tmp_path: Path) -> None:
    write(tmp_path, entry("abcdefghijk_000030"), entry("bcdefghijkl_000010"))
    (tmp_path / "video").mkdir()
    for name, seconds in (("abcdefghijk_000030", 10), ("bcdefghijkl_000010", 4)):
        film = encode(numbered_frames(2 * seconds), tone(seconds)[None], fps=2)
        (tmp_path / "video" / f"{name}.mp4").write_bytes(film)
    good, short = vggss(tmp_path, num_frames=2, eval_batch_size=1).test_dataloader()
    assert good.frames is not None
    assert numbers_of(good.frames[0].float()) == [10, 10]
    assert [clip.reason for clip in short.skipped] == ["ends after 4 s, wanted the frame at 5 s"]


# -- boxes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        (BOX, (0.1, 0.2, 0.6, 0.9)),
        ([0, 0, 1, 1], (0.0, 0.0, 1.0, 1.0)),
        ([-0.005, 0.2, 1.004, 0.9], (0.0, 0.2, 1.0, 0.9)),
        ([0.1, 0.2, 0.1, 0.9], None),
        ([0.1, 0.9, 0.6, 0.9], None),
        ([0.6, 0.2, 0.1, 0.9], None),
        ([10, 20, 60, 90], None),
        ([-0.5, 0.2, 0.6, 0.9], None),
        ([float("nan"), 0.2, 0.6, 0.9], None),
        ([0.1, 0.2, float("inf"), 0.9], None),
    ],
)
def test_degenerate_boxes_are_left_out_and_counted(tmp_path: Path, box: Any, kept: Any) -> None:
    index = SplitIndex()
    (clip,) = read_vggss(write(tmp_path, entry(boxes=[box, BOX])), index)
    assert clip.boxes == ([kept] if kept else []) + [tuple(BOX)]
    assert index.left_out == ({} if kept else {"boxes without area or outside the picture": 1})


def test_a_clip_may_be_left_without_boxes(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "vggss", tmp_path)
    content = json.loads((root / "vggss.json").read_text(encoding="utf-8"))
    for item in content:
        item["bbox"] = [[0.5, 0.5, 0.5, 0.9]]
    write(root, *content)
    (batch,) = vggss(root, batch_size=6).test_dataloader()
    assert batch.boxes == [[]] * 6


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (entry("../../etc/p_000030"), r"item 2: file '../../etc/p_000030' is not <YouTube id>_<start second>"),
        (entry("abcdefghijk"), "item 2: file 'abcdefghijk' is not"),
        (entry("abcdefghijk_3.5"), "item 2: file .* is not"),
        (entry("abcdefghijk_³"), "item 2: file .* is not"),
        (entry(7), "item 2: file 7 is not"),
        (entry(label=" "), "item 2: class ' ' is no text"),
        (entry(label=None), "item 2: class None is no text"),
        (entry(boxes=[[0.1, 0.2, 0.6]]), r"item 2: bbox \[\[0.1, 0.2, 0.6\]\] is no list of boxes of four numbers"),
        (entry(boxes=[["0.1", 0.2, 0.6, 0.9]]), "item 2: bbox .* is no list of boxes"),
        (entry(boxes=BOX), "item 2: bbox .* is no list of boxes"),
        (entry(boxes=None), "item 2: bbox None is no list of boxes"),
        ({"file": "abcdefghijk_000030", "bbox": []}, "item 2: has no class; found file, bbox"),
        ([], "item 2: is a list, wanted an object with file, class, bbox"),
    ],
)
def test_entries_that_cannot_be(tmp_path: Path, item: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_vggss(write(tmp_path, entry("zbcdefghijk_000030"), item), SplitIndex())


def test_a_file_that_is_named_again(tmp_path: Path) -> None:
    index = SplitIndex()
    clips = read_vggss(write(tmp_path, entry(), entry(label="other")), index)
    assert [clip.label for clip in clips] == ["dog barking"]
    assert index.left_out == {"entries that name a file again": 1}


# -- VGGSound ----------------------------------------------------------------------------------------------------


def test_vggsound_with_quotes_comments_and_repeats(tmp_path: Path) -> None:
    path = tmp_path / "vggsound.csv"
    rows = [
        "# YouTube ID, start seconds, label, split",
        '--0PQM4-hqg,30,"waterfall, burbling",train',
        "b_cdefghijk,1,x,test",
    ]
    path.write_bytes(("\ufeff" + "\r\n".join([*rows, rows[2]])).encode())
    index = SplitIndex()
    found = read_vggsound(path, index)
    assert [(row.youtube_id, row.start_s, row.label, row.split) for row in found] == [
        ("--0PQM4-hqg", 30, "waterfall, burbling", "train"),
        ("b_cdefghijk", 1, "x", "test"),
    ]
    assert index.left_out == {"rows that name a clip again": 1}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("../x,30,a,train", "line 2: id '../x' is no safe id"),
        ("x,half,a,train", "line 2: start 'half' is no whole second"),
        ("x,0.5,a,train", "line 2: start '0.5' is no whole second"),
        ("x,30,a,dev", "line 2: class 'a' or split 'dev' is none"),
        ("x,30,,train", "line 2: class '' or split 'train' is none"),
        ("x,30,a, b,train", "line 2: 5 fields, wanted 4; quote text that holds commas"),
        ("x,30", "line 2: 2 fields, wanted 4"),
    ],
)
def test_rows_that_cannot_be(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "vggsound.csv"
    path.write_text(f"y,1,a,train\n{row}\n", encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_vggsound(path, SplitIndex())


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vggss.json does not exist; VGGSS publishes"):
        vggss(tmp_path).read_split("test")
    with pytest.raises(DataError, match=r"vggsound.csv does not exist; VGGSound publishes"):
        vggss(tmp_path, annotations="vggsound").read_split("test")


def test_media_that_are_not_there(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "vggss", tmp_path)
    first = vggss(root).read_split("test").records[0].clip_id
    (root / "audio" / f"{first}.wav").unlink()
    assert vggss(root).read_split("test").missing == []  # the video has a sound track
    (root / "video" / f"{first}.mp4").unlink()
    assert vggss(root).read_split("test").missing == [(first, "no sound file")]
    assert vggss(root, modalities=("visual",)).read_split("test").missing == []
