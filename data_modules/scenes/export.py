"""Write scenes to disk in the published file formats, so that the ordinary data modules read them unchanged.

<root>/scenes.json             what is there; written last, so its presence means that everything is complete
<root>/audiocaps/  train.csv val.csv test.csv annotations.jsonl
                   <split>/waveforms/<id>_<ms>.wav  <split>/videos/<id>_<ms>.mp4
<root>/clotho/     clotho_captions_<part>.csv clotho_metadata_<part>.csv Clotho-detail-annotation.json
                   <part>/<labels> <id>.wav        parts: development, validation, evaluation
<root>/vggss/      vggss.json vggss_test.csv vggsound.csv
                   audio/<id>_<s>.wav  image/<id>_<s>.jpg  video/<id>_<s>.mp4
<root>/coco/       annotations/{captions,instances}_{train,val}2014.json dataset_coco.json
                   train2014/COCO_train2014_<12 digits>.jpg  val2014/COCO_val2014_<12 digits>.jpg
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from avcap_zoo.data_modules.files import json_bytes, write_error, write_file
from avcap_zoo.data_modules.scenes.events import SPLITS, Split
from avcap_zoo.data_modules.scenes.published_forms import RENDERERS, WRITERS, Job, Record
from avcap_zoo.data_modules.scenes.scene import SCENES_VERSION
from avcap_zoo.data_modules.workers import run_in_workers
from avcap_zoo.errors import ConfigError, DataError

FORMATS: Final = ("audiocaps", "clotho", "vggss", "coco")
"""The formats that `generate_scenes` can write."""

_INFO_FILE: Final = "scenes.json"
_UNFINISHED_FILE: Final = "scenes.unfinished.json"
_CLIPS_PER_TASK: Final = 16


def generate_scenes(
    root: Path,
    *,
    counts: Mapping[str, int] | Mapping[Split, int],
    formats: Sequence[str] | str = ("audiocaps",),
    seed: int = 0,
    image_size_px: int = 64,
    num_workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write the embedded data set, or find it there already.

    A finished folder is recognised by its `scenes.json` and nothing is done. An unfinished one is completed: only
    missing files are rendered. Further formats may be added later with the same seed, counts and size. The bytes of
    wav, jpg, CSV and JSON files depend on the arguments alone.

    Args:
        root: folder to write to; made if it does not exist.
        counts: clips of each split, such as {"train": 2000, "val": 100, "test": 300}; a split may be left out.
        formats: names out of `FORMATS`, or "all".
        seed: of the data set, 0 or more.
        image_size_px: side of frames and pictures; even, 32 or more.
        num_workers: processes; None takes as many as there are free cores and work for them, 0 or 1 none beside this.
        progress: whether to show a progress bar.

    Returns:
        `root`. Each format has a folder of its name in it.

    Raises:
        ConfigError: unknown format or split, a count below 1, a bad size, or a negative seed.
        DataError: the folder holds scenes with other arguments, or cannot be written (the path is named).
    """
    root = Path(root)
    wanted_formats = _check_formats(formats)
    wanted_counts = _check_counts(counts)
    if image_size_px < 32 or image_size_px % 2:
        raise ConfigError(f"image_size_px is {image_size_px}; it must be even (video) and 32 or more")
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be 0 or more")
    job = Job(root, seed, image_size_px)
    if not _missing_formats(job, wanted_counts, wanted_formats):
        return root
    _make_folder(root)
    with _locked(root):
        missing = _missing_formats(job, wanted_counts, wanted_formats)
        if not missing:  # another process was faster
            return root
        done = [name for name in FORMATS if name in wanted_formats and name not in missing]
        done.extend(name for name in _read_info(root / _INFO_FILE).get("formats", []) if name not in done)
        if (root / _UNFINISHED_FILE).exists():  # a run was killed here: remove what it was just writing
            for leftover in root.rglob(".*.tmp"):
                leftover.unlink(missing_ok=True)
        write_file(root / _UNFINISHED_FILE, json_bytes(_info(job, wanted_counts, [])))
        records = _render_all(job, wanted_counts, missing, num_workers, progress)
        for name in missing:
            WRITERS[name](job, records[name])
        finished = [name for name in FORMATS if name in done or name in missing]
        write_file(root / _INFO_FILE, json_bytes(_info(job, wanted_counts, finished)))
        (root / _UNFINISHED_FILE).unlink(missing_ok=True)
    return root


# ---------------------------------------------------------------------------------------------- folder and bookkeeping


def _check_formats(formats: Sequence[str] | str) -> tuple[str, ...]:
    names = [formats] if isinstance(formats, str) else list(formats)
    if names == ["all"]:
        return FORMATS
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ConfigError(f"formats {names} cannot be written; choose from {', '.join(FORMATS)}, or all")
    return tuple(name for name in FORMATS if name in names)


def _check_counts(counts: Mapping[str, int] | Mapping[Split, int]) -> dict[Split, int]:
    problems = [f"there is no split {name!r} (allowed: {', '.join(SPLITS)})" for name in counts if name not in SPLITS]
    problems.extend(f"{name} is {count}, not 1 or more" for name, count in counts.items() if count < 1)
    problems.extend(f"{name} is {count}, above 10000000" for name, count in counts.items() if count > 10_000_000)
    if not counts:
        problems.append(f"no split is given (allowed: {', '.join(SPLITS)})")
    if problems:
        raise ConfigError(f"counts {dict(counts)}: {'; '.join(problems)}")
    return {split: int(counts[split]) for split in SPLITS if split in counts}


def _info(job: Job, counts: Mapping[Split, int], formats: Sequence[str]) -> dict[str, Any]:
    return {
        "version": SCENES_VERSION,
        "seed": job.seed,
        "counts": dict(counts),
        "image_size_px": job.image_size_px,
        "formats": list(formats),
    }


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except NotADirectoryError as error:
        raise DataError(f"{path.parent} is not a folder; choose another root") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and call again") from error
    if not isinstance(info, dict):
        raise DataError(f"{path} does not describe scenes; delete it and call again")
    return info


def _missing_formats(job: Job, counts: Mapping[Split, int], formats: Sequence[str]) -> list[str]:
    """Formats still to be written, after a check that what is there was made with the same arguments."""
    asked = _info(job, counts, [])
    present: list[str] = []
    for name in (_INFO_FILE, _UNFINISHED_FILE):
        info = _read_info(job.root / name)
        if not info:
            continue
        differences = [
            f"{key} {info.get(key)} (asked: {asked[key]})"
            for key in ("version", "seed", "counts", "image_size_px")
            if info.get(key) != asked[key]
        ]
        if differences:
            state = "" if name == _INFO_FILE else "unfinished "
            raise DataError(
                f"{job.root} holds {state}scenes made with other arguments: {', '.join(differences)}; "
                f"choose another root, ask for what is there, or delete the folder"
            )
        present = info.get("formats", []) or present
    return [name for name in formats if name not in present or not (job.root / name).is_dir()]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Let one process at a time write to the folder; the lock goes with the process, however it ends."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: two writers only do the work twice
        yield
        return
    try:
        lock = (root / ".lock").open("w")
    except OSError as error:
        raise write_error(root / ".lock", error) from error
    with lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------------------------ rendering

_Task = tuple[str, Split, int, int]


def _render_all(
    job: Job, counts: Mapping[Split, int], formats: Sequence[str], num_workers: int | None, progress: bool
) -> dict[str, dict[Split, list[Record]]]:
    """Render what is missing; give the annotation records of every format and split in the order of the clips."""
    tasks: list[_Task] = [
        (name, split, start, min(start + _CLIPS_PER_TASK, count))
        for name in formats
        for split, count in counts.items()
        for start in range(0, count, _CLIPS_PER_TASK)
    ]
    total = len(formats) * sum(counts.values())
    if num_workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        num_workers = min(cores, total // 100)  # a process costs as much as a hundred clips to start
    results: dict[_Task, list[Record]] = {}
    with tqdm(total=total, unit="clip", desc=f"scenes in {job.root}", disable=not progress) as bar:
        for task, records in run_in_workers(
            partial(_render_task, job), tasks, num_workers, writes_to=job.root, option="num_workers=1"
        ):
            results[task] = records
            bar.update(len(records))
    return {
        name: {
            split: [record for task in tasks if task[:2] == (name, split) for record in results[task]]
            for split in counts
        }
        for name in formats
    }


def _render_task(job: Job, task: _Task) -> list[Record]:
    name, split, start, stop = task
    return [RENDERERS[name](job, split, index) for index in range(start, stop)]
