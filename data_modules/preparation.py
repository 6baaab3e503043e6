"""From downloaded media to the folder that a data module reads: cut, resampled, frames taken, in parallel.

`preparation_plans` says what is made of which file; this does it. Files are written under a temporary name first, so a
killed run is taken up where it stopped. Imports neither torch nor Lightning: worker processes start in a moment.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from avcap_zoo.data_modules.files import csv_bytes, write_file
from avcap_zoo.data_modules.media.audio import read_audio
from avcap_zoo.data_modules.media.encoding import encode_jpg
from avcap_zoo.data_modules.media.image import read_image
from avcap_zoo.data_modules.media.limits import DEFAULT_LIMITS, MediaLimits
from avcap_zoo.data_modules.media.video import read_frames, read_still
from avcap_zoo.data_modules.workers import run_in_workers
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
            chunks = [todo[start : start + _TASKS_PER_CHUNK] for start in range(0, len(todo), _TASKS_PER_CHUNK)]
            make_some = partial(_make_some, out=out, settings=settings)
            for chunk, problems in run_in_workers(make_some, chunks, num_workers, writes_to=out, option="--workers 1"):
                reasons |= {number: problem for (number, _), problem in zip(chunk, problems, strict=True) if problem}
                bar.update(len(chunk))
        for place, source in plan.annotations.items():
            write_file(out / place, source.read_bytes())
        made = [task for number, task in enumerate(plan.tasks) if number not in reasons]
        rows = [(task.split, task.clip_id, task.sound, task.frames or task.still or task.picture) for task in made]
        write_file(out / "manifest.csv", csv_bytes([("split", "id", "sound", "picture"), *rows]))
        lost = [(plan.tasks[n].split, plan.tasks[n].clip_id, reason) for n, reason in sorted(reasons.items())]
        write_file(out / "missing.csv", csv_bytes([("split", "id", "reason"), *lost]))
        unfinished.unlink()
    except OSError as error:
        raise DataError(
            f"cannot write {error.filename or out}: {error.strerror or error}; what is there is kept, call again"
        ) from error
    return len(made), len(plan.tasks)


def _make_some(chunk: Sequence[tuple[int, MediaTask]], out: Path, settings: PreparationSettings) -> list[str]:
    return [make(task, out, settings) for _, task in chunk]


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
    write_file(target, buffer.getvalue())


def _make_frames(task: MediaTask, target: Path, settings: PreparationSettings) -> None:
    source = Path(task.picture_source or "")
    frames = read_frames(
        source, settings.num_frames, settings.image_size_px, task.clip_id, _window(task), settings.limits
    )
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    for number, pixels in enumerate(frames.transpose(0, 2, 3, 1)):
        (staging / f"{number:03d}.jpg").write_bytes(encode_jpg(pixels))
    staging.rename(target)


def _make_still(task: MediaTask, target: Path, settings: PreparationSettings) -> None:
    at_s = (task.start_s or 0.0) + task.still_at_s
    write_file(target, encode_jpg(read_still(Path(task.picture_source or ""), at_s, task.clip_id, settings.limits)))


def _make_picture(task: MediaTask, target: Path, settings: PreparationSettings) -> None:
    source = Path(task.picture_source or "")
    read_image(source, settings.image_size_px, task.clip_id, settings.limits)  # a broken one is not copied
    write_file(target, source.read_bytes())


def _window(task: MediaTask) -> tuple[float, float] | None:
    return None if task.start_s is None else (task.start_s, task.start_s + CLIP_S)
