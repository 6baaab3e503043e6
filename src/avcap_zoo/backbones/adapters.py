"""Which weights of a backbone are trained: none, low-rank adapters, or all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from avcap_zoo.errors import ConfigError

TrainingMode = Literal["frozen", "lora", "full"]


@dataclass
class LoRASettings:
    """Low-rank adapters (peft).

    Args:
        rank: inner width r.
        alpha: the update is scaled by alpha / r.
        dropout: on the adapters' input, in training.
        targets: endings of the names of the linear layers that get one; empty = those that peft names for the model's
            family (q_proj and v_proj for Llama, Qwen, OPT; c_attn for GPT-2), or else q_proj and v_proj.
    """

    rank: int = 8
    alpha: float = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = ()


def set_training_mode(module: nn.Module, mode: TrainingMode, lora: LoRASettings, name: str) -> None:
    """Freeze a backbone, put adapters into it, or leave all of it trainable. Adapters are kept in float32.

    Args:
        module: changed in place; adapters keep the module's own state-dict names beside `lora_A`, `lora_B`.
        mode: `frozen`, `lora` (only the adapters are trained) or `full`.
        lora: used in mode `lora`.
        name: config key of the backbone, for the message.

    Raises:
        ConfigError: a target name that no linear layer of the module has.
    """
    module.requires_grad_(mode == "full")
    if mode != "lora":
        return
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D  # the linear layer of GPT-2

    targets = lora.targets or _family_targets(module)
    linear_names = [n for n, m in module.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    unmatched = [t for t in targets if not any(f".{n}".endswith(f".{t}") for n in linear_names)]
    if unmatched:
        endings = sorted({n.split(".")[-1] for n in linear_names})
        raise ConfigError(
            f"{name}.lora.targets: no linear layer is named {' or '.join(unmatched)}; this model has "
            f"{', '.join(endings) or 'none'}: name some of them in {name}.lora.targets"
        )
    inject_adapter_in_model(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(targets),
            bias="none",
        ),
        module,
    )
    for parameter_name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in parameter_name)
        if "lora_" in parameter_name:
            parameter.data = parameter.data.to(torch.float32)


def _family_targets(module: nn.Module) -> tuple[str, ...]:
    """The layers that peft adapts in models of this family (transformers' `model_type`), and those of the others."""
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_FAMILY

    family = getattr(getattr(module, "config", None), "model_type", None)
    return tuple(BY_FAMILY.get(family, ("q_proj", "v_proj")))


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """Run a module without its adapters; afterwards they, and what of them is trained, are as before.

    With gradient checkpointing the backward pass runs the module again and belongs inside, too.

    Args:
        module: one that `set_training_mode` gave adapters, or one without any.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    enabled = [layer for layer in layers if not layer.disable_adapters]
    for layer in enabled:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in enabled:
            layer.enable_adapters(enabled=True)
        for parameter in (p for layer in enabled for p in layer.parameters()):
            parameter.requires_grad_(any(parameter is other for other in trained))
