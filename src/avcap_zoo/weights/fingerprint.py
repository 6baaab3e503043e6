"""Fingerprints of frozen weights: which base a small checkpoint belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

_SAMPLES = 1024


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of names, shapes and values of a set of tensors.

    Of every tensor at most 1,024 evenly spaced values are read, so a 7B model takes seconds; a change of one value
    elsewhere is not seen, another checkpoint is. The dtype does not count: values are compared in bfloat16, so that
    one base loaded in float32 and in bfloat16 is one base.

    Args:
        tensors: name to tensor on any device, not on "meta".

    Returns:
        16 hexadecimal digits; "none" for no tensors.
    """
    if not tensors:
        return "none"
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = whole(tensors[name]).detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        sample = flat[::step][:_SAMPLES].to("cpu", torch.bfloat16)
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def whole(tensor: Tensor) -> Tensor:
    """The tensor, of which this process may hold only a part; then all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
