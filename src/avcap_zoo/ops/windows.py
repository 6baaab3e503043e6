"""Clips of any length for encoders that hear a fixed one: windows cut out of long clips, short clips filled up."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.errors import ShapeError

WindowPolicy = Literal["seeded", "centre", "windows_mean", "released"]


@dataclass
class Windows:
    """N windows of B clips, every clip with at least one, in the order of the clips.

    Attributes:
        waveform: (N, W) float32; shorter clips are followed by zeros.
        num_samples: (N,) int64, real samples of each window.
        clip: (N,) int64, the clip each window was cut from.
    """

    waveform: Tensor
    num_samples: Tensor
    clip: Tensor


def choose_starts(
    lengths: Sequence[int],
    window_samples: int,
    policy: WindowPolicy,
    *,
    clip_ids: Sequence[str] = (),
    seed: int = 0,
    sequence: random.Random | None = None,
) -> list[list[int]]:
    """Where the windows of each clip begin. A clip that fits into one window has one, at 0.

    Args:
        lengths: samples of each of B clips.
        window_samples: samples W of a window.
        policy: for longer clips. `seeded`: one window at a place that depends on the clip's id and the seed alone.
            `centre`: one window in the middle. `windows_mean`: as few windows as cover the clip, evenly spread, the
            first at its start and the last at its end. `released`: the next draw of `sequence`, so that a clip's window
            depends on the clips before it.
        clip_ids: id of each clip; needed by `seeded`.
        seed: of `seeded`.
        sequence: Python's generator; needed by `released`, which draws once per longer clip.

    Returns:
        First samples of the windows, one list per clip.

    Raises:
        ValueError: clip ids or a sequence are wanted and missing.

    Source: `released` is the random 10 s crop of ZerAuCap's code (seed 4182), whose results depend on file order.
    """
    if policy == "seeded" and len(clip_ids) != len(lengths):
        raise ValueError(f"policy seeded needs the id of each of {len(lengths)} clips, {len(clip_ids)} are given")
    if policy == "released" and sequence is None:
        raise ValueError("policy released needs the generator that draws the windows of all clips in turn")
    starts: list[list[int]] = []
    for index, length in enumerate(lengths):
        spare = max(0, length - window_samples)
        if spare == 0:
            starts.append([0])
        elif policy == "centre":
            starts.append([spare // 2])
        elif policy == "seeded":
            digest = hashlib.sha256(f"{seed}/{clip_ids[index]}".encode()).digest()
            starts.append([int.from_bytes(digest[:8], "big") % (spare + 1)])
        elif sequence is not None and policy == "released":
            starts.append([sequence.randint(0, spare)])
        else:
            gaps = -(-length // window_samples) - 1
            starts.append([round(spare * place / gaps) for place in range(gaps + 1)])
    return starts


def cut_windows(waveform: Tensor, num_samples: Tensor, starts: Sequence[Sequence[int]], window_samples: int) -> Windows:
    """Cut the windows out of a batch.

    Args:
        waveform: (B, S), zero-padded.
        num_samples: (B,) real samples of each clip.
        starts: first samples of the windows of each clip.
        window_samples: W.

    Returns:
        The windows, on the waveform's device.

    Raises:
        ShapeError: the three do not speak of the same clips.
    """
    if waveform.ndim != 2 or len(num_samples) != len(waveform) or len(starts) != len(waveform):
        raise ShapeError(
            f"waveform is {tuple(waveform.shape)}, num_samples {tuple(num_samples.shape)}, starts are of "
            f"{len(starts)} clips; wanted (clips, samples) and one entry per clip"
        )
    device = waveform.device
    clip = torch.tensor([index for index, row in enumerate(starts) for _ in row], dtype=torch.long, device=device)
    start = torch.tensor([place for row in starts for place in row], dtype=torch.long, device=device)
    padded = F.pad(waveform.float(), (0, max(0, window_samples - waveform.shape[1])))
    place = start[:, None] + torch.arange(window_samples, device=device)
    cut = padded[clip[:, None], place.clamp_max(padded.shape[1] - 1)]
    real = (num_samples.to(device)[clip] - start).clamp(0, window_samples)
    return Windows(cut.masked_fill(place - start[:, None] >= real[:, None], 0.0), real, clip)


def mean_direction(embeddings: Tensor, clip: Tensor, num_clips: int) -> Tensor:
    """One unit vector per clip: the mean of its windows' embeddings, scaled to length 1.

    Args:
        embeddings: (N, D) unit vectors.
        clip: (N,) the clip of each, see `Windows`.
        num_clips: B.

    Returns:
        (B, D) float32.
    """
    total = embeddings.new_zeros((num_clips, embeddings.shape[1]), dtype=torch.float32)
    return F.normalize(total.index_add(0, clip, embeddings.float()), dim=1)


def repeat_whole(waveform: Tensor, num_samples: Tensor, window_samples: int) -> Tensor:
    """Fill a window with as many whole repeats of each clip as fit, then zeros.

    Args:
        waveform: (B, S); longer clips are cut.
        num_samples: (B,) real samples; a clip without any is silent.
        window_samples: W.

    Returns:
        (B, W).

    Source: `repeatpad` of LAION-CLAP.
    """
    device = waveform.device
    place = torch.arange(window_samples, device=device)[None, :]
    length = num_samples.to(device).clamp(1, window_samples)[:, None]
    repeated = waveform.gather(1, (place % length).clamp_max(waveform.shape[1] - 1))
    silent = (place >= window_samples // length * length) | (num_samples.to(device) < 1)[:, None]
    return repeated.masked_fill(silent, 0.0)


def round_to_int16(waveform: Tensor) -> Tensor:
    """What 16-bit PCM keeps of a waveform: clipped to [-1, 1], times 32,767, truncated toward zero, and back.

    Args:
        waveform: any shape.

    Returns:
        The same shape, float32.

    Source: laion_clap, which quantises every clip before its spectrogram.
    """
    return (waveform.float().clamp(-1, 1) * 32767).trunc() / 32767
