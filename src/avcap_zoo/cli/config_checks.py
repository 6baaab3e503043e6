"""Whether a configuration can run here: its files, its data, its size and what a step takes."""

from __future__ import annotations

import inspect
import json
import logging
import os
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentParser
from typing_extensions import override

from avcap_zoo.backbones.language import CausalLanguageModel
from avcap_zoo.backbones.pretrained import local_copy
from avcap_zoo.cli.devices import check_accelerator
from avcap_zoo.cli.findings import Finding, State
from avcap_zoo.cli.parser import CHECKPOINT_WORDS, CaptionCLI, constructor_error, run
from avcap_zoo.cli.step_cost import ModelSize, model_size, operations_per_s, step_cost
from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.data_modules.scenes.data_module import GeneratedDataModule
from avcap_zoo.data_modules.scenes.instructions import SceneInstructionsDataModule
from avcap_zoo.errors import AvcapError, DataError, first_line, free_bytes
from avcap_zoo.metrics.scores import unavailable
from avcap_zoo.systems.base import System
from avcap_zoo.systems.captions import CaptionSystem
from avcap_zoo.weights.inventory import NamedWeights, Stock, listed, look_for, named_weights, size_text

PROG = "avcap doctor"
_BUILT_FOR_REAL_BYTES = 300_000_000
"""Weights up to this size are loaded, which proves that they fit; larger models are built without their numbers."""
_BERT_WORDS = 30_522
Built = TypeVar("Built")


class Examined(CaptionCLI):
    """Parses like `fit`, and builds model, data and Trainer each by itself, so that one error hides no other."""

    @override
    def before_instantiate_classes(self) -> None:
        """The device is asked for below."""

    @override
    def instantiate_classes(self) -> None:
        """Build what can be built; `findings` says what cannot."""
        self.findings: list[Finding] = []
        accelerator = str(self._get(self.config, "trainer").get("accelerator") or "auto")
        there = self._try("accelerator", lambda: _is_there(accelerator))
        self.model = self._try("model", lambda: self._part("model"))
        self.datamodule = self._try("data", lambda: self._part("data"))
        if there and self.model is not None:
            self.config_init = self._without("model", "data")
            self._try("trainer", self.instantiate_trainer)

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""

    def _part(self, key: str) -> Any:
        return self._get(self._without(*({"model", "data"} - {key})), key)

    def _without(self, *keys: str) -> Any:
        settings = self.config.clone()
        for key in keys:
            settings["fit"][key] = None
        return self.parser.instantiate(settings)

    def _try(self, what: str, build: Callable[[], Built]) -> Built | None:
        try:
            return build()
        except (AvcapError, ImportError, ValueError, TypeError, OSError) as error:
            self.findings.append(Finding("PROBLEM", what, first_line(constructor_error(error))))
            return None


def _is_there(accelerator: str) -> bool:
    check_accelerator(accelerator)
    return True


def config_findings(arguments: Sequence[str]) -> list[Finding]:
    """Look at a configuration as `fit` would read it.

    Args:
        arguments: `-c FILE` and further options of `fit`.

    Raises:
        CommandLineError: a file or an option is refused; names file and line.
    """
    with _silence():
        built = run(PROG, ["fit", *arguments], Examined)
    assert isinstance(built, Examined)
    found = built.findings
    settings = built.config["fit"]
    ckpt_path = settings.get("ckpt_path")
    if ckpt_path is not None and str(ckpt_path) not in CHECKPOINT_WORDS:
        found.append(_finding(NamedWeights("ckpt_path", str(ckpt_path), "file")))
    system, data = built.model, built.datamodule
    stocks: dict[NamedWeights, Stock] = {}
    if isinstance(system, System):
        stocks = {named: look_for(named) for named in named_weights(system.settings_in_use(), "model.init_args")}
        found += [_finding(named, stock) for named, stock in stocks.items()]
    if isinstance(data, CaptionDataModule):
        found += data_findings(data, "fit" if not isinstance(system, System) or is_trained(system) else "test")
    if isinstance(system, System) and isinstance(data, CaptionDataModule) and all(s.present for s in stocks.values()):
        found += _fit_together(system, data)
    if isinstance(system, CaptionSystem):
        found += _score_findings(system)
    if isinstance(system, System):
        found += _size_findings(system, stocks, settings)
    return found


def grounding_findings(arguments: Sequence[str]) -> list[Finding]:
    """Look at the stages of `avcap ground`.

    Args:
        arguments: `-c FILE` and options of the stages.

    Raises:
        CommandLineError: a file or an option is refused.
    """
    from avcap_zoo.serving.grounding import STAGES, build_grounder, read_settings

    settings = read_settings(arguments)
    found = []
    for stage in STAGES:
        found += [_finding(named) for named in named_weights(settings[stage].as_dict(), stage)]
    try:
        build_grounder(settings)
    except (AvcapError, ValueError, TypeError) as error:
        found.append(Finding("PROBLEM", "stages", first_line(error)))
    return found or [Finding("ok", "stages", "they need no weights")]


def is_trained(system: System) -> bool:
    """Whether `fit` is a verb for it."""
    return type(system).training_loss is not System.training_loss or not system.automatic_optimization


def data_findings(data: CaptionDataModule, stage: str) -> list[Finding]:
    """How much of a data set is here.

    Args:
        data: asked for the splits of `stage`; nothing is written or generated.
        stage: `fit` or `test`.
    """
    generated = data.labelled_clips if isinstance(data, SceneInstructionsDataModule) else data
    if isinstance(generated, GeneratedDataModule) and not generated.root.is_dir():
        counts = ", ".join(f"{split} {count}" for split, count in generated.counts.items())
        return [Finding("ok", "data", f"{generated.scenes_root} is generated by the run: {counts} clips")]
    if not data.root.is_dir():
        text = f"data folder {data.root} does not exist; docs/data.md says what belongs there and under which terms"
        remedy = "export AVCAP_DATA=FOLDER (the folder above it), or --data.init_args.root FOLDER"
        return [Finding("PROBLEM", "data", text, remedy)]
    try:
        data.setup(stage)
    except (DataError, OSError) as error:
        return [Finding("PROBLEM", "data", first_line(error))]
    found = []
    for split in data.splits:
        here, official = data.num_clips(split), data.num_official(split)
        text = f"{data.name} {split}: {here} of {official} {data.counted_things(split)} in {data.root}"
        found.append(Finding("ok" if here >= official else "note", "data", text))
    return found


@contextmanager
def _silence() -> Iterator[None]:
    """Without what Lightning says of seeds and devices when it builds a Trainer."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _finding(named: NamedWeights, stock: Stock | None = None) -> Finding:
    stock = stock or look_for(named)
    if stock.present:
        return Finding("ok", named.key, f"{named.source}: {stock.text}")
    return Finding("PROBLEM", named.key, stock.text, stock.remedy)


def _fit_together(system: System, data: CaptionDataModule) -> list[Finding]:
    try:
        system.check_data(data)
    except AvcapError as error:
        return [Finding("PROBLEM", "model and data", str(error))]
    wanted = " and ".join(system.requirements.modalities) or "captions alone"
    return [Finding("ok", "model and data", f"{wanted}, as the model wants")]


def _score_findings(system: CaptionSystem) -> list[Finding]:
    settings = system.score_settings
    wanted = {*settings.validation, *settings.test}
    missing = {name: why for name, why in unavailable(tuple(wanted)).items() if name in wanted}
    state: State = "PROBLEM" if settings.strict else "note"
    found = []
    for name, reason in missing.items():
        text, _, remedy = reason.rpartition(": ")
        found.append(Finding(state, f"score {name}", f"{text or reason}; it is left out", remedy))
    return found


# -- size and cost ------------------------------------------------------------------------------------------------


def _size_findings(system: System, stocks: dict[NamedWeights, Stock], settings: Any) -> list[Finding]:
    whole = all(stock.present for stock in stocks.values())
    small = sum(stock.num_bytes for stock in stocks.values()) <= _BUILT_FOR_REAL_BYTES
    how = ""
    try:
        if whole and small and _numbers_of(system) <= _BUILT_FOR_REAL_BYTES:
            system.configure_model()
        else:
            system, how = _without_files(system), ", counted without loading them"
    except (AvcapError, ValueError, TypeError, RuntimeError, OSError, ArgumentError) as error:
        state: State = "PROBLEM" if whole and not how else "note"
        return [Finding(state, "parameters", f"cannot be counted: {first_line(error)}")]
    size = model_size(system)
    text = f"{size.trained:,} trained, {size.frozen:,} frozen{how}"
    return [Finding("ok", "parameters", text), *_cost_findings(system, size, settings)]


def _numbers_of(system: System) -> int:
    """Bytes of the model, built without numbers; a large one of random weights is not to be built for real."""
    return model_size(_without_files(system)).num_bytes if not hasattr(system, "model") else 0


def _cost_findings(system: System, size: ModelSize, settings: Any) -> list[Finding]:
    trainer, given = settings["trainer"], vars(settings["data"]).get("init_args") or {}
    defaults = inspect.signature(CaptionDataModule).parameters
    batch_size, num_frames = (
        int(given[key]) if given.get(key) is not None else defaults[key].default for key in ("batch_size", "num_frames")
    )
    accelerator = str(trainer.get("accelerator") or "auto")
    device = torch.device("cuda" if accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available() else "cpu")
    half = str(trainer.get("precision") or "").startswith(("bf16", "16"))
    dtype = torch.bfloat16 if half else torch.float32
    found = [_checkpoint_finding(size, trainer)] if size.trained else []
    work = system.step_work(num_frames)
    cost = None if work is None else step_cost(system, work, batch_size, dtype)
    activations = 0 if cost is None else cost.activation_bytes
    needed = size.num_bytes + size.state_bytes + activations
    parts = f"weights {size_text(size.num_bytes)}"
    if size.trained:
        parts += f", gradients and moments {size_text(size.state_bytes)}, activations {size_text(activations)}"
    there = _memory_bytes(device)
    text = f"about {size_text(needed)} ({parts}) of {size_text(there)} on {device.type}, batch of {batch_size}"
    remedy = "--data.init_args.batch_size smaller, or a larger device"
    if size.num_bytes > there:
        found.append(Finding("PROBLEM", "memory", text, "a larger device, or several with -c configs/device/fsdp.yaml"))
    else:
        found.append(Finding("note" if needed > there else "ok", "memory", text, remedy if needed > there else ""))
    if cost is None:
        found.append(Finding("note", "time", f"{type(system).__name__} does not say what a step computes"))
    else:
        speed = operations_per_s(device, dtype)
        what = "a step" if size.trained else "a batch"
        text = f"{what} takes at least {_seconds(cost.operations / speed)}: {cost.operations / 1e12:.3g} TFLOP at the "
        text += f"{speed / 1e12:.3g} TFLOP/s of a matrix product in {str(dtype).removeprefix('torch.')} here"
        found.append(Finding("ok", "time", text))
    return found


def _checkpoint_finding(size: ModelSize, trainer: Any) -> Finding:
    free = free_bytes(Path(trainer.get("default_root_dir") or "runs"))
    text = f"about {size_text(size.checkpoint_bytes)} each, {size_text(free)} free"
    if 2 * size.checkpoint_bytes > free:
        return Finding("PROBLEM", "checkpoints", text, "--trainer.default_root_dir FOLDER on a larger disk")
    return Finding("ok", "checkpoints", text)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 100 else f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.0f} h"


def _without_files(system: System) -> System:
    """The same system on the meta device, its weights replaced by the sizes that the manifest or the files name."""
    init_args = system.init_args | _sizes_alone(system.settings_in_use(), "model.init_args")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=System)
    content = {"class_path": f"{type(system).__module__}.{type(system).__qualname__}", "init_args": init_args}
    twin: System = parser.instantiate(parser.parse_args([f"--model={json.dumps(content)}"])).model
    with torch.device("meta"):
        twin.configure_model()
        for module in twin.modules():
            if isinstance(module, CausalLanguageModel):  # the tokenizer that stands in has fewer words
                words = module.settings.config.get("vocab_size", 0)
                if module.model.get_input_embeddings().num_embeddings < words:
                    module.model.resize_token_embeddings(words, mean_resizing=False)
    return twin


def _sizes_alone(settings: Any, key: str) -> Any:
    if isinstance(settings, (list, tuple)):
        return [_sizes_alone(value, f"{key}.{index}") for index, value in enumerate(settings)]
    if not isinstance(settings, dict):
        return settings
    made = {name: _sizes_alone(value, f"{key}.{name}") for name, value in settings.items()}
    for named in named_weights({k: v for k, v in settings.items() if isinstance(v, str)}, key):
        name = named.key.rpartition(".")[2]
        if named.kind == "model":
            made |= {"source": None, "config": known_sizes(named)}
        elif named.kind != "text":
            made[name] = None
    if "quantisation" in made:
        made["quantisation"] = "none"
    if "text" in made and "tokenizer" in settings:  # WavCaps' text encoder is as large as its tokenizer
        made["text"] = {"vocab_size": _BERT_WORDS, **made["text"]}
    if isinstance(made.get("prompts"), dict):  # the tokenizer that stands in may have no word for it
        made["prompts"].pop("end", None)
    return made


def known_sizes(named: NamedWeights) -> dict[str, Any]:
    """The config of a model that is not loaded: that of the manifest, or of the files here.

    Raises:
        DataError: neither is there.
    """
    config = listed(named.source).get("config")
    if isinstance(config, dict):
        return config
    folder = local_copy(named.source)
    if folder is None or not (folder / "config.json").is_file():
        raise DataError(f"{named.key}: the size of {named.source} is not known before it is here")
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tower = content.get("vision_config") if content.get("model_type") == "clip" else None
    return tower | {"projection_dim": content["projection_dim"]} if isinstance(tower, dict) else content
