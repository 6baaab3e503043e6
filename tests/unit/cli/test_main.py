from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from avcap_zoo.cli.main import AVCAP_VERBS, TRAINER_VERBS, avcap, lightning
from avcap_zoo.cli.usage import CommandLineError
from avcap_zoo.errors import AvcapError, ConfigError, DeviceError
from tests.unit.cli.running import Outcome, call, write

NOTHING = (
    "lightning fit: nothing to fit, wanted a configuration or a model and its data: "
    "lightning fit -c configs/lavcap.yaml"
)
TWO_FILES = "lightning fit: b.yaml follows no option; each file needs its own -c: lightning fit -c a.yaml -c b.yaml"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AVCAP_TRACEBACK", raising=False)


@pytest.fixture
def behaviour(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module in the place of `avcap demo`; its `main` is to be set by the test."""
    module = types.ModuleType("avcap_zoo.cli.demo")
    monkeypatch.setitem(sys.modules, "avcap_zoo.cli.demo", module)
    return module


def raising(error: BaseException) -> object:
    def main(arguments: Sequence[str]) -> int:
        raise error

    return main


def test_help_lists_every_verb_of_each_script(capsys: pytest.CaptureFixture[str]) -> None:
    for command, verbs in ((lightning, TRAINER_VERBS), (avcap, AVCAP_VERBS)):
        for option in ("--help", "-h"):
            outcome = call(capsys, command, [option])
            assert outcome.code == 0
            assert outcome.err == ""
            for name, verb in verbs.items():
                assert f"  {name:<10}{verb.summary}" in outcome.out.splitlines()


def test_help_of_lightning_names_no_verb_of_avcap(capsys: pytest.CaptureFixture[str]) -> None:
    assert "scenes" not in call(capsys, lightning, ["--help"]).out


def test_version_names_three_packages(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["--version"])
    assert outcome.code == 0
    assert [line.split("==")[0] for line in outcome.out.splitlines()] == ["avcap-zoo", "lightning", "torch"]
    assert "==2." in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "lightning: no verb given, wanted one of fit, validate, test, predict; see lightning --help"),
        (["fti"], "lightning: no verb 'fti'; did you mean fit?"),
        (["xyz"], "lightning: no verb 'xyz'; known: fit, predict, test, validate"),
        (["scenes", "--out", "x"], "lightning: scenes is a verb of avcap: avcap scenes --out x"),
        (["-c", "a.yaml", "test"], "lightning: -c stands before the verb, wanted: lightning test -c ..."),
        (["--model", "lavcap"], "lightning: --model stands before the verb, wanted: lightning fit --model ..."),
        (["fit"], NOTHING),
        (["fit", "-c"], "lightning fit: -c needs a file: lightning fit -c configs/lavcap.yaml"),
        (["fit", "-c", "--model", "lavcap"], "lightning fit: -c needs a file: lightning fit -c configs/lavcap.yaml"),
        (["fit", "a.yaml"], "lightning fit: a.yaml follows no option, wanted: lightning fit -c a.yaml"),
        (["fit", "--model", "lavcap", "now"], "lightning fit: now follows no option; see lightning fit --help"),
        (["fit", "-c", "a.yaml", "b.yaml"], TWO_FILES),
    ],
)  # fmt: skip
def test_wrong_command_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, lightning, arguments) == Outcome(2, "", message + "\n")


@pytest.mark.parametrize(
    "words", [["-c", "lost.yaml"], ["--config", "lost.yaml"], ["--config=lost.yaml"], ["-clost.yaml"]]
)
def test_missing_file(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, lightning, ["fit", *words])
    assert (outcome.code, outcome.err) == (2, "lightning fit: lost.yaml does not exist\n")


def test_missing_file_with_a_close_match(capsys: pytest.CaptureFixture[str]) -> None:
    write("configs/lavcap.yaml", "a: 1")
    write("configs/vlrm.yaml", "a: 1")
    outcome = call(capsys, lightning, ["fit", "-c", "configs/lavcp.yaml"])
    assert outcome.err == ("lightning fit: configs/lavcp.yaml does not exist; did you mean configs/lavcap.yaml?\n")


def test_second_file_is_checked_too(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.yaml", "a: 1")
    assert "lost.yaml does not exist" in call(capsys, lightning, ["fit", "-c", "a.yaml", "-c", "lost.yaml"]).err


def test_values_of_options_are_no_stray_words(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--trainer.max_epochs", "-1", "--print_config", "--model.x=3", "-c", "lost.yaml"]
    assert "lost.yaml does not exist" in call(capsys, lightning, arguments).err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  lr: [1, 2\n  b: 3\n", "bad.yaml:3:4: not valid YAML: while parsing a flow sequence expected"),
        ("model:\n\tlr: 1\n", "bad.yaml:2:1: not valid YAML:"),
        ("", "bad.yaml is empty, wanted keys such as model, data, trainer"),
        ("# nothing\n", "bad.yaml is empty"),
        ("- a\n- b\n", "bad.yaml holds a list, wanted keys such as model, data, trainer"),
        ("lavcap\n", "bad.yaml holds only the value 'lavcap', wanted keys"),
        ("model:\n  lr: 1\n  lr: 2\n", "bad.yaml:3: the key lr stands here and in line 2, wanted once"),
    ],
)
def test_broken_yaml(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("bad.yaml", text)
    outcome = call(capsys, lightning, ["fit", "-c", "bad.yaml"])
    assert outcome.code == 2
    assert outcome.err.startswith(f"lightning fit: {message}")
    assert len(outcome.err.splitlines()) == 1


def test_environment_of_a_file_is_there_before_torch(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("environment: {AVCAP_A: 1, AVCAP_B: x}\n", encoding="utf-8")
    (tmp_path / "second.yaml").write_text("environment: {AVCAP_B: y, AVCAP_C: z}\n", encoding="utf-8")
    script = """
import os, sys
from avcap_zoo.cli.main import check_arguments
check_arguments("lightning", ["fit", "-c", "first.yaml", "-c", "second.yaml"])
print([os.environ[f"AVCAP_{name}"] for name in "ABC"], "torch" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "AVCAP_C": "of the user"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "['1', 'y', 'of the user'] False\n"


def test_folder_and_binary_file_in_place_of_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    Path("weights.yaml").write_bytes(b"\xff\xfe\x00")
    assert "folder is a folder, wanted a YAML file" in call(capsys, lightning, ["fit", "-c", "folder"]).err
    assert "weights.yaml is not a text file" in call(capsys, lightning, ["fit", "-c", "weights.yaml"]).err


def test_front_imports_no_torch() -> None:
    program = """
import sys
from avcap_zoo.cli.main import avcap, lightning
for arguments in ([], ["--help"], ["--version"], ["fti"], ["fit"], ["fit", "-c", "lost.yaml"], ["fit", "-c", "l.yaml"],
                  ["fit", "-c", "a", "b"], ["-c", "a", "fit"], ["scenes", "--clips", "x"]):
    for command in (lightning, avcap):
        command(arguments)
sys.exit(str(sorted({"torch", "lightning", "numpy", "jsonargparse"} & set(sys.modules))))
"""
    write("l.yaml", "- a")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[]"


def test_module_is_avcap() -> None:
    done = subprocess.run([sys.executable, "-m", "avcap_zoo", "demoo"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "avcap: no verb 'demoo'; did you mean demo?\n")


def test_verb_gets_what_follows_it(behaviour: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Sequence[str]] = []
    vars(behaviour)["main"] = seen.append
    assert call(capsys, avcap, ["demo", "--out", "x"]).code == 0
    assert seen == [["--out", "x"]]
    vars(behaviour)["main"] = lambda arguments: 7
    assert call(capsys, avcap, ["demo"]).code == 7


@pytest.mark.parametrize(
    ("error", "code"),
    [(DeviceError("no Gaudi"), 1), (ConfigError("rates differ"), 1), (CommandLineError("no key x"), 2)],
)
def test_our_errors_are_one_line(
    error: AvcapError, code: int, behaviour: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    vars(behaviour)["main"] = raising(error)
    assert call(capsys, avcap, ["demo"]) == Outcome(code, "", f"avcap demo: {error}\n")


def test_traceback_on_request(
    behaviour: types.ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVCAP_TRACEBACK", "1")
    vars(behaviour)["main"] = raising(DeviceError("no Gaudi"))
    outcome = call(capsys, avcap, ["demo"])
    assert outcome.code == 1
    assert outcome.err.startswith("Traceback")
    assert outcome.err.endswith("avcap_zoo.errors.DeviceError: no Gaudi\n")


def test_other_errors_keep_their_type(behaviour: types.ModuleType) -> None:
    vars(behaviour)["main"] = raising(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        avcap(["demo"])


def test_interrupt(behaviour: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    vars(behaviour)["main"] = raising(KeyboardInterrupt())
    assert call(capsys, avcap, ["demo"]) == Outcome(130, "", "avcap demo: interrupted\n")


def test_interrupt_that_lightning_turned_into_an_exit(
    behaviour: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: Sequence[str]) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            sys.exit(1)

    vars(behaviour)["main"] = main
    assert call(capsys, avcap, ["demo"]).code == 130
    vars(behaviour)["main"] = raising(SystemExit(5))
    assert call(capsys, avcap, ["demo"]).code == 5


def test_arguments_default_to_those_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning", "fti"])
    assert lightning() == 2
    assert sys.argv == ["lightning", "fti"]


def test_reader_that_goes_away_is_no_error() -> None:
    program = "import sys; from avcap_zoo.cli.main import lightning; sys.exit(lightning(['--help']) or 0)"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_broken_pipe_elsewhere_is_not_swallowed() -> None:
    program = """
import sys, types
demo = types.ModuleType("avcap_zoo.cli.demo")
def main(arguments):
    raise BrokenPipeError("worker")
demo.main = main
sys.modules["avcap_zoo.cli.demo"] = demo
from avcap_zoo.cli.main import avcap
avcap(["demo"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("BrokenPipeError: worker\n")
