"""`avcap caption` and `avcap_zoo.load` on a LAVCap of two steps: same captions as predict, resume, errors, windows."""

from __future__ import annotations

import csv
import io
import json
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
import torch
from PIL import Image

import avcap_zoo
from avcap_zoo.cli.main import avcap
from avcap_zoo.errors import AvcapError, MediaError, WeightsError
from avcap_zoo.serving.loading import load_system
from avcap_zoo.systems.base import CHECKPOINT_KEY
from avcap_zoo.systems.lavcap.fusion_kinds import FusionKind
from tests.integration.tiny import tiny_data, tiny_lavcap, tiny_trainer
from tests.unit.cli.running import call, write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(scenes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two steps."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    tiny_trainer(folder, every=2, max_steps=2, limit_val_batches=0).fit(
        tiny_lavcap(), datamodule=tiny_data(scenes_root)
    )
    return folder / "checkpoints/step=2.ckpt"


@pytest.fixture
def videos(scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four short videos with sound in ./videos, and a broken one between them."""
    monkeypatch.chdir(tmp_path)
    folder = Path("videos")
    folder.mkdir()
    for number, path in enumerate(sorted((scenes_root / "vggss/video").glob("*.mp4"))[:4]):
        shutil.copy(path, folder / f"{number}.mp4")
    (folder / "1b.mp4").write_text("<html>not found</html>")
    return folder


def rows_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_the_same_captions_as_predict(
    trained: Path,
    scenes_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tiny_data(scenes_root)
    tiny_trainer(tmp_path).predict(tiny_lavcap(), datamodule=data, ckpt_path=trained)
    predicted = {row["id"]: row["caption"] for row in rows_of(tmp_path / "predictions.jsonl")}
    assert len(predicted) == 6
    records = [data.records("test")[index] for index in range(6)]
    listed = [{"id": r.clip_id, "audio": r.audio, "visual": r.visual} for r in records]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(row) + "\n" for row in listed)))
    out = tmp_path / "captions.jsonl"
    said = call(capsys, avcap, ["caption", "-", "--checkpoint", str(trained), "--out", str(out), "--batch_size", "4"])
    assert said.code == 0, said.err
    assert {row["id"]: row["caption"] for row in rows_of(out)} == {
        clip_id: " ".join(caption.split()) for clip_id, caption in predicted.items()
    }
    assert rows_of(out)[0]["decode"]["num_beams"] == 2
    assert "num_frames" not in said.err  # data settings come from the checkpoint: 4 frames of 32 pixels
    loaded = load_system(trained)
    assert (loaded.decode.num_frames, loaded.decode.image_size_px, loaded.assumed) == (4, 32, ())


def test_a_broken_file_does_not_stop_the_rest(trained: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["caption", "videos", "gone.wav", "--checkpoint", str(trained)]
    said = call(capsys, avcap, [*command, "--out", "a.csv", "--explain", "why", "--batch_size", "2"])
    assert said.code == 1
    assert "videos/1b.mp4: not decodable as sound" in said.err
    assert "gone.wav: no such file" in said.err
    assert "4 of 6 captioned: a.csv, why/index.html; 2 failed, named above" in said.err
    with Path("a.csv").open(newline="") as file:
        table = {row["id"]: row["caption"] for row in csv.DictReader(file)}
    assert list(table) == [f"videos/{number}.mp4" for number in range(4)]
    # One at a time, printed: the same words.
    said = call(capsys, avcap, [*command[:2], "--checkpoint", str(trained), "--batch_size", "1"])
    assert dict(line.split("\t") for line in said.out.splitlines()) == table
    for number in range(4):
        with Image.open(f"why/videos_{number}.mp4.png") as picture:
            assert picture.width == 1120
    assert "4 captions" in Path("why/index.html").read_text()
    # Once it is mended, only the broken one is done.
    shutil.copy(videos / "0.mp4", videos / "1b.mp4")
    said = call(capsys, avcap, ["caption", "videos", "--checkpoint", str(trained), "--out", "a.csv"])
    assert said.code == 0
    assert "4 of 5 captions are in a.csv already" in said.err
    assert len(Path("a.csv").read_text().splitlines()) == 6


@pytest.mark.slow
def test_a_killed_run_is_taken_up_again(trained: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "1b.mp4").unlink()
    for number in range(4, 60):
        shutil.copy(videos / f"{number % 4}.mp4", videos / f"{number:02}.mp4")
    command = ["caption", "videos", "--checkpoint", str(trained), "--out", "a.jsonl", "--batch_size", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen([sys.executable, "-m", "avcap_zoo", *command], env=environment) as process:
        deadline = time.monotonic() + 120
        while not (Path("a.jsonl").exists() and Path("a.jsonl").stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = Path("a.jsonl").read_bytes()
    assert 0 < len(before.splitlines()) < 60
    Path("a.jsonl").write_bytes(before[:-7])  # as if the kill had come within a line
    said = call(capsys, avcap, [*command[:-1], "16"])
    assert said.code == 0
    assert "captions are in a.jsonl already" in said.err or len(before.splitlines()) == 1
    rows = rows_of("a.jsonl")
    assert len(rows) == len({row["id"] for row in rows}) == 60
    by_video: dict[int, set[str]] = {}
    for row in rows:
        by_video.setdefault(int(Path(row["id"]).stem) % 4, set()).add(row["caption"])
    assert all(len(captions) == 1 for captions in by_video.values())


def test_two_processes_share_a_list(
    trained: Path, videos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("list.txt").write_text("".join(f"{path}\n" for path in sorted(videos.iterdir())))
    command = ["caption", "list.txt", "--checkpoint", str(trained), "--out", "shards", "--rows_per_shard", "2"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = call(capsys, avcap, command)
    assert said.code == 1
    assert "videos/1b.mp4: not decodable as sound" in said.err
    assert "process 1 of 2: 1 captions, 1 failures; 1 of 3 shards are in shards" in said.err
    said = call(capsys, avcap, [*command, "--rank", "0", "--world", "2"])  # before what the launcher says
    assert said.code == 0, said.err
    assert "process 0 of 2: list.txt-00000: 2 captions in " in said.err
    assert said.err.splitlines()[-1] == "process 0 of 2: 3 captions, 0 failures; 3 of 3 shards are in shards"
    for launcher in ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK"):  # any other code, and they end process 0, too
        with monkeypatch.context() as patched:
            patched.setenv(launcher, "1")
            said = call(capsys, avcap, command)
            assert said.code == 0
            assert "videos/1b.mp4: not decodable as sound" in said.err
            patched.setenv("WORLD_SIZE", "1")
            patched.setenv("RANK", "0")
            assert call(capsys, avcap, command).code == 1
    found = [row for path in Path("shards").glob("*-0000?.jsonl") for row in rows_of(path)]
    assert call(capsys, avcap, ["caption", "list.txt", "--checkpoint", str(trained), "--out", "a.jsonl"]).code == 1
    assert {row["id"]: row["caption"] for row in found} == {row["id"]: row["caption"] for row in rows_of("a.jsonl")}
    assert len(found) == 4
    said = call(capsys, avcap, [*command[:-1], "3"])
    assert said.code == 1
    assert said.err.splitlines()[-1].startswith("avcap caption: shards was begun with --rows_per_shard 2, found 3")
    said = call(capsys, avcap, [*command, "--explain", "why"])
    assert said.code == 2
    assert "--explain" in said.err


def test_in_python(trained: Path, videos: Path) -> None:
    captioner = avcap_zoo.load(trained, device="cpu")
    paths = [videos / "2.mp4", videos / "0.mp4", videos / "2.mp4"]
    captions = captioner.caption(paths)
    assert captions[0] == captions[2]
    assert captioner.caption(paths[:1]) == captions[:1]
    explained = captioner.explain(paths[:2])
    assert [each.caption for each in explained] == captions[:2]
    assert explained[0].picture is not None
    assert explained[0].picture.shape[1] == 1120
    with pytest.raises(MediaError, match=r"1b\.mp4.*not decodable"):
        captioner.caption([videos / "0.mp4", videos / "1b.mp4"])
    with pytest.raises(MediaError, match=r"a\.wav: a sound file has no pictures"):
        captioner.caption(["a.wav"])
    with pytest.raises(AvcapError, match="found one path"):
        captioner.caption("a.mp4")
    with pytest.raises(AvcapError, match="videos is a folder"):
        captioner.caption([videos])


def test_settings_over_the_checkpoint(trained: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        "beams.yaml", "model:\n  init_args:\n    generation:\n      num_beams: 1\ntrainer:\n  precision: bf16-mixed\n"
    )
    loaded = load_system(trained, ["beams.yaml"], num_frames=3)
    assert loaded.system.decode_settings()["num_beams"] == 1
    assert loaded.decode.num_frames == 3
    assert loaded.precision == "bf16-mixed"
    assert loaded.made_by != load_system(trained).made_by == load_system(trained).made_by
    command = ["caption", "videos/0.mp4", "--checkpoint", str(trained), "--out", "a.jsonl"]
    assert call(capsys, avcap, command).code == 0
    said = call(capsys, avcap, [*command, "-c", "beams.yaml"])
    assert said.code == 1
    assert "a.jsonl holds captions made with other weights or settings (videos/0.mp4)" in said.err
    write("beams.yaml", "model:\n  init_args:\n    generation:\n      num_beems: 1\n")
    said = call(capsys, avcap, [*command, "-c", "beams.yaml"])
    assert said.code == 2
    assert "beams.yaml:4: model.init_args.generation.num_beems" in said.err
    assert "did you mean num_beams?" in said.err


def test_subtitles_of_a_long_file(
    scenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    system = tiny_lavcap(kind="audio_only")
    trainer = tiny_trainer(tmp_path, every=1, max_steps=1, limit_val_batches=0)
    trainer.fit(system, datamodule=tiny_data(scenes_root))
    sounds = [soundfile.read(path)[0] for path in sorted((scenes_root / "vggss/audio").glob("*.wav"))[:3]]
    long = np.concatenate(sounds)
    soundfile.write("long.wav", long, 16_000)
    command = ["caption", "long.wav", "--checkpoint", "checkpoints/step=1.ckpt"]
    said = call(capsys, avcap, [*command, "--out", "a.srt", "--explain", "why"])
    assert said.code == 0, said.err
    blocks = Path("a.srt").read_text().strip().split("\n\n")
    assert len(blocks) == int(np.ceil((len(long) / 16_000 - 0.5) / 10))
    assert blocks[1].startswith("2\n00:00:10,000 --> 00:00:")
    said = call(capsys, avcap, [*command, "--out", "a.csv", "--window_s", "5", "--hop_s", "2.5"])
    assert "long.wav#t=2.5,7.5" in Path("a.csv").read_text()
    shutil.copy("long.wav", "other.wav")
    said = call(capsys, avcap, ["caption", "other.wav", *command[1:], "--out", "b.srt"])
    assert said.code == 2
    assert "an .srt holds the captions of one file, found 2" in said.err


@pytest.mark.parametrize("kind", ["concatenation", "audio_only", "visual_only"])
def test_kinds_without_a_plan_say_so(kind: FusionKind, scenes_root: Path) -> None:
    torch.manual_seed(0)
    system = tiny_lavcap(kind=kind)
    system.configure_model()
    system.eval()
    data = tiny_data(scenes_root)
    batch = next(iter(data.plain_loader("val", 2, system.requirements.modalities)))
    (first, second) = system.explain(batch)
    assert first.picture is not None
    assert second.clip_id == batch.clip_ids[1]
    assert [first.caption, second.caption] == system.caption(batch)
    assert first.picture.shape[0] < 560


def test_checkpoints_that_cannot_be_used(trained: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(content: Any, code: int = 1) -> str:
        torch.save(content, "x.ckpt")
        said = call(capsys, avcap, ["caption", "videos", "--checkpoint", "x.ckpt"])
        assert said.code == code
        (line,) = said.err.splitlines()
        return line

    content = torch.load(trained, weights_only=True)
    note = content[CHECKPOINT_KEY]
    assert "x.ckpt was not saved by avcap-zoo but by another program with Lightning: found the keys" in refusal(
        {"state_dict": {}, "pytorch-lightning_version": "2.0"}
    )
    assert "x.ckpt is not a checkpoint of a training run" in refusal({"model": {}})
    foreign = {**content, CHECKPOINT_KEY: {**note, "class_path": "tests.unit.cli.toy.ToySystem"}}
    assert "is not imported unasked: name it in a file" in refusal(foreign, 2)
    pruned = {name: value for name, value in content["state_dict"].items() if "projector" not in name}
    assert "x.ckpt: the checkpoint does not fit the configured LAVCap: 2 missing" in refusal(
        {**content, "state_dict": pruned}
    )
    older = {**content, CHECKPOINT_KEY: {key: value for key, value in note.items() if key != "data"}}
    torch.save(older, "old.ckpt")
    said = call(capsys, avcap, ["caption", "videos/0.mp4", "--checkpoint", "old.ckpt"])
    assert said.code == 0
    assert "neither checkpoint nor -c name num_frames 20, image_size_px 224" in said.err
    Path("bad.ckpt").write_bytes(b"zip?")
    with pytest.raises(WeightsError, match=r"bad\.ckpt cannot be read"):
        avcap_zoo.load("bad.ckpt")


def test_a_system_from_a_configuration_alone(
    videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    write(
        "toy.yaml",
        """
        model:
          class_path: tests.unit.cli.toy.ToySystem
          init_args: {ot_weight: 0.3}
        data:
          class_path: scenes
          init_args: {num_frames: 6}
        trainer.max_steps: 1
        seed_everything: 3
        """,
    )
    write("more.yaml", "model.init_args.beams: 5\n")
    said = call(capsys, avcap, ["caption", "videos/0.mp4", "-c", "toy.yaml", "-c", "more.yaml"])
    assert said.code == 0, said.err
    assert said.out == "videos/0.mp4\t5 beams at 0.3\n"
    assert load_system(None, ["toy.yaml"]).decode.num_frames == 6
    said = call(capsys, avcap, ["caption", "videos/0.mp4", "-c", "more.yaml"])
    assert said.code == 2
    write("data.yaml", "seed_everything: 3\n")
    said = call(capsys, avcap, ["caption", "videos/0.mp4", "-c", "data.yaml"])
    assert said.code == 2
    assert "no model given, wanted --checkpoint FILE" in said.err
