"""Whole runs of a toy system through the command: what is merged, what wins, what is left on disk."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from avcap_zoo.cli import parser
from avcap_zoo.cli.main import avcap, lightning
from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO
from tests.unit.cli.running import BASE, call, write
from tests.unit.cli.toy import ToySystem

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from avcap_zoo.cli.main import lightning
try:
    code = lightning()
except SystemExit as stop:
    code = stop.code
with open("threads.txt", "a") as file:
    file.writelines(path.read_text() for path in Path("/proc/self/task").glob("*/comm"))
sys.exit(code)
"""
STOP = """
import os
import signal
from tests.unit.cli.toy import ToySystem
def told(self, *_):
    if self.global_step == 1 and self.global_rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
ToySystem.on_train_batch_start = told
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    write("base.yaml", BASE)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    """A checkpoint of one step, with hyper-parameters that differ from base.yaml and one that no class has."""
    lightning(["fit", "-c", "base.yaml", "--trainer.default_root_dir", "first"])
    (path,) = Path("first").rglob("*.ckpt")
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] = {"_class_path": "tests.unit.cli.toy.ToySystem", "beams": 99, "weird": 1}
    torch.save(content, "foreign.ckpt")
    return "foreign.ckpt"


def settings(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The merged settings, as `--print_config` shows them."""
    outcome = call(capsys, lightning, [*arguments, "--print_config"])
    assert (outcome.code, outcome.err) == (0, "")
    merged: dict[str, Any] = yaml.safe_load(outcome.out)
    return merged


def captions(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "predictions.jsonl").read_text().splitlines()]


def test_several_files_merge_and_the_command_line_wins(capsys: pytest.CaptureFixture[str]) -> None:
    write(
        "over.yaml", "model:\n  init_args:\n    language:\n      source: hub/id\n    beams: 3\ntrainer.max_steps: 7\n"
    )
    merged = settings(capsys, "fit", "-c", "base.yaml", "-c", "over.yaml", "--model.beams", "5")
    assert merged["model"]["init_args"]["language"] == {"source": "hub/id", "width": 4}
    assert merged["model"]["init_args"]["beams"] == 5
    assert merged["model"]["init_args"]["ot_weight"] == 0.2
    assert merged["trainer"]["max_steps"] == 7
    assert merged["trainer"]["accelerator"] == "cpu"


def test_print_config_is_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    merged = settings(capsys, "fit", "-c", "base.yaml")
    write("again.yaml", yaml.safe_dump(merged))
    assert settings(capsys, "fit", "-c", "again.yaml") == merged


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_one_file_serves_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert settings(capsys, verb, "-c", "base.yaml")["seed_everything"] == 1


@pytest.mark.parametrize(
    "text",
    ["model: LAVCap\ndata: scenes\n", "model:\n  class_path: lavcap\ndata:\n  class_path: Scenes\n"],
)
def test_short_names_in_a_file(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("short.yaml", text)
    merged = settings(capsys, "fit", "-c", "short.yaml")
    assert merged["model"]["class_path"].startswith("avcap_zoo.systems.lavcap.")
    assert merged["data"]["class_path"] == "avcap_zoo.data_modules.scenes.data_module.ScenesDataModule"


def test_short_names_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    merged = settings(capsys, "fit", "--model", "lavCAP", "--data=AudioCaps")
    assert merged["model"]["class_path"].startswith("avcap_zoo.systems.lavcap.")
    assert merged["data"]["class_path"] == "avcap_zoo.data_modules.audiocaps.AudioCapsDataModule"


def test_help_of_a_system_by_its_short_name(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, lightning, ["fit", "--model.help", "lavcap"])
    assert outcome.code == 0
    assert "--model.generation.num_beams" in outcome.out


def test_help_names_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["test", "--help"])
    assert outcome.code == 0
    assert outcome.out.startswith("usage: avcap [options] test")
    assert "--optimizer" not in outcome.out
    assert "--lr_scheduler" not in outcome.out


def test_run_leaves_settings_logs_and_checkpoint(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert call(capsys, lightning, ["fit", "-c", "base.yaml"]).code == 0
    assert "best checkpoint: runs/toysystem/version_0/checkpoints/" in caplog.text
    folder = Path("runs/toysystem/version_0")
    assert (folder / "metrics.csv").is_file()
    assert list(folder.glob("events.out.tfevents.*"))
    assert list((folder / "checkpoints").glob("*.ckpt"))
    head = (folder / "config.yaml").read_text().splitlines()
    assert head[0].startswith("# avcap-zoo==")
    assert head[-1]
    assert any(line.startswith("# lightning==") for line in head)
    assert any(line.startswith("# torch==") for line in head)
    assert call(capsys, lightning, ["test", "-c", str(folder / "config.yaml")]).code == 0
    assert (Path("runs/toysystem/version_1") / "test_captions.jsonl").is_file()


def test_a_full_disk_is_told_in_one_line(capsys: pytest.CaptureFixture[str], small_disk: Path) -> None:
    with suppress(OSError):
        (small_disk / "fill").write_bytes(bytes(2**21))
    arguments = ["fit", "-c", "base.yaml", "--trainer.logger", "false", "--trainer.default_root_dir", str(small_disk)]
    outcome = call(capsys, lightning, arguments)
    assert outcome.code == 1
    assert re.fullmatch(
        rf"lightning fit: cannot write .*{small_disk}.*: No space left on device, [\d,]+ bytes are free there; "
        r"free some space, or choose another folder with --trainer.default_root_dir",
        outcome.err.strip(),
    )


def test_a_folder_that_may_not_be_written_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: ToySystem, *_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(Path("runs/toysystem/figures").absolute()))

    monkeypatch.setattr(ToySystem, "on_train_start", refuse)  # root may write everywhere
    outcome = call(capsys, lightning, ["fit", "-c", "base.yaml", "--trainer.logger", "false"])
    assert outcome.code == 1
    assert re.search(r"cannot write /.*/runs/toysystem/figures: Permission denied, [\d,]+ bytes", outcome.err)


@pytest.mark.parametrize("path", [(), ("/somewhere/else",)])
def test_leave_that_is_refused_elsewhere_is_no_matter_of_the_folder(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: ToySystem, *_: Any) -> None:
        raise PermissionError(errno.EACCES, "not this one", *path)

    monkeypatch.setattr(ToySystem, "on_train_start", refuse)
    with pytest.raises(PermissionError, match="not this one"):
        lightning(["fit", "-c", "base.yaml", "--trainer.logger", "false"])


def test_no_advertisement(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    logging.getLogger("lightning.pytorch.utilities.rank_zero").filters.clear()
    lightning(["fit", "-c", "base.yaml"])
    assert "`Trainer.fit` stopped" in caplog.text
    assert "litlogger" not in caplog.text
    assert "litmodels" not in caplog.text
    assert not [warning for warning in recwarn if "LeafSpec" in str(warning.message)]


def test_second_run_in_the_same_folder_without_a_logger(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "-c", "base.yaml", "--trainer.logger", "false"]
    assert call(capsys, lightning, arguments).code == 0
    assert call(capsys, lightning, [*arguments, "--model.beams", "4"]).code == 0
    saved = yaml.safe_load(Path("runs/toysystem/config.yaml").read_text())
    assert saved["model"]["init_args"]["beams"] == 4


def test_folder_and_loggers_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[parser.CaptionCLI] = []
    monkeypatch.setattr(parser.CaptionCLI, "after_instantiate_classes", lambda cli: made.append(cli))
    lightning(["validate", "-c", "base.yaml"])
    trainer = made[-1].trainer
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger, TensorBoardLogger]
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    own = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "mine", "--trainer.default_root_dir", "there"]
    lightning(["validate", "-c", "base.yaml", *own, "--trainer.plugins+=lightning.pytorch.plugins.TorchCheckpointIO"])
    trainer = made[-1].trainer
    assert [type(logger) for logger in trainer.loggers] == [CSVLogger]
    assert trainer.loggers[0].save_dir == "mine"
    assert Path(trainer.default_root_dir).name == "there"
    assert not isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)


def test_settings_win_over_those_of_a_checkpoint(checkpoint: str) -> None:
    """Pins the override of Lightning's private `_parse_ckpt_path`, which would let the checkpoint win."""
    quiet = ["--ckpt_path", checkpoint, "--trainer.logger", "false", "--trainer.default_root_dir", "out"]
    lightning(["predict", "-c", "base.yaml", *quiet])
    assert [row["decode"] for row in captions("out")] == [{"beams": 2}] * 4
    assert captions("out")[0]["caption"] == "2 beams at 0.2"
    lightning(["predict", "-c", "base.yaml", "--model.beams", "7", *quiet])
    assert [row["decode"] for row in captions("out")] == [{"beams": 7}] * 4


def test_lightning_still_asks_the_method_that_we_override() -> None:
    assert "_parse_ckpt_path" in vars(LightningCLI)
    assert "self._parse_ckpt_path()" in inspect.getsource(LightningCLI.__init__)


def test_last_is_the_newest_checkpoint_of_the_system(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    last = ["-c", "base.yaml", "--ckpt_path", "last"]
    assert call(capsys, lightning, ["test", *last]).err == (
        "lightning test: ckpt_path last: there is no checkpoint under runs/toysystem; give the path of one\n"
    )
    with pytest.warns(
        UserWarning, match="there is no checkpoint under runs/toysystem yet; the run begins from nothing"
    ):
        assert call(capsys, lightning, ["fit", *last, "--trainer.max_steps", "2"]).code == 0
    assert call(capsys, lightning, ["fit", *last, "--trainer.max_steps", "3"]).code == 0
    assert re.search(r"ckpt_path last: runs/toysystem/version_0/checkpoints/\S*step=2\.ckpt", caplog.text)
    assert list(Path("runs/toysystem/version_1").rglob("*step=3.ckpt"))


def test_a_run_that_is_told_to_end_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(self: ToySystem, *_: Any) -> None:
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    run = ["fit", "-c", "base.yaml", "--trainer.max_steps", "5"]
    with monkeypatch.context() as patch:
        patch.setattr(ToySystem, "on_train_batch_start", told, raising=False)
        with pytest.warns(UserWarning, match="the run begins from nothing"):
            stopped = call(capsys, lightning, [*run, "--ckpt_path=last"])
    saved = "runs/toysystem/version_0/checkpoints/on_signal.ckpt"
    assert stopped.code == 143
    assert stopped.err.splitlines()[-1] == (
        f"lightning fit: stopped by SIGTERM after step 3; go on with: lightning {' '.join(run)} --ckpt_path {saved}"
    )
    assert call(capsys, lightning, [*run, "--ckpt_path", saved]).code == 0
    assert list(Path("runs/toysystem/version_1").rglob("*step=5.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_two_processes_through_the_script(stopped: bool) -> None:
    write("lightning_script.py", STOP + SCRIPT if stopped else SCRIPT)
    arguments = ["fit", "-c", "base.yaml", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    arguments += ["--trainer.max_steps", "3"]
    done = subprocess.run(
        [sys.executable, "lightning_script.py", *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == (143 if stopped else 0), done.stderr
    assert "GLOBAL_RANK: 1" in done.stderr + done.stdout
    assert [path.name for path in Path("runs/toysystem").iterdir()] == ["version_0"]
    # Threads of a process group that outlive the run abort the process now and then.
    threads = Path("threads.txt").read_text(encoding="utf-8").splitlines()
    assert len(threads) > 1 or sys.platform != "linux"
    assert not [name for name in threads if name.startswith("pt_gloo")]


@pytest.mark.slow
def test_a_first_process_that_fails_leaves_none_behind(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "avcap_zoo", "fit", "-c", "base.yaml"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = subprocess.run(  # waits until nobody holds the pipes
            [*words, "--trainer.devices", "2", "--trainer.strategy", "ddp"],
            env={**os.environ, "MASTER_PORT": str(taken.getsockname()[1])},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert re.match(
        r"avcap fit: the processes of the run cannot find each other: .*EADDRINUSE.*MASTER_PORT=29511", said
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")
def test_interrupt_exits_with_130(tmp_path: Path) -> None:
    arguments = ["fit", "-c", "base.yaml", "--model.marker", str(tmp_path / "started")]
    with subprocess.Popen(
        [sys.executable, "-m", "avcap_zoo", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 200
        while not (tmp_path / "started").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
