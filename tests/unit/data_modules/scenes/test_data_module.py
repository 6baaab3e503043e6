"""The embedded data as a data module: generated once, labelled, and refused when damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.batch import ClipSource
from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
from avcap_zoo.data_modules.scenes.events import PICTURES
from avcap_zoo.errors import DataError


def scenes(root: Path, **options: Any) -> ScenesDataModule:
    settings: dict[str, Any] = {"num_frames": 4, "image_size_px": 32, "batch_size": 3, "eval_batch_size": 3, **options}
    return ScenesDataModule(str(root), num_train=24, num_val=6, num_test=6, **settings)


@pytest.fixture
def copied_root(scenes_root: Path, tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(scenes_root, tmp_path / "scenes", ignore=shutil.ignore_patterns("clotho", "vggss", "coco"))
    )


def test_generates_on_first_use_and_only_then(tmp_path: Path) -> None:
    counts = {"num_train": 2, "num_val": 1, "num_test": 1}
    data = ScenesDataModule(str(tmp_path / "new"), **counts, batch_size=2)
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert len(batch) == 2
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    ScenesDataModule(str(tmp_path / "new"), **counts).prepare_data()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")} == made
    with pytest.raises(DataError, match="choose another root"):
        ScenesDataModule(str(tmp_path / "new"), **{**counts, "num_train": 3}).prepare_data()


def test_root_from_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVCAP_DATA", str(tmp_path))
    assert ScenesDataModule().root == tmp_path / "scenes" / "audiocaps"


def test_batches_have_sound_pictures_references_and_labels(scenes_root: Path) -> None:
    data = scenes(scenes_root)
    data.setup("fit")
    for batch in (*data.train_dataloader(), *data.val_dataloader()):
        assert batch.waveform is not None
        assert batch.num_samples is not None
        assert batch.frames is not None
        assert batch.sound_events is not None
        assert batch.boxes is not None
        assert batch.frames.shape[1:] == (4, 3, 32, 32)
        assert float(batch.waveform.abs().max()) > 0.01
        assert batch.skipped == []
        for row, clip_id in enumerate(batch.clip_ids):
            duration_s = int(batch.num_samples[row]) / 16_000
            assert batch.caption[row] in batch.captions[row]
            assert batch.sound_events[row], clip_id
            for event in batch.sound_events[row]:
                assert 0 <= event.onset_s < event.offset_s <= duration_s + 0.01
            for box in batch.boxes[row]:
                assert box.label in PICTURES
                assert 0 <= box.frame < 4
                assert 0 <= box.left < box.right <= 1
                assert 0 <= box.top < box.bottom <= 1


def test_boxes_are_where_the_object_is_drawn(scenes_root: Path) -> None:
    """The box of a picture differs more from the background than the frame's other part does."""
    data = scenes(scenes_root, image_size_px=64)
    inside, outside = [], []
    for batch in data.evaluation_loader("val"):
        assert batch.frames is not None
        assert batch.boxes is not None
        for frames, boxes in zip(batch.frames.float(), batch.boxes, strict=True):
            for box in boxes:
                picture = frames[box.frame]
                background = picture.flatten(1).median(dim=1).values[:, None, None]
                difference = (picture - background).abs().mean(dim=0)
                rows = slice(round(box.top * 64), max(round(box.bottom * 64), round(box.top * 64) + 1))
                columns = slice(round(box.left * 64), max(round(box.right * 64), round(box.left * 64) + 1))
                inside.append(float(difference[rows, columns].mean()))
                outside.append(float(difference.mean()))
    assert len(inside) > 5
    assert sum(inside) > 1.5 * sum(outside)


def test_splits_are_disjoint_and_training_has_one_caption_of_five(scenes_root: Path) -> None:
    data = scenes(scenes_root)
    clips = {split: [data.records(split)[n].clip_id for n in range(len(data.records(split)))] for split in data.counts}
    assert {split: len(found) for split, found in clips.items()} == {"train": 24, "val": 6, "test": 6}
    assert len(set().union(*clips.values())) == 36
    assert len(data.records("val")[0].captions) == 5
    assert len(data.training_captions()) == 24


def test_is_a_clip_source_with_labels(scenes_root: Path) -> None:
    data = scenes(scenes_root)
    assert isinstance(data, ClipSource)
    assert set(data.label_names("objects")) <= set(PICTURES)
    assert data.label_names("sounds") == sorted(set(data.label_names("sounds")))
    assert len(data.label_names("sounds")) > 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "annotations.jsonl does not exist; delete the folder above it"),
        (lambda path: path.write_text(""), "annotations.jsonl lacks clip .*; delete"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "annotations.jsonl is damaged"),
        (lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()), "annotations.jsonl is damaged"),
        (lambda path: path.write_text(json.dumps({"clip_id": "a"})), "annotations.jsonl is damaged"),
        (lambda path: path.write_text("[1]"), "annotations.jsonl is damaged"),
    ],
)
def test_damaged_annotations(copied_root: Path, damage: Any, message: str) -> None:
    damage(copied_root / "audiocaps" / "annotations.jsonl")
    with pytest.raises(DataError, match=message):
        scenes(copied_root).setup("fit")


def test_a_missing_clip_is_reported_like_everywhere(copied_root: Path) -> None:
    data = scenes(copied_root)
    victim = data.records("train")[0]
    assert victim.audio is not None
    assert victim.visual is not None
    Path(victim.audio).unlink()
    Path(victim.visual).unlink()
    again = scenes(copied_root)
    again.prepare_data()
    again.setup("fit")
    assert again.num_official("train") == 24
    assert len(again.records("train")) == 23
    assert victim.clip_id in (copied_root / "audiocaps" / "missing.csv").read_text()
