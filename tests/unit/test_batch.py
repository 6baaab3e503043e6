"""A batch on its way from a data module to a system."""

from __future__ import annotations

import pickle
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from avcap_zoo.batch import Batch, Box, ClipSource, SkippedClip, SoundEvent, run_folder


def small_batch() -> Batch:
    return Batch(
        clip_ids=["a", "b"],
        captions=[["x", "y"], []],
        caption=["x", ""],
        waveform=torch.randn(2, 5),
        num_samples=torch.tensor([5, 3]),
        frames=torch.zeros(2, 1, 3, 4, 4, dtype=torch.uint8),
        frame_mask=torch.ones(2, 1, dtype=torch.bool),
        sound_events=[[SoundEvent("dog", 0.0, 1.0)], []],
        boxes=[[Box("dog", 0, 0.0, 0.0, 0.5, 0.5)], []],
        skipped=[SkippedClip("c", None, "gone")],
    )


def test_length_is_the_number_of_clips() -> None:
    assert len(small_batch()) == 2
    assert len(Batch([], [], [])) == 0


def test_the_first_clip_alone() -> None:
    batch = small_batch()
    first = batch.first()
    assert (len(first), len(batch)) == (1, 2)
    assert first.clip_ids == batch.clip_ids[:1]
    assert first.boxes == [[Box("dog", 0, 0.0, 0.0, 0.5, 0.5)]]
    assert first.audio_features is None
    assert first.waveform is not None
    assert batch.waveform is not None
    assert torch.equal(first.waveform, batch.waveform[:1])
    assert first.skipped == batch.skipped


@pytest.mark.parametrize("device", ["cpu", torch.device("meta")])
def test_moving_changes_every_tensor_and_nothing_else(device: torch.device | str) -> None:
    batch = small_batch()
    moved = batch.to(device)
    for field in fields(Batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert after.device == torch.device(device)
            assert (after.shape, after.dtype) == (before.shape, before.dtype)
            assert before.device == torch.device("cpu")
        else:
            assert after is before


def test_lightning_can_move_it() -> None:
    from lightning.fabric.utilities.apply_func import move_data_to_device

    moved = move_data_to_device(small_batch(), torch.device("meta"))
    assert moved.waveform is not None
    assert moved.waveform.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_pinning() -> None:
    pinned = small_batch().pin_memory()
    assert pinned.frames is not None
    assert pinned.frames.is_pinned()


def test_survives_pickling() -> None:
    batch = small_batch()
    again = pickle.loads(pickle.dumps(batch))
    assert batch.waveform is not None
    assert torch.equal(again.waveform, batch.waveform)
    assert (again.clip_ids, again.skipped, again.boxes, again.sound_events) == (
        batch.clip_ids,
        batch.skipped,
        batch.boxes,
        batch.sound_events,
    )


def test_skipped_lists_are_not_shared() -> None:
    first, second = Batch([], [], []), Batch([], [], [])
    first.skipped.append(SkippedClip("a", None, "x"))
    assert second.skipped == []


def test_clip_source_is_checked_at_run_time() -> None:
    assert not isinstance(SimpleNamespace(name="x", sample_rate_hz=1), ClipSource)


def test_run_folder_is_that_of_the_first_logger_with_one(tmp_path: Path) -> None:
    nowhere, here = SimpleNamespace(), SimpleNamespace(log_dir=str(tmp_path / "here"))
    root = str(tmp_path)
    assert run_folder(SimpleNamespace(loggers=[], default_root_dir=root)) == tmp_path
    assert run_folder(SimpleNamespace(loggers=[nowhere], default_root_dir=root)) == tmp_path
    assert run_folder(SimpleNamespace(loggers=[nowhere, here], default_root_dir=root)) == tmp_path / "here"
