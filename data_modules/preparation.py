"""From downloaded media to the folder that a data module reads: cut, resampled, frames taken, in parallel.

`preparation_plans` says what is made of which file; this does it. Files are written under a temporary name first, so a
killed run is taken up where it stopped. Imports neither torch nor Lightning: worker processes start in a moment.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from avcap_zoo.data_modules.media.audio import read_audio
from avcap_zoo.data_modules.media.image import read_image
from avcap_zoo.data_modules.media.limits import DEFAULT_LIMITS, MediaLimits
from avcap_zoo.data_modules.media.video import read_frames, read_still
from avcap_zoo.errors import DataError, MediaError

if TYPE_CHECKING:
    from avcap_zoo.batch import Modality

CLIP_S = 10.0
_TASKS_PER_CHUNK = 8


@dataclass(frozen=True)
class MediaTask:
    """What is made of one clip; paths below the new folder.

    Args:
        split: of the clip; "" where the data set has no such thing.
        clip_id: of the clip.
        sound_source: file with its sound.
        picture_source: file with its pictures.
        start_s: where the clip begins in the sources, which are cut there; None = the sources are the clip.
        sound: wav file to write.
        frames: folder of frames to write.
        still: picture to write: one frame of a video.
        still_at_s: which, in seconds of the clip.
        picture: picture to copy, once it has been decoded.
        lacking: why nothing can be made of it.
    """

    split: str
    clip_id: str
    sound_source: str | None = None
    picture_source: str | None = None
    start_s: float | None = None
    sound: str | None = None
    frames: str | None = None
    still: str | None = None
    still_at_s: float = 0.0
    picture: str | None = None
    lacking: str = ""

    @property
    def targets(self) -> list[str]:
        """Everything that is written."""
        return [path for path in (self.sound, self.frames, self.still, self.picture) if path is not None]


@dataclass(frozen=True)
class PreparationSettings:
    """What the new files are like.

    Args:
        sample_rate_hz: of the sounds.
        num_frames: frames per clip, spread evenly.
        image_size_px: side of the square frames.
        modalities: what is made.
        limits: what a single source may cost.
    """

    sample_rate_hz: int = 16_000
    num_frames: int = 20
    image_size_px: int = 224
    modalities: tuple[Modality, ...] = ("audio", "visual")
    limits: MediaLimits = DEFAULT_LIMITS


@dataclass
class Plan:
    """All tasks of a data set, and the annotation files that go beside the media, by their place in the new folder."""

    tasks: list[MediaTask]
    annotations: dict[str, Path]


# -- work --------------------------------------------------------------------------------------------------------


def prepare(
    plan: Plan, out: Path, settings: PreparationSettings, *, num_workers: int = 0, progress: bool = True
) -> tuple[int, int]:
    """Make what a plan says, as far as it is not there yet.

    Writes `manifest.csv` (split, id and files of every clip that is complete), `missing.csv` (split, id, reason) and
    copies of the annotations.

    Args:
        plan: of a planner above.
        out: the new folder.
        settings: what the files are like.
        num_workers: processes; 0 or 1 = none beside this one.
        progress: whether to show a bar.

    Returns:
        Clips that are complete, and official clips.

    Raises:
        DataError: the folder cannot be written, or a worker died.
    """
    reasons: dict[int, str] = {number: task.lacking for number, task in enumerate(plan.tasks) if task.lacking}
    todo = [
        (number, task)
        for number, task in enumerate(plan.tasks)
        if not task.lacking and not all((out / target).exists() for target in task.targets)
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
        unfinished = out / ".unfinished"
        if unfinished.exists():  # a run was killed here: remove what it was just writing
            for leftover in out.rglob(".*.tmp"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        unfinished.touch()
        with tqdm(total=len(todo), unit="clip", desc=f"preparing {out}", disable=not progress) as bar:
            for number, reason in _work(todo, out, settings, num_workers):
                if reason:
                    reasons[number] = reason
                bar.update()
        for place, source in plan.annotations.items():
            _write(out / place, source.read_bytes())
        made = [task for number, task in enumerate(plan.tasks) if number not in reasons]
        rows = [(task.split, task.clip_id, task.sound, task.frames or task.still or task.picture) for task in made]
        _write(out / "manifest.csv", _csv([("split", "id", "sound", "picture"), *rows]))
        lost = [(plan.tasks[n].split, plan.tasks[n].clip_id, reason) for n, reason in sorted(reasons.items())]
        _write(out / "missing.csv", _csv([("split", "id", "reason"), *lost]))
        unfinished.unlink()
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or out}: {error.strerror or error}; what is there is kept, call again"
        ) from error
    return len(made), len(plan.tasks)


def _work(
    todo: Sequence[tuple[int, MediaTask]], out: Path, settings: PreparationSettings, num_workers: int
) -> Iterator[tuple[int, str]]:
    """Number of each task that was done, and why it failed or ""."""
    if num_workers <= 1:
        for number, task in todo:
            yield number, make(task, out, settings)
        return
    chunks = [todo[start : start + _TASKS_PER_CHUNK] for start in range(0, len(todo), _TASKS_PER_CHUNK)]
    # Spawned, not forked: the caller may hold threads, whose locks a fork would copy in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        with _without_main_module():
            futures = [pool.submit(_make_some, chunk, out, settings) for chunk in chunks]
        try:
            for future in as_completed(futures):
                yield from future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"a worker that writes to {out} ended early, perhaps for lack of memory; call again to go on where "
                f"it stopped, if need be with --workers 1"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Start processes that do not run the caller's script again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _make_some(
    chunk: Sequence[tuple[int, MediaTask]], out: Path, settings: PreparationSettings
) -> list[tuple[int, str]]:
    return [(number, make(task, out, settings)) for number, task in chunk]


def make(task: MediaTask, out: Path, settings: PreparationSettings) -> str:
    """Make the files of one clip that are not there yet.

    Args:
        task: what to make.
        out: the new folder.
        settings: what the files are like.

    Returns:
        "" or the reasons why a source could not be used.

    Raises:
        OSError: a file cannot be written.
    """
    problems = []
    for target, step in (
        (task.sound, _make_sound),
        (task.frames, _make_frames),
        (task.still, _make_still),
        (task.picture, _make_picture),
    ):
        if target is not None and not (out / target).exists():
            try:
                step(task, out / target, settings)
            except MediaError as error:
                problems.append(f"{error.path}: {error.reason}")
    return "; ".join(problems)


def _make_sound(task: MediaTask, target: Path, settings: PreparationSettings) -> None:
    import soundfile

    source = Path(task.sound_source or "")
    samples = read_audio(source, settings.sample_rate_hz, task.clip_id, _window(task), settings.limits)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, settings.sample_rate_hz, format="WAV", subtype="PCM_16")
    _write(target, buffer.getvalue())


def _make_frames(task: MediaTask, target: Path, settings: PreparationSettings) -> None:
    source = Path(task.picture_source or "")
    frames = read_frames(
        source, settings.num_frames, settings.image_size_px, task.clip_id, _window(task), settings.limits
    )
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for number, pixels in enumerate(frames.transpose(0, 2, 3, 1)):
        (staging / f"{number:03d}.jpg").write_bytes(_jpg(pixels))
    staging.rename(target)


def _make_still(task: MediaTask, target: Path, settings: PreparationSettings) -> None:
    at_s = (task.start_s or 0.0) + task.still_at_s
    _write(target, _jpg(read_still(Path(task.picture_source or ""), at_s, task.clip_id, settings.limits)))


def _make_picture(task: MediaTask, target: Path, settings: PreparationSettings) -> None:
    source = Path(task.picture_source or "")
    read_image(source, settings.image_size_px, task.clip_id, settings.limits)  # a broken one is not copied
    _write(target, source.read_bytes())


def _window(task: MediaTask) -> tuple[float, float] | None:
    return None if task.start_s is None else (task.start_s, task.start_s + CLIP_S)


def _jpg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    staging.write_bytes(content)
    staging.replace(path)
