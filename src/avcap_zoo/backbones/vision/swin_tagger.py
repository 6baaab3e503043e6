"""Recognize Anything (RAM): a Swin encoder and label queries that say which of 4,585 tags a picture shows.

Source: Zhang et al., "Recognize Anything" (arXiv 2306.03514); sizes and names from spec bubogpt.md, sections 10 and 13.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.errors import ConfigError, ShapeError
from avcap_zoo.ops.picture_resize import resize_pictures

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_THRESHOLD = 0.68
"""Of a tag for which no threshold is published."""

# Constants that transformers computes, and the parts of the file that write text.
_DROPPED = re.compile(r"(^|\.)(relative_position_index|attn_mask)$|^(tag_encoder|text_decoder)\.")
_SWIN = "visual_encoder."
_RENAMED_IN_SWIN = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^norm\.", "layernorm."),
    (r"^layers\.", "encoder.layers."),
    (r"(\.blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(\.blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
)
# transformers 5 spells the inside of a Swin block in another way than transformers 4.
_BLOCK_NAMES_5 = (
    (".attn.q.", ".attention.q_proj."),
    (".attn.k.", ".attention.k_proj."),
    (".attn.v.", ".attention.v_proj."),
    (".attn.proj.", ".attention.o_proj."),
    (".attn.relative_position_bias_table", ".attention.relative_position_bias.relative_position_bias_table"),
)
_BLOCK_NAMES_4 = (
    (".attn.q.", ".attention.self.query."),
    (".attn.k.", ".attention.self.key."),
    (".attn.v.", ".attention.self.value."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.relative_position_bias_table", ".attention.self.relative_position_bias_table"),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)
_RENAMED_IN_HEAD = (
    (r"^tagging_head\.encoder\.layer\.", "layers."),
    (r"\.crossattention\.self\.", ".attention."),
    (r"\.crossattention\.output\.dense\.", ".attention.output."),
    (r"\.crossattention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.intermediate\.dense\.", ".fc1."),
    (r"\.output\.dense\.", ".fc2."),
    (r"\.output\.LayerNorm\.", ".norm."),
    (r"^wordvec_proj\.", "label_projection."),
    (r"^image_proj\.", "image_projection."),
    (r"^fc\.", "classifier."),
)


@dataclass
class SwinTaggerSettings:
    """Size of a tagger; the defaults are `ram_swin_large_14m.pth`.

    Args:
        image_size_px: side of the square input; both sides of a picture are resized to it.
        patch_size: side of the patches.
        embed_dim: width of the first stage; each stage doubles it.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of the attention windows, in patches.
        num_tags: V.
        label_dim: width of label embeddings and of projected image tokens.
        head_dim: width of the label queries.
        head_depth: layers of the head.
        head_heads: its attention heads.
        head_mlp_dim: inner width of its feed-forward layers.
    """

    image_size_px: int = 384
    patch_size: int = 4
    embed_dim: int = 192
    depths: tuple[int, ...] = (2, 2, 18, 2)
    num_heads: tuple[int, ...] = (6, 12, 24, 48)
    window_size: int = 12
    num_tags: int = 4585
    label_dim: int = 512
    head_dim: int = 768
    head_depth: int = 2
    head_heads: int = 4
    head_mlp_dim: int = 3072


class SwinTagger(nn.Module):
    """transformers' SwinModel with RAM's head: one query per tag reads the image tokens.

    Args:
        settings: see `SwinTaggerSettings`.
        tags: the V words, in the order of the label embeddings; needed by `tags` alone.
        thresholds: (V,) probability above which a tag is given; None = 0.68 for all.

    Raises:
        ConfigError: sizes that do not divide, or another number of tags or thresholds.
    """

    def __init__(
        self, settings: SwinTaggerSettings, tags: Sequence[str] | None = None, thresholds: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        from transformers import SwinConfig, SwinModel

        if settings.head_dim % settings.head_heads or len(settings.depths) != len(settings.num_heads):
            raise ConfigError(
                f"tagger: head_dim {settings.head_dim} must be a multiple of head_heads {settings.head_heads}, and "
                f"depths {settings.depths} as long as num_heads {settings.num_heads}"
            )
        for name, values in (("tags", tags), ("thresholds", thresholds)):
            if values is not None and len(values) != settings.num_tags:
                raise ConfigError(f"tagger: {len(values)} {name} for {settings.num_tags} labels (num_tags)")
        self.settings = settings
        self.words = None if tags is None else list(tags)
        self.image_size_px = settings.image_size_px
        self.visual_encoder = SwinModel(
            SwinConfig(
                image_size=settings.image_size_px,
                patch_size=settings.patch_size,
                embed_dim=settings.embed_dim,
                depths=list(settings.depths),
                num_heads=list(settings.num_heads),
                window_size=settings.window_size,
                drop_path_rate=0.0,
                layer_norm_eps=1e-5,
            )
        )
        image_dim = settings.embed_dim * 2 ** (len(settings.depths) - 1)
        self.image_projection = nn.Linear(image_dim, settings.label_dim)
        self.label_embed = nn.Parameter(torch.randn(settings.num_tags, settings.label_dim) * 0.02)
        self.label_projection = nn.Linear(settings.label_dim, settings.head_dim)
        self.layers = nn.ModuleList(_LabelLayer(settings) for _ in range(settings.head_depth))
        self.classifier = nn.Linear(settings.head_dim, 1)
        own = [DEFAULT_THRESHOLD] * settings.num_tags if thresholds is None else list(thresholds)
        self.register_buffer("thresholds", torch.tensor(own, dtype=torch.float32), persistent=False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.thresholds: Tensor
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Score every tag.

        Args:
            images: (N, 3, H, W) uint8 of any size, or (N, 3, size, size) floats as `normalise` gives them.

        Returns:
            (N, V) logits.

        Raises:
            ShapeError: neither of the two.
        """
        tokens = self.image_projection(self.encode(images))
        queries = F.relu(self.label_projection(self.label_embed)).expand(len(tokens), -1, -1)
        for layer in self.layers:
            queries = layer(queries, tokens)
        logits: Tensor = self.classifier(queries)[:, :, 0]
        return logits

    def encode(self, images: Tensor) -> Tensor:
        """(N, 1 + patches, C) tokens of the encoder, their mean in front; see `forward` for the images."""
        size = self.image_size_px
        if images.dtype == torch.uint8:
            images = self.normalise(images)
        elif tuple(images.shape[1:]) != (3, size, size) or not images.is_floating_point():
            raise ShapeError(
                f"images are {tuple(images.shape)} {images.dtype}, wanted (pictures, 3, height, width) torch.uint8 "
                f"or normalised (pictures, 3, {size}, {size})"
            )
        seen = self.visual_encoder(pixel_values=images.to(self.visual_encoder.dtype))
        return torch.cat([seen.pooler_output[:, None], seen.last_hidden_state], dim=1)

    def normalise(self, images: Tensor) -> Tensor:
        """Both sides to the model's size (bilinear, as Pillow), ImageNet's mean and std: (N, 3, size, size) float32."""
        resized = resize_pictures(images, (self.image_size_px, self.image_size_px), "bilinear")
        return (resized.float() / 255 - self.mean.float()) / self.std.float()

    @torch.no_grad()
    def tags(self, images: Tensor) -> list[list[str]]:
        """The words of each picture whose probability is above their own threshold, in the order of the list.

        Raises:
            ConfigError: the tagger was built without words.
        """
        if self.words is None:
            raise ConfigError("tagger: no list of tags was given, its labels have no words")
        shown = torch.sigmoid(self(images).float()) > self.thresholds
        return [[self.words[label] for label in row.nonzero()[:, 0].tolist()] for row in shown]


class _LabelLayer(nn.Module):
    """Post-norm layer of BERT with cross-attention only."""

    def __init__(self, settings: SwinTaggerSettings) -> None:
        super().__init__()
        width = settings.head_dim
        self.attention = _CrossAttention(width, settings.label_dim, settings.head_heads)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.fc1 = nn.Linear(width, settings.head_mlp_dim)
        self.fc2 = nn.Linear(settings.head_mlp_dim, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = self.attention_norm(queries + self.attention(queries, tokens))
        return self.norm(queries + self.fc2(F.gelu(self.fc1(queries))))  # type: ignore[no-any-return]


class _CrossAttention(nn.Module):
    def __init__(self, width: int, token_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(token_dim, width)
        self.value = nn.Linear(token_dim, width)
        self.output = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        heads = [
            projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projected in (self.query(queries), self.key(tokens), self.value(tokens))
        ]
        mixed = F.scaled_dot_product_attention(*heads)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def from_ram_names(tensors: Mapping[str, Tensor], model: SwinTagger) -> dict[str, Tensor]:
    """Rename `ram_swin_large_14m.pth`, and split its fused qkv.

    Dropped: constants (`relative_position_index`, `attn_mask`) and the unused text part (`tag_encoder.*`,
    `text_decoder.*`). Old files call the head `vision_multi`.

    Args:
        tensors: official names.
        model: the tagger the result is for: transformers 4 and 5 name the inside of a Swin block differently.

    Returns:
        Names of `SwinTagger`. Unknown names are passed on, so that strict loading reports them.
    """
    state = model.state_dict()
    block_names = _BLOCK_NAMES_4 if any(".attention.self." in name for name in state) else _BLOCK_NAMES_5
    # transformers 4 keeps the positions within a window in the state dict; they follow from its size.
    ours = {name: value for name, value in state.items() if name.endswith("relative_position_index")}
    for name, value in tensors.items():
        if _DROPPED.search(name):
            continue
        if not name.startswith(_SWIN):
            renamed = name.replace("vision_multi.", "tagging_head.")
            for pattern, replacement in _RENAMED_IN_HEAD:
                renamed = re.sub(pattern, replacement, renamed)
            ours[renamed] = value
            continue
        renamed = name[len(_SWIN) :]
        for pattern, replacement in _RENAMED_IN_SWIN:
            renamed = re.sub(pattern, replacement, renamed)
        thirds = value.chunk(3) if ".attn.qkv." in renamed else (value,)
        for part, third in zip("qkv", thirds, strict=False):
            own = renamed.replace(".attn.qkv.", f".attn.{part}.")
            for official, mine in block_names:
                own = own.replace(official, mine)
            ours[_SWIN + own] = third
    return ours
