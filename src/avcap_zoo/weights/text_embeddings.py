"""Embeddings of a fixed list of texts: computed once for each model, kept in a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from avcap_zoo.backbones.audio_text import AudioTextModel
from avcap_zoo.errors import WeightsError
from avcap_zoo.weights.fingerprint import fingerprint
from avcap_zoo.weights.load import load_tensors

_TEXTS_PER_CALL = 1000


def audio_text_fingerprint(model: AudioTextModel) -> str:
    """16 hexadecimal digits that stand for a model's weights; see `weights.fingerprint`."""
    return fingerprint({name: value for name, value in model.state_dict().items() if value.is_floating_point()})


def embed_fixed_texts(model: AudioTextModel, texts: Sequence[str], folder: str | Path | None = None) -> Tensor:
    """Embed texts, or read their embeddings from a file that the same model left for the same texts.

    The file's name is a hash of the model's fingerprint and of the token ids of all texts, so another model, tokenizer
    or list never meets it. A file that cannot be read is made anew.

    Args:
        model: embeds in evaluation mode and without gradient; its mode is as before afterwards.
        texts: N texts.
        folder: where the files lie; None = no file is read or written.

    Returns:
        (N, D) float32 unit vectors, on the model's device.
    """
    if folder is None:
        return _embed(model, texts)
    identity = json.dumps([audio_text_fingerprint(model), model.token_rows(texts)])
    path = Path(folder) / f"text_embeddings_{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    kept = _read(path)
    if kept is not None and kept.shape == (len(texts), model.embed_dim):
        return kept.to(model.device)
    embeddings = _embed(model, texts)
    _write(path, embeddings)
    return embeddings


@torch.no_grad()
def _embed(model: AudioTextModel, texts: Sequence[str]) -> Tensor:
    was_training = model.training
    model.eval()
    parts = [
        model.embed_texts(texts[start : start + _TEXTS_PER_CALL]) for start in range(0, len(texts), _TEXTS_PER_CALL)
    ]
    model.train(was_training)
    return torch.cat(parts) if parts else model.embed_texts([])


def _read(path: Path) -> Tensor | None:
    if not path.is_file():
        return None
    try:
        return load_tensors(path).get("embeddings")
    except WeightsError:
        return None


def _write(path: Path, embeddings: Tensor) -> None:
    """A whole file or none, also when several processes write it."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    save_file({"embeddings": embeddings.cpu().contiguous()}, staging)
    staging.replace(path)
