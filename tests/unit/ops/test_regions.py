"""Connected parts, holes, overlap, and run lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from avcap_zoo.errors import DataError, ShapeError
from avcap_zoo.ops.regions import (
    box_iou,
    box_of,
    decode_rle,
    encode_rle,
    fill_enclosed,
    fill_small_holes,
    label_regions,
    mask_iou,
)


def picture(text: str) -> NDArray[np.bool_]:
    return np.array([[character == "#" for character in line] for line in text.split()])


def flooded(mask: NDArray[np.bool_]) -> list[frozenset[tuple[int, int]]]:
    """Connected parts by flooding, the plain way."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    parts = []
    while left:
        waiting, part = [left.pop()], set()
        while waiting:
            row, column = waiting.pop()
            part.add((row, column))
            for next_to in [(row + down, column + across) for down in (-1, 0, 1) for across in (-1, 0, 1)]:
                if next_to in left:
                    left.remove(next_to)
                    waiting.append(next_to)
        parts.append(frozenset(part))
    return parts


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_parts_are_those_of_flooding(share: float) -> None:
    generator = np.random.default_rng(int(share * 10))
    for height, width in ((1, 9), (9, 1), (17, 23)):
        mask = generator.random((height, width)) < share
        labels, count = label_regions(mask)
        got = {frozenset((int(r), int(c)) for r, c in np.argwhere(labels == n)) for n in range(1, count + 1)}
        assert got == set(flooded(mask))
        assert np.array_equal(labels > 0, mask)


def test_parts_need_a_plane() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3, 4\)"):
        label_regions(np.zeros((2, 3, 4), dtype=np.bool_))


def test_holes() -> None:
    ring = picture("##### #...# #.#.# #...# #####")
    assert fill_enclosed(ring).all()
    assert np.array_equal(fill_small_holes(ring, 8), ring)
    assert fill_small_holes(ring, 9).all()
    open_ring = picture("##.## #...# ##### .....")
    assert np.array_equal(fill_enclosed(open_ring), open_ring)


def test_boxes_and_overlap() -> None:
    mask = picture(".... .##. .#..")
    assert box_of(mask) == (1, 1, 3, 3)
    assert box_of(np.zeros((3, 3), dtype=np.bool_)) is None
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 1, 1), (5, 5, 6, 6)) == 0
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    assert mask_iou(mask, mask) == 1
    assert mask_iou(mask, ~mask) == 0
    assert mask_iou(~(mask | ~mask), ~(mask | ~mask)) == 0


def test_run_lengths_are_those_of_coco() -> None:
    generator = np.random.default_rng(0)
    masks = [generator.random((h, w)) < share for h, w in ((1, 1), (7, 5), (64, 48)) for share in (0, 0.1, 0.6, 1)]
    blob = np.zeros((300, 200), dtype=np.bool_)
    blob[20:250, 30:190] = True
    for mask in [*masks, blob, ~blob]:
        ours, theirs = encode_rle(mask), coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
        assert np.array_equal(decode_rle(ours), mask)
        assert np.array_equal(coco.decode(ours), mask)


def test_plain_run_lengths_and_wrong_ones() -> None:
    assert np.array_equal(decode_rle({"size": [2, 2], "counts": [1, 2, 1]}), picture(".# #."))
    with pytest.raises(DataError, match="run lengths of 3 pixels for a mask of 2 x 2"):
        decode_rle({"size": [2, 2], "counts": [1, 2]})
