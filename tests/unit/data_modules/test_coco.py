"""COCO in its three published splits, on the generated pictures and on damaged copies of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.data_modules.coco import COCODataModule
from avcap_zoo.errors import ConfigError, DataError
from tests.unit.data_modules.published import change_json, copy_of

NAME = "COCO_val2014_000000391895.jpg"


def coco(root: Path, **options: Any) -> COCODataModule:
    return COCODataModule(str(root), **{"image_size_px": 32, **options})


def counts(root: Path, **options: Any) -> list[int]:
    return [len(coco(root, **options).read_split(split).records) for split in ("train", "val", "test")]


def put(root: Path, name: str, content: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def with_picture(root: Path, path: str = f"val2014/{NAME}") -> Path:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()
    return root


def image(**changes: Any) -> dict[str, Any]:
    whole = {
        "filepath": "val2014",
        "filename": NAME,
        "cocoid": 391895,
        "split": "test",
        "sentences": [{"raw": " A man. "}],
    }
    return {key: value for key, value in {**whole, **changes}.items() if value != "absent"}


def test_the_generated_pictures(scenes_root: Path) -> None:
    data = coco(scenes_root / "coco", batch_size=6)
    assert counts(scenes_root / "coco") == [24, 6, 6]
    (batch,) = data.test_dataloader()
    assert batch.frames is not None
    assert batch.frames.shape == (6, 1, 3, 32, 32)
    assert batch.waveform is None
    assert batch.clip_ids[0] == "200000001"
    assert all(len(captions) == 5 for captions in batch.captions)


def test_own_split(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "coco", tmp_path)
    assert len(coco(root, annotations="captions").read_split("val").records) == 12
    with pytest.raises(DataError, match=r"holds no captions_test2014.json, .*no captions for test, Karpathy's has"):
        coco(root, annotations="captions").read_split("test")
    (root / "dataset_coco.json").unlink()
    assert coco(root).read_split("val").sources == ["annotations/captions_val2014.json"]


def test_lists(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "coco", tmp_path)
    before = {split: coco(root).read_split(split).records for split in ("train", "val")}
    paths = {
        split: [f"{Path(r.visual or '').parent.name}/{Path(r.visual or '').name}" for r in before[split]]
        for split in before
    }
    one_each = [
        {"image": path, "caption": caption, "image_id": record.clip_id}
        for path, record in zip(paths["train"], before["train"], strict=True)
        for caption in record.captions
    ]
    together = [{"image": path, "caption": r.captions} for path, r in zip(paths["val"], before["val"], strict=True)]
    put(root, "annotations/coco_karpathy_train.json", one_each)
    put(root, "annotations/coco_karpathy_val.json", together)
    for split in ("train", "val"):
        assert coco(root, annotations="karpathy_lists").read_split(split).records == before[split]


def test_restval_is_joined_by_option(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "coco", tmp_path)

    def change(content: Any) -> None:
        for item in content["images"][:4]:
            item["split"] = "restval"

    change_json(root / "dataset_coco.json", change)
    assert counts(root) == [24, 6, 6]
    assert counts(root, use_restval=False) == [20, 6, 6]


@pytest.mark.parametrize("place", [f"val2014/{NAME}", f"images/val2014/{NAME}", "val2017/000000391895.jpg",
                                   "train2017/000000391895.jpg", "images/train2017/000000391895.png"])  # fmt: skip
def test_names_of_a_picture(tmp_path: Path, place: str) -> None:
    put(with_picture(tmp_path, place), "dataset_coco.json", {"images": [image()]})
    (record,) = coco(tmp_path).read_split("test").records
    assert (record.clip_id, record.visual, record.captions) == ("391895", str(tmp_path / place), ["A man."])


def test_year_2017(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 391895, "file_name": "000000391895.jpg"}],
        "annotations": [{"image_id": 391895, "caption": "x"}, {"image_id": 7, "caption": "y"}],
    }
    put(with_picture(tmp_path, "val2017/000000391895.jpg"), "annotations/captions_val2017.json", content)
    index = coco(tmp_path, year=2017).read_split("val")
    assert [record.captions for record in index.records] == [["x"]]
    assert index.left_out == {"captions of pictures that are not listed": 1}
    with pytest.raises(DataError, match=r"no dataset_coco.json or coco_karpathy_val.json or captions_val2014.json"):
        coco(tmp_path).read_split("val")


def test_pictures_without_captions(tmp_path: Path) -> None:
    second = image(filename="COCO_val2014_000000000007.jpg", cocoid=7, sentences=[{"raw": " "}])
    put(with_picture(tmp_path), "dataset_coco.json", {"images": [image(), second]})
    with_picture(tmp_path, "val2014/COCO_val2014_000000000007.jpg")
    assert coco(tmp_path).read_split("test").missing == [("7", "no caption")]
    bare = coco(tmp_path, with_captions=False).read_split("test")
    assert [(record.clip_id, record.captions) for record in bare.records] == [("391895", []), ("7", [])]


def test_missing_and_repeated_pictures(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "coco", tmp_path)
    change_json(root / "dataset_coco.json", lambda content: content["images"].append(content["images"][0]))
    gone = sorted((root / "train2014").iterdir())[0]
    shutil.move(gone, gone.with_suffix(".gif"))
    index = coco(root).read_split("train")
    assert index.left_out == {"pictures that are named again": 1}
    ((clip_id, reason),) = index.missing
    assert clip_id == "1"
    assert reason == "no picture (COCO_train2014_000000000001.gif is none of .jpg .jpeg .png .webp)"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"filename": "../../secret.jpg"}, r"item 2: path 'val2014/../../secret.jpg': file name '..' leads to another"),
        ({"filepath": "/etc"}, r"item 2: path '/etc/COCO_val2014_000000391895.jpg' leads to another folder"),
        ({"filename": None}, r"item 2: None is no path"),
        ({"filename": 7, "filepath": ""}, r"item 2: 7 is no path"),
        ({"cocoid": "../7"}, r"item 2: image id '../7' is no number"),
        ({"sentences": ["x"]}, r"item 2: sentences of .* are no list of objects with raw"),
        ({"sentences": None}, r"item 2: sentences of .* are no list of objects with raw"),
        ({"split": "absent"}, r"item 2: has no split; found filepath, filename, cocoid"),
    ],
)
def test_images_that_cannot_be(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    put(tmp_path, "dataset_coco.json", {"images": [image(cocoid=1), image(**changes)]})
    with pytest.raises(DataError, match=said):
        coco(tmp_path).read_split("test")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"image": "../a.jpg", "caption": "x"}, "item 1: path '../a.jpg'"),
        ({"image": "val2014/a.jpg", "caption": 3}, "item 1: caption '3' is no text and no list of texts"),
        ({"image": "val2014/a.jpg", "caption": ["x", None]}, "item 1: caption .* is no text and no list of texts"),
        ({"image": "val2014/a.jpg"}, "item 1: has no caption; found image"),
    ],
)
def test_lists_that_cannot_be(tmp_path: Path, item: Any, said: str) -> None:
    put(tmp_path, "coco_karpathy_val.json", [item])
    with pytest.raises(DataError, match=said):
        coco(tmp_path).read_split("val")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": [{"id": 1, "file_name": "../a.jpg"}]}, r"item 1: path '../a.jpg'"),
        ({"images": [{"id": "x", "file_name": "a.jpg"}]}, "item 1: image id 'x' is no number"),
        ({"images": [{"id": 1}]}, "item 1: has no file_name"),
        (
            {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": None}]},
            "annotation of item 1: caption None is no text",
        ),
        ({"annotations": []}, "wanted an object with a list 'images'"),
    ],
)
def test_captions_that_cannot_be(tmp_path: Path, content: Any, said: str) -> None:
    put(tmp_path, "captions_val2014.json", content)
    with pytest.raises(DataError, match=said):
        coco(tmp_path).read_split("val")


def test_a_file_that_breaks_off(tmp_path: Path, scenes_root: Path) -> None:
    root = copy_of(scenes_root, "coco", tmp_path)
    content = (root / "dataset_coco.json").read_bytes()
    for tenth in range(10):
        (root / "dataset_coco.json").write_bytes(content[: len(content) * tenth // 10])
        with pytest.raises(DataError, match=r"dataset_coco.json is no JSON: line 1 column \d+"):
            coco(root).read_split("train")


def test_sound_is_not_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"modalities is \['audio'\], but coco gives visual"):
        coco(tmp_path, modalities=("audio",))
