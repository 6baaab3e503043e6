"""CED, an audio spectrogram transformer, with its two front ends and its AudioSet classifier.

Source: Dinkel et al., "CED: Consistent ensemble distillation for audio tagging" (2023); the shapes are those of the
released checkpoints (spec lavcap.md, sections 1.1 and 11).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.audio.blocks import PreNormBlock
from avcap_zoo.errors import ConfigError, ShapeError
from avcap_zoo.ops.fbank import (
    DECIBEL_FLOOR,
    decibels,
    mel_spectrogram,
    normalised_fbank,
    num_centred_frames,
    num_kaldi_frames,
)
from avcap_zoo.ops.masking import length_mask

PATCH_SIZE = 16
SAMPLE_RATE_HZ = 16_000
FFT_SIZE = 512
RANGE_DB = 120.0
SILENCE_DB = 10 * math.log10(DECIBEL_FLOOR)

SIZES = {"tiny": (192, 3), "mini": (256, 4), "small": (384, 6), "base": (768, 12)}
"""Name of the published size -> width and attention heads; all have 12 blocks."""

FrontEnd = Literal["kaldi", "decibel"]
Pooling = Literal["mean", "logit", "dm"]


@dataclass
class CEDSettings:
    """Size and input of a CED encoder; the defaults are CED-base inside LAVCap.

    Args:
        size: a published size, `tiny`, `mini`, `small` or `base`: gives width and heads where they are 0.
        embed_dim: width C of the tokens; 0 = that of `size` (192, 256, 384, 768).
        depth: transformer blocks.
        num_heads: attention heads; 0 = those of `size` (3, 4, 6, 12).
        num_mel_bins: mel bins F, a multiple of 16.
        target_length: frames T that the time positions cover; shorter input uses a prefix of them. LAVCap: 1024,
            the published CED checkpoints: 1012.
        frame_shift_ms: step of the filter bank in front.
        front_end: `kaldi` (LAVCap): normalised natural-log filter bank, always `target_length` frames; `decibel`
            (what the published checkpoints were trained on): centred frames in dB, as many as the longest clip has.
        range_over: front end `decibel` clamps at 120 dB below the loudest of each `clip`, or of the whole `batch` as
            released.
        feature_mean: front end `kaldi`: subtracted from the log-mel input.
        feature_std: front end `kaldi`: divides it.
        pad_with_silence: front end `kaldi`: see `ops.fbank.normalised_fbank`. The other always pads with silence.
        frozen_batch_norm: the input BatchNorm of an encoder that is not fully trained: `drift` (as released) keeps
            moving its statistics in training, `eval` keeps those of the checkpoint.

    Raises:
        ConfigError: a size that is not published.
    """

    size: str = "base"
    embed_dim: int = 0
    depth: int = 12
    num_heads: int = 0
    num_mel_bins: int = 64
    target_length: int = 1024
    frame_shift_ms: float = 10.0
    front_end: FrontEnd = "kaldi"
    range_over: Literal["clip", "batch"] = "clip"
    feature_mean: float = -4.346
    feature_std: float = 4.332
    pad_with_silence: bool = False
    frozen_batch_norm: Literal["eval", "drift"] = "drift"

    def __post_init__(self) -> None:
        """Fill in what the size gives."""
        if self.size not in SIZES:
            raise ConfigError(f"CED has no size {self.size!r}, wanted one of {', '.join(SIZES)}")
        width, heads = SIZES[self.size]
        self.embed_dim = self.embed_dim or width
        self.num_heads = self.num_heads or heads

    @property
    def blank_value(self) -> float:
        """What SpecAugment puts in the place of sound: zero before normalisation as LAVCap does, or silence."""
        return SILENCE_DB if self.front_end == "decibel" else -self.feature_mean / self.feature_std


class CED(nn.Module):
    """Patch-wise transformer over a log-mel spectrogram.

    State-dict names are those of the released LAVCap encoder, but `init_bn.1.` is `init_bn.` here and there is no
    classifier; `CEDTagger` has one.

    Args:
        settings: see `CEDSettings`.

    Raises:
        ValueError: widths or bins that do not divide.
    """

    def __init__(self, settings: CEDSettings) -> None:
        super().__init__()
        if settings.num_mel_bins % PATCH_SIZE or settings.target_length < PATCH_SIZE:
            raise ValueError(
                f"num_mel_bins {settings.num_mel_bins} must be a multiple of the patch size {PATCH_SIZE}, "
                f"target_length {settings.target_length} not less than it"
            )
        if settings.embed_dim % settings.num_heads:
            raise ValueError(f"embed_dim {settings.embed_dim} is not a multiple of num_heads {settings.num_heads}")
        width = settings.embed_dim
        self.settings = settings
        self.init_bn = nn.BatchNorm2d(settings.num_mel_bins, momentum=0.01)
        self.patch_embed = _PatchEmbedding(width)
        self.time_pos_embed = nn.Parameter(torch.randn(1, width, 1, settings.target_length // PATCH_SIZE) * 0.02)
        self.freq_pos_embed = nn.Parameter(torch.randn(1, width, settings.num_mel_bins // PATCH_SIZE, 1) * 0.02)
        self.blocks = nn.ModuleList(
            PreNormBlock(_Attention(width, settings.num_heads), width) for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.batch_norm_frozen = False

    def freeze_batch_norm(self) -> None:
        """Keep the input BatchNorm in evaluation mode from now on, whatever `train()` says."""
        self.batch_norm_frozen = True
        self.init_bn.eval()

    def train(self, mode: bool = True) -> CED:
        """Set training mode; a frozen input BatchNorm stays in evaluation mode."""
        super().train(mode)
        if self.batch_norm_frozen:
            self.init_bn.eval()
        return self

    def spectrogram(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """What `forward` reads, by the settings' front end.

        Args:
            waveform: (B, S) at 16 kHz in [-1, 1].
            num_samples: (B,) real samples.

        Returns:
            (B, T, F) float32. Front end `kaldi`: T = target_length. `decibel`: the frames of S samples, at least 16 and
            at most target_length; silence (-100 dB) behind each clip's own frames.
        """
        settings = self.settings
        if settings.front_end == "kaldi":
            return normalised_fbank(
                waveform,
                num_samples,
                target_length=settings.target_length,
                mean=settings.feature_mean,
                std=settings.feature_std,
                num_mel_bins=settings.num_mel_bins,
                frame_shift_ms=settings.frame_shift_ms,
                pad_with_silence=settings.pad_with_silence,
            )
        level = decibel_spectrogram(
            waveform,
            num_samples,
            num_mel_bins=settings.num_mel_bins,
            frame_shift_ms=settings.frame_shift_ms,
            range_over=settings.range_over,
        )[:, : settings.target_length]
        real = length_mask(self.num_frames(num_samples), level.shape[1])[:, :, None]
        return F.pad(level.where(real, SILENCE_DB), (0, 0, 0, max(0, PATCH_SIZE - level.shape[1])), value=SILENCE_DB)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """(B,) frames of the front end that hear each clip of (B,) samples, not counting padding."""
        shift_ms = self.settings.frame_shift_ms
        if self.settings.front_end == "kaldi":
            return num_kaldi_frames(num_samples, frame_shift_ms=shift_ms)
        return num_centred_frames(num_samples, round(SAMPLE_RATE_HZ * shift_ms / 1000))

    def num_tokens(self, num_samples: Tensor) -> Tensor:
        """(B,) time tokens that hear anything of each clip of (B,) samples, at least 1."""
        frames = self.num_frames(num_samples)
        return frames.add(PATCH_SIZE - 1).div(PATCH_SIZE, rounding_mode="floor").clamp_min(1)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Encode spectrograms.

        Args:
            spectrogram: (B, T, F) log-mel, T at most `target_length`; the last T % 16 frames are not seen.

        Returns:
            (B, F / 16, T // 16, C) tokens after the final norm. Flattening the two middle axes gives the released,
            frequency-major order.

        Raises:
            ShapeError: F differs from the settings, or T is longer than the time positions or shorter than one patch.
        """
        if spectrogram.ndim != 3 or spectrogram.shape[2] != self.settings.num_mel_bins:
            raise ShapeError(
                f"spectrogram is {tuple(spectrogram.shape)}, wanted (clips, frames, {self.settings.num_mel_bins})"
            )
        num_frames = spectrogram.shape[1]
        if not 1 <= num_frames // PATCH_SIZE <= self.time_pos_embed.shape[3]:
            raise ShapeError(
                f"spectrogram has {num_frames} frames, wanted {PATCH_SIZE} to {self.settings.target_length}"
            )
        tokens: Tensor = self.encode_normed(self.norm_bins(spectrogram))
        return tokens

    def norm_bins(self, spectrogram: Tensor) -> Tensor:
        """The input BatchNorm: (B, T, F) to (B, 1, F, T)."""
        mel_first = spectrogram.transpose(1, 2)[:, :, None, :]  # (B, F, 1, T): mel bins are BatchNorm's channels
        normed: Tensor = self.init_bn(mel_first).transpose(1, 2)
        return normed

    def encode_normed(self, normed: Tensor) -> Tensor:
        """Everything behind the input BatchNorm: (B, 1, F, T) to (B, F / 16, T // 16, C)."""
        grid = self.patch_embed(normed)
        grid = grid + self.time_pos_embed[..., : grid.shape[3]] + self.freq_pos_embed
        tokens = grid.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).unflatten(1, (grid.shape[2], grid.shape[3]))  # type: ignore[no-any-return]


class CEDTagger(nn.Module):
    """CED with its classifier, as published: waveform in, AudioSet classes out.

    Args:
        settings: of the encoder; the published checkpoints have `front_end` decibel and `target_length` 1012.
        num_classes: 527 for AudioSet.
        pooling: `mean`: mean of all tokens, head, sigmoid; `logit`: without the sigmoid; `dm`: mean over frequency,
            head, sigmoid, mean over time.
    """

    def __init__(self, settings: CEDSettings, num_classes: int = 527, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.encoder = CED(settings)
        self.pooling = pooling
        self.head = nn.Sequential(nn.LayerNorm(settings.embed_dim), nn.Linear(settings.embed_dim, num_classes))

    def forward(self, waveform: Tensor) -> Tensor:
        """Classify clips of one length, however long.

        Args:
            waveform: (B, S) at 16 kHz in [-1, 1].

        Returns:
            (B, classes); see `classify`.
        """
        settings = self.encoder.settings
        if settings.front_end == "decibel":
            spectrogram = decibel_spectrogram(
                waveform,
                num_mel_bins=settings.num_mel_bins,
                frame_shift_ms=settings.frame_shift_ms,
                range_over=settings.range_over,
            )
        else:
            lengths = torch.full((len(waveform),), waveform.shape[1], device=waveform.device)
            spectrogram = self.encoder.spectrogram(waveform, lengths)
        return self.classify(spectrogram)

    def classify(self, spectrogram: Tensor) -> Tensor:
        """Classify spectrograms of any length.

        More than `target_length` frames are cut into blocks of that length behind the input BatchNorm; the last block
        is filled with zeros, and the outputs are averaged, as released.

        Args:
            spectrogram: (B, T, F), at least 16 frames.

        Returns:
            (B, classes): probabilities, or logits for pooling `logit`.

        Raises:
            ShapeError: fewer than 16 frames.
        """
        num_frames, longest = spectrogram.shape[1], self.encoder.settings.target_length
        if num_frames <= longest:
            return self._pool(self.encoder(spectrogram))
        normed = F.pad(self.encoder.norm_bins(spectrogram), (0, -num_frames % longest))
        blocks = normed.unflatten(3, (-1, longest)).permute(3, 0, 1, 2, 4)  # (blocks, B, 1, F, target_length)
        outputs = self._pool(self.encoder.encode_normed(blocks.flatten(0, 1)))
        averaged: Tensor = outputs.unflatten(0, blocks.shape[:2]).mean(dim=0)
        return averaged

    def _pool(self, tokens: Tensor) -> Tensor:
        """(B, classes) of (B, F', T', C) tokens."""
        if self.pooling == "dm":
            framewise: Tensor = self.head(tokens.mean(dim=1)).sigmoid()
            return framewise.mean(dim=1)
        logits: Tensor = self.head(tokens.mean(dim=(1, 2)))
        return logits if self.pooling == "logit" else logits.sigmoid()


def decibel_spectrogram(
    waveform: Tensor,
    num_samples: Tensor | None = None,
    *,
    num_mel_bins: int = 64,
    frame_shift_ms: float = 10.0,
    range_over: Literal["clip", "batch"] = "clip",
) -> Tensor:
    """CED's own front end: centred 32 ms frames, 64 HTK mel bins, dB, at most 120 dB below the loudest.

    Args:
        waveform: (B, S) at 16 kHz in [-1, 1].
        num_samples: (B,) real samples; None = all.
        num_mel_bins: F.
        frame_shift_ms: step between frames.
        range_over: see `ops.fbank.decibels`; `batch` as released.

    Returns:
        (B, T, F) float32, T = 1 + S // hop, not normalised.
    """
    power = mel_spectrogram(
        waveform,
        sample_rate_hz=SAMPLE_RATE_HZ,
        fft_size=FFT_SIZE,
        hop_length=round(SAMPLE_RATE_HZ * frame_shift_ms / 1000),
        num_mel_bins=num_mel_bins,
        num_samples=num_samples,
    )
    return decibels(power, range_db=RANGE_DB, range_over=range_over)


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, PATCH_SIZE, PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = [
            projection(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        ]
        mixed = F.scaled_dot_product_attention(*heads)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
