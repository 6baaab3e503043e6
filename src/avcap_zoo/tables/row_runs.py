"""From a row of a table to commands: what is run, in which folder, and under which key its result is kept.

A run is ordinary commands (`avcap fit`, then `avcap test`) with the row's files and one more on top, which holds
nothing but the seed, folders and a logger of known place. The key is a hash of everything the numbers depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from avcap_zoo import __version__
from avcap_zoo.cli.config_files import merge, read_config
from avcap_zoo.cli.side_by_side import Command
from avcap_zoo.tables.paper_tables import Maker, Paper, PaperRow, PaperTable, Track
from avcap_zoo.tables.run_results import FIT_FOLDER, TEST_FOLDER

RUNS = "runs/"
"""Where the toy configurations keep what they make; moved below the folder of the reproduction."""
OWN_CHECKPOINTS = Path("checkpoints")
"""A checkpoint named SYSTEM-ROW.ckpt here is tested instead of trained anew."""
_DONE = ".done"


@dataclass(frozen=True)
class RowRun:
    """One training and test of a row, or the training of a small model that rows stand on.

    Attributes:
        title: for readers.
        key: 16 hexadecimal digits, the name of the folder; changes with all that the numbers depend on.
        folder: of all it writes.
        configs: the row's files, later ones on top.
        settings: what lies over them.
        commands: in order; the first words of their arguments are verbs.
        checkpoint: what is tested, for readers.
        needs: runs that must be done before.
    """

    title: str
    key: str
    folder: Path
    configs: tuple[str, ...]
    settings: Mapping[str, Any]
    commands: tuple[Command, ...]
    checkpoint: str
    needs: tuple[RowRun, ...] = field(default=())

    def write_settings(self) -> None:
        """Write the file that lies over the row's files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(dict(self.settings), sort_keys=False)
        heading = f"# {self.title}: seed, folders and logger, laid over the row's files by avcap reproduce.\n"
        _settings_file(self.folder).write_text(heading + text, encoding="utf-8")

    def remaining(self) -> list[Command]:
        """The commands that are not done; a fit that was interrupted goes on from its last checkpoint.

        What it had logged is kept beside what it will log.
        """
        left = [command for command in self.commands if not self.done_file(command).is_file()]
        if left and left[0].arguments[0] == "fit":
            fit = self.folder / FIT_FOLDER
            last = fit / "checkpoints" / "last.ckpt"
            if last.is_file():
                logged = fit / "metrics.csv"
                if logged.is_file():
                    logged.rename(fit / f"metrics-{len(list(fit.glob('metrics-*.csv'))):03d}.csv")
                left[0] = Command(
                    left[0].doing,
                    [*left[0].arguments, "--ckpt_path", str(last)],
                    left[0].num_steps,
                    left[0].metrics,
                )
        return left

    def mark_done(self, command: Command, seconds: float) -> None:
        """Remember that a command is done and how long it took."""
        resumed = command.arguments[0] == "fit" and "--ckpt_path" in command.arguments
        note = {"command": str(command), "seconds": round(seconds, 1), "resumed": resumed}
        self.done_file(command).write_text(json.dumps(note), encoding="utf-8")

    def done_file(self, command: Command) -> Path:
        """Where `mark_done` writes."""
        return self.folder / f"{command.arguments[0]}{_DONE}"


def plan_row(
    paper: Paper, table: PaperTable, row: PaperRow, track: Track, *, out: Path, seeds: int, present: Sequence[Any] = ()
) -> list[RowRun]:
    """The runs of a row: one per seed if it is trained, else one.

    Args:
        paper: of the row; its makers are planned, too, where the row stands on them.
        table: of the row.
        row: has files for this track.
        track: full or tiny.
        out: folder of the reproduction.
        seeds: how many, counted up from the `seed_everything` of the files.
        present: what else the numbers depend on, such as the clips that are there.
    """
    configs = row.configs(track)
    content = merged(configs)
    own = OWN_CHECKPOINTS / f"{paper.system}-{row.row_id}.ckpt"
    given = own if track == "full" and row.is_trained(track) and own.is_file() else None
    trained = row.is_trained(track) and given is None
    first = int(content.get("seed_everything") or 0)
    made = {maker.makes: _plan_maker(paper, name, maker, out) for name, maker in _makers_of(paper, content)}
    label = row.label if track == "full" else row.toy_label
    runs = []
    for seed in range(first, first + (seeds if trained else 1)):
        stamp = [given.stat().st_size, given.stat().st_mtime_ns] if given else []
        needed = [run.key for run in made.values()]
        key = _key([track, trained, content, seed, stamp, needed, list(present)])
        folder = out / "rows" / key
        settings = _settings(content, folder, seed, track, made, out)
        layers = [word for file in (*configs, _settings_file(folder)) for word in ("-c", str(file))]
        best = folder / FIT_FOLDER / "checkpoints" / _kept_checkpoint(content)
        tested = given or (best if trained else None)
        test = [*layers, "--trainer.logger.version", TEST_FOLDER]
        commands = [
            *([_fit(content, layers, folder)] if trained else []),
            Command("captioning", ["test", *test, *(["--ckpt_path", str(tested)] if tested else [])]),
        ]
        title = f"{paper.title} {table.table_id}: {label}" + (f", seed {seed}" if trained else "")
        told = str(given) if given else "trained here" if trained else ", ".join(row.weights) if track == "full" else ""
        runs.append(
            RowRun(
                title=title,
                key=key,
                folder=folder,
                configs=configs,
                settings=settings,
                commands=tuple(commands),
                checkpoint=told or "toy models, trained here",
                needs=tuple(made.values()),
            )
        )
    return runs


@lru_cache(maxsize=256)
def _merged(configs: tuple[str, ...]) -> str:
    first, *others = (read_config(file, layer) for layer, file in enumerate(configs))
    for other in others:
        first = merge(first, other)
    return json.dumps(first.plain())


def merged(configs: tuple[str, ...]) -> dict[str, Any]:
    """The files laid over each other, as several `-c` are.

    Raises:
        CommandLineError: a file is missing or no YAML.
    """
    content: dict[str, Any] = json.loads(_merged(configs))
    return content


def strings_of(value: Any) -> Iterator[str]:
    """Every text that stands as a value at any depth; keys are not values."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings_of(inner)


def _plan_maker(paper: Paper, name: str, maker: Maker, out: Path) -> RowRun:
    content = merged(maker.configs)
    made = {other.makes: _plan_maker(paper, key, other, out) for key, other in _makers_of(paper, content, name)}
    key = _key(["maker", content, [run.key for run in made.values()]])
    folder = out / "rows" / key
    settings = _settings(content, folder, None, "tiny", made | {maker.makes: folder}, out)
    layers = [word for file in (*maker.configs, _settings_file(folder)) for word in ("-c", str(file))]
    return RowRun(
        title=f"{paper.title}: small model {name}",
        key=key,
        folder=folder,
        configs=maker.configs,
        settings=settings,
        commands=(_fit(content, layers, folder),),
        checkpoint="",
        needs=tuple(made.values()),
    )


def _makers_of(paper: Paper, content: Any, besides: str = "") -> list[tuple[str, Maker]]:
    """The makers whose products a configuration names."""
    named = set(strings_of(content))
    return [(name, maker) for name, maker in paper.makers.items() if maker.makes in named and name != besides]


def _fit(content: Mapping[str, Any], layers: list[str], folder: Path) -> Command:
    steps = int(content.get("trainer", {}).get("max_steps") or 0)
    return Command("training", ["fit", *layers], max(0, steps), folder / FIT_FOLDER / "metrics.csv")


def _settings(
    content: Mapping[str, Any],
    folder: Path,
    seed: int | None,
    track: Track,
    made: Mapping[str, RowRun | Path],
    out: Path,
) -> dict[str, Any]:
    every = int(content.get("trainer", {}).get("log_every_n_steps") or 50)
    logger = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {
            "save_dir": str(folder),
            "name": "",
            "version": FIT_FOLDER,
            "flush_logs_every_n_steps": every,
        },
    }
    trainer = {"default_root_dir": str(folder), "enable_progress_bar": False, "logger": logger}
    if track == "full":
        return {"seed_everything": seed, "trainer": trainer}
    moved = _moved(content, made, out) or {}
    trainer |= {"accelerator": "cpu", "devices": 1}
    return {
        **moved,
        **({} if seed is None else {"seed_everything": seed}),
        "trainer": {**moved.get("trainer", {}), **trainer},
    }


def _moved(value: Any, made: Mapping[str, RowRun | Path], out: Path) -> Any:
    """Only what changes when products and other paths below `RUNS` are moved; lists whole; None if nothing does."""
    if isinstance(value, str):
        product = made.get(value)
        if isinstance(product, Path):
            return str(product / Path(value).name)
        if product is not None:
            return str(product_of(product, value))
        return str(out / "made" / value.removeprefix(RUNS)) if value.startswith(RUNS) else None
    if isinstance(value, dict):
        changed = {key: moved for key, inner in value.items() if (moved := _moved(inner, made, out)) is not None}
        return changed or None
    if isinstance(value, list):
        moved_items = [_moved_whole(inner, made, out) for inner in value]
        return moved_items if moved_items != value else None
    return None


def _moved_whole(value: Any, made: Mapping[str, RowRun | Path], out: Path) -> Any:
    """As `_moved`, with everything that does not change."""
    if isinstance(value, dict):
        return {key: _moved_whole(inner, made, out) for key, inner in value.items()}
    moved = _moved(value, made, out)
    return value if moved is None else moved


def product_of(run: RowRun, makes: str) -> Path:
    """Where a maker's run leaves what others call `makes`: what its configuration saves, else a checkpoint."""
    if makes in set(strings_of(merged(run.configs))):
        return run.folder / Path(makes).name
    return run.folder / FIT_FOLDER / "checkpoints" / Path(makes).name


def _kept_checkpoint(content: Mapping[str, Any]) -> str:
    callbacks = content.get("trainer", {}).get("callbacks") or []
    names = [callback.get("init_args", {}).get("filename") for callback in callbacks if isinstance(callback, dict)]
    return "best.ckpt" if "best" in names else "last.ckpt"


def _settings_file(folder: Path) -> Path:
    return folder / "settings.yaml"


def _key(value: Any) -> str:
    return hashlib.sha256(json.dumps([__version__, value], sort_keys=True).encode()).hexdigest()[:16]
