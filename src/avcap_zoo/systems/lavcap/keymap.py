"""Official state-dict names to ours: CED checkpoints and the released LAVCap model.

Dropped, and why: `front_end.0.{spectrogram.window,mel_scale.fb}` (constants; `ops.fbank` computes them),
`output_layer.{0,1}.*` / `outputlayer.{0,1}.*` (CED's classifier, unused by LAVCap; `CEDTagger` reads it),
`*.rotary_emb.inv_freq` (a constant that transformers recomputes), the text branch of a Q-Former (`backbones.qformer`).
Every other name without a place in our model is passed on as it is, so that strict loading reports it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.backbones.audio.ced import PATCH_SIZE, CEDSettings
from avcap_zoo.backbones.qformer import TEXT_BRANCH, from_blip2_names, to_blip2_name
from avcap_zoo.weights.conversion import Conversion

_FRONT_END = r"(^|\.)front_end\.0\.(spectrogram\.window|mel_scale\.fb)$"
_CLASSIFIER = r"(^|\.)output_?layer\.[01]\.(weight|bias)$"
_TEXT_OF_QFORMER = rf"^speech_Qformer\.(cls\.|bert\.(.*\.)?({TEXT_BRANCH.pattern}))"
DROPPED = re.compile(rf"{_FRONT_END}|{_CLASSIFIER}|\.rotary_emb\.inv_freq$|{_TEXT_OF_QFORMER}")
_QUERIES, _QFORMER = "speech_query_tokens", "speech_Qformer.bert."
_OUR_QFORMER = "fusion.windows.qformer."
_PEFT = ".base_model.model."
_LAVCAP_PREFIXES = (
    (f"audio_encoder{_PEFT}", "audio_encoder."),
    (f"llama_decoder{_PEFT}", "language.model."),
    ("llama_decoder.", "language.model."),
    ("speech_llama_proj.", "projector."),
    ("ln_aud.", "fusion.audio_norm."),
    ("ln_vis.", "fusion.visual_norm."),
    ("cross_attn.", "fusion.cross_attention."),
)


def ced_to_encoder(tensors: Mapping[str, Tensor], settings: CEDSettings) -> dict[str, Tensor]:
    """Rename a published CED checkpoint, split its fused qkv, and fit its time positions to the model.

    Time positions are interpolated (bilinear, corners not aligned) when the model is longer than the checkpoint, cut to
    a prefix when it is shorter.

    Args:
        tensors: flat official names.
        settings: of the encoder the result is for.

    Returns:
        Names of `backbones.audio.ced.CED`. Unknown names are passed on, so that strict loading reports them.
    """
    ours: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if DROPPED.search(name):
            continue
        renamed = name.replace("init_bn.1.", "init_bn.")
        if ".qkv." in renamed and value.ndim and value.shape[0] == 3 * settings.embed_dim:
            for part, third in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                ours[renamed.replace("qkv", part)] = third
        else:
            ours[renamed] = value
    wanted = settings.target_length // PATCH_SIZE
    positions = ours.get("time_pos_embed")
    if positions is not None and positions.ndim == 4:
        if positions.shape[3] < wanted:
            positions = F.interpolate(positions.float(), size=(1, wanted), mode="bilinear")
        ours["time_pos_embed"] = positions[..., :wanted]
    return ours


def ced_to_tagger(tensors: Mapping[str, Tensor], settings: CEDSettings) -> dict[str, Tensor]:
    """The same with the classifier: names of `backbones.audio.ced.CEDTagger`."""
    head = {
        re.sub(r"^output_?layer\.", "head.", name): value
        for name, value in tensors.items()
        if re.search(_CLASSIFIER, name)
    }
    return head | {f"encoder.{name}": value for name, value in ced_to_encoder(tensors, settings).items()}


def lavcap_to_model(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a released LAVCap model.

    Args:
        tensors: official names (spec section 11), with or without adapters.

    Returns:
        Names of `LAVCapModel`. Unknown names are passed on, so that strict loading reports them.
    """
    qformer = from_blip2_names(tensors, queries=_QUERIES, prefix=_QFORMER)
    ours = {f"{_OUR_QFORMER}{name}": value for name, value in qformer.items()}
    for name, value in tensors.items():
        if DROPPED.search(name) or name.startswith(_QFORMER) or name == _QUERIES:
            continue
        renamed = "fusion.logit_scale" if name == "logit_scale" else name
        for official, mine in _LAVCAP_PREFIXES:
            if renamed.startswith(official):
                renamed = mine + renamed[len(official) :]
                break
        ours[renamed.replace("init_bn.1.", "init_bn.")] = value
    return ours


def model_to_lavcap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back. A part with adapters gets peft's prefix, as the released classes wrap it.

    Args:
        tensors: names of `LAVCapModel` without its vision encoder, which official checkpoints never hold.
    """
    adapted = {name.split(".")[0] for name in tensors if ".lora_" in name}
    official: dict[str, Tensor] = {}
    for name, value in tensors.items():
        renamed = "logit_scale" if name == "fusion.logit_scale" else name
        if name.startswith(_OUR_QFORMER):
            own = name.removeprefix(_OUR_QFORMER)
            renamed = _QUERIES if own == "queries" else to_blip2_name(own, _QFORMER)
        for prefix, mine in _LAVCAP_PREFIXES:
            if renamed.startswith(mine) and (_PEFT not in prefix or mine.split(".")[0] in adapted):
                renamed = prefix + renamed[len(mine) :]
                break
        official[re.sub(r"(^|\.)init_bn\.", r"\1init_bn.1.", renamed)] = value
    return official


CONVERSION = Conversion(
    to_ours=lavcap_to_model,
    to_official=model_to_lavcap,
    unused=re.compile(r"^fusion\.logit_scale$"),  # the released kinds without an OT loss have one, too
    ours_alone=re.compile(r"^vision_encoder\."),
)
