"""What a sampled caption is paid for: terms that add up to the return of its tokens.

A term is a `Reward`. Its number is paid to the whole caption, or to single tokens; penalties are negative. A new one
is a subclass named by its class path in the configuration.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.vision.clip import CLIP_MEAN, CLIP_STD, normalise_images
from avcap_zoo.errors import AvcapError, ConfigError
from avcap_zoo.metrics.cider import CorpusCIDEr
from avcap_zoo.metrics.contrast import ContrastModel
from avcap_zoo.ops.returns import Spread, mutual_choice
from avcap_zoo.systems.vlrm.alignment import (
    AlignedText,
    Match,
    comparable,
    find_phrases,
    find_repeated_words,
    find_years,
)
from avcap_zoo.systems.vlrm.captioner import Captioner
from avcap_zoo.systems.vlrm.matcher import LAVIS_NORM_EPS, Matcher, Score, clean_caption, match_scores

_LISTED = 5


class NonFiniteRewardError(AvcapError):
    """A reward gave NaN or infinity; the message names it and the clips."""


@dataclass
class RewardSettings:
    """One term of the return.

    Args:
        kind: a name of `REWARDS`, or the class path of a `Reward`.
        weight: what it is multiplied by.
        options: arguments of its constructor.
    """

    kind: str
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SampledCaptions:
    """B sampled captions and what they were sampled for; a part of the iteration's batch.

    Attributes:
        clip_ids: B ids.
        images: (B, 3, H, W) uint8.
        features: (B, P, C) image tokens of the captioner's tower, before its last layer norm.
        tokens: (B, T) ids, padded to the right.
        mask: (B, T) bool, True up to and with the end token.
        ended: (B,) bool, whether there is an end token.
        aligned: each text and the bytes that its tokens cover.
        references: reference captions, if there are any.
    """

    clip_ids: list[str]
    images: Tensor
    features: Tensor
    tokens: Tensor
    mask: Tensor
    ended: Tensor
    aligned: list[AlignedText]
    references: list[list[str]]

    @property
    def texts(self) -> list[str]:
        """The captions without white space at their ends."""
        return [aligned.text.strip() for aligned in self.aligned]

    def mark(self, find: Callable[[str], Sequence[Match]]) -> Tensor:
        """(B, T) float32: 1 for the tokens that what is found in the texts overlaps."""
        length = self.tokens.shape[1]
        rows = [aligned.tokens_within(find(aligned.compared)) for aligned in self.aligned]
        return torch.tensor([(row + [False] * length)[:length] for row in rows], device=self.tokens.device).float()


class Reward(nn.Module):
    """A term of the return, before its weight.

    A subclass gives `measure`, and `finish` if a caption's number depends on the others. Both run without gradient.

    Attributes:
        per_token: whether the numbers are (B, T), paid to tokens, or (B,), paid to captions.
        self_made: whether it holds weights that exist in no file.
    """

    per_token: bool = False
    self_made: bool = False

    def build(self, captioner: Captioner, key: str) -> None:
        """Load what it needs; `key` is its place in the configuration, for messages. Nothing by default."""

    def prepare(self, training_captions: Callable[[], list[str]]) -> None:
        """Look at the training captions before the first step; nothing by default."""

    @abstractmethod
    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        """(B,) or (B, T) numbers of a part of the batch, or (B, ...) of what `finish` makes them from."""

    def finish(self, measured: Tensor, gather: Callable[[Tensor], tuple[Tensor, int]]) -> Tensor:
        """(B,) or (B, T) numbers of this process's whole batch.

        Args:
            measured: what `measure` gave for all of it.
            gather: rows of all processes, and where this process's rows begin in them.
        """
        return measured


class ImageTextMatching(Reward):
    """How well image and caption fit, by BLIP-2's matching head.

    Args:
        source: hub id or local folder in transformers format; None = `checkpoint` or random weights for `config`.
        config: keys of transformers' Blip2Config, without `source`.
        checkpoint: LAVIS weight file for `config`.
        tokenizer: hub id or folder; None = that of `source`, or the built-in word pieces.
        shares_vision: the matcher's image tower is the captioner's, each image is encoded once.
        itm_score: `positive_logit`, `logit_difference` or `probability`.
        itm_max_length: longest caption in BERT tokens; LAVIS has 32.
        clean_text: LAVIS' caption processor: lower case, no punctuation, 50 words.
        norm_eps: of the tower's last layer norm, as LAVIS.

    Source: VLRM, sections 2.2 and 3.4.
    """

    def __init__(
        self,
        source: str | None = "Salesforce/blip2-itm-vit-g",
        config: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        tokenizer: str | None = None,
        shares_vision: bool = True,
        itm_score: Score = "positive_logit",
        itm_max_length: int = 32,
        clean_text: bool = True,
        norm_eps: float = LAVIS_NORM_EPS,
    ) -> None:
        super().__init__()
        self.arguments = (source, config or {}, checkpoint, tokenizer, itm_max_length, norm_eps)
        self.shares_vision = shares_vision
        self.itm_score: Score = itm_score
        self.clean_text = clean_text
        self.self_made = source is None and checkpoint is None

    def build(self, captioner: Captioner, key: str) -> None:
        """Load the matcher."""
        tower = captioner.blip.vision_model if self.shares_vision else None
        self.matcher = Matcher(*self.arguments, tower, key)
        self.image_size_px = captioner.image_size_px
        if self.matcher.tower is not None:
            self.image_size_px = self.matcher.tower.config.image_size

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        """(B,)."""
        features = captions.features
        if not self.shares_vision:
            mean, std = (torch.tensor(v, device=features.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
            features = self.matcher.encode_pixels(normalise_images(captions.images, self.image_size_px, mean, std))
        texts = [clean_caption(text) for text in captions.texts] if self.clean_text else captions.texts
        return match_scores(self.matcher(features, *self.matcher.encode_texts(texts)).float(), self.itm_score)


class ReferenceLikelihood(Reward):
    """Mean log-probability of the tokens under the language model without image and without adapters.

    Args:
        ref_include_eos: whether the end token counts.

    Source: VLRM, section 3.4 (the language model is that of the captioner; reading the text alone is inferred).
    """

    def __init__(self, ref_include_eos: bool = True) -> None:
        super().__init__()
        self.ref_include_eos = ref_include_eos

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        """(B,)."""
        log_probs = captioner.text_log_probs(captions.tokens, captions.mask)
        mask = captions.mask
        if not self.ref_include_eos:
            mask = mask & (captions.tokens != captioner.end_id)
        return mean_log_prob(log_probs, mask)


def mean_log_prob(log_probs: Tensor, mask: Tensor) -> Tensor:
    """(B,) means of (B, T) log-probabilities over the real tokens; 0 where there is none."""
    return log_probs.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


class BadPhrases(Reward):
    """-1 for each token of an unwanted phrase or of a year; one token never costs more than 1.

    Args:
        phrases_file: one phrase a line; None = the paper's Table 6 (`bad_phrases.txt`).
        extra_phrases: more of them.
        years: whether four digits that stand alone count.

    Source: VLRM, section 3.4 and Table 6.
    """

    per_token = True

    def __init__(self, phrases_file: str | None = None, extra_phrases: Sequence[str] = (), years: bool = True) -> None:
        super().__init__()
        self.phrases = [
            comparable(phrase) for phrase in (*read_list(phrases_file or "bad_phrases.txt"), *extra_phrases)
        ]
        self.years = years

    def find(self, compared: str) -> list[Match]:
        """What is unwanted in a text."""
        return find_phrases(compared, self.phrases) + (find_years(compared) if self.years else [])

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        """(B, T)."""
        return -captions.mark(self.find)


class RepeatedWords(Reward):
    """-1 for each token of a word that stood in the caption before.

    Args:
        exempt_files: word lists, one word a line, that may repeat.

    Source: VLRM, section 3.4: colours, prepositions and articles are exempt; the lists are ours.
    """

    per_token = True

    def __init__(self, exempt_files: Sequence[str] = ("colours.txt", "prepositions.txt", "articles.txt")) -> None:
        super().__init__()
        self.exempt = frozenset(comparable(word) for name in exempt_files for word in read_list(name))

    def find(self, compared: str) -> list[Match]:
        """The repeated words of a text."""
        return find_repeated_words(compared, self.exempt)

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        """(B, T)."""
        return -captions.mark(self.find)


class MissingEnd(Reward):
    """-1 for a caption without an end token. Source: VLRM, section 3.4."""

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        """(B,)."""
        return captions.ended.float() - 1


class _ContrastReward(Reward):
    """What rewards by an OpenCLIP model share."""

    def __init__(
        self,
        model: str,
        checkpoint: str | None,
        config: dict[str, Any] | None,
        dtype: Literal["float32", "bfloat16"],
    ) -> None:
        super().__init__()
        self.arguments = (model, checkpoint, config, dtype)
        self.self_made = checkpoint is None

    def build(self, captioner: Captioner, key: str) -> None:
        """Load the OpenCLIP model."""
        self.model = ContrastModel(*self.arguments, key)


class MutualChoice(_ContrastReward):
    """How surely image and caption choose each other in the whole batch, by CLIP (the retrieval term of VLRM-RS).

    Args:
        model: OpenCLIP architecture.
        checkpoint: weight file, or OpenCLIP's name of published weights; None = random.
        config: embed_dim, vision_cfg and text_cfg of a model of any size, in place of `model`.
        dtype: of its weights.
        clip_logit_scale: multiplies the cosines; the paper writes none, CLIP's own is 100.
        std: `unbiased` or `biased` deviation over the batch.

    Source: VLRM, eq. 5.
    """

    def __init__(
        self,
        model: str = "ViT-bigG-14",
        checkpoint: str | None = "laion2b_s39b_b160k",
        config: dict[str, Any] | None = None,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        clip_logit_scale: float = 1.0,
        std: Spread = "unbiased",
    ) -> None:
        super().__init__(model, checkpoint, config, dtype)
        self.clip_logit_scale = clip_logit_scale
        self.std: Spread = std

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        """(B, 2, C) embeddings of image and caption."""
        return torch.stack(self.model(captions.images, captions.texts), dim=1)

    def finish(self, measured: Tensor, gather: Callable[[Tensor], tuple[Tensor, int]]) -> Tensor:
        """(B,); pairs without finite embeddings are left out of the others' choice and get NaN."""
        everyone, begin = gather(measured)
        finite = everyone.isfinite().flatten(1).all(dim=1)
        phi = everyone.new_full((len(everyone),), torch.nan)
        images, texts = everyone[finite].unbind(dim=1)
        phi[finite] = mutual_choice(images, texts, scale=self.clip_logit_scale, spread=self.std)
        return phi[begin : begin + len(measured)]


class CLIPScore(_ContrastReward):
    """CLIPScore: 2.5 times the cosine of image and caption, at least 0.

    Args:
        model: OpenCLIP architecture; the paper's is ViT-B/32.
        checkpoint: weight file, or OpenCLIP's name of published weights; None = random.
        config: embed_dim, vision_cfg and text_cfg of a model of any size, in place of `model`.
        dtype: of its weights.
        prefix: put in front of each caption.

    Source: Hessel et al. 2021 (arXiv 2104.08718).
    """

    def __init__(
        self,
        model: str = "ViT-B-32-quickgelu",
        checkpoint: str | None = "openai",
        config: dict[str, Any] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        prefix: str = "A photo depicts ",
    ) -> None:
        super().__init__(model, checkpoint, config, dtype)
        self.prefix = prefix

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        """(B,)."""
        images, texts = self.model(captions.images, [f"{self.prefix}{text}" for text in captions.texts])
        return 2.5 * torch.cosine_similarity(images, texts, dim=-1).clamp_min(0)


class ReferenceCIDEr(Reward):
    """CIDEr-D of the sampled caption against the clip's references, 0 for a clip that has none.

    Words are weighted by the training captions. The baseline of self-critical training is the value head here.

    Source: Rennie et al. 2017 (arXiv 1612.00563).
    """

    def __init__(self) -> None:
        super().__init__()
        self._corpus: CorpusCIDEr | None = None

    def prepare(self, training_captions: Callable[[], list[str]]) -> None:
        """Count the words of the training captions.

        Raises:
            DataError: there are none.
        """
        self._corpus = CorpusCIDEr([caption] for caption in training_captions())

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        """(B,)."""
        if self._corpus is None:
            raise ConfigError("the reward cider weighs words by training captions; prepare() was not called")
        scores = [self._corpus.score(t, r) for t, r in zip(captions.texts, captions.references, strict=True)]
        return torch.tensor(scores, device=captions.tokens.device)


REWARDS: dict[str, type[Reward]] = {
    "itm": ImageTextMatching,
    "reference": ReferenceLikelihood,
    "bad_phrases": BadPhrases,
    "repeated_words": RepeatedWords,
    "missing_end": MissingEnd,
    "mutual_choice": MutualChoice,
    "clip_score": CLIPScore,
    "cider": ReferenceCIDEr,
}
"""Short names of the terms."""


def make_reward(name: str, settings: RewardSettings) -> Reward:
    """Build a term; its weights are loaded later, by `Reward.build`.

    Args:
        name: of the term, for messages.
        settings: see `RewardSettings`.

    Raises:
        ConfigError: an unknown kind or class path, a class that is no `Reward`, or options it does not take.
    """
    key = f"model.init_args.rewards.{name}"
    kind = REWARDS.get(settings.kind) or _by_class_path(settings.kind, key)
    try:
        inspect.signature(kind).bind(**settings.options)
        return kind(**settings.options)
    except TypeError as error:
        known = ", ".join(inspect.signature(kind).parameters) or "none"
        raise ConfigError(f"{key}.options: {error}; {kind.__name__} takes {known}") from error


def all_options(settings: RewardSettings) -> dict[str, Any]:
    """The options of a term, with those that were not given at their defaults."""
    kind = REWARDS.get(settings.kind) or _by_class_path(settings.kind, "model.init_args.rewards")
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | settings.options


def _by_class_path(path: str, key: str) -> type[Reward]:
    module, _, name = path.rpartition(".")
    if not module:
        raise ConfigError(f"{key}.kind: there is no reward {path!r}; give {', '.join(REWARDS)} or a class path")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}.kind: cannot import {path!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Reward)):
        raise ConfigError(f"{key}.kind: {path} is no subclass of {Reward.__module__}.{Reward.__name__}")
    return found


def read_list(name: str) -> list[str]:
    """Lines of a file, or of one of the lists shipped beside this module; blank ones are left out.

    Raises:
        ConfigError: there is no such file.
    """
    path = Path(name)
    shipped = files(__package__).joinpath(name)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif path.name == name and shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
    else:
        raise ConfigError(f"the word list {name} does not exist")
    return [line.strip() for line in text.splitlines() if line.strip()]


def check_finite(values: Mapping[str, Tensor], clip_ids: Sequence[str], *, skip: bool) -> Tensor:
    """Which captions have a finite number from every term.

    Args:
        values: (B,) or (B, T) by name of the term.
        clip_ids: B ids.
        skip: whether captions without may be left out.

    Returns:
        (B,) bool.

    Raises:
        NonFiniteRewardError: not `skip`, and some number is NaN or infinite; names terms and clips.
    """
    keep = torch.ones(len(clip_ids), dtype=torch.bool)
    problems = []
    for name, value in values.items():
        broken = ~value.isfinite().reshape(len(clip_ids), -1).all(dim=1).cpu()
        if broken.any():
            which = [clip_ids[i] for i in broken.nonzero().flatten().tolist()]
            listed = ", ".join(which[:_LISTED]) + (", ..." if len(which) > _LISTED else "")
            problems.append(f"{name} on {len(which)} ({listed})")
        keep &= ~broken
    if problems and not skip:
        raise NonFiniteRewardError(
            f"rewards are not finite: {'; '.join(problems)}; look at these clips, or leave them out with "
            f"model.init_args.update.on_non_finite_reward: skip"
        )
    return keep
