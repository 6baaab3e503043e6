"""A loss that only asks for gradients."""

from __future__ import annotations

import torch
from torch import nn

from avcap_zoo.ops.zero_loss import zero_loss


def test_every_parameter_gets_a_gradient_of_nothing() -> None:
    layer = nn.Linear(2, 3).to(torch.bfloat16)
    loss = zero_loss(layer.parameters())
    loss.backward()
    assert (loss.shape, loss.item()) == ((), 0.0)
    assert [p.grad.abs().sum().item() for p in layer.parameters() if p.grad is not None] == [0.0, 0.0]
    assert zero_loss([]).item() == 0.0
