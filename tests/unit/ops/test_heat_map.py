"""Matrices become pictures from dark to light."""

from __future__ import annotations

import numpy as np

from avcap_zoo.ops.heat_map import ANCHORS, heat_map


def test_smallest_is_the_first_colour_and_largest_the_last() -> None:
    pixels = heat_map(np.array([[0.0, 1.0], [0.5, 0.25]]))
    assert pixels.shape == (2, 2, 3)
    assert pixels.dtype == np.uint8
    assert tuple(pixels[0, 0]) == ANCHORS[0]
    assert tuple(pixels[0, 1]) == ANCHORS[-1]


def test_lightness_rises_with_the_value() -> None:
    lightness = heat_map(np.linspace(0, 1, 64)[None]).astype(int).sum(axis=2)[0]
    assert (np.diff(lightness) > 0).all()


def test_cells_are_squares_of_the_asked_size() -> None:
    pixels = heat_map(np.array([[0.0, 1.0]]), pixels_per_cell=3)
    assert pixels.shape == (3, 6, 3)
    assert (pixels[:, :3] == ANCHORS[0]).all()
    assert (pixels[:, 3:] == ANCHORS[-1]).all()


def test_constant_and_infinite_values_are_drawn_dark() -> None:
    assert (heat_map(np.full((2, 2), 7.0)) == ANCHORS[0]).all()
    mixed = heat_map(np.array([[-np.inf, 0.0, 1.0]]))
    assert tuple(mixed[0, 0]) == ANCHORS[0]
    assert tuple(mixed[0, 2]) == ANCHORS[-1]
    assert (heat_map(np.array([[np.nan]])) == ANCHORS[0]).all()
