"""A loss of nothing, for parameters that a batch does not need."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def zero_loss(parameters: Iterable[nn.Parameter]) -> Tensor:
    """0, with a gradient of 0 for each parameter: of one without any, other processes of a run would wait for it.

    Args:
        parameters: of any shapes.

    Returns:
        ().
    """
    return sum((0 * parameter.sum() for parameter in parameters), torch.zeros(()))
