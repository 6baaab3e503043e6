"""Captions of millions of clips by any number of processes: each takes its shards and writes a file for each of them.

Shard i belongs to process i modulo their number. The processes share a folder and nothing else: none waits for
another, and a later run may have another number of them.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from avcap_zoo.accelerators.launchers import LAUNCHERS
from avcap_zoo.batch import SkippedClip
from avcap_zoo.errors import ConfigError, DataError
from avcap_zoo.serving.caption import Captioner
from avcap_zoo.serving.inputs import LIST_SUFFIXES, Inputs, inputs_in_parts
from avcap_zoo.serving.outputs import JsonLines, Row, caption_row, saving

SHARD_SUFFIXES = (".tar", *LIST_SUFFIXES)

_BEGUN_WITH = ".begun_with.json"


@dataclass(frozen=True)
class Place:
    """One process among those that share the work.

    Attributes:
        rank: its number, from 0.
        world: number of processes.
        local_rank: its number on its machine, which is that of its device.
    """

    rank: int
    world: int
    local_rank: int


@dataclass(frozen=True)
class Shard:
    """A tar file, or so many rows of a list.

    Attributes:
        name: of its file of captions, without suffix.
        path: of the tar file or of the list.
        find: makes the clips of a list's rows; None for a tar file.
    """

    name: str
    path: Path
    find: Callable[[], Inputs] | None = None


@dataclass
class ShardReport:
    """What became of a shard.

    Attributes:
        name: of the shard.
        captions: written now.
        earlier: that were there already.
        failures: what could not be captioned; the shard itself if it cannot be read at all.
        total_s: seconds spent on it: in the model, on the file of captions, and else in reading and decoding.
        model_s: of them, in the model.
        writing_s: of them, on the file of captions.
    """

    name: str
    captions: int = 0
    earlier: int = 0
    failures: list[SkippedClip] = field(default_factory=list)
    total_s: float = 0.0
    model_s: float = 0.0
    writing_s: float = 0.0


def place_of(environment: Mapping[str, str], rank: int | None = None, world: int | None = None) -> Place:
    """The place of this process: as asked for, else as torchrun, mpirun or srun say, else alone.

    Args:
        environment: `os.environ`.
        rank: asked for.
        world: asked for.

    Raises:
        ConfigError: one of both is missing, or the rank is none of the world's.
    """
    if (rank is None) != (world is None):
        raise ConfigError("--rank and --world belong together: --rank 0 --world 8 is the first of eight processes")
    if rank is None or world is None:
        for names in LAUNCHERS:
            if names[0] in environment and names[1] in environment:
                rank, world, local = (int(environment.get(name, 0)) for name in names)
                break
        else:
            rank, world, local = 0, 1, 0
    else:
        local = rank
    if not 0 <= rank < world:
        raise ConfigError(f"rank {rank} is none of {world} processes, wanted 0 to {world - 1}")
    return Place(rank, world, local)


def use_device_of(place: Place) -> None:
    """Let "cuda" mean the GPU of this process, where a machine runs one for each."""
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())


def find_shards(words: Sequence[str], rows_per_shard: int) -> Iterator[Shard]:
    """Everything that the words of a command line name, one after the other, in the same order on every process.

    A word is a tar file, a list (cut into shards of so many rows), a folder (its tar files and lists, by name) or a
    pattern.

    Args:
        words: what the user named.
        rows_per_shard: of lists.

    Raises:
        DataError: a word names nothing or something else, two shards would have one name, or a list cannot be read.
    """
    names: dict[str, Path] = {}
    for path in _paths(words):
        if path.suffix.lower() == ".tar":
            found: Iterator[Shard] = iter([Shard(path.name, path)])
        else:
            parts = enumerate(inputs_in_parts(path, rows_per_shard))
            found = (Shard(f"{path.name}-{number:05d}", path, part) for number, part in parts)
        for shard in found:
            if names.setdefault(shard.name, path) != path:
                raise DataError(
                    f"{names[shard.name]} and {path} would both be captioned into {shard.name}.jsonl: rename one, or "
                    f"caption them into two folders"
                )
            yield shard


def keep_settings(folder: Path, place: Place, settings: Mapping[str, Any]) -> None:
    """Put down what a folder of captions was begun with, or compare: of shards cut otherwise some would be passed over.

    Args:
        folder: made if it is not there.
        place: of this process.
        settings: by the options that set them; JSON.

    Raises:
        DataError: it was begun with others.
        CaptionSaveError: the folder cannot be written.
    """
    file = folder / _BEGUN_WITH
    with saving(file):
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            staging = file.with_name(f"{file.name}.{place.rank}")
            staging.write_text(json.dumps(settings), encoding="utf-8")
            staging.replace(file)
        begun = json.loads(file.read_text(encoding="utf-8"))
    for option, value in settings.items():
        if begun.get(option) != value:
            raise DataError(
                f"{folder} was begun with {option} {begun.get(option)}, found {value}: give the same, or choose "
                f"another --out"
            )


def caption_shards(
    captioner: Captioner,
    shards: Iterator[Shard],
    folder: Path,
    place: Place,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    windows_s: tuple[float, float] | None = None,
) -> Iterator[ShardReport]:
    """Caption the shards of one process that have not been captioned yet, each into `folder/<name>.jsonl`.

    A file appears when it is whole; until then its captions are kept in a hidden one, from which any process goes on
    after a stop. What cannot be captioned is listed in `<name>.failed.jsonl` and tried again by the next run. An id is
    captioned once, however often it stands in a shard; a shard that is newer than its captions is looked through again.

    Args:
        captioner: a system on a device.
        shards: of all processes, from `find_shards`.
        folder: made if it is not there.
        place: of this process.
        batch_size: clips per batch.
        num_workers: decoding processes.
        windows_s: length and distance of the windows into which files are cut.

    Yields:
        A report of each shard as it is done.

    Raises:
        DataError: the folder holds captions of other weights or settings, or another process is at the same shard.
        CaptionSaveError: the folder cannot be written.
    """
    for number, shard in enumerate(shards):
        if number % place.world != place.rank:
            continue
        target = folder / f"{shard.name}.jsonl"
        failed = folder / f"{shard.name}.failed.jsonl"
        if target.exists() and not failed.exists() and target.stat().st_mtime >= shard.path.stat().st_mtime:
            _check_maker(target, captioner.loaded.made_by)
            continue
        started, busy_s = time.perf_counter(), captioner.busy_s
        report = ShardReport(shard.name)
        part = folder / f".{shard.name}.partial"
        if target.exists() and not part.exists():
            with saving(part):
                part.write_bytes(target.read_bytes())  # what is there stays, what failed or is new is captioned
        if _write(part, captioner, partial(_rows, captioner, shard, batch_size, num_workers, windows_s), report):
            _finish(part, target, failed, report)
        report.total_s = time.perf_counter() - started
        report.model_s = captioner.busy_s - busy_s
        yield report


def _rows(
    captioner: Captioner,
    shard: Shard,
    batch_size: int,
    num_workers: int,
    windows_s: tuple[float, float] | None,
    done: set[str],
) -> Iterator[tuple[list[Row], list[SkippedClip]]]:
    """Captions of what is not done yet, batch by batch, and what has none."""
    if shard.find is None:
        for captioned, skipped in captioner.stream_shard(
            str(shard.path), done, batch_size=batch_size, num_workers=num_workers
        ):
            yield [caption_row(clip.clip_id, clip.caption, None) for clip in captioned], skipped
        return
    inputs = captioner.fit(shard.find(), windows_s)
    yield [], inputs.problems
    records = {record.clip_id: record for record in inputs.clips if record.clip_id not in done}
    for captioned, skipped in captioner.stream(list(records.values()), batch_size=batch_size, num_workers=num_workers):
        yield [caption_row(clip.clip_id, clip.caption, records[clip.clip_id].window_s) for clip in captioned], skipped


def _write(
    part: Path,
    captioner: Captioner,
    rows_of: Callable[[set[str]], Iterator[tuple[list[Row], list[SkippedClip]]]],
    report: ShardReport,
) -> bool:
    """Add what is missing to a file of captions; False if the shard itself cannot be read."""
    with JsonLines(part, captioner.loaded.made_by, captioner.provenance()) as file:
        done = file.done
        report.earlier = len(done)
        failures: dict[tuple[Any, ...], SkippedClip] = {}  # each worker tells of a damaged shard
        try:
            for rows, skipped in rows_of(done):
                begun = time.perf_counter()
                new = list({row["id"]: row for row in rows if row["id"] not in done}.values())
                file.write(new)
                done |= {row["id"] for row in new}
                report.captions += len(new)
                failures |= {astuple(clip): clip for clip in skipped}
                report.writing_s += time.perf_counter() - begun
        except DataError as error:
            report.failures = [*failures.values(), SkippedClip(report.name, None, str(error))]
            return False
    report.failures = list(failures.values())
    return True


def _finish(part: Path, target: Path, failed: Path, report: ShardReport) -> None:
    """Let the whole file appear, and beside it what failed."""
    begun = time.perf_counter()
    with saving(target):
        if report.failures:
            rows = [{"id": clip.clip_id, "path": clip.path, "reason": clip.reason} for clip in report.failures]
            staging = part.with_name(f"{part.name}.failed")
            # In ASCII: names in a shard are not always text.
            staging.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
            staging.replace(failed)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        if not report.failures:
            failed.unlink(missing_ok=True)
    report.writing_s += time.perf_counter() - begun


def _check_maker(target: Path, made_by: str) -> None:
    """Refuse a folder of other captions: the first line tells."""
    with target.open(encoding="utf-8") as file:
        first = file.readline()
    try:
        found = json.loads(first)["made_by"] if first else made_by
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{target} is no file of captions of ours; choose another --out, or remove it") from error
    if found != made_by:
        raise DataError(
            f"{target} holds captions made with other weights or settings; choose another --out, or remove the folder"
        )


def _paths(words: Sequence[str]) -> Iterator[Path]:
    """Tar files and lists, each once."""
    seen: set[Path] = set()
    for word in words:
        names = [word] if Path(word).exists() else sorted(glob.glob(word, recursive=True))  # noqa: PTH207 - absolute patterns, too
        found = [Path(name) for name in names]
        if not found:
            raise DataError(f"{word}: {'no file matches' if glob.has_magic(word) else 'no such file'}")
        for path in found:
            below = sorted(path.iterdir()) if path.is_dir() else [path]
            shards = [file for file in below if file.suffix.lower() in SHARD_SUFFIXES and not file.name.startswith(".")]
            if not shards:
                raise DataError(
                    f"{path} is neither a tar shard nor a list ({' '.join(SHARD_SUFFIXES)}); with a folder for --out, "
                    f"single files are named in a list"
                )
            for file in shards:
                if file not in seen:
                    seen.add(file)
                    yield file
