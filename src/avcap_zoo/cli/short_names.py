"""The short names of systems and data modules: the one table, and where a name may stand instead of a dotted path.

A short name is the key below or the name of the class, in any case: `lavcap`, `LAVCap`. It is replaced before
anything is parsed, so that only the module of the named system is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SYSTEMS = {
    "bubogpt": "avcap_zoo.systems.bubogpt.BuboGPT",
    "lavcap": "avcap_zoo.systems.lavcap.LAVCap",
    "zeraucap": "avcap_zoo.systems.zeraucap.ZerAuCap",
    "vlrm": "avcap_zoo.systems.vlrm.VLRM",
}
DATA_MODULES = {
    "audiocaps": "avcap_zoo.data_modules.audiocaps.AudioCapsDataModule",
    "clotho": "avcap_zoo.data_modules.clotho.ClothoDataModule",
    "coco": "avcap_zoo.data_modules.coco.COCODataModule",
    "images": "avcap_zoo.data_modules.images.ImagesDataModule",
    "instructions": "avcap_zoo.data_modules.instructions.InstructionsDataModule",
    "scene_instructions": "avcap_zoo.data_modules.scenes.instructions.SceneInstructionsDataModule",
    "scene_pictures": "avcap_zoo.data_modules.scenes.data_module.ScenePicturesDataModule",
    "scenes": "avcap_zoo.data_modules.scenes.data_module.ScenesDataModule",
    "vggss": "avcap_zoo.data_modules.vggss.VGGSSDataModule",
    "wavcaps": "avcap_zoo.data_modules.wavcaps.WavCapsDataModule",
}
# The stages of `avcap ground`.
TAGGERS = {
    "ram": "avcap_zoo.systems.bubogpt.tagging.RAMTagger",
    "clip": "avcap_zoo.systems.bubogpt.tagging.CLIPTagger",
    "given": "avcap_zoo.systems.bubogpt.tagging.GivenTags",
}
DETECTORS = {
    "grounding-dino": "avcap_zoo.systems.bubogpt.detection.GroundingDino",
    "groundingdino-py": "avcap_zoo.systems.bubogpt.detection.GroundingDinoPy",
}
SEGMENTERS = {
    "sam": "avcap_zoo.systems.bubogpt.segmentation.SAM",
    "segment-anything": "avcap_zoo.systems.bubogpt.segmentation.SegmentAnything",
}
MATCHERS = {
    "rules": "avcap_zoo.systems.bubogpt.matching.RuleMatcher",
    "language-model": "avcap_zoo.systems.bubogpt.matching.LanguageModelMatcher",
}
TABLES = {
    "model": SYSTEMS,
    "data": DATA_MODULES,
    "tagger": TAGGERS,
    "detector": DETECTORS,
    "segmenter": SEGMENTERS,
    "matcher": MATCHERS,
}
"""Key of the configuration -> short name -> dotted path."""


def dotted_path(key: str, name: str) -> str:
    """The dotted path behind a short name.

    Args:
        key: "model" or "data".
        name: what the user wrote; anything that is no short name comes back as it is.
    """
    table = TABLES[key]
    by_name = table | {path.rpartition(".")[2].lower(): path for path in table.values()}
    return by_name.get(name.lower(), name)


def short_name(class_path: str) -> str:
    """The name a run of this class is filed under: its short name, or the name of the class in lower case."""
    for table in TABLES.values():
        for name, path in table.items():
            if path == class_path:
                return name
    return class_path.rpartition(".")[2].lower()


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line with short names replaced after `--model`, `--model.class_path`, `--model.help`; so for data."""
    options = {f"--{key}{part}": key for key in TABLES for part in ("", ".class_path", ".help")}
    expanded: list[str] = []
    pending: str | None = None
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if pending is not None and not argument.startswith("-"):
            expanded.append(dotted_path(pending, argument))
            pending = None
        elif equals and option in options:
            expanded.append(f"{option}={dotted_path(options[option], value)}")
        else:
            expanded.append(argument)
            pending = options.get(argument)
    return expanded


def expand_config(content: Any) -> Any:
    """The content of a configuration file with short names replaced.

    They may stand as `model: lavcap`, as `model: {class_path: lavcap}`, as the dotted key `model.class_path: lavcap`,
    and as the `class_path` of a file that holds a model or data section alone.
    """
    if not isinstance(content, dict):
        return content
    expanded = dict(content)
    for key in TABLES:
        for entry in (key, f"{key}.class_path"):
            if isinstance(expanded.get(entry), str):
                expanded[entry] = dotted_path(key, expanded[entry])
        section = expanded.get(key)
        if isinstance(section, dict) and isinstance(section.get("class_path"), str):
            expanded[key] = section | {"class_path": dotted_path(key, section["class_path"])}
        if isinstance(expanded.get("class_path"), str):
            expanded["class_path"] = dotted_path(key, expanded["class_path"])
    return expanded
