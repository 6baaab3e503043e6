"""The Trainer's four verbs: Lightning's own command line, made to say where a mistake stands.

What differs from stock LightningCLI 2.6: the model and the data module are required and typed (exceptions keep their
type), a checkpoint's hyper-parameters never override what the user wrote, option names may not be abbreviated, short
names of systems work, and no optimizer can be slipped in. tests/integration/test_cli_runs.py pins each of these.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import typing
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from avcap_zoo.cli.config_files import set_environment
from avcap_zoo.cli.devices import check_accelerator, trainer_options
from avcap_zoo.cli.short_names import expand_arguments, expand_config, short_name
from avcap_zoo.cli.usage import CommandLineError, closest
from avcap_zoo.cli.versions import provenance_lines, version_lines
from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.data_modules.files import FULL, NO_LEAVE, write_error
from avcap_zoo.errors import ConfigError, DeviceError, MissingExtraError, first_line
from avcap_zoo.systems.base import System
from avcap_zoo.systems.signals import SaveOnSignal

PARSER_MODE = "avcap_yaml"
"""jsonargparse's YAML, with short names replaced as each file is read."""

_ANOTHER_FOLDER = "free some space, or choose another folder with --trainer.default_root_dir"
_GRACE_S = 10.0
"""For processes to end by themselves."""

CHECKPOINT_WORDS = {"best", "hpc"}
"""What Lightning takes for `ckpt_path` besides a path; `last` is ours."""


class ParserRefusalError(Exception):
    """What the parser says; `explain` finds out where it stands."""


class CaptionArgumentParser(LightningArgumentParser):
    """Lightning's parser without its dump of the usage."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of printing; parsers of nested classes, which are asked on trial, stay as they are."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ParserRefusalError(message) from ex


class SaveSettings(SaveConfigCallback):
    """Writes the settings of a run as config.yaml, headed by versions and commit."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write once, on rank 0."""
        if trainer.is_global_zero and not self.already_saved:
            self.parser.dump_header = provenance_lines()
        super().setup(trainer, pl_module, stage)


class CaptionCLI(LightningCLI):
    """Parses, builds and runs one verb.

    Args:
        prog: name of the program, for help and messages.
        arguments: the verb and what follows it. sys.argv is neither read nor changed: DDP starts its other processes
            from it.
    """

    def __init__(self, prog: str, arguments: Sequence[str]) -> None:
        self._command = (prog, *arguments)
        super().__init__(
            System,
            CaptionDataModule,
            save_config_callback=SaveSettings,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": prog, "allow_abbrev": False, "parser_mode": PARSER_MODE},
            parser_class=CaptionArgumentParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=expand_arguments(arguments),
            auto_configure_optimizers=False,
        )

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose dumps are headed by versions."""
        return super().init_parser(**{"dump_header": version_lines()} | kwargs)

    @override
    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The Trainer's arguments, and the model and data as required types.

        Lightning's own way adds them with a default of None: a Union, in which every exception of a constructor turns
        into a ValueError about subtypes.
        """
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.add_argument("--model", type=System, required=True, sub_configs=True, help="The system to run.")
        parser.add_argument("--data", type=CaptionDataModule, required=True, sub_configs=True, help="The data set.")
        parser.add_argument(
            "--environment",
            type=dict[str, str],
            default={},
            help="Variables for libraries that read them when they are imported; what is set already stays.",
        )

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, or say what is wrong.

        Raises:
            CommandLineError: the parser refuses the command line or a file.
        """
        arguments = typing.cast("list[str]", args)
        try:
            self.config = parser.parse_args(arguments)
        except (ParserRefusalError, ArgumentError) as error:
            from avcap_zoo.cli.explain import explain

            raise CommandLineError(
                explain(
                    arguments[1:],
                    str(error),
                    known=self._top_level_types(arguments[0]),
                    bases={"model": System, "data": CaptionDataModule},
                )
            ) from error

    def _top_level_types(self, verb: str) -> dict[str, Any]:
        hints = typing.get_type_hints(getattr(Trainer, verb))
        return {
            "config": Any,
            "model": System,
            "data": CaptionDataModule,
            "trainer": Trainer,
            "seed_everything": bool | int,
            "environment": dict[str, str],
        } | {name: hints[name] for name in self._subcommand_method_arguments[verb]}

    @override
    def _parse_ckpt_path(self) -> None:
        """Check that the checkpoint is there, and find the one that `last` means: the newest under the run's folder.

        Lightning looks for `last` in the folder that this very run is about to make. It also reads the file here and
        lets its hyper-parameters override files and command line: a beam width given for a test would be dropped
        without a word (Lightning issue 20801).

        Raises:
            CommandLineError: it is not there.
        """
        verb = self.config["subcommand"]
        wanted = self.config[verb].get("ckpt_path")
        if wanted == "last":
            self.config[verb]["ckpt_path"] = self._newest_checkpoint(verb)
            return
        if wanted is None or str(wanted) in CHECKPOINT_WORDS or "://" in str(wanted) or Path(wanted).exists():
            return
        folder = Path(wanted).parent
        if not folder.is_dir():
            raise CommandLineError(f"ckpt_path: {wanted} does not exist; there is no folder {folder}")
        match = closest(Path(wanted).name, (file.name for file in folder.glob("*.ckpt")))
        raise CommandLineError(
            f"ckpt_path: {wanted} does not exist" + (f"; did you mean {folder / match}?" if match else "")
        )

    def _newest_checkpoint(self, verb: str) -> str | None:
        settings = self.config[verb]["trainer"]
        folders = {self._root(self.config[verb])}
        for callback in settings["callbacks"] if isinstance(settings["callbacks"], list) else []:
            folders |= {Path(folder) for folder in [(callback.get("init_args") or {}).get("dirpath")] if folder}
        found = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*.ckpt")}
        if found:
            newest = os.path.relpath(max(found, key=lambda path: found[path]))
            rank_zero_info(f"ckpt_path last: {newest}")
            return newest
        where = f"there is no checkpoint under {', '.join(map(str, sorted(folders)))}"
        if verb != "fit":
            raise CommandLineError(f"ckpt_path last: {where}; give the path of one")
        rank_zero_warn(f"ckpt_path last: {where} yet; the run begins from nothing")
        return None

    @staticmethod
    def _root(settings: Any) -> Path:
        """Folder of the runs of a system, by the settings of a verb."""
        return Path(
            settings["trainer"]["default_root_dir"] or Path("runs") / short_name(settings["model"]["class_path"])
        )

    @override
    def before_instantiate_classes(self) -> None:
        """Ask for the device before a model is built for it; let no captions pile up that are written anyway."""
        if self.config["subcommand"] == "predict" and self._get(self.config, "return_predictions") is None:
            self.config["predict"]["return_predictions"] = False
        set_environment(self._get(self.config, "environment"))
        trainer = self._get(self.config, "trainer")
        if isinstance(trainer.get("accelerator"), str):
            check_accelerator(trainer["accelerator"], trainer.get("precision"))

    @override
    def instantiate_classes(self) -> None:
        """Build everything; what a constructor raises keeps its type, however deep it stands.

        Raises:
            MissingExtraError: a logger, callback or plugin needs a package that is not installed.
            CommandLineError: one of them refuses its arguments.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            origin = constructor_error(error)
            if origin is error:
                raise
            if isinstance(origin, ImportError):
                raise MissingExtraError(_first_lines(origin)) from error
            if isinstance(origin, MisconfigurationException):
                raise CommandLineError(_first_lines(origin)) from error
            raise origin from None

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with our folder, loggers and checkpoint writer where the user named none.

        Raises:
            CommandLineError: the Trainer refuses its arguments.
        """
        settings = self._get(self.config_init, "trainer")
        root = self._root(self.config[self.subcommand])
        ours: dict[str, Any] = {"default_root_dir": root, "plugins": _with_checkpoint_io(settings["plugins"])}
        ours |= trainer_options(settings)
        if settings["precision"] == "bf16-true":
            from avcap_zoo.accelerators.precision import HalfBasePrecision

            ours |= {"precision": None, "plugins": [*ours["plugins"], HalfBasePrecision()]}
        callbacks = settings["callbacks"]
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks] if callbacks else []
        if settings["enable_progress_bar"] is not False and not settings["barebones"]:
            callbacks = _with_progress_bar(callbacks)
        if settings["enable_checkpointing"] is not False and not settings["barebones"]:
            callbacks = _with_checkpoints(callbacks)
        ours["callbacks"] = callbacks
        if settings["logger"] in {None, True} and not settings["barebones"]:
            ours["logger"] = _default_loggers(root)
        try:
            return super().instantiate_trainer(**ours | kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            raise CommandLineError(f"trainer: {_first_lines(error)}") from error

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Run, and say how to go on when the run was told to end: exit code 143, as the shell gives for SIGTERM."""
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException:
            if not self.trainer.is_global_zero:
                raise  # with code 0: for any other, Lightning would kill the first process
            saved = [
                callback.path for callback in self.trainer.checkpoint_callbacks if isinstance(callback, SaveOnSignal)
            ]
            print(_stopped(self._command, self.trainer.global_step, saved[0] if saved else None), file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM) from None
        except BaseException as error:
            _end_others(self.trainer)
            if torch.distributed.is_available() and isinstance(error, torch.distributed.DistNetworkError):
                raise DeviceError(
                    f"the processes of the run cannot find each other: {first_line(error)}; give the first one a free "
                    f"port with MASTER_PORT=29511, and the others its machine with MASTER_ADDR"
                ) from error
            if isinstance(error, OSError) and (path := _unwritten(error, self.trainer)):
                raise write_error(path, error, _ANOTHER_FOLDER) from error
            raise

    def after_fit(self) -> None:
        """Name the checkpoint that `test` wants."""
        for callback in self.trainer.checkpoint_callbacks:
            path = getattr(callback, "best_model_path", "")
            if path:
                rank_zero_info(f"best checkpoint: {os.path.relpath(path)}")


class BuildOnly(CaptionCLI):
    """Parses and builds, and runs nothing: for commands that do something else with a configuration of `fit`."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Leave model, data module and Trainer as they are."""


def run(prog: str, arguments: Sequence[str], cli: type[CaptionCLI] = CaptionCLI) -> CaptionCLI:
    """Parse, build and run.

    Args:
        prog: "lightning" or "avcap".
        arguments: the verb and what follows it.
        cli: `BuildOnly` runs nothing.

    Raises:
        CommandLineError: the command or a file cannot be used as given.
        AvcapError: of the run.
    """
    # Lightning 2.6 asks torch >= 2.12 in a way that torch calls deprecated; users can do nothing about it.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    set_up_parsing()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    try:
        return cli(prog, arguments)
    except MisconfigurationException as error:
        raise ConfigError(_first_lines(error)) from error


def constructor_error(error: BaseException) -> BaseException:
    """What a constructor raised, out of jsonargparse's frames around it."""
    frames = ("Does not validate against any of the Union subtypes", "Problem with given class_path")
    while error.__cause__ is not None and str(error).startswith(frames):
        error = error.__cause__
    return error


def set_up_parsing() -> None:
    """Let jsonargparse read `PARSER_MODE`, and build only classes that the type of a setting asks for."""
    set_parsing_settings(instantiate_subclass_spec_in_any=False)
    set_loader(PARSER_MODE, load_yaml, exceptions=(yaml.YAMLError,))


def load_yaml(text: str) -> Any:
    """What `PARSER_MODE` reads from a text: YAML, short names replaced."""
    return expand_config(get_loader("yaml")(text))


def _end_others(trainer: Trainer) -> None:
    """End the processes that this one, which fails, has begun: some would wait for it for half an hour."""
    begun = [p for p in getattr(trainer.strategy.launcher, "procs", []) if isinstance(p, subprocess.Popen)]
    for process in begun:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in begun:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _unwritten(error: OSError, trainer: Trainer) -> Path | None:
    """Path that a run could not write for want of space, or of leave under its folder; None if it fails otherwise."""
    root = Path(trainer.default_root_dir).absolute()
    path = Path(error.filename).absolute() if isinstance(error.filename, str) else None
    if error.errno in FULL:
        return path or root
    under_root = path is not None and (path.is_relative_to(root) or root.is_relative_to(path))
    return path if error.errno in NO_LEAVE and under_root else None


def _stopped(command: Sequence[str], step: int, checkpoint: Path | None) -> str:
    """What is said when a run was told to end."""
    name = f"{command[0]} {command[1]}: stopped by SIGTERM"
    if command[1] == "predict":
        return f"{name}; what is captioned is kept, and the same command goes on"
    if checkpoint is None:
        return f"{name} before there was anything to save"
    words = list(command)
    while given := next((word for word in words if word.split("=")[0] == "--ckpt_path"), None):
        at = words.index(given)
        del words[at : at + (1 if "=" in given else 2)]
    return f"{name} after step {step}; go on with: {shlex.join([*words, '--ckpt_path', os.path.relpath(checkpoint)])}"


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    """Drop the tips to install litlogger and litmodels: their lightning-sdk would overwrite our `lightning` script."""
    message = record.getMessage()
    return "litlogger" not in message and "litmodels" not in message


def _with_progress_bar(callbacks: list[Any]) -> list[Any]:
    """The callbacks, and a bar that shows small numbers such as learning rates, unless there is a bar already."""
    if any(isinstance(callback, ProgressBar) for callback in callbacks):
        return callbacks
    return [*callbacks, RichProgressBar(theme=RichProgressBarTheme(metrics_format=".3g"))]


def _with_checkpoints(callbacks: list[Any]) -> list[Any]:
    """The callbacks, Lightning's own checkpoints if there are no others, and those on signals."""
    others = [] if any(isinstance(callback, Checkpoint) for callback in callbacks) else [ModelCheckpoint()]
    return [*callbacks, *others, SaveOnSignal()]


def _with_checkpoint_io(plugins: Any) -> list[Any]:
    from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO

    given = [] if plugins is None else list(plugins) if isinstance(plugins, list) else [plugins]
    return given if any(isinstance(plugin, CheckpointIO) for plugin in given) else [*given, AtomicCheckpointIO()]


def _default_loggers(root: Path | str) -> list[Logger]:
    """CSV and TensorBoard, both in `root/version_N`: counted once, or each would take a folder of its own."""
    csv = CSVLogger(root, name="")
    return [csv, TensorBoardLogger(root, name="", version=csv.version)]


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n  ".join(lines[:3])
