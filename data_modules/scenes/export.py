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

import csv
import io
import json
import multiprocessing
import os
import sys
import wave
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from avcap_zoo.data_modules.scenes.events import PICTURES, SPLITS, Relation, Split
from avcap_zoo.data_modules.scenes.grammar import split_words
from avcap_zoo.data_modules.scenes.scene import (
    SCENES_VERSION,
    Scene,
    boxes,
    detailed_caption,
    frame_times,
    object_masks,
    render_frames,
    render_frames_at,
    render_waveform,
    sample_scene,
    still_captions,
    terse_captions,
)
from avcap_zoo.errors import ConfigError, DataError

FORMATS: Final = ("audiocaps", "clotho", "vggss", "coco")
"""The formats that `generate_scenes` can write."""

VIDEO_FPS: Final = 2
"""Frames a second of the mp4 files: a clip of ten seconds has twenty."""

CLOTHO_PARTS: Final[dict[Split, str]] = {"train": "development", "val": "validation", "test": "evaluation"}
CLOTHO_SAMPLE_RATE_HZ: Final = 44100
SAMPLE_RATE_HZ: Final = 16000

_INFO_FILE: Final = "scenes.json"
_UNFINISHED_FILE: Final = "scenes.unfinished.json"
_NUM_CAPTIONS: Final = 5
_CLIPS_PER_TASK: Final = 16
_COCO_FIRST_ID: Final[dict[Split, int]] = {"train": 1, "val": 100_000_001, "test": 200_000_001}
_COCO_FOLDERS: Final[dict[Split, str]] = {"train": "train2014", "val": "val2014", "test": "val2014"}


@dataclass(frozen=True)
class _Job:
    """What a worker must know; small and picklable."""

    root: Path
    seed: int
    image_size_px: int


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
    job = _Job(root, seed, image_size_px)
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
        _write(root / _UNFINISHED_FILE, _json_bytes(_info(job, wanted_counts, [])))
        records = _render_all(job, wanted_counts, missing, num_workers, progress)
        for name in missing:
            _WRITERS[name](job, records[name])
        finished = [name for name in FORMATS if name in done or name in missing]
        _write(root / _INFO_FILE, _json_bytes(_info(job, wanted_counts, finished)))
        (root / _UNFINISHED_FILE).unlink(missing_ok=True)
    return root


def encode_wav(samples: NDArray[np.float32], sample_rate_hz: int) -> bytes:
    """A mono PCM16 wav file.

    Args:
        samples: (S,) float32 in [-1, 1]; values outside are clipped.
        sample_rate_hz: written to the header.
    """
    pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()


def encode_mp4(
    frames: NDArray[np.uint8],
    fps: int,
    samples: NDArray[np.float32] | None = None,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> bytes:
    """A small H.264 (yuv420p) video, with an AAC track when samples are given.

    The track costs about four times the pictures (20 ms for ten seconds), so the AudioCaps folders do without it.

    Args:
        frames: (K, H, W, 3) uint8, RGB; H and W even.
        fps: frames a second.
        samples: (S,) float32 in [-1, 1], or None for a silent film.
        sample_rate_hz: of the samples.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=fps)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.thread_count = 1
        video.options = {"preset": "ultrafast", "crf": "20", "threads": "1"}
        audio = None
        if samples is not None:
            audio = container.add_stream("aac", rate=sample_rate_hz)
            audio.options = {"aac_coder": "fast"}  # six times as fast as the default coder
            audio.layout = "mono"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            frame.time_base = Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None and samples is not None:
            for start in range(0, len(samples), 1024):
                piece = np.ascontiguousarray(samples[None, start : start + 1024], dtype=np.float32)
                sound = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                sound.sample_rate = sample_rate_hz
                sound.pts = start
                sound.time_base = Fraction(1, sample_rate_hz)
                container.mux(audio.encode(sound))
            container.mux(audio.encode())
    return buffer.getvalue()


def encode_jpg(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG file of good quality.

    Args:
        pixels: (H, W, 3) uint8, RGB.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


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


def _info(job: _Job, counts: Mapping[Split, int], formats: Sequence[str]) -> dict[str, Any]:
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


def _missing_formats(job: _Job, counts: Mapping[Split, int], formats: Sequence[str]) -> list[str]:
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
        raise _write_error(folder, error) from error


def _write_error(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write {path}: {error.strerror or error}; free space or choose another root, then call again: "
        f"what is there already is kept"
    )


def _write(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: under a temporary name first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _write_error(path, error) from error


def _json_bytes(value: Any, *, indent: int | None = 1) -> bytes:
    return (json.dumps(value, indent=indent, ensure_ascii=True) + "\n").encode()


def _csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


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
        raise _write_error(root / ".lock", error) from error
    with lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------------------------ rendering

_Record = dict[str, Any]
_Task = tuple[str, Split, int, int]


def _render_all(
    job: _Job, counts: Mapping[Split, int], formats: Sequence[str], num_workers: int | None, progress: bool
) -> dict[str, dict[Split, list[_Record]]]:
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
    results: dict[_Task, list[_Record]] = {}
    with tqdm(total=total, unit="clip", desc=f"scenes in {job.root}", disable=not progress) as bar:
        for task, records in _run(job, tasks, num_workers):
            results[task] = records
            bar.update(len(records))
    return {
        name: {
            split: [record for task in tasks if task[:2] == (name, split) for record in results[task]]
            for split in counts
        }
        for name in formats
    }


def _run(job: _Job, tasks: Sequence[_Task], num_workers: int) -> Iterator[tuple[_Task, list[_Record]]]:
    if num_workers <= 1:
        for task in tasks:
            yield task, _render_task(job, task)
        return
    # Spawned, not forked: the caller may hold threads of torch, whose locks a fork would copy in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        with _without_main_module():
            futures = {pool.submit(_render_task, job, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"a worker that writes to {job.root} ended early, perhaps for lack of memory; call again to go on "
                f"where it stopped, if need be with num_workers=1"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Start processes that do not run the caller's script again.

    A spawned process imports the main module first. Without a `__name__` guard it would call `generate_scenes` once
    more, and wait for the lock that this process holds; a script read from standard input cannot be imported at all.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _render_task(job: _Job, task: _Task) -> list[_Record]:
    name, split, start, stop = task
    return [_RENDERERS[name](job, split, index) for index in range(start, stop)]


def _write_missing(path: Path, make: Callable[[], bytes]) -> None:
    if not path.exists():
        _write(path, make())


def _times(scene: Scene) -> NDArray[np.float64]:
    return frame_times(scene, fps=VIDEO_FPS)


def _video(job: _Job, scene: Scene, *, with_sound: bool = False) -> bytes:
    frames = render_frames(scene, fps=VIDEO_FPS, size_px=job.image_size_px)
    samples = render_waveform(scene, SAMPLE_RATE_HZ) if with_sound else None
    return encode_mp4(frames, VIDEO_FPS, samples, SAMPLE_RATE_HZ)


def annotate(scene: Scene) -> dict[str, Any]:
    """The line of `annotations.jsonl` for a scene: events, sounds, objects with their mean boxes, captions."""
    where = boxes(scene, _times(scene))
    return {
        "clip_id": scene.clip_id,
        "split": scene.split,
        "duration_s": scene.duration_s,
        "relation": scene.relation,
        "events": [
            {
                "label": event.name,
                "sound": event.sound,
                "picture": event.picture,
                "loudness": event.loudness,
                "speed": event.speed,
                "onset_s": event.onset_s,
                "offset_s": event.offset_s,
            }
            for event in scene.events
        ],
        "sounds": [
            {"label": event.sound, "onset_s": event.onset_s, "offset_s": event.offset_s} for event in scene.events
        ],
        "objects": [
            {
                "label": thing.picture,
                "colour": thing.colour,
                "onset_s": thing.onset_s,
                "offset_s": thing.offset_s,
                "box": _rounded(np.nanmean(where[position], axis=0)),
                "silent": thing.silent,
            }
            for position, thing in enumerate(scene.objects)
        ],
        "captions": terse_captions(scene, _NUM_CAPTIONS),
        "detailed": detailed_caption(scene),
    }


def _rounded(values: NDArray[np.floating[Any]]) -> list[float]:
    return [round(float(value), 4) for value in values]


# ------------------------------------------------------------------------------------------------------------ AudioCaps


def _render_audiocaps(job: _Job, split: Split, index: int) -> _Record:
    scene = sample_scene(job.seed, split, index)
    folder = job.root / "audiocaps" / split
    _write_missing(
        folder / "waveforms" / f"{scene.media_stem}.wav",
        lambda: encode_wav(render_waveform(scene, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ),
    )
    _write_missing(folder / "videos" / f"{scene.media_stem}.mp4", lambda: _video(job, scene))
    return {"start_time": scene.start_time_s, **annotate(scene)}


def _write_audiocaps(job: _Job, records: Mapping[Split, list[_Record]]) -> None:
    folder = job.root / "audiocaps"
    number = 0
    lines: list[bytes] = []
    for split, clips in records.items():
        rows: list[Sequence[object]] = [("audiocap_id", "youtube_id", "start_time", "caption")]
        for clip in clips:
            # As published: one caption of a training clip, all five of the others.
            for caption in clip["captions"][: 1 if split == "train" else None]:
                number += 1
                rows.append((number, clip["clip_id"], clip["start_time"], caption))
            lines.append(_json_bytes({k: v for k, v in clip.items() if k != "start_time"}, indent=None))
        _write(folder / f"{split}.csv", _csv_bytes(rows))
    _write(folder / "annotations.jsonl", b"".join(lines))


# --------------------------------------------------------------------------------------------------------------- Clotho


def _render_clotho(job: _Job, split: Split, index: int) -> _Record:
    scene = sample_scene(job.seed, split, index)
    names = [event.name for event in scene.events]
    file_name = f"{' and '.join(names)} {scene.clip_id}.wav"
    _write_missing(
        job.root / "clotho" / CLOTHO_PARTS[split] / file_name,
        lambda: encode_wav(render_waveform(scene, CLOTHO_SAMPLE_RATE_HZ), CLOTHO_SAMPLE_RATE_HZ),
    )
    return {
        "file_name": file_name,
        "keywords": ";".join(names),
        "sound_id": index + 1,
        "num_samples": round(scene.duration_s * CLOTHO_SAMPLE_RATE_HZ),
        "captions": [_sentence(caption) for caption in terse_captions(scene, _NUM_CAPTIONS)],
        "detailed": detailed_caption(scene),
    }


def _sentence(caption: str) -> str:
    return f"{caption[0].upper()}{caption[1:]}."


def _write_clotho(job: _Job, records: Mapping[Split, list[_Record]]) -> None:
    folder = job.root / "clotho"
    details: list[dict[str, str]] = []
    for split, clips in records.items():
        part = CLOTHO_PARTS[split]
        captions: list[Sequence[object]] = [("file_name", *(f"caption_{i + 1}" for i in range(_NUM_CAPTIONS)))]
        captions.extend((clip["file_name"], *clip["captions"]) for clip in clips)
        _write(folder / f"clotho_captions_{part}.csv", _csv_bytes(captions))
        metadata: list[Sequence[object]] = [
            ("file_name", "keywords", "sound_id", "sound_link", "start_end_samples", "manufacturer", "license")
        ]
        metadata.extend(
            (
                clip["file_name"],
                clip["keywords"],
                clip["sound_id"],
                f"avcap-zoo:scenes/{job.seed}/{split}/{clip['sound_id'] - 1}",
                f"[0, {clip['num_samples']}]",
                "avcap-zoo",
                "http://www.apache.org/licenses/LICENSE-2.0",
            )
            for clip in clips
        )
        _write(folder / f"clotho_metadata_{part}.csv", _csv_bytes(metadata))
        if split == "train":  # the published file mixes in evaluation clips; here test data stays test data
            details = [
                {"audio_id": clip["file_name"].removesuffix(".wav"), "caption": clip["detailed"]} for clip in clips
            ]
    if details:
        _write(folder / "Clotho-detail-annotation.json", _json_bytes({"annotations": details}))


# --------------------------------------------------------------------------------------------------------------- VGG-SS


def _render_vggss(job: _Job, split: Split, index: int) -> _Record:
    scene = sample_scene(job.seed, split, index, relation="single")  # one class a clip, as in VGGSound
    folder = job.root / "vggss"
    name = f"{scene.clip_id}_{scene.start_time_s:06d}"
    middle = np.array([scene.duration_s / 2])
    _write_missing(
        folder / "audio" / f"{name}.wav",
        lambda: encode_wav(render_waveform(scene, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ),
    )
    _write_missing(folder / "video" / f"{name}.mp4", lambda: _video(job, scene, with_sound=True))
    _write_missing(
        folder / "image" / f"{name}.jpg",
        lambda: encode_jpg(render_frames_at(scene, middle, size_px=job.image_size_px)[0]),
    )
    where = boxes(scene, middle)[:, 0]
    return {
        "clip_id": scene.clip_id,
        "start_time": scene.start_time_s,
        "file": name,
        "class": scene.events[0].name,
        "bbox": [_rounded(where[i]) for i, thing in enumerate(scene.objects) if not thing.silent],
    }


def _write_vggss(job: _Job, records: Mapping[Split, list[_Record]]) -> None:
    folder = job.root / "vggss"
    clips = [(split, clip) for split, part in records.items() for clip in part]
    sounding = [{key: clip[key] for key in ("file", "class", "bbox")} for _, clip in clips]
    _write(folder / "vggss.json", _json_bytes(sounding))
    _write(folder / "vggss_test.csv", _csv_bytes((clip["file"],) for split, clip in clips if split == "test"))
    _write(
        folder / "vggsound.csv",
        _csv_bytes((clip["clip_id"], clip["start_time"], clip["class"], split) for split, clip in clips),
    )


# ----------------------------------------------------------------------------------------------------------------- COCO


def _render_coco(job: _Job, split: Split, index: int) -> _Record:
    relation: Relation = "single" if index % 3 == 0 else "while"  # one to three objects in a picture
    scene = sample_scene(job.seed, split, index, relation=relation)
    image_id = _COCO_FIRST_ID[split] + index
    folder = _COCO_FOLDERS[split]
    file_name = f"COCO_{folder}_{image_id:012d}.jpg"
    middle = np.array([scene.duration_s / 2])
    _write_missing(
        job.root / "coco" / folder / file_name,
        lambda: encode_jpg(render_frames_at(scene, middle, size_px=job.image_size_px)[0]),
    )
    masks = object_masks(scene, middle, size_px=job.image_size_px)[:, 0]
    return {
        "id": image_id,
        "file_name": file_name,
        "captions": still_captions(scene, float(middle[0]), _NUM_CAPTIONS),
        "objects": [
            {
                "segmentation": {"counts": _run_lengths(mask), "size": list(mask.shape)},
                "area": int(mask.sum()),
                "iscrowd": 0,
                "bbox": _mask_box(mask),
                "category_id": 1 + PICTURES.index(thing.picture),
            }
            for thing, mask in zip(scene.objects, masks, strict=True)
            if mask.any()
        ],
    }


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths: down the columns, beginning with a run of zeros that may be empty."""
    flat = np.concatenate(([False], mask.ravel(order="F"), [not mask[-1, -1]]))
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(length) for length in np.diff(np.concatenate(([0], changes)))]


def _mask_box(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's box of a mask: left, top, width, height in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def _write_coco(job: _Job, records: Mapping[Split, list[_Record]]) -> None:
    folder = job.root / "coco"
    head = {
        "info": {"description": "avcap-zoo scenes", "version": str(SCENES_VERSION), "year": 2014},
        "licenses": [{"id": 1, "name": "Apache License 2.0", "url": "http://www.apache.org/licenses/LICENSE-2.0"}],
    }
    categories = [{"id": i + 1, "name": name, "supercategory": "object"} for i, name in enumerate(PICTURES)]
    sentence_id = object_id = 0
    karpathy: list[_Record] = []
    for part in ("train2014", "val2014"):
        images: list[_Record] = []
        sentences: list[_Record] = []
        instances: list[_Record] = []
        for split, clips in records.items():
            if _COCO_FOLDERS[split] != part:
                continue
            for clip in clips:
                side = job.image_size_px
                image = {"id": clip["id"], "file_name": clip["file_name"], "height": side, "width": side, "license": 1}
                images.append(image)
                entry: _Record = {
                    "filepath": part,
                    "sentids": [],
                    "filename": clip["file_name"],
                    "imgid": len(karpathy),
                    "split": split,
                    "sentences": [],
                    "cocoid": clip["id"],
                }
                for caption in clip["captions"]:
                    sentence_id += 1
                    sentences.append({"image_id": clip["id"], "id": sentence_id, "caption": caption})
                    tokens = [word for word in split_words(caption) if word.isalpha()]
                    entry["sentids"].append(sentence_id)
                    entry["sentences"].append(
                        {"tokens": tokens, "raw": caption, "imgid": entry["imgid"], "sentid": sentence_id}
                    )
                karpathy.append(entry)
                for thing in clip["objects"]:
                    object_id += 1
                    instances.append({"id": object_id, "image_id": clip["id"], **thing})
        if not images:
            continue
        _write(
            folder / "annotations" / f"captions_{part}.json",
            _json_bytes({**head, "images": images, "annotations": sentences}, indent=None),
        )
        _write(
            folder / "annotations" / f"instances_{part}.json",
            _json_bytes({**head, "images": images, "annotations": instances, "categories": categories}, indent=None),
        )
    _write(folder / "dataset_coco.json", _json_bytes({"images": karpathy, "dataset": "coco"}, indent=None))


_RENDERERS: Final[dict[str, Callable[[_Job, Split, int], _Record]]] = {
    "audiocaps": _render_audiocaps,
    "clotho": _render_clotho,
    "vggss": _render_vggss,
    "coco": _render_coco,
}
_WRITERS: Final[dict[str, Callable[[_Job, Mapping[Split, list[_Record]]], None]]] = {
    "audiocaps": _write_audiocaps,
    "clotho": _write_clotho,
    "vggss": _write_vggss,
    "coco": _write_coco,
}
