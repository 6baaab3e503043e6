"""Media become the folder that a data module reads: round trips on every format, cuts, kills, broken sources."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from avcap_zoo.batch import Split
from avcap_zoo.data_modules.audiocaps import AudioCapsDataModule
from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.data_modules.clotho import ClothoDataModule
from avcap_zoo.data_modules.coco import COCODataModule
from avcap_zoo.data_modules.preparation import PreparationSettings, prepare
from avcap_zoo.data_modules.preparation_plans import PLANNERS
from avcap_zoo.data_modules.vggss import VGGSSDataModule
from avcap_zoo.errors import DataError
from tests.unit.data_modules.folders import write_rows
from tests.unit.data_modules.media_files import encode, numbered_frames, numbers_of, tone, write_sound

SMALL = PreparationSettings(num_frames=2, image_size_px=16)


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def run(
    name: str, media: Path, out: Path, settings: PreparationSettings = SMALL, annotations: Path | None = None
) -> tuple[int, int]:
    plan = PLANNERS[name](annotations or media, media, settings)
    return prepare(plan, out, settings, progress=False)


@pytest.mark.parametrize(
    ("name", "kind", "options", "official"),
    [
        ("audiocaps", AudioCapsDataModule, {}, 36),
        ("clotho", ClothoDataModule, {"sample_rate_hz": 16_000}, 36),
        ("vggss", VGGSSDataModule, {"num_frames": 1}, 36),
        ("coco", COCODataModule, {}, 36),
    ],
)
def test_the_data_module_reads_what_was_prepared(
    scenes_root: Path, tmp_path: Path, name: str, kind: type[CaptionDataModule], options: dict[str, Any], official: int
) -> None:
    media = scenes_root / name
    if name == "vggss":  # ten seconds are wanted of each; the scenes are the clips themselves
        shutil.copytree(media, tmp_path / "media")
        shutil.rmtree(tmp_path / "media" / "image")
        media = tmp_path / "media"
    out = tmp_path / "out"
    made, found = run(name, media, out)
    assert found == official
    shorter_than_frame = 0
    if name == "vggss":
        lost = rows_of(out / "missing.csv")[1:]
        assert all("wanted the frame at 5 s" in row[2] for row in lost)
        shorter_than_frame = len(lost)
    assert made == official - shorter_than_frame > 20
    assert len(rows_of(out / "manifest.csv")) == made + 1
    original: Any = kind(str(scenes_root / name), image_size_px=16, batch_size=8, **options)
    prepared: Any = kind(str(out), image_size_px=16, batch_size=8, min_present_share=0.1, **options)
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        # What was prepared comes from new files only.
        records = prepared.records(split)
        for index in range(len(records)):
            record = records[index]
            assert all(path is None or Path(path).is_relative_to(out) for path in (record.audio, record.visual))
    there = {record.clip_id for record in prepared.read_split("test").records}
    wanted = next(iter(original.evaluation_loader("test")))
    given = next(iter(prepared.evaluation_loader("test")))
    assert given.skipped == []
    assert given.clip_ids == [clip_id for clip_id in wanted.clip_ids if clip_id in there]
    if name in {"audiocaps", "coco"}:
        assert given.captions == wanted.captions
    if wanted.waveform is not None and name == "audiocaps":
        assert np.abs(given.waveform.numpy() - wanted.waveform.numpy()).max() <= 2 / 32768
    if name == "coco":
        assert np.array_equal(given.frames, wanted.frames)


def steps(seconds: int) -> Any:
    """A second of 300 Hz, a second of 320 Hz, and so on."""
    return np.concatenate([tone(hz=300 + 20 * second) for second in range(seconds)])


def test_ten_seconds_are_cut_from_a_whole_video(tmp_path: Path) -> None:
    film = encode(numbered_frames(30), steps(30)[None], fps=1)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "whole.mp4").write_bytes(film)
    (tmp_path / "in" / "Yready.mp4").write_bytes(encode(numbered_frames(10), steps(10)[None], fps=1))
    (tmp_path / "in" / "short.mp4").write_bytes(encode(numbered_frames(4), steps(4)[None], fps=1))
    rows = [
        (1, "whole", 15, "a"),
        (2, "whole", 3, "b"),
        (3, "ready", 70, "c"),
        (4, "short", 30, "d"),
        (5, "gone", 0, "e"),
    ]
    write_rows(tmp_path / "lists" / "train.csv", rows)
    settings = PreparationSettings(num_frames=5, image_size_px=16)
    assert run("audiocaps", tmp_path / "in", tmp_path / "out", settings, tmp_path / "lists") == (3, 5)
    folder = tmp_path / "out" / "train"
    for stem, first in (("whole_15000", 15), ("whole_3000", 3), ("ready_70000", 0)):
        samples, rate = soundfile.read(folder / "waveforms" / f"{stem}.wav")
        assert rate == 16_000
        assert len(samples) == pytest.approx(160_000, abs=2500)
        for second in (0, 9):
            part = samples[16_000 * second + 4000 : 16_000 * second + 12_000]
            spectrum = np.abs(np.fft.rfft(part * np.hanning(8000)))
            assert spectrum.argmax() * 2 == pytest.approx(300 + 20 * (first + second), abs=4)
        pictures = sorted((folder / "frames" / stem).glob("*.jpg"))
        assert [path.name for path in pictures] == [f"{number:03d}.jpg" for number in range(5)]
    data = AudioCapsDataModule(
        str(tmp_path / "out"), num_frames=5, image_size_px=16, batch_size=4, min_present_share=0.1
    )
    batch = next(iter(data.plain_loader("train", 4, ("visual",))))
    assert batch.frames is not None
    assert numbers_of(batch.frames[0].numpy()) == [16, 18, 20, 22, 24]
    lost = rows_of(tmp_path / "out" / "missing.csv")
    assert lost[0] == ["split", "id", "reason"]
    assert [row[:2] for row in lost[1:]] == [["train", "short_30000"], ["train", "gone_0"]]
    assert "ends before 30 s, where the clip begins; " in lost[1][2]
    assert "ends after 4 s, wanted the frame at 30 s" in lost[1][2]
    assert lost[2][2] == "no sound or video file and no video file"


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    write_sound(tmp_path / "in" / "a_0.wav", tone(rate_hz=44_100), 44_100)
    write_rows(tmp_path / "in" / "test.csv", [(1, "a", 0, "x")])
    settings = PreparationSettings(sample_rate_hz=8000, modalities=("audio",))
    assert run("audiocaps", tmp_path / "in", tmp_path / "out", settings) == (1, 1)
    assert soundfile.info(tmp_path / "out/test/waveforms/a_0.wav").samplerate == 8000
    assert rows_of(tmp_path / "out" / "manifest.csv")[1] == ["test", "a_0", "test/waveforms/a_0.wav", ""]
    assert not (tmp_path / "out/test/frames").exists()


def test_broken_sources_are_listed_and_tried_again(tmp_path: Path) -> None:
    for name in ("a_0", "b_0"):
        write_sound(tmp_path / "in" / f"{name}.wav")
    (tmp_path / "in" / "b_0.wav").write_bytes(b"garbage")
    write_rows(tmp_path / "in" / "test.csv", [(1, "a", 0, "x"), (2, "b", 0, "y")])
    settings = PreparationSettings(modalities=("audio",))
    assert run("audiocaps", tmp_path / "in", tmp_path / "out", settings) == (1, 2)
    assert "b_0.wav: not decodable as sound" in rows_of(tmp_path / "out" / "missing.csv")[1][2]
    made = tmp_path / "out/test/waveforms/a_0.wav"
    before = made.stat().st_mtime_ns
    write_sound(tmp_path / "in" / "b_0.wav")
    assert run("audiocaps", tmp_path / "in", tmp_path / "out", settings) == (2, 2)
    assert made.stat().st_mtime_ns == before
    assert len(rows_of(tmp_path / "out" / "missing.csv")) == 1


def test_a_killed_run_is_taken_up(tmp_path: Path) -> None:
    write_sound(tmp_path / "source.flac", tone(20, rate_hz=44_100), 44_100)
    code = (
        "from pathlib import Path; from avcap_zoo.data_modules.preparation import *;"
        "tasks = [MediaTask('test', f'c{n}', sound_source='source.flac', sound=f'test/c{n}.wav') for n in range(80)];"
        "made = prepare(Plan(tasks, {}), Path('out'), PreparationSettings(modalities=('audio',)), progress=False);"
        "print(made)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    made = tmp_path / "out/test"
    while len(list(made.glob("c*.wav")) if made.is_dir() else []) < 5:
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {path.name: path.stat().st_mtime_ns for path in made.glob("c*.wav")}
    assert 5 <= len(there) < 80
    assert not (tmp_path / "out" / "manifest.csv").exists()
    (made / ".c79.wav.1.tmp").write_bytes(b"half")
    again = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert again.stdout == "(80, 80)\n"
    assert {name: (made / name).stat().st_mtime_ns for name in there} == there
    assert not list((tmp_path / "out").rglob(".*"))
    assert len(rows_of(tmp_path / "out" / "manifest.csv")) == 81
    assert all(soundfile.info(made / f"c{number}.wav").frames == 320_000 for number in range(80))


def test_several_processes_make_the_same(tmp_path: Path) -> None:
    rows = [(number, f"c{number}", 0, "x") for number in range(10)]
    write_rows(tmp_path / "in" / "test.csv", rows)
    for number in range(10):
        write_sound(tmp_path / "in" / f"c{number}_0.wav", tone(0.1, hz=300 + 50 * number))
    (tmp_path / "in" / "c3_0.wav").write_bytes(b"")
    settings = PreparationSettings(modalities=("audio",))
    plan = PLANNERS["audiocaps"](tmp_path / "in", tmp_path / "in", settings)
    assert prepare(plan, tmp_path / "one", settings, progress=False) == (9, 10)
    assert prepare(plan, tmp_path / "two", settings, num_workers=2, progress=False) == (9, 10)
    files = [{p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two")]
    assert files[0] == files[1]


def test_workers_start_without_torch() -> None:
    code = "import sys, avcap_zoo.data_modules.preparation as p; print({'torch', 'lightning'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


@pytest.mark.parametrize("name", sorted(PLANNERS))
def test_no_annotations(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"holds none of .*: give their folder"):
        run(name, tmp_path, tmp_path / "out")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write_rows(tmp_path / "in" / "test.csv", [(1, "a", 0, "x")])
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(DataError, match=r"cannot write .*out: .*; what is there is kept, call again"):
        run("audiocaps", tmp_path / "in", tmp_path / "out")
