"""CLIP models of OpenCLIP as judges: one embedding for an image, one for a caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.vision.clip import CLIP_MEAN, CLIP_STD, normalise_images
from avcap_zoo.errors import ConfigError, WeightsError, first_line, how_to_get, require_extra
from avcap_zoo.weights.load import load_strictly, load_tensors


class ContrastModel(nn.Module):
    """A frozen OpenCLIP model with its tokenizer.

    Args:
        model: name of one of OpenCLIP's plain CLIP architectures, such as ViT-bigG-14; ignored with `config`.
        checkpoint: weight file, or one of OpenCLIP's names of published weights; None = random weights.
        config: embed_dim, vision_cfg and text_cfg of a model of any size.
        dtype: of the weights; embeddings come out in float32.
        key: config key of the settings, for messages.

    Raises:
        MissingExtraError: open_clip_torch is not installed.
        ConfigError: no such architecture, or one that is no plain CLIP model.
        WeightsError: no such weights, or they do not fit.
    """

    def __init__(
        self,
        model: str,
        checkpoint: str | None,
        config: dict[str, Any] | None,
        dtype: Literal["float32", "bfloat16"],
        key: str,
    ) -> None:
        super().__init__()
        open_clip = require_extra("open_clip", "clip")
        keys = config or open_clip.get_model_config(model)
        if keys is None:
            raise ConfigError(f"{key}.model: OpenCLIP has no {model!r}; open_clip.list_models() names all")
        try:
            self.clip = open_clip.CLIP(**keys)
        except (TypeError, ValueError, KeyError) as error:
            what = "config" if config else "model"
            raise ConfigError(f"{key}.{what}: no CLIP model can be made of it: {first_line(error)}") from error
        if checkpoint is not None:
            path = _weight_file(model, checkpoint, key)
            load_strictly(self.clip, load_tensors(path), str(path))
        self.to(getattr(torch, dtype)).eval().requires_grad_(False)
        context_length = keys["text_cfg"].get("context_length", 77)
        self.tokenize = (
            open_clip.SimpleTokenizer(context_length=context_length) if config else open_clip.get_tokenizer(model)
        )
        size = keys["vision_cfg"].get("image_size", 224)
        self.image_size_px: int = size if isinstance(size, int) else size[0]
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, C) float32 embeddings of (B, 3, H, W) uint8 images and of B texts, none of unit length yet."""
        return self.embed(images, texts)

    def embed(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The same with gradient."""
        return self.embed_images(images), self.embed_texts(texts)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, C) float32 embeddings of (B, 3, H, W) uint8 images, with gradient."""
        pixels = normalise_images(images, self.image_size_px, self.mean.float(), self.std.float())
        seen: Tensor = self.clip.encode_image(pixels.to(self.clip.token_embedding.weight.dtype))
        return seen.float()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, C) float32 embeddings of B texts, with gradient."""
        read: Tensor = self.clip.encode_text(self.tokenize(list(texts)).to(self.clip.token_embedding.weight.device))
        return read.float()


def _weight_file(model: str, checkpoint: str, key: str) -> Path:
    """A file as it is, or the hub's file of one of OpenCLIP's names."""
    if Path(checkpoint).is_file():
        return Path(checkpoint)
    pretrained = require_extra("open_clip.pretrained", "clip")
    published = pretrained.get_pretrained_cfg(model, checkpoint)
    if not published:
        names = ", ".join(pretrained.list_pretrained_tags_by_model(model)) or "none"
        raise WeightsError(
            f"{key}.checkpoint: {checkpoint!r} is neither a file nor a name of weights for {model} "
            f"({how_to_get(checkpoint) or f'there are: {names}'})"
        )
    try:
        return Path(pretrained.download_pretrained(published))
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{key}.checkpoint: cannot get {checkpoint!r} of {model}: {first_line(error)} (give a file instead)"
        ) from error
