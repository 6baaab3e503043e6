"""ZerAuCap without Lightning: an audio-text model finds keywords and guides a language model; nothing is trained."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.audio_text import (
    CLAP,
    AudioTextModel,
    CLAPSettings,
    CropSettings,
    WavCapsCLAP,
    WavCapsSettings,
    clap_sample_rate_hz,
)
from avcap_zoo.backbones.language import CausalLanguageModel, LanguageSettings
from avcap_zoo.batch import Batch
from avcap_zoo.decoding.guided import CosineScorer, GuidedDecoder, GuidedSettings, GuidedText
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.zeraucap.keymap import load_wavcaps
from avcap_zoo.systems.zeraucap.keywords import check_num_keywords, nearest_keywords, read_keywords
from avcap_zoo.systems.zeraucap.prompts import KeywordPromptSettings, build_prompt, read_caption
from avcap_zoo.weights.text_embeddings import embed_fixed_texts


@dataclass
class AudioTextSettings:
    """The audio-text model.

    Args:
        kind: `wavcaps` (HTSAT-BERT) or `clap` (any ClapModel of transformers).
        checkpoint: official file of kind `wavcaps` (`HTSAT-BERT-PT.pt`); None = random weights.
        wavcaps: size, of kind `wavcaps`.
        clap: source, of kind `clap`.
    """

    kind: Literal["wavcaps", "clap"] = "wavcaps"
    checkpoint: str | None = None
    wavcaps: WavCapsSettings = field(default_factory=WavCapsSettings)
    clap: CLAPSettings = field(default_factory=CLAPSettings)

    def in_use(self) -> dict[str, Any]:
        """The settings of this kind, without those of the other."""
        unused = {"wavcaps", "checkpoint"} if self.kind == "clap" else {"clap"}
        return {key: value for key, value in asdict(self).items() if key not in unused}

    @property
    def sample_rate_hz(self) -> int:
        """Rate at which the model hears.

        Raises:
            WeightsError: the source of a CLAP cannot be found.
        """
        return self.wavcaps.audio.sample_rate_hz if self.kind == "wavcaps" else clap_sample_rate_hz(self.clap)


@dataclass
class FrozenLanguageSettings:
    """The language model.

    Args:
        source: hub id or local folder in transformers format; None = random weights from `config`.
        config: keys of the transformers config, `model_type` among them; used only without `source`.
        tokenizer: hub id or folder; None = that of `source`, or the built-in word pieces without a source.
        dtype: of the weights; the released code has float32.
    """

    source: str | None = "facebook/opt-1.3b"
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass
class KeywordSettings:
    """The keywords in the prompt.

    Args:
        source: `audioset`, or a text file with one keyword per line; see `keywords.read_keywords`.
        num_keywords: how many of them are named (l); 0 = none.
        cache_dir: folder in which the embeddings of the list are kept; None = they are made anew in each run.
    """

    source: str = "audioset"
    num_keywords: int = 2
    cache_dir: str | None = None


@dataclass
class GuidedCaption:
    """A caption and how it came about.

    Attributes:
        clip_id: the clip.
        caption: one line.
        keywords: named in the prompt, nearest first.
        similarities: their cosines with the sound.
        prompt: what the language model continued.
        text: what it wrote, with a trace when asked for.
    """

    clip_id: str
    caption: str
    keywords: list[str]
    similarities: list[float]
    prompt: str
    text: GuidedText


class ZerAuCapModel(nn.Module):
    """ZerAuCap (arXiv 2311.08396). It stays in evaluation mode; no weight asks for a gradient.

    Args:
        audio_text: hears the clip, finds the keywords, judges the candidates.
        language: writes.
        keywords: list and number of keywords.
        prompts: text around them.
        guided: decoding.
        crop: what is heard of long clips.

    Raises:
        ConfigError: a setting that does not fit, with its key.
        WeightsError: weights that cannot be found or do not fit.
        DataError: a keyword file without keywords.
    """

    def __init__(
        self,
        audio_text: AudioTextSettings,
        language: FrozenLanguageSettings,
        keywords: KeywordSettings,
        prompts: KeywordPromptSettings,
        guided: GuidedSettings,
        crop: CropSettings,
    ) -> None:
        super().__init__()
        self.keyword_settings = keywords
        self.prompts = prompts
        self.crop = crop
        self.keywords: list[str] = []
        if keywords.num_keywords != 0:
            self.keywords = read_keywords(keywords.source)
            check_num_keywords(keywords.num_keywords, len(self.keywords))
        self.audio_text = build_audio_text(audio_text)
        if crop.policy == "whole" and not self.audio_text.hears_long_clips:
            raise ConfigError(
                "model.init_args.crop.policy is whole, this audio-text model hears one window: "
                "take seeded, centre or windows_mean"
            )
        self.language = CausalLanguageModel(LanguageSettings(**vars(language), training="frozen"))
        vocabulary_size = len(self.language.tokenizer)
        if self.language.model.get_input_embeddings().num_embeddings > vocabulary_size:
            # As released: rows that stand for no token would get a share of the probability.
            self.language.model.resize_token_embeddings(vocabulary_size, mean_resizing=False)
        self.decoder = GuidedDecoder(self.language.model, self.language.tokenizer, guided)
        self.requires_grad_(False)
        self.train(False)
        self.restart_crops()
        self._keyword_embeddings: Tensor | None = None

    def train(self, mode: bool = True) -> ZerAuCapModel:
        """Stay in evaluation mode, whatever is asked for."""
        super().train(False)
        return self

    def restart_crops(self) -> None:
        """Begin the sequence of draws of crop policy `released` again."""
        self._crop_sequence = random.Random(self.crop.seed)

    @torch.no_grad()
    def embed_sounds(self, batch: Batch) -> Tensor:
        """(B, D) float32 unit vectors, in full precision under any autocast.

        Raises:
            ConfigError: the batch has no sound.
        """
        if batch.waveform is None or batch.num_samples is None:
            raise ConfigError(
                "ZerAuCap listens, the data module gives no sound: add audio to data.init_args.modalities"
            )
        with torch.autocast(batch.waveform.device.type, enabled=False):
            return self.audio_text.embed_clips(
                batch.waveform, batch.num_samples, batch.clip_ids, self.crop, self._crop_sequence
            )

    def keyword_embeddings(self) -> Tensor:
        """(N, D) float32 unit vectors of the whole list, computed at the first call."""
        if self._keyword_embeddings is None or self._keyword_embeddings.device != self.audio_text.device:
            folder = self.keyword_settings.cache_dir
            with torch.autocast(self.audio_text.device.type, enabled=False):
                self._keyword_embeddings = embed_fixed_texts(
                    self.audio_text, self.keywords, None if folder is None else Path(folder).expanduser()
                )
        return self._keyword_embeddings

    @torch.no_grad()
    def describe(self, batch: Batch, *, trace: bool = False) -> list[GuidedCaption]:
        """Caption the clips. A caption does not depend on the other clips, unless `crop.policy` is `released`.

        Args:
            batch: B clips with sound. It is not listened to with neither keywords nor guidance.
            trace: keep the candidates of each step.

        Returns:
            B captions.

        Raises:
            ConfigError: no sound, or a prompt longer than `guided.decoding_length`.
        """
        if len(batch) == 0:
            return []
        count, guided = self.keyword_settings.num_keywords, self.decoder.settings.beta > 0
        sounds = self.embed_sounds(batch) if count or guided else None
        keywords: list[list[str]] = [[] for _ in batch.clip_ids]
        similarities: list[list[float]] = [[] for _ in batch.clip_ids]
        if count and sounds is not None:
            embeddings = self.keyword_embeddings()
            indices = nearest_keywords(sounds, embeddings, count)
            similarities = (embeddings[indices] * sounds[:, None]).sum(dim=2).tolist()
            keywords = [[self.keywords[index] for index in row] for row in indices.tolist()]
        prompts = [build_prompt(row, self.prompts) for row in keywords]
        scorer = CosineScorer(self.audio_text, sounds) if guided and sounds is not None else None
        texts = self.decoder.decode(prompts, scorer, trace=trace)
        tokenizer = self.language.tokenizer
        return [
            GuidedCaption(
                clip_id,
                read_caption(tokenizer, text.prompt_ids, text.token_ids, self.prompts),
                keywords[clip],
                similarities[clip],
                prompts[clip],
                text,
            )
            for clip, (clip_id, text) in enumerate(zip(batch.clip_ids, texts, strict=True))
        ]

    def caption(self, batch: Batch) -> list[str]:
        """One caption per clip; see `describe`."""
        return [clip.caption for clip in self.describe(batch)]


def build_audio_text(settings: AudioTextSettings) -> AudioTextModel:
    """Build the audio-text model and load its weights.

    Raises:
        ConfigError: settings that do not fit.
        WeightsError: weights that cannot be found or do not fit.
    """
    if settings.kind == "wavcaps":
        model = WavCapsCLAP(settings.wavcaps)
        if settings.checkpoint is not None:
            load_wavcaps(model, settings.checkpoint)
        return model
    if settings.checkpoint is not None:
        raise ConfigError(
            f"model.init_args.audio_text.checkpoint is {settings.checkpoint}, but kind is clap: "
            f"set clap.source, and checkpoint to null"
        )
    return CLAP(settings.clap)
