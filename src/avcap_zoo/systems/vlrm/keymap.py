"""Official state-dict names to ours: the released partial files, and LAVIS files of the matching model.

The partial files hold what reinforcement trains (query tokens, Q-Former, language projection: 257 tensors at full
size) under transformers' names. LAVIS spells the same modules in its own way.

Dropped from LAVIS files, and why: `temp` (scale of the contrastive loss), `Qformer.cls.*` (its language-model head),
`*.position_ids` (a constant).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from avcap_zoo.backbones.vision.eva import from_lavis_names

PARTIAL_PARTS = ("query_tokens", "qformer.", "language_projection.")
"""How the names of a released partial file begin."""

_DROPPED = re.compile(r"^temp$|^Qformer\.cls\.|(^|\.)position_ids$")
_VISION = ("visual_encoder.", "ln_vision.")
_LAVIS = (
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.embeddings\.", "embeddings."),
    (r"^Qformer\.bert\.(.*\.)?(attention|crossattention)\.self\.", r"qformer.\1\2.attention."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"^vision_proj\.", "vision_projection."),
    (r"^text_proj\.", "text_projection."),
    (r"^opt_proj\.", "language_projection."),
    (r"^opt_model\.", "language_model."),
)


def is_partial(name: str) -> bool:
    """Whether a tensor of the captioner is one that the released partial files hold."""
    return name.startswith(PARTIAL_PARTS)


def captioner_to_partial(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The tensors of a released partial file, taken from a captioner's state dict.

    Args:
        tensors: state dict of transformers' Blip2ForConditionalGeneration.
        dtype: of the file; the released ones are 16-bit.
    """
    return {name: value.detach().to(dtype) for name, value in tensors.items() if is_partial(name)}


def lavis_to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a LAVIS BLIP-2 state dict, and join its query and value biases with zeros for the keys.

    Args:
        tensors: names of LAVIS' Blip2Qformer, Blip2ITM or Blip2OPT.

    Returns:
        Names of transformers' Blip2ForImageTextRetrieval and Blip2ForConditionalGeneration. Unknown names are passed
        on, so that strict loading reports them.
    """
    ours = {f"vision_{name}": value for name, value in from_lavis_names(tensors).items()}
    for name, value in tensors.items():
        if name.startswith(_VISION) or _DROPPED.search(name):
            continue
        for pattern, replacement in _LAVIS:
            renamed, found = re.subn(pattern, replacement, name)
            if found:
                break
        ours[renamed] = value
    return ours


def is_lavis(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict spells its modules in LAVIS' way."""
    return any(name.startswith(("Qformer.bert.", "visual_encoder.")) for name in tensors)
