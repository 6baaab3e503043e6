"""Random parts of pictures."""

from __future__ import annotations

import torch

from avcap_zoo.ops.random_crop import random_crops


def ramp(count: int, height: int, width: int) -> torch.Tensor:
    """Pictures whose first channel rises from left to right and whose second from top to bottom."""
    across = torch.linspace(0, 255, width).expand(height, width)
    down = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return torch.stack([across, down, torch.zeros(height, width)]).round().to(torch.uint8).expand(count, -1, -1, -1)


def test_parts_have_the_wanted_area_and_ratio_and_lie_within() -> None:
    torch.manual_seed(0)
    cut = random_crops(ramp(400, 64, 64), 32).float()
    assert cut.shape == (400, 3, 32, 32)
    wide = (cut[:, 0, 16, -1] - cut[:, 0, 16, 0]) / 255 * 32 / 31
    tall = (cut[:, 1, -1, 16] - cut[:, 1, 0, 16]) / 255 * 32 / 31
    area, ratio = wide * tall, wide / tall
    assert 0.47 < area.min() < 0.55
    assert 0.9 < area.max() < 1.04
    assert 0.72 < ratio.min() < 0.85
    assert 1.18 < ratio.max() < 1.37
    assert cut[:, 2].max() == 0
    centre = cut[:, 0, 16, 16] / 255
    assert centre.min() < 0.45
    assert centre.max() > 0.55


def test_the_whole_picture_where_nothing_else_fits() -> None:
    picture = ramp(2, 20, 200)
    cut = random_crops(picture, 20, least_share=1.0)
    assert torch.equal(cut[0], cut[1])
    assert int(cut[0, 0, 0, 0]) < 10
    assert int(cut[0, 0, 0, -1]) > 245


def test_the_draws_are_torchs() -> None:
    torch.manual_seed(1)
    first = random_crops(ramp(3, 40, 30), 16)
    torch.manual_seed(1)
    assert torch.equal(first, random_crops(ramp(3, 40, 30), 16))
    assert not torch.equal(first, random_crops(ramp(3, 40, 30), 16))
