"""`bf16-true` as these systems need it: the frozen weights in bfloat16, the trained ones in float32."""

from __future__ import annotations

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from typing_extensions import override


class HalfBasePrecision(MixedPrecision):
    """Frozen matrices are kept in bfloat16, and it is computed in bfloat16 as with `bf16-mixed`.

    Lightning's own `bf16-true` would also round what is trained, whose steps at the papers' learning rates (5e-6) are
    smaller than a bfloat16 can show, and the waveforms of every batch.
    """

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")
        self.precision = "bf16-true"
        self._module: nn.Module | None = None

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        """Round the frozen matrices; biases, norms and buffers take no room and stay."""
        self._module = module
        for parameter in module.parameters():
            if not parameter.requires_grad and parameter.is_floating_point() and parameter.ndim >= 2:
                parameter.data = parameter.data.to(torch.bfloat16)
        return module

    @override
    def autocast_context_manager(self) -> torch.autocast:
        """Of the device on which the module is."""
        device = "cpu" if self._module is None else next(self._module.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)
