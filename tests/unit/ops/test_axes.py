from __future__ import annotations

import pytest

from avcap_zoo.ops.axes import nice_ticks, ticks_within


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 8.5, [0, 2, 4, 6, 8, 10]),
        (1.05, 1.97, [1, 1.2, 1.4, 1.6, 1.8, 2]),
        (0, 231, [0, 50, 100, 150, 200, 250]),
        (0, 0, [0, 0.2]),
        (-3, 3, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_and_span_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


@pytest.mark.parametrize("high", [1e-9, 0.3, 7, 99.99, 12345678])
def test_ticks_always_span_the_range(high: float) -> None:
    ticks = nice_ticks(0, high)
    assert ticks[0] <= 0
    assert ticks[-1] >= high * (1 - 1e-6)
    assert 2 <= len(ticks) <= 8


def test_ticks_within_stop_at_the_end() -> None:
    assert ticks_within(9.6, 10) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert ticks_within(0.4) == [0, 0.1, 0.2, 0.3, 0.4]
