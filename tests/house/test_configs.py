"""Every YAML file of the tree says what it is for, and the real command line takes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.house import tree

CONFIGS = sorted((tree.ROOT / "configs").rglob("*.yaml"))
BASE_OF_OVERLAYS = tree.ROOT / "configs/tiny/lavcap.yaml"


def header_problems(text: str, path: str) -> list[str]:
    """A file opens with a comment: what it is for, in words, and a command that names it."""
    header = re.match(r"(?:#.*\n)*", text)
    lines = [line.lstrip("# ") for line in header.group().splitlines()] if header else []
    problems = []
    if not lines or len(lines[0].split()) < 3:
        problems.append(f"{path}: no comment at its head that says what it is for")
    if not any(re.search(rf"\b(?:lightning|avcap) \w+ .*-c {re.escape(path)}(?:\s|$)", line) for line in lines):
        problems.append(f"{path}: no command in its head that uses it (lightning fit ... -c {path})")
    return problems


def is_complete(content: dict[str, Any]) -> bool:
    """Whether a file can stand alone: it names a system and a data module."""
    return all(isinstance(content.get(key), dict) and "class_path" in content[key] for key in ("model", "data"))


def files_before(path: Path) -> list[Path]:
    """What an overlay is laid over."""
    if is_complete(yaml.safe_load(path.read_text(encoding="utf-8"))):
        return []
    if path.parent.parent.name == "tables":
        return overlaid(path)
    return [BASE_OF_OVERLAYS]


def overlaid(path: Path) -> list[Path]:
    """The files that stand before an overlay in the command of its head."""
    command = next(line for line in path.read_text(encoding="utf-8").splitlines() if f"-c {name_of(path)}" in line)
    return [tree.ROOT / name for name in re.findall(r"-c (\S+)", command)[:-1]]


def is_of_grounding(path: Path) -> bool:
    """Whether a file holds stages of `avcap ground`, which has neither model nor data."""
    return "detector" in yaml.safe_load(path.read_text(encoding="utf-8"))


def parse(*paths: Path) -> int | str | None:
    """Exit code of `lightning fit -c ... --print_config`, in this process."""
    from avcap_zoo.cli.main import lightning

    arguments = [word for path in paths for word in ("-c", str(path))]
    try:
        return lightning(["fit", *arguments, "--print_config"])
    except SystemExit as stop:
        return stop.code


def name_of(path: Path) -> str:
    return path.relative_to(tree.ROOT).as_posix()


def test_there_are_configs() -> None:
    assert BASE_OF_OVERLAYS in CONFIGS
    assert is_complete(yaml.safe_load(BASE_OF_OVERLAYS.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_says_what_it_is_for(path: Path) -> None:
    problems = header_problems(path.read_text(encoding="utf-8"), name_of(path))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_is_accepted(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if is_of_grounding(path):
        from avcap_zoo.cli.main import avcap

        arguments = [word for file in (*overlaid(path), path) for word in ("-c", str(file))]
        assert avcap(["ground", "picture.jpg", *arguments, "--print_config"]) == 0
        stages = yaml.safe_load(capsys.readouterr().out)
        assert all(stages[key]["class_path"] for key in ("tagger", "detector", "segmenter", "matcher"))
        return
    code = parse(*files_before(path), path)
    printed = capsys.readouterr()
    assert code in {0, None}, printed.err
    merged = yaml.safe_load(printed.out)
    assert merged["model"]["class_path"].startswith("avcap_zoo.systems.")
    assert merged["data"]["class_path"].startswith("avcap_zoo.data_modules.")


@pytest.mark.parametrize(
    "text",
    ["model: {init_args: {no_such_option: 1}}\n", "trainer: {max_steps: many}\n", "no_such_key: 1\n", "a: [\n"],
)
def test_a_wrong_config_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text, encoding="utf-8")
    assert parse(BASE_OF_OVERLAYS, wrong) not in {0, None}
    assert capsys.readouterr().err


def test_a_poor_header_is_found() -> None:
    good = "# LAVCap on two clips.\n#   lightning fit -c configs/x.yaml\ntrainer: {}\n"
    assert header_problems(good, "configs/x.yaml") == []
    assert len(header_problems(good, "configs/other.yaml")) == 1
    assert len(header_problems("trainer: {}\n# late\n", "configs/x.yaml")) == 2
