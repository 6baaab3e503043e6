"""Numbers along the axes of a drawing."""

from __future__ import annotations

import math


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span a range: steps of 1, 2 or 5 times a power of ten, from below `low` to above `high`.

    Args:
        low: smallest value to show.
        high: largest; may equal `low`.
        count: about as many steps.
    """
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def ticks_within(end: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to `end` at most."""
    return [tick for tick in nice_ticks(0, end, count) if tick <= end * (1 + 1e-9)]
