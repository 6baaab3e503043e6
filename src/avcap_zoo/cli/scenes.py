"""`avcap scenes`: write the embedded data set to a folder, in the published formats."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from avcap_zoo.cli.usage import CommandLineError, VerbParser
from avcap_zoo.errors import ConfigError

FORMATS = ("audiocaps", "clotho", "vggss", "coco")
VALIDATION_SHARE = 0.05
TEST_SHARE = 0.15


def main(arguments: Sequence[str]) -> int:
    """Generate, and say what was written.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: an option is unknown, missing or out of range.
        AvcapError: of the generator.
    """
    parser = _parser()
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    counts = split_counts(options.clips)
    # Only here: --help and wrong options answer without numpy and the encoders.
    from avcap_zoo.data_modules.scenes.export import generate_scenes

    formats = FORMATS if options.format == "all" else (options.format,)
    try:
        generate_scenes(
            options.out,
            counts=counts,
            formats=formats,
            seed=options.seed,
            image_size_px=options.image_size,
            num_workers=options.workers,
            progress=True,
        )
    except ConfigError as error:
        raise CommandLineError(str(error)) from error
    parts = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{options.clips} clips ({parts}), seed {options.seed}:", *(str(options.out / name) for name in formats))
    return 0


def split_counts(num_clips: int) -> dict[str, int]:
    """Divide clips over train, val and test, about 80 : 5 : 15, with at least one each.

    Args:
        num_clips: at least 3.
    """
    num_val = max(1, round(num_clips * VALIDATION_SHARE))
    num_test = max(1, round(num_clips * TEST_SHARE))
    return {"train": num_clips - num_val - num_test, "val": num_val, "test": num_test}


def _parser() -> VerbParser:
    parser = VerbParser(
        prog="avcap scenes",
        description="Generate small scenes with picture, sound, captions, events and boxes. The same seed gives the "
        "same files; nothing is downloaded.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--clips", type=_at_least(3), required=True, metavar="N", help="clips over all three splits")
    parser.add_argument("--format", choices=(*FORMATS, "all"), default="audiocaps", help="files to write (%(default)s)")
    parser.add_argument("--seed", type=_at_least(0), default=0, metavar="S", help="default %(default)s")
    parser.add_argument("--image-size", type=_at_least(1), default=64, metavar="PX", help="side (%(default)s)")
    parser.add_argument("--workers", type=_at_least(0), metavar="N", help="processes (all free cores)")
    return parser


def _at_least(lowest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, wanted an integer") from None
        if number < lowest:
            raise argparse.ArgumentTypeError(f"found {number}, wanted at least {lowest}")
        return number

    return convert
