"""A sound of any length as a fixed number of log-mel clips: where they begin, how they are cut, filtered and resized.

Source: BuboGPT (arXiv 2307.08581; spec bubogpt.md, section 3), after ImageBind. `AudioClipSettings` lists what its
released code does otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.errors import ConfigError, ShapeError
from avcap_zoo.ops.fbank import kaldi_fbank, num_kaldi_frames

_FRAME_MS, _SHIFT_MS = 25.0, 10.0


@dataclass
class AudioClipSettings:
    """How a sound becomes clips; the defaults mend what `released()` restores.

    Args:
        num_clips: clips of equal length, cut at random places in training and evenly spread in evaluation.
        clip_duration_s: their length; shorter sounds are repeated until they are as long.
        sample_rate_hz: of the waveform.
        num_mel_bins: F.
        target_length: frames T of every clip; longer ones are resized, shorter ones padded with zeros.
        feature_mean: subtracted from the log-mel values.
        feature_std: divides them.
        whole_in_evaluation: the whole sound, resized, is one clip more in training always, in evaluation if True. The
            released evaluation leaves it out.
        reach_end: True spreads the clips of evaluation from the first to the last sample; False (released): clip i of
            n begins at i/n of what is left, so that the end is never heard.
        shared_mean: True (released): removing the mean of a clip changes the sound that later clips are cut from.
        first_channel: what is heard of several channels. False: their mean. True (released training code; its demo
            takes the mean): the first, less the mean of all.
        antialias: whether resizing smooths, as torchvision does since 0.17. The published weights were most likely
            trained without.
    """

    num_clips: int = 6
    clip_duration_s: float = 5.0
    sample_rate_hz: int = 16_000
    num_mel_bins: int = 128
    target_length: int = 204
    feature_mean: float = -4.268
    feature_std: float = 9.138
    whole_in_evaluation: bool = True
    reach_end: bool = True
    shared_mean: bool = False
    first_channel: bool = False
    antialias: bool = False

    @classmethod
    def released(cls) -> AudioClipSettings:
        """The released code's behaviour throughout."""
        return cls(whole_in_evaluation=False, reach_end=False, shared_mean=True, first_channel=True)

    @property
    def clip_samples(self) -> int:
        """Samples W of a clip."""
        return round(self.clip_duration_s * self.sample_rate_hz)


def repeat_to_length(waveform: Tensor, num_samples: Tensor, min_samples: int) -> tuple[Tensor, Tensor]:
    """Repeat short sounds until they have exactly so many samples; longer ones stay as they are.

    Args:
        waveform: (B, ..., S), zero-padded.
        num_samples: (B,) real samples, each at least 1.
        min_samples: samples that every sound gets.

    Returns:
        The waveform (B, ..., max(S, min_samples)) and the new number of samples.
    """
    short = (num_samples < min_samples).nonzero()[:, 0]
    if not len(short):
        return waveform, num_samples
    longer = F.pad(waveform, (0, max(0, min_samples - waveform.shape[-1])))
    place = torch.arange(longer.shape[-1], device=waveform.device) % num_samples[short, None]
    index = place.view(len(short), *(1,) * (waveform.ndim - 2), -1).expand(-1, *waveform.shape[1:-1], -1)
    longer[short] = waveform[short].gather(-1, index)
    return longer, num_samples.clamp_min(min_samples)


def even_starts(num_samples: Tensor, num_clips: int, clip_samples: int, *, reach_end: bool = True) -> Tensor:
    """First samples of evenly spread clips.

    Args:
        num_samples: (B,) integer, each at least `clip_samples`.
        num_clips: S.
        clip_samples: samples of a clip.
        reach_end: see `AudioClipSettings`.

    Returns:
        (B, S) int64, rising.
    """
    spare = num_samples.long()[:, None] - clip_samples
    steps = max(1, num_clips - 1) if reach_end else num_clips
    return (torch.arange(num_clips, device=num_samples.device) * spare).div(steps, rounding_mode="floor")


def random_starts(num_samples: Tensor, num_clips: int, clip_samples: int) -> Tensor:
    """First samples of clips at random places, drawn anew for each sound from torch's generator.

    Args:
        num_samples: (B,) integer, each at least `clip_samples`.
        num_clips: S.
        clip_samples: samples of a clip.

    Returns:
        (B, S) int64, rising.
    """
    draws = torch.rand(len(num_samples), num_clips, dtype=torch.float64).sort(dim=1).values
    spare = num_samples.long()[:, None] - clip_samples
    return (draws.to(num_samples.device) * spare).floor().long()


def mel_clips(waveform: Tensor, num_samples: Tensor, settings: AudioClipSettings, *, training: bool = False) -> Tensor:
    """Log-mel clips of sounds of any length.

    Args:
        waveform: (B, S) or (B, channels, S) floats in [-1, 1] at the settings' sample rate, zero-padded.
        num_samples: (B,) real samples of each sound, at least 1.
        settings: see `AudioClipSettings`.
        training: draw the places of the clips.

    Returns:
        (B, clips, 1, F, T) float32, normalised: `num_clips` of them, then the whole sound if the settings say so.

    Raises:
        ShapeError: no such waveform, or a sound without samples or with more than there are; its index is named.
        ConfigError: clips shorter than one frame of the filter bank, or none.
    """
    _check(waveform, num_samples, settings)
    width = settings.clip_samples
    with torch.autocast(waveform.device.type, enabled=False):
        channels = waveform.float() if waveform.ndim == 3 else waveform.float()[:, None]
        if not settings.first_channel:
            channels = channels.mean(dim=1, keepdim=True)
        channels, num_samples = repeat_to_length(channels, num_samples, width)
        if training:
            starts = random_starts(num_samples, settings.num_clips, width)
        else:
            starts = even_starts(num_samples, settings.num_clips, width, reach_end=settings.reach_end)
        if settings.shared_mean:
            place = starts[:, :, None] + torch.arange(width, device=waveform.device)
            channels = channels.clone()
            cut = torch.stack([_take_in_place(channels, index) for index in place.unbind(1)], dim=1)
        else:
            sound = torch.arange(len(channels), device=waveform.device)[:, None]
            clips = channels.unfold(2, width, 1)[sound, :, starts]  # (B, clips, channels, W)
            cut = clips[:, :, 0] - clips.mean(dim=(2, 3))[..., None]
        full = num_samples.new_full((cut.shape[0] * cut.shape[1],), width)
        mels = _resized_fbank(cut.flatten(0, 1), full, settings).unflatten(0, cut.shape[:2])
        if training or settings.whole_in_evaluation:
            real = torch.arange(channels.shape[2], device=waveform.device) < num_samples[:, None, None]
            mean = (channels * real).sum(dim=(1, 2)) / (num_samples * channels.shape[1])
            whole = _resized_fbank(channels[:, 0] - mean[:, None], num_samples, settings)
            mels = torch.cat([mels, whole[:, None]], dim=1)
        normalised: Tensor = (mels - settings.feature_mean) / settings.feature_std
        return normalised.transpose(2, 3)[:, :, None].contiguous()


def _check(waveform: Tensor, num_samples: Tensor, settings: AudioClipSettings) -> None:
    if waveform.ndim not in (2, 3) or not waveform.is_floating_point() or num_samples.shape != waveform.shape[:1]:
        raise ShapeError(
            f"waveform is {tuple(waveform.shape)} {waveform.dtype} with num_samples {tuple(num_samples.shape)}, wanted "
            f"(sounds, samples) or (sounds, channels, samples) floats with one length per sound"
        )
    wrong = ((num_samples < 1) | (num_samples > waveform.shape[-1])).nonzero()[:, 0].tolist()
    if wrong:
        raise ShapeError(
            f"sound {wrong[0]} of the batch has {int(num_samples[wrong[0]])} samples, wanted 1 to {waveform.shape[-1]}"
        )
    if settings.num_clips < 1 or settings.clip_duration_s * 1000 < _FRAME_MS:
        raise ConfigError(
            f"{settings.num_clips} clips of {settings.clip_duration_s} s: at least one clip of {_FRAME_MS / 1000} s "
            f"is wanted (num_clips, clip_duration_s)"
        )


def _take_in_place(channels: Tensor, place: Tensor) -> Tensor:
    """Channel 0 of one clip per sound, (B, W), less the clip's mean, which the sound itself loses too."""
    index = place[:, None].expand(-1, channels.shape[1], -1)
    clip = channels.gather(2, index)
    clip = clip - clip.mean(dim=(1, 2), keepdim=True)
    channels.scatter_(2, index, clip)
    return clip[:, 0]


def _resized_fbank(waveform: Tensor, num_samples: Tensor, settings: AudioClipSettings) -> Tensor:
    """(N, T, F) filter bank of (N, S) waveforms of different lengths, resized or padded to T frames."""
    rate, target = settings.sample_rate_hz, settings.target_length
    num_frames = num_kaldi_frames(num_samples, sample_rate_hz=rate)
    if settings.antialias:
        log_mel = kaldi_fbank(waveform, sample_rate_hz=rate, num_mel_bins=settings.num_mel_bins)
        return _resize_smoothly(log_mel, num_frames, target)
    # Linear resizing reads two frames for each of the result, so ten minutes of sound cost no more than a clip.
    length, shift = int(rate * _FRAME_MS / 1000), int(rate * _SHIFT_MS / 1000)
    frames = waveform.unfold(1, length, shift)
    place = (torch.arange(target, device=waveform.device) + 0.5) * num_frames[:, None] / target - 0.5
    last = num_frames[:, None] - 1
    short = last < target
    place = torch.where(short, torch.arange(target, device=waveform.device), place.clamp_min(0))
    left = torch.minimum(place.floor().long(), last)
    share = (place - left)[:, :, None].clamp(0, 1)
    sound = torch.arange(len(waveform), device=waveform.device)[:, None]
    both = torch.stack([frames[sound, left], frames[sound, torch.minimum(left + 1, last)]])
    log_mel = kaldi_fbank(both.flatten(0, 2), sample_rate_hz=rate, num_mel_bins=settings.num_mel_bins)
    first, second = log_mel.view(2, len(waveform), target, -1)
    resized = torch.lerp(first, second, share)
    return resized.masked_fill((short & (place > last))[:, :, None], 0.0)


def _resize_smoothly(log_mel: Tensor, num_frames: Tensor, target: int) -> Tensor:
    """Resize along time with triangles as wide as the step, as torchvision does by default; pad what is shorter."""
    place = torch.arange(log_mel.shape[1], device=log_mel.device)
    step = (num_frames / target).clamp_min(1)[:, None, None]
    centre = (torch.arange(target, device=log_mel.device) + 0.5)[:, None] * step
    weights = (1 - ((place + 0.5 - centre) / step).abs()).clamp_min(0) * (place < num_frames[:, None, None])
    # A row without weight belongs to the padding behind a short clip.
    return (weights / weights.sum(dim=2, keepdim=True).clamp_min(1e-12)) @ log_mel
