"""Random parts of pictures, scaled to one size in a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_DRAWS = 10


def random_crops(
    images: Tensor, size_px: int, *, least_share: float = 0.5, ratios: tuple[float, float] = (3 / 4, 4 / 3)
) -> Tensor:
    """Cut a part out of each picture and scale it to a square.

    Args:
        images: (N, 3, H, W) uint8.
        size_px: side of the result.
        least_share: of the area, from which to the whole the part's area is uniform.
        ratios: least and greatest width / height of a part, log-uniform. A part that does not fit after ten draws is
            the whole picture.

    Returns:
        (N, 3, size_px, size_px) uint8. Bicubic without smoothing: pictures should not be much larger than the result.

    Source: torchvision's RandomResizedCrop, with which MiniGPT-4 and BuboGPT train.
    """
    count, _, height, width = images.shape
    area = least_share + (1 - least_share) * torch.rand(count, _DRAWS)
    low, high = (torch.tensor(ratio).log() for ratio in ratios)
    ratio = (low + (high - low) * torch.rand(count, _DRAWS)).exp()
    shares = torch.stack([(area * ratio * height / width).sqrt(), (area / ratio * width / height).sqrt()], dim=-1)
    fits = (shares <= 1).all(dim=-1)
    first = fits.to(torch.uint8).argmax(dim=1)
    chosen = torch.where(fits.any(dim=1)[:, None], shares[torch.arange(count), first], 1.0)  # (N, 2): width, height
    centre = (2 * torch.rand(count, 2) - 1) * (1 - chosen)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = chosen[:, 0], chosen[:, 1], centre
    grid = F.affine_grid(theta, [count, 3, size_px, size_px], align_corners=False).to(images.device)
    cut = F.grid_sample(images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False)
    return cut.round().clamp(0, 255).to(torch.uint8)
