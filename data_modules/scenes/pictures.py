"""The thirteen pictures, drawn with Pillow, and the backgrounds they stand on.

An icon knows nothing of the event it goes with: a dog that barks and a dog that growls look the same, and so does a
dog that is silent. Icons are drawn large once, then scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from avcap_zoo.data_modules.scenes.events import PICTURES
from avcap_zoo.errors import ConfigError

Colour = tuple[int, int, int]

COLOURS: Final = MappingProxyType(
    {
        "red": (214, 40, 40),
        "orange": (240, 130, 20),
        "yellow": (240, 205, 30),
        "green": (36, 150, 60),
        "blue": (40, 90, 215),
        "purple": (140, 60, 185),
        "brown": (125, 75, 35),
        "black": (60, 60, 66),
    }
)
"""Body colours of the objects, by the word used in captions."""

BACKGROUNDS: Final = MappingProxyType(
    {"grey": (206, 206, 206), "blue": (178, 208, 240), "green": (186, 226, 190), "pink": (244, 200, 212)}
)
"""Pale background colours, by the word used in captions ("a pale blue background")."""

_UNITS: Final = 32  # every icon is drawn on a square of 32 x 32 units ...
_SCALE: Final = 6  # ... at six pixels a unit
_INK: Final[Colour] = (28, 28, 32)
_WHITE: Final[Colour] = (250, 250, 250)


@lru_cache(maxsize=256)
def draw_icon(picture: str, colour: str, mirrored: bool = False) -> Image.Image:
    """One object at full size.

    Args:
        picture: one of `events.PICTURES`.
        colour: one of `COLOURS`.
        mirrored: whether left and right are exchanged.

    Returns:
        192 x 192 RGBA picture, transparent around the object. It is cached: copy it before drawing on it.

    Raises:
        ConfigError: unknown picture or colour.
    """
    if picture not in _DRAWERS:
        raise ConfigError(f"there is no picture {picture!r}; the pictures are {', '.join(PICTURES)}")
    if colour not in COLOURS:
        raise ConfigError(f"there is no colour {colour!r}; the colours are {', '.join(COLOURS)}")
    image = Image.new("RGBA", (_UNITS * _SCALE, _UNITS * _SCALE), (0, 0, 0, 0))
    _DRAWERS[picture](_Pen(image), COLOURS[colour])
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image


@lru_cache(maxsize=4096)
def icon_pixels(
    picture: str, colour: str, mirrored: bool, side_px: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One object scaled to `side_px`: colours times opacity (side, side, 3) in 0..255, and opacity (side, side, 1)."""
    small = draw_icon(picture, colour, mirrored).resize((side_px, side_px), Image.Resampling.BOX, reducing_gap=None)
    pixels = np.asarray(small, dtype=np.float32)
    opacity = pixels[..., 3:] / np.float32(255)
    return pixels[..., :3] * opacity, opacity


@lru_cache(maxsize=64)
def icon_extent(picture: str, mirrored: bool = False) -> tuple[float, float, float, float]:
    """The tight box of an object within its icon square: left, top, right, bottom as fractions of the side."""
    box = draw_icon(picture, "red", mirrored).getbbox()
    assert box is not None
    side = _UNITS * _SCALE
    return box[0] / side, box[1] / side, box[2] / side, box[3] / side


def draw_background(colour: str, size_px: int, seed: tuple[int, ...]) -> NDArray[np.float32]:
    """A pale gradient with soft blotches.

    Args:
        colour: one of `BACKGROUNDS`.
        size_px: side of the square picture.
        seed: non-negative integers; the same seed gives the same picture, and nearly the same at another size.

    Returns:
        (size_px, size_px, 3) float32 in 0..255.

    Raises:
        ConfigError: unknown colour.
    """
    if colour not in BACKGROUNDS:
        raise ConfigError(f"there is no background {colour!r}; the backgrounds are {', '.join(BACKGROUNDS)}")
    generator = np.random.default_rng(seed)
    angle = generator.uniform(0, 2 * np.pi)
    blotches = generator.normal(0, 9, (8, 8)).astype(np.float32)
    along = np.linspace(-1, 1, size_px, dtype=np.float32)
    gradient = np.float32(np.cos(angle)) * along[None, :] + np.float32(np.sin(angle)) * along[:, None]
    soft = Image.fromarray(blotches).resize((size_px, size_px), Image.Resampling.BICUBIC)
    shade = 16 * gradient + np.asarray(soft, dtype=np.float32)
    base = np.array(BACKGROUNDS[colour], dtype=np.float32)
    pixels: NDArray[np.float32] = np.clip(base + shade[..., None], 0, 255)
    return pixels


class _Pen:
    """Pillow drawing in icon units, with a dark line around every body."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)

    @staticmethod
    def _px(values: tuple[float, ...]) -> list[float]:
        return [value * _SCALE for value in values]

    def oval(self, box: tuple[float, float, float, float], fill: Colour, line: float = 1.3) -> None:
        self._draw.ellipse(self._px(box), fill=fill, outline=_INK if line else None, width=round(line * _SCALE))

    def box(self, box: tuple[float, float, float, float], fill: Colour, line: float = 1.3, radius: float = 1.0) -> None:
        self._draw.rounded_rectangle(
            self._px(box), radius=radius * _SCALE, fill=fill, outline=_INK if line else None, width=round(line * _SCALE)
        )

    def shape(self, points: list[tuple[float, float]], fill: Colour, line: float = 1.3) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.polygon(scaled, fill=fill)
        if line:
            self._draw.line([*scaled, scaled[0], scaled[1]], fill=_INK, width=round(line * _SCALE), joint="curve")

    def stroke(self, points: list[tuple[float, float]], fill: Colour, width: float) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=fill, width=round(width * _SCALE), joint="curve")

    def arc(self, box: tuple[float, float, float, float], start: float, end: float, fill: Colour, width: float) -> None:
        self._draw.arc(self._px(box), start, end, fill=fill, width=round(width * _SCALE))


def _shade(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or paler (factor > 1) relative of a colour."""
    if factor <= 1:
        return (round(colour[0] * factor), round(colour[1] * factor), round(colour[2] * factor))
    part = factor - 1
    red, green, blue = (round(value + (255 - value) * part) for value in colour)
    return red, green, blue


def _cloud(pen: _Pen, colour: Colour) -> None:
    # The puffs are drawn twice, large in ink and small in colour, so that the line runs around all of them.
    puffs = [(1, 8, 14, 19), (7, 1, 22, 17), (17, 5, 31, 19), (5, 10, 27, 20)]
    for left, top, right, bottom in puffs:
        pen.oval((left, top, right, bottom), _INK, line=0)
    for left, top, right, bottom in puffs:
        pen.oval((left + 1.3, top + 1.3, right - 1.3, bottom - 1.3), colour, line=0)
    for x in (7.5, 15.5, 23.5):
        pen.stroke([(x + 2, 21), (x - 1.5, 30.5)], _INK, 2.6)


def _pan(pen: _Pen, colour: Colour) -> None:
    pen.shape([(18, 17.5), (29, 27), (31, 24.5), (21, 14.5)], _INK)
    pen.oval((1, 3, 23, 25), colour)
    pen.oval((4.5, 6.5, 19.5, 21.5), _shade(colour, 0.55), line=0)
    pen.oval((7, 8.5, 17.5, 19), _WHITE, line=0)
    pen.oval((10, 11.5, 14.8, 16.3), (250, 190, 20), line=0)


def _hammer(pen: _Pen, colour: Colour) -> None:
    pen.box((13.5, 10, 18.5, 31), (190, 140, 85))
    pen.shape([(4, 4), (22, 2), (30, 8), (23, 9.5), (22, 13), (4, 13)], colour)


def _shoe(pen: _Pen, colour: Colour) -> None:
    pen.shape([(3, 7), (13, 7), (15, 13), (27, 18.5), (30, 23), (3, 23)], colour)
    pen.box((2.5, 22, 30.5, 26.5), _WHITE, radius=1.5)
    for x, y in ((14.5, 14), (18, 15.8), (21.5, 17.4)):
        pen.stroke([(x, y), (x - 2.5, y + 3)], _WHITE, 1.5)


def _phone(pen: _Pen, colour: Colour) -> None:
    pen.box((8.5, 1, 23.5, 31), colour, radius=3)
    pen.box((11, 5, 21, 23.5), (205, 240, 255), line=0, radius=0.5)
    pen.oval((14, 25, 18, 29), _WHITE, line=0)


def _microwave(pen: _Pen, colour: Colour) -> None:
    pen.box((1, 6, 31, 26), colour, radius=1.5)
    pen.box((4, 9.5, 20.5, 22.5), _INK, line=0)
    pen.box((6, 11.5, 18.5, 20.5), (255, 225, 130), line=0, radius=0.5)
    pen.box((23, 9, 28.5, 12), (90, 255, 120), line=0, radius=0.3)
    for y in (14.5, 18.5):
        for x in (23, 26.2):
            pen.box((x, y, x + 2.4, y + 2.4), _WHITE, line=0, radius=0.3)
    pen.box((4, 25.5, 8, 28), _INK, line=0, radius=0.3)
    pen.box((24, 25.5, 28, 28), _INK, line=0, radius=0.3)


def _wheel(pen: _Pen, x: float, y: float, radius: float) -> None:
    pen.oval((x - radius, y - radius, x + radius, y + radius), _INK, line=0)
    pen.oval((x - radius * 0.42, y - radius * 0.42, x + radius * 0.42, y + radius * 0.42), _WHITE, line=0)


def _car(pen: _Pen, colour: Colour) -> None:
    pen.shape([(7, 14.5), (11, 7), (21, 7), (26, 14.5)], colour)
    pen.shape([(10, 14), (12.4, 9.4), (15.4, 9.4), (15.4, 14)], (205, 240, 255), line=0)
    pen.shape([(17, 14), (17, 9.4), (20, 9.4), (23, 14)], (205, 240, 255), line=0)
    pen.box((1, 13.5, 31, 22.5), colour, radius=3)
    pen.oval((27, 15.5, 30, 18.5), (255, 240, 140), line=0)
    _wheel(pen, 8.5, 22.5, 4)
    _wheel(pen, 23.5, 22.5, 4)


def _truck(pen: _Pen, colour: Colour) -> None:
    pen.box((1, 3, 20, 24), colour, radius=0.5)
    pen.box((3.3, 9, 17.7, 13), _WHITE, line=0, radius=0.3)
    pen.shape([(20, 9), (27, 9), (31, 16), (31, 24), (20, 24)], colour)
    pen.shape([(22, 11), (26, 11), (28.7, 16), (22, 16)], (205, 240, 255), line=0)
    _wheel(pen, 7, 25, 4)
    _wheel(pen, 25, 25, 4)


def _dog(pen: _Pen, colour: Colour) -> None:
    # Standing, seen from the side: tail, four legs, body, head with a long snout and a hanging ear.
    pen.stroke([(4.5, 16), (1.8, 8)], _INK, 3.6)
    for x in (5, 9.5, 16.5, 21):
        pen.box((x, 19, x + 3.6, 30.5), colour, radius=0.8)
    pen.box((3.5, 13.5, 24, 23), colour, radius=3.5)
    pen.box((19, 4.5, 28, 16), colour, radius=3)
    pen.box((24, 9.5, 31.5, 15), colour, radius=1.5)
    pen.box((5, 15, 22.5, 21.3), colour, line=0, radius=2.5)
    pen.box((21, 10.8, 27.5, 13.7), colour, line=0, radius=1)
    pen.oval((29, 9, 32, 12), _INK, line=0)
    pen.oval((24, 7, 26.4, 9.4), _INK, line=0)
    pen.box((17.5, 4.5, 21.5, 14), _shade(colour, 0.55), radius=2)


def _bird(pen: _Pen, colour: Colour) -> None:
    pen.shape([(9, 17), (1, 11), (1.5, 20)], _shade(colour, 0.6))
    pen.stroke([(14, 24), (13, 30.5)], _INK, 1.6)
    pen.stroke([(18, 24), (19, 30.5)], _INK, 1.6)
    pen.oval((6, 10, 25, 26), colour)
    pen.oval((16, 2.5, 28, 14.5), colour)
    pen.oval((17.5, 9, 24, 15.5), colour, line=0)
    pen.shape([(27, 6.5), (32, 9), (27, 11)], (250, 160, 20), line=0.8)
    pen.oval((21.5, 5.5, 25, 9), _WHITE, line=0)
    pen.oval((22.8, 6.4, 24.7, 8.3), _INK, line=0)
    pen.oval((9, 14.5, 19, 21.5), _shade(colour, 0.6), line=0)


def _bell(pen: _Pen, colour: Colour) -> None:
    pen.oval((12.5, 24, 19.5, 31), _INK, line=0)
    pen.oval((13, 1, 19, 7), _INK, line=0)
    pen.shape(
        [(16, 4), (20.5, 6), (23, 11), (24, 18), (26, 22), (30, 26), (2, 26), (6, 22), (8, 18), (9, 11), (11.5, 6)],
        colour,
    )
    pen.stroke([(7, 21.5), (25, 21.5)], _INK, 1.3)
    pen.stroke([(12.5, 10), (11.5, 18)], _shade(colour, 1.6), 2.0)


def _tree(pen: _Pen, colour: Colour) -> None:
    # Bent to one side, as in a strong wind.
    pen.shape([(11, 31), (14.5, 17), (18.5, 17), (17, 31)], (120, 78, 45))
    leaves = [(6, 9, 19, 22), (9, 1, 23, 15), (17, 5, 30, 18), (14, 10, 26, 21)]
    for left, top, right, bottom in leaves:
        pen.oval((left, top, right, bottom), _INK, line=0)
    for left, top, right, bottom in leaves:
        pen.oval((left + 1.3, top + 1.3, right - 1.3, bottom - 1.3), colour, line=0)
    for y in (7, 12, 17):
        pen.stroke([(11, y), (20, y - 2)], _shade(colour, 0.6), 1.5)


def _crowd(pen: _Pen, colour: Colour) -> None:
    skin = (255, 220, 180)
    for x, top in ((4.5, 3.5), (19.5, 3.5), (12, 9.5)):
        pen.box((x - 3.5, top + 8, x + 11.5, 31), colour if top > 5 else _shade(colour, 0.65), radius=4)
        pen.oval((x, top, x + 8, top + 8.8), skin)


_DRAWERS: Final[dict[str, Callable[[_Pen, Colour], None]]] = {
    "cloud": _cloud,
    "pan": _pan,
    "hammer": _hammer,
    "shoe": _shoe,
    "phone": _phone,
    "microwave": _microwave,
    "car": _car,
    "truck": _truck,
    "dog": _dog,
    "bird": _bird,
    "bell": _bell,
    "tree": _tree,
    "crowd": _crowd,
}
