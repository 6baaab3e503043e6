"""A grounder out of configuration files and options, with the command line's one-line answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jsonargparse import Namespace

from avcap_zoo.backbones.vision.finders import Detector, Segmenter, Tagger
from avcap_zoo.cli.explain import explain
from avcap_zoo.cli.parser import (
    PARSER_MODE,
    CaptionArgumentParser,
    ParserRefusalError,
    constructor_error,
    set_up_parsing,
)
from avcap_zoo.cli.short_names import DETECTORS, MATCHERS, SEGMENTERS, TAGGERS, expand_arguments
from avcap_zoo.cli.usage import CommandLineError
from avcap_zoo.systems.bubogpt.grounding import Grounder
from avcap_zoo.systems.bubogpt.matching import Matcher

STAGES: dict[str, type] = {"tagger": Tagger, "detector": Detector, "segmenter": Segmenter, "matcher": Matcher}
_PLAIN: dict[str, Any] = {
    "nms_iou": float | None,
    "entity_names": Literal["tags", "released"],
    "cache": str | None,
}
PUBLISHED: dict[str, Any] = {
    "tagger": {"class_path": TAGGERS["ram"]},
    "detector": {"class_path": DETECTORS["grounding-dino"]},
    "segmenter": {"class_path": SEGMENTERS["sam"]},
    "matcher": {"class_path": MATCHERS["rules"]},
    "nms_iou": 0.5,
    "entity_names": "tags",
    "cache": None,
}
"""The settings where nothing else is said."""


def read_settings(arguments: Sequence[str]) -> Namespace:
    """The settings that a command line means.

    Args:
        arguments: `-c FILE` and options such as `--detector.box_threshold 0.3`; later ones win.

    Raises:
        CommandLineError: a file or an option cannot be used.
    """
    words = expand_arguments(arguments)
    try:
        settings: Namespace = _parser().parse_args(words)
    except ParserRefusalError as error:
        raise CommandLineError(explain(words, str(error), known=_known(), bases=STAGES)) from error
    return settings


def print_settings(settings: Namespace) -> str:
    """All settings as YAML, as a configuration file holds them."""
    text: str = _parser().dump(settings, skip_unset=False)
    return text


def build_grounder(settings: Namespace) -> Grounder:
    """Make the grounder; its models are not loaded yet.

    Raises:
        AvcapError: of the constructors, such as a missing extra.
    """
    try:
        made = _parser().instantiate(settings)
    except ValueError as error:
        raise constructor_error(error) from error
    return Grounder(**{key: made.get(key) for key in (*STAGES, *_PLAIN)})


def _known() -> dict[str, Any]:
    return {"config": Any, **STAGES, **_PLAIN}


def _parser() -> CaptionArgumentParser:
    set_up_parsing()
    parser = CaptionArgumentParser(prog="avcap ground", allow_abbrev=False, parser_mode=PARSER_MODE)
    parser.add_argument("-c", "--config", action="config")
    for key, base in STAGES.items():
        parser.add_argument(f"--{key}", type=base, sub_configs=True, default=PUBLISHED[key])
    for key, hint in _PLAIN.items():
        parser.add_argument(f"--{key}", type=hint, default=PUBLISHED[key])
    return parser
