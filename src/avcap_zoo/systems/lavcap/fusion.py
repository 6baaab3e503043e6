"""How LAVCap joins audio and visual tokens: the rows of the paper's Tables II and III, and the released variants."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.qformer import QFormerSettings
from avcap_zoo.errors import ConfigError, DataError, ShapeError
from avcap_zoo.ops.masking import check_token_mask, left_align
from avcap_zoo.ops.optimal_transport import (
    AttentionConvention,
    LossConvention,
    alignment_loss,
    sinkhorn_log_plan,
    transport_attention,
)
from avcap_zoo.systems.lavcap.fusion_kinds import Features, FusionKind, Recipe, recipe_of
from avcap_zoo.systems.lavcap.windowed_qformer import WindowedQFormer

LARGEST_LOGIT_SCALE = math.log(100)
HEAD_DIM = 64
"""Width of an attention head of `cross_attention` and `joint_encoder`; 12 heads at width 768."""


@dataclass
class FusionSettings:
    """How the two modalities meet.

    Args:
        kind: `audio_only`, `visual_only`, `concatenation` (no OT loss), `concatenation_ot` (with it), `ot_attention`
            (the paper's LAVCap: OT loss and OT-Att), `cross_attention`, `qformer`, `joint_encoder` (with OT loss all
            three), or a `released_...` one; `fusion_kinds.RECIPES` says what each does.
        features: `normalised` (released): unit-norm tokens reach the language model; `raw` (paper): the encoders' own
            tokens do, and only the similarity is cosine. The `released_...` kinds have theirs, whatever stands here.
        epsilon: smoothing of the transport.
        num_iterations: Sinkhorn iterations.
        tolerance: stops them early, see `ops.optimal_transport.sinkhorn_log_plan`; None = never, as released.
        loss_weight: factor of the OT loss.
        loss_convention: see `ops.optimal_transport.alignment_loss`.
        attention_convention: see `ops.optimal_transport.transport_attention`.
        layer_norm: LayerNorm on both modalities before anything else (`av_embed_norm` in the released code).
        exponentiate_scale: use exp(logit scale), as CLIP does, instead of the scale itself as released.
        qformer: size of the Q-Former of the kinds that have one; released: one query, two layers of BERT-base width.
        window_s: what one Q-Former window hears, in seconds of full-size tokens, 6.4 of them a second (64 in 10 s). The
            released kinds without transport count 50 a second, as if the tokens were Whisper's.
        stride_s: from one window to the next, likewise.

    Raises:
        ConfigError: no such kind.
    """

    kind: FusionKind = "ot_attention"
    features: Features = "normalised"
    epsilon: float = 0.1
    num_iterations: int = 50
    tolerance: float | None = None
    loss_weight: float = 1.0
    loss_convention: LossConvention = "released"
    attention_convention: AttentionConvention = "released"
    layer_norm: bool = False
    exponentiate_scale: bool = False
    qformer: QFormerSettings = field(
        default_factory=lambda: QFormerSettings(num_queries=1, depth=2, cross_attention_frequency=1)
    )
    window_s: float = 0.333333
    stride_s: float = 0.333333

    def __post_init__(self) -> None:
        """Refuse an unknown kind before anything is built."""
        recipe_of(self.kind)

    @property
    def recipe(self) -> Recipe:
        """What the kind does."""
        return recipe_of(self.kind)

    @property
    def needs_audio(self) -> bool:
        """Whether the kind listens."""
        return self.recipe.audio

    @property
    def needs_vision(self) -> bool:
        """Whether the kind looks."""
        return self.recipe.visual

    def num_tokens(self, duration_s: float) -> int:
        """Tokens of a Q-Former window or stride, at least one."""
        tokens_per_s = 6.4 if self.recipe.transport else 50.0
        return max(1, round(duration_s * tokens_per_s))


@dataclass
class FusedTokens:
    """What goes to the projector.

    Attributes:
        tokens: (B, N, C), audio first.
        mask: (B, N) bool.
        ot_loss: weighted alignment loss, or None for kinds without it.
        log_plan: (B, K, T) visual rows, audio columns, or None. With a Q-Former, T counts what it says.
    """

    tokens: Tensor
    mask: Tensor
    ot_loss: Tensor | None = None
    log_plan: Tensor | None = None


class Fusion(nn.Module):
    """Joins audio and visual tokens.

    Where the two widths differ, the plain kinds carry the visual tokens to the audio tokens' width by a linear layer.

    Args:
        settings: see `FusionSettings`.
        audio_width: channels of the audio tokens.
        visual_width: channels of the visual tokens.

    Raises:
        ConfigError: a released kind on two widths; heads that do not divide the width.
    """

    def __init__(self, settings: FusionSettings, audio_width: int, visual_width: int) -> None:
        super().__init__()
        recipe = self.recipe = settings.recipe
        self.settings = settings
        if settings.layer_norm:
            if recipe.audio:
                self.audio_norm = nn.LayerNorm(audio_width)
            if recipe.visual:
                self.visual_norm = nn.LayerNorm(visual_width)
        if recipe.qformer is not None:
            self.windows = WindowedQFormer(
                settings.qformer,
                audio_width,
                size=settings.num_tokens(settings.window_s),
                stride=settings.num_tokens(settings.stride_s),
                keep_partial=not recipe.released,
                drop_last=recipe.released and recipe.transport,
            )
        heard_width = settings.qformer.embed_dim if recipe.qformer == "audio" else audio_width
        if recipe.audio and recipe.visual and visual_width != heard_width:
            if recipe.released:
                raise ConfigError(
                    f"model.init_args.fusion.kind {settings.kind} needs audio and visual tokens of one width, "
                    f"found {heard_width} and {visual_width}; a kind without released_ carries one to the other"
                )
            self.visual_projection = nn.Linear(visual_width, heard_width)
        width = heard_width if recipe.audio else visual_width
        if recipe.qformer == "both":
            width = settings.qformer.embed_dim
        if recipe.transport:
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        if recipe.join == "cross_attention":
            self.cross_attention = nn.MultiheadAttention(width, _num_heads(width, settings.kind), batch_first=True)
        elif recipe.join == "joint_encoder":
            self.joint_block = nn.TransformerEncoderLayer(
                width,
                _num_heads(width, settings.kind),
                dim_feedforward=4 * width,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=1e-6,
                batch_first=True,
                norm_first=True,
            )
            self.joint_norm = nn.LayerNorm(width, eps=1e-6)
        self.width = 2 * width if recipe.join == "channels" else width

    def forward(
        self,
        audio: Tensor | None,
        visual: Tensor | None,
        audio_mask: Tensor | None = None,
        visual_mask: Tensor | None = None,
    ) -> FusedTokens:
        """Join the tokens of B clips. Masked tokens change nothing.

        Args:
            audio: (B, T, C); not needed by kinds that do not listen.
            visual: (B, K, C'); not needed by kinds that do not look.
            audio_mask: (B, T) bool, None = all real.
            visual_mask: (B, K) bool, None = all real.

        Returns:
            Tokens, mask, and where the kind has them, the OT loss and the log plan.

        Raises:
            ConfigError: tokens that the kind needs are None.
            DataError: a clip has no real token of a modality that the kind needs (its index is named).
            ShapeError: a mask that does not fit, or too few tokens for a window or a join.

        Source: LAVCap section III; released `fusion_type` values.
        """
        recipe = self.recipe
        sequences = []
        if recipe.audio:
            sequences.append(self._entering(audio, audio_mask, "audio"))
        if recipe.visual:
            sequences.append(self._entering(visual, visual_mask, "visual"))
        if recipe.qformer == "both":
            sequences = [_append(*sequences)]
        if recipe.qformer is not None:
            sequences[0] = self.windows(*sequences[0])
        units = [F.normalize(tokens.float(), dim=-1) for tokens, _ in sequences]
        if (recipe.features or self.settings.features) == "normalised":
            sequences = [(unit, mask) for unit, (_, mask) in zip(units, sequences, strict=True)]
        if len(sequences) == 1:
            return FusedTokens(*sequences[0])
        (audio, audio_mask), (visual, visual_mask) = sequences
        ot_loss = log_plan = None
        if recipe.transport:
            ot_loss, log_plan = self._transport(units[0], units[1], audio_mask, visual_mask)
        tokens, mask = self._join(audio, visual, audio_mask, visual_mask, log_plan)
        return FusedTokens(tokens, mask, ot_loss, log_plan)

    def _entering(self, tokens: Tensor | None, mask: Tensor | None, modality: str) -> tuple[Tensor, Tensor]:
        """One modality's tokens, normed and projected where the kind does that, and their mask."""
        if tokens is None:
            raise ConfigError(f"fusion.kind {self.settings.kind} needs {modality} tokens, the batch has none")
        check_token_mask(mask, (tokens.shape[0], tokens.shape[1]), f"{modality}_mask")
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        empty = ~mask.any(dim=1)
        if empty.any():
            raise DataError(
                f"clip {int(empty.nonzero()[0])} of the batch has no real {modality} token, "
                f"fusion.kind {self.settings.kind} needs one"
            )
        if self.settings.layer_norm:
            tokens = self.audio_norm(tokens) if modality == "audio" else self.visual_norm(tokens)
        if modality == "visual" and hasattr(self, "visual_projection"):
            tokens = self.visual_projection(tokens)
        return tokens, mask

    def _transport(
        self, audio: Tensor, visual: Tensor, audio_mask: Tensor, visual_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """OT loss (weighted) and log plan of unit-norm tokens; no gradient through the plan."""
        settings = self.settings
        with torch.autocast(audio.device.type, enabled=False):
            similarity = visual @ audio.transpose(1, 2)
        log_plan = sinkhorn_log_plan(
            similarity,
            epsilon=settings.epsilon,
            num_iterations=settings.num_iterations,
            row_mask=visual_mask,
            column_mask=audio_mask,
            tolerance=settings.tolerance,
        )
        visual_loss, audio_loss = alignment_loss(
            similarity, log_plan, self._scale(), convention=settings.loss_convention
        )
        return settings.loss_weight * (visual_loss + audio_loss), log_plan

    def _join(
        self, audio: Tensor, visual: Tensor, audio_mask: Tensor, visual_mask: Tensor, log_plan: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One sequence of two."""
        join = self.recipe.join
        if join == "channels":
            return _beside(audio, visual, audio_mask, visual_mask)
        if join == "cross_attention":
            attended = self.cross_attention(audio, visual, visual, key_padding_mask=~visual_mask, need_weights=False)[0]
            return audio + attended, audio_mask
        if join == "ot_attention":
            assert log_plan is not None
            visual, audio = transport_attention(visual, audio, log_plan, convention=self.settings.attention_convention)
        tokens, mask = _append((audio, audio_mask), (visual, visual_mask))
        if join == "append_twice":
            return _append((tokens, mask), (visual, visual_mask))
        if join == "joint_encoder":
            return self.joint_norm(self.joint_block(tokens, src_key_padding_mask=~mask)), mask
        return tokens, mask

    def _scale(self) -> Tensor:
        """The logit scale, clamped in place as released; exponentiated only on request."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)
        return self.logit_scale.exp() if self.settings.exponentiate_scale else self.logit_scale


def _num_heads(width: int, kind: str) -> int:
    num_heads = max(1, width // HEAD_DIM)
    if width % num_heads:
        raise ConfigError(
            f"model.init_args.fusion.kind {kind} has heads of width {HEAD_DIM}: token width {width} does not divide "
            f"into {num_heads} of them"
        )
    return num_heads


def _append(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and masks of two sequences in a row."""
    return torch.cat([first[0], second[0]], dim=1), torch.cat([first[1], second[1]], dim=1)


def _beside(audio: Tensor, visual: Tensor, audio_mask: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, 2C): visual token j beside audio token j * (T // K), zeros beside the others; T, K of each clip."""
    audio_mask, audio = left_align(audio_mask, audio)
    visual_mask, visual = left_align(visual_mask, visual)
    num_audio, num_visual = audio_mask.sum(dim=1), visual_mask.sum(dim=1)
    if (num_audio < num_visual).any():
        clip = int((num_audio < num_visual).nonzero()[0])
        raise ShapeError(
            f"clip {clip} has {int(num_audio[clip])} audio and {int(num_visual[clip])} visual tokens; "
            f"to stand side by side it needs at least as many audio tokens: "
            f"take fewer frames (data.init_args.num_frames)"
        )
    step = num_audio.div(num_visual, rounding_mode="floor")
    position = (torch.arange(visual.shape[1], device=step.device) * step[:, None]).clamp_max(audio.shape[1] - 1)
    real = visual.masked_fill(~visual_mask[:, :, None], 0.0)
    spread = torch.zeros_like(audio).scatter_add(1, position[:, :, None].expand_as(real), real.to(audio.dtype))
    return torch.cat([audio, spread], dim=2), audio_mask
