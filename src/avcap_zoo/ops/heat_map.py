"""Matrices as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ANCHORS = ((13, 8, 50), (84, 15, 109), (158, 42, 99), (219, 80, 67), (249, 142, 9), (252, 255, 164))
"""Colours from dark to light, of evenly rising lightness."""


def heat_map(values: NDArray[Any], *, pixels_per_cell: int = 1) -> NDArray[np.uint8]:
    """Colour a matrix from its smallest finite value (dark) to its largest (light).

    Args:
        values: (H, W) numbers; what is not finite is drawn as the smallest.
        pixels_per_cell: side of the square that one number fills.

    Returns:
        (H * pixels_per_cell, W * pixels_per_cell, 3) uint8, RGB.
    """
    finite = np.isfinite(values)
    low = float(values[finite].min()) if finite.any() else 0.0
    high = float(values[finite].max()) if finite.any() else 0.0
    position = np.where(finite, (values - low) / max(high - low, 1e-12), 0.0) * (len(ANCHORS) - 1)
    anchors = np.array(ANCHORS, dtype=np.float64)
    below = np.minimum(position.astype(int), len(ANCHORS) - 2)
    share = (position - below)[..., None]
    colours = (1 - share) * anchors[below] + share * anchors[below + 1]
    pixels: NDArray[np.uint8] = colours.round().astype(np.uint8)
    return pixels.repeat(pixels_per_cell, axis=0).repeat(pixels_per_cell, axis=1)
