"""A system rebuilt from its checkpoint, from a configuration, or from a checkpoint with settings laid over it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass, replace
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from avcap_zoo.cli.explain import COMMAND_LINE, explain
from avcap_zoo.cli.parser import PARSER_MODE, CaptionArgumentParser, ParserRefusalError, load_yaml, set_up_parsing
from avcap_zoo.cli.usage import CommandLineError
from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.data_modules.dataset import DecodeSettings
from avcap_zoo.errors import WeightsError, first_line
from avcap_zoo.systems.base import CHECKPOINT_KEY, System
from avcap_zoo.systems.captions import CaptionSystem
from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO

OWN_SYSTEMS = "avcap_zoo.systems."
"""Classes that a checkpoint may name by itself; others must be named by the user, because importing runs code."""
_TRAINER_KEYS = ("environment", "seed_everything", "ckpt_path", "weights_only", "verbose", "return_predictions")
_DECODING = ("sample_rate_hz", "num_frames", "image_size_px")


@dataclass(frozen=True)
class Loaded:
    """A system ready to caption, on the CPU, in evaluation mode.

    Attributes:
        system: its model is built and holds its weights.
        decode: how media become its tensors.
        precision: of the run that made it, as the Trainer names it.
        assumed: data settings that nothing named and that were taken from the data modules' defaults.
        made_by: 16 hexadecimal digits; changes with weights, settings and decoding.
    """

    system: CaptionSystem
    decode: DecodeSettings
    precision: str
    assumed: tuple[str, ...]
    made_by: str


def load_system(
    checkpoint: str | PathLike[str] | None = None,
    configs: Sequence[str | Path] = (),
    *,
    num_frames: int | None = None,
    image_size_px: int | None = None,
) -> Loaded:
    """Rebuild a system.

    Settings come from the checkpoint; configurations are laid over them in their order, as several `-c` are. Of a
    configuration only `model`, the decoding in `data` and `trainer.precision` count.

    Args:
        checkpoint: of a run of this package; None for systems that need no trained weights.
        configs: YAML files; needed without a checkpoint, and for systems that are not part of this package.
        num_frames: instead of what checkpoint or configuration say.
        image_size_px: the same.

    Raises:
        WeightsError: the checkpoint is missing, damaged, of another tool or version, or does not fit.
        CommandLineError: neither checkpoint nor model is given, or a configuration cannot be used.
    """
    set_up_parsing()
    content = None if checkpoint is None else AtomicCheckpointIO().load_checkpoint(checkpoint, _on_cpu)
    note: dict[str, Any] = {}
    arguments = [word for file in configs for word in ("-c", str(file))]
    if content is not None:
        note = _note_of(content, str(checkpoint))
        base = _model_argument(note, str(checkpoint), arguments)
        try:
            _parse_or_explain([base], files=False)
        except CommandLineError as error:
            reason = re.sub(rf"{COMMAND_LINE}(:\d+)?: ", "", str(error))
            raise WeightsError(
                f"{checkpoint} was saved by another version of avcap-zoo ({note.get('version')}): {reason}"
            ) from error
        arguments = [base, *arguments]
    settings = _parse_or_explain(arguments)
    wanted = settings.clone()
    wanted.data = None  # its settings are read below; a folder of data is not needed here
    system = _parser().instantiate(wanted).model
    if not isinstance(system, CaptionSystem):
        raise CommandLineError(f"{type(system).__name__} does not caption; wanted a system that does")
    system.configure_model()
    if content is not None:
        try:
            system.on_load_checkpoint(content)
        except WeightsError as error:
            raise WeightsError(f"{checkpoint}: {error}") from error
        system.load_state_dict(content["state_dict"], strict=False)
    asked = {"num_frames": num_frames, "image_size_px": image_size_px}
    decode, assumed = _decoding(system, settings, note.get("data") or {}, asked)
    trainer = settings.get("trainer") or {}
    precision = trainer.get("precision") or (note.get("data") or {}).get("precision") or "32-true"
    made_by = system.maker(asdict(replace(decode, on_error="skip")))
    return Loaded(system.eval(), decode, str(precision), assumed, made_by)


def _on_cpu(storage: Any, _: Any) -> Any:
    return storage


def _note_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    note = content.get(CHECKPOINT_KEY)
    if not isinstance(note, dict) or not isinstance(note.get("class_path"), str):
        tool = " but by another program with Lightning" if "pytorch-lightning_version" in content else ""
        keys = ", ".join(sorted(map(str, content))[:6])
        raise WeightsError(
            f"{name} was not saved by avcap-zoo{tool}: found the keys {keys}; wanted a checkpoint of avcap fit"
        )
    return note


def _model_argument(note: dict[str, Any], name: str, arguments: Sequence[str]) -> str:
    """The checkpoint's own settings as the first option of a command line."""
    class_path = note["class_path"]
    try:
        init_args = json.loads(note["init_args"])
        if class_path.startswith(OWN_SYSTEMS):
            _check_groups(_class_of(class_path), init_args)
        named = set(_named_classes(init_args))
    except (ImportError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{name} does not say how its model was built: {first_line(error)}") from error
    if not class_path.startswith(OWN_SYSTEMS) or named:
        model = _parse_or_explain(arguments).model if arguments else None
        if not class_path.startswith(OWN_SYSTEMS) and (model is None or _full_name(model.class_path) != class_path):
            raise CommandLineError(
                f"{name} holds {class_path}, which is not part of avcap-zoo and is not imported unasked: "
                f"name it in a file, -c with model.class_path: {class_path}"
            )
        if unasked := named.difference(() if model is None else _named_classes(model.as_dict())):
            raise CommandLineError(
                f"{name} names {', '.join(sorted(unasked))} in its settings, which is not imported unasked: name it in "
                f"the same place of a file, -c with model.init_args"
            )
    return f"--model={json.dumps({'class_path': class_path, 'init_args': init_args})}"


def _named_classes(value: Any) -> Iterator[str]:
    """Classes that settings name, also in texts that the parser would take for YAML."""
    if isinstance(value, str):
        with suppress(yaml.YAMLError, ValueError):
            if isinstance(found := load_yaml(value), dict | list):
                yield from _named_classes(found)
    elif isinstance(value, list):
        for part in value:
            yield from _named_classes(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if isinstance(part, str) and (key == "class_path" or (key == "kind" and "." in part)):
                yield part
            else:
                yield from _named_classes(part)


def _check_groups(kind: type, settings: Any) -> None:
    """Refuse texts in place of groups of settings: the parser would take them for paths, and read those files.

    Raises:
        TypeError: names the first.
    """
    if not isinstance(settings, dict):
        raise TypeError(f"{settings!r} in place of the settings of {kind.__name__}")
    hints = get_type_hints(kind if is_dataclass(kind) else kind.__init__)  # type: ignore[misc]
    for key, part in settings.items():
        for hint in (hints.get(key), *get_args(hints.get(key))):
            if isinstance(hint, type) and is_dataclass(hint) and part is not None:
                _check_groups(hint, part)


def _class_of(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def _full_name(class_path: str) -> str:
    found = _class_of(class_path)
    return f"{found.__module__}.{found.__name__}"


def _parser(*, files: bool = True) -> CaptionArgumentParser:
    """The parser of settings; with `files` a part of them may be the path of a file that holds it."""
    parser = CaptionArgumentParser(prog="avcap caption", allow_abbrev=False, parser_mode=PARSER_MODE)
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--model", type=System, required=True, sub_configs=files)
    parser.add_argument("--data", type=CaptionDataModule, sub_configs=True)
    for key in ("trainer", *_TRAINER_KEYS):
        parser.add_argument(f"--{key}", type=Any)
    return parser


def _parse_or_explain(arguments: Sequence[str], *, files: bool = True) -> Namespace:
    try:
        return _parser(files=files).parse_args(list(arguments))
    except ParserRefusalError as error:
        if str(error).endswith("are required: model"):
            raise CommandLineError(
                "no model given, wanted --checkpoint FILE, or -c FILE with a model for systems that need no training"
            ) from error
        known: dict[str, Any] = {"model": System, "data": CaptionDataModule, "trainer": Trainer}
        raise CommandLineError(
            explain(
                arguments,
                str(error),
                known=known | dict.fromkeys(_TRAINER_KEYS, str | int | float | bool | None),
                bases={"model": System, "data": CaptionDataModule},
            )
        ) from error


def _decoding(
    system: CaptionSystem, settings: Namespace, noted: dict[str, Any], asked: dict[str, int | None]
) -> tuple[DecodeSettings, tuple[str, ...]]:
    """Asked for, else configured, else as in training, else the data modules' default."""
    needs = system.requirements
    data = settings.get("data")
    configured: dict[str, Any] = vars(data.init_args) if data is not None and data.get("init_args") is not None else {}
    values, assumed = {}, []
    for key in _DECODING:
        candidates = [asked.get(key), configured.get(key), noted.get(key)]
        if key == "sample_rate_hz":
            candidates.insert(0, needs.sample_rate_hz)
        known = [int(value) for value in candidates if value is not None]
        values[key] = known[0] if known else inspect.signature(CaptionDataModule).parameters[key].default
        if not known and ("audio" if key == "sample_rate_hz" else "visual") in needs.modalities:
            assumed.append(f"{key} {values[key]}")
    return (
        DecodeSettings(
            values["sample_rate_hz"],
            values["num_frames"],
            values["image_size_px"],
            modalities=needs.modalities,
            on_error="skip",
            prefer_features=False,
        ),
        tuple(assumed),
    )
