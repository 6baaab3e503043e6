"""Folders in the published formats: right names and headers, readable media, resumable, cached, deterministic."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avcap_zoo.data_modules.media.encoding import encode_mp4
from avcap_zoo.data_modules.scenes import export, published_forms
from avcap_zoo.data_modules.scenes.events import EVENTS, PICTURES, SOUNDS
from avcap_zoo.data_modules.scenes.export import FORMATS, generate_scenes
from avcap_zoo.data_modules.scenes.scene import (
    object_masks,
    render_frames,
    render_waveform,
    sample_scene,
    still_captions,
    terse_captions,
)
from avcap_zoo.errors import ConfigError, DataError

COUNTS = {"train": 5, "val": 2, "test": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_scenes(
        tmp_path_factory.mktemp("scenes") / "all", counts=COUNTS, formats="all", num_workers=1, progress=False
    )


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _hashes(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in suffixes
    }


def _frames(path: Path | BytesIO) -> np.ndarray[Any, Any]:
    with av.open(path if isinstance(path, BytesIO) else str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_audiocaps_files_are_as_published(root: Path) -> None:
    folder = root / "audiocaps"
    numbers: list[str] = []
    for split, captions_per_clip in (("train", 1), ("val", 5), ("test", 5)):
        head, *rows = _rows(folder / f"{split}.csv")
        assert head == ["audiocap_id", "youtube_id", "start_time", "caption"]
        assert len(rows) == captions_per_clip * COUNTS[split]
        numbers.extend(row[0] for row in rows)
        stems = {f"{row[1]}_{int(row[2]) * 1000}" for row in rows}
        assert {path.stem for path in (folder / split / "waveforms").iterdir()} == stems
        assert {path.stem for path in (folder / split / "videos").iterdir()} == stems
    assert len(set(numbers)) == len(numbers)


def test_audiocaps_media_are_readable_and_show_the_scene(root: Path) -> None:
    for index in range(3):
        scene = sample_scene(0, "test", index)
        stem = root / "audiocaps" / "test"
        samples, rate = soundfile.read(stem / "waveforms" / f"{scene.media_stem}.wav", dtype="float32")
        assert rate == 16000
        assert soundfile.info(stem / "waveforms" / f"{scene.media_stem}.wav").subtype == "PCM_16"
        assert np.abs(samples - render_waveform(scene)).max() < 2 / 32768
        frames = _frames(stem / "videos" / f"{scene.media_stem}.mp4")
        drawn = render_frames(scene, fps=2)
        assert frames.shape == drawn.shape == (round(2 * scene.duration_s), 64, 64, 3)
        assert np.abs(frames.astype(int) - drawn).mean() < 8
        with av.open(str(stem / "videos" / f"{scene.media_stem}.mp4")) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate == 2


def test_annotations_hold_the_truth(root: Path) -> None:
    lines = (root / "audiocaps" / "annotations.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == sum(COUNTS.values())
    for record in records:
        assert len(record["captions"]) == 5
        assert record["detailed"].endswith(".")
        assert {event["label"] for event in record["events"]} <= set(EVENTS)
        assert {sound["label"] for sound in record["sounds"]} <= set(SOUNDS)
        assert len(record["sounds"]) == len(record["events"])
        for thing in record["objects"]:
            assert thing["label"] in PICTURES
            left, top, right, bottom = thing["box"]
            assert 0 <= left < right <= 1
            assert 0 <= top < bottom <= 1
            assert 0 <= thing["onset_s"] < thing["offset_s"] <= record["duration_s"]
            assert isinstance(thing["silent"], bool)
    assert records[0]["captions"] == terse_captions(sample_scene(0, "train", 0))


def test_clotho_files_are_as_published(root: Path) -> None:
    folder = root / "clotho"
    for split, part in (("train", "development"), ("val", "validation"), ("test", "evaluation")):
        head, *rows = _rows(folder / f"clotho_captions_{part}.csv")
        assert head == ["file_name", *(f"caption_{i}" for i in range(1, 6))]
        assert len(rows) == COUNTS[split]
        names = {row[0] for row in rows}
        assert {path.name for path in (folder / part).iterdir()} == names
        assert all(caption[0].isupper() and caption.endswith(".") for row in rows for caption in row[1:])
        head, *metadata = _rows(folder / f"clotho_metadata_{part}.csv")
        assert ",".join(head) == "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
        assert {row[0] for row in metadata} == names
        for row in metadata:
            info = soundfile.info(folder / part / row[0])
            assert (info.samplerate, info.channels) == (44100, 1)
            assert json.loads(row[4]) == [0, info.frames]
    details = json.loads((folder / "Clotho-detail-annotation.json").read_text())["annotations"]
    assert all((folder / "development" / f"{item['audio_id']}.wav").exists() for item in details)
    assert len(details) == COUNTS["train"]


def test_vggss_files_are_as_published(root: Path) -> None:
    folder = root / "vggss"
    clips = json.loads((folder / "vggss.json").read_text())
    rows = _rows(folder / "vggsound.csv")
    assert len(clips) == len(rows) == sum(COUNTS.values())
    assert [row[0] for row in _rows(folder / "vggss_test.csv")] == [
        f"{row[0]}_{int(row[1]):06d}" for row in rows if row[3] == "test"
    ]
    for clip, row in zip(clips, rows, strict=True):
        assert set(clip) == {"file", "class", "bbox"}
        assert clip["file"] == f"{row[0]}_{int(row[1]):06d}"
        assert clip["class"] == row[2]
        assert clip["class"] in EVENTS
        assert row[3] in COUNTS
        ((left, top, right, bottom),) = clip["bbox"]
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        with Image.open(folder / "image" / f"{clip['file']}.jpg") as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
        duration_s = soundfile.info(folder / "audio" / f"{clip['file']}.wav").duration
        with av.open(str(folder / "video" / f"{clip['file']}.mp4")) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            assert len(sound) / 16000 == pytest.approx(duration_s, abs=0.2)


def test_coco_files_are_as_published(root: Path) -> None:
    folder = root / "coco"
    for part, num_images in (("train2014", 5), ("val2014", 5)):
        captions = json.loads((folder / "annotations" / f"captions_{part}.json").read_text())
        instances = json.loads((folder / "annotations" / f"instances_{part}.json").read_text())
        assert captions["images"] == instances["images"]
        assert len(captions["images"]) == num_images
        assert len(captions["annotations"]) == 5 * num_images
        assert [category["name"] for category in instances["categories"]] == list(PICTURES)
        for image in captions["images"]:
            assert image["file_name"] == f"COCO_{part}_{image['id']:012d}.jpg"
            with Image.open(folder / part / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
    karpathy = json.loads((folder / "dataset_coco.json").read_text())
    assert karpathy["dataset"] == "coco"
    assert [image["split"] for image in karpathy["images"]] == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    for image in karpathy["images"]:
        assert (folder / image["filepath"] / image["filename"]).exists()
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        for sentence in image["sentences"]:
            assert " ".join(sentence["tokens"]) == sentence["raw"].lower().replace(",", "").rstrip(".")


def test_coco_masks_are_the_drawn_ones(root: Path) -> None:
    instances = json.loads((root / "coco" / "annotations" / "instances_train2014.json").read_text())
    scene = sample_scene(0, "train", 1, relation="while")
    masks = object_masks(scene, np.array([scene.duration_s / 2]))[:, 0]
    found = [item for item in instances["annotations"] if item["image_id"] == 2]
    assert len(found) == len(masks)
    for item, mask in zip(found, masks, strict=True):
        counts = item["segmentation"]["counts"]
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        assert np.array_equal(flat.reshape(64, 64, order="F"), mask)
        assert item["area"] == mask.sum()
        left, top, width, height = item["bbox"]
        assert mask[top : top + height, left : left + width].sum() == mask.sum()
    captions = json.loads((root / "coco" / "annotations" / "captions_train2014.json").read_text())
    said = [item["caption"] for item in captions["annotations"] if item["image_id"] == 2]
    assert said == still_captions(scene, scene.duration_s / 2)


def test_run_lengths_begin_with_zeros() -> None:
    assert published_forms._run_lengths(np.array([[True, False], [True, False]])) == [0, 2, 2]
    assert published_forms._run_lengths(np.array([[False, True], [False, True]])) == [2, 2]


def test_info_file_says_what_is_there(root: Path) -> None:
    info = json.loads((root / "scenes.json").read_text())
    assert info == {"version": 1, "seed": 0, "counts": COUNTS, "image_size_px": 64, "formats": list(FORMATS)}
    assert not (root / "scenes.unfinished.json").exists()
    assert not list(root.rglob("*.tmp"))


def test_bytes_depend_on_the_arguments_alone(root: Path, tmp_path: Path) -> None:
    again = generate_scenes(tmp_path / "two", counts=COUNTS, formats="all", num_workers=2, progress=False)
    suffixes = (".wav", ".jpg", ".csv", ".json", ".jsonl")
    assert _hashes(again, suffixes) == _hashes(root, suffixes)
    other = generate_scenes(tmp_path / "seed", counts={"train": 5}, formats=["audiocaps"], seed=1, progress=False)
    ours, theirs = (_hashes(folder / "audiocaps" / "train", (".wav",)) for folder in (root, other))
    assert not set(ours) & set(theirs)
    assert not set(ours.values()) & set(theirs.values())


def test_splits_share_no_file(root: Path) -> None:
    names = [path.name for path in (root / "audiocaps").rglob("*.wav")]
    assert len(set(names)) == len(names) == sum(COUNTS.values())
    assert len(set(_hashes(root / "audiocaps", (".wav",)).values())) == len(names)


def test_a_killed_run_is_completed_without_doing_work_twice(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[str] = []
    stop_after = 4

    def render(scene: Any, sample_rate_hz: int = 16000) -> Any:
        if len(rendered) >= stop_after:
            raise KeyboardInterrupt
        rendered.append(scene.clip_id)
        return render_waveform(scene, sample_rate_hz)

    monkeypatch.setattr(published_forms, "render_waveform", render)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        generate_scenes(folder, counts=COUNTS, formats=["audiocaps"], num_workers=1, progress=False)
    assert not (folder / "scenes.json").exists()
    half_written = folder / "audiocaps" / "train" / "waveforms" / ".x.wav.123.tmp"
    half_written.write_bytes(b"half")
    with pytest.raises(DataError, match="unfinished"):
        generate_scenes(folder, counts=COUNTS, formats=["audiocaps"], seed=9, num_workers=1, progress=False)
    stop_after = 1000
    generate_scenes(folder, counts=COUNTS, formats=["audiocaps"], num_workers=1, progress=False)
    assert len(rendered) == len(set(rendered)) == sum(COUNTS.values())
    assert not half_written.exists()
    suffixes = (".wav", ".csv", ".jsonl")
    assert _hashes(folder / "audiocaps", suffixes) == _hashes(root / "audiocaps", suffixes)


def test_a_finished_folder_is_left_alone_and_formats_can_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = generate_scenes(tmp_path / "set", counts={"train": 2}, formats=["coco"], progress=False)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    with monkeypatch.context() as patch:
        patch.setattr(export, "_render_all", lambda *_: pytest.fail("rendered again"))
        assert generate_scenes(folder, counts={"train": 2}, formats="coco", progress=False) == folder
    generate_scenes(folder, counts={"train": 2}, formats=["coco", "audiocaps"], progress=False)
    assert json.loads((folder / "scenes.json").read_text())["formats"] == ["audiocaps", "coco"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if "coco" in path.parts)
    generate_scenes(folder, counts={"train": 2}, formats=["vggss"], progress=False)
    assert json.loads((folder / "scenes.json").read_text())["formats"] == ["audiocaps", "vggss", "coco"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"seed 0 \(asked: 1\)"),
        ({"counts": {"train": 6}}, r"counts .*5.*\(asked: .*6"),
        ({"image_size_px": 32}, r"image_size_px 64 \(asked: 32\)"),
    ],
)
def test_other_arguments_in_the_same_folder_are_refused(root: Path, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"counts": COUNTS, "formats": "all", "progress": False, **changes}
    with pytest.raises(DataError, match=message) as caught:
        generate_scenes(root, **arguments)
    assert str(root) in str(caught.value)
    assert "choose another root" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ["audiocap"]}, "audiocaps, clotho, vggss, coco"),
        ({"formats": []}, "audiocaps, clotho, vggss, coco"),
        ({"counts": {"dev": 5}}, "train, val, test"),
        ({"counts": {"train": 0, "test": -1}}, "train is 0.*test is -1"),
        ({"counts": {}}, "no split"),
        ({"image_size_px": 33}, "33"),
        ({"seed": -1}, "-1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"counts": COUNTS, "progress": False, **changes}
    with pytest.raises(ConfigError, match=message):
        generate_scenes(tmp_path / "never", **arguments)
    assert not (tmp_path / "never").exists()


def test_folders_that_cannot_be_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for taken in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=str(tmp_path / "file")):
            generate_scenes(taken, counts={"train": 1}, progress=False)

    def full(self: Path, content: bytes) -> int:
        if self.name.endswith(".wav.tmp") or ".wav." in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        with self.open("wb") as file:
            return file.write(content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"\.wav: No space left on device.*call again"):
        generate_scenes(tmp_path / "full", counts={"train": 1}, num_workers=1, progress=False)


def test_a_damaged_info_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "scenes.json").write_text("{")
    with pytest.raises(DataError, match=r"scenes\.json"):
        generate_scenes(tmp_path, counts={"train": 1}, progress=False)
    (tmp_path / "scenes.json").write_text("[1]")
    with pytest.raises(DataError, match=r"scenes\.json"):
        generate_scenes(tmp_path, counts={"train": 1}, progress=False)


def test_progress_bar_counts_every_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_scenes(tmp_path, counts={"train": 2, "test": 1}, formats=["coco"], progress=True)
    assert "3/3" in capsys.readouterr().err


def test_mp4_with_sound_holds_both_tracks() -> None:
    scene = sample_scene(0, "train", 2)
    content = encode_mp4(render_frames(scene, fps=2), 2, render_waveform(scene), 16000)
    assert len(_frames(BytesIO(content))) == round(2 * scene.duration_s)
    with av.open(BytesIO(content)) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    level = np.sqrt(np.mean(render_waveform(scene) ** 2))
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(level, rel=0.1)


@pytest.mark.parametrize("from_stdin", [False, True])
def test_workers_need_no_main_guard(tmp_path: Path, from_stdin: bool) -> None:
    code = (
        "from pathlib import Path\n"
        "from avcap_zoo.data_modules.scenes import generate_scenes\n"
        f"generate_scenes(Path({str(tmp_path / 'set')!r}), counts={{'train': 40}}, formats='coco', num_workers=2, "
        "progress=False)\n"
    )
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, "-" if from_stdin else str(tmp_path / "script.py")]
    done = subprocess.run(
        command, input=code, text=True, capture_output=True, timeout=60, check=False, start_new_session=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "set" / "coco" / "train2014").iterdir())) == 40


def test_importing_scenes_needs_no_torch() -> None:
    code = "import sys, avcap_zoo.data_modules.scenes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
