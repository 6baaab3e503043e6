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
