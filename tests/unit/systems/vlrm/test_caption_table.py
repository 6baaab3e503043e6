"""The picture of captions and returns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.systems.vlrm.caption_table import ShownCaption, draw_captions

IMAGE = np.full((20, 30, 3), 7, dtype=np.uint8)


def colours(picture: NDArray[np.uint8]) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in pixel) for pixel in picture.reshape(-1, 3)}


def test_high_returns_are_green_and_low_ones_red_on_one_scale() -> None:
    rows = [ShownCaption(IMAGE, "a dog", ["a", " cat"], [1.0, 3.0]), ShownCaption(IMAGE, "", [" cow"], [2.0])]
    found = colours(draw_captions(rows))
    assert {(225, 120, 105), (120, 190, 130), (7, 7, 7)} <= found
    assert (172, 155, 118) in found
    assert len(draw_captions(rows)) > len(draw_captions(rows[:1]))


def test_equal_returns_and_long_captions_are_drawn() -> None:
    rows = [ShownCaption(IMAGE, "word " * 300, [" word"] * 400, [0.0] * 400)]
    picture = draw_captions(rows)
    assert picture.dtype == np.uint8
    assert (120, 190, 130) in colours(picture)
    assert (225, 120, 105) not in colours(picture)
