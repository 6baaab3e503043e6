"""What all systems share: the steps, the optimizer, the scores, the checkpoints, the output files."""

from __future__ import annotations

import json
import math
import random
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from avcap_zoo import __version__
from avcap_zoo.batch import Batch, ClipSource, Modality, run_folder
from avcap_zoo.errors import ConfigError, NonFiniteLossError, WeightsError
from avcap_zoo.metrics.captions import CaptionScores
from avcap_zoo.weights.fingerprint import fingerprint
from avcap_zoo.weights.load import compare_keys

CHECKPOINT_KEY = "avcap_zoo"
_SHOWN_CAPTIONS = 3


@dataclass
class OptimizerSettings:
    """AdamW and its learning rate.

    Weight decay spares biases, norms and every other tensor with fewer than two dimensions.

    Args:
        lr: peak learning rate.
        betas: AdamW's.
        weight_decay: AdamW's.
        warmup_steps: optimizer steps of linear warm-up from 0.
        warmup_epochs: the same in epochs; used when `warmup_steps` is None.
        schedule: after the warm-up: `cosine` or `linear` down to `min_lr_share`, or `constant`.
        min_lr_share: last learning rate as a share of the peak.
    """

    lr: float = 5e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-6
    warmup_steps: int | None = None
    warmup_epochs: float = 2.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_share: float = 0.0


@dataclass
class ScoreSettings:
    """Which scores are computed when.

    Args:
        validation: after each validation; `cider` is needed by the shipped configs, which choose checkpoints by it.
        test: after `lightning test`.
        tokenizer: `auto`, `ptb` or `python`.
        strict: a score that cannot be computed is an error instead of being left out.
    """

    validation: tuple[str, ...] = ("bleu", "rouge_l", "cider")
    test: tuple[str, ...] = ("bleu", "rouge_l", "cider", "meteor", "spice")
    tokenizer: Literal["auto", "ptb", "python"] = "auto"
    strict: bool = False


@dataclass
class Requirements:
    """What a system needs of its data module.

    Attributes:
        sample_rate_hz: rate of the sound, or None if it does not listen.
        modalities: what must be decoded.
    """

    sample_rate_hz: int | None
    modalities: tuple[Modality, ...] = field(default=("audio", "visual"))


class CaptionSystem(LightningModule):
    """Base of the systems. A subclass builds `self.model` in `configure_model` and gives four things.

    - `requirements`: checked against the data module before anything runs;
    - `training_loss(batch)`: losses by name; their sum is minimised;
    - `caption(batch)`: one caption per clip;
    - `decode_settings()`: recorded beside every predicted caption.

    Checkpoints hold the trained tensors, the buffers that move, and the fingerprint of what was frozen. Test and
    predict write JSON lines into the run's folder.

    Args:
        optimizer: see `OptimizerSettings`.
        scores: see `ScoreSettings`.
        init_args: all arguments of the subclass, for the checkpoint.
    """

    model: nn.Module

    def __init__(self, optimizer: OptimizerSettings, scores: ScoreSettings, init_args: Mapping[str, Any]) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.score_settings = scores
        self.init_args = {key: plain(value) for key, value in init_args.items()}
        self.strict_loading = False  # we check keys ourselves: frozen weights are left out on purpose
        self.prepared = False
        self._scores: CaptionScores | None = None
        self._rows: list[dict[str, Any]] = []
        self._rng_states: dict[str, Any] | None = None
        self._clock = (0.0, 0)

    @property
    @abstractmethod
    def requirements(self) -> Requirements:
        """What the data module must give."""

    @abstractmethod
    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses by name, weighted; their sum is minimised."""

    @abstractmethod
    def caption(self, batch: Batch) -> list[str]:
        """One caption per clip of the batch."""

    @abstractmethod
    def decode_settings(self) -> dict[str, Any]:
        """What the captions depend on beside the weights."""

    def look_inside(self, batch: Batch) -> None:
        """Log a picture of what the system does with the first validation batch; nothing by default."""

    # Steps

    def setup(self, stage: str) -> None:
        """Check the data module against `requirements`.

        Raises:
            ConfigError: sample rate or modalities do not fit; names both values and keys.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ClipSource):
            return
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
        """Restore the random states of a resumed run; start the clock."""
        if self._rng_states is not None:
            _set_rng_states(self._rng_states)
            self._rng_states = None
        self._clock = (time.perf_counter(), 0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Minimise the sum of the losses.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; names the clips. No step has been taken on it.
        """
        if len(batch) == 0:
            return None
        losses = self.training_loss(batch)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        if not torch.isfinite(total):
            parts = ", ".join(f"{name} {float(loss.detach()):g}" for name, loss in losses.items())
            raise NonFiniteLossError(
                f"loss is not finite at step {self.global_step} ({parts}) on clips {', '.join(batch.clip_ids)}; "
                f"the weights are those of the step before. Lower model.init_args.optimizer.lr or look at these clips"
            )
        named = {f"train/loss_{name}": loss.detach() for name, loss in losses.items()} if len(losses) > 1 else {}
        self.log_dict(named, batch_size=len(batch))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch))
        return total

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log learning rate and throughput."""
        started, clips = self._clock
        self._clock = (started, clips + len(batch) * self.trainer.world_size)
        if self.trainer.global_step % max(1, getattr(self.trainer, "log_every_n_steps", 50)) == 0:
            rate = self._clock[1] / max(time.perf_counter() - started, 1e-9)
            self._clock = (time.perf_counter(), 0)
            self.log("train/clips_per_s", rate, prog_bar=True, batch_size=len(batch))
            self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], prog_bar=True, batch_size=len(batch))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Caption and remember; look inside once per validation."""
        self._caption_and_score(batch)
        if batch_idx == 0 and len(batch) and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self.look_inside(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Caption and remember."""
        self._caption_and_score(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Caption; references are not needed."""
        captions = self.caption(batch) if len(batch) else []
        self._rows += [{"id": i, "caption": c} for i, c in zip(batch.clip_ids, captions, strict=True)]
        return captions

    def on_validation_epoch_start(self) -> None:
        """Forget the last scores."""
        self._start_scoring(self.score_settings.validation)

    def on_test_epoch_start(self) -> None:
        """Forget the last scores."""
        self._start_scoring(self.score_settings.test)

    def on_predict_epoch_start(self) -> None:
        """Forget the last captions."""
        self._rows = []

    def on_validation_epoch_end(self) -> None:
        """Score the captions and show some of them."""
        if self.trainer.sanity_checking or self._scores is None:
            return
        for name, value in self._scores.compute().items():
            # The value is the same on every rank; sync_dist only keeps Lightning from warning.
            self.log(f"val/{name}", value, prog_bar=name == "cider", sync_dist=True)
        rank_zero_info("\n".join(self._sample_lines()))
        self._log_text("val/captions", "  \n".join(self._sample_lines()))

    def on_test_epoch_end(self) -> None:
        """Score the captions; write `test_captions.jsonl` and `test_scores.json`."""
        if self._scores is None:
            return
        scores = self._scores.compute()
        self.log_dict({f"test/{name}": value for name, value in scores.items()}, sync_dist=True)
        per_clip = self._scores.per_clip
        rows = [{**row, "scores": per_clip.get(row["id"], {})} for row in self._gathered_rows()]
        self._write_rows("test_captions.jsonl", rows)
        data = getattr(self.trainer, "datamodule", None)
        official = data.num_official("test") if isinstance(data, ClipSource) else len(rows)
        summary = {
            "scores": scores,
            "missing_scores": self._scores.missing,
            "tokenizer": self._scores.tokenizer_used,
            "clips_scored": self._scores.num_clips,
            "clips_official": official,
            "clips_skipped": sorted(data.skipped.get("test", {})) if isinstance(data, ClipSource) else [],
            **self._provenance(),
        }
        if self.trainer.is_global_zero:
            (self._folder() / "test_scores.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    def on_predict_epoch_end(self) -> None:
        """Write `predictions.jsonl`: id, caption, decode settings, versions."""
        provenance = self._provenance()
        self._write_rows("predictions.jsonl", [{**row, **provenance} for row in self._gathered_rows()])

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
        # One pass over memory on a processor; elsewhere torch chooses, and fused would refuse fp16 with clipping.
        fused = True if all(p.device.type == "cpu" for p in trained) else None
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, fused=fused
        )
        total = int(self.trainer.estimated_stepping_batches)
        warmup = settings.warmup_steps
        if warmup is None:
            epochs = self.trainer.max_epochs if self.trainer.max_epochs and self.trainer.max_epochs > 0 else None
            warmup = round(total * min(1.0, settings.warmup_epochs / epochs)) if epochs else 0
        share = partial(learning_rate_share, total=total, warmup=warmup, settings=settings)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Checkpoints

    def self_made_modules(self) -> list[str]:
        """Sub-modules whose weights exist in no file of their own, so that checkpoints must hold them whole."""
        return [f"model.{name}" for name in getattr(self.model, "self_made", [])]

    def checkpoint_names(self) -> set[str]:
        """Names of the tensors that a checkpoint holds: trained, moving, or without another home."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        homeless = tuple(f"{name}." for name in self.self_made_modules())
        parameters = dict(self.named_parameters())
        return {
            name
            for name in self.state_dict()
            if name in trained or name.startswith(homeless or ("\0",)) or name not in parameters
        }

    def frozen_fingerprint(self) -> str:
        """Fingerprint of the tensors that a checkpoint leaves out."""
        held = self.checkpoint_names()
        return fingerprint({name: tensor for name, tensor in self.state_dict().items() if name not in held})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what the run made, and note what it stands on."""
        held = self.checkpoint_names()
        checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in held}
        checkpoint[CHECKPOINT_KEY] = {
            "class_path": f"{type(self).__module__}.{type(self).__name__}",
            "init_args": json.dumps(self.init_args),
            "frozen": self.frozen_fingerprint(),
            "version": __version__,
            "rng": _rng_states(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint belongs to this model and this frozen base.

        Raises:
            WeightsError: other system, other tensors, or another base.
        """
        note = checkpoint.get(CHECKPOINT_KEY)
        if not isinstance(note, dict):
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

    # Output

    def _start_scoring(self, names: tuple[str, ...]) -> None:
        if self._scores is None or self._scores.metrics != names:
            self._scores = CaptionScores(
                names, tokenizer=self.score_settings.tokenizer, strict=self.score_settings.strict
            )
        self._scores.reset()
        self._rows = []

    def _caption_and_score(self, batch: Batch) -> None:
        if len(batch) == 0:
            return
        captions = self.caption(batch)
        if self._scores is not None:
            self._scores.update(batch.clip_ids, captions, batch.captions)
        rows = zip(batch.clip_ids, captions, batch.captions, strict=True)
        self._rows += [{"id": i, "caption": c, "references": r} for i, c, r in rows]

    def _sample_lines(self) -> list[str]:
        lines = [f"after step {self.global_step}:"]
        for row in self._rows[:_SHOWN_CAPTIONS]:
            lines += [f"  {row['id']}  {row['caption']}", f"  {'':{len(row['id'])}}  ({row['references'][0]})"]
        return lines

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

    def _gathered_rows(self) -> list[dict[str, Any]]:
        """Rows of all processes, each id once, in order of id."""
        gathered = [self._rows]
        if self.trainer.world_size > 1:
            gathered = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self._rows)
        unique = {row["id"]: row for rows in gathered for row in rows}
        return [unique[key] for key in sorted(unique)]

    def _write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        if not self.trainer.is_global_zero:
            return
        path = self._folder() / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        rank_zero_info(f"{len(rows)} captions written to {path}")

    def _folder(self) -> Path:
        folder = run_folder(self.trainer)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _provenance(self) -> dict[str, Any]:
        versions = {name: version(name) for name in ("lightning", "torch", "transformers")}
        return {
            "system": type(self).__name__,
            "decode": self.decode_settings(),
            "versions": {"avcap_zoo": __version__, **versions},
        }


def plain(value: Any) -> Any:
    """A settings dataclass as a dict; anything else as it is."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def learning_rate_share(step: int, total: int, warmup: int, settings: OptimizerSettings) -> float:
    """Learning rate at an optimizer step as a share of the peak.

    Args:
        step: from 0.
        total: optimizer steps of the run.
        warmup: steps of linear warm-up.
        settings: schedule and last share.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    fall = progress if settings.schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return 1.0 - (1.0 - settings.min_lr_share) * fall


def _rng_states() -> dict[str, Any]:
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_rng_states(states: dict[str, Any]) -> None:
    kind, numbers, gauss = states["python"]
    random.setstate((kind, tuple(numbers), gauss))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
