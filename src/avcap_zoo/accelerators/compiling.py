"""`torch.compile` of what is not trained, on request."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from avcap_zoo.backbones.language import CausalLanguageModel
from avcap_zoo.errors import ConfigError


class CompileFrozenParts(Callback):
    """Compiles the parts of a model in which nothing is trained, such as CLIP's tower; their names stay as they are.

    Args:
        backend: of torch.compile.
        dynamic: one graph for all shapes, or one for each; None = torch finds out.
    """

    def __init__(self, backend: str = "inductor", dynamic: bool | None = None) -> None:
        self.backend = backend
        self.dynamic = dynamic

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile before the first step."""
        self._compile(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile, if a fit has not."""
        self._compile(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile before the first batch."""
        self._compile(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile before the first batch."""
        self._compile(pl_module)

    def _compile(self, module: LightningModule) -> None:
        model: nn.Module = module.model  # type: ignore[assignment]
        check_backend(self.backend)
        parts = frozen_parts(model)
        if not parts:
            raise ConfigError(f"CompileFrozenParts finds nothing frozen in {type(module).__name__}: leave it out")
        fresh = {name: part for name, part in parts.items() if part._compiled_call_impl is None}
        for part in fresh.values():
            part.compile(backend=self.backend, dynamic=self.dynamic)
        if fresh:
            rank_zero_info(f"compiled with {self.backend}: {', '.join(fresh)}")


def frozen_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model, by name, that have weights and train none of them; of what cannot be called, its parts.

    Language models stay out: each token that they write would have a shape of its own.
    """
    parts: dict[str, nn.Module] = {}
    for name, part in model.named_children():
        weights = list(part.parameters())
        if isinstance(part, CausalLanguageModel):
            continue
        if type(part).forward is nn.Module.forward:
            parts |= {f"{name}.{inner}": found for inner, found in frozen_parts(part).items()}
        elif weights and not any(p.requires_grad for p in weights):
            parts[name] = part
    return parts


def check_backend(name: str) -> None:
    """Refuse a backend that torch.compile would miss at the first step.

    Raises:
        ConfigError: there is none of this name.
    """
    try:
        torch._dynamo.lookup_backend(name)
    except torch._dynamo.exc.InvalidBackend as error:
        raise ConfigError(
            f"torch.compile has no backend {name} here, only {', '.join(torch._dynamo.list_backends())}; a Gaudi's "
            f"software brings hpu_backend"
        ) from error
