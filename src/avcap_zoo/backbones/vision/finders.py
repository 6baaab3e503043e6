"""What finds things in pictures, behind three plain interfaces: tags, boxes of tags, masks in boxes.

A class of one's own that fills one of them can be named in a configuration by its path. Pictures are (3, H, W) uint8
tensors of any size; boxes are left, top, right, bottom in pixels of the picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """One box that was found.

    Attributes:
        phrase: what the detector says it is.
        box: left, top, right, bottom in pixels.
        score: 0 to 1.
    """

    phrase: str
    box: Box
    score: float


class Finder:
    """Base of the three kinds.

    Attributes:
        device: where models run. They are loaded when first used, once.
        identity: settings and files that decide what is found; results are cached under it.
    """

    def __init__(self, **identity: Any) -> None:
        self.device = torch.device("cpu")
        self.identity: dict[str, Any] = {"class": f"{type(self).__module__}.{type(self).__qualname__}", **identity}


class Tagger(Finder, ABC):
    """Says which things a picture shows."""

    @abstractmethod
    def tag(self, pictures: Sequence[Tensor]) -> list[list[str]]:
        """The tags of each picture, without duplicates; a picture may have none."""


class Detector(Finder, ABC):
    """Says where things are."""

    @abstractmethod
    def detect(self, pictures: Sequence[Tensor], tags: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Boxes for the tags of each picture, the best first; a tag may have several or none."""


class Segmenter(Finder, ABC):
    """Says which pixels belong to what is in a box."""

    @abstractmethod
    def segment(self, pictures: Sequence[Tensor], boxes: Sequence[Sequence[Box]]) -> list[NDArray[np.bool_]]:
        """(N, H, W) masks of each picture, one per box; N may be 0."""


def file_identity(path: str | Path | None) -> list[Any] | None:
    """What tells one version of a local file or folder from another: path, bytes and times; a hub id is itself."""
    if path is None:
        return None
    found = Path(path)
    files = sorted(each for each in found.rglob("*") if each.is_file()) if found.is_dir() else [found]
    stats = [file.stat() for file in files if file.exists()]
    return [str(path), *([each.st_size, each.st_mtime_ns] for each in stats)]
