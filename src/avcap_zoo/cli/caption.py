"""`avcap caption`: caption files with a trained system; docs/caption.md shows its use.

Exit codes: 0 every clip has its caption, 1 some could not be read (they are named, the others are captioned; the same
command tries them again; under torchrun and mpirun, which would end the other processes, 0), 2 the command cannot be
used as given.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from avcap_zoo.accelerators.launchers import ENDS_ALL
from avcap_zoo.cli.config_files import read_config
from avcap_zoo.cli.usage import CommandLineError, VerbParser
from avcap_zoo.errors import ConfigError

if TYPE_CHECKING:
    from avcap_zoo.batch import SkippedClip
    from avcap_zoo.serving.caption import Captioner
    from avcap_zoo.serving.inputs import Inputs
    from avcap_zoo.serving.shards import Shard

DEFAULT_WINDOW_S = 10.0
"""Of subtitles, where nothing else is said."""


def main(arguments: Sequence[str]) -> int:
    """Caption, and say what could not be.

    Args:
        arguments: what follows the verb.

    Returns:
        0, or 1 if some clips could not be captioned.

    Raises:
        CommandLineError: an option is wrong, or nothing can be captioned.
        AvcapError: checkpoint, device or output cannot be used.
    """
    options = parse_options(arguments)
    # Only now: torch, and the parser that knows every system.
    from avcap_zoo.serving.inputs import find_inputs
    from avcap_zoo.serving.outputs import check_suffix

    if options.out is not None and not options.out.suffix:
        return _caption_shards(options)
    if options.out is not None:
        try:
            check_suffix(options.out)
        except ConfigError as error:
            raise CommandLineError(str(error)) from error
    stdin = sys.stdin.read().splitlines() if "-" in options.inputs else []
    found = find_inputs(options.inputs, stdin)
    refuse_nothing(found)
    captioner = _load(options)
    inputs = captioner.fit(found, _windows_s(options))
    refuse_nothing(inputs)
    return _caption(options, captioner, inputs)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line, and refuse what can be refused without torch.

    Raises:
        CommandLineError: an option is unknown or out of range, or a `-c` file is missing or broken.
    """
    parser = _parser()
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    for config in options.configs:
        read_config(config)
    if options.checkpoint is None and not options.configs:
        raise CommandLineError("no system given, wanted --checkpoint FILE (or -c FILE for one that needs no training)")
    if options.window_s is None and options.out is not None and options.out.suffix.lower() == ".srt":
        options.window_s = DEFAULT_WINDOW_S
    if options.hop_s is not None and options.window_s is None:
        raise CommandLineError("--hop_s needs --window_s")
    shared = options.out is not None and not options.out.suffix
    if shared and (options.explain is not None or "-" in options.inputs):
        stray = "--explain" if options.explain is not None else "-"
        raise CommandLineError(f"{stray} is for one process and one file; --out a .jsonl instead of {options.out}")
    if shared and any(Path(word).resolve() == options.out.resolve() for word in options.inputs):
        raise CommandLineError(
            f"--out {options.out} holds the shards, and its captions would be taken for lists: choose another folder"
        )
    if not shared and (options.rank is not None or options.world is not None):
        raise CommandLineError("--rank and --world are for many clips: tar shards or lists in, and a folder for --out")
    return options


def refuse_nothing(inputs: Inputs) -> None:
    """Stop where there is nothing to caption.

    Raises:
        CommandLineError: with the first three problems.
    """
    if inputs.clips:
        return
    reasons = [f"{problem.clip_id}: {problem.reason}" for problem in inputs.problems[:3]]
    more = f"\n  and {len(inputs.problems) - 3} more" if len(inputs.problems) > 3 else ""
    raise CommandLineError("nothing to caption: " + ("\n  ".join(reasons) or "no input was named") + more)


def _load(options: argparse.Namespace) -> Captioner:
    from avcap_zoo.serving.caption import Captioner

    captioner = Captioner.load(
        options.checkpoint,
        options.configs,
        device=options.device,
        num_frames=options.num_frames,
        image_size_px=options.image_size_px,
    )
    if captioner.loaded.assumed:
        _say(
            f"neither checkpoint nor -c name {', '.join(captioner.loaded.assumed)}: taken from the data modules' "
            f"defaults; --num_frames and --image_size_px set them"
        )
    return captioner


def _windows_s(options: argparse.Namespace) -> tuple[float, float] | None:
    return None if options.window_s is None else (options.window_s, options.hop_s or options.window_s)


def _caption_shards(options: argparse.Namespace) -> int:
    """Caption this process's share of tar shards and lists into a folder; 1 if something of it could not be."""
    from avcap_zoo.serving.shards import caption_shards, find_shards, keep_settings, place_of, use_device_of

    try:
        place = place_of(os.environ, options.rank, options.world)
    except ConfigError as error:
        raise CommandLineError(str(error)) from error
    use_device_of(place)
    me = f"process {place.rank} of {place.world}: "
    cut = {f"--{name}": getattr(options, name) for name in ("rows_per_shard", "window_s", "hop_s")}
    keep_settings(options.out, place, cut)
    captioner = _load(options)
    names: list[str] = []
    failures = captions = 0

    def noted(shards: Iterator[Shard]) -> Iterator[Shard]:
        for shard in shards:
            names.append(shard.name)
            yield shard

    for report in caption_shards(
        captioner,
        noted(find_shards(options.inputs, options.rows_per_shard)),
        options.out,
        place,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        windows_s=_windows_s(options),
    ):
        captions += report.captions
        failures += len(report.failures)
        for problem in report.failures:
            _say(_told(problem))
        share = report.model_s / max(report.total_s, 1e-9)
        _say(
            f"{me}{report.name}: {report.captions} captions in {report.total_s:.1f} s, {share:.0%} of it in the model"
            + (f"; {len(report.failures)} failed, named above" if report.failures else "")
        )
    whole = sum((options.out / f"{name}.jsonl").exists() for name in names)
    _say(f"{me}{captions} captions, {failures} failures; {whole} of {len(names)} shards are in {options.out}")
    spares_others = place.world > 1 and any(name in os.environ for name in ENDS_ALL)
    return 1 if failures and not spares_others else 0


def _caption(options: argparse.Namespace, captioner: Captioner, inputs: Inputs) -> int:
    from tqdm import tqdm

    from avcap_zoo.serving.gallery import Gallery
    from avcap_zoo.serving.outputs import caption_row, open_captions

    failures: list[SkippedClip] = list(inputs.problems)
    for problem in failures:
        _say(_told(problem))
    if options.out is not None and options.out.suffix.lower() == ".srt":
        _check_subtitles(inputs)
    with ExitStack() as stack:
        file = None
        if options.out is not None:
            file = open_captions(options.out, captioner.loaded.made_by, captioner.provenance())
            stack.enter_context(file)
        gallery = Gallery(options.explain) if options.explain is not None else None
        done = file.done if file is not None else set()
        records = [record for record in inputs.clips if record.clip_id not in done]
        if len(records) < len(inputs.clips):
            _say(f"{len(inputs.clips) - len(records)} of {len(inputs.clips)} captions are in {options.out} already")
        windows_s = {record.clip_id: record.window_s for record in records}
        bar = stack.enter_context(
            tqdm(
                total=len(inputs.clips),
                initial=len(inputs.clips) - len(records),
                desc="captions",
                unit="clip",
                file=sys.stderr,
                disable=None,
            )
        )
        batches = captioner.stream(
            records,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            explain=gallery is not None,
        )
        for captioned, skipped in batches:
            rows = [caption_row(clip.clip_id, clip.caption, windows_s[clip.clip_id]) for clip in captioned]
            if gallery is not None:
                gallery.add(captioned)
            if file is not None:
                file.write(rows)
            else:
                for row in rows:
                    print(f"{row['id']}\t{row['caption']}", flush=True)
            for problem in skipped:
                tqdm.write(_told(problem), file=sys.stderr)
            failures += skipped
            bar.update(len(captioned) + len(skipped))
        if file is not None and not failures:
            file.finish()
    _report(options, len(inputs.clips) + len(inputs.problems), failures)
    return 1 if failures else 0


def _check_subtitles(inputs: Inputs) -> None:
    files = {record.audio or record.visual for record in inputs.clips}
    if len(files) > 1:
        raise CommandLineError(f"an .srt holds the captions of one file, found {len(files)}; --out a .jsonl for them")
    if any(record.window_s is None for record in inputs.clips):
        raise CommandLineError("an .srt needs times, and a picture has none; --out a .jsonl")


def _report(options: argparse.Namespace, total: int, failures: Sequence[SkippedClip]) -> None:
    where = [str(path) for path in (options.out, options.explain and options.explain / "index.html") if path]
    said = f"{total - len(failures)} of {total} captioned" + (f": {', '.join(where)}" if where else "")
    if failures:
        said += f"; {len(failures)} failed, named above"
    _say(said)


def _told(problem: SkippedClip) -> str:
    return f"  {problem.clip_id}: {problem.reason}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _parser() -> VerbParser:
    parser = VerbParser(
        prog="avcap caption",
        description="Caption files with a trained system. Its settings come from the checkpoint. Started again with "
        "the same --out, it goes on where it stopped.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="sound, video or picture; folder; pattern; list (.csv .jsonl .txt); or - for a list on standard input",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="of a run; not needed by untrained systems")
    parser.add_argument(
        "-c", "--config", dest="configs", action="append", default=[], metavar="FILE", help="settings laid over it"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="captions as .jsonl, .csv or .srt (printed without)")
    parser.add_argument("--explain", type=Path, metavar="DIR", help="a picture or page per clip, and index.html")
    parser.add_argument("--batch_size", type=_integer, default=8, metavar="N", help="clips at once (%(default)s)")
    parser.add_argument("--num_workers", type=_at_least_zero, default=0, metavar="N", help="decoding processes (0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "hpu"), default="auto", help="default %(default)s")
    parser.add_argument(
        "--window_s", type=_seconds, metavar="S", help="cut files into windows of S seconds (an .srt: 10)"
    )
    parser.add_argument("--hop_s", type=_seconds, metavar="S", help="from window to window (window_s)")
    parser.add_argument("--num_frames", type=_integer, metavar="N", help="frames per clip (as in training)")
    parser.add_argument("--image_size_px", type=_integer, metavar="PX", help="side of the frames (as in training)")
    shards = parser.add_argument_group("many clips: INPUTs are tar shards and lists, --out is a folder")
    shards.add_argument("--rank", type=_at_least_zero, metavar="R", help="which process this is (as the launcher says)")
    shards.add_argument("--world", type=_integer, metavar="W", help="number of processes (as the launcher says)")
    shards.add_argument("--rows_per_shard", type=_integer, default=10_000, metavar="N", help="of lists (%(default)s)")
    return parser


def _number(convert: Callable[[str], float], least: float, words: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"found {text!r}, wanted {words}")
        return value

    return read


_integer = _number(int, 1, "a number of at least 1")
_at_least_zero = _number(int, 0, "a number of at least 0")
_seconds = _number(float, 0.5, "seconds, at least 0.5")
