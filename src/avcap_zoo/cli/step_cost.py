"""What a training step takes in memory and time, estimated without running it.

Memory: weights as they are stored, gradients and AdamW's two moments of what is trained in float32, and what the
linear layers of every part that passes gradients on keep of its input and output. Time: the arithmetic of the linear
and convolutional layers, at the speed that a large matrix product reaches here; real steps take longer than that.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from avcap_zoo.systems.base import StepWork, System

_TIMED_S = 0.2
_CHECKPOINTED_SHARE = 0.15
"""Of the activations that a language model keeps when it recomputes them: one input per layer."""


@dataclass(frozen=True)
class ModelSize:
    """Numbers of a model.

    Attributes:
        trained: parameters with a gradient.
        frozen: the others.
        num_bytes: of all of them and of the buffers.
    """

    trained: int
    frozen: int
    num_bytes: int

    @property
    def state_bytes(self) -> int:
        """Gradients and two moments of what is trained, in float32."""
        return 12 * self.trained

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint: the trained tensors and their two moments in float32."""
        return 12 * self.trained


@dataclass(frozen=True)
class StepCost:
    """The estimate.

    Attributes:
        activation_bytes: kept for the backward pass.
        operations: floating-point operations of a step, forward and backward.
    """

    activation_bytes: int
    operations: float


def model_size(system: System) -> ModelSize:
    """Count the parameters of a system that is built, on any device, "meta" too."""
    trained = sum(p.numel() for p in system.parameters() if p.requires_grad)
    total = sum(p.numel() for p in system.parameters())
    tensors = [*system.parameters(), *system.buffers()]
    return ModelSize(trained, total - trained, sum(t.numel() * t.element_size() for t in tensors))


def step_cost(system: System, work: StepWork, batch_size: int, activation_type: torch.dtype) -> StepCost:
    """Estimate one step.

    Args:
        system: built.
        work: what it computes per clip.
        batch_size: clips of a step.
        activation_type: of what is computed; of what is trained it may be float32 all the same.
    """
    at_once = min(batch_size, work.clips_at_once or batch_size)
    anything_trains = any(p.requires_grad for p in system.parameters())
    operations = activations = 0.0
    for name, positions in work.positions.items():
        part = system.model.get_submodule(name)
        trains = any(p.requires_grad for p in part.parameters())
        gradient_flows = trains or (anything_trains and name in work.behind)
        weights = [w for module in part.modules() if (w := _matrix(module)) is not None]
        forward = 2.0 * sum(w.numel() for w in weights) * positions
        passes = (
            1
            + gradient_flows
            + trains * sum(w.numel() for w in weights if w.requires_grad) / (sum(w.numel() for w in weights) or 1)
        )
        operations += forward * passes * batch_size
        if gradient_flows:
            kept = sum(w.shape[0] + w.numel() // w.shape[0] for w in weights) * positions * at_once
            share = _CHECKPOINTED_SHARE if _recomputes(part) else 1.0
            activations += kept * share * activation_type.itemsize
    return StepCost(round(activations), operations)


def operations_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of a square matrix product on a device, the best of some."""
    side = 4096 if device.type != "cpu" else 768
    left = torch.randn(side, side, device=device).to(dtype)
    best, until = math.inf, time.perf_counter() + _TIMED_S
    while best == math.inf or time.perf_counter() < until:
        _wait(device)
        started = time.perf_counter()
        torch.mm(left, left)
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matrix(module: nn.Module) -> nn.Parameter | None:
    """The weight of a layer that multiplies by it at every position."""
    if isinstance(module, nn.MultiheadAttention):  # its output layer is a Linear of its own
        return module.in_proj_weight
    weight = getattr(module, "weight", None)
    multiplies = isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or type(module).__name__ == "Conv1D"
    return weight if multiplies and isinstance(weight, nn.Parameter) else None


def _recomputes(part: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in part.modules())
