from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
from lightning.pytorch import Trainer

from avcap_zoo.cli.config_files import Located
from avcap_zoo.cli.explain import (
    UnknownClassError,
    argument_names,
    explain,
    import_class,
    missing_arguments,
    read_layers,
    shown,
    wanted,
)
from avcap_zoo.cli.short_names import DATA_MODULES, SYSTEMS
from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.systems.base import System
from tests.unit.cli.running import BASE, write
from tests.unit.cli.toy import NeedySystem, ToyLanguage, ToySystem

KNOWN: dict[str, Any] = {
    "config": Any,
    "model": System,
    "data": CaptionDataModule,
    "trainer": Trainer,
    "seed_everything": bool | int,
}
BASES: dict[str, type] = {"model": System, "data": CaptionDataModule}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("base.yaml", BASE)


def why(*arguments: str, refusal: str = "refused") -> list[str]:
    return explain(arguments, refusal, known=KNOWN, bases=BASES).split("\n  ")


def why_file(text: str) -> list[str]:
    write("over.yaml", text)
    return why("-c", "base.yaml", "-c", "over.yaml")


def test_all_problems_of_one_file_at_once() -> None:
    text = """
    seed_everythin: 1
    model:
      init_args:
        ot_wieght: 1
        mode: silent
        language:
          width: wide
    trainer:
      max_step: 2
      max_epochs: 1e1
    """
    assert why_file(text) == [
        "over.yaml:1: no such key seed_everythin; did you mean seed_everything?",
        "over.yaml:4: model.init_args.ot_wieght: ToySystem has no such argument; did you mean ot_weight?",
        "over.yaml:5: model.init_args.mode: found 'silent', wanted one of loud, quiet",
        "over.yaml:7: model.init_args.language.width: found 'wide', wanted int",
        "over.yaml:9: trainer.max_step: Trainer has no such argument; did you mean max_steps?",
        "over.yaml:10: trainer.max_epochs: found 10.0, wanted int or null; write 10",
    ]


def test_first_file_with_problems_is_the_one_named() -> None:
    write("first.yaml", "model:\n  init_args:\n    beam: 1")
    write("second.yaml", "model:\n  init_args:\n    beems: 1")
    found = why("-c", "base.yaml", "-c", "first.yaml", "-c", "second.yaml")
    assert found == ["first.yaml:3: model.init_args.beam: ToySystem has no such argument; did you mean beams?"]


def test_problem_that_a_later_file_covers_is_still_found() -> None:
    write("first.yaml", "model:\n  init_args:\n    beams: many")
    write("second.yaml", "model:\n  init_args:\n    beams: 1")
    found = why("-c", "base.yaml", "-c", "first.yaml", "-c", "second.yaml")
    assert found == ["first.yaml:3: model.init_args.beams: found 'many', wanted int"]


def test_classes_within_lists() -> None:
    text = """
    trainer:
      callbacks:
        - class_path: ModelCheckpoint
          init_args:
            monitr: val/cider
        - class_path: lightning.pytorch.callbacks.EarlyStoping
    """
    checkpoint, stopping = why_file(text)
    assert checkpoint.startswith(
        "over.yaml:5: trainer.callbacks.0.init_args.monitr: ModelCheckpoint has no such argument"
    )
    assert checkpoint.endswith("; did you mean monitor?")
    assert stopping.startswith("over.yaml:6: trainer.callbacks.1.class_path: lightning.pytorch.callbacks has no class")
    assert stopping.endswith(" EarlyStoping; did you mean EarlyStopping?")


def test_arguments_of_the_class_before_are_not_held_against_the_new_one() -> None:
    text = """
    model:
      class_path: tests.unit.cli.toy.NeedySystem
      init_args:
        sede: 1
    """
    found = why_file(text)
    assert len(found) == 1
    assert found[0].startswith(
        "over.yaml:4: model.init_args.sede: NeedySystem has no such argument; did you mean seed?"
    )


def test_overlay_before_its_base() -> None:
    write("over.yaml", "model:\n  init_args:\n    beams: 3")
    (found,) = why("-c", "over.yaml", "-c", "base.yaml")
    assert found.startswith("over.yaml:1: model has no class_path and no earlier -c gives one")
    assert found.endswith("; put the file that names the model first: -c base.yaml -c overlay.yaml")


def test_long_lists_are_cut() -> None:
    keys = "\n".join(f"    wrong{number}: 1" for number in range(11))
    found = why_file(f"model:\n  init_args:\n{keys}")
    assert len(found) == 9
    assert found[-1] == "and 3 more"


def test_section_in_a_file_of_its_own() -> None:
    write("configs/data/toy.yaml", "class_path: tests.unit.cli.toy.ToyDataModule\ninit_args:\n  clips: few")
    write("configs/over.yaml", "data: data/toy.yaml")
    assert why("-c", "base.yaml", "-c", "configs/over.yaml") == [
        "configs/data/toy.yaml:3: data.init_args.clips: found 'few', wanted int"
    ]
    assert why("-c", "base.yaml", "--data", "configs/data/toy.yaml") == [
        "configs/data/toy.yaml:3: data.init_args.clips: found 'few', wanted int"
    ]


def test_section_file_that_is_missing() -> None:
    write("data/toy.yaml", "class_path: tests.unit.cli.toy.ToyDataModule")
    write("over.yaml", "data: data/tay.yaml")
    assert why("-c", "over.yaml") == ["data/tay.yaml does not exist; did you mean data/toy.yaml?"]


ARGS = "model.init_args"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.beems", "3"], f"{ARGS}.beems: ToySystem has no such argument; did you mean beams?"),
        (["--model.init_args.beems=3"], f"{ARGS}.beems: ToySystem has no such argument; did you mean beams?"),
        (["--model.language.width", "w"], f"{ARGS}.language.width: found 'w', wanted int"),
        (
            ["--model.language.widht", "3"],
            f"{ARGS}.language.widht: ToyLanguage has no such argument; did you mean width?",
        ),
        (["--model.beams", "-x"], f"{ARGS}.beams: found '-x', wanted int"),
        (
            ["--model", "tests.unit.cli.toy.ToyLanguage"],
            "model.class_path: tests.unit.cli.toy.ToyLanguage is no System",
        ),
        (["--trainer.max_step", "3"], "trainer.max_step: Trainer has no such argument; did you mean max_steps?"),
        (["--seed_everythin", "3"], "no such key seed_everythin; did you mean seed_everything?"),
        (
            ["--data", "scnes"],
            "data.class_path: 'scnes' is neither a short name nor package.module.Class; did you mean scenes?",
        ),
    ],
)
def test_command_line(words: list[str], message: str) -> None:
    assert why("-c", "base.yaml", *words) == [f"command line: {message}"]


def test_help_for_a_class_that_is_not_there() -> None:
    assert why("--model.help", "lavcp") == [
        "--model.help: 'lavcp' is neither a short name nor package.module.Class; did you mean lavcap?"
    ]


def test_missing_arguments_only_when_something_is_missing() -> None:
    words = ["--model", "tests.unit.cli.toy.NeedySystem", "--model.size.width", "3"]
    assert why(*words, "--data", "tests.unit.cli.toy.ToyDataModule", refusal="Key x is required") == [
        "model.init_args.size.depth is missing, NeedySystem needs it (--model.size.depth)",
        "model.init_args.seed is missing, NeedySystem needs it (--model.seed)",
    ]
    assert why("-c", "base.yaml", refusal="something else") == ["something else"]


def test_no_model_and_no_data() -> None:
    assert why("--seed_everything", "1", refusal="are required: fit.model, fit.data") == [
        f"no model given, wanted model: in a -c file, or --model with one of {', '.join(sorted(SYSTEMS))}",
        f"no data given, wanted data: in a -c file, or --data with one of {', '.join(sorted(DATA_MODULES))}",
    ]


def test_parsers_own_words_are_cut_to_three_lines() -> None:
    assert why("-c", "base.yaml", refusal="one\n\n two\nthree\nfour") == ["one", "two", "three"]


def test_layers_come_in_the_order_of_the_command_line() -> None:
    words = [
        "--model.a",
        "1",
        "-c",
        "base.yaml",
        "--trainer.callbacks+=X",
        "--print_config",
        "--trainer.callbacks.y",
        "2",
    ]
    layers = [layer.plain() for layer in read_layers(words)]
    assert layers[0] == {"model": {"a": 1}}
    assert isinstance(layers[1], dict)
    assert layers[1]["seed_everything"] == 1
    assert layers[2:] == [{"trainer": {"callbacks": "X"}}]


def test_import_class() -> None:
    assert import_class("tests.unit.cli.toy.ToySystem", {}) is ToySystem
    assert import_class("NoSuchCallback", {}) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.unit.cli.toy.ToySystm", "tests.unit.cli.toy has no class ToySystm; did you mean ToySystem?"),
        ("tests.unit.cli.tyo.ToySystem", "there is no module tests.unit.cli.tyo; did you mean toy?"),
        ("nowhere_at_all.X", "no module nowhere_at_all is installed; for one in the current folder set PYTHONPATH=."),
    ],
)
def test_import_class_says_how_far_a_path_leads(path: str, message: str) -> None:
    with pytest.raises(UnknownClassError) as caught:
        import_class(path, {})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import absent_package", "broken needs the package 'absent_package', which is not installed"),
        (
            "from avcap_zoo.errors import require_extra\nrequire_extra('absent_package', 'metrics')",
            "broken: this needs the package 'absent_package', which is not installed: pip install 'avcap-zoo[metrics]'",
        ),
        ("from os import no_such_name", "broken cannot be imported: cannot import name 'no_such_name' from 'os'"),
    ],
)
def test_module_that_cannot_be_imported(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("broken.py", body)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnknownClassError) as caught:
        import_class("broken.X", {})
    assert str(caught.value).startswith(message)


def test_arguments_behind_keywords_are_known() -> None:
    assert {"seed", "beams", "ot_weight"} <= argument_names(NeedySystem)
    assert argument_names(ToyLanguage) == {"source", "width"}


def test_missing_arguments_look_into_dataclasses() -> None:
    assert missing_arguments(NeedySystem, None) == ["size.depth", "seed"]
    given = Located({"seed": Located(1, ""), "size": Located({"depth": Located(1, "")}, "")}, "")
    assert missing_arguments(NeedySystem, given) == []


@dataclasses.dataclass
class Pair:
    left: int
    right: int


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "int"),
        (int | None, "int or null"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["a"], "a"),
        (list[float], "list of float"),
        (tuple[str, ...], "tuple of str, ..."),
        (Pair, "the keys left, right"),
        (Path, "Path"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert wanted(hint) == words


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), (1, "1"), ("a", "'a'"), ("x" * 99, "'" + "x" * 56 + "...")]
)
def test_values_are_shown_as_in_yaml(value: Any, text: str) -> None:
    assert shown(Located(value, "")) == text
