"""What LAVCap hears, sees and matches in the clips of a batch, cut to their real length, ready to be drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avcap_zoo.backbones.audio.ced import PATCH_SIZE
from avcap_zoo.batch import Batch
from avcap_zoo.ops.clip_picture import ClipParts, draw_clip
from avcap_zoo.ops.fbank import num_kaldi_frames
from avcap_zoo.systems.lavcap.fusion import FusedTokens
from avcap_zoo.systems.lavcap.model import LAVCapModel

SAMPLE_RATE_HZ = 16_000
"""Of the sound that LAVCap's filter bank takes."""


@dataclass(frozen=True)
class ClipInside:
    """One clip as the model meets it. What a batch or a fusion kind lacks is None.

    Attributes:
        duration_s: length of the sound.
        frames: (K, 3, H, W) uint8, RGB.
        spectrogram: (F, T) normalised log-mel energies without padding, lowest band first.
        spectrogram_end_s: where the last of the T columns ends.
        plan: (K, N) transport plan, frames by audio tokens without padding.
        plan_end_s: where the last of the N tokens ends.
    """

    duration_s: float | None
    frames: NDArray[np.uint8] | None
    spectrogram: NDArray[np.float32] | None
    spectrogram_end_s: float
    plan: NDArray[np.float32] | None
    plan_end_s: float


@torch.no_grad()
def look_at(model: LAVCapModel, batch: Batch, fused: FusedTokens) -> list[ClipInside]:
    """Spectrogram, frames and plan of each clip of a batch.

    Args:
        model: what fused the batch.
        batch: B clips; without their sound there is no spectrogram, and the plan keeps its padding.
        fused: of this batch.
    """
    encoder = model.audio_settings.encoder
    shift_s = encoder.frame_shift_ms / 1000
    plans = None if fused.log_plan is None else fused.log_plan.exp().float().cpu().numpy()
    token_s = PATCH_SIZE * shift_s
    if plans is not None and model.fusion.settings.recipe.qformer is not None:
        # What a Q-Former says is in order of time and spread evenly, over the padding, too.
        token_s *= encoder.target_length // PATCH_SIZE / plans.shape[2]
    frames = None if batch.frames is None else batch.frames.cpu().numpy()
    masks = None if batch.frame_mask is None else batch.frame_mask.cpu().numpy()
    hears = model.fusion.settings.needs_audio and batch.waveform is not None and batch.num_samples is not None
    spectrograms, lengths = None, [0] * len(batch)
    if hears and batch.waveform is not None and batch.num_samples is not None:
        spectrograms = model.spectrogram(batch.waveform, batch.num_samples).float().cpu().numpy()
        lengths = [int(n) for n in num_kaldi_frames(batch.num_samples, frame_shift_ms=encoder.frame_shift_ms)]
    clips = []
    for row in range(len(batch)):
        num_columns = max(1, min(lengths[row], encoder.target_length))
        num_tokens = math.ceil(num_columns * shift_s / token_s - 1e-6) if hears else None
        real = slice(None) if masks is None else masks[row]
        plan = None if plans is None else plans[row][real, :num_tokens]
        clips.append(
            ClipInside(
                duration_s=int(batch.num_samples[row]) / SAMPLE_RATE_HZ if batch.num_samples is not None else None,
                frames=None if frames is None else frames[row][real],
                spectrogram=None if spectrograms is None else spectrograms[row, :num_columns].T,
                spectrogram_end_s=num_columns * shift_s if hears else 0.0,
                plan=plan,
                plan_end_s=0.0 if plan is None else plan.shape[1] * token_s,
            )
        )
    return clips


def draw(inside: ClipInside, *, clip_id: str, caption: str, kind: str) -> NDArray[np.uint8]:
    """The picture of one clip, (H, W, 3) uint8.

    Args:
        inside: from `look_at`.
        clip_id: above the caption.
        caption: what the model said.
        kind: the fusion kind, for the remark where it has no plan.
    """
    parts: dict[str, Any] = dict(vars(inside))
    remark = "" if inside.plan is not None else f"The fusion kind {kind} has no transport plan to show."
    return draw_clip(ClipParts(title=clip_id, caption=caption, remark=remark, **parts))
