"""Which part of a long sound is kept."""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CropPolicy = Literal["start", "centre", "seeded"]


def crop(samples: NDArray[np.float32], longest: int, policy: CropPolicy, key: str) -> NDArray[np.float32]:
    """Crop a sound to at most `longest` samples; a shorter one stays as it is.

    Args:
        samples: (S,) of one channel.
        longest: samples to keep, 1 or more.
        policy: `start`, `centre`, or `seeded`: anywhere, as `key` decides.
        key: of the clip and the draw; the same key gives the same part on every machine.
    """
    spare = len(samples) - longest
    if spare <= 0:
        return samples
    if policy == "start":
        first = 0
    elif policy == "centre":
        first = spare // 2
    else:
        first = int(np.random.default_rng(zlib.crc32(key.encode())).integers(spare + 1))
    return samples[first : first + longest]
