"""Regions of a picture: connected parts, holes, boxes, overlap, and masks as COCO's run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.errors import DataError, ShapeError

Mask = NDArray[np.bool_]


def label_regions(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """Number the connected parts of a mask; pixels that touch by a corner are connected.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) int32, 0 outside the mask, 1 to the number of parts within, numbered from the top; and that number.

    Raises:
        ShapeError: not 2-D.
    """
    if mask.ndim != 2:
        raise ShapeError(f"mask is {mask.shape}, wanted (height, width)")
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parents = list(range(len(rows)))
    first_of_row = np.searchsorted(rows, np.arange(mask.shape[0] + 1)).tolist()
    first, last = starts.tolist(), ends.tolist()
    for row in range(1, mask.shape[0]):
        above, below = first_of_row[row - 1], first_of_row[row]
        end_above, end_below = below, first_of_row[row + 1]
        while above < end_above and below < end_below:
            if first[below] <= last[above] and first[above] <= last[below]:
                one, other = _root(parents, above), _root(parents, below)
                parents[max(one, other)] = min(one, other)
            if last[above] < last[below]:
                above += 1
            else:
                below += 1
    labels = np.zeros(mask.shape, dtype=np.int32)
    numbers: dict[int, int] = {}
    for run, row in enumerate(rows.tolist()):
        number = numbers.setdefault(_root(parents, run), len(numbers) + 1)
        labels[row, first[run] : last[run]] = number
    return labels, len(numbers)


def fill_small_holes(mask: Mask, area_px: int) -> Mask:
    """Add to a mask the connected parts outside it that are smaller than `area_px`; those at the edge count too.

    Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643), post-processing of masks.
    """
    labels, _ = label_regions(~mask)
    areas = np.bincount(labels.ravel())
    small = areas < area_px
    small[0] = False
    return mask | small[labels]


def fill_enclosed(mask: Mask) -> Mask:
    """Add to a mask everything that it encloses."""
    labels, count = label_regions(~mask)
    open_parts = np.zeros(count + 1, dtype=np.bool_)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        open_parts[edge] = True
    open_parts[0] = False
    return ~open_parts[labels]


def box_of(mask: Mask) -> tuple[int, int, int, int] | None:
    """The tight box around a mask: left, top, right, bottom in pixels, the last two exclusive; None if it is empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Shared area of two boxes (left, top, right, bottom) over the area of both together; 0 for empty boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared) if areas > shared else 0.0


def mask_iou(one: Mask, other: Mask) -> float:
    """Shared pixels of two masks of one size over those of either; 0 for two empty masks."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 0.0


def encode_rle(mask: Mask) -> dict[str, Any]:
    """A mask as COCO's compressed run lengths, as `pycocotools.mask` reads and writes them.

    Args:
        mask: (H, W) bool.

    Returns:
        {"size": [H, W], "counts": text}: lengths of runs of False and True in turn, down the columns, from False on.
    """
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = [0, *changes.tolist(), pixels.size]
    counts = [end - start for start, end in pairwise(bounds)]
    if pixels.size and pixels[0]:
        counts.insert(0, 0)
    return {"size": [int(side) for side in mask.shape], "counts": _pack(counts)}


def decode_rle(encoded: dict[str, Any]) -> Mask:
    """The mask behind COCO's run lengths, compressed (text) or not (a list of numbers).

    Returns:
        (H, W) bool.

    Raises:
        DataError: the runs do not fill the picture.
    """
    height, width = encoded["size"]
    counts = encoded["counts"]
    counts = _unpack(counts) if isinstance(counts, str) else list(counts)
    if sum(counts) != height * width or min(counts, default=0) < 0:
        raise DataError(f"run lengths of {sum(counts)} pixels for a mask of {height} x {width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(height, width, order="F")


# COCO's text: every number, from the fourth on less the one two before it, in groups of five bits, lowest first, in the
# characters from "0" on; bit 5 says that another group follows, bit 4 of the last group is the sign.


def _pack(counts: Sequence[int]) -> str:
    characters = []
    for position, count in enumerate(counts):
        value = count - counts[position - 2] if position > 2 else count
        more = True
        while more:
            group = value & 31
            value >>= 5
            more = value != (-1 if group & 16 else 0)
            characters.append(chr(48 + (group | (32 if more else 0))))
    return "".join(characters)


def _unpack(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts


def _root(parents: list[int], member: int) -> int:
    while parents[member] != member:
        parents[member] = parents[parents[member]]
        member = parents[member]
    return member
