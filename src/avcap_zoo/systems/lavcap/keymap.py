"""Official state-dict names to ours: CED checkpoints and the released LAVCap model.

Dropped, and why: `front_end.*` (spectrogram constants; `ops.fbank` computes them), `output_layer.*` / `outputlayer.*`
(CED's classifier, unused by LAVCap), `*.rotary_emb.inv_freq` (a constant that transformers recomputes), the text branch
of a Q-Former (`backbones.qformer`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.backbones.audio.ced import PATCH_SIZE, CEDSettings
from avcap_zoo.backbones.qformer import from_blip2_names

_DROPPED = re.compile(r"(^|\.)(front_end|output_?layer)\.|\.rotary_emb\.inv_freq$")
_LAVCAP_PREFIXES = (
    ("audio_encoder.base_model.model.", "audio_encoder."),
    ("llama_decoder.base_model.model.", "language.model."),
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
        if _DROPPED.search(name):
            continue
        renamed = name.replace("init_bn.1.", "init_bn.")
        if ".qkv." in renamed:
            for part, third in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
                ours[renamed.replace("qkv", part)] = third
        else:
            ours[renamed] = value
    wanted = settings.target_length // PATCH_SIZE
    positions = ours.get("time_pos_embed")
    if positions is not None and positions.shape[-1] < wanted:
        ours["time_pos_embed"] = F.interpolate(positions.float(), size=(1, wanted), mode="bilinear")
    elif positions is not None:
        ours["time_pos_embed"] = positions[..., :wanted]
    return ours


def lavcap_to_model(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a released LAVCap model.

    Args:
        tensors: official names (spec section 11).

    Returns:
        Names of `LAVCapModel`.
    """
    qformer = from_blip2_names(tensors, queries="speech_query_tokens", prefix="speech_Qformer.bert.")
    ours = {f"fusion.windows.qformer.{name}": value for name, value in qformer.items()}
    for name, value in tensors.items():
        if _DROPPED.search(name) or name.startswith("speech_Qformer.") or name == "speech_query_tokens":
            continue
        renamed = "fusion.logit_scale" if name == "logit_scale" else name
        for official, mine in _LAVCAP_PREFIXES:
            if renamed.startswith(official):
                renamed = mine + renamed[len(official) :]
                break
        ours[renamed.replace("init_bn.1.", "init_bn.")] = value
    return ours
