"""How LAVCap joins audio and visual tokens: the rows of the paper's Tables II and III."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.errors import ConfigError
from avcap_zoo.ops.optimal_transport import (
    AttentionConvention,
    LossConvention,
    alignment_loss,
    sinkhorn_log_plan,
    transport_attention,
)

FusionKind = Literal["audio_only", "visual_only", "concatenation", "concatenation_ot", "ot_attention"]

LARGEST_LOGIT_SCALE = math.log(100)


@dataclass
class FusionSettings:
    """How the two modalities meet.

    Args:
        kind: `audio_only`, `visual_only`, `concatenation` (no OT loss), `concatenation_ot` (with it) or `ot_attention`
            (the paper's LAVCap: OT loss and OT-Att).
        features: `normalised` (released): unit-norm tokens reach the language model; `raw` (paper): the encoders' own
            tokens do, and only the similarity is cosine.
        epsilon: smoothing of the transport.
        num_iterations: Sinkhorn iterations.
        loss_weight: factor of the OT loss.
        loss_convention: see `ops.optimal_transport.alignment_loss`.
        attention_convention: see `ops.optimal_transport.transport_attention`.
        layer_norm: LayerNorm on both modalities before anything else (`av_embed_norm` in the released code).
        exponentiate_scale: use exp(logit scale), as CLIP does, instead of the scale itself as released.
    """

    kind: FusionKind = "ot_attention"
    features: Literal["normalised", "raw"] = "normalised"
    epsilon: float = 0.1
    num_iterations: int = 50
    loss_weight: float = 1.0
    loss_convention: LossConvention = "released"
    attention_convention: AttentionConvention = "released"
    layer_norm: bool = False
    exponentiate_scale: bool = False

    @property
    def needs_audio(self) -> bool:
        """Whether the kind listens."""
        return self.kind != "visual_only"

    @property
    def needs_vision(self) -> bool:
        """Whether the kind looks."""
        return self.kind != "audio_only"

    @property
    def transports(self) -> bool:
        """Whether the kind has an OT loss."""
        return self.kind in ("concatenation_ot", "ot_attention")


@dataclass
class FusedTokens:
    """What goes to the projector.

    Attributes:
        tokens: (B, N, C), audio first.
        mask: (B, N) bool.
        ot_loss: weighted alignment loss, or None for kinds without it.
        log_plan: (B, K, T) visual rows, audio columns, or None.
    """

    tokens: Tensor
    mask: Tensor
    ot_loss: Tensor | None = None
    log_plan: Tensor | None = None


class Fusion(nn.Module):
    """Joins audio and visual tokens.

    Args:
        settings: see `FusionSettings`.
        audio_width: channels of the audio tokens.
        visual_width: channels of the visual tokens.

    Raises:
        ConfigError: both modalities are used and their widths differ.
    """

    def __init__(self, settings: FusionSettings, audio_width: int, visual_width: int) -> None:
        super().__init__()
        if settings.needs_audio and settings.needs_vision and audio_width != visual_width:
            raise ConfigError(
                f"model.init_args.fusion.kind {settings.kind} needs audio and visual tokens of one width, "
                f"found {audio_width} and {visual_width}"
            )
        self.settings = settings
        self.width = audio_width if settings.needs_audio else visual_width
        if settings.transports:
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if settings.layer_norm:
            self.audio_norm = nn.LayerNorm(audio_width)
            self.visual_norm = nn.LayerNorm(visual_width)

    def forward(
        self,
        audio: Tensor | None,
        visual: Tensor | None,
        audio_mask: Tensor | None = None,
        visual_mask: Tensor | None = None,
    ) -> FusedTokens:
        """Join the tokens of B clips.

        Args:
            audio: (B, T, C); not needed by `visual_only`.
            visual: (B, K, C); not needed by `audio_only`.
            audio_mask: (B, T) bool, None = all real.
            visual_mask: (B, K) bool, None = all real.

        Returns:
            Tokens, mask, and where the kind has them, the OT loss and the log plan.

        Source: LAVCap section III; released `fusion_type` values (spec section 2).
        """
        settings = self.settings
        audio, audio_unit, audio_mask = (
            self._prepare(audio, audio_mask, "audio") if settings.needs_audio else (None,) * 3
        )
        visual, visual_unit, visual_mask = (
            self._prepare(visual, visual_mask, "visual") if settings.needs_vision else (None,) * 3
        )
        if audio is None or audio_mask is None or audio_unit is None:
            assert visual is not None
            assert visual_mask is not None
            return FusedTokens(visual, visual_mask)
        if visual is None or visual_mask is None or visual_unit is None:
            return FusedTokens(audio, audio_mask)
        mask = torch.cat([audio_mask, visual_mask], dim=1)
        if not settings.transports:
            return FusedTokens(torch.cat([audio, visual], dim=1), mask)
        with torch.autocast(audio.device.type, enabled=False):
            similarity = visual_unit @ audio_unit.transpose(1, 2)
        log_plan = sinkhorn_log_plan(
            similarity,
            epsilon=settings.epsilon,
            num_iterations=settings.num_iterations,
            row_mask=visual_mask,
            column_mask=audio_mask,
        )
        losses = alignment_loss(similarity, log_plan, self._scale(), convention=settings.loss_convention)
        if settings.kind == "ot_attention":
            visual, audio = transport_attention(visual, audio, log_plan, convention=settings.attention_convention)
        return FusedTokens(
            torch.cat([audio, visual], dim=1), mask, settings.loss_weight * (losses[0] + losses[1]), log_plan
        )

    def _prepare(self, tokens: Tensor | None, mask: Tensor | None, modality: str) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens as they reach the projector, unit-norm float32 tokens, and their mask."""
        if tokens is None:
            raise ConfigError(f"fusion.kind {self.settings.kind} needs {modality} tokens, the batch has none")
        if self.settings.layer_norm:
            tokens = self.audio_norm(tokens) if modality == "audio" else self.visual_norm(tokens)
        unit = F.normalize(tokens.float(), dim=-1)
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return (unit if self.settings.features == "normalised" else tokens), unit, mask

    def _scale(self) -> Tensor:
        """The logit scale, clamped in place as released; exponentiated only on request."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)
        return self.logit_scale.exp() if self.settings.exponentiate_scale else self.logit_scale
