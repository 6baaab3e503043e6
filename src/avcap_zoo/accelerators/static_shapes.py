"""Few shapes, for devices that compile a graph for each: caption lengths, the language model's graphs, a counter."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from avcap_zoo.accelerators.compiling import check_backend
from avcap_zoo.backbones.language import CausalLanguageModel
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError

_GRAPHS_PER_BUCKET = 4
"""Allowed to torch's compiler, which by itself compiles eight and no more: as many as a fit with four buckets has."""
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@runtime_checkable
class Pads(Protocol):
    """A part that pads texts to a few lengths if it is told any."""

    length_buckets: tuple[int, ...]


class StaticShapes(Callback):
    """Keeps the shapes of a causal language model few, and counts those of all training batches.

    Training captions, given or drawn, are padded to one of a few lengths and prompts to the longest there is; where
    clips of a batch differ in modality, whole sequences to one of the lengths. Captions are decoded with a cache of
    fixed size. The padding is masked: losses change by rounding only. `train/batch_shapes` in the log is the number of
    distinct shapes so far, of a batch and of what its language model was given together.

    Args:
        caption_buckets: lengths in tokens, the end token included; a longer caption is padded to a multiple of the
            largest.
        compile_backend: of `torch.compile`, for the language model; None = it is not compiled.

    Raises:
        ConfigError: no lengths, or one below 1.
    """

    def __init__(self, caption_buckets: tuple[int, ...] = (16, 24, 32, 48), compile_backend: str | None = None) -> None:
        if not caption_buckets or min(caption_buckets) < 1:
            raise ConfigError(f"StaticShapes: caption_buckets is {list(caption_buckets)}, wanted lengths of 1 or more")
        self.caption_buckets = tuple(sorted(caption_buckets))
        self.compile_backend = compile_backend
        self.seen: set[Shapes] = set()
        self._prepared = False

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change the language models."""
        self._prepare(pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_fit_start`."""
        self._prepare(pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_fit_start`."""
        self._prepare(pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_fit_start`."""
        self._prepare(pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count."""
        given = tuple((f"language {index}", m.last_shape) for index, m in enumerate(_language_models(pl_module)))
        self.seen.add((*batch.shapes().items(), *given))
        pl_module.log("train/batch_shapes", float(len(self.seen)), batch_size=len(batch))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many there were, and what had more than one."""
        kinds: dict[str, set[tuple[int, ...]]] = {}
        for shapes in self.seen:
            for name, shape in shapes:
                kinds.setdefault(name, set()).add(shape)
        several = [f"{name} {len(found)}" for name, found in kinds.items() if len(found) > 1]
        rank_zero_info(f"{len(self.seen)} distinct batch shapes" + (f" ({', '.join(several)})" if several else ""))

    def _prepare(self, pl_module: LightningModule) -> None:
        if self._prepared:
            return
        if self.compile_backend is not None:
            check_backend(self.compile_backend)
        for part in pl_module.modules():
            if isinstance(part, Pads):
                part.length_buckets = self.caption_buckets
        for language in _language_models(pl_module):
            if self.compile_backend is not None:
                # Each length is a graph of its own: one of dynamic length is what is to be avoided.
                language.model.compile(backend=self.compile_backend, dynamic=False)
        if self.compile_backend is not None:
            dynamo = torch._dynamo.config
            dynamo.cache_size_limit = max(dynamo.cache_size_limit, _GRAPHS_PER_BUCKET * len(self.caption_buckets))
        self._prepared = True


def _language_models(module: LightningModule) -> list[CausalLanguageModel]:
    return [part for part in module.modules() if isinstance(part, CausalLanguageModel)]
