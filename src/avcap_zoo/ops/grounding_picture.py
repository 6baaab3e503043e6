"""A picture with coloured masks and boxes, and below it the text with the words in the colours of what they name.

Colours, widths and the blend are those of BuboGPT's demo (arXiv 2307.08581, released code).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avcap_zoo.errors import ConfigError

COLOURS = ("red", "pink", "orange", "yellow", "blue", "teal", "indigo", "green", "purple", "deep_purple", "brown")
"""In the order in which entities get them; after the last comes the first again."""

DARK = {
    "red": (220, 38, 38),
    "pink": (236, 64, 122),
    "orange": (234, 88, 12),
    "yellow": (234, 179, 8),
    "blue": (37, 99, 235),
    "teal": (38, 166, 154),
    "indigo": (92, 107, 192),
    "green": (22, 163, 74),
    "purple": (171, 71, 188),
    "deep_purple": (126, 87, 194),
    "brown": (141, 110, 99),
    "grey": (189, 189, 189),
}
"""Of outlines, labels and words. Grey is never given to an entity."""

LIGHT = {
    "red": (254, 226, 226),
    "pink": (248, 187, 208),
    "orange": (255, 237, 213),
    "yellow": (254, 249, 195),
    "blue": (219, 234, 254),
    "teal": (128, 203, 196),
    "indigo": (159, 168, 218),
    "green": (220, 252, 231),
    "purple": (206, 147, 216),
    "deep_purple": (179, 157, 219),
    "brown": (188, 170, 164),
    "grey": (238, 238, 238),
}
"""Of masks."""

_LEAST_WIDTH = 480
_MARGIN, _TEXT_PX, _LINE_PX = 14, 20, 30
_PAGE, _INK = (255, 255, 255), (29, 31, 36)


@dataclass(frozen=True)
class ColouredEntity:
    """One entity with everything that was found of it.

    Attributes:
        name: written at its boxes.
        colour: one of `COLOURS`.
        boxes: left, top, right, bottom in pixels.
        masks: (N, H, W) bool.
    """

    name: str
    colour: str
    boxes: Sequence[Sequence[float]]
    masks: NDArray[np.bool_]


@dataclass(frozen=True)
class ColouredText:
    """A text in pieces.

    Attributes:
        pieces: (piece, colour, or None for what names nothing); joined they are the text.
    """

    pieces: Sequence[tuple[str, str | None]] = field(default_factory=tuple)


def draw_grounding(picture: NDArray[np.uint8], entities: Sequence[ColouredEntity], text: ColouredText) -> Any:
    """Draw masks, boxes, labels and the highlighted text.

    Masks are blended half and half with their light colour. Outlines are a tenth of a 512th of the shorter side wide
    and labels three times that, as published. A small picture is enlarged by a whole number until its text can be read.

    Args:
        picture: (H, W, 3) uint8.
        entities: what to draw, in this order.
        text: below the picture; nothing is added for a text without pieces.

    Returns:
        A PIL picture, RGB.

    Raises:
        ConfigError: a colour that does not exist.
    """
    if unknown := {entity.colour for entity in entities} - DARK.keys():
        raise ConfigError(f"no colour {', '.join(sorted(unknown))}, wanted one of {', '.join(DARK)}")
    blended = picture.astype(np.float32)
    for entity in entities:
        for mask in entity.masks:
            blended[mask] = 0.5 * picture[mask] + 0.5 * np.array(LIGHT[entity.colour], dtype=np.float32)
    scale = max(1, -(-_LEAST_WIDTH // picture.shape[1]))
    image = Image.fromarray((blended + 0.5).astype(np.uint8))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    shorter = min(image.size)
    width, font = max(1, int(shorter / 512 * 10)), ImageFont.load_default(max(11, int(shorter / 512 * 30)))
    for entity in entities:
        for box in entity.boxes:
            corners = [scale * float(value) for value in box]
            draw.rectangle(corners, outline=DARK[entity.colour], width=width)
    for entity in entities:  # over all outlines
        for box in entity.boxes:
            _label(draw, image, entity, scale * float(box[0]), scale * float(box[1]), font)
    return _with_text(image, text.pieces)


def _label(
    draw: ImageDraw.ImageDraw, image: Image.Image, entity: ColouredEntity, left: float, top: float, font: Any
) -> None:
    _, _, wide, below = draw.textbbox((0, 0), entity.name, font=font)
    left, top = max(0.0, min(left, image.width - wide - 6)), max(0.0, min(top, image.height - below - 4))
    draw.rectangle([left, top, left + wide + 6, top + below + 4], fill=DARK[entity.colour])
    draw.text((left + 3, top + 2), entity.name, font=font, fill=(255, 255, 255))


def _with_text(image: Image.Image, pieces: Sequence[tuple[str, str | None]]) -> Image.Image:
    words = _words(pieces)
    if not words:
        return image
    font = ImageFont.load_default(_TEXT_PX)
    page = Image.new("RGB", (image.width, image.height + 2 * _MARGIN + _LINE_PX * (len(words) + 1)), _PAGE)
    page.paste(image)
    draw = ImageDraw.Draw(page)
    x, y = float(_MARGIN), image.height + _MARGIN
    for word, colour in words:
        wide = font.getlength(word)
        if x > _MARGIN and x + wide.__ceil__() > image.width - _MARGIN and word.strip():
            x, y = float(_MARGIN), y + _LINE_PX
        if colour is not None:
            draw.rectangle([x, y, x + wide, y + _LINE_PX - 4], fill=DARK[colour])
        draw.text((x, y + 2), word, font=font, fill=_INK if colour is None else (255, 255, 255))
        x += wide
    return page.crop((0, 0, page.width, y + _LINE_PX + _MARGIN))


def _words(pieces: Sequence[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Words and the spaces between them, each with its colour; a line break is a space."""
    words: list[tuple[str, str | None]] = []
    for piece, colour in pieces:
        for position, word in enumerate(" ".join(piece.splitlines()).split(" ")):
            if position:
                words.append((" ", colour))
            if word:
                words.append((word, colour))
    return words
