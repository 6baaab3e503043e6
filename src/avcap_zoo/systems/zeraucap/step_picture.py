"""A picture of guided decoding: a column per step, its best candidates with their scores as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_COLUMNS, _COLUMN_PX, _ROW_PX, _MARGIN = 8, 116, 30, 14
_HEAD_PX, _TEXT_PX, _SMALL_PX = 22, 14, 11
_PAGE, _INK, _MUTED, _BAR, _TAKEN = (255, 255, 255), (29, 31, 36), (102, 106, 115), (214, 222, 222), (128, 203, 196)


@dataclass(frozen=True)
class ShownCandidate:
    """One bar.

    Attributes:
        token: its text.
        score: what the candidates of a step were ranked by.
        chosen: whether it was taken.
    """

    token: str
    score: float
    chosen: bool


def draw_steps(caption: str, heading: str, steps: Sequence[Sequence[ShownCandidate]]) -> NDArray[np.uint8]:
    """Draw the steps, eight beside each other; bars are on the scale of their own step.

    Args:
        caption: above everything.
        heading: below it, such as the keywords; "" = none.
        steps: candidates of each step, best first.

    Returns:
        (H, W, 3) uint8.
    """
    deepest = max((len(step) for step in steps), default=0)
    band_px = _HEAD_PX + deepest * _ROW_PX + _MARGIN
    bands = -(-len(steps) // _COLUMNS)
    top = 2 * _MARGIN + 2 * _HEAD_PX
    width = 2 * _MARGIN + _COLUMNS * _COLUMN_PX
    page = Image.new("RGB", (width, top + bands * band_px), _PAGE)
    pen = ImageDraw.Draw(page)
    large, small = ImageFont.load_default(_TEXT_PX + 3), ImageFont.load_default(_SMALL_PX)
    pen.text((_MARGIN, _MARGIN), _fitting(pen, caption, large, width - 2 * _MARGIN), _INK, large)
    pen.text((_MARGIN, _MARGIN + _HEAD_PX), _fitting(pen, heading, small, width - 2 * _MARGIN), _MUTED, small)
    for number, step in enumerate(steps):
        band, column = divmod(number, _COLUMNS)
        _draw_column(pen, (_MARGIN + column * _COLUMN_PX, top + band * band_px), number + 1, step)
    return np.asarray(page, dtype=np.uint8)


def _draw_column(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], number: int, step: Sequence[ShownCandidate]
) -> None:
    font, small = ImageFont.load_default(_TEXT_PX), ImageFont.load_default(_SMALL_PX)
    left, top = corner
    longest = _COLUMN_PX - 10
    low, high = min(c.score for c in step), max(c.score for c in step)
    pen.text((left, top), f"step {number}", _MUTED, small)
    for place, candidate in enumerate(step):
        y = top + _HEAD_PX + place * _ROW_PX
        share = (candidate.score - low) / (high - low) if high > low else 1.0
        end = left + max(3, round(longest * (0.1 + 0.9 * share)))
        pen.rectangle((left, y, end, y + _ROW_PX - 6), fill=_TAKEN if candidate.chosen else _BAR)
        score = f"{candidate.score:.2f}"
        room = longest - pen.textlength(score, small) - 10
        pen.text((left + 4, y + 3), _fitting(pen, candidate.token, font, room), _INK, font)
        pen.text((left + longest - pen.textlength(score, small) - 2, y + 6), score, _MUTED, small)


def _fitting(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, px: float) -> str:
    """The text, or as much of its beginning as there is room for."""
    if pen.textlength(text, font) <= px:
        return text
    while text and pen.textlength(f"{text}...", font) > px:
        text = text[:-1]
    return f"{text}..."
