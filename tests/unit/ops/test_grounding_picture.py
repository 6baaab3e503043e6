"""Masks, boxes and highlighted words, looked up in the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from avcap_zoo.errors import ConfigError
from avcap_zoo.ops.grounding_picture import COLOURS, DARK, LIGHT, ColouredEntity, ColouredText, draw_grounding

BLACK = np.zeros((600, 640, 3), dtype=np.uint8)


def entity(colour: str = "teal") -> ColouredEntity:
    masks = np.zeros((1, 600, 640), dtype=np.bool_)
    masks[0, 200:300, 200:300] = True
    return ColouredEntity("dog", colour, [(100, 100, 400, 400)], masks)


def test_a_mask_is_blended_half_and_a_box_outlined() -> None:
    drawn = np.asarray(draw_grounding(BLACK, [entity()], ColouredText()))
    assert drawn.shape == BLACK.shape
    assert np.abs(drawn[250, 250].astype(int) - np.array(LIGHT["teal"]) / 2).max() <= 1
    assert tuple(drawn[350, 350]) == (0, 0, 0)
    outline = int(600 / 512 * 10)
    assert tuple(drawn[300, 100 + outline - 1]) == DARK["teal"]
    assert tuple(drawn[300, 100 + outline]) == (0, 0, 0)


def test_words_take_the_colour_of_what_they_name() -> None:
    drawn = np.asarray(draw_grounding(BLACK, [], ColouredText([("A ", None), ("dog", "red"), (" runs\nfar.", None)])))
    below = drawn[600:].reshape(-1, 3)
    assert (below == DARK["red"]).all(axis=1).sum() > 200
    assert len(drawn) > 600


def test_a_small_picture_is_enlarged_and_a_long_text_wrapped() -> None:
    small = np.zeros((64, 64, 3), dtype=np.uint8)
    one = draw_grounding(small, [], ColouredText([("word", None)]))
    many = draw_grounding(small, [], ColouredText([("word " * 60, None)]))
    assert one.width == many.width == 512
    assert many.height > one.height + 100


def test_every_colour_has_both_shades_and_a_wrong_one_is_named() -> None:
    assert len(COLOURS) == 11
    assert set(DARK) == set(LIGHT) == {*COLOURS, "grey"}
    with pytest.raises(ConfigError, match="no colour mauve"):
        draw_grounding(BLACK, [entity("mauve")], ColouredText())
