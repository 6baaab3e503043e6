"""Official state-dict names to ours: checkpoints with `multimodal_joiner.*`, with or without what is frozen.

`backbones` holds the names of single published files. Dropped, and why: the text branch of the Q-Formers, which
queries never pass; `*.rotary_emb.inv_freq` and, beside a joiner alone, `log_logit_scale`: constants of frozen parts.
Every other name without a place in our model is passed on as it is, so that strict loading reports it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from avcap_zoo.backbones.audio.imagebind import ImageBindAudioSettings, from_imagebind_names
from avcap_zoo.backbones.joiner import from_joiner_names, unknown_joiner_names
from avcap_zoo.backbones.qformer import to_blip2_name
from avcap_zoo.backbones.vision.eva import from_lavis_names
from avcap_zoo.weights.conversion import Conversion

_LANGUAGE, _ENCODER, _JOINER = "llama_model.", "multimodal_encoder.", "multimodal_joiner."
_EVA, _NORM = f"{_ENCODER}modality_trunks.vision.", f"{_ENCODER}modality_postprocessors.vision."
_SCALE = f"{_ENCODER}modality_postprocessors.audio.1.log_logit_scale"


def bubogpt_to_model(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a released BuboGPT model.

    Args:
        tensors: official names (spec section 13): the trained part, or all.

    Returns:
        Names of `BuboGPTModel`. Unknown names are passed on, so that strict loading reports them.
    """
    ours = {
        f"language.model.{name.removeprefix(_LANGUAGE)}": value
        for name, value in tensors.items()
        if name.startswith(_LANGUAGE) and not name.endswith(".rotary_emb.inv_freq")
    }
    for modality in ("vision", "audio"):
        joiner = from_joiner_names(tensors, modality)
        ours |= {f"{modality}_joiner.{name}": value for name, value in joiner.items()}
    encoders = {name: value for name, value in tensors.items() if name.startswith(_ENCODER)}
    seen = {f"visual_encoder.{n.removeprefix(_EVA)}": v for n, v in encoders.items() if n.startswith(_EVA)}
    seen |= {f"ln_vision.{n.removeprefix(_NORM)}": v for n, v in encoders.items() if n.startswith(_NORM)}
    ours |= {f"vision_encoder.{name}": value for name, value in from_lavis_names(seen).items()}
    heard = {n.removeprefix(_ENCODER): v for n, v in encoders.items() if not n.startswith((_EVA, _NORM))}
    if set(heard) != {_SCALE.removeprefix(_ENCODER)}:
        tower = from_imagebind_names(heard, ImageBindAudioSettings())
        ours |= {f"audio_encoder.{name}": value for name, value in tower.items()}
    rest = {n: v for n, v in tensors.items() if not n.startswith((_LANGUAGE, _ENCODER))}
    return ours | {name: rest[name] for name in unknown_joiner_names(rest)}


def model_to_bubogpt(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back, for joiners and the language model.

    Args:
        tensors: names of `BuboGPTModel`; frozen encoders keep ours, as official checkpoints of training lack them.
    """
    official: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        modality = part.removesuffix("_joiner")
        inner = f"{_JOINER}modality_qformers.{modality}."
        renamed = name
        if part == "language":
            renamed = _LANGUAGE + rest.removeprefix("model.")
        elif part.endswith("_joiner") and rest.startswith("projection."):
            renamed = f"{_JOINER}modality_post_projectors.{modality}.fc.{rest.removeprefix('projection.')}"
        elif part.endswith("_joiner"):
            own = rest.removeprefix("qformer.")
            renamed = f"{inner}query_tokens" if own == "queries" else to_blip2_name(own, f"{inner}Qformer.bert.")
        official[renamed] = value
    return official


CONVERSION = Conversion(to_ours=bubogpt_to_model, to_official=model_to_bubogpt)
