"""`avcap demo`: scenes, training, captions of unseen clips, and a report that opens from disk.

Two models learn side by side, one with pictures and one without, each in a process of one thread. All numbers shown
are read from the files that their runs wrote.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from avcap_zoo.cli.usage import CommandLineError, VerbParser
from avcap_zoo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from avcap_zoo.cli.side_by_side import Run
    from avcap_zoo.tables.run_results import Annotations, RunResult

BASE_CONFIG = "tiny/lavcap.yaml"
AUDIO_ONLY_CONFIG = "tiny/audio_only.yaml"
TITLES = {"audio_visual": "Sound and pictures", "audio_only": "Sound alone"}
"""The two runs: name of the folder, and name for readers."""

DEFAULT_CLIPS = (2000, 60, 300)
DEFAULT_STEPS = 1050
REQUIRED_SHARE = 0.6
"""Share of the unseen clips that must get exactly the right events, at the default size."""

_SHOWN_OF_EACH = 4
_NUM_VALIDATIONS = 3
_PREPARATION = "PrepareBackbones"


@dataclass(frozen=True)
class DemoOptions:
    """What the command line asks for.

    Attributes:
        out: folder for everything.
        clips: training, validation and test clips.
        steps: training steps of each model.
        seed: of the training; the scenes stay the same.
        workers: processes that make the scenes; None = as many as there are free cores.
        cache: where the prepared backbones are kept.
    """

    out: Path
    clips: tuple[int, int, int]
    steps: int
    seed: int
    workers: int | None
    cache: Path

    @property
    def is_full_size(self) -> bool:
        """Whether the demo is large enough to be held to `REQUIRED_SHARE`."""
        return self.clips == DEFAULT_CLIPS and self.steps == DEFAULT_STEPS

    @property
    def scenes(self) -> Path:
        """Where the clips are."""
        return self.out / "scenes"


def main(arguments: Sequence[str]) -> int:
    """Run the demo.

    Args:
        arguments: what follows the verb.

    Returns:
        0, or 1 if a full-size demo names too few clips right.

    Raises:
        CommandLineError: an option is unknown or out of range.
        ConfigError: the configuration files are not found.
        AvcapError: of the generator and of the runs.
    """
    options = parse_options(arguments)
    started = time.monotonic()
    configs = find_configs(Path.cwd(), Path(__file__).resolve().parents[3])
    # Only here: --help and wrong options answer without numpy and the encoders.
    from rich.console import Console

    from avcap_zoo.cli.side_by_side import run_side_by_side
    from avcap_zoo.data_modules.scenes.export import generate_scenes
    from avcap_zoo.tables.run_results import (
        first_right_and_wrong,
        read_annotations,
        read_run,
        same_clips,
        spoken_duration,
    )

    console = Console()
    reused = what_is_reused(options)
    generate_scenes(
        options.scenes,
        counts=dict(zip(("train", "val", "test"), options.clips, strict=True)),
        seed=0,
        num_workers=options.workers,
    )
    runs = {name: plan_run(name, options, configs) for name in TITLES}
    _say(console, f"Two models learn from {options.clips[0]:,} scenes, {options.steps:,} steps each:")
    run_side_by_side(list(runs.values()), console)
    annotations = read_annotations(options.scenes)
    results = {name: read_run(title, options.out / "runs" / name, annotations) for name, title in TITLES.items()}
    if not same_clips(list(results.values())):
        raise DataError(f"the runs in {options.out / 'runs'} captioned different clips; see their log.txt")
    audio_visual = results["audio_visual"]
    count = len(audio_visual.clips)
    _say(console, f"\n{count} unseen clips. Right: exactly the events of the clip, in the right order and relation.")
    console.print(score_table(list(results.values())))
    show_captions(console, [clip.clip_id for clip in first_right_and_wrong(audio_visual, _SHOWN_OF_EACH)], results)
    report = options.out / "report.html"
    commands = [str(command) for run in runs.values() for command in run.commands]
    _write_report(report, options, annotations, results, commands, configs, time.monotonic() - started, reused)
    _say(console, f"\nReport: {report}  (open it in any browser)")
    _say(console, f"Total time: {spoken_duration(time.monotonic() - started)}")
    return verdict(console, options, audio_visual.events_share)


def parse_options(arguments: Sequence[str]) -> DemoOptions:
    """Read the command line.

    Raises:
        CommandLineError: an option is unknown or out of range.
    """
    parser = VerbParser(
        prog="avcap demo",
        description="Make small scenes with sound and pictures, train LAVCap on them with and without the pictures, "
        "caption clips that it never saw, and write a report. Nothing is downloaded. A second demo in the same folder "
        "takes scenes and prepared backbones from the first and trains anew.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder (%(default)s)")
    parser.add_argument(
        "--clips",
        type=int,
        nargs=3,
        default=DEFAULT_CLIPS,
        metavar=("TRAIN", "VAL", "TEST"),
        help="clips to make ({} {} {})".format(*DEFAULT_CLIPS),
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=DEFAULT_STEPS,
        metavar="N",
        help="training steps of each model (%(default)s); fewer also shorten the preparation of the backbones",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the training (%(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that make the scenes (all free cores)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where prepared backbones are kept (OUT/cache)")
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    for name, value, lowest in (
        ("--clips", min(options.clips), 1),
        ("--steps", options.steps, 1),
        ("--seed", options.seed, 0),
        ("--workers", options.workers or 0, 0),
    ):
        if value < lowest:
            raise CommandLineError(f"argument {name}: found {value}, wanted at least {lowest}")
    return DemoOptions(
        out=options.out,
        clips=tuple(options.clips),
        steps=options.steps,
        seed=options.seed,
        workers=options.workers,
        cache=options.cache or options.out / "cache",
    )


def find_configs(current: Path, checkout: Path) -> Path:
    """The folder `configs` beside the current folder, or at the root of the checkout that this file belongs to.

    Args:
        current: the current folder.
        checkout: where the root would be.

    Raises:
        ConfigError: neither has what the demo needs.
    """
    for above in (current, checkout):
        folder = above / "configs"
        if all((folder / name).is_file() for name in (BASE_CONFIG, AUDIO_ONLY_CONFIG)):
            return Path("configs") if above == current else folder
    raise ConfigError(
        f"configs/{BASE_CONFIG} and configs/{AUDIO_ONLY_CONFIG} are neither in {current} nor in {checkout}: "
        f"run avcap demo in a checkout of avcap-zoo"
    )


def plan_run(name: str, options: DemoOptions, configs: Path) -> Run:
    """Clear the folder of a run, write its settings, and say what to run.

    Args:
        name: one of `TITLES`.
        options: of the command line.
        configs: folder of the configuration files.
    """
    from avcap_zoo.cli.side_by_side import Command, Run
    from avcap_zoo.tables.run_results import FIT_FOLDER, TEST_FOLDER

    folder = options.out / "runs" / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    settings = folder / "settings.yaml"
    base = yaml.safe_load((configs / BASE_CONFIG).read_text(encoding="utf-8"))
    text = yaml.safe_dump(overlay(base, options, folder), sort_keys=False)
    settings.write_text(f"# What avcap demo lays over configs/{BASE_CONFIG}.\n{text}", encoding="utf-8")
    files = [configs / BASE_CONFIG, *([configs / AUDIO_ONLY_CONFIG] if name == "audio_only" else []), settings]
    layers = [word for file in files for word in ("-c", str(file))]
    best = folder / FIT_FOLDER / "checkpoints" / "best.ckpt"
    return Run(
        title=TITLES[name],
        commands=(
            Command("starting", ["fit", *layers], options.steps, folder / FIT_FOLDER / "metrics.csv"),
            Command(
                "captioning unseen clips",
                ["test", *layers, "--trainer.logger.version", TEST_FOLDER, "--ckpt_path", str(best)],
            ),
        ),
        log=folder / "log.txt",
    )


def overlay(base: Mapping[str, Any], options: DemoOptions, folder: Path) -> dict[str, Any]:
    """Settings that lie over the base file: sizes, folders, and one logger of known place.

    Args:
        base: content of the base file; its callbacks are taken over, the preparation with our cache.
        options: of the command line.
        folder: of the run.

    Raises:
        ConfigError: the base file names no preparation.
    """
    share = min(1.0, options.steps / DEFAULT_STEPS)
    callbacks = []
    for callback in base["trainer"].get("callbacks", []):
        settings = dict(callback.get("init_args", {}))
        if callback["class_path"].endswith(f".{_PREPARATION}"):
            steps = {key: max(1, round(share * value)) for key, value in settings.items() if key.endswith("_steps")}
            settings |= steps | {"cache_dir": str(options.cache)}
        callbacks.append({"class_path": callback["class_path"], "init_args": settings})
    if not any(callback["class_path"].endswith(f".{_PREPARATION}") for callback in callbacks):
        raise ConfigError(f"configs/{BASE_CONFIG}: trainer.callbacks names no {_PREPARATION}")
    every = max(1, min(int(base["trainer"].get("log_every_n_steps", 20)), options.steps // 10))
    num_train, num_val, num_test = options.clips
    return {
        "seed_everything": options.seed,
        "trainer": {
            "max_steps": options.steps,
            "val_check_interval": max(1, options.steps // _NUM_VALIDATIONS),
            "log_every_n_steps": every,
            "enable_progress_bar": False,
            "default_root_dir": str(folder),
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {
                    "save_dir": str(folder),
                    "name": "",
                    "version": "fit",
                    "flush_logs_every_n_steps": every,
                },
            },
            "callbacks": callbacks,
        },
        "data": {
            "init_args": {
                "root": str(options.scenes),
                "num_train": num_train,
                "num_val": num_val,
                "num_test": num_test,
            }
        },
    }


def what_is_reused(options: DemoOptions) -> str:
    """In words, what an earlier demo left for this one; empty if nothing."""
    left = {
        "the scenes": (options.scenes / "scenes.json").is_file(),
        "the prepared backbones": any(options.cache.rglob("*.safetensors")),
    }
    named = " and ".join(name for name, there in left.items() if there)
    return f"An earlier demo had left {named} in place, which shortened this one." if named else ""


def score_table(results: Sequence[RunResult]) -> Any:
    """Scores of all runs side by side, as a table for the terminal."""
    from rich import box
    from rich.table import Table

    from avcap_zoo.tables.report import SHOWN_SCORES

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("× 100", no_wrap=True)
    names = [name for name in SHOWN_SCORES if any(name in result.scores for result in results)]
    for head in ("right", "+ adverbs", *(SHOWN_SCORES[name] for name in names)):
        table.add_column(head, justify="right", no_wrap=True)
    for result in results:
        scores = [f"{100 * result.scores[name]:.1f}" if name in result.scores else "-" for name in names]
        shares = [f"{100 * share:.1f} %" for share in (result.events_share, result.all_share)]
        table.add_row(result.title, *shares, *scores)
    return table


def show_captions(console: Console, clip_ids: Sequence[str], results: Mapping[str, RunResult]) -> None:
    """Print captions beside a reference.

    Args:
        console: where to.
        clip_ids: which clips, in order.
        results: of all runs; all captioned these clips.
    """
    _say(
        console,
        f"Not chosen by hand: in order of id, the first {_SHOWN_OF_EACH} clips that the first model names right, then "
        f"the first {_SHOWN_OF_EACH} that it names wrong. Clip, one reference, captions:",
    )
    width = max(len(result.title) for result in results.values())
    for clip_id in clip_ids:
        clips = [
            (result.title, next(clip for clip in result.clips if clip.clip_id == clip_id))
            for result in results.values()
        ]
        _say(console, f"\n  {clip_id:<{width + 2}}  {clips[0][1].references[0]}", style="dim")
        for title, clip in clips:
            mark, style = ("✓", "green") if clip.events_right else ("✗", "red")
            _say(console, f"  {mark} {title:<{width}}  {clip.caption}", style=style)


def verdict(console: Console, options: DemoOptions, share: float) -> int:
    """Hold a full-size demo to what it promises; say so if it falls short.

    Args:
        console: where to say it.
        options: of the command line.
        share: of unseen clips with exactly the right events.

    Returns:
        The exit code.
    """
    if not options.is_full_size or share >= REQUIRED_SHARE:
        return 0
    _say(
        console,
        f"Too few: {TITLES['audio_visual']} named the right events of {100 * share:.1f} % of the unseen clips, "
        f"at least {100 * REQUIRED_SHARE:.0f} % are expected at this size.",
        style="bold red",
    )
    return 1


def _write_report(
    path: Path,
    options: DemoOptions,
    annotations: Annotations,
    results: Mapping[str, RunResult],
    commands: Sequence[str],
    configs: Path,
    duration_s: float,
    reused: str,
) -> None:
    # Only now: torch and all of LAVCap.
    from avcap_zoo.data_modules.media.limits import MediaLimits
    from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
    from avcap_zoo.tables.clip_views import load_model, look_at_clips
    from avcap_zoo.tables.report import DemoRecord, write_report
    from avcap_zoo.tables.run_results import one_of_each_kind

    audio_visual, audio_only = results["audio_visual"], results["audio_only"]
    folder = options.out / "runs" / "audio_visual" / "fit"
    settings = yaml.safe_load(audio_visual.config)["data"]["init_args"]
    data = ScenesDataModule(**settings | {"limits": MediaLimits(**settings["limits"])})
    shown = [clip.clip_id for clip in one_of_each_kind(audio_visual, annotations)]
    views = look_at_clips(load_model(folder / "checkpoints" / "best.ckpt"), data, shown)
    write_report(
        path,
        DemoRecord(
            audio_visual=audio_visual,
            audio_only=audio_only,
            annotations=annotations,
            views=views,
            commands=commands,
            settings={
                str(folder / "config.yaml"): audio_visual.config,
                str(configs / AUDIO_ONLY_CONFIG): (configs / AUDIO_ONLY_CONFIG).read_text(encoding="utf-8"),
            },
            duration_s=duration_s,
            reused=reused,
        ),
    )


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
