"""Masks over token sequences. True = real, everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avcap_zoo.errors import ShapeError


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Mask of the first `lengths[b]` of `max_length` positions.

    Args:
        lengths: (B,) integer.
        max_length: number of columns L.

    Returns:
        (B, L) bool.
    """
    return torch.arange(max_length, device=lengths.device)[None, :] < lengths[:, None]


def check_token_mask(mask: Tensor | None, shape: tuple[int, int], name: str) -> None:
    """Check that an optional mask is bool and fits (B, N) tokens.

    Raises:
        ShapeError: wrong shape or not bool. Both shapes are in the message.
    """
    if mask is None:
        return
    if tuple(mask.shape) != shape or mask.dtype != torch.bool:
        raise ShapeError(f"{name} is {tuple(mask.shape)} {mask.dtype}, wanted {shape} torch.bool")


def left_align(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Move the real positions of every row to the front, in order; masked ones go to the end.

    Args:
        mask: (B, L) bool.
        tensors: any number of (B, L) or (B, L, C) tensors, permuted alike.

    Returns:
        The aligned mask, then the aligned tensors.
    """
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
    aligned = [mask.gather(1, order)]
    for tensor in tensors:
        index = order if tensor.ndim == 2 else order[..., None].expand(-1, -1, tensor.shape[-1])
        aligned.append(tensor.gather(1, index))
    return tuple(aligned)


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """The smallest of ascending `buckets` that holds `length`; beyond the last, a multiple of it."""
    largest = buckets[-1]
    return next((bucket for bucket in buckets if bucket >= length), -(-length // largest) * largest)
