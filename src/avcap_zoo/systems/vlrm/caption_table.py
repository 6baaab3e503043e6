"""A picture for the logger: images, their captions before and now, and the return of each token over the caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_IMAGE = 200
_WIDTH = 760
_MARGIN = 8
_LINE = 22
_FONT = 14
_HIGH, _LOW = (120, 190, 130), (225, 120, 105)


@dataclass
class ShownCaption:
    """One row of the table.

    Attributes:
        image: (H, W, 3) uint8.
        before: an older caption, "" = leave it out.
        pieces: text of each token of the caption now.
        returns: as many numbers.
    """

    image: NDArray[np.uint8]
    before: str
    pieces: Sequence[str]
    returns: Sequence[float]


def draw_captions(rows: Sequence[ShownCaption]) -> NDArray[np.uint8]:
    """Draw the table: green where a token returns much, red where little, on one scale for all rows.

    Args:
        rows: at least one.

    Returns:
        (H, W, 3) uint8.
    """
    from PIL import Image, ImageDraw, ImageFont

    numbers = [value for row in rows for value in row.returns] or [0.0]
    low, high = min(numbers), max(numbers)
    height = _MARGIN + len(rows) * (_IMAGE + _MARGIN) + _LINE
    canvas = Image.new("RGB", (_WIDTH, height), "white")
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_FONT)
    left = _IMAGE + 2 * _MARGIN
    for index, row in enumerate(rows):
        place = _MARGIN + index * (_IMAGE + _MARGIN)
        canvas.paste(Image.fromarray(row.image).resize((_IMAGE, _IMAGE)), (_MARGIN, place))
        top, bottom = float(place), place + _IMAGE - _LINE
        if row.before:
            words = [f"{word} " for word in f"before: {row.before}".split()]
            top = _write(pen, font, words, None, (left, top), top + 2 * _LINE) + _LINE // 2
        colours = [_colour(value, low, high) for value in row.returns]
        _write(pen, font, list(row.pieces), colours, (left, top), bottom)
    pen.text((_MARGIN, height - _LINE), f"return of each token: red {low:.2f}, green {high:.2f}", "black", font)
    return np.asarray(canvas, dtype=np.uint8)


def _write(
    pen: Any,
    font: Any,
    pieces: Sequence[str],
    colours: Sequence[tuple[int, int, int]] | None,
    corner: tuple[float, float],
    bottom: float,
) -> float:
    """Write pieces of text, each on its colour, in lines that begin down to `bottom`; returns where the next begins."""
    x, y = corner
    for index, piece in enumerate(pieces):
        width = pen.textlength(piece, font)
        if x + width > _WIDTH - _MARGIN and x > corner[0]:
            x, y = corner[0], y + _LINE
        if y > bottom:
            return y
        if colours is not None:
            pen.rectangle((x, y, x + width, y + _LINE - 4), fill=colours[index])
        pen.text((x, y), piece, "black", font)
        x += width
    return y + _LINE


def _colour(value: float, low: float, high: float) -> tuple[int, int, int]:
    share = (value - low) / (high - low) if high > low else 1.0
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(_LOW, _HIGH, strict=True))
    return red, green, blue
