"""What a trained LAVCap hears, sees and matches in single clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from avcap_zoo.data_modules.dataset import ClipDataset, collate
from avcap_zoo.data_modules.media.video import frame_times_s, read_frames
from avcap_zoo.data_modules.records import ClipRecord, PackedRecords
from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
from avcap_zoo.errors import DataError, WeightsError
from avcap_zoo.serving.loading import load_system
from avcap_zoo.systems.lavcap.inside import look_at
from avcap_zoo.systems.lavcap.model import LAVCapModel
from avcap_zoo.systems.lavcap.module import LAVCap


@dataclass(frozen=True)
class ClipView:
    """One clip as the model meets it.

    Attributes:
        clip_id: as in the annotations.
        duration_s: length of the clip.
        wav: the sound file.
        frames: (K, H, W, 3) uint8, RGB, as large as the file has them.
        frame_times_s: (K,) when each is seen.
        spectrogram: (F, T) normalised log-mel energies of the clip without its padding, lowest band first.
        plan: (K, N) transport plan, frames by audio tokens without padding; None for fusions without transport.
        plan_end_s: where the last of the N audio tokens ends.
    """

    clip_id: str
    duration_s: float
    wav: bytes
    frames: NDArray[np.uint8]
    frame_times_s: NDArray[np.float64]
    spectrogram: NDArray[np.float32]
    plan: NDArray[np.float32] | None
    plan_end_s: float


def load_model(checkpoint: Path) -> LAVCapModel:
    """Rebuild the model of a checkpoint from nothing but the checkpoint, in evaluation mode on the CPU.

    Args:
        checkpoint: file of a run whose backbones have no files of their own.

    Raises:
        WeightsError: missing, damaged, not ours, or without some of the weights.
    """
    system = load_system(checkpoint).system
    if not isinstance(system, LAVCap):
        raise WeightsError(f"{checkpoint} holds no LAVCap, found {type(system).__name__}")
    return system.model


@torch.no_grad()
def look_at_clips(model: LAVCapModel, data: ScenesDataModule, clip_ids: Sequence[str]) -> list[ClipView]:
    """Hear, see and match some test clips.

    Args:
        model: a trained model that listens.
        data: where the clips lie.
        clip_ids: of the test split.

    Raises:
        DataError: a clip is not there.
    """
    records = {record.clip_id: record for record in data.read_split("test").records}
    absent = [clip_id for clip_id in clip_ids if clip_id not in records]
    if absent:
        raise DataError(f"{data.root} lacks the test clips {', '.join(absent)}")
    return [_look_at(model, data, records[clip_id]) for clip_id in clip_ids]


def _look_at(model: LAVCapModel, data: ScenesDataModule, record: ClipRecord) -> ClipView:
    if record.audio is None or record.visual is None:
        raise DataError(f"test clip {record.clip_id} has no sound or no pictures in {data.root}")
    dataset = ClipDataset(PackedRecords([record]), data.decode, seed=0, training=False)
    batch = collate([dataset[0, 0]], data.num_frames)
    if batch.waveform is None or batch.num_samples is None:
        raise DataError(f"test clip {record.clip_id} cannot be decoded; delete {data.scenes_root}")
    inside = look_at(model, batch, model.fuse(batch))[0]
    assert inside.spectrogram is not None
    frames = read_frames(Path(record.visual), data.num_frames, data.scene_size_px, record.clip_id)
    return ClipView(
        clip_id=record.clip_id,
        duration_s=record.duration_s,
        wav=Path(record.audio).read_bytes(),
        frames=frames.transpose(0, 2, 3, 1),
        frame_times_s=frame_times_s(record.duration_s, data.num_frames),
        spectrogram=inside.spectrogram,
        plan=inside.plan,
        plan_end_s=inside.plan_end_s,
    )
