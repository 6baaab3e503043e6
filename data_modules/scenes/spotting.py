"""Tags, boxes and masks of the generated scenes, found in the pixels: no model, no annotation.

The backgrounds of the scenes are pale and smooth, and their objects thirteen known shapes. What is not background is
cut into connected parts, and each part gets the name of the shape whose outline fits best. That is enough to run
everything that needs a tagger, a detector and a segmenter, in tests, docs and demos; on other pictures it is useless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from avcap_zoo.backbones.vision.finders import Box, Detection, Detector, Segmenter, Tagger
from avcap_zoo.data_modules.scenes.events import PICTURES
from avcap_zoo.data_modules.scenes.pictures import BACKGROUNDS, draw_icon
from avcap_zoo.ops.regions import Mask, box_iou, box_of, fill_enclosed, label_regions, mask_iou

# How far a background may be from its colour: in all channels alike (gradient and blotches), and between channels.
_SHADE: Final = 56
_TINT: Final = 24
# Of the picture: what is smaller is noise; of the largest part: what is smaller (rain below its cloud) belongs to the
# part next to it.
_SPECK: Final = 0.002
_SATELLITE: Final = 0.15
_LEAST_FIT: Final = 0.5
# Where two objects may touch: the cells of a scene meet in the middle.
_CUTS: Final = tuple(np.linspace(0.44, 0.56, 7))
_ONE_OBJECT: Final = 0.86
_OUTLINE_PX: Final = 48


@dataclass(frozen=True)
class Spot:
    """One object that was seen.

    Attributes:
        name: one of `events.PICTURES`.
        mask: (H, W) bool.
        box: left, top, right, bottom in pixels.
        fit: overlap of its outline with the shape's, 0 to 1.
    """

    name: str
    mask: Mask
    box: tuple[int, int, int, int]
    fit: float


def spot_objects(picture: NDArray[np.uint8]) -> list[Spot]:
    """The objects of a scene's picture, the best fit first.

    Args:
        picture: (3, H, W) uint8.
    """
    spots: list[Spot] = []
    for part in _parts(_foreground(picture)):
        whole = _best_fit(part)
        if whole.fit < _ONE_OBJECT:
            # A low fit may be two objects that touch.
            halves = max(_halves(part), key=lambda pair: min(half.fit for half in pair), default=())
            if halves and min(half.fit for half in halves) > whole.fit:
                spots += halves
                continue
        if whole.fit >= _LEAST_FIT:
            spots.append(whole)
    return sorted(spots, key=lambda spot: -spot.fit)


class SceneTagger(Tagger):
    """The names of the objects that `spot_objects` sees."""

    def tag(self, pictures: Sequence[Tensor]) -> list[list[str]]:
        """Tags of each picture, the best fit first."""
        return [list(dict.fromkeys(spot.name for spot in _seen(picture))) for picture in pictures]


class SceneDetector(Detector):
    """The boxes of the objects that `spot_objects` sees, where their names are asked for."""

    def detect(self, pictures: Sequence[Tensor], tags: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Boxes of each picture, the best fit first."""
        found = []
        for picture, wanted in zip(pictures, tags, strict=True):
            names = {tag.lower() for tag in wanted}
            found.append([Detection(each.name, each.box, each.fit) for each in _seen(picture) if each.name in names])
        return found


class SceneSegmenter(Segmenter):
    """The mask of the object that overlaps most with a box; nothing where none does."""

    def segment(self, pictures: Sequence[Tensor], boxes: Sequence[Sequence[Box]]) -> list[NDArray[np.bool_]]:
        """Masks of each picture."""
        found = []
        for picture, wanted in zip(pictures, boxes, strict=True):
            masks = np.zeros((len(wanted), *picture.shape[1:]), dtype=np.bool_)
            spots = _seen(picture)
            for number, box in enumerate(wanted):
                best = max(spots, key=lambda spot: box_iou(spot.box, box), default=None)
                if best is not None and box_iou(best.box, box) > 0:
                    masks[number] = best.mask
            found.append(masks)
        return found


def _seen(picture: Tensor) -> tuple[Spot, ...]:
    return _seen_bytes(picture.contiguous().numpy().tobytes(), tuple(picture.shape))


@lru_cache(maxsize=32)
def _seen_bytes(content: bytes, shape: tuple[int, ...]) -> tuple[Spot, ...]:
    """Three stages look at one picture: it is searched once."""
    return tuple(spot_objects(np.frombuffer(content, dtype=np.uint8).reshape(shape)))


def _foreground(picture: NDArray[np.uint8]) -> Mask:
    """What no background of the scenes looks like, and what it encloses."""
    pixels = picture.transpose(1, 2, 0).astype(np.float32)
    likeness = []
    for colour in BACKGROUNDS.values():
        difference = pixels - np.array(colour, dtype=np.float32)
        shade = difference.mean(axis=2, keepdims=True)
        tint = np.abs(difference - shade).max(axis=2)
        likeness.append((tint < _TINT) & (np.abs(shade[..., 0]) < _SHADE))
    background = max(likeness, key=lambda mask: int(mask.sum()))
    return fill_enclosed(~background)


def _parts(mask: Mask) -> list[Mask]:
    """Connected parts, small ones joined to the large one next to them."""
    labels, count = label_regions(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    large = [label for label in range(1, count + 1) if areas[label] >= max(_SATELLITE * areas.max(), 1)]
    parts = {label: labels == label for label in large}
    for label in range(1, count + 1):
        if label in parts or areas[label] < _SPECK * mask.size:
            continue
        small = labels == label
        box = box_of(small)
        nearest = min(large, key=lambda other: _gap(box, box_of(labels == other)))
        parts[nearest] = parts[nearest] | small
    return list(parts.values())


def _gap(one: tuple[int, ...] | None, other: tuple[int, ...] | None) -> float:
    if one is None or other is None:
        return float("inf")
    across = max(one[0] - other[2], other[0] - one[2], 0)
    down = max(one[1] - other[3], other[1] - one[3], 0)
    return float(np.hypot(across, down))


def _halves(part: Mask) -> list[tuple[Spot, Spot]]:
    height, width = part.shape
    pairs = []
    for cut in _CUTS:
        row, column = round(cut * height), round(cut * width)
        upper, left = part.copy(), part.copy()
        upper[row:], left[:, column:] = False, False
        for half in (upper, left):
            rest = part & ~half
            if min(half.sum(), rest.sum()) > 0.1 * part.sum():
                pairs.append((_best_fit(half), _best_fit(rest)))
    return pairs


def _best_fit(part: Mask) -> Spot:
    box = box_of(part)
    assert box is not None
    left, top, right, bottom = box
    outline = _scaled(Image.fromarray(part[top:bottom, left:right].astype(np.uint8) * 255))
    slant = np.log((right - left) / (bottom - top))
    fits = {
        (name, mirrored): mask_iou(outline, shape) * float(np.exp(-abs(slant - shape_slant)))
        for (name, mirrored), (shape, shape_slant) in _shapes().items()
    }
    (name, _), fit = max(fits.items(), key=lambda each: each[1])
    return Spot(name, part, box, fit)


@lru_cache(maxsize=1)
def _shapes() -> dict[tuple[str, bool], tuple[Mask, float]]:
    """Outline of every shape in a square of its own, and the logarithm of its width over its height."""
    shapes = {}
    for name in PICTURES:
        for mirrored in (False, True):
            alpha = draw_icon(name, "red", mirrored).getchannel("A")
            box = alpha.getbbox()
            assert box is not None
            filled = fill_enclosed(np.asarray(alpha.crop(box)) > 127)
            slant = float(np.log((box[2] - box[0]) / (box[3] - box[1])))
            shapes[name, mirrored] = (_scaled(Image.fromarray(filled.astype(np.uint8) * 255)), slant)
    return shapes


def _scaled(outline: Image.Image) -> Mask:
    resized = outline.resize((_OUTLINE_PX, _OUTLINE_PX), Image.Resampling.BILINEAR)
    return np.asarray(resized) > 127
