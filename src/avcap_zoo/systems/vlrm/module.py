"""VLRM as a LightningModule."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avcap_zoo.backbones.language import GenerationSettings
from avcap_zoo.batch import Batch, ClipSource
from avcap_zoo.errors import ConfigError, NonFiniteLossError
from avcap_zoo.ops.returns import explained_variance, whiten
from avcap_zoo.systems.base import (
    CHECKPOINT_KEY,
    MOST_SKIPPED,
    OptimizerSettings,
    Requirements,
    StepWork,
    rng_states,
    set_rng_states,
)
from avcap_zoo.systems.captions import CaptionSystem, Explanation, ScoreSettings, Stage
from avcap_zoo.systems.vlrm.caption_table import ShownCaption, draw_captions
from avcap_zoo.systems.vlrm.captioner import CaptionerSettings, SamplingSettings
from avcap_zoo.systems.vlrm.evaluation import RecallJudge, RecallSettings, fluency, wording
from avcap_zoo.systems.vlrm.model import Part, PolicyPass, Rollout, UpdateSettings, VLRMModel, unpaced
from avcap_zoo.systems.vlrm.rewards import RewardSettings, all_options, make_reward
from avcap_zoo.systems.vlrm.value_head import ValueHeadSettings

_RARE = 0.01
_END_MARK = "[end]"
_NAMED_IDS = 5


@dataclass
class AdamSettings:
    """Adam without weight decay, its learning rate rising linearly from 0 and then constant.

    Args:
        lr: learning rate after the warm-up.
        betas: Adam's.
        eps: Adam's.
        warmup_steps: iterations until the full learning rate; the first one has learning rate 0.
    """

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_steps: int = 20


@dataclass
class MonitorSettings:
    """The table of images and captions in the logger.

    Args:
        every_n_steps: iterations between two tables; 0 = none.
        num_images: rows; the first images of the first batch are shown throughout.
    """

    every_n_steps: int = 50
    num_images: int = 4


class _GivenUpError(Exception):
    """An iteration gives way to a signal."""


class VLRM(CaptionSystem):
    """Image captioning taught by the judgement of other models, without labels.

    A training batch is a whole iteration: captions are sampled for all its images, judged, and used for exactly one
    step of value function and policy. `data.init_args.batch_size` times the number of devices is the paper's 4096.

    Args:
        captioner: BLIP-2 and the adapters of the value function.
        sampling: how captions are drawn in training.
        rewards: terms of the return by name.
        value_head: its shape.
        update: how an iteration becomes a step.
        policy_optimizer: of query tokens, Q-Former and projection.
        value_optimizer: of adapters and value head.
        generation: decoding outside training.
        scores: which scores are computed.
        monitor: pictures for the logger.
        recall: the CLIP model that captions are looked up with in tests; None = they are not.

    Source: Dzabraev, Kunitsyn, Ivaniuta, "VLRM: Vision-Language Models act as Reward Models for Image Captioning",
        arXiv 2404.01911.
    """

    model: VLRMModel
    gives_way: ClassVar[bool] = True

    def __init__(
        self,
        captioner: CaptionerSettings,
        sampling: SamplingSettings,
        rewards: dict[str, RewardSettings],
        value_head: ValueHeadSettings,
        update: UpdateSettings,
        policy_optimizer: AdamSettings,
        value_optimizer: AdamSettings,
        generation: GenerationSettings,
        scores: ScoreSettings,
        monitor: MonitorSettings,
        recall: RecallSettings | None = None,
    ) -> None:
        arguments = {
            "captioner": captioner,
            "sampling": sampling,
            "rewards": {name: asdict(term) for name, term in rewards.items()},
            "value_head": value_head,
            "update": update,
            "policy_optimizer": policy_optimizer,
            "value_optimizer": value_optimizer,
            "generation": generation,
            "scores": scores,
            "monitor": monitor,
            "recall": recall,
        }
        common = OptimizerSettings(
            lr=policy_optimizer.lr,
            betas=policy_optimizer.betas,
            weight_decay=0.0,
            warmup_steps=policy_optimizer.warmup_steps,
        )
        super().__init__(common, scores, arguments)
        self.automatic_optimization = False
        if not rewards:
            raise ConfigError("model.init_args.rewards is empty: without a reward there is nothing to learn")
        for name, term in rewards.items():
            make_reward(name, term)  # mistakes are found before anything is loaded
        self.captioner = captioner
        self.sampling = sampling
        self.rewards = rewards
        self.value_head = value_head
        self.update = update
        self.part_optimizers = (policy_optimizer, value_optimizer)
        self.generation = generation
        self.monitor = monitor
        self.recall = recall
        self._judge: RecallJudge | None = None
        self._shown: dict[str, Any] | None = None

    @property
    def requirements(self) -> Requirements:
        """Pictures."""
        return Requirements(None, ("visual",))

    def configure_model(self) -> None:
        """Build the model once, on the device and in the precision that Lightning has set."""
        if not hasattr(self, "model"):
            self.model = VLRMModel(
                self.captioner, self.sampling, self.value_head, self.rewards, self.update, self.generation
            )

    def settings_in_use(self) -> dict[str, Any]:
        """As in the base, with the options of the rewards that were left at their defaults."""
        rewards = {name: {**asdict(term), "options": all_options(term)} for name, term in self.rewards.items()}
        return self.init_args | {"rewards": rewards}

    def step_work(self, num_frames: int) -> StepWork:
        """Each caption goes through the language model to be drawn, for the reference, the value and the policy."""
        blip = self.model.captioner.blip.config
        vision = blip.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        queries, drawn = self.model.captioner.num_queries, self.sampling.max_new_tokens
        positions: dict[str, float] = {"captioner.blip.vision_model": patches, "captioner.blip.qformer": 3 * queries}
        positions["captioner.blip.language_model"] = 3 * (queries + drawn) + drawn
        positions["value_head"] = drawn
        positions |= {f"rewards.{name}": patches + drawn for name, _ in self.model.reward_items()}
        return StepWork(positions, ("captioner.blip.language_model",), self.update.micro_batch_size)

    def setup(self, stage: str) -> None:
        """Check data, strategy and precision.

        Raises:
            ConfigError: the data do not fit, or parameters are sharded, or gradients would be scaled.
        """
        super().setup(stage)
        if stage != "fit":
            return
        strategy = self.trainer.strategy
        if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
            raise ConfigError(
                f"VLRM trains on one device, with trainer.strategy ddp or with -c configs/device/fsdp.yaml, not with "
                f"{type(strategy).__name__}"
            )
        if self.trainer.precision in {"16-mixed", "16-true"}:
            raise ConfigError(f"VLRM does not train with trainer.precision {self.trainer.precision}; use bf16-mixed")

    def on_fit_start(self) -> None:
        """Let the rewards look at the training captions."""
        # Lightning proposes to save the weights of before the step; a checkpoint of after it is what resumes.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        data = getattr(self.trainer, "datamodule", None)
        captions = data.training_captions if isinstance(data, ClipSource) else list
        for _, reward in self.model.reward_items():
            reward.prepare(captions)

    # The iteration

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration: sample, judge, value pass, policy pass, one step of each optimizer.

        It takes long. A signal that comes before its gradients are complete is obeyed as if it had come before the
        iteration, which is then done again.

        Raises:
            NonFiniteRewardError: a reward is not finite and such captions are not to be skipped.
            NonFiniteLossError: a loss or gradient is not finite; no step has been taken on it.
        """
        if not self.every_process_has(batch):
            return
        random_states = rng_states()
        while True:
            try:
                self._iterate(batch)
            except _GivenUpError:
                for parameter in [*self.model.policy_parameters(), *self.model.value_parameters()]:
                    parameter.grad = None
                set_rng_states(random_states)
                assert self.interruption is not None
                self.interruption.obey()
            else:
                return

    def _iterate(self, batch: Batch) -> None:
        """An iteration, which may be given up between its parts."""
        self._remember_shown(batch)
        rollout = self.model.collect(batch, self._gather, self._paced)
        counts = self._total(rollout.counts())
        skipped = self._total(torch.tensor(float(len(batch)), device=self.device)) - counts[0]
        if skipped > 0:
            rank_zero_warn(f"step {self.global_step}: {int(skipped)} captions left out, their rewards are not finite")
        with self._local_gradients():
            values, value_loss = self.model.value_pass(rollout, counts, self.manual_backward, self._paced)
            advantages = rollout.returns - values
            whitened = whiten(advantages, rollout.mask, spread=self.update.advantage_std, total=self._total)
            policy = self.model.policy_pass(rollout, whitened, counts, self.manual_backward, self._paced)
        losses = {"value": self._total(value_loss), "policy": self._total(policy.loss)}
        norms = self._step(losses, batch)
        if norms is None:
            return
        self._log_step(rollout, values, policy, losses, norms, counts)
        every = self.monitor.every_n_steps
        if every and self.global_step % every == 0 and self._shows:
            self._log_table()

    def _step(self, losses: dict[str, Tensor], batch: Batch) -> dict[str, Tensor] | None:
        """Sum and clip the gradients and step; returns the norms before clipping, or None if the batch is skipped."""
        parts = {"policy": self.model.policy_parameters(), "value": self.model.value_parameters()}
        norms = {name: self._sum_gradients(parameters) for name, parameters in parts.items()}
        broken = [f"loss_{name} {float(value):g}" for name, value in losses.items() if not value.isfinite()]
        broken += [f"gradient of {name} {float(value):g}" for name, value in norms.items() if not value.isfinite()]
        optimizers = self.optimizers(use_pl_optimizer=False)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        if broken:
            for optimizer in optimizers:
                optimizer.zero_grad()
            ids = ", ".join(batch.clip_ids[:_NAMED_IDS]) + (", ..." if len(batch) > _NAMED_IDS else "")
            found = f"not finite at step {self.global_step}: {', '.join(broken)} on clips {ids}"
            self._skipped_in_a_row += 1
            if self.update.on_non_finite_loss == "raise" or self._skipped_in_a_row > MOST_SKIPPED:
                raise NonFiniteLossError(
                    f"{found}; the weights are those of the step before. "
                    f"Lower model.init_args.policy_optimizer.lr or look at these clips"
                )
            warnings.warn(f"{found}; the batch is skipped", stacklevel=1)
            return None
        self._skipped_in_a_row = 0
        threshold = self.update.gradient_clip_val
        for parameters in parts.values():
            if threshold and self.update.gradient_clip == "norm":
                nn.utils.clip_grad_norm_(parameters, threshold)
            elif threshold:
                nn.utils.clip_grad_value_(parameters, threshold)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, settings in zip(groups, self.part_optimizers, strict=True):
            group["lr"] = settings.lr * warm_up_share(self.global_step, settings.warmup_steps)
        # Lightning counts the steps of its own optimizers; one of them steps by it, so that one iteration is one step.
        for optimizer in optimizers[1:]:
            optimizer.step()
        counted = self.optimizers()
        (counted[0] if isinstance(counted, list) else counted).step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        return norms

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam for policy and value function: one each, or one with two groups."""
        parts = (self.model.policy_parameters(), self.model.value_parameters())
        groups = [
            {"params": parameters, "lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
            for parameters, settings in zip(parts, self.part_optimizers, strict=True)
        ]
        if self.update.optimizers == "joint":
            return torch.optim.Adam(groups)
        return [torch.optim.Adam([group]) for group in groups]

    # Several processes

    def _total(self, value: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.trainer.world_size > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
        return value

    def _gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """Rows of all processes in order, and where this process's rows begin; their numbers may differ."""
        if self.trainer.world_size == 1:
            return rows, 0
        sizes = torch.zeros(self.trainer.world_size, dtype=torch.long, device=rows.device)
        sizes[self.global_rank] = len(rows)
        counts = self._total(sizes).tolist()
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(gathered, padded)
        everyone = torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
        return everyone, sum(counts[: self.global_rank])

    def _paced(self, parts: Iterable[Part]) -> Iterator[tuple[Part, bool]]:
        """Give part after part, and after each ask for signals: as often on every process, as all of them must.

        Raises:
            _GivenUpError: there is one.
        """
        if self.interruption is None and not self.shares_layers:
            yield from unpaced(parts)
            return
        own = list(parts)
        most = self._gather(torch.tensor([len(own)], device=self.device))[0].max()
        for turn in range(int(most)):
            if turn < len(own):
                yield own[turn], True
            elif self.shares_layers:
                yield own[0], False
            if self.interruption is not None and self.interruption.waits():
                raise _GivenUpError

    @contextmanager
    def _local_gradients(self) -> Iterator[None]:
        """Keep DDP from summing gradients at every backward pass: there are many in a step, and we sum once."""
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            with wrapped.no_sync():
                yield
        else:
            yield

    def _sum_gradients(self, parameters: list[nn.Parameter]) -> Tensor:
        """Sum gradients over the processes; returns their norm."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(parameter.grad)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    # Monitoring

    def _log_step(
        self,
        rollout: Rollout,
        values: Tensor,
        policy: PolicyPass,
        losses: dict[str, Tensor],
        norms: dict[str, Tensor],
        counts: Tensor,
    ) -> None:
        """Log what the README lists, averaged over the captions of all processes."""
        mask, kept = rollout.mask, rollout.mask.any(dim=1)
        sums: dict[str, Tensor] = {
            f"reward_{name}": (term.masked_fill(~mask, 0).sum(dim=1) if term.ndim == 2 else term)[kept].sum()
            for name, term in rollout.terms.items()
        }
        sums["missing_end"] = (~rollout.captions.ended)[kept].sum()
        sums["caption_length"] = mask.sum()
        per_token = {
            "return": rollout.returns,
            "value": values,
            "entropy": policy.entropy,
            "share_rare": (policy.log_probs.exp() < _RARE).float(),
        }
        sums |= {name: value[mask].sum() for name, value in per_token.items()}
        totals = self._total(torch.stack([value.double() for value in sums.values()])).float()
        divisors = [counts[1] if name in per_token else counts[0] for name in sums]
        logged = {
            name: total / float(divisor.clamp_min(1))
            for name, total, divisor in zip(sums, totals, divisors, strict=True)
        }
        all_values, all_returns = (self._gather(tensor[mask])[0][:, None] for tensor in (values, rollout.returns))
        everywhere = torch.ones_like(all_values, dtype=torch.bool)
        logged["explained_variance"] = explained_variance(all_values, all_returns, everywhere)
        logged |= {f"loss_{name}": value for name, value in losses.items()}
        logged |= {f"grad_norm_{name}": value for name, value in norms.items()}
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=1)
        self.log("train/loss", losses["policy"] + losses["value"], prog_bar=True, batch_size=1)

    @property
    def _shows(self) -> bool:
        """Whether this process captions the shown images: all do that share layers, the same ones."""
        return self.trainer.is_global_zero or self.shares_layers

    @torch.no_grad()
    def _remember_shown(self, batch: Batch) -> None:
        """Keep the first images of the run and what they are called before it."""
        if self._shown is not None or not self.monitor.every_n_steps or not self._shows:
            return
        shown = _first(batch, self.monitor.num_images)
        if self.shares_layers:
            shown = self.trainer.strategy.broadcast(shown.to("cpu")).to(self.device)
        frames = None if shown.frames is None else shown.frames.cpu()
        self._shown = {
            "ids": shown.clip_ids,
            "frames": frames,
            "references": shown.captions,
            "before": self.model.caption(shown),
        }

    def _log_table(self) -> None:
        """Log images, captions before and now, and the return of each token."""
        shown = self._shown
        if shown is None:
            return
        frames = shown["frames"].to(self.device)
        batch = Batch(clip_ids=shown["ids"], captions=shown["references"], caption=shown["before"], frames=frames)
        rollout = self.model.judge_captions(batch)
        if not self.trainer.is_global_zero:
            return
        self.log_picture("captions", draw_captions(self._shown_rows(rollout, shown["before"])))
        lines = [
            f"{clip_id}: {before} -> {now}"
            for clip_id, before, now in zip(shown["ids"], shown["before"], rollout.captions.texts, strict=True)
        ]
        self._log_text("train/captions", "  \n".join(lines))

    def _shown_rows(self, rollout: Rollout, before: list[str]) -> list[ShownCaption]:
        captions = rollout.captions
        rows = []
        for index, older in enumerate(before):
            tokens = captions.tokens[index][captions.mask[index]].tolist()
            pieces = [piece.decode("utf-8", "replace") for piece in self.model.token_bytes(tokens)]
            if captions.ended[index]:
                pieces[-1] = f" {_END_MARK}"
            image = captions.images[index].permute(1, 2, 0).cpu().numpy()
            rows.append(ShownCaption(image, older, pieces, rollout.returns[index][: len(tokens)].tolist()))
        return rows

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the shown images and their first captions, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["shown"] = self._shown

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the shown images and their first captions up again."""
        super().on_load_checkpoint(checkpoint)
        self._shown = checkpoint[CHECKPOINT_KEY].get("shown")

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Forget the last scores; load the judge if validation has one."""
        super().on_validation_epoch_start()
        self._load_judge("val")

    def on_test_epoch_start(self) -> None:
        """Forget the last scores; load the judge."""
        super().on_test_epoch_start()
        self._load_judge("test")

    def _load_judge(self, stage: Stage) -> None:
        wanted = self.recall is not None and (stage == "test" or self.recall.validation)
        self._judge = RecallJudge(self.recall, self.device) if self.recall is not None and wanted else None

    def observe(self, batch: Batch, captions: list[str], stage: Stage) -> None:
        """Let the judge see pictures and captions."""
        if self._judge is not None:
            self._judge.look_up(batch, captions)

    def further_scores(self, rows: list[dict[str, Any]], stage: Stage) -> dict[str, float]:
        """Recall of the captions' pictures, their wording, and how natural their text is to the language model."""
        captions = [row["caption"] for row in rows]
        scores = wording(captions) | {"fluency": fluency(self.model.captioner, captions)}
        if self._judge is not None:
            scores |= self._judge.scores.compute()
            self._judge = None  # its memory is free again
        return scores

    # Captions

    def caption(self, batch: Batch) -> list[str]:
        """One caption per clip."""
        return self.model.caption(batch)

    def decode_settings(self) -> dict[str, Any]:
        """Generation settings."""
        return asdict(self.generation)

    def explain(self, batch: Batch) -> list[Explanation]:
        """Each caption with the return of its tokens drawn over it."""
        rollout = self.model.judge_captions(batch)
        rows = self._shown_rows(rollout, [""] * len(batch))
        texts = rollout.captions.texts
        return [
            Explanation(clip_id, text, draw_captions([row]))
            for clip_id, text, row in zip(batch.clip_ids, texts, rows, strict=True)
        ]


def warm_up_share(step: int, warmup_steps: int) -> float:
    """Learning rate at an iteration (from 0) as a share of the full one: linear from 0, then 1."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def _first(batch: Batch, count: int) -> Batch:
    """The first clips of a batch, with their pictures."""
    frames = None if batch.frames is None else batch.frames[:count]
    return Batch(
        clip_ids=batch.clip_ids[:count], captions=batch.captions[:count], caption=batch.caption[:count], frames=frames
    )
