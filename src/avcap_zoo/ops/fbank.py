"""Log-mel filter banks, batched, on the device of the waveform, always in float32."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.masking import length_mask

KALDI_LOG_FLOOR = 1.1920929e-07
"""float32 epsilon: silence becomes ln of it, -15.942."""


def num_kaldi_frames(
    num_samples: Tensor, *, sample_rate_hz: int = 16_000, frame_length_ms: float = 25.0, frame_shift_ms: float = 10.0
) -> Tensor:
    """Whole frames that fit into each clip (Kaldi's snip_edges), never negative.

    Args:
        num_samples: (B,) integer.
        sample_rate_hz: samples per second.
        frame_length_ms: length of one frame.
        frame_shift_ms: step between frames.

    Returns:
        (B,) integer.
    """
    length = int(sample_rate_hz * frame_length_ms / 1000)
    shift = int(sample_rate_hz * frame_shift_ms / 1000)
    return ((num_samples - length).div(shift, rounding_mode="floor") + 1).clamp_min(0)


def kaldi_fbank(
    waveform: Tensor,
    *,
    sample_rate_hz: int = 16_000,
    num_mel_bins: int = 64,
    frame_length_ms: float = 25.0,
    frame_shift_ms: float = 10.0,
    low_hz: float = 20.0,
    high_hz: float | None = None,
    preemphasis: float = 0.97,
) -> Tensor:
    """Kaldi's log-mel filter bank, no dither, no energy: symmetric Hann window, DC removed per frame, power spectrum.

    Args:
        waveform: (B, S) samples in [-1, 1], not scaled to 16 bit.
        sample_rate_hz: samples per second.
        num_mel_bins: F.
        frame_length_ms: frame length; the FFT is the next power of two of it.
        frame_shift_ms: step between frames.
        low_hz: lower edge of the lowest filter.
        high_hz: upper edge of the highest filter; None = half the sample rate.
        preemphasis: y[t] = x[t] - preemphasis * x[t - 1], first sample of each frame replicated.

    Returns:
        (B, T, F) float32 natural logs, floor ln(1.19e-7); T = 0 for a clip shorter than one frame.

    Raises:
        ShapeError: waveform is not 2-D.

    Source: Kaldi compute-fbank-feats as LAVCap calls it (spec section 1.2).
    """
    if waveform.ndim != 2:
        raise ShapeError(f"waveform is {tuple(waveform.shape)}, wanted (clips, samples)")
    length = int(sample_rate_hz * frame_length_ms / 1000)
    shift = int(sample_rate_hz * frame_shift_ms / 1000)
    fft_size = 1 << (length - 1).bit_length()
    if waveform.shape[1] < length:
        return waveform.new_zeros((waveform.shape[0], 0, num_mel_bins), dtype=torch.float32)
    with torch.autocast(waveform.device.type, enabled=False):
        frames = waveform.float().unfold(1, length, shift)
        frames = frames - frames.mean(dim=2, keepdim=True)
        emphasised = torch.empty_like(frames)
        emphasised[..., 0] = (1 - preemphasis) * frames[..., 0]
        emphasised[..., 1:] = frames[..., 1:].sub(frames[..., :-1], alpha=preemphasis)
        emphasised *= torch.hann_window(length, periodic=False, dtype=torch.float32, device=waveform.device)
        spectrum = torch.fft.rfft(emphasised, n=fft_size)
        power = spectrum.real.square() + spectrum.imag.square()
        filters = _kaldi_mel_filters(num_mel_bins, fft_size, sample_rate_hz, low_hz, high_hz or sample_rate_hz / 2)
        energies: Tensor = power[..., : fft_size // 2] @ filters.to(waveform.device)
        return energies.clamp_min(KALDI_LOG_FLOOR).log()


@lru_cache(maxsize=8)
def _kaldi_mel_filters(num_mel_bins: int, fft_size: int, sample_rate_hz: int, low_hz: float, high_hz: float) -> Tensor:
    """(fft_size / 2, F) triangles, straight on the mel scale 1127 ln(1 + f / 700)."""

    def mel(frequency_hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(frequency_hz / 700.0)

    low, high = mel(torch.tensor([low_hz, high_hz], dtype=torch.float64))
    edges = low + (high - low) / (num_mel_bins + 1) * torch.arange(num_mel_bins + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(torch.arange(fft_size // 2, dtype=torch.float64) * sample_rate_hz / fft_size)[:, None]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0.0).float()


def normalised_fbank(
    waveform: Tensor,
    num_samples: Tensor,
    *,
    target_length: int = 1024,
    mean: float = -4.346,
    std: float = 4.332,
    sample_rate_hz: int = 16_000,
    num_mel_bins: int = 64,
    frame_shift_ms: float = 10.0,
    pad_with_silence: bool = False,
) -> Tensor:
    """LAVCap's input to its audio encoder: clip mean removed, Kaldi filter bank, fixed length, one mean and one std.

    Args:
        waveform: (B, S) in [-1, 1], zero-padded.
        num_samples: (B,) real samples of each clip.
        target_length: frames T of the result; longer clips are cut, shorter ones padded.
        mean: subtracted from the log-mel values.
        std: divides them, once (not twice as in AST).
        sample_rate_hz: samples per second.
        num_mel_bins: F.
        frame_shift_ms: step between frames.
        pad_with_silence: False (released code): padding is 0 before normalisation, which is +1.0032 after it and so
            neither zero nor silence. True: padding has the value of digital silence.

    Returns:
        (B, T, F) float32.

    Source: released dataset code (spec sections 1.2 and 12.5).
    """
    with torch.autocast(waveform.device.type, enabled=False):
        # Zero padding does not change the sum, and frames that touch it are masked below.
        waveform = waveform.float()
        waveform = waveform - waveform.sum(dim=1, keepdim=True) / num_samples.clamp_min(1)[:, None]
        log_mel = kaldi_fbank(
            waveform, sample_rate_hz=sample_rate_hz, num_mel_bins=num_mel_bins, frame_shift_ms=frame_shift_ms
        )[:, :target_length]
        num_frames = num_kaldi_frames(num_samples, sample_rate_hz=sample_rate_hz, frame_shift_ms=frame_shift_ms)
        pad_value = math.log(KALDI_LOG_FLOOR) if pad_with_silence else 0.0
        frame_mask = length_mask(num_frames, log_mel.shape[1])[:, :, None]
        fixed = log_mel.new_full((log_mel.shape[0], target_length, num_mel_bins), pad_value)
        fixed[:, : log_mel.shape[1]] = torch.where(frame_mask, log_mel, pad_value)
        return (fixed - mean) / std
