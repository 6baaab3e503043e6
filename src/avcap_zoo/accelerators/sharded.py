"""A language model that does not fit on one device, shared out over all of them; what is trained is whole on each."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from avcap_zoo.backbones.language import is_shared_out
from avcap_zoo.errors import ConfigError


class ShardedBaseStrategy(DDPStrategy):
    """DDP with the frozen layers of language models shared out by FSDP2: each process keeps a part and borrows others.

    Processes must run such a layer equally often, or wait for each other for ever. Everything else, encoders too, is
    whole on each and runs as often as each needs it.

    Adapters and whatever else is trained are on every device, as with DDP: their gradients are averaged as there, no
    unit mixes dtypes, and a checkpoint is the same file as on one device. The model is built in the memory of the
    machine, once per process, and goes to the devices layer by layer.

    Args:
        min_layer_parameters: smaller layers stay whole, which saves messages.
        options: of Lightning's DDPStrategy.
    """

    def __init__(self, min_layer_parameters: int = 20_000_000, **options: Any) -> None:
        super().__init__(**options)
        self.min_layer_parameters = min_layer_parameters

    @contextmanager
    @override
    def tensor_init_context(self, empty_init: bool | None = None) -> Generator[None, None, None]:
        """Build on the processor: on the device the whole model has no room."""
        with torch.device("cpu"), self.precision_plugin.tensor_init_context():
            yield

    @override
    def model_to_device(self) -> None:
        """Share out the frozen layers, and put the rest on the device.

        Raises:
            ConfigError: there is no such layer, or a quantised one, or this torch cannot.
        """
        module = self.lightning_module
        assert module is not None
        if not is_shared_out(module):  # by an earlier run
            self._share_out(module)
        super().model_to_device()

    def _share_out(self, module: LightningModule) -> None:
        models = language_models(module)
        shared = [stack for model in models for stack in frozen_layers(model, self.min_layer_parameters)]
        if not shared:
            raise ConfigError(
                f"trainer.strategy shares out the frozen layers of language models, and {type(module).__name__} has "
                f"none of {self.min_layer_parameters} parameters: use --trainer.strategy ddp"
            )
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for parent, layers in shared:
            for layer in layers:
                fully_shard(layer, mesh=mesh, ignored_params={p for p in layer.parameters() if p.requires_grad})
            inside = {p for layer in layers for p in layer.parameters()}
            # The parent knows the order of its layers, so that the next one is fetched while one computes.
            fully_shard(parent, mesh=mesh, ignored_params={p for p in parent.parameters() if p not in inside})
        parts = {name for name, p in module.named_parameters() if hasattr(p, "full_tensor")}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, parts)
        count = sum(len(layers) for _, layers in shared)
        rank_zero_info(f"{count} frozen layers shared out over {self.world_size} processes")


def language_models(module: nn.Module) -> list[nn.Module]:
    """The parts that write text; of one within another (BLIP-2's) the inner one."""
    from transformers import GenerationMixin

    found = [part for part in module.modules() if isinstance(part, GenerationMixin)]
    return [part for part in found if not any(isinstance(p, GenerationMixin) for p in part.modules() if p is not part)]


def frozen_layers(module: nn.Module, min_parameters: int) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Stacks of layers that are frozen but for adapters: the module that runs them, and those that are large enough.

    Args:
        module: searched from the top; nothing within a stack is looked at.
        min_parameters: frozen ones, of a layer.

    Raises:
        ConfigError: a layer is kept in four or eight bits.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.ModuleList):
            yield from frozen_layers(child, min_parameters)
            continue
        large = []
        for layer in child:
            frozen = [p for p in layer.parameters() if not p.requires_grad]
            if any(not p.is_floating_point() for p in frozen):
                raise ConfigError(
                    f"the layers {name} are quantised, and such are not shared out: use --trainer.strategy ddp, or "
                    f"model.init_args.language.quantisation none"
                )
            if frozen and sum(p.numel() for p in frozen) >= min_parameters:
                large.append(layer)
        if large:
            yield module, large
