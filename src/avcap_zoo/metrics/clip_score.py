"""CLIPScore: how well a caption fits its picture to a CLIP model, with or without references.

The model is read from a folder on this disk, in the format of transformers or of OpenCLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.pretrained import load_pretrained
from avcap_zoo.backbones.vision.clip import CLIP_MEAN, CLIP_STD, normalise_images
from avcap_zoo.errors import WeightsError
from avcap_zoo.metrics.contrast import ContrastModel
from avcap_zoo.metrics.model_folder import check_folder, load_tokenizer, read_settings

OPTION = "--clip"
HOW_TO_GET = "hf download openai/clip-vit-base-patch32 --local-dir checkpoints/clip"
PREFIX = "A photo depicts "
"""Stands before each caption, as in the paper."""
WEIGHT = 2.5
BATCH_SIZE = 32

_OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class PictureTextModel(Protocol):
    """What CLIPScore needs of a model."""

    image_size_px: int

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, C) embeddings of (B, 3, H, W) uint8 pictures."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, C) embeddings of B texts."""
        ...


class TransformersCLIP(nn.Module):
    """Both towers of a CLIP model in transformers format.

    Args:
        folder: with config, weights and tokenizer.

    Raises:
        WeightsError: it holds no such model.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import CLIPModel

        self.clip = load_pretrained(CLIPModel, str(folder), OPTION, local_files_only=True)
        self.tokenizer = load_tokenizer(folder, OPTION)
        self.image_size_px: int = self.clip.config.vision_config.image_size
        self.eval().requires_grad_(False)

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, C) embeddings of (B, 3, H, W) uint8 pictures."""
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        pixels = normalise_images(images, self.image_size_px, mean, std)
        # Not get_image_features: what it returns differs between versions of transformers.
        pooled = self.clip.vision_model(pixel_values=pixels).pooler_output
        embeddings: Tensor = self.clip.visual_projection(pooled)
        return embeddings

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, C) embeddings of B texts, cut to the longest the model reads."""
        length = self.clip.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        tokens = self.tokenizer(list(texts), **options).to(self.clip.device)
        pooled = self.clip.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        embeddings: Tensor = self.clip.text_projection(pooled)
        return embeddings


def load_clip(folder: Path) -> ContrastModel | TransformersCLIP:
    """Read a CLIP model from a folder.

    Raises:
        WeightsError: no such folder, or it holds no CLIP model in one of the two formats.
        ConfigError: OpenCLIP cannot make a model of the config.
        MissingExtraError: the folder is OpenCLIP's, and open_clip_torch is not installed.
    """
    check_folder(folder, OPTION, HOW_TO_GET)
    if not (folder / _OPEN_CLIP_CONFIG).is_file():
        return TransformersCLIP(folder)
    settings = read_settings(folder / _OPEN_CLIP_CONFIG)
    config = settings.get("model_cfg")
    weights = next((folder / name for name in _OPEN_CLIP_WEIGHTS if (folder / name).is_file()), None)
    if not isinstance(config, dict) or weights is None:
        what = " or ".join(_OPEN_CLIP_WEIGHTS) if weights is None else f"model_cfg in its {_OPEN_CLIP_CONFIG}"
        raise WeightsError(f"{OPTION}: {folder} has no {what}; get a whole one, such as: {HOW_TO_GET}")
    mean = settings.get("preprocess_cfg", {}).get("mean", CLIP_MEAN)
    if list(mean) != list(CLIP_MEAN):
        raise WeightsError(
            f"{OPTION}: {folder} wants pictures of mean {mean}, only CLIP's own {CLIP_MEAN} is supported"
        )
    return ContrastModel("", str(weights), config, "float32", OPTION)


@torch.no_grad()
def score_clip(
    pictures: Callable[[int], Tensor],
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    model: PictureTextModel,
    device: torch.device,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Score captions with CLIPScore and RefCLIPScore.

    Args:
        pictures: gives the picture of a clip by its place in the list, (3, size, size) uint8.
        candidates: B captions; empty ones score 0.
        references: B lists of references.
        model: on `device`.
        device: where the pictures go.
        progress: called with the number of clips that are done.

    Returns:
        B scores each: `clip_score`, 2.5 times the cosine of picture and caption, at least 0 (torchmetrics: 100 times
        the cosine); `ref_clip_score`, the harmonic mean of it and the largest cosine of caption and reference, at
        least 0.
    Source: Hessel et al. 2021 (arXiv 2104.08718), section 3.
    """
    scores: dict[str, list[float]] = {"clip_score": [], "ref_clip_score": []}
    for start in range(0, len(candidates), BATCH_SIZE):
        rows = range(start, min(start + BATCH_SIZE, len(candidates)))
        seen = F.normalize(model.embed_images(torch.stack([pictures(row) for row in rows]).to(device)).float(), dim=1)
        read = _embed(model, [candidates[row] for row in rows])
        for place, row in enumerate(rows):
            others = _embed(model, references[row])
            spoken = bool(candidates[row].strip())
            score = WEIGHT * max(float(seen[place] @ read[place]), 0.0) * spoken
            nearest = max(float((others @ read[place]).max()), 0.0)
            both = 2 * score * nearest / (score + nearest) if score and nearest else 0.0
            scores["clip_score"].append(score)
            scores["ref_clip_score"].append(both)
        progress(len(rows))
    return scores


def _embed(model: PictureTextModel, texts: Sequence[str]) -> Tensor:
    return F.normalize(model.embed_texts([PREFIX + text for text in texts]).float(), dim=1)
