"""Resampling by a windowed sinc, batched, on the device of the waveform."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.masking import length_mask


def resample(
    waveform: Tensor,
    num_samples: Tensor,
    from_hz: int,
    to_hz: int,
    *,
    zero_crossings: int = 6,
    rolloff: float = 0.99,
) -> tuple[Tensor, Tensor]:
    """Change the sample rate: sinc with a Hann window.

    Args:
        waveform: (B, S) or (B, channels, S) floats, zero-padded.
        num_samples: (B,) real samples of each sound.
        from_hz: samples per second of the waveform.
        to_hz: of the result.
        zero_crossings: of the sinc on each side; more is sharper and slower.
        rolloff: cut-off frequency as a share of the smaller Nyquist frequency.

    Returns:
        The waveform in float32, zero behind each sound's end, and its real samples, ceil(num_samples * to / from).

    Raises:
        ShapeError: not a float waveform of 2 or 3 axes with one length per sound.
        ValueError: a rate below 1 Hz.

    Source: the defaults are those of torchaudio.functional.resample; equal to it on the parity cases.
    """
    if min(from_hz, to_hz) < 1:
        raise ValueError(f"cannot resample from {from_hz} Hz to {to_hz} Hz")
    if waveform.ndim not in (2, 3) or not waveform.is_floating_point() or num_samples.shape != waveform.shape[:1]:
        raise ShapeError(
            f"waveform is {tuple(waveform.shape)} {waveform.dtype} with num_samples {tuple(num_samples.shape)}, wanted "
            f"(sounds, samples) or (sounds, channels, samples) floats with one length per sound"
        )
    if from_hz == to_hz:
        return waveform.float(), num_samples
    divisor = math.gcd(from_hz, to_hz)
    source, target = from_hz // divisor, to_hz // divisor
    kernel = _sinc_kernel(source, target, zero_crossings, rolloff).to(waveform.device)
    reach = (kernel.shape[2] - source) // 2
    with torch.autocast(waveform.device.type, enabled=False):
        rows = waveform.float().reshape(-1, 1, waveform.shape[-1])
        phases = F.conv1d(F.pad(rows, (reach, reach + source)), kernel, stride=source)  # (rows, target, steps)
    length = -(-target * waveform.shape[-1] // source)
    resampled = phases.transpose(1, 2).flatten(1)[:, :length].reshape(*waveform.shape[:-1], length)
    lengths = (num_samples * target + source - 1).div(source, rounding_mode="floor")
    mask = length_mask(lengths, length)
    return resampled * (mask if waveform.ndim == 2 else mask[:, None]), lengths


@lru_cache(maxsize=8)
def _sinc_kernel(source: int, target: int, zero_crossings: int, rolloff: float) -> Tensor:
    """(target, 1, taps) float32 on the CPU: one filter for each sample of the result between two of the source."""
    cutoff = min(source, target) * rolloff
    reach = math.ceil(zero_crossings * source / cutoff)
    with torch.device("cpu"):
        taps = torch.arange(-reach, reach + source, dtype=torch.float64) / source
        phase = torch.arange(target, dtype=torch.float64)[:, None, None] / target
        time = ((taps - phase) * cutoff).clamp(-zero_crossings, zero_crossings)
        window = (time * math.pi / zero_crossings / 2).cos().square()
        return (torch.sinc(time) * window * (cutoff / source)).float()
