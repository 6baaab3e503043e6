"""Every kind of fusion by name: the rows of the paper's Tables II and III, and the released `fusion_type` values."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from avcap_zoo.errors import ConfigError

PlainKind = Literal[
    "audio_only",
    "visual_only",
    "concatenation",
    "concatenation_ot",
    "ot_attention",
    "cross_attention",
    "qformer",
    "joint_encoder",
]
ReleasedKind = Literal[
    "released_ot_tempcat_QAV_add",
    "released_ot_tempcat",
    "released_ot_chancat",
    "released_ot_crossattn",
    "released_tempcat_afQF",
    "released_tempcat_bfQF",
    "released_chancat_bfQF",
    "released_crossattn",
    "released_qformer_ot_tempcat_QAV_add",
    "released_qformer_ot_tempcat",
    "released_qformer_ot_chancat",
    "released_qformer_tempcat_afQF",
    "released_qformer_tempcat_bfQF",
]
FusionKind = Literal[PlainKind, ReleasedKind]
Features = Literal["normalised", "raw"]


@dataclass(frozen=True)
class Recipe:
    """What one kind does, in the order in which it is done.

    Args:
        audio: it listens.
        visual: it looks.
        qformer: `audio`: a Q-Former reads windows of the audio tokens; `both`: of audio and visual tokens in a row.
        transport: it has a transport plan and the OT loss.
        join: how the two sequences become one. `append`: audio, then visual; `append_twice`: and visual again;
            `ot_attention`: each plus what the plan assigns to it, then `append`; `channels`: side by side, visual
            tokens spread over the audio tokens; `cross_attention`: audio, plus what it attends to among visual;
            `joint_encoder`: `append`, then a transformer block over all tokens.
        features: what reaches the join; None = as `FusionSettings.features` says.
        released: exactly as the official code, with its limits: one width, and its way to cut windows.
    """

    audio: bool = True
    visual: bool = True
    qformer: Literal["audio", "both"] | None = None
    transport: bool = False
    join: Literal["append", "append_twice", "ot_attention", "channels", "cross_attention", "joint_encoder"] = "append"
    features: Features | None = None
    released: bool = False


def _released(*, transport: bool = False, **options: object) -> Recipe:
    """Released kinds use unit-norm tokens with transport, the encoders' own without."""
    features: Features = "normalised" if transport else "raw"
    return Recipe(transport=transport, features=features, released=True, **options)  # type: ignore[arg-type]


RECIPES: dict[str, Recipe] = {
    "audio_only": Recipe(visual=False),
    "visual_only": Recipe(audio=False),
    "concatenation": Recipe(),
    "concatenation_ot": Recipe(transport=True),
    "ot_attention": Recipe(transport=True, join="ot_attention"),
    "cross_attention": Recipe(transport=True, join="cross_attention"),
    "qformer": Recipe(transport=True, qformer="audio"),
    "joint_encoder": Recipe(transport=True, join="joint_encoder"),
    "released_ot_tempcat_QAV_add": _released(transport=True, join="ot_attention"),
    "released_ot_tempcat": _released(transport=True),
    "released_ot_chancat": _released(transport=True, join="channels"),
    "released_ot_crossattn": _released(transport=True, join="cross_attention"),
    "released_tempcat_afQF": _released(),
    "released_tempcat_bfQF": _released(join="append_twice"),
    "released_chancat_bfQF": _released(join="channels"),
    # The name matches neither "ot" nor a way to append: the pictures are dropped, the attention is never called.
    "released_crossattn": _released(visual=False),
    "released_qformer_ot_tempcat_QAV_add": _released(transport=True, qformer="audio", join="ot_attention"),
    "released_qformer_ot_tempcat": _released(transport=True, qformer="audio"),
    "released_qformer_ot_chancat": _released(transport=True, qformer="audio", join="channels"),
    # A misspelt name in the released code keeps the pictures out.
    "released_qformer_tempcat_afQF": _released(qformer="audio", visual=False),
    "released_qformer_tempcat_bfQF": _released(qformer="both"),
}


def recipe_of(kind: str) -> Recipe:
    """The recipe of a kind.

    Raises:
        ConfigError: no such kind; the closest name, or all of them, are in the message.
    """
    if kind in RECIPES:
        return RECIPES[kind]
    close = get_close_matches(kind, RECIPES, n=1)
    wanted = f"did you mean {close[0]}?" if close else f"wanted one of {', '.join(RECIPES)}"
    raise ConfigError(f"model.init_args.fusion.kind {kind!r} is not known: {wanted}")
