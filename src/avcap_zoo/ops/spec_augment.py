"""SpecAugment: one stretch of mel bins and one of frames is blanked in each clip."""

from __future__ import annotations

import torch
from torch import Tensor


def spec_augment(spectrogram: Tensor, *, max_bins: int, max_frames: int, value: float) -> Tensor:
    """Blank one frequency band and one time span per clip, drawn anew for each clip from torch's generator.

    Args:
        spectrogram: (B, T, F).
        max_bins: width of the band, uniform in [0, max_bins); 0 = none.
        max_frames: length of the span, uniform in [0, max_frames); 0 = none.
        value: what the blanks hold.

    Returns:
        (B, T, F), a new tensor.

    Source: Park et al. 2019; widths as LAVCap uses them (spec section 6).
    """
    blank = torch.zeros(spectrogram.shape, dtype=torch.bool, device=spectrogram.device)
    for axis, widest in ((1, max_frames), (2, max_bins)):
        size = spectrogram.shape[axis]
        draws = torch.rand(2, len(spectrogram), 1).to(spectrogram.device)
        width = draws[0] * min(widest, size)
        start = draws[1] * (size - width)
        position = torch.arange(size, device=spectrogram.device)[None, :]
        inside = (position >= start.floor()) & (position < (start.floor() + width.floor()))
        blank |= inside[:, :, None] if axis == 1 else inside[:, None, :]
    return spectrogram.masked_fill(blank, value)


def mix_stripes(clips: Tensor, *, max_bins: int, max_frames: int, num_stripes: int = 2) -> Tensor:
    """Mix stripes of each clip half and half with another clip of the same sound.

    Stripes are drawn anew for each clip, and the partners for each sound and axis, from torch's generator.

    Args:
        clips: (B, S, 1, F, T).
        max_bins: width of a stripe over mel bins, uniform in [0, max_bins); 0 = none.
        max_frames: width of a stripe over frames, uniform in [0, max_frames); 0 = none.
        num_stripes: stripes along each axis.

    Returns:
        (B, S, 1, F, T), a new tensor.

    Source: "mixture masking" of SpecAugment++ (Wang et al. 2021), frames first, as BuboGPT trains (spec section 3).
    """
    mixed = clips.clone()
    num_sounds, num_clips = clips.shape[:2]
    for axis, widest in ((4, max_frames), (3, max_bins)):
        size = clips.shape[axis]
        partner = torch.rand(num_sounds, num_clips).argsort(dim=1).to(clips.device)
        other = mixed[torch.arange(num_sounds, device=clips.device)[:, None], partner]
        position = torch.arange(size, device=clips.device)
        for _ in range(num_stripes):
            draws = torch.rand(2, num_sounds, num_clips, 1).to(clips.device)
            width = (draws[0] * min(widest, size)).floor()
            start = (draws[1] * (size - width)).floor()
            inside = (position >= start) & (position < start + width)
            inside = inside[:, :, None, None, :] if axis == 4 else inside[:, :, None, :, None]
            mixed = torch.where(inside, 0.5 * mixed + 0.5 * other, mixed)
    return mixed
