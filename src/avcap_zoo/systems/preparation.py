"""A short training of self-made parts before a fit, in the place of the pre-training that published weights bring.

Without it a model built from configurations alone learns next to nothing: its encoders must be competent before
captions can teach the rest. It needs data that say more of their clips than captions do, such as the embedded scenes.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from avcap_zoo import __version__
from avcap_zoo.batch import Batch, ClipSource, Modality
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.base import System
from avcap_zoo.weights.load import load_strictly, load_tensors

Task = tuple[nn.Module, Callable[[], Iterator[Tensor]]]
"""A head that is thrown away afterwards, and a generator of losses without end."""


@dataclass
class Lesson:
    """What some parts of a model are taught together.

    Attributes:
        parts: names of sub-modules of the model.
        settings: what the result depends on beside the data and the number of steps; JSON.
        task: makes head and losses, of data, clips per step and device.
    """

    parts: tuple[str, ...]
    settings: Any
    task: Callable[[ClipSource, int, torch.device], Task]


class PrepareParts(Callback):
    """Base of the callbacks that prepare; a subclass gives `lessons`.

    Only parts without a source of their own are touched. The result is kept in a cache folder under a key of
    everything it depends on, so a second run starts at once; several processes share one cache.

    Args:
        steps: optimizer steps of each lesson, in their order; 0 = leave its parts as they are.
        batch_size: clips per step.
        lr: peak learning rate of AdamW, one cosine down to zero after a tenth of warm-up.
        seed: of initial draws.
        cache_dir: None = `~/.cache/avcap_zoo/prepared`.
    """

    def __init__(self, steps: Mapping[str, int], batch_size: int, lr: float, seed: int, cache_dir: str | None) -> None:
        self.steps = dict(steps)
        self.batch_size = batch_size
        self.lr = lr
        self.seed = seed
        self.cache_dir = (
            Path(cache_dir).expanduser() if cache_dir else Path.home() / ".cache" / "avcap_zoo" / "prepared"
        )

    @abstractmethod
    def lessons(self, module: LightningModule) -> dict[str, Lesson]:
        """By the names of `steps`.

        Raises:
            ConfigError: the callback is for another system.
        """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare on the first process, then give the result to all.

        Raises:
            ConfigError: used with another system, with data without labels, or where layers are shared out.
        """
        lessons = self.lessons(pl_module)
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, System) or not isinstance(data, ClipSource):
            raise ConfigError(f"{type(self).__name__} needs a data module of this package, found {type(data).__name__}")
        if pl_module.prepared:
            return
        self_made: list[str] = getattr(pl_module.model, "self_made", [])
        wanted = [name for name, n in self.steps.items() if n and set(self_made).issuperset(lessons[name].parts)]
        if wanted and pl_module.shares_layers:
            raise ConfigError(
                f"{type(self).__name__} prepares {', '.join(wanted)} on one process, which cannot run layers that are "
                f"shared out: use --trainer.strategy ddp"
            )
        if trainer.is_global_zero:
            for name in wanted:
                self._prepare_or_load(name, lessons[name], pl_module, data)
        for part in self_made:
            for tensor in pl_module.model.get_submodule(part).state_dict().values():
                tensor.copy_(trainer.strategy.broadcast(tensor.cpu()))

    def folder(self, data: ClipSource) -> Path:
        """Where results of these data are kept."""
        return self.cache_dir / _hash([__version__, data.fingerprint(), self.seed, self.batch_size, self.lr])

    def _prepare_or_load(self, name: str, lesson: Lesson, module: System, data: ClipSource) -> None:
        parts = nn.ModuleDict({part.replace(".", "_"): module.model.get_submodule(part) for part in lesson.parts})
        path = self.folder(data) / f"{name}-{_hash([self.steps[name], lesson.parts, lesson.settings])}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.is_file():
                rank_zero_info(f"{name}: prepared weights from {path}")
                load_strictly(parts, load_tensors(path), str(path))
                return
            training_before = {part: part.training for part in parts.values()}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self._train(name, lesson, parts, data, module.device)
            for part, was_training in training_before.items():
                part.train(was_training)
            staging = path.with_suffix(".partial")
            save_file({key: value.clone() for key, value in parts.state_dict().items()}, staging)
            staging.replace(path)

    def _train(self, name: str, lesson: Lesson, parts: nn.Module, data: ClipSource, device: torch.device) -> None:
        """A plain training loop over the parts of one lesson."""
        steps = self.steps[name]
        head, losses = lesson.task(data, self.batch_size, device)
        trainable = {p: p.requires_grad for p in parts.parameters()}
        parts.requires_grad_(True).train()
        for key, parameter in parts.named_parameters():
            if "lora_" in key:  # adapters belong to the fit, not to what stands in for pre-training
                parameter.requires_grad_(False)
        parameters = [*(p for p in parts.parameters() if p.requires_grad), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, betas=(0.9, 0.98), weight_decay=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        with torch.enable_grad(), tqdm(total=steps, desc=f"preparing {name}", mininterval=1.0) as bar:
            for step, loss in zip(range(steps), losses(), strict=False):
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                scheduler.step()
                bar.update()
                if step % 20 == 0:
                    bar.set_postfix(loss=f"{loss.item():.3f}")
        optimizer.zero_grad()
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)


def label_columns(data: ClipSource, kind: Literal["sounds", "objects"]) -> dict[str, int]:
    """A column for each label of the training clips.

    Raises:
        ConfigError: the data have no such labels.
    """
    names = data.label_names(kind)
    if not names:
        raise ConfigError(
            f"backbones are prepared on labelled {kind}, {type(data).__name__} has none: "
            f"remove the callback and give the backbones sources, or train on the embedded scenes"
        )
    return {name: index for index, name in enumerate(names)}


def labelled_frames(data: ClipSource, batch_size: int) -> tuple[Tensor, Tensor]:
    """Every frame of the training clips, and what is seen in it.

    Returns:
        (N, 3, H, W) uint8 pictures, and (N, labels) float32, 1 where an object is seen.

    Raises:
        ConfigError: the data have no labelled objects.
    """
    labels = label_columns(data, "objects")
    frames, targets = [], []
    for batch in tqdm(data.plain_loader("train", batch_size, ("visual",)), desc="reading pictures", mininterval=1.0):
        if len(batch) == 0:  # every clip of it is broken: training will say so
            continue
        assert batch.frames is not None
        assert batch.boxes is not None
        target = torch.zeros((*batch.frames.shape[:2], len(labels)))
        for row, boxes in enumerate(batch.boxes):
            for box in boxes:
                target[row, box.frame, labels[box.label]] = 1
        frames.append(batch.frames.flatten(0, 1))
        targets.append(target.flatten(0, 1))
    return torch.cat(frames), torch.cat(targets)


def endless(data: ClipSource, batch_size: int, modalities: tuple[Modality, ...]) -> Iterator[Batch]:
    """Training batches without end, shuffled anew in each epoch."""
    loader = data.plain_loader("train", batch_size, modalities, shuffled=True)
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader
        epoch += 1


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
