"""What everything that is trained shares: the steps, the optimizer, the checkpoints, pictures for the logger."""

from __future__ import annotations

import json
import math
import os
import random
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from avcap_zoo import __version__
from avcap_zoo.accelerators.sharded import ShardedBaseStrategy
from avcap_zoo.batch import Batch, ClipSource, FrozenEncoder, Modality, run_folder
from avcap_zoo.errors import ConfigError, NonFiniteLossError, WeightsError
from avcap_zoo.ops.zero_loss import zero_loss
from avcap_zoo.weights.fingerprint import fingerprint, whole
from avcap_zoo.weights.load import compare_keys

CHECKPOINT_KEY = "avcap_zoo"
TEXT_TOKENS = 48
"""Tokens of prompt and caption that an estimate of a step counts for each clip."""
_SHOWN_CAPTIONS = 3
MOST_SKIPPED = 10
"""Batches without a finite loss or gradient, and no step between them, until the run ends though it may skip them."""


@dataclass
class OptimizerSettings:
    """AdamW and its learning rate.

    Weight decay spares biases, norms and every other tensor with fewer than two dimensions.

    Args:
        lr: peak learning rate.
        betas: AdamW's.
        weight_decay: AdamW's.
        warmup_steps: optimizer steps of linear warm-up.
        warmup_epochs: the same in epochs; used when `warmup_steps` is None.
        warmup_start_share: learning rate of the very first step as a share of the peak; None = one step's worth.
        warmup_restart_steps: a warm-up longer than so many steps begins anew after each so many (released code of
            MiniGPT-4 and BuboGPT: after each epoch); None = it goes on.
        schedule: after the warm-up: `cosine` or `linear` down to `min_lr_share`, or `constant`.
        decay_from: the fall is counted from the `peak` (end of the warm-up), or from the `start` of training.
        min_lr_share: last learning rate as a share of the peak.
        on_non_finite_loss: `raise`, or `skip` such a batch, naming its clips; ten in a row end the run all the same.
            A finite loss with gradients that are not finite counts, too.
    """

    lr: float = 5e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-6
    warmup_steps: int | None = None
    warmup_epochs: float = 2.0
    warmup_start_share: float | None = None
    warmup_restart_steps: int | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    decay_from: Literal["peak", "start"] = "peak"
    min_lr_share: float = 0.0
    on_non_finite_loss: Literal["raise", "skip"] = "raise"


@dataclass
class Requirements:
    """What a system needs of its data module.

    Attributes:
        sample_rate_hz: rate of the sound, or None if it does not listen.
        modalities: what must be decoded.
    """

    sample_rate_hz: int | None
    modalities: tuple[Modality, ...] = field(default=("audio", "visual"))


@dataclass
class StepWork:
    """What a training step computes, for an estimate of its memory and time.

    Attributes:
        positions: by dotted name of a part of the model, in the order of the forward pass: positions (tokens, patches)
            of one clip that go through its layers, as often as they do.
        behind: parts that stand behind trained ones, and so pass gradients on even where they are frozen.
        clips_at_once: clips whose activations are in memory together; None = those of a batch.
    """

    positions: dict[str, float]
    behind: tuple[str, ...] = ()
    clips_at_once: int | None = None


@dataclass
class Interruption:
    """How a step that takes long learns of a signal and gives way to it. All processes ask, and obey, together.

    Attributes:
        waits: whether a signal waits for the step, which can be given up.
        obey: called when everything is as before the step: saves a checkpoint; raises if the run is to end.
    """

    waits: Callable[[], bool]
    obey: Callable[[], None]


class System(LightningModule):
    """Base of everything that Lightning runs here.

    A subclass builds `self.model` in `configure_model` and gives
    - `requirements`: checked against the data module before anything runs;
    - `training_loss(batch)`: losses by name; their sum is minimised. A system that is not trained gives none.

    Validation logs these losses; systems that caption score their captions instead (`captions.CaptionSystem`).
    Checkpoints hold the trained tensors, the buffers that move, and the fingerprint of what was frozen.

    Args:
        optimizer: see `OptimizerSettings`.
        init_args: all arguments of the subclass, for the checkpoint.
    """

    model: nn.Module
    gives_way: ClassVar[bool] = False
    """Whether a step asks its `interruption` between its parts."""

    def __init__(self, optimizer: OptimizerSettings, init_args: Mapping[str, Any]) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.init_args = {key: plain(value) for key, value in init_args.items()}
        self.strict_loading = False  # we check keys ourselves: frozen weights are left out on purpose
        self.prepared = False
        self.decoding: dict[str, int | str] = {}
        self._rng_states: dict[str, Any] | None = None
        self.interruption: Interruption | None = None
        self._clock = (0.0, 0)
        self._skipped_in_a_row = 0
        self._left_out_here = False
        self._took_part = False
        self._clips_of_step: list[str] = []
        self._gradients: dict[str, Tensor] = {}
        self._validated: dict[str, tuple[Tensor | float, int]] = {}

    @property
    @abstractmethod
    def requirements(self) -> Requirements:
        """What the data module must give."""

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name, weighted; their sum is minimised.

        Raises:
            ConfigError: this system is not trained by a loss.
        """
        raise ConfigError(f"{type(self).__name__} is not trained by a loss; use test or predict")

    # Steps

    def setup(self, stage: str) -> None:
        """Check the data module against `requirements`.

        Raises:
            ConfigError: sample rate or modalities do not fit; names both values and keys.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ClipSource):
            return
        self.check_data(data)
        self.decoding = {
            "sample_rate_hz": data.sample_rate_hz,
            "num_frames": data.num_frames,
            "image_size_px": data.image_size_px,
            "precision": str(self.trainer.precision),
        }

    def check_data(self, data: ClipSource) -> None:
        """Compare a data module with `requirements`.

        Raises:
            ConfigError: sample rate or modalities do not fit; names both values and keys.
        """
        needs = self.requirements
        if needs.sample_rate_hz is not None and data.sample_rate_hz != needs.sample_rate_hz:
            raise ConfigError(
                f"{type(self).__name__} listens at {needs.sample_rate_hz} Hz, "
                f"data.init_args.sample_rate_hz is {data.sample_rate_hz}"
            )
        absent = [modality for modality in needs.modalities if modality not in data.modalities]
        if absent:
            raise ConfigError(
                f"{type(self).__name__} needs {' and '.join(absent)}, "
                f"data.init_args.modalities is {list(data.modalities)}"
            )

    def on_train_start(self) -> None:
        """Restore random states and accumulated gradients of a resumed run; start the clock."""
        if self._rng_states is not None:
            set_rng_states(self._rng_states)
            self._rng_states = None
        for name, gradient in self._gradients.items():
            parameter = self.get_parameter(name)
            parameter.grad = gradient.to(parameter)
        self._took_part = bool(self._gradients)
        self._gradients = {}
        self._clock = (time.perf_counter(), 0)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let every process but the first, whose random states are in the checkpoint, draw numbers of its own.

        All begin with one seed. What the others draw in a step depends on that, the step and their number alone, so
        that a run that goes on draws the same.
        """
        if self.global_rank > 0:
            place = (os.environ.get("PL_GLOBAL_SEED"), self.current_epoch, batch_idx, self.global_rank)
            seed = random.Random(repr(place)).getrandbits(63)
            random.seed(seed)
            torch.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Minimise the sum of the losses.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite, and such batches are not skipped; names the clips. No step
                has been taken on it.
        """
        if not self.every_process_has(batch):
            return self._left_out()
        skips = self.optimizer_settings.on_non_finite_loss == "skip"
        statistics = self._running_statistics() if skips else []
        losses = self.training_loss(batch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        finite = bool(torch.isfinite(total))
        if not finite:
            parts = ", ".join(f"{name} {float(loss.detach()):g}" for name, loss in losses.items())
            found = f"loss is not finite at step {self.global_step} ({parts}) on clips {', '.join(batch.clip_ids)}"
            if not skips or self._skipped_in_a_row >= MOST_SKIPPED:
                raise NonFiniteLossError(
                    f"{found}{f', nor was it on the {MOST_SKIPPED} batches before' if skips else ''}; the weights are "
                    f"those of the step before. Lower model.init_args.optimizer.lr or look at these clips"
                )
            warnings.warn(f"{found}; the batch is skipped", stacklevel=1)
        if skips and not self.trainer.strategy.reduce_boolean_decision(finite):  # all processes skip, or none
            self._skipped_in_a_row += 1
            for buffer, before in statistics:
                buffer.copy_(before)
            return self._left_out()
        named = {f"train/loss_{name}": loss.detach() for name, loss in losses.items()} if len(losses) > 1 else {}
        self.log_dict(named, batch_size=len(batch), sync_dist=True)
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch), sync_dist=True)
        self._took_part = True
        self._clips_of_step += batch.clip_ids
        return total

    def every_process_has(self, batch: Batch) -> bool:
        """Whether no process got a batch without clips; else all leave the step out, or some would wait for ever."""
        alone = self._trainer is None or self.trainer.world_size == 1
        return len(batch) > 0 if alone else self.trainer.strategy.reduce_boolean_decision(len(batch) > 0)

    @property
    def shares_layers(self) -> bool:
        """Whether layers are shared out over the processes, all of which must then run them equally often."""
        return self._trainer is not None and isinstance(self.trainer.strategy, ShardedBaseStrategy)

    def in_company(self, batch: Batch) -> Batch:
        """The batch; if it has no clips and layers are shared out, a clip of another process, to run them on.

        All processes must ask. Without clips on any of them there are none to give.
        """
        if not self.shares_layers or self.every_process_has(batch):
            return batch
        clips: list[Batch | None] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(clips, batch.first().to("cpu") if len(batch) else None)
        others = [clip for clip in clips if clip is not None]
        return others[0].to(self.device) if others and len(batch) == 0 else batch

    def _left_out(self) -> Tensor | None:
        """What a batch that is left out returns: on several processes Lightning takes no None for it."""
        if self.trainer.world_size == 1:
            return None
        self._left_out_here = True
        return zero_loss(p for p in self.parameters() if p.requires_grad)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer pass over a step all of whose batches are left out: its moments would move the weights.

        Raises:
            NonFiniteLossError: a gradient is not finite, and such steps are not skipped.
        """
        if self._took_part:
            self._check_gradients(optimizer)
        elif self._left_out_here:
            optimizer.zero_grad()
        self._left_out_here = self._took_part = False
        self._clips_of_step = []

    def _check_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop at gradients that are not finite, or pass over the step; all processes have the same ones."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaled = self.trainer.precision == "16-mixed"  # whose scaler expects some, and passes over them itself
        if scaled or nn.utils.get_total_norm(gradients).isfinite():
            self._skipped_in_a_row = 0
            return
        clips = ", ".join(self._clips_of_step)
        found = f"a gradient is not finite at step {self.global_step}, though the loss is, on clips {clips}"
        if self.optimizer_settings.on_non_finite_loss == "raise" or self._skipped_in_a_row >= MOST_SKIPPED:
            raise NonFiniteLossError(f"{found}; the weights are those of the step before")
        self._skipped_in_a_row += 1
        warnings.warn(f"{found}; the step is skipped", stacklevel=1)
        optimizer.zero_grad()

    def _accumulated(self) -> dict[str, Tensor]:
        """Gradients of the batches behind that the next optimizer step is for, too; the mean of all processes."""
        if not self._took_part:
            return {}
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if self.trainer.world_size == 1:
            return {name: p.grad for name, p in trained.items() if p.grad is not None}
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}
        for gradient in gradients.values():
            torch.distributed.all_reduce(gradient)
            gradient /= self.trainer.world_size
        return gradients

    def _running_statistics(self) -> list[tuple[Tensor, Tensor]]:
        """What normalisation layers move in a forward pass, each with a copy of it."""
        layers = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training]
        return [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]

    def on_validation_epoch_start(self) -> None:
        """Forget the last losses."""
        self._validated = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add up the losses on the validation split."""
        clips = self.in_company(batch)
        if len(clips) == 0:
            return
        losses = {name: loss.float() for name, loss in self.training_loss(clips).items()}
        if len(batch) == 0:
            return
        parts = {f"val/loss_{name}": loss for name, loss in losses.items()} if len(losses) > 1 else {}
        for name, loss in (parts | {"val/loss": torch.stack(list(losses.values())).sum()}).items():
            total, count = self._validated.get(name, (0.0, 0))
            self._validated[name] = (total + len(batch) * loss, count + len(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses, over the clips of all processes, some of which may have had none: `val/loss`, parts."""
        here = {name: (float(total), count) for name, (total, count) in self._validated.items()}
        gathered: list[dict[str, tuple[float, int]] | None] = [here]
        if self.trainer.world_size > 1:
            gathered = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, here)
        parts = [part for part in gathered if part]
        for name in parts[0] if parts else ():
            mean = sum(part[name][0] for part in parts) / sum(part[name][1] for part in parts)
            self.log(name, mean, prog_bar=name == "val/loss")

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log learning rate and throughput."""
        started, clips = self._clock
        self._clock = (started, clips + len(batch) * self.trainer.world_size)
        if self.trainer.global_step % max(1, getattr(self.trainer, "log_every_n_steps", 50)) == 0:
            rate = self._clock[1] / max(time.perf_counter() - started, 1e-9)
            self._clock = (time.perf_counter(), 0)
            self.log("train/clips_per_s", rate, prog_bar=True, batch_size=len(batch))
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], prog_bar=True, batch_size=len(batch))

    def mean_over_processes(self, number: Tensor) -> Tensor:
        """Mean of a number over the processes that train together; all of them must ask."""
        if self._trainer is None or not self.training or self.trainer.world_size == 1:
            return number
        mean = number.float()
        torch.distributed.all_reduce(mean)
        return mean / self.trainer.world_size

    # For those who look before anything is built

    def settings_in_use(self) -> dict[str, Any]:
        """The arguments that count with this configuration, as in YAML; others may name files that are not needed."""
        return dict(self.init_args)

    def step_work(self, num_frames: int) -> StepWork | None:
        """What a step of the model, once built, computes with so many frames per clip; None: it does not say."""
        return None

    # Optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over the trained tensors, warm-up and schedule per step."""
        settings = self.optimizer_settings
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            raise ConfigError(
                f"{type(self).__name__} has nothing to train with this configuration; use test or predict"
            )
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        # One pass over memory on a processor; elsewhere torch chooses. With autocast Lightning would refuse to clip.
        plain = str(self.trainer.precision).startswith(("32", "64"))
        fused = True if plain and all(p.device.type == "cpu" for p in trained) else None
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, fused=fused
        )
        total = int(self.trainer.estimated_stepping_batches)
        if self.trainer.ckpt_path is not None or self.trainer.strategy.restore_checkpoint_after_setup:
            # To count the steps of some epochs Lightning has made the loader, too early for the checkpoint's place in
            # the epoch, and would keep it.
            self.trainer.fit_loop._combined_loader = None
        warmup = settings.warmup_steps
        if warmup is None:
            epochs = self.trainer.max_epochs if self.trainer.max_epochs and self.trainer.max_epochs > 0 else None
            warmup = round(total * min(1.0, settings.warmup_epochs / epochs)) if epochs else 0
        share = partial(learning_rate_share, total=total, warmup=warmup, settings=settings)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Checkpoints

    def frozen_encoder(self, modality: Modality) -> FrozenEncoder:
        """What of this system may be computed once per clip; needs no `model` where the encoder has its own file.

        Raises:
            ConfigError: nothing of this modality is.
        """
        raise ConfigError(f"{type(self).__name__} has no frozen {modality} encoder: there is nothing to cache")

    def self_made_modules(self) -> list[str]:
        """Sub-modules whose weights exist in no file of their own, so that checkpoints must hold them whole."""
        return [f"model.{name}" for name in getattr(self.model, "self_made", [])]

    def checkpoint_names(self) -> set[str]:
        """Names of the tensors that a checkpoint holds: trained, moving, or without another home."""
        # Tied weights have two names in the state dict, and both are asked for.
        parameters = dict(self.named_parameters(remove_duplicate=False))
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        homeless = tuple(f"{name}." for name in self.self_made_modules())
        moving = {name for name, _ in self.named_buffers()}  # not the scales of a quantised layer
        return {
            name
            for name in self.state_dict()
            if name in trained or name.startswith(homeless or ("\0",)) or name in moving
        }

    def frozen_fingerprint(self) -> str:
        """Fingerprint of the tensors that a checkpoint leaves out."""
        held = self.checkpoint_names()
        return fingerprint({name: tensor for name, tensor in self.state_dict().items() if name not in held})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what the run made, and note what it stands on."""
        held = self.checkpoint_names()
        checkpoint["state_dict"] = {n: whole(t) for n, t in checkpoint["state_dict"].items() if n in held}
        checkpoint[CHECKPOINT_KEY] = {
            "class_path": f"{type(self).__module__}.{type(self).__name__}",
            "init_args": json.dumps(self.init_args),
            "data": dict(self.decoding),
            "frozen": self.frozen_fingerprint(),
            "version": __version__,
            "rng": rng_states(),
            "gradients": self._accumulated(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint belongs to this model and this frozen base.

        Raises:
            WeightsError: other system, other tensors, or another base.
        """
        note = checkpoint.get(CHECKPOINT_KEY)
        if not isinstance(note, dict) or not {"class_path", "frozen", "rng"} <= note.keys():
            raise WeightsError("this checkpoint was not saved by avcap-zoo")
        own = type(self).__name__
        if note["class_path"].rsplit(".", 1)[-1] != own:
            raise WeightsError(f"this checkpoint holds {note['class_path']}, the configuration builds {own}")
        shapes = {n: tuple(t.shape) for n, t in self.state_dict().items() if n in self.checkpoint_names()}
        problems = compare_keys(shapes, checkpoint["state_dict"])
        if problems:
            raise WeightsError(f"the checkpoint does not fit the configured {own}: {problems}")
        found = self.frozen_fingerprint()
        if note["frozen"] != found:
            raise WeightsError(
                f"the checkpoint was trained on frozen weights {note['frozen']}, the configured ones are {found}: "
                f"check the sources of the backbones in model.init_args"
            )
        self.prepared = True
        self._rng_states = note["rng"]
        self._gradients = note.get("gradients", {})

    # Output

    def log_picture(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """Write a (H, W, 3) picture to `figures/` in the run's folder and to loggers that take pictures."""
        from PIL import Image

        path = self._folder() / "figures" / f"{name}-{self.global_step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        for logger in self.loggers:
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_image"):
                experiment.add_image(name, pixels, self.global_step, dataformats="HWC")

    def _log_text(self, name: str, text: str) -> None:
        for logger in self.loggers:
            experiment: Any = getattr(logger, "experiment", None)
            if hasattr(experiment, "add_text"):
                experiment.add_text(name, text, self.global_step)

    def _folder(self) -> Path:
        folder = run_folder(self.trainer)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def plain(value: Any) -> Any:
    """A settings dataclass as a dict; anything else as it is."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def learning_rate_share(step: int, total: int, warmup: int, settings: OptimizerSettings) -> float:
    """Learning rate at an optimizer step as a share of the peak.

    Args:
        step: from 0.
        total: optimizer steps of the run.
        warmup: steps of linear warm-up.
        settings: schedule, first and last share.
    """
    if step < warmup:
        place = step if settings.warmup_restart_steps is None else step % settings.warmup_restart_steps
        if settings.warmup_start_share is None:
            return (place + 1) / (warmup + 1)
        return settings.warmup_start_share + (1 - settings.warmup_start_share) * place / warmup
    if settings.schedule == "constant":
        return 1.0
    first = warmup if settings.decay_from == "peak" else 0
    progress = min(1.0, (step - first) / max(1, total - first))
    fall = progress if settings.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return 1.0 - (1.0 - settings.min_lr_share) * fall


def rng_states() -> dict[str, Any]:
    """States of this process's random generators, as a checkpoint holds them."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_states(states: dict[str, Any]) -> None:
    """Put the random generators where `rng_states` found them."""
    kind, numbers, gauss = states["python"]
    random.setstate((kind, tuple(numbers), gauss))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
