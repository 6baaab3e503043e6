"""What is made of which downloaded file, by data set: official annotations in, tasks for `preparation` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from avcap_zoo.batch import Split
from avcap_zoo.data_modules.annotations import Problems, file_name_problem, is_safe_id, parse_seconds, read_csv
from avcap_zoo.data_modules.audiocaps import COLUMNS
from avcap_zoo.data_modules.clotho import CAPTION_COLUMNS, PARTS
from avcap_zoo.data_modules.coco import PICTURE_FOLDERS, Pictures, read_captions, read_karpathy
from avcap_zoo.data_modules.media.video import PICTURE_SUFFIXES
from avcap_zoo.data_modules.media_files import AUDIO_SUFFIXES, VIDEO_SUFFIXES, MediaFiles
from avcap_zoo.data_modules.preparation import MediaTask, Plan, PreparationSettings
from avcap_zoo.data_modules.records import SplitIndex
from avcap_zoo.data_modules.vggss import FRAME_AT_S, read_vggss
from avcap_zoo.errors import DataError

_SPLITS: tuple[Split, ...] = ("train", "val", "test")


def plan_audiocaps(annotations: Path, media: Path, settings: PreparationSettings) -> Plan:
    """Clips of train.csv, val.csv and test.csv, as far as these exist.

    A source named `<youtube_id>_<start in ms>` or `Y<youtube_id>` is the clip; one named `<youtube_id>` is the whole
    video, and ten seconds are cut from it. Sub-folders are looked into.

    Raises:
        DataError: no CSV, wrong columns, unsafe ids, or bad numbers.
    """
    sources = _Sources(media)
    tasks: dict[tuple[str, float], MediaTask] = {}
    files = _present(annotations, [f"{split}.csv" for split in _SPLITS], "AudioCaps publishes train.csv, val.csv and")
    for path in files.values():
        problems = Problems(path)
        for row in read_csv(path, COLUMNS, problems, hint=""):
            youtube_id, start = row.values["youtube_id"], row.values["start_time"]
            start_s = parse_seconds(start)
            if not is_safe_id(youtube_id):
                problems.add(row.place, f"id {youtube_id!r} is no safe id")
            elif start_s is None:
                problems.add(row.place, f"start_time {start!r} is no number")
            elif (youtube_id, start_s) not in tasks:
                stem = f"{youtube_id}_{round(start_s * 1000)}"
                tasks[youtube_id, start_s] = sources.task(
                    path.stem,
                    stem,
                    (stem, f"Y{youtube_id}"),
                    youtube_id,
                    start_s,
                    settings,
                    sound=f"{path.stem}/waveforms/{stem}.wav",
                    frames=f"{path.stem}/frames/{stem}",
                )
        problems.raise_any()
    return Plan(list(tasks.values()), files)


def plan_vggss(annotations: Path, media: Path, settings: PreparationSettings) -> Plan:
    """Clips of vggss.json: ten seconds of sound and the annotated frame; sources as for AudioCaps, starts in seconds.

    Raises:
        DataError: no vggss.json, or a malformed one.
    """
    sources = _Sources(media)
    files = _present(annotations, ["vggss.json", "vggss_test.csv", "vggsound.csv"], "VGGSS publishes vggss.json,")
    clips = read_vggss(annotations / "vggss.json", SplitIndex())
    tasks = [
        sources.task(
            "",
            clip.name,
            (clip.name, f"{clip.youtube_id}_{clip.start_s}", f"{clip.youtube_id}_{clip.start_s * 1000}"),
            clip.youtube_id,
            float(clip.start_s),
            settings,
            sound=f"audio/{clip.name}.wav",
            still=f"image/{clip.name}.jpg",
        )
        for clip in clips
    ]
    return Plan(tasks, files)


def plan_clotho(annotations: Path, media: Path, settings: PreparationSettings) -> Plan:
    """Clips of the captions files of development, validation and evaluation; sources lie in folders of these names.

    Raises:
        DataError: no captions file, wrong columns, or names that lead elsewhere.
    """
    names = {part: f"clotho_captions_{part}.csv" for part in PARTS.values()}
    metadata = [f"clotho_metadata_{part}.csv" for part in names]
    files = _present(annotations, [*names.values(), *metadata], "Clotho publishes clotho_captions_development.csv,")
    tasks: dict[str, MediaTask] = {}
    for split, part in PARTS.items():
        path = files.get(names[part])
        if path is None:
            continue
        sounds = MediaFiles(media, (part, f"clotho_audio_{part}/{part}", f"clotho_audio_{part}"), AUDIO_SUFFIXES)
        problems = Problems(path)
        for row in read_csv(path, ("file_name", *CAPTION_COLUMNS), problems, hint=""):
            name = row.values["file_name"]
            if problem := file_name_problem(name):
                problems.add(row.place, problem)
                continue
            stem = name.removesuffix(".wav")
            source = sounds.find([stem])
            target = f"{part}/{stem}.wav"
            lacking = "" if source else "no sound file"
            tasks[target] = MediaTask(split, stem, sound_source=source, sound=target, lacking=lacking)
        problems.raise_any()
    return Plan(list(tasks.values()), files)


def plan_coco(annotations: Path, media: Path, settings: PreparationSettings) -> Plan:
    """Pictures of dataset_coco.json (Karpathy's split), or of captions_{train,val}{2014,2017}.json.

    Raises:
        DataError: no annotations, or malformed ones.
    """
    karpathy, official = "dataset_coco.json", [f"captions_{s}{year}.json" for s in _SPLITS[:2] for year in (2014, 2017)]
    places = [f"{folder}{name}" for folder in ("", "annotations/") for name in (karpathy, *official)]
    files = _present(annotations, places, "COCO publishes annotations/captions_train2014.json,")
    tasks: dict[str, MediaTask] = {}
    sources = MediaFiles(media, (*PICTURE_FOLDERS, ""), PICTURE_SUFFIXES)
    for place, path in files.items():
        by_split: dict[str, Pictures] = {}
        if place.endswith(karpathy):
            by_split = {
                split: read_karpathy(path, {split}, SplitIndex()) for split in ("train", "restval", *_SPLITS[1:])
            }
        else:
            by_split = {path.stem.removeprefix("captions_")[:-4]: read_captions(path, SplitIndex())}
        for split, pictures in by_split.items():
            for clip_id, (name, _) in pictures.items():
                folder = name.partition("/")[0] if "/" in name else path.stem.removeprefix("captions_")
                file_name = name.rpartition("/")[2]
                source = sources.find([file_name.rpartition(".")[0]])
                lacking = "" if source else "no picture"
                target = f"{folder}/{file_name}"
                task = MediaTask(split, clip_id, picture_source=source, picture=target, lacking=lacking)
                tasks.setdefault(target, task)
    return Plan(list(tasks.values()), files)


PLANNERS: dict[str, Callable[[Path, Path, PreparationSettings], Plan]] = {
    "audiocaps": plan_audiocaps,
    "vggss": plan_vggss,
    "clotho": plan_clotho,
    "coco": plan_coco,
}


class _Sources:
    """Sounds and videos of a folder and all below it."""

    def __init__(self, media: Path) -> None:
        self.videos = MediaFiles(media, ("",), VIDEO_SUFFIXES, deep=True)
        self.sounds = MediaFiles(media, ("",), AUDIO_SUFFIXES, deep=True)

    def task(
        self,
        split: str,
        clip_id: str,
        cut_stems: Sequence[str],
        youtube_id: str,
        start_s: float,
        settings: PreparationSettings,
        *,
        sound: str,
        frames: str | None = None,
        still: str | None = None,
    ) -> MediaTask:
        """The task of a clip, from a file that is the clip or else from the whole video."""
        video = self.videos.find(cut_stems)
        heard = self.sounds.find(cut_stems) or video
        is_whole = heard is None
        if is_whole:
            video = self.videos.find([youtube_id])
            heard = self.sounds.find([youtube_id]) or video
        lacking = []
        wants_sound, wants_pictures = ("audio" in settings.modalities), ("visual" in settings.modalities)
        if wants_sound and heard is None:
            lacking.append("no sound or video file")
        if wants_pictures and video is None:
            lacking.append("no video file")
        return MediaTask(
            split,
            clip_id,
            sound_source=heard,
            picture_source=video,
            start_s=start_s if is_whole else None,
            sound=sound if wants_sound else None,
            frames=frames if wants_pictures else None,
            still=still if wants_pictures else None,
            still_at_s=FRAME_AT_S,
            lacking=" and ".join(lacking),
        )


def _present(folder: Path, names: Sequence[str], published: str) -> dict[str, Path]:
    found = {name: folder / name for name in names if (folder / name).is_file()}
    if not found:
        raise DataError(f"{folder} holds none of {', '.join(names)}; {published} ...: give their folder")
    return found
