"""Small models for VLRM, trained from nothing on captioned pictures: a BLIP-2, its matching model, a CLIP.

They stand for the published models at toy size. Each is saved where VLRM takes it as a source like any other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.pretrained import save_parts
from avcap_zoo.backbones.vision.clip import CLIP_MEAN, CLIP_STD, normalise_images
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError
from avcap_zoo.metrics.contrast import ContrastModel
from avcap_zoo.ops.zero_loss import zero_loss
from avcap_zoo.systems.base import TEXT_TOKENS, OptimizerSettings, Requirements, StepWork, System, plain
from avcap_zoo.systems.vlrm.alignment import comparable, find_words
from avcap_zoo.systems.vlrm.captioner import CaptionerSettings, load_blip
from avcap_zoo.systems.vlrm.captioner import load_tokenizer as load_captioner_tokenizer
from avcap_zoo.systems.vlrm.matcher import (
    LAVIS_NORM_EPS,
    clean_caption,
    load_matching_model,
    load_tokenizer,
    pad_rows,
    pair_states,
    token_rows,
)
from avcap_zoo.systems.vlrm.model import middle_frames
from avcap_zoo.systems.vlrm.rewards import read_list

Style = Literal["all", "terse", "detailed"]


class _PicturePretraining(System):
    """What the three share: pictures with captions in, a folder or file out.

    Args:
        save_to: where the result goes when the run ends; replaced if it is there.
        optimizer: learning rate and schedule.
        arguments: all of the subclass.
    """

    def __init__(self, save_to: str, optimizer: OptimizerSettings, arguments: dict[str, Any]) -> None:
        super().__init__(optimizer, {"save_to": save_to, "optimizer": optimizer, **arguments})
        self.save_to = Path(save_to)

    @property
    def requirements(self) -> Requirements:
        """Pictures."""
        return Requirements(None, ("visual",))

    @abstractmethod
    def save(self, target: Path) -> None:
        """Write the result."""

    def on_train_end(self) -> None:
        """Save the result, whole or not at all."""
        if self.trainer.is_global_zero:
            self.save(self.save_to)
            rank_zero_info(f"saved to {self.save_to}")


class BLIP2(nn.Module):
    """transformers' BLIP-2 with all of it trained.

    Args:
        settings: source None, or one to train further; adapters and `weights` are not used.
    """

    def __init__(self, settings: CaptionerSettings) -> None:
        super().__init__()
        self.tokenizer = load_captioner_tokenizer(settings)
        self.blip = load_blip(settings, self.tokenizer)
        width = self.blip.config.vision_config.hidden_size, self.blip.config.text_config.hidden_size
        self.word_heads = nn.ModuleList(nn.Linear(side, len(self.tokenizer)) for side in width)
        self.self_made = ["blip"] if settings.source is None else []
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor | None, texts: Sequence[str], label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of texts with their end token, behind their pictures or alone.

        Args:
            images: (B, 3, H, W) uint8, or None for the language model alone.
            texts: B captions.
            label_smoothing: share of the target spread over the vocabulary.
        """
        config, model = self.blip.config, self.blip.language_model
        ids = [self.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        rows = [torch.tensor([config.text_config.bos_token_id, *row, config.text_config.eos_token_id]) for row in ids]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100).to(self.mean.device)
        mask = padded != -100
        embeds = model.get_input_embeddings()(padded.clamp_min(0))
        if images is not None:
            prefix = self.prefix(images)
            embeds = torch.cat([prefix, embeds], dim=1)
            mask = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
        logits = model(inputs_embeds=embeds, attention_mask=mask.long(), use_cache=False).logits
        logits = logits[:, -padded.shape[1] : -1].float().transpose(1, 2)
        return F.cross_entropy(logits, padded[:, 1:], label_smoothing=label_smoothing)

    def words_loss(self, images: Tensor, captions: Sequence[Sequence[str]]) -> Tensor:
        """Cross-entropy of naming the words of all captions of each picture, by image tokens and by image embeddings.

        A small tower learns to see this way within seconds; through a language model it takes far longer.
        """
        wanted = torch.zeros(len(images), len(self.tokenizer), device=images.device)
        for row, texts in enumerate(captions):
            wanted[row, self.tokenizer(" ".join(texts), add_special_tokens=False).input_ids] = 1
        tokens = self.image_tokens(images)
        found = (tokens, self.prefix(images, tokens))
        logits = [head(part.amax(dim=1)) for head, part in zip(self.word_heads, found, strict=True)]
        return torch.stack(
            [F.binary_cross_entropy_with_logits(part, wanted, reduction="sum") / len(images) for part in logits]
        ).sum()

    def image_tokens(self, images: Tensor) -> Tensor:
        """(B, P, C) image tokens of (B, 3, H, W) uint8 pictures."""
        side = self.blip.config.vision_config.image_size
        pixels = normalise_images(images, side, self.mean, self.std)
        tokens: Tensor = self.blip.vision_model(pixel_values=pixels).last_hidden_state
        return tokens

    def prefix(self, images: Tensor, tokens: Tensor | None = None) -> Tensor:
        """(B, Q, H) image embeddings of (B, 3, H, W) uint8 pictures; `tokens` are those of `image_tokens`."""
        tokens = self.image_tokens(images) if tokens is None else tokens
        queries = self.blip.query_tokens.expand(len(images), -1, -1)
        output = self.blip.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        prefix: Tensor = self.blip.language_projection(output)
        return prefix


class BLIP2Pretraining(_PicturePretraining):
    """Trains a BLIP-2 to caption pictures, its language model also on captions alone; and saves it.

    The published model learnt to caption from short captions, but for the few long ones and bare lists of keywords that
    a web corpus has, and its language model had read everything. So here: pictures go with short captions, but for
    small shares of long ones and of lists, without which none would ever be drawn; and all of these are read as text.

    Args:
        captioner: source None and a config.
        save_to: folder of the result.
        optimizer: learning rate and schedule.
        detailed_share: share of the pictures that go with their longest caption; the others with a shorter one.
        keyword_share: share of all other captions, and of those read alone, that are lists instead; see `keywords`.
        text_weight: of the loss of captions alone.
        label_smoothing: keeps other words possible, so that there is something to be drawn from.
        words_steps: the first steps only name words; see `BLIP2.words_loss`.
    """

    model: BLIP2

    def __init__(
        self,
        captioner: CaptionerSettings,
        save_to: str,
        optimizer: OptimizerSettings,
        detailed_share: float = 0.0,
        keyword_share: float = 0.0,
        text_weight: float = 0.5,
        label_smoothing: float = 0.1,
        words_steps: int = 0,
    ) -> None:
        arguments = {
            "captioner": captioner,
            "detailed_share": detailed_share,
            "keyword_share": keyword_share,
            "text_weight": text_weight,
            "label_smoothing": label_smoothing,
            "words_steps": words_steps,
        }
        super().__init__(save_to, optimizer, arguments)
        self.captioner = captioner
        self.detailed_share = detailed_share
        self.keyword_share = keyword_share
        self.text_weight = text_weight
        self.label_smoothing = label_smoothing
        self.words_steps = words_steps

    def configure_model(self) -> None:
        """Build the model once."""
        if not hasattr(self, "model"):
            self.model = BLIP2(self.captioner)

    def step_work(self, num_frames: int) -> StepWork:
        """Picture, queries, and a caption behind them."""
        queries = self.model.blip.query_tokens.shape[1]
        vision = self.model.blip.vision_model.embeddings.num_positions
        return StepWork(
            {"blip.vision_model": vision, "blip.qformer": queries, "blip.language_model": queries + TEXT_TOKENS}
        )

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Captioning loss, and the loss of captions alone; at first that of the words in captions."""
        # Processes that train together wait for a gradient of everything.
        nothing = zero_loss(self._idle_part().parameters())
        if self.global_step < self.words_steps:
            return {"words": self.model.words_loss(middle_frames(batch), batch.captions) + nothing}
        long, short = draw_captions(batch, "detailed"), draw_captions(batch, "terse", self.keyword_share)
        drawn = (torch.rand(len(batch)) < self.detailed_share).tolist()
        captions = [whole if is_long else part for whole, part, is_long in zip(long, short, drawn, strict=True)]
        texts = draw_captions(batch, "all", self.keyword_share)
        captioning = self.model(middle_frames(batch), captions, self.label_smoothing)
        return {"captioning": captioning + nothing, "text": self.text_weight * self.model(None, texts)}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer pass over what takes no part in this step."""
        super().on_before_optimizer_step(optimizer)
        for parameter in self._idle_part().parameters():
            parameter.grad = None

    def _idle_part(self) -> nn.Module:
        """What the loss of the present step does not depend on."""
        naming_words = self.global_step < self.words_steps
        part: nn.Module = self.model.blip.language_model if naming_words else self.model.word_heads
        return part

    def save(self, target: Path) -> None:
        """Write model and tokenizer in transformers format."""
        save_parts(target, self.model.blip, self.model.tokenizer)


class MatchingModel(nn.Module):
    """transformers' matching model on the frozen image tower of a captioner.

    Args:
        captioner: folder or hub id of the BLIP-2 whose image tower and tokenizer are taken.
        qformer: keys of transformers' Blip2QFormerConfig.
        num_queries: query tokens.
        max_length: longest text in tokens.
    """

    def __init__(self, captioner: str, qformer: dict[str, Any], num_queries: int, max_length: int) -> None:
        super().__init__()
        settings = CaptionerSettings(source=captioner)
        self.tokenizer = load_tokenizer(captioner, "model.init_args.captioner")
        blip = load_blip(settings, self.tokenizer)
        tower = blip.vision_model
        config = {
            "vision_config": tower.config.to_dict(),
            "qformer_config": qformer,
            "num_query_tokens": num_queries,
            "image_text_hidden_size": 8,  # of the contrastive heads, which are not trained here
        }
        self.matcher = load_matching_model(None, config, None, len(self.tokenizer), "model.init_args.qformer")
        self.matcher.vision_model.load_state_dict(tower.state_dict())
        # The published captioner's Q-Former was first a matching one; here it is the other way round.
        fitting = {name: tensor.shape for name, tensor in self.matcher.qformer.state_dict().items()}
        known = {n: t for n, t in blip.qformer.state_dict().items() if fitting.get(n) == t.shape}
        self.matcher.qformer.load_state_dict(known, strict=False)
        if self.matcher.query_tokens.shape == blip.query_tokens.shape:
            self.matcher.query_tokens.data.copy_(blip.query_tokens)
        # The projections are of BLIP-2's contrastive loss, which is none of ours.
        for part in (self.matcher.vision_model, self.matcher.vision_projection, self.matcher.text_projection):
            part.requires_grad_(False)
        norm = self.matcher.vision_model.post_layernorm.requires_grad_(True)
        norm.eps = LAVIS_NORM_EPS
        self.token_head = nn.Linear(self.matcher.config.qformer_config.hidden_size, 1)
        self.max_length = max_length
        self.self_made = ["matcher"]
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def token_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text as the matcher reads it."""
        return token_rows(self.tokenizer, [clean_caption(text) for text in texts], self.max_length)

    def forward(self, images: Tensor, rows: Sequence[Sequence[int]], pictures: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits of texts with pictures.

        Args:
            images: (B, 3, H, W) uint8.
            rows: token ids of N texts.
            pictures: which picture each of them is held against.

        Returns:
            (N, 2), index 1 = match; and (N, L), of each token between the ends: is it true of the picture?
        """
        side = self.matcher.config.vision_config.image_size
        pixels = normalise_images(images, side, self.mean, self.std)
        tokens = self.matcher.vision_model(pixel_values=pixels).last_hidden_state
        ids, mask = pad_rows(self.tokenizer, rows, images.device)
        states = pair_states(self.matcher, tokens[list(pictures)], ids, mask)
        num_queries = self.matcher.query_tokens.shape[1]
        logits = self.matcher.itm_head(states[:, :num_queries]).mean(dim=1)
        return logits, self.token_head(states[:, num_queries + 1 : -1]).squeeze(-1)


class MatchingPretraining(_PicturePretraining):
    """Trains BLIP-2's matching head on a captioner's frozen image tower, and saves it.

    It learns what a picture's longest caption tells. Each picture is held against that caption, which matches; another
    of its own, which matches by the share of the longest one's keywords that it holds; and both of these with some
    words that stand in the same places in captions of other pictures, which do not match. Which words these are is
    learnt beside it: one yes or no a caption teaches little.

    Args:
        captioner: folder or hub id of the BLIP-2 that is to be judged.
        qformer: keys of transformers' Blip2QFormerConfig.
        save_to: folder of the result.
        optimizer: learning rate and schedule.
        num_queries: query tokens.
        max_length: longest text in tokens.
        keyword_share: share of the other captions that are lists instead; see `keywords`.
    """

    model: MatchingModel

    def __init__(
        self,
        captioner: str,
        qformer: dict[str, Any],
        save_to: str,
        optimizer: OptimizerSettings,
        num_queries: int = 8,
        max_length: int = 48,
        keyword_share: float = 0.0,
    ) -> None:
        arguments = {"captioner": captioner, "qformer": qformer, "num_queries": num_queries, "max_length": max_length}
        super().__init__(save_to, optimizer, {**arguments, "keyword_share": keyword_share})
        self.keyword_share = keyword_share
        self.arguments = (captioner, qformer, num_queries, max_length)

    def configure_model(self) -> None:
        """Build the model once."""
        if not hasattr(self, "model"):
            self.model = MatchingModel(*self.arguments)

    def step_work(self, num_frames: int) -> StepWork:
        """The picture once; queries and caption for the match and for its opposite."""
        queries = self.model.matcher.query_tokens.shape[1]
        vision = self.model.matcher.vision_model.embeddings.num_positions
        return StepWork({"matcher.vision_model": vision, "matcher.qformer": 2 * (queries + TEXT_TOKENS)})

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of match or no match.

        Raises:
            ConfigError: a batch of one clip has no caption of another.
        """
        if len(batch) < 2:
            raise ConfigError(f"a matching batch needs two clips, {batch.clip_ids[0]} is alone: set drop_last: true")
        count = len(batch)
        long, short = draw_captions(batch, "detailed"), draw_captions(batch, "terse", self.keyword_share)
        right = [*self.model.token_rows(long), *self.model.token_rows(short)]
        wrong, truths = zip(*(with_wrong_tokens(row, right) for row in right), strict=True)
        logits, of_tokens = self.model(middle_frames(batch), [*right, *wrong], [*range(count)] * 4)
        told = [told_share(caption, whole) for caption, whole in zip(short, long, strict=True)]
        matches = logits.new_tensor([*[1.0] * count, *told, *[0.0] * 2 * count])
        truth = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in truths], True, torch.nan).to(logits)
        known = truth.isfinite()
        return {
            "matching": F.cross_entropy(logits.float(), torch.stack([1 - matches, matches], dim=1).float()),
            "tokens": F.binary_cross_entropy_with_logits(of_tokens[2 * count :, : known.shape[1]][known], truth[known]),
        }

    def save(self, target: Path) -> None:
        """Write model and tokenizer in transformers format."""
        save_parts(target, self.model.matcher, self.model.tokenizer)


class ContrastPretraining(_PicturePretraining):
    """Trains an OpenCLIP model on pictures and captions, and saves its tensors.

    With several processes each compares within its own batch.

    Args:
        config: embed_dim, vision_cfg and text_cfg of OpenCLIP.
        save_to: safetensors file of the result.
        optimizer: learning rate and schedule.
        style: captions learnt from; see `draw_captions`.
        keyword_share: share of them that are lists instead; see `keywords`.
    """

    model: ContrastModel

    def __init__(
        self,
        config: dict[str, Any],
        save_to: str,
        optimizer: OptimizerSettings,
        style: Style = "all",
        keyword_share: float = 0.0,
    ) -> None:
        arguments = {"config": plain(config), "style": style, "keyword_share": keyword_share}
        super().__init__(save_to, optimizer, arguments)
        self.config = config
        self.style: Style = style
        self.keyword_share = keyword_share

    def configure_model(self) -> None:
        """Build the model once."""
        if not hasattr(self, "model"):
            self.model = ContrastModel("", None, self.config, "float32", "model.init_args")
            self.model.requires_grad_(True)

    def step_work(self, num_frames: int) -> StepWork:
        """Picture and caption."""
        clip = self.model.clip
        return StepWork({"clip.visual": len(clip.visual.positional_embedding), "clip.transformer": clip.context_length})

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean cross-entropy of finding each picture's own caption in the batch, and each caption's own picture."""
        images, texts = self.model.embed(middle_frames(batch), draw_captions(batch, self.style, self.keyword_share))
        cosines = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
        logits = self.model.clip.logit_scale.exp() * cosines
        own = torch.arange(len(logits), device=logits.device)
        return {"contrastive": (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2}

    def save(self, target: Path) -> None:
        """Write the tensors."""
        from safetensors.torch import save_file

        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        save_file({name: tensor.contiguous() for name, tensor in self.model.clip.state_dict().items()}, partial)
        partial.rename(target)


def draw_captions(batch: Batch, style: Style, keyword_share: float = 0.0) -> list[str]:
    """One caption of each clip, drawn from those of a style: `all`, all but the longest (`terse`), or that alone.

    Args:
        batch: with captions.
        style: which of them.
        keyword_share: how often it is the longest caption as a list instead.

    Raises:
        ConfigError: a clip has no such caption.
    """
    drawn = []
    for clip_id, captions in zip(batch.clip_ids, batch.captions, strict=True):
        longest = max(captions, key=len, default="")
        chosen = {"all": captions, "terse": [c for c in captions if c != longest], "detailed": [longest]}[style]
        if not any(chosen):
            raise ConfigError(f"clip {clip_id} has no caption to learn from (style {style}; it has {len(captions)})")
        as_list = float(torch.rand(())) < keyword_share
        drawn.append(keywords(longest) if as_list else chosen[int(torch.randint(len(chosen), ()))])
    return drawn


def keywords(caption: str) -> str:
    """A caption as a list: its words without articles, prepositions, conjunctions and punctuation, in their order."""
    return " ".join(word.what for word in find_words(comparable(caption)) if word.what not in _function_words())


@lru_cache(maxsize=1)
def _function_words() -> frozenset[str]:
    return frozenset([*read_list("articles.txt"), *read_list("prepositions.txt"), "and", "or", "is", "there"])


def with_wrong_tokens(row: Sequence[int], others: Sequence[Sequence[int]]) -> tuple[list[int], list[float]]:
    """A text with some of its tokens exchanged for those that another text of its length has in the same places.

    Args:
        row: token ids.
        others: token ids of texts; one of those that are as long as `row` and differ from it is drawn. If there is
            none, all tokens of `row` are exchanged for those of any text.

    Returns:
        The new token ids, and for each of them 1 = right, 0 = exchanged, NaN = both texts agree.
    """
    alike = [other for other in others if len(other) == len(row) and other != row]
    if not alike:
        other = others[int(torch.randint(len(others), ()))]
        return list(other), [0.0] * len(other)
    other = alike[int(torch.randint(len(alike), ()))]
    differs = torch.tensor(row) != torch.tensor(other)
    exchanged = differs & (torch.rand(len(row)) < torch.rand(()))
    if not exchanged.any():
        exchanged[differs.nonzero()[int(torch.randint(int(differs.sum()), ()))]] = True
    changed = torch.where(exchanged, torch.tensor(other), torch.tensor(row))
    return changed.tolist(), (~exchanged).float().masked_fill(~differs, torch.nan).tolist()


def told_share(caption: str, whole: str) -> float:
    """Share of the distinct keywords of `whole` that a caption holds, too."""
    wanted = frozenset(keywords(whole).split())
    return len(wanted & frozenset(keywords(caption).split())) / max(1, len(wanted))
