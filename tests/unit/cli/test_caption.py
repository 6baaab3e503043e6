from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from avcap_zoo.cli.caption import parse_options
from avcap_zoo.cli.main import avcap
from avcap_zoo.cli.usage import CommandLineError
from avcap_zoo.errors import ConfigError, DeviceError
from avcap_zoo.serving.caption import choose_device
from tests.unit.cli.running import call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.mp4"], "no system given, wanted --checkpoint FILE"),
        ([], "no system given|INPUT"),
        (["a.mp4", "--chekpoint", "x"], "no option --chekpoint; did you mean --checkpoint?"),
        (["a.mp4", "--checkpoint", "x", "--batch_size", "0"], "found '0', wanted a number of at least 1"),
        (["a.mp4", "--checkpoint", "x", "--window_s", "0.1"], "found '0.1', wanted seconds, at least 0.5"),
        (["a.mp4", "--checkpoint", "x", "--window_s", "nan"], "found 'nan', wanted seconds"),
        (["a.mp4", "--checkpoint", "x", "--hop_s", "5"], "--hop_s needs --window_s"),
        (["a.mp4", "--checkpoint", "x", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["a.mp4", "-c", "gone.yaml"], "gone.yaml does not exist"),
        (["a.mp4", "--checkpoint", "x", "--rank", "0"], "--rank and --world are for many clips"),
        (["-", "--checkpoint", "x", "--out", "folder"], "- is for one process and one file"),
        (["folder/", "--checkpoint", "x", "--out", "folder"], "--out folder holds the shards, and its captions would"),
    ],
)
def test_what_is_refused_at_once(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandLineError) as refused:
        parse_options(arguments)
    assert any(part in str(refused.value) for part in message.split("|"))


def test_subtitles_are_cut_into_windows() -> None:
    assert parse_options(["a.mp4", "--checkpoint", "x", "--out", "a.srt"]).window_s == 10
    assert parse_options(["a.mp4", "--checkpoint", "x", "--out", "a.jsonl"]).window_s is None
    assert parse_options(["a.mp4", "--checkpoint", "x", "--out", "a.srt", "--window_s", "4"]).window_s == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone.mp4", "--checkpoint", "x.ckpt"], 2, "nothing to caption: gone.mp4: no such file"),
        (["*.mp4", "--checkpoint", "x.ckpt"], 2, "nothing to caption: *.mp4: no file matches"),
        (["a.docx", "--checkpoint", "x.ckpt"], 2, "nothing to caption: a.docx: .docx is none of .wav"),
        (["a.wav", "--checkpoint", "x.ckpt"], 1, "checkpoint x.ckpt does not exist"),
        (["a.wav", "--checkpoint", "x.ckpt", "--out", "a.txt"], 2, "--out a.txt must end in .jsonl, .csv, .srt"),
    ],
)
def test_one_line_says_what_is_wrong(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.wav").touch()
    Path("a.docx").touch()
    said = call(capsys, avcap, ["caption", *arguments])
    assert said.code == code
    assert said.err.startswith(f"avcap caption: {message}")
    assert len(said.err.splitlines()) == 1


def test_devices_by_name() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(ConfigError, match="device is 'tpu', wanted auto, cpu, cuda or hpu"):
        choose_device("tpu")
    with pytest.raises(DeviceError, match="no Gaudi is seen here"):
        choose_device("hpu")


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from avcap_zoo.cli.main import avcap\n"
        "try: avcap(['caption', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: avcap caption" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"
