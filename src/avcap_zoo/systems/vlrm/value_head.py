"""The value head: a wide perceptron on the language model's last hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["gelu", "relu", "silu"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
_LAST_LAYER_STD = 1e-3


@dataclass
class ValueHeadSettings:
    """Shape of the value head.

    The paper gives its size only, 275 M parameters; two hidden layers of six times the width of OPT-2.7B have
    275,297,281. A single linear layer (no hidden sizes) is what the paper found to collapse.

    Args:
        hidden_sizes: widths of the hidden layers; None = `depth` layers of `hidden_mult` times the input width.
        hidden_mult: see `hidden_sizes`.
        depth: see `hidden_sizes`.
        activation: between the layers.
    """

    hidden_sizes: tuple[int, ...] | None = None
    hidden_mult: int = 6
    depth: int = 2
    activation: Activation = "gelu"


class ValueHead(nn.Module):
    """Expected return of what follows a hidden state. Parameters are float32; the last layer starts near 0.

    Args:
        width: of the hidden states.
        settings: see `ValueHeadSettings`.

    Source: VLRM (arXiv 2404.01911), section 3.3 and Figure 2 (size); the shape is our choice.
    """

    def __init__(self, width: int, settings: ValueHeadSettings) -> None:
        super().__init__()
        hidden = settings.hidden_sizes
        if hidden is None:
            hidden = (settings.hidden_mult * width,) * settings.depth
        layers: list[nn.Module] = []
        for before, after in zip((width, *hidden), hidden, strict=False):
            layers += [nn.Linear(before, after, dtype=torch.float32), _ACTIVATIONS[settings.activation]()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear((width, *hidden)[-1], 1, dtype=torch.float32)
        nn.init.normal_(self.last.weight, std=_LAST_LAYER_STD)
        nn.init.zeros_(self.last.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., C) hidden states of any float type to (...) values, float32 under any autocast."""
        features = self.layers(states.to(self.last.weight.dtype))
        with torch.autocast(features.device.type, enabled=False):
            values: Tensor = self.last(features.to(self.last.weight.dtype)).squeeze(-1)
        return values
