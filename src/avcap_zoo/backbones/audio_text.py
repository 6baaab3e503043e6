"""Audio-text models: one space for sounds and sentences, in which near means alike.

`WavCapsCLAP` is HTSAT with BERT as WavCaps released it; `CLAP` is any model that transformers knows as ClapModel
(LAION's, fused and unfused). AudioCLIP is left out: its ESResNeXt and its learned spectrogram are in no library that
we build on, and its published rows were made with keywords encoded letter by letter.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.audio.htsat import HTSAT, KEY, HTSATSettings, audio_config
from avcap_zoo.backbones.language import word_piece_tokenizer
from avcap_zoo.backbones.pretrained import build_config, load_part, load_pretrained
from avcap_zoo.errors import ConfigError, DataError, ShapeError, hub_error
from avcap_zoo.ops.fbank import decibels, mel_spectrogram, num_centred_frames
from avcap_zoo.ops.windows import choose_starts, cut_windows, mean_direction, repeat_whole, round_to_int16

NUM_CHUNKS = 3
_CLAP_KEY = "model.init_args.audio_text.clap"


@dataclass
class CropSettings:
    """What is heard of a clip that is longer than the model's window.

    Args:
        policy: see `ops.windows.choose_starts`; `whole` gives the clip to a model that hears long clips (fused CLAP).
        seed: of `seeded`, and of the one sequence of draws of `released`.
    """

    policy: Literal["seeded", "centre", "windows_mean", "released", "whole"] = "seeded"
    seed: int = 4182


class AudioTextModel(nn.Module, ABC):
    """What can embed sounds and texts in one space.

    A subclass sets the attributes, encodes windows of sound in `encode_audio` and rows of token ids in `encode_ids`.
    Put it in evaluation mode: batch normalisation and dropout would make embeddings depend on the batch.

    Attributes:
        sample_rate_hz: of the sound.
        window_samples: longest sound that is heard at once.
        embed_dim: width D of both embeddings.
        hears_long_clips: whether `encode_audio` takes more than a window.
        tokenizer: of transformers, with a pad token.
        max_text_tokens: longer texts are cut, special tokens included.
    """

    sample_rate_hz: int
    window_samples: int
    embed_dim: int
    hears_long_clips: bool = False
    tokenizer: Any
    max_text_tokens: int

    @abstractmethod
    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """(B, D) embeddings, not normalised, of (B, S) waveforms with (B,) real samples each."""

    @abstractmethod
    def encode_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(N, D) embeddings, not normalised, of (N, L) token ids with a bool mask."""

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def embed_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Embed sounds that fit into the model's window (or longer ones, if it `hears_long_clips`).

        Args:
            waveform: (B, S) in [-1, 1] at `sample_rate_hz`, zero-padded.
            num_samples: (B,) real samples; a clip of none is heard as silence.

        Returns:
            (B, D) float32 unit vectors.

        Raises:
            ShapeError: the two do not fit together, or a clip is longer than the window.
        """
        if waveform.ndim != 2 or waveform.shape[1] == 0 or num_samples.shape != waveform.shape[:1]:
            raise ShapeError(
                f"waveform is {tuple(waveform.shape)}, num_samples {tuple(num_samples.shape)}; wanted (clips, samples) "
                f"with at least one sample, and (clips,)"
            )
        if len(waveform) == 0:
            return torch.zeros(0, self.embed_dim, device=self.device)
        if not self.hears_long_clips:
            longest = int(num_samples.max())
            if longest > self.window_samples:
                raise ShapeError(
                    f"a clip has {longest} samples, the model hears {self.window_samples} at once: use embed_clips"
                )
            waveform = waveform[:, : self.window_samples]
        return F.normalize(self.encode_audio(waveform.float(), num_samples).float(), dim=1)

    def embed_clips(
        self,
        waveform: Tensor,
        num_samples: Tensor,
        clip_ids: Sequence[str],
        crop: CropSettings,
        sequence: random.Random | None = None,
    ) -> Tensor:
        """Embed clips of any length; all windows go through the encoder in one call.

        Args:
            waveform: (B, S) in [-1, 1] at `sample_rate_hz`, zero-padded.
            num_samples: (B,) real samples.
            clip_ids: B ids.
            crop: what is heard of long clips.
            sequence: of policy `released`, one for the whole run: `random.Random(crop.seed)`.

        Returns:
            (B, D) float32 unit vectors.

        Raises:
            ConfigError: policy `whole` and a model that does not hear long clips.
            ValueError: see `ops.windows.choose_starts`.
        """
        if crop.policy == "whole":
            if not self.hears_long_clips:
                raise ConfigError(
                    f"crop.policy whole: this model hears {self.window_samples / self.sample_rate_hz:g} s at once; "
                    f"take seeded, centre or windows_mean"
                )
            return self.embed_audio(waveform, num_samples)
        starts = choose_starts(
            num_samples.tolist(), self.window_samples, crop.policy,
            clip_ids=clip_ids, seed=crop.seed, sequence=sequence,
        )  # fmt: skip
        windows = cut_windows(waveform, num_samples, starts, self.window_samples)
        return mean_direction(self.embed_audio(windows.waveform, windows.num_samples), windows.clip, len(waveform))

    def token_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as the encoder sees them: special tokens in, cut at `max_text_tokens`.

        Texts with equal rows have equal embeddings.

        Raises:
            DataError: an entry is not a string.
        """
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"a text to embed is {text!r}, wanted a string")
        if not texts:
            return []
        rows: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self.max_text_tokens).input_ids
        return rows

    def encode_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(N, D) float32 unit vectors of N rows of ids."""
        if not rows:
            return torch.zeros(0, self.embed_dim, device=self.device)
        width = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(width, device=self.device)[None, :] < lengths[:, None]
        return F.normalize(self.encode_ids(ids, mask).float(), dim=1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 unit vectors of N texts; a text may be empty. What the encoder sees twice is encoded once.

        Raises:
            DataError: an entry is not a string.
        """
        rows = [tuple(row) for row in self.token_rows(texts)]
        unique = sorted(set(rows), key=lambda row: (len(row), row))
        place = {row: index for index, row in enumerate(unique)}
        index = torch.tensor([place[row] for row in rows], dtype=torch.long, device=self.device)
        return self.encode_rows(unique)[index]


# -- WavCaps -------------------------------------------------------------------------------------------------------


@dataclass
class WavCapsSettings:
    """Size of WavCaps' model; the defaults are those of HTSAT-BERT-PT.pt.

    Args:
        audio: the audio tower and its front end.
        text: keys of transformers' BertConfig; the rest has the values of bert-base.
        embed_dim: D.
        tokenizer: hub id, or local folder (a `vocab.txt` in it is enough); None = the built-in word pieces.
        max_text_tokens: longest text, [CLS] and [SEP] included.
    """

    audio: HTSATSettings = field(default_factory=HTSATSettings)
    text: dict[str, Any] = field(default_factory=dict)
    embed_dim: int = 1024
    tokenizer: str | None = "bert-base-uncased"
    max_text_tokens: int = 30


class WavCapsCLAP(AudioTextModel):
    """HTSAT and BERT, each with a two-layer projection; random weights until a checkpoint is loaded.

    Zeros follow a short clip up to the window, as released. A text is its [CLS] state.

    Args:
        settings: see `WavCapsSettings`.

    Raises:
        WeightsError: the tokenizer cannot be found.
        ConfigError: a size that does not fit, or a tokenizer that does not fit the text encoder.

    Source: Mei et al., "WavCaps" (arXiv 2303.17395), the released retrieval model.
    """

    def __init__(self, settings: WavCapsSettings) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.tokenizer = _tokenizer(settings.tokenizer)
        self.max_text_tokens = settings.max_text_tokens
        self.audio_encoder = HTSAT(settings.audio)
        keys = dict(settings.text)
        if settings.tokenizer is None:
            keys.setdefault("vocab_size", len(self.tokenizer))
            keys.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        config = build_config(BertConfig, keys, f"{KEY}.text")
        _check_text_encoder(self.tokenizer, config.vocab_size, config.max_position_embeddings, self.max_text_tokens)
        self.text_encoder = BertModel(config, add_pooling_layer=False)
        self.audio_proj = _projection(self.audio_encoder.embed_dim, settings.embed_dim)
        self.text_proj = _projection(config.hidden_size, settings.embed_dim)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        """Divides the cosines of the contrastive loss; not used in embedding."""
        self.sample_rate_hz = settings.audio.sample_rate_hz
        self.window_samples = self.audio_encoder.window_samples
        self.embed_dim = settings.embed_dim

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """(B, D) projected embeddings; what lies behind `num_samples` is zero and heard as such."""
        projected: Tensor = self.audio_proj(self.audio_encoder(waveform))
        return projected

    def encode_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(N, D) projected [CLS] states."""
        states = self.text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        projected: Tensor = self.text_proj(states[:, 0])
        return projected


def _projection(width: int, embed_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim))


# -- CLAP in transformers ------------------------------------------------------------------------------------------


@dataclass
class CLAPSettings:
    """Where a transformers CLAP comes from.

    Args:
        source: hub id or local folder in transformers format; None = random weights from `config`.
        config: used only without `source`: `text` and `audio` (keys of ClapTextConfig and ClapAudioConfig),
            `front_end` (keys of ClapFeatureExtractor), `embed_dim`.
        int16: True sends each clip through 16-bit PCM first, as laion_clap does; transformers does not.
        max_text_tokens: longest text, special tokens included.
    """

    source: str | None = "laion/clap-htsat-fused"
    config: dict[str, Any] = field(default_factory=dict)
    int16: bool = True
    max_text_tokens: int = 77


class CLAP(AudioTextModel):
    """transformers' ClapModel with its front end, batched and on the device.

    A short clip is repeated as often as it fits, then followed by zeros. Unfused models hear one window. Fused ones
    also hear long clips: the whole at another speed, and three chunks. The released code draws the chunks at random;
    here each is the middle one of its third, so that a clip has one embedding.

    Args:
        settings: see `CLAPSettings`.

    Raises:
        WeightsError: the source cannot be found or read, or does not hold all weights.
        ConfigError: a config that does not fit, or a front end that pads in another way.

    Source: Wu et al., "Large-scale contrastive language-audio pretraining" (arXiv 2211.06687).
    """

    def __init__(self, settings: CLAPSettings) -> None:
        super().__init__()
        key = f"{_CLAP_KEY}.source"
        if settings.source is None:
            self.tokenizer, self.model, front_end = _clap_from_config(settings.config)
        else:
            from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

            self.model = load_pretrained(ClapModel, settings.source, key).float()
            self.tokenizer = load_part(AutoTokenizer, settings.source, key)
            with hub_error(settings.source, key):
                front_end = ClapFeatureExtractor.from_pretrained(settings.source)
        if front_end.padding != "repeatpad":
            raise ConfigError(f"{key}: padding {front_end.padding!r} of the front end is not supported, only repeatpad")
        text, self.max_text_tokens = self.model.config.text_config, settings.max_text_tokens
        # RoBERTa's positions begin behind the pad token's id.
        _check_text_encoder(
            self.tokenizer, text.vocab_size, text.max_position_embeddings - text.pad_token_id - 1, self.max_text_tokens
        )
        self.int16 = settings.int16
        self.front_end = front_end
        self.hears_long_clips = bool(self.model.config.audio_config.enable_fusion)
        self.sample_rate_hz = front_end.sampling_rate
        self.window_samples = int(front_end.max_length_s * front_end.sampling_rate)
        self.embed_dim = self.model.config.projection_dim

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """(B, D) projected embeddings."""
        if self.int16:
            waveform = round_to_int16(waveform)
        short = decibels(self._mel(repeat_whole(waveform, num_samples, self.window_samples)))[:, None]
        if not self.hears_long_clips:
            return self._project(short)
        views = short.expand(-1, 1 + NUM_CHUNKS, -1, -1)
        num_frames = num_centred_frames(num_samples, self.front_end.hop_length)
        longer = num_frames > short.shape[2]
        whole = num_samples > self.window_samples  # a little longer, but not by a frame: heard once, not fused
        if bool(whole.any()):
            level = decibels(self._mel(waveform, num_samples))
            views = torch.where(whole[:, None, None, None], fuse_views(level, num_frames, short.shape[2]), views)
        return self._project(views, longer[:, None])

    def encode_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(N, D) projected pooled states."""
        pooled = self.model.text_model(input_ids=ids, attention_mask=mask.long()).pooler_output
        projected: Tensor = self.model.text_projection(pooled)
        return projected

    def _mel(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        front_end = self.front_end
        fused = front_end.truncation == "fusion"  # the two kinds were trained with different filters
        return mel_spectrogram(
            waveform,
            sample_rate_hz=front_end.sampling_rate,
            fft_size=front_end.fft_window_size,
            hop_length=front_end.hop_length,
            num_mel_bins=front_end.feature_size,
            low_hz=front_end.frequency_min,
            high_hz=front_end.frequency_max,
            mel_scale="htk" if fused else "slaney",
            area_normalised=not fused,
            num_samples=num_samples,
        )

    def _project(self, spectrograms: Tensor, is_longer: Tensor | None = None) -> Tensor:
        pooled = self.model.audio_model(
            input_features=spectrograms.to(self.model.dtype), is_longer=is_longer
        ).pooler_output
        projected: Tensor = self.model.audio_projection(pooled)
        return projected


def fuse_views(level: Tensor, num_frames: Tensor, size: int) -> Tensor:
    """Four views of long spectrograms: the whole resized, and the middle chunk of each third.

    Args:
        level: (B, T, F) spectrograms.
        num_frames: (B,) real frames of each.
        size: frames of a view.

    Returns:
        (B, 4, size, F). A clip of `size` frames or fewer is not resized, and begins all four.

    Source: feature fusion of LAION-CLAP; its random chunks are replaced by the middle ones.
    """
    place = torch.arange(size, device=level.device)[None, :]
    frames = num_frames.to(level.device).clamp_min(size)[:, None]
    # Bilinear, corners not aligned.
    at = ((place + 0.5) * (frames / size) - 0.5).clamp_min(0.0)
    low = at.floor().long()
    between = (at - low)[:, :, None]
    rows = torch.arange(len(level), device=level.device)[:, None]
    last = torch.minimum(frames - 1, torch.full_like(frames, level.shape[1] - 1))
    whole = torch.lerp(level[rows, torch.minimum(low, last)], level[rows, torch.minimum(low + 1, last)], between)
    views = [whole]
    # Possible starts in three parts, the first ones longer by what is left over (np.array_split).
    share, rest = (frames - size + 1) // NUM_CHUNKS, (frames - size + 1) % NUM_CHUNKS
    for part in range(NUM_CHUNKS):
        length = share + (part < rest)
        start = torch.where(length > 0, part * share + rest.clamp_max(part) + length // 2, 0)
        views.append(level[rows, torch.minimum(start + place, last)])
    return torch.stack(views, dim=1)


def clap_sample_rate_hz(settings: CLAPSettings) -> int:
    """The rate at which a CLAP hears, without its weights.

    Raises:
        WeightsError: the source cannot be found.
    """
    from transformers import ClapFeatureExtractor

    if settings.source is None:
        return int(settings.config.get("front_end", {}).get("sampling_rate", ClapFeatureExtractor().sampling_rate))
    with hub_error(settings.source, f"{_CLAP_KEY}.source"):
        return int(ClapFeatureExtractor.from_pretrained(settings.source).sampling_rate)


def _clap_from_config(config: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Tokenizer, model with random weights, and front end."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

    key = f"{_CLAP_KEY}.config"
    if unknown := sorted(set(config) - {"text", "audio", "front_end", "embed_dim"}):
        raise ConfigError(f"{key}: unknown {', '.join(unknown)}; known are text, audio, front_end and embed_dim")
    tokenizer = _tokenizer(None)
    text = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **config.get("text", {})}
    sound = {"frequency_min": 50, **config.get("front_end", {})}
    front_end = build_config(ClapFeatureExtractor, sound, f"{key}.front_end")
    audio = audio_config(front_end.feature_size, config.get("audio", {}), f"{key}.audio")
    fused = audio.enable_fusion
    front_end.truncation = "fusion" if fused else "rand_trunc"
    if fused:
        audio.fusion_type = audio.fusion_type or "aff_2d"
    text_config = build_config(ClapTextConfig, text, f"{key}.text")
    embed_dim = config.get("embed_dim", 512)
    whole = ClapConfig(text_config=text_config.to_dict(), audio_config=audio.to_dict(), projection_dim=embed_dim)
    return tokenizer, ClapModel(whole), front_end


# -- tokenizers ----------------------------------------------------------------------------------------------------


def _tokenizer(source: str | None) -> Any:
    """A tokenizer that adds special tokens: of a hub id, of a folder, or the built-in word pieces."""
    if source is None:
        from tokenizers.processors import TemplateProcessing

        tokenizer = word_piece_tokenizer()
        ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (tokenizer.bos_token, tokenizer.eos_token)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends
        )
        return tokenizer
    from transformers import AutoTokenizer, BertTokenizerFast

    # AutoTokenizer wants more than a vocab.txt; BertTokenizerFast makes an empty tokenizer of a source it cannot find.
    bare = (Path(source) / "vocab.txt").is_file() and not (Path(source) / "tokenizer.json").is_file()
    if not bare:
        return load_part(AutoTokenizer, source, f"{KEY}.tokenizer")
    with hub_error(source, f"{KEY}.tokenizer"):
        return BertTokenizerFast.from_pretrained(source)


def _check_text_encoder(tokenizer: Any, vocabulary_size: int, positions: int, max_text_tokens: int) -> None:
    """Refuse a tokenizer whose ids or lengths the text encoder has no place for.

    Raises:
        ConfigError: what does not fit.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"the tokenizer {tokenizer.name_or_path!r} has no pad token")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ConfigError(f"the tokenizer {tokenizer.name_or_path!r} has no words: its vocabulary file is empty")
    if len(tokenizer) > vocabulary_size:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path!r} has {len(tokenizer)} entries, the text encoder "
            f"{vocabulary_size}: they do not belong together"
        )
    if not 2 < max_text_tokens <= positions:
        raise ConfigError(
            f"max_text_tokens is {max_text_tokens}; wanted at least 3 (two are special), and at most the "
            f"{positions} positions of the text encoder"
        )
