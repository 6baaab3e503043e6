"""VLRM without Lightning: sample captions, judge them, and make value and policy losses of the judgement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.adapters import adapters_off
from avcap_zoo.backbones.language import GenerationSettings
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError
from avcap_zoo.ops.returns import (
    Objective,
    Reduction,
    Spread,
    policy_loss,
    token_log_probs,
    token_returns,
    token_weights,
    value_loss,
)
from avcap_zoo.systems.vlrm.alignment import TokenBytes, align
from avcap_zoo.systems.vlrm.captioner import Captioner, CaptionerSettings, SamplingSettings
from avcap_zoo.systems.vlrm.rewards import Reward, RewardSettings, SampledCaptions, check_finite, make_reward
from avcap_zoo.systems.vlrm.value_head import ValueHead, ValueHeadSettings

Gather = Callable[[Tensor], tuple[Tensor, int]]
Part = TypeVar("Part")


class Paced(Protocol):
    """Gives the parts of a piece of work one by one; between two of them the iteration may be given up."""

    def __call__(self, parts: Iterable[Part]) -> Iterator[tuple[Part, bool]]:
        """The same parts, each with True; then the first again, with False, as often as it is to be done for nothing.

        That is where layers are shared out, and another process has more parts: all must run them equally often.
        """


@dataclass
class UpdateSettings:
    """How an iteration becomes one step of the optimizers.

    Args:
        policy_objective: `prob` as the paper writes, or `logprob` as A2C has it.
        prob_distribution: the token probabilities are those of the `plain` softmax or of the `sampling` law.
        advantage_std: deviation that advantages are divided by.
        value_position: the value of a token reads the state `before` it or `after` it.
        loss_reduction: mean over captions of token means, or mean over all tokens.
        gamma: discount per token.
        gradient_clip: by `norm` of each part or by `value` of each number.
        gradient_clip_val: the threshold; 0 = no clipping.
        optimizers: one `per_part`, or one `joint` with two groups.
        sampling_batch_size: captions drawn and judged at once; None = the whole batch.
        micro_batch_size: captions in one forward and backward pass; None = the whole batch. Changes no result.
        on_non_finite_reward: `raise`, or `skip` such captions and go on.
        on_non_finite_loss: `raise`, or `skip` such a batch, naming its clips; ten in a row end the run all the same.
    """

    policy_objective: Objective = "prob"
    prob_distribution: Literal["plain", "sampling"] = "plain"
    advantage_std: Spread = "unbiased"
    value_position: Literal["before", "after"] = "before"
    loss_reduction: Reduction = "caption"
    gamma: float = 1.0
    gradient_clip: Literal["norm", "value"] = "norm"
    gradient_clip_val: float = 1.0
    optimizers: Literal["per_part", "joint"] = "per_part"
    sampling_batch_size: int | None = None
    micro_batch_size: int | None = None
    on_non_finite_reward: Literal["raise", "skip"] = "raise"
    on_non_finite_loss: Literal["raise", "skip"] = "raise"


@dataclass
class Rollout:
    """What an iteration has sampled, and what it was judged to be worth.

    Attributes:
        captions: the samples of this process.
        prefix: (B, Q, H) image embeddings that they were drawn with.
        terms: (B,) or (B, T) numbers of each reward, before the weights.
        returns: (B, T) float32, 0 at padding.
        mask: (B, T) bool; all False for a caption that is left out.
    """

    captions: SampledCaptions
    prefix: Tensor
    terms: dict[str, Tensor]
    returns: Tensor
    mask: Tensor

    def counts(self) -> Tensor:
        """(2,) float64: captions with a real token, and real tokens."""
        return torch.stack([self.mask.any(dim=1).sum(), self.mask.sum()]).double()


@dataclass
class PolicyPass:
    """What the policy pass found.

    Attributes:
        loss: scalar, this process's part of the loss.
        log_probs: (B, T) of the sampled tokens.
        entropy: (B, T) in nats.
    """

    loss: Tensor
    log_probs: Tensor
    entropy: Tensor


def alone(rows: Tensor) -> tuple[Tensor, int]:
    """`gather` for one process."""
    return rows, 0


def unpaced(parts: Iterable[Part]) -> Iterator[tuple[Part, bool]]:
    """`paced` for work that is done whole."""
    return ((part, True) for part in parts)


class VLRMModel(nn.Module):
    """VLRM (arXiv 2404.01911): a BLIP-2 captioner, its value head and the rewards. Always in evaluation mode.

    Args:
        captioner: see `CaptionerSettings`.
        sampling: how captions are drawn.
        value_head: see `ValueHeadSettings`.
        rewards: terms of the return by name.
        update: see `UpdateSettings`.
        generation: decoding of captions outside training.

    Raises:
        ConfigError, WeightsError: from the parts, with the key in the message.
    """

    def __init__(
        self,
        captioner: CaptionerSettings,
        sampling: SamplingSettings,
        value_head: ValueHeadSettings,
        rewards: Mapping[str, RewardSettings],
        update: UpdateSettings,
        generation: GenerationSettings,
    ) -> None:
        super().__init__()
        self.sampling = sampling
        self.reward_settings = dict(rewards)
        self.update = update
        self.generation = generation
        self.captioner = Captioner(captioner)
        self.token_bytes = TokenBytes(self.captioner.tokenizer, self.captioner.end_id)
        self.value_head = ValueHead(self.captioner.width, value_head)
        self.rewards = nn.ModuleDict({name: make_reward(name, settings) for name, settings in rewards.items()})
        for name, reward in self.reward_items():
            reward.build(self.captioner, f"model.init_args.rewards.{name}.options")
        self.rewards.requires_grad_(False)
        self.self_made = ["captioner"] if captioner.source is None else []
        self.self_made += [f"rewards.{name}" for name, reward in self.reward_items() if reward.self_made]
        """Parts without a file of their own: their weights exist only in this model and its checkpoints."""
        self.eval()

    def train(self, mode: bool = True) -> VLRMModel:
        """Stay in evaluation mode: what is sampled must be what is trained."""
        return super().train(False)

    def reward_items(self) -> list[tuple[str, Reward]]:
        """Name and term of each reward."""
        return [(name, module) for name, module in self.rewards.items() if isinstance(module, Reward)]

    def policy_parameters(self) -> list[nn.Parameter]:
        """What the policy loss trains: query tokens, Q-Former, projection."""
        return self.captioner.policy_parameters()

    def value_parameters(self) -> list[nn.Parameter]:
        """What the value loss trains: adapters and value head."""
        return [*self.captioner.value_parameters(), *self.value_head.parameters()]

    # Sampling and judging

    @torch.no_grad()
    def collect(self, batch: Batch, gather: Gather = alone, paced: Paced = unpaced) -> Rollout:
        """Draw one caption per clip and compute the return of each token (step 1 of the iteration).

        Args:
            batch: pictures, at least one clip.
            gather: rows of all processes and where this one's begin.
            paced: the captions that are drawn, or judged, at once.

        Raises:
            ConfigError: the batch has no pictures.
            NonFiniteRewardError: see `check_finite`.
        """
        images = middle_frames(batch)
        rows = range(0, len(images), self.update.sampling_batch_size or len(images))
        features: list[Tensor] = []
        prefixes: list[Tensor] = []
        drawn: list[tuple[Tensor, Tensor, Tensor]] = []
        for start, is_new in paced(rows):
            seen = self.captioner.encode_images(images[start : start + rows.step])
            prefix = self.captioner.project(seen)
            sample = self.captioner.sample(prefix, self.sampling)
            if is_new:
                features.append(seen)
                prefixes.append(prefix)
                drawn.append(sample)
        length = self.captioner.padded_length(max(tokens.shape[1] for tokens, _, _ in drawn))
        pad = nn.functional.pad
        captions = self.describe(
            batch.clip_ids,
            images,
            torch.cat(features),
            torch.cat([pad(t, (0, length - t.shape[1]), value=self.captioner.pad_id) for t, _, _ in drawn]),
            torch.cat([pad(m, (0, length - m.shape[1])) for _, m, _ in drawn]),
            torch.cat([ended for _, _, ended in drawn]),
            batch.captions,
        )
        return self.judge(captions, torch.cat(prefixes), gather, paced)

    def describe(
        self,
        clip_ids: Sequence[str],
        images: Tensor,
        features: Tensor,
        tokens: Tensor,
        mask: Tensor,
        ended: Tensor,
        references: Sequence[Sequence[str]],
    ) -> SampledCaptions:
        """Put captions together with their texts; shapes as in `SampledCaptions`."""
        silent = tokens.masked_fill(~mask, self.captioner.end_id).tolist()
        aligned = [align(self.token_bytes(row)) for row in silent]
        return SampledCaptions(
            list(clip_ids), images, features, tokens, mask, ended, aligned, [list(texts) for texts in references]
        )

    @torch.no_grad()
    def judge(
        self, captions: SampledCaptions, prefix: Tensor, gather: Gather = alone, paced: Paced = unpaced
    ) -> Rollout:
        """Pay the captions by all rewards.

        Args:
            captions: this process's whole batch.
            prefix: (B, Q, H) they were drawn with.
            gather: as of `collect`.
            paced: as of `collect`.
        """
        size = self.update.sampling_batch_size or len(captions.clip_ids)
        terms: dict[str, Tensor] = {}
        for name, reward in self.reward_items():
            parts = paced(split(captions, size))
            measured = [(reward.measure(part, self.captioner), is_new) for part, is_new in parts]
            rows = torch.cat([found for found, is_new in measured if is_new])
            terms[name] = reward.finish(rows, gather).to(captions.tokens.device).float()
            wanted = captions.mask.shape if reward.per_token else captions.mask.shape[:1]
            if terms[name].shape != wanted:
                raise ConfigError(
                    f"model.init_args.rewards.{name}: {type(reward).__name__} gave {tuple(terms[name].shape)} "
                    f"for {len(captions.clip_ids)} captions, wanted {tuple(wanted)}"
                )
        keep = check_finite(terms, captions.clip_ids, skip=self.update.on_non_finite_reward == "skip")
        mask = captions.mask & keep.to(captions.mask.device)[:, None]
        final = captions.mask.new_zeros(len(mask), dtype=torch.float32)
        local = torch.zeros_like(mask, dtype=torch.float32)
        for name, value in terms.items():
            paid = self.reward_settings[name].weight * value
            if value.ndim == 2:
                local = local + paid
            else:
                final = final + paid
        final = final.masked_fill(~keep.to(final.device), 0)
        return Rollout(captions, prefix, terms, token_returns(final, local, mask, gamma=self.update.gamma), mask)

    # Losses

    def value_pass(
        self, rollout: Rollout, counts: Tensor, backward: Callable[[Tensor], None], paced: Paced = unpaced
    ) -> tuple[Tensor, Tensor]:
        """Values of all tokens, and the gradient of the value loss (step 2): adapters on, image embeddings fixed.

        Args:
            rollout: of this process.
            counts: `Rollout.counts` summed over the processes.
            backward: called with the loss of each micro-batch; their sum is the loss of the whole batch.
            paced: the micro-batches.

        Returns:
            (B, T) float32 values without gradient, and the loss of this process's part.
        Source: VLRM, eq. 2.
        """
        values = torch.zeros_like(rollout.returns)
        total = values.new_zeros(())
        with self.captioner.in_training():
            for (rows, tokens, mask), is_new in paced(self._micro_batches(rollout)):
                states = self.captioner.states(rollout.prefix[rows].detach(), tokens, mask)
                chosen = states[:, :-1] if self.update.value_position == "before" else states[:, 1:]
                found = self.value_head(chosen)
                length = tokens.shape[1]
                loss = value_loss(found, rollout.returns[rows, :length], self._weights(mask, counts))
                backward(loss * is_new)
                values[rows, :length] = found.detach().float()
                total = total + loss.detach() * is_new
        return values, total

    def policy_pass(
        self,
        rollout: Rollout,
        advantages: Tensor,
        counts: Tensor,
        backward: Callable[[Tensor], None],
        paced: Paced = unpaced,
    ) -> PolicyPass:
        """Gradient of the policy loss (step 3): adapters off, through projection, Q-Former and query tokens.

        Args:
            rollout: of this process.
            advantages: (B, T) whitened.
            counts: `Rollout.counts` summed over the processes.
            backward: called with the loss of each micro-batch.
            paced: the micro-batches.

        Source: VLRM, eq. 4.
        """
        log_probs, entropy = torch.zeros_like(rollout.returns), torch.zeros_like(rollout.returns)
        total = log_probs.new_zeros(())
        # The backward pass stays inside: with checkpointing it runs the language model again.
        with self.captioner.in_training(), adapters_off(self.captioner.language_model):
            for (rows, tokens, mask), is_new in paced(self._micro_batches(rollout)):
                length = tokens.shape[1]
                prefix = self.captioner.project(rollout.captions.features[rows])
                logits = self.captioner.logits(self.captioner.states(prefix, tokens, mask))
                chosen, uncertainty = self._log_probs(logits, tokens)
                loss = policy_loss(
                    chosen,
                    advantages[rows, :length],
                    self._weights(mask, counts),
                    objective=self.update.policy_objective,
                )
                backward(loss * is_new)
                log_probs[rows, :length] = chosen.detach().float()
                entropy[rows, :length] = uncertainty.float()
                total = total + loss.detach() * is_new
        return PolicyPass(total, log_probs, entropy)

    def _log_probs(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if self.update.prob_distribution == "plain":
            return token_log_probs(logits, tokens)
        early = torch.arange(logits.shape[1], device=logits.device) < self.sampling.min_new_tokens
        ends = torch.arange(logits.shape[2], device=logits.device) == self.captioner.end_id
        allowed = logits.masked_fill(early[:, None] & ends, -torch.inf)
        return token_log_probs(allowed, tokens, temperature=self.sampling.temperature, top_k=self.sampling.top_k)

    def _weights(self, mask: Tensor, counts: Tensor) -> Tensor:
        return token_weights(
            mask, num_captions=int(counts[0]), num_tokens=int(counts[1]), reduction=self.update.loss_reduction
        )

    def _micro_batches(self, rollout: Rollout) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows, tokens and mask of captions of like length, longest first, cut to the longest of each part.

        With `length_buckets` to its bucket. Captions that are left out are in none, but for a single one if all are.
        """
        lengths = rollout.mask.sum(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        order = order[: max(1, int((lengths > 0).sum()))]
        for rows in order.split(self.update.micro_batch_size or len(order)):
            longest = min(self.captioner.padded_length(max(1, int(lengths[rows[0]]))), rollout.mask.shape[1])
            yield rows, rollout.captions.tokens[rows, :longest], rollout.mask[rows, :longest]

    # Captions

    @torch.no_grad()
    def caption(self, batch: Batch) -> list[str]:
        """One caption per clip, decoded with the generation settings."""
        prefix = self.captioner.project(self.captioner.encode_images(middle_frames(batch)))
        return self.captioner.decode(self.captioner.caption_ids(prefix, self.generation))

    @torch.no_grad()
    def judge_captions(self, batch: Batch) -> Rollout:
        """Caption each clip with the generation settings and judge the captions as samples are judged."""
        images = middle_frames(batch)
        features = self.captioner.encode_images(images)
        prefix = self.captioner.project(features)
        tokens, mask, ended = self.captioner.cut_at_end(self.captioner.caption_ids(prefix, self.generation))
        captions = self.describe(batch.clip_ids, images, features, tokens, mask, ended, batch.captions)
        return self.judge(captions, prefix)


def middle_frames(batch: Batch) -> Tensor:
    """(B, 3, H, W) uint8: the only or the middle picture of each clip.

    Raises:
        ConfigError: the batch has no pictures.
    """
    if batch.frames is None:
        raise ConfigError("the captioner needs pictures, the data module gives none: data.init_args.modalities")
    return batch.frames[:, batch.frames.shape[1] // 2]


def split(captions: SampledCaptions, size: int) -> Iterator[SampledCaptions]:
    """Captions in parts of at most `size`."""
    for start in range(0, len(captions.clip_ids), size):
        rows = slice(start, start + size)
        yield SampledCaptions(
            captions.clip_ids[rows],
            captions.images[rows],
            captions.features[rows],
            captions.tokens[rows],
            captions.mask[rows],
            captions.ended[rows],
            captions.aligned[rows],
            captions.references[rows],
        )
