"""`avcap prepare DATASET`: cut, resample and list downloaded media, in the layout that its data module reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from avcap_zoo.cli.usage import CommandLineError, VerbParser

DATA_SETS = ("audiocaps", "vggss", "clotho", "coco")


def main(arguments: Sequence[str]) -> int:
    """Prepare, and say how much of the data set is there.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: an option is unknown, missing or out of range.
        DataError: annotations cannot be read, or the folder cannot be written.
    """
    parser = _parser()
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    for name in ("sample_rate", "num_frames", "size"):
        if getattr(options, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise CommandLineError(f"argument {option}: found {getattr(options, name)}, wanted at least 1")
    for name in ("media", "annotations"):
        folder = getattr(options, name)
        if folder is not None and not folder.is_dir():
            raise CommandLineError(f"argument --{name}: {folder} is no folder")
    # Only here: --help and wrong options answer without numpy and the decoders.
    from avcap_zoo.data_modules.preparation import PreparationSettings, prepare
    from avcap_zoo.data_modules.preparation_plans import PLANNERS

    settings = PreparationSettings(
        sample_rate_hz=options.sample_rate,
        num_frames=options.num_frames,
        image_size_px=options.size,
        modalities=tuple(options.modalities),
    )
    plan = PLANNERS[options.data_set](options.annotations or options.media, options.media, settings)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    workers = min(cores, len(plan.tasks) // 8) if options.workers is None else options.workers
    made, official = prepare(plan, options.out, settings, num_workers=workers)
    print(f"{made} of {official} clips ({100 * made / max(1, official):.1f} %) are in {options.out}")
    if made < official:
        print(f"the others and why: {options.out / 'missing.csv'}")
    return 0


def _parser() -> VerbParser:
    parser = VerbParser(
        prog="avcap prepare",
        description="Bring downloaded media into the layout that a data module reads: cut to the clips, sound as mono "
        "wav, videos as frames. Reads the official annotations, downloads nothing, and may be started again after a "
        "kill. A video named by its YouTube id alone is taken for the whole, one that names the start for the clip.",
        allow_abbrev=False,
    )
    parser.add_argument("data_set", choices=DATA_SETS, help="whose annotations and names to expect")
    parser.add_argument(
        "--media", "--videos", type=Path, required=True, metavar="DIR", help="downloaded videos, sounds or pictures"
    )
    parser.add_argument("--annotations", type=Path, metavar="DIR", help="official annotation files (the media folder)")
    parser.add_argument("--out", type=Path, required=True, metavar="ROOT", help="folder to make")
    parser.add_argument("--sample-rate", type=int, default=16_000, metavar="HZ", help="of sounds (%(default)s)")
    parser.add_argument("--num-frames", type=int, default=20, metavar="K", help="per video (%(default)s)")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of square frames (%(default)s)")
    parser.add_argument(
        "--modalities", nargs="+", choices=("audio", "visual"), default=("audio", "visual"), help="(both)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (all free cores)")
    return parser
