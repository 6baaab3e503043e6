"""Q-Former: a few learned queries that read a longer sequence, as in BLIP-2 (arXiv 2301.12597)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avcap_zoo.errors import ConfigError, ShapeError

# Of a BLIP-2 or BERT layout: the text branch, which queries never pass, and constants.
TEXT_BRANCH = re.compile(
    r"(^|\.)cls\.|embeddings\.(word_embeddings|position_embeddings|position_ids)|layer\.\d+\.(intermediate|output)\."
)


@dataclass
class QFormerSettings:
    """Size of a Q-Former; the defaults are BLIP-2's. The width of what it reads comes from the encoder before it.

    Args:
        num_queries: tokens that come out.
        embed_dim: width of the queries and of the output.
        depth: layers.
        num_heads: attention heads.
        mlp_dim: inner width of the feed-forward layers.
        cross_attention_frequency: every so many layers, from the first on, read the sequence; 1 = all of them.
        dropout: in training, on attention weights and on every layer's output.
        initial_std: of the random weights without a checkpoint; narrow ones need more to learn at all.
    """

    num_queries: int = 32
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    cross_attention_frequency: int = 2
    dropout: float = 0.1
    initial_std: float = 0.02


class QFormer(nn.Module):
    """transformers' Q-Former with its queries, without the text branch.

    Args:
        settings: see `QFormerSettings`.
        encoder_dim: channels of the sequence that is read.

    Raises:
        ConfigError: embed_dim is not a multiple of num_heads.
    """

    def __init__(self, settings: QFormerSettings, encoder_dim: int) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        if settings.embed_dim % settings.num_heads:
            raise ConfigError(
                f"Q-Former: embed_dim {settings.embed_dim} is not a multiple of num_heads {settings.num_heads}"
            )
        self.embed_dim = settings.embed_dim
        self.encoder_dim = encoder_dim
        self.queries = nn.Parameter(torch.randn(1, settings.num_queries, settings.embed_dim) * settings.initial_std)
        self.model = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=settings.embed_dim,
                num_hidden_layers=settings.depth,
                num_attention_heads=settings.num_heads,
                intermediate_size=settings.mlp_dim,
                hidden_dropout_prob=settings.dropout,
                attention_probs_dropout_prob=settings.dropout,
                cross_attention_frequency=settings.cross_attention_frequency,
                encoder_hidden_size=encoder_dim,
                layer_norm_eps=1e-12,
                initializer_range=settings.initial_std,
                use_qformer_text_input=False,
            )
        )

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read sequences.

        Args:
            tokens: (B, N, E).
            mask: (B, N) bool, at least one real token in each row; None = all real.

        Returns:
            (B, num_queries, C) the last layer's queries.

        Raises:
            ShapeError: tokens of another width than the Q-Former was built for.
        """
        if tokens.ndim != 3 or tokens.shape[2] != self.encoder_dim:
            raise ShapeError(
                f"tokens are {tuple(tokens.shape)}, the Q-Former reads (clips, tokens, {self.encoder_dim})"
            )
        read: Tensor = self.model(
            query_embeds=self.queries.expand(len(tokens), -1, -1),
            encoder_hidden_states=tokens,
            encoder_attention_mask=None if mask is None else mask.long(),
        ).last_hidden_state
        return read


def from_blip2_names(tensors: Mapping[str, Tensor], queries: str, prefix: str) -> dict[str, Tensor]:
    """Rename a Q-Former of the BLIP-2 code (also in MiniGPT-4, BuboGPT, SALMONN and LAVCap checkpoints).

    Args:
        tensors: official names; those of other parts are left out.
        queries: official name of the queries, such as `query_tokens`.
        prefix: what stands before `embeddings` and `encoder`, such as `Qformer.bert.`.

    Returns:
        Names of `QFormer`, without the text branch (embeddings of words and positions, its feed-forward layers, `cls`).
    """
    ours: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name == queries:
            ours["queries"] = value
        elif name.startswith(prefix) and not TEXT_BRANCH.search(name[len(prefix) :]):
            renamed = name[len(prefix) :].replace("embeddings.LayerNorm.", "layernorm.")
            ours["model." + renamed.replace("attention.self.", "attention.attention.")] = value
    return ours


def to_blip2_name(name: str, prefix: str) -> str:
    """The way back for one name of `QFormer` below `model.`; the queries have a name of their own in each code."""
    renamed = re.sub(r"^layernorm\.", "embeddings.LayerNorm.", name.removeprefix("model."))
    return prefix + renamed.replace("attention.attention.", "attention.self.")
