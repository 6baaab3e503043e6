"""What stands between a frozen encoder and a language model: a Q-Former and one linear layer per modality.

Source: MiniGPT-4 and BuboGPT (arXiv 2307.08581; spec bubogpt.md, sections 4 and 13).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.qformer import QFormer, QFormerSettings, from_blip2_names

Modality = Literal["vision", "audio"]
_NUM_WORDS, _NUM_POSITIONS = 30_522, 512  # of BERT, whose text branch the Q-Former of BLIP-2 has

# Besides the joiner itself, checkpoints of it hold buffers of frozen parts: constants that are computed again.
_DROPPED = re.compile(r"\.rotary_emb\.inv_freq$|\.log_logit_scale$")
# The text branch of a Q-Former, by its full names: anything else below `Qformer.` must find its place.
_TEXT = re.compile(
    r"(^|\.)Qformer\.(cls\.predictions\.|bert\.embeddings\.(word_embeddings|position_embeddings|position_ids)|"
    r"bert\.encoder\.layer\.\d+\.(intermediate|output)\.)"
)


class Joiner(nn.Module):
    """The Q-Former of one modality and the projection to the language model's width.

    Args:
        qformer: its size.
        encoder_dim: width of the encoder's tokens (1,408 for EVA ViT-g, 768 for ImageBind's audio tower).
        language_dim: width of the language model's embeddings.
        text_branch: with the Q-Former's text branch, see `TextBranch`.
    """

    def __init__(
        self, qformer: QFormerSettings, encoder_dim: int, language_dim: int, *, text_branch: bool = False
    ) -> None:
        super().__init__()
        self.qformer = QFormer(qformer, encoder_dim)
        self.text_branch = TextBranch(qformer) if text_branch else None
        self.projection = nn.Linear(qformer.embed_dim, language_dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Join.

        Args:
            tokens: (B, N, encoder_dim).
            mask: (B, N) bool; None = all real, as released.

        Returns:
            (B, queries, language_dim).

        Raises:
            ShapeError: tokens of another width.
        """
        projected: Tensor = self.projection(self.qformer(tokens, mask))
        if self.text_branch is not None and self.training:
            projected = projected + self.text_branch()
        return projected


class TextBranch(nn.Module):
    """What the released code trains of a Q-Former and never runs: it is here for the number of its parameters alone.

    Embeddings of words and positions, a feed-forward layer in each block, and the head of BERT, whose decoder is tied
    to the embeddings. Nothing reads them, so no state dict holds them.

    Args:
        qformer: size of the Q-Former.

    Source: BuboGPT, released code (spec bubogpt.md, sections 1 and 13).
    """

    def __init__(self, qformer: QFormerSettings) -> None:
        super().__init__()
        width = qformer.embed_dim
        self.embeddings = nn.ModuleList(nn.Embedding(count, width) for count in (_NUM_WORDS, _NUM_POSITIONS))
        self.feed_forward = nn.ModuleList(
            nn.Sequential(nn.Linear(width, qformer.mlp_dim), nn.Linear(qformer.mlp_dim, width), nn.LayerNorm(width))
            for _ in range(qformer.depth)
        )
        self.head = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.head_bias = nn.Parameter(torch.zeros(_NUM_WORDS))

    def forward(self) -> Tensor:
        """Zero, from all parameters: data-parallel training waits for a gradient of each."""
        return torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0.0

    def state_dict(self, *args: Any, destination: Any = None, **options: Any) -> Any:
        """Nothing."""
        return {} if destination is None else destination


def from_joiner_names(tensors: Mapping[str, Tensor], modality: Modality) -> dict[str, Tensor]:
    """The part of one modality of a checkpoint with `multimodal_joiner.*`.

    Args:
        tensors: official names; those of the other modality and of other models are left out, see
            `unknown_joiner_names`. A checkpoint of the second training stage holds of vision the projection alone.
        modality: which part.

    Returns:
        Names of `Joiner`, without the text branch of the Q-Former.
    """
    qformer = f"multimodal_joiner.modality_qformers.{modality}."
    ours = {
        f"qformer.{name}": value
        for name, value in from_blip2_names(tensors, f"{qformer}query_tokens", f"{qformer}Qformer.bert.").items()
    }
    return ours | _projection(tensors, f"multimodal_joiner.modality_post_projectors.{modality}.fc.")


def unknown_joiner_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of such a checkpoint that are neither of a joiner nor known to be needless, sorted."""
    known = re.compile(
        r"multimodal_joiner\.(modality_qformers\.(vision|audio)\.(query_tokens$|Qformer\.bert\.(embeddings\.LayerNorm|"
        r"encoder\.layer)\.)|modality_post_projectors\.(vision|audio)\.fc\.(weight|bias)$)"
    )
    return sorted(name for name in tensors if not (known.match(name) or _DROPPED.search(name) or _TEXT.search(name)))


def from_blip2_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The Q-Former of a BLIP-2 file (`blip2_pretrained_flant5xxl.pth`): names of `QFormer`.

    Dropped: the text branch and the projection to the language model it was trained with (`t5_proj`, `opt_proj`). Its
    `ln_vision.*` belong to the image encoder. Unknown names are passed on, so that strict loading reports them.

    Args:
        tensors: official names.
    """
    ours = from_blip2_names(tensors, "query_tokens", "Qformer.bert.")
    known = re.compile(r"query_tokens$|Qformer\.bert\.|(t5_proj|opt_proj|ln_vision)\.(weight|bias)$")
    unknown = {name: value for name, value in tensors.items() if not known.match(name) and not _TEXT.search(name)}
    return ours | unknown


def from_minigpt4_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision projection of a MiniGPT-4 file (`prerained_minigpt4_7b.pth`): names of a Linear layer.

    Args:
        tensors: official names, `llama_proj.*`. Unknown names are passed on, so that strict loading reports them.
    """
    return {name.removeprefix("llama_proj."): value for name, value in tensors.items()}


def _projection(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"projection.{name[len(prefix) :]}": v for name, v in tensors.items() if name.startswith(prefix)}
