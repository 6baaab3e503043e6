"""Resizing in batches against Pillow and torchvision, picture by picture."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.picture_resize import ResizeKernel, crop_pictures, resize_pictures

KERNELS: dict[ResizeKernel, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13


def noise(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    pictures = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    pictures[0] = (pictures[0] > 127) * 255  # overshoots in every kernel with negative weights
    return pictures


def pillow(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((40, 60), (20, 13)),
        ((40, 60), (71, 13)),
        ((40, 60), (41, 99)),
        ((33, 5), (33, 17)),
        ((33, 5), (7, 5)),
        ((1, 1), (3, 2)),
        ((50, 50), (50, 50)),
        pytest.param((90, 50), (28, 28), marks=pytest.mark.skipif(OLD_PILLOW, reason="rows first before Pillow 13")),
        pytest.param((60, 30), (20, 70), marks=pytest.mark.skipif(OLD_PILLOW, reason="rows first before Pillow 13")),
        pytest.param((100, 70), (60, 50), id="twice as many rows as columns go: rows first"),
    ],
)
def test_equal_to_pillow(kernel: ResizeKernel, size: tuple[int, int], wanted: tuple[int, int]) -> None:
    pictures = noise(2, *size)
    resized = resize_pictures(pictures, wanted, kernel)
    for picture, got in zip(pictures, resized, strict=True):
        expected = np.asarray(pillow(picture).resize(wanted[::-1], KERNELS[kernel]))
        assert np.array_equal(got.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (30, 97), (28, 28), (20, 9)])
def test_crop_equals_torchvision(size: tuple[int, int]) -> None:
    library: Any = import_module("torchvision.transforms")
    resize = library.Resize(28, library.InterpolationMode.BICUBIC)
    transform = library.Compose([resize, library.CenterCrop(28), library.PILToTensor()])
    pictures = noise(2, *size)
    want = torch.stack([transform(pillow(picture)) for picture in pictures])
    assert torch.equal(crop_pictures(pictures, 28), want)


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4).byte(), torch.zeros(1, 3, 0, 4).byte()], ids=str
)
def test_what_is_no_picture_is_refused(images: Tensor) -> None:
    message = r"wanted \(pictures, 3, height, width\) torch.uint8"
    with pytest.raises(ShapeError, match=message):
        resize_pictures(images, (2, 2))
    with pytest.raises(ShapeError, match=message):
        crop_pictures(images, 2)
