"""Mel filter banks, batched, on the device of the waveform, always in float32.

Two families: `kaldi_fbank` (whole frames only, triangles straight on the mel scale, natural log) and
`mel_spectrogram` (centred frames, reflected ends, triangles straight in Hz; torchaudio's and librosa's conventions)
with `decibels`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.masking import length_mask

KALDI_LOG_FLOOR = 1.1920929e-07
"""float32 epsilon: silence becomes ln of it, -15.942."""

DECIBEL_FLOOR = 1e-10
"""Smallest power: silence becomes -100 dB."""

MelScale = Literal["htk", "slaney"]


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


def num_centred_frames(num_samples: Tensor, hop_length: int) -> Tensor:
    """Frames of `mel_spectrogram` that belong to each clip: one at every multiple of the hop, both ends included.

    Args:
        num_samples: (B,) integer.
        hop_length: samples between frames.

    Returns:
        (B,) integer, at least 1.
    """
    return num_samples.div(hop_length, rounding_mode="floor") + 1


def mel_spectrogram(
    waveform: Tensor,
    *,
    sample_rate_hz: int,
    fft_size: int,
    hop_length: int,
    num_mel_bins: int,
    low_hz: float = 0.0,
    high_hz: float | None = None,
    mel_scale: MelScale = "htk",
    area_normalised: bool = False,
    num_samples: Tensor | None = None,
) -> Tensor:
    """Mel power spectrogram with centred frames: periodic Hann window as long as the FFT, ends reflected.

    Args:
        waveform: (B, S) samples in [-1, 1].
        sample_rate_hz: samples per second.
        fft_size: samples of a frame.
        hop_length: samples between frames.
        num_mel_bins: F.
        low_hz: lower edge of the lowest filter.
        high_hz: upper edge of the highest filter; None = half the sample rate.
        mel_scale: `htk`: 2595 log10(1 + f / 700); `slaney`: straight below 1 kHz, logarithmic above.
        area_normalised: True scales each triangle to area 1 (librosa's norm "slaney"); False leaves its peak at 1.
        num_samples: (B,) real samples; each clip is then reflected at its own end, so that a padded batch equals its
            clips one by one. None = all S are real.

    Returns:
        (B, T, F) float32 powers, T = 1 + S // hop; see `num_centred_frames` for the frames of shorter clips. Frames
        wholly behind a clip's own reflection are 0.

    Raises:
        ShapeError: waveform is not 2-D, or has no sample.

    Source: torchaudio's MelSpectrogram and librosa's melspectrogram; equal to both on the parity cases.
    """
    if waveform.ndim != 2 or waveform.shape[1] == 0:
        raise ShapeError(f"waveform is {tuple(waveform.shape)}, wanted (clips, samples) with at least one sample")
    with torch.autocast(waveform.device.type, enabled=False):
        frames = _reflected(waveform.float(), fft_size // 2, num_samples).unfold(1, fft_size, hop_length)
        window = torch.hann_window(fft_size, periodic=True, dtype=torch.float32, device=waveform.device)
        spectrum = torch.fft.rfft(frames * window)
        power = spectrum.real.square() + spectrum.imag.square()
        filters = mel_filters(
            num_mel_bins,
            fft_size,
            sample_rate_hz,
            low_hz,
            sample_rate_hz / 2 if high_hz is None else high_hz,
            mel_scale=mel_scale,
            area_normalised=area_normalised,
        )
        energies: Tensor = power @ filters.to(waveform.device)
        return energies


def _reflected(waveform: Tensor, width: int, num_samples: Tensor | None) -> Tensor:
    """(B, width + S + width): each clip mirrored at its two ends, again and again if it is short; zeros behind."""
    size = waveform.shape[1]
    if num_samples is None:
        num_samples = torch.full((len(waveform),), size, device=waveform.device)
    last = num_samples.clamp(1, size)[:, None] - 1
    position = torch.arange(-width, size + width, device=waveform.device)[None, :]
    phase = position.remainder((2 * last).clamp_min(1))
    mirrored = waveform.gather(1, torch.minimum(phase, 2 * last - phase).clamp_min(0))
    return mirrored.masked_fill(position > last + width, 0.0)


@lru_cache(maxsize=8)
def mel_filters(
    num_mel_bins: int,
    fft_size: int,
    sample_rate_hz: int,
    low_hz: float,
    high_hz: float,
    *,
    mel_scale: MelScale = "htk",
    area_normalised: bool = False,
) -> Tensor:
    """(fft_size / 2 + 1, F) triangles, straight in Hz, with edges evenly spaced on the mel scale.

    Args:
        num_mel_bins: F.
        fft_size: samples of a frame.
        sample_rate_hz: samples per second.
        low_hz: lower edge of the lowest filter.
        high_hz: upper edge of the highest filter.
        mel_scale: see `mel_spectrogram`.
        area_normalised: see `mel_spectrogram`.

    Returns:
        float32 on the CPU; the tensor is kept for the next call, do not change it.
    """
    with torch.device("cpu"):
        low, high = _hz_to_mel(torch.tensor([low_hz, high_hz], dtype=torch.float64), mel_scale).tolist()
        edges = _mel_to_hz(torch.linspace(low, high, num_mel_bins + 2, dtype=torch.float64), mel_scale)
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        bins = torch.linspace(0, sample_rate_hz / 2, fft_size // 2 + 1, dtype=torch.float64)[:, None]
        triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0.0)
        return (triangles * (2 / (right - left)) if area_normalised else triangles).float()


# Slaney's scale: 3 mel per 200 Hz up to 1 kHz, then 27 mel per factor 6.4.
_SLANEY_KNEE_HZ, _SLANEY_MEL_PER_HZ, _SLANEY_STEP = 1000.0, 3 / 200, math.log(6.4) / 27
_SLANEY_KNEE_MEL = _SLANEY_KNEE_HZ * _SLANEY_MEL_PER_HZ


def _hz_to_mel(frequency_hz: Tensor, scale: MelScale) -> Tensor:
    if scale == "htk":
        return 2595.0 * torch.log10(1 + frequency_hz / 700.0)
    above = _SLANEY_KNEE_MEL + (frequency_hz.clamp_min(_SLANEY_KNEE_HZ) / _SLANEY_KNEE_HZ).log() / _SLANEY_STEP
    return torch.where(frequency_hz < _SLANEY_KNEE_HZ, frequency_hz * _SLANEY_MEL_PER_HZ, above)


def _mel_to_hz(mel: Tensor, scale: MelScale) -> Tensor:
    if scale == "htk":
        return 700.0 * (10 ** (mel / 2595.0) - 1)
    above = _SLANEY_KNEE_HZ * ((mel - _SLANEY_KNEE_MEL) * _SLANEY_STEP).exp()
    return torch.where(mel < _SLANEY_KNEE_MEL, mel / _SLANEY_MEL_PER_HZ, above)


def decibels(power: Tensor, *, range_db: float | None = None, range_over: Literal["clip", "batch"] = "clip") -> Tensor:
    """10 log10 of powers, in float32, not below -100 dB.

    Args:
        power: (B, T, F), not negative.
        range_db: values further below the loudest are raised to that distance; None = no such limit.
        range_over: the loudest of each clip, or of the whole batch (torchaudio's AmplitudeToDB on a batch: a quiet clip
            beside a loud one then changes).

    Returns:
        (B, T, F) float32.
    """
    with torch.autocast(power.device.type, enabled=False):
        level = 10 * power.float().clamp_min(DECIBEL_FLOOR).log10()
        if range_db is None or level.numel() == 0:
            return level
        loudest = level.amax() if range_over == "batch" else level.amax(dim=tuple(range(1, level.ndim)), keepdim=True)
        return torch.maximum(level, loudest - range_db)


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
