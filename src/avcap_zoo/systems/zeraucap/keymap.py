"""Official state-dict names of WavCaps' retrieval model (`HTSAT-BERT-PT.pt`) to ours.

Dropped, and why: the spectrogram's constants (`audio_feats_extractor.*`; `ops.fbank` computes them), HTSAT's classifier
(`tscam_conv`, `head`; not part of an embedding), and what transformers computes itself (`attn_mask`,
`relative_position_index`, BERT's `position_ids`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from avcap_zoo.backbones.audio_text import WavCapsCLAP
from avcap_zoo.weights.load import load_strictly, load_tensors

_HTSAT, _BERT = "audio_encoder.audio_enc.", "text_encoder.text_encoder."
_DROPPED_OF_HTSAT = re.compile(r"(audio_feats_extractor|tscam_conv|head)\.|.*\.(attn_mask|relative_position_index)$")
_RENAMED_IN_HTSAT = (
    (r"^bn0\.", "batch_norm."),
    (r"(\.blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(\.blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.relative_position_bias_table$", ".attention.self.relative_position_bias_table"),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def htsat_to_clap_audio(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the official HTSAT, and split its fused qkv.

    Args:
        tensors: official names without `audio_encoder.audio_enc.`.

    Returns:
        Names of transformers' ClapAudioModel. Unknown names are passed on, so that strict loading reports them.
    """
    ours: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if _DROPPED_OF_HTSAT.match(name):
            continue
        renamed = name
        for pattern, replacement in _RENAMED_IN_HTSAT:
            renamed = re.sub(pattern, replacement, renamed)
        if ".attn.qkv." in renamed:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                ours["audio_encoder." + renamed.replace("attn.qkv", f"attention.self.{part}")] = third
        else:
            ours["audio_encoder." + renamed] = value
    return ours


def wavcaps_to_model(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of the released model.

    Args:
        tensors: official names.

    Returns:
        Names of `WavCapsCLAP`, without the constants that it computes. Unknown names are passed on.
    """
    htsat = {name[len(_HTSAT) :]: value for name, value in tensors.items() if name.startswith(_HTSAT)}
    ours = {f"audio_encoder.model.{name}": value for name, value in htsat_to_clap_audio(htsat).items()}
    for name, value in tensors.items():
        if name.startswith(_HTSAT) or name == f"{_BERT}embeddings.position_ids":
            continue
        renamed = "temperature" if name == "temp" else name
        ours[f"text_encoder.{name[len(_BERT) :]}" if name.startswith(_BERT) else renamed] = value
    return ours


def load_wavcaps(model: WavCapsCLAP, path: str | Path) -> None:
    """Load the official file into a model of its size.

    Args:
        model: receives the weights.
        path: `HTSAT-BERT-PT.pt`, or its tensors as safetensors; see `weights.load.load_tensors`.

    Raises:
        WeightsError: the file cannot be read, or lacks weights, or holds others; all are listed.
    """
    load_wavcaps_tensors(model, load_tensors(path), str(path))


def load_wavcaps_tensors(model: WavCapsCLAP, tensors: Mapping[str, Tensor], origin: str) -> None:
    """The same from tensors in official names.

    Args:
        model: receives the weights.
        tensors: official names.
        origin: what they are, for the message.

    Raises:
        WeightsError: missing, unknown or mis-shaped names.
    """
    # Tables of positions are constants that some versions of transformers keep in the state dict.
    computed = {
        name: value
        for name, value in model.state_dict().items()
        if name.endswith(("relative_position_index", "position_ids", "token_type_ids"))
    }
    load_strictly(model, {**computed, **wavcaps_to_model(tensors)}, origin)
