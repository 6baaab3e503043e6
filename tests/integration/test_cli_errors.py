"""Every mistake of the error table, through the whole command: exit code, and what is on stderr."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from avcap_zoo.cli.main import avcap, lightning
from tests.unit.cli.running import BASE, Outcome, call, write

DDP = ["--trainer.strategy.class_path", "lightning.pytorch.strategies.DDPStrategy"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("AVCAP_TRACEBACK", raising=False)
    write("base.yaml", BASE)
    write("bad.ckpt", "this was never a checkpoint")
    write("needs_absent.py", "import absent_package")
    write("overlay.yaml", "model:\n  init_args:\n    beams: 3\n")


def messages(outcome: Outcome) -> list[str]:
    """Lines on stderr without Lightning's own reports."""
    reports = ("Seed set", "GPU available", "TPU available", "Restoring states", "`Trainer")
    return [line for line in outcome.err.splitlines() if line and not line.startswith(reports)]


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        pytest.param(
            "model:\n  init_args:\n    ot_wieght: 0.3\n",
            "over.yaml:3: model.init_args.ot_wieght: ToySystem has no such argument; did you mean ot_weight?",
            id="wrong key",
        ),
        pytest.param(
            "model:\n  init_args:\n    language:\n      sorce: x\n",
            "over.yaml:4: model.init_args.language.sorce: ToyLanguage has no such argument; did you mean source?",
            id="wrong nested key",
        ),
        pytest.param(
            "model:\n  class_path: tests.unit.cli.toy.ToySystm\n",
            "over.yaml:2: model.class_path: tests.unit.cli.toy has no class ToySystm; did you mean ToySystem?",
            id="wrong class",
        ),
        pytest.param(
            "model: lavcp\n",
            "over.yaml:1: model.class_path: 'lavcp' is neither a short name nor package.module.Class; did you mean lav",
            id="wrong short name",
        ),
        pytest.param(
            "model:\n  class_path: tests.unit.cli.toy.ToyDataModule\n",
            "over.yaml:2: model.class_path: tests.unit.cli.toy.ToyDataModule is no System",
            id="class of another kind",
        ),
        pytest.param(
            "model:\n  class_path: tests.unit.cli.tay.ToySystem\n",
            "over.yaml:2: model.class_path: there is no module tests.unit.cli.tay; did you mean toy?",
            id="wrong module",
        ),
        pytest.param(
            "model:\n  class_path: needs_absent.System\n",
            "over.yaml:2: model.class_path: needs_absent needs the package 'absent_package', which is not installed",
            id="missing optional package",
        ),
        pytest.param(
            "model:\n  init_args:\n    ot_weight: lots\n",
            "over.yaml:3: model.init_args.ot_weight: found 'lots', wanted float",
            id="wrong type",
        ),
        pytest.param(
            "trainer:\n  max_steps: 1e3\n",
            "over.yaml:2: trainer.max_steps: found 1000.0, wanted int; write 1000",
            id="float for int",
        ),
        pytest.param(
            "modle:\n  class_path: x\n", "over.yaml:1: no such key modle; did you mean model?", id="wrong top key"
        ),
        pytest.param(
            "optimizer:\n  class_path: torch.optim.SGD\n",
            "over.yaml:1: no such key optimizer",
            id="optimizer slipped in",
        ),
        pytest.param(
            "trainer:\n  max_step: 3\n",
            "over.yaml:2: trainer.max_step: Trainer has no such argument; did you mean max_steps?",
            id="wrong trainer key",
        ),
        pytest.param("data: lost.yaml\n", "lost.yaml does not exist", id="missing section file"),
        pytest.param("model: [1\nb: 2\n", "over.yaml:2:2: not valid YAML:", id="broken YAML"),
        pytest.param("", "over.yaml is empty, wanted keys such as model, data, trainer", id="empty YAML"),
        pytest.param("- 1\n", "over.yaml holds a list, wanted keys such as model, data, trainer", id="list"),
    ],
)
def test_mistake_in_a_file(overlay: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("over.yaml", overlay)
    outcome = call(capsys, lightning, ["fit", "-c", "base.yaml", "-c", "over.yaml"])
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert outcome.err.startswith(f"lightning fit: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["fti"], "lightning: no verb 'fti'; did you mean fit?", id="wrong verb"),
        pytest.param([], "lightning: no verb given, wanted one of fit, validate, test, predict", id="no verb"),
        pytest.param(
            ["fit", "-c", "bse.yaml"], "lightning fit: bse.yaml does not exist; did you mean base.yaml?", id="file"
        ),
        pytest.param(["-c", "base.yaml", "fit"], "lightning: -c stands before the verb", id="early -c"),
        pytest.param(
            ["fit", "-c", "base.yaml", "overlay.yaml"],
            "lightning fit: overlay.yaml follows no option; each file needs its own -c: lightning fit -c base",
            id="two files after one -c",
        ),
        pytest.param(
            ["fit", "-c", "overlay.yaml", "-c", "base.yaml"],
            "lightning fit: overlay.yaml:1: model has no class_path and no earlier -c gives one; put the file",
            id="overlay before base",
        ),
        pytest.param(
            ["fit", "--data", "tests.unit.cli.toy.ToyDataModule"],
            "lightning fit: no model given, wanted model: in a -c file, or --model with one of",
            id="no model",
        ),
        pytest.param(
            ["fit", "--model", "tests.unit.cli.toy.ToySystem"],
            "lightning fit: no data given, wanted data: in a -c file, or --data with one of",
            id="no data",
        ),
        pytest.param(
            ["fit", "-c", "base.yaml", "--trainer.max_step", "3"],
            "lightning fit: command line: trainer.max_step: Trainer has no such argument; did you mean max_steps?",
            id="abbreviated option",
        ),
        pytest.param(
            ["fit", "-c", "base.yaml", "--model.beam", "3"],
            "lightning fit: command line: model.init_args.beam: ToySystem has no such argument; did you mean beams?",
            id="abbreviated argument",
        ),
        pytest.param(
            ["fit", "-c", "base.yaml", "--trainer.max_steps"],
            "lightning fit: argument --trainer.max_steps: expected one argument",
            id="option without a value",
        ),
        pytest.param(
            ["test", "-c", "base.yaml", "--ckpt_path", "bda.ckpt"],
            "lightning test: ckpt_path: bda.ckpt does not exist; did you mean bad.ckpt?",
            id="missing checkpoint",
        ),
        pytest.param(
            ["test", "-c", "base.yaml", "--ckpt_path", "lost/bad.ckpt"],
            "lightning test: ckpt_path: lost/bad.ckpt does not exist; there is no folder lost",
            id="missing checkpoint folder",
        ),
        pytest.param(
            ["fit", "-c", "base.yaml", "--trainer.accelerator", "gpuu"],
            "lightning fit: trainer.accelerator: found 'gpuu', wanted one of auto, cpu",
            id="unknown accelerator",
        ),
        pytest.param(
            ["fit", "-c", "base.yaml", "--trainer.strategy", "ddpp"],
            "lightning fit: trainer: You selected an invalid strategy name: `strategy='ddpp'`",
            id="unknown strategy",
        ),
        pytest.param(
            ["fit", "-c", "base.yaml", *DDP, "--trainer.strategy.find_unused=true"],
            "lightning fit: command line: trainer.strategy.init_args.find_unused: DDPStrategy has no such argument",
            id="argument of a strategy",
        ),
        pytest.param(
            ["fit", "-c", "base.yaml", "--trainer.devices", "some"],
            "lightning fit: trainer: `devices` selected with `CPUAccelerator` should be an int > 0.",
            id="wrong devices",
        ),
        pytest.param(
            ["fit", "-c", "base.yaml", "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-7"],
            "lightning fit: Invalid value for save_top_k=-7. Must be >= -1",
            id="callback refuses its arguments",
        ),
    ],
)
def test_mistake_on_the_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, lightning, arguments)
    assert (outcome.code, outcome.out) == (2, "")
    (said,) = messages(outcome)
    assert said.startswith(message)


@pytest.mark.parametrize("accelerator", ["gpu", "hpu"])
def test_device_that_is_not_there(
    accelerator: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(kind, "is_available", staticmethod(lambda: False))
    outcome = call(capsys, lightning, ["fit", "-c", "base.yaml", "--trainer.accelerator", accelerator])
    assert outcome.code == 1
    (said,) = messages(outcome)
    assert said.startswith("lightning fit: ")


def test_logger_whose_package_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write("absent_logger.py", """
        from lightning.pytorch.loggers import CSVLogger

        class AbsentLogger(CSVLogger):
            def __init__(self) -> None:
                raise ModuleNotFoundError("absent_package is needed")
        """)  # fmt: skip
    outcome = call(capsys, lightning, ["fit", "-c", "base.yaml", "--trainer.logger", "absent_logger.AbsentLogger"])
    assert outcome.code == 1
    assert messages(outcome) == ["lightning fit: absent_package is needed"]


def test_damaged_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, lightning, ["test", "-c", "base.yaml", "--ckpt_path", "bad.ckpt"])
    assert outcome.code == 1
    (said,) = messages(outcome)
    assert said.startswith("lightning test: checkpoint bad.ckpt cannot be read")


def test_exception_of_a_system_keeps_its_type() -> None:
    with pytest.raises(FileNotFoundError, match=r"^vocabulary\.txt$"):
        lightning(["fit", "-c", "base.yaml", "--model.trouble", "file"])


def test_our_error_of_a_system_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["fit", "-c", "base.yaml", "--model.trouble", "weights"])
    assert outcome.code == 1
    assert messages(outcome) == ["avcap fit: toy.pt holds nothing of use"]


def test_traceback_shows_what_the_parser_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AVCAP_TRACEBACK", "1")
    outcome = call(capsys, lightning, ["fit", "-c", "base.yaml", "--model.beams", "many"])
    assert outcome.code == 2
    assert "ParserRefusalError" in outcome.err
    assert outcome.err.splitlines()[-1].endswith("model.init_args.beams: found 'many', wanted int")


def test_metric_to_watch_that_nobody_logs(capsys: pytest.CaptureFixture[str]) -> None:
    write("over.yaml", """
        trainer:
          callbacks:
            class_path: ModelCheckpoint
            init_args:
              monitor: val/cidre
        """)  # fmt: skip
    outcome = call(capsys, lightning, ["fit", "-c", "base.yaml", "-c", "over.yaml"])
    assert outcome.code == 1
    assert "lightning fit: `ModelCheckpoint(monitor='val/cidre')` could not find the monitored key" in outcome.err
    assert "Traceback" not in outcome.err
