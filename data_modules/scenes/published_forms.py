"""A scene as one clip of each published data set: its media files, and the annotation files of all clips.

The layout of the folders stands in `export`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.data_modules.files import csv_bytes, json_bytes, write_file
from avcap_zoo.data_modules.media.encoding import encode_jpg, encode_mp4, encode_wav
from avcap_zoo.data_modules.scenes.events import PICTURES, Relation, Split
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

VIDEO_FPS: Final = 2
"""Frames a second of the mp4 files: a clip of ten seconds has twenty."""

CLOTHO_PARTS: Final[dict[Split, str]] = {"train": "development", "val": "validation", "test": "evaluation"}
CLOTHO_SAMPLE_RATE_HZ: Final = 44100
SAMPLE_RATE_HZ: Final = 16000

_NUM_CAPTIONS: Final = 5
_COCO_FIRST_ID: Final[dict[Split, int]] = {"train": 1, "val": 100_000_001, "test": 200_000_001}
_COCO_FOLDERS: Final[dict[Split, str]] = {"train": "train2014", "val": "val2014", "test": "val2014"}

Record = dict[str, Any]
"""What the annotation files need to know of a clip."""


@dataclass(frozen=True)
class Job:
    """What a worker must know; small and picklable.

    Attributes:
        root: folder to write to.
        seed: of the data set.
        image_size_px: side of frames and pictures.
    """

    root: Path
    seed: int
    image_size_px: int


def _write_missing(path: Path, make: Callable[[], bytes]) -> None:
    if not path.exists():
        write_file(path, make())


def _times(scene: Scene) -> NDArray[np.float64]:
    return frame_times(scene, fps=VIDEO_FPS)


def _video(job: Job, scene: Scene, *, with_sound: bool = False) -> bytes:
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


def _render_audiocaps(job: Job, split: Split, index: int) -> Record:
    scene = sample_scene(job.seed, split, index)
    folder = job.root / "audiocaps" / split
    _write_missing(
        folder / "waveforms" / f"{scene.media_stem}.wav",
        lambda: encode_wav(render_waveform(scene, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ),
    )
    _write_missing(folder / "videos" / f"{scene.media_stem}.mp4", lambda: _video(job, scene))
    return {"start_time": scene.start_time_s, **annotate(scene)}


def _write_audiocaps(job: Job, records: Mapping[Split, list[Record]]) -> None:
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
            lines.append(json_bytes({k: v for k, v in clip.items() if k != "start_time"}, indent=None))
        write_file(folder / f"{split}.csv", csv_bytes(rows))
    write_file(folder / "annotations.jsonl", b"".join(lines))


# --------------------------------------------------------------------------------------------------------------- Clotho


def _render_clotho(job: Job, split: Split, index: int) -> Record:
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


def _write_clotho(job: Job, records: Mapping[Split, list[Record]]) -> None:
    folder = job.root / "clotho"
    details: list[dict[str, str]] = []
    for split, clips in records.items():
        part = CLOTHO_PARTS[split]
        captions: list[Sequence[object]] = [("file_name", *(f"caption_{i + 1}" for i in range(_NUM_CAPTIONS)))]
        captions.extend((clip["file_name"], *clip["captions"]) for clip in clips)
        write_file(folder / f"clotho_captions_{part}.csv", csv_bytes(captions))
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
        write_file(folder / f"clotho_metadata_{part}.csv", csv_bytes(metadata))
        if split == "train":  # the published file mixes in evaluation clips; here test data stays test data
            details = [
                {"audio_id": clip["file_name"].removesuffix(".wav"), "caption": clip["detailed"]} for clip in clips
            ]
    if details:
        write_file(folder / "Clotho-detail-annotation.json", json_bytes({"annotations": details}))


# --------------------------------------------------------------------------------------------------------------- VGG-SS


def _render_vggss(job: Job, split: Split, index: int) -> Record:
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


def _write_vggss(job: Job, records: Mapping[Split, list[Record]]) -> None:
    folder = job.root / "vggss"
    clips = [(split, clip) for split, part in records.items() for clip in part]
    sounding = [{key: clip[key] for key in ("file", "class", "bbox")} for _, clip in clips]
    write_file(folder / "vggss.json", json_bytes(sounding))
    write_file(folder / "vggss_test.csv", csv_bytes((clip["file"],) for split, clip in clips if split == "test"))
    write_file(
        folder / "vggsound.csv",
        csv_bytes((clip["clip_id"], clip["start_time"], clip["class"], split) for split, clip in clips),
    )


# ----------------------------------------------------------------------------------------------------------------- COCO


def _render_coco(job: Job, split: Split, index: int) -> Record:
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


def _write_coco(job: Job, records: Mapping[Split, list[Record]]) -> None:
    folder = job.root / "coco"
    head = {
        "info": {"description": "avcap-zoo scenes", "version": str(SCENES_VERSION), "year": 2014},
        "licenses": [{"id": 1, "name": "Apache License 2.0", "url": "http://www.apache.org/licenses/LICENSE-2.0"}],
    }
    categories = [{"id": i + 1, "name": name, "supercategory": "object"} for i, name in enumerate(PICTURES)]
    sentence_id = object_id = 0
    karpathy: list[Record] = []
    for part in ("train2014", "val2014"):
        images: list[Record] = []
        sentences: list[Record] = []
        instances: list[Record] = []
        for split, clips in records.items():
            if _COCO_FOLDERS[split] != part:
                continue
            for clip in clips:
                side = job.image_size_px
                image = {"id": clip["id"], "file_name": clip["file_name"], "height": side, "width": side, "license": 1}
                images.append(image)
                entry: Record = {
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
        write_file(
            folder / "annotations" / f"captions_{part}.json",
            json_bytes({**head, "images": images, "annotations": sentences}, indent=None),
        )
        write_file(
            folder / "annotations" / f"instances_{part}.json",
            json_bytes({**head, "images": images, "annotations": instances, "categories": categories}, indent=None),
        )
    write_file(folder / "dataset_coco.json", json_bytes({"images": karpathy, "dataset": "coco"}, indent=None))


RENDERERS: Final[dict[str, Callable[[Job, Split, int], Record]]] = {
    "audiocaps": _render_audiocaps,
    "clotho": _render_clotho,
    "vggss": _render_vggss,
    "coco": _render_coco,
}
WRITERS: Final[dict[str, Callable[[Job, Mapping[Split, list[Record]]], None]]] = {
    "audiocaps": _write_audiocaps,
    "clotho": _write_clotho,
    "vggss": _write_vggss,
    "coco": _write_coco,
}
