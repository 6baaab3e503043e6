"""`avcap convert`: an official checkpoint into one that `lightning test` takes, or back. The same for every system."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avcap_zoo.cli.short_names import SYSTEMS, dotted_path
from avcap_zoo.cli.usage import CommandLineError, VerbParser, suggestion

if TYPE_CHECKING:
    from avcap_zoo.systems.base import System
    from avcap_zoo.weights.conversion import Conversion

NOTE = "official"
"""Key of a checkpoint's notes: what its official file held beside our tensors, for the way back."""


def main(arguments: Sequence[str]) -> int:
    """Convert one file, and say what became of its tensors.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: an option or a configuration cannot be used as given.
        WeightsError: the file does not fit the configured model; all names at once.
    """
    parser = _parser()
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    if options.system.lower() not in SYSTEMS:
        raise CommandLineError(f"no system {options.system!r}{suggestion(options.system, SYSTEMS)}")
    name = options.system.lower()
    configs = options.config or [f"configs/{name}.yaml"]
    if Path(options.out).resolve() == Path(options.file).resolve():
        raise CommandLineError(f"--out {options.out} is the file that is read, wanted another name")
    if not options.file.is_file():
        raise CommandLineError(f"{options.file} does not exist")
    section = _model_section(configs, name)
    conversion = _conversion(name)
    system = _build(section)
    convert = write_official if options.reverse else write_ours
    print(convert(system, conversion, options.file, options.out))
    if not options.reverse:
        files = " ".join(f"-c {file}" for file in configs)
        print(f"try it: lightning test {files} --ckpt_path {options.out}")
    return 0


def write_ours(system: System, conversion: Conversion, file: Path, out: Path) -> str:
    """Official file to a checkpoint of ours.

    Args:
        system: built, with its base loaded.
        conversion: of its keymap.
        file: official weights: trained tensors and buffers, or all of them.
        out: the checkpoint.

    Returns:
        What was done, in one line.

    Raises:
        WeightsError: the file cannot be read or does not fit.
    """
    from importlib.metadata import version

    from avcap_zoo.systems.base import CHECKPOINT_KEY
    from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO
    from avcap_zoo.weights.load import load_tensors

    official = load_tensors(file)
    held = {name.removeprefix("model.") for name in system.checkpoint_names()}
    taken, repeated = conversion.take(official, system.model.state_dict(), held, str(file))
    placed = conversion.give({**taken, **repeated})
    dropped = {name: tensor for name, tensor in official.items() if name not in placed}
    checkpoint: dict[str, Any] = {
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        "global_step": 0,
        "state_dict": {f"model.{name}": tensor for name, tensor in taken.items()},
    }
    system.on_save_checkpoint(checkpoint)
    checkpoint[CHECKPOINT_KEY][NOTE] = {"dropped": dropped, "repeated": sorted(repeated)}
    AtomicCheckpointIO().save_checkpoint(checkpoint, out)
    return (
        f"{out}: {len(taken)} tensors of {file}; {len(repeated)} more are those of the configured base, "
        f"{len(dropped)} are kept aside for --reverse"
    )


def write_official(system: System, conversion: Conversion, file: Path, out: Path) -> str:
    """A checkpoint of ours, converted or trained here, to an official file; arguments and result as in `write_ours`.

    `.safetensors` gives a flat file, any other suffix a torch file with the tensors under "model".
    """
    import torch
    from safetensors.torch import save_file

    from avcap_zoo.systems.base import CHECKPOINT_KEY
    from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO

    checkpoint = AtomicCheckpointIO().load_checkpoint(file)
    system.on_load_checkpoint(checkpoint)
    note = checkpoint[CHECKPOINT_KEY].get(NOTE, {"dropped": {}, "repeated": []})
    ours = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
    state = system.model.state_dict()
    official = {**conversion.give({**ours, **{name: state[name] for name in note["repeated"]}}), **note["dropped"]}
    left_out = [name for name in ours if conversion.ours_alone.search(name)]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        save_file({name: tensor.clone().contiguous() for name, tensor in official.items()}, out)
    else:
        torch.save({"model": official}, out)
    return f"{out}: {len(official)} tensors under official names; {len(left_out)} of {file} have none and are left out"


def _model_section(configs: Sequence[str], name: str) -> dict[str, Any]:
    """The `model` section of the configuration files, laid over each other.

    Raises:
        CommandLineError: a file is missing or broken, or the section is that of another system.
    """
    from avcap_zoo.cli.config_files import merge, read_config

    merged = read_config(configs[0])
    for layer, file in enumerate(configs[1:], start=1):
        merged = merge(merged, read_config(file, layer))
    content = merged.plain()
    section = content.get("model") if isinstance(content, dict) else None
    if isinstance(section, str):
        section = {"class_path": section}
    found = dotted_path("model", str(section.get("class_path"))) if isinstance(section, dict) else None
    if not isinstance(section, dict) or found != SYSTEMS[name]:
        raise CommandLineError(f"{' '.join(configs)}: model is {found}, wanted {SYSTEMS[name]} to convert {name}")
    return {**section, "class_path": found}


def _build(section: dict[str, Any]) -> System:
    """The system of a `model` section, with its weights."""
    from jsonargparse import ArgumentParser

    from avcap_zoo.systems.base import System

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=System, required=True)
    try:
        built: System = parser.instantiate(parser.parse_object({"model": section})).model
    except ArgumentError as error:
        raise CommandLineError(f"model: {' '.join(str(error).split())}") from error
    built.configure_model()
    return built


def _conversion(name: str) -> Conversion:
    """What the keymap of a system offers.

    Raises:
        CommandLineError: nothing.
    """
    package = SYSTEMS[name].rpartition(".")[0]
    found = import_module(f"{package}.keymap") if find_spec(f"{package}.keymap") else None
    conversion: Conversion | None = getattr(found, "CONVERSION", None)
    if conversion is None:
        raise CommandLineError(f"{name} has no official checkpoints to convert")
    return conversion


def _parser() -> VerbParser:
    parser = VerbParser(
        prog="avcap convert",
        description="Turn an official checkpoint into one that fits a configuration here, or back. Every name and "
        "shape must fit; what does not is listed at once. The backbones that the configuration names are loaded.",
        allow_abbrev=False,
    )
    parser.add_argument("system", metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("file", type=Path, metavar="FILE", help="official weights, or with --reverse our checkpoint")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "-c",
        "--config",
        action="append",
        metavar="FILE",
        help="configuration that the checkpoint is for; may be repeated (configs/SYSTEM.yaml)",
    )
    parser.add_argument("--reverse", action="store_true", help="from ours to official names")
    return parser
