from __future__ import annotations

from importlib import import_module

import pytest

from avcap_zoo.cli.short_names import DATA_MODULES, SYSTEMS, dotted_path, expand_arguments, expand_config, short_name
from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.systems.base import System

LAVCAP = "avcap_zoo.systems.lavcap.LAVCap"
SCENES = "avcap_zoo.data_modules.scenes.data_module.ScenesDataModule"


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_is_there(name: str) -> None:
    module, _, class_name = SYSTEMS[name].rpartition(".")
    assert issubclass(getattr(import_module(module), class_name), System)


@pytest.mark.parametrize("name", sorted(DATA_MODULES))
def test_every_data_module_is_there(name: str) -> None:
    module, _, class_name = DATA_MODULES[name].rpartition(".")
    assert issubclass(getattr(import_module(module), class_name), CaptionDataModule)


@pytest.mark.parametrize("name", ["lavcap", "LAVCap", "LavCap", "LAVCAP"])
def test_any_case(name: str) -> None:
    assert dotted_path("model", name) == LAVCAP


def test_class_name_of_a_data_module() -> None:
    assert dotted_path("data", "scenesdatamodule") == SCENES


@pytest.mark.parametrize("name", ["scenes", "my.own.System", LAVCAP, "lavcp"])
def test_other_names_stay(name: str) -> None:
    assert dotted_path("model", name) == name


def test_arguments() -> None:
    given = ["fit", "--model", "LAVCap", "--data=scenes", "--model.class_path", "lavcap", "--model.help", "lavcap"]
    assert expand_arguments(given) == [
        "fit", "--model", LAVCAP, f"--data={SCENES}", "--model.class_path", LAVCAP, "--model.help", LAVCAP,
    ]  # fmt: skip


def test_arguments_that_only_look_alike_stay() -> None:
    given = ["fit", "--model.name", "lavcap", "-c", "lavcap", "--model.help", "--data.root", "scenes"]
    assert expand_arguments(given) == given


def test_option_after_a_help_without_a_name_still_counts() -> None:
    assert expand_arguments(["--model.help", "--data", "scenes"]) == ["--model.help", "--data", SCENES]


@pytest.mark.parametrize(
    ("content", "expanded"),
    [
        ({"model": "lavcap"}, {"model": LAVCAP}),
        (
            {"model": {"class_path": "LavCap", "init_args": {"a": 1}}},
            {"model": {"class_path": LAVCAP, "init_args": {"a": 1}}},
        ),
        ({"model.class_path": "lavcap"}, {"model.class_path": LAVCAP}),
        ({"class_path": "scenes", "init_args": {}}, {"class_path": SCENES, "init_args": {}}),
        ({"data": "scenes", "trainer": {"max_steps": 1}}, {"data": SCENES, "trainer": {"max_steps": 1}}),
        ({"model": {"init_args": {"name": "lavcap"}}}, {"model": {"init_args": {"name": "lavcap"}}}),
        (["lavcap"], ["lavcap"]),
        ("lavcap", "lavcap"),
    ],
)
def test_content(content: object, expanded: object) -> None:
    before = repr(content)
    assert expand_config(content) == expanded
    assert repr(content) == before


def test_short_name_of_a_class() -> None:
    assert short_name(LAVCAP) == "lavcap"
    assert short_name("somewhere.MyOwn") == "myown"
