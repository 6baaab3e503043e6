"""`avcap cache visual|audio -c CONFIG`: what a frozen encoder makes of the clips, computed once and kept on disk."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avcap_zoo.cli.main import check_arguments
from avcap_zoo.cli.usage import CommandLineError, VerbParser
from avcap_zoo.errors import ConfigError

if TYPE_CHECKING:
    from avcap_zoo.systems.base import System

PROG = "avcap cache"
SPLITS = ("train", "val", "test")


def main(arguments: Sequence[str]) -> int:
    """Fill a cache, and say how to use it.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: an option or a configuration cannot be used as given.
        AvcapError: of the data and of the encoder.
    """
    options, rest = _parser().parse_known_args(list(arguments))
    if options.batch_size < 1:
        raise CommandLineError(f"argument --batch-size: found {options.batch_size}, wanted at least 1")
    if not rest:
        raise CommandLineError(f"no configuration given, wanted: {PROG} {options.modality} -c configs/lavcap.yaml")
    check_arguments(PROG, [options.modality, *rest])
    from avcap_zoo.cli.parser import BuildOnly, run

    built = run(PROG, ["fit", *rest], BuildOnly)
    system, data, trainer = built.model, built.datamodule, built.trainer
    if options.modality not in data.modalities:
        raise ConfigError(
            f"data.init_args.modalities is {list(data.modalities)}: no {options.modality} is decoded, nor used"
        )
    ckpt_path = built.config["fit"].get("ckpt_path")
    if ckpt_path is not None:
        _restore(system, Path(ckpt_path))
    data.feature_caches.clear()  # the configuration may name the cache that is to be made
    data.prepare_data()
    encoder = system.frozen_encoder(options.modality)
    device = trainer.strategy.root_device
    encoder.module.to(device).eval()
    folder = options.out or data.root / "feature_cache" / f"{options.modality}-{encoder.key}"
    counts = data.cache_features(
        encoder,
        folder,
        tuple(options.splits),
        device=device,
        dtype=options.dtype,
        shard=options.shard,
        batch_size=options.batch_size,
    )
    done = ", ".join(f"{split} {stored} of {share}" for split, (stored, share) in counts.items())
    print(f"{options.modality} features of the encoder {encoder.key}: {done} clips\n")
    print(f"  --data.init_args.{options.modality}_cache {folder}")
    return 0


def _restore(system: System, path: Path) -> None:
    """Build a system and give it the weights of a checkpoint."""
    from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO

    content: dict[str, Any] = AtomicCheckpointIO().load_checkpoint(path, map_location=lambda storage, _: storage)
    system.configure_model()
    system.on_load_checkpoint(content)
    system.load_state_dict(content["state_dict"], strict=False)


def _parser() -> VerbParser:
    parser = VerbParser(
        prog=PROG,
        description="Compute what the frozen encoder of a configuration makes of every clip, and keep it. Takes the "
        "options of `fit` beside its own; may be started again after a kill, and in several processes with --shard.",
        allow_abbrev=False,
    )
    parser.add_argument("modality", choices=("visual", "audio"), help="which encoder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (ROOT/feature_cache/MODALITY-KEY)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of the stored numbers (%(default)s)",
    )
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, metavar="SPLIT", help="(all three)")
    parser.add_argument("--shard", type=_share, default=(0, 1), metavar="I/N", help="this process's share, from 0/N")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="clips at a time (%(default)s)")
    return parser


def _share(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not slash or not index.isdigit() or not count.isdigit() or int(index) >= int(count):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted I/N with I from 0 to N - 1, such as 0/2")
    return int(index), int(count)
