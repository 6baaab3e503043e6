from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from avcap_zoo.cli import demo
from avcap_zoo.cli.demo import (
    DEFAULT_CLIPS,
    DEFAULT_STEPS,
    DemoOptions,
    find_configs,
    overlay,
    parse_options,
    plan_run,
    show_captions,
    verdict,
    what_is_reused,
)
from avcap_zoo.cli.main import avcap
from avcap_zoo.cli.usage import CommandLineError
from avcap_zoo.errors import ConfigError
from avcap_zoo.tables.run_results import ClipResult, RunResult
from tests.unit.cli.running import call

REPOSITORY = Path(__file__).parents[3]
BASE: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs/tiny/lavcap.yaml").read_text(encoding="utf-8"))


def options(out: Path, *words: str) -> DemoOptions:
    return parse_options(["--out", str(out), *words])


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def result(title: str, scores: dict[str, float], captions: dict[str, tuple[str, bool]]) -> RunResult:
    clips = tuple(ClipResult(i, said, (f"reference of {i}",), right, False) for i, (said, right) in captions.items())
    return RunResult(title, clips, scores, {}, [], [], "")


def test_defaults_are_the_full_demo() -> None:
    found = parse_options([])
    assert (found.out, found.clips, found.steps, found.seed) == (Path("demo"), DEFAULT_CLIPS, DEFAULT_STEPS, 0)
    assert found.is_full_size
    assert found.scenes == Path("demo/scenes")
    assert found.cache == Path("demo/cache")
    init_args = BASE["data"]["init_args"]
    assert tuple(init_args[f"num_{split}"] for split in ("train", "val", "test")) == DEFAULT_CLIPS
    assert BASE["trainer"]["max_steps"] == DEFAULT_STEPS


def test_options_are_read() -> None:
    words = "--out o --clips 40 10 20 --steps 6 --seed 3 --workers 1 --cache c"
    assert parse_options(words.split()) == DemoOptions(Path("o"), (40, 10, 20), 6, 3, 1, Path("c"))
    assert not parse_options(["--steps", "6"]).is_full_size
    assert not parse_options(["--clips", "40", "10", "20"]).is_full_size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--step 6", "no option --step; did you mean --steps?"),
        ("--steps 0", "argument --steps: found 0, wanted at least 1"),
        ("--steps many", "argument --steps: invalid int value: 'many'"),
        ("--clips 5 5", "argument --clips: expected 3 arguments"),
        ("--clips 5 0 5", "argument --clips: found 0, wanted at least 1"),
        ("--seed -1", "argument --seed: found -1, wanted at least 0"),
        ("--workers -2", "argument --workers: found -2, wanted at least 0"),
    ],
)
def test_wrong_options_are_refused_in_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["demo", *words.split()])
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"avcap demo: {said}\n")


def test_help_answers_without_torch() -> None:
    script = (
        "import sys\nfrom avcap_zoo.cli.main import avcap\n"
        "try:\n    avcap(['demo', '--help'])\nexcept SystemExit as stop:\n"
        "    sys.exit(99 if {'torch', 'numpy'} & set(sys.modules) else stop.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--clips TRAIN VAL TEST" in done.stdout


def test_configs_beside_the_current_folder_come_first(tmp_path: Path) -> None:
    here, checkout = tmp_path / "here", tmp_path / "checkout"
    for above in (here, checkout):
        (above / "configs/tiny").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"neither in .*here nor in .*checkout"):
        find_configs(here, checkout)
    for name in ("lavcap.yaml", "audio_only.yaml"):
        (checkout / "configs/tiny" / name).touch()
    assert find_configs(here, checkout) == checkout / "configs"
    (here / "configs/tiny/lavcap.yaml").touch()
    assert find_configs(here, checkout) == checkout / "configs"
    (here / "configs/tiny/audio_only.yaml").touch()
    assert find_configs(here, checkout) == Path("configs")


def test_overlay_at_full_size_changes_folders_only(tmp_path: Path) -> None:
    found = overlay(BASE, options(tmp_path), tmp_path / "run")
    trainer = BASE["trainer"]
    for key in ("max_steps", "val_check_interval", "log_every_n_steps"):
        assert found["trainer"][key] == trainer[key]
    first, *others = found["trainer"]["callbacks"]
    assert first["init_args"] == {**trainer["callbacks"][0]["init_args"], "cache_dir": str(tmp_path / "cache")}
    assert others == trainer["callbacks"][1:]
    assert found["trainer"]["logger"]["init_args"]["save_dir"] == str(tmp_path / "run")
    assert found["data"]["init_args"]["root"] == str(tmp_path / "scenes")
    assert "model" not in found


def test_fewer_steps_prepare_less(tmp_path: Path) -> None:
    found = overlay(BASE, options(tmp_path, "--steps", "105", "--clips", "7", "8", "9", "--seed", "5"), tmp_path)
    before = BASE["trainer"]["callbacks"][0]["init_args"]
    after = found["trainer"]["callbacks"][0]["init_args"]
    assert {key: 10 * after[key] for key in before if key.endswith("_steps")} == before
    assert found["trainer"]["val_check_interval"] == 35
    assert found["trainer"]["log_every_n_steps"] == 10
    assert found["seed_everything"] == 5
    sizes = found["data"]["init_args"]
    assert (sizes["num_train"], sizes["num_val"], sizes["num_test"]) == (7, 8, 9)


def test_a_base_file_without_preparation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.callbacks names no PrepareBackbones"):
        overlay({"trainer": {"callbacks": []}}, options(tmp_path), tmp_path)


def test_a_plan_is_a_fit_and_a_test_of_its_best(tmp_path: Path) -> None:
    folder = tmp_path / "runs/audio_only"
    (folder / "fit").mkdir(parents=True)
    (folder / "fit/old.txt").touch()
    (tmp_path / "runs/mine.txt").touch()
    run = plan_run("audio_only", options(tmp_path), REPOSITORY / "configs")
    assert [path.name for path in folder.iterdir()] == ["settings.yaml"]
    assert (tmp_path / "runs/mine.txt").exists()
    fit, test = run.commands
    files = [REPOSITORY / "configs/tiny/lavcap.yaml", REPOSITORY / "configs/tiny/audio_only.yaml"]
    layers = [word for file in [*files, folder / "settings.yaml"] for word in ("-c", str(file))]
    assert fit.arguments == ["fit", *layers]
    assert test.arguments[: 1 + len(layers)] == ["test", *layers]
    assert test.arguments[-1] == str(folder / "fit/checkpoints/best.ckpt")
    assert fit.num_steps == DEFAULT_STEPS
    assert yaml.safe_load((folder / "settings.yaml").read_text())["trainer"]["max_steps"] == DEFAULT_STEPS
    assert len(plan_run("audio_visual", options(tmp_path), REPOSITORY / "configs").commands[0].arguments) == 5


def test_what_is_reused_is_said(tmp_path: Path) -> None:
    asked = options(tmp_path)
    assert what_is_reused(asked) == ""
    asked.scenes.mkdir()
    (asked.scenes / "scenes.json").touch()
    assert "left the scenes in place" in what_is_reused(asked)
    (asked.cache / "key").mkdir(parents=True)
    (asked.cache / "key/vision_encoder-1.safetensors").touch()
    assert "left the scenes and the prepared backbones in place" in what_is_reused(asked)


def test_too_few_right_clips_are_an_error_at_full_size_only(tmp_path: Path) -> None:
    console = quiet()
    assert verdict(console, options(tmp_path), 0.6) == 0
    assert verdict(console, options(tmp_path, "--steps", "6"), 0.1) == 0
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""
    assert verdict(console, options(tmp_path), 0.5967) == 1
    said = console.file.getvalue()
    assert "59.7 % of the unseen clips, at least 60 %" in said
    assert said.count("\n") == 1


def test_the_table_holds_what_the_runs_have() -> None:
    console = quiet()
    scores = {"cider": 2.5, "bleu_4": 0.5, "bleu_1": 0.9}
    console.print(
        demo.score_table(
            [result("one", scores, {"a": ("x", True), "b": ("y", False)}), result("two", {}, {"a": ("x", False)})]
        )
    )
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    assert lines[0] == ["×", "100", "right", "+", "adverbs", "CIDEr", "BLEU-4"]
    assert lines[2] == ["one", "50.0", "%", "0.0", "%", "250.0", "50.0"]
    assert lines[3] == ["two", "0.0", "%", "0.0", "%", "-", "-"]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    scores = {"cider": 3.0, "meteor": 0.5, "rouge_l": 0.5, "bleu_4": 0.5}
    results = [result(title, scores, {"a": ("x", True)}) for title in demo.TITLES.values()]
    console.print(demo.score_table(results))
    assert isinstance(console.file, io.StringIO)
    assert "…" not in console.file.getvalue()


def test_captions_stand_beside_a_reference() -> None:
    console = quiet()
    results = {
        "one": result("one", {}, {"a": ("[bold] dog", True), "b": ("y", False)}),
        "two": result("two", {}, {"a": ("a cat", False), "b": ("y", False)}),
    }
    show_captions(console, ["a"], results)
    assert isinstance(console.file, io.StringIO)
    _, _, clip, first, second = console.file.getvalue().splitlines()
    assert clip.split() == ["a", "reference", "of", "a"]
    assert first.split() == ["✓", "one", "[bold]", "dog"]
    assert second.split() == ["✗", "two", "a", "cat"]


def test_command_line_errors_are_ours() -> None:
    with pytest.raises(CommandLineError):
        parse_options(["--out"])
