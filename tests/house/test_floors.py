"""An import points down only, and nothing below the systems names one of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.house import rules, tree

MODULES = tree.modules()
SYSTEMS = {path.name for path in tree.system_folders()}
# The samples below are judged as if these existed, whatever the tree holds.
KNOWN = {
    "avcap_zoo", "avcap_zoo.batch", "avcap_zoo.cli", "avcap_zoo.cli.main", "avcap_zoo.data_modules",
    "avcap_zoo.data_modules.base", "avcap_zoo.metrics", "avcap_zoo.metrics.captions", "avcap_zoo.ops",
    "avcap_zoo.ops.masking", "avcap_zoo.systems", "avcap_zoo.systems.base", "avcap_zoo.systems.lavcap",
    "avcap_zoo.systems.lavcap.model", "avcap_zoo.systems.vlrm", "avcap_zoo.tables", "avcap_zoo.weights",
    "avcap_zoo.weights.load",
}  # fmt: skip


def floor_problems(source: str, module: str, *, is_package: bool = False) -> list[str]:
    return rules.floor_problems(source, module, is_package=is_package, known=KNOWN, systems={"lavcap", "vlrm"})


def test_imports_point_down_only() -> None:
    problems = [
        problem
        for name, path in MODULES.items()
        for problem in rules.floor_problems(
            path.read_text(encoding="utf-8"),
            name,
            is_package=path.name == "__init__.py",
            known=MODULES.keys(),
            systems=SYSTEMS,
        )
    ]
    assert not problems, "\n".join(problems)


def test_nothing_below_the_systems_names_one() -> None:
    problems = [
        problem
        for name, path in MODULES.items()
        for problem in rules.system_name_problems(path.read_text(encoding="utf-8"), name, SYSTEMS)
    ]
    assert not problems, "\n".join(problems)


def test_every_module_has_a_floor() -> None:
    for name in MODULES:
        rules.unit_of(name, SYSTEMS)
    with pytest.raises(KeyError, match="no floor is written down for 'plugins'"):
        rules.unit_of("avcap_zoo.plugins.x", SYSTEMS)


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("avcap_zoo.ops.masking", "from avcap_zoo.weights import load", "imports avcap_zoo.weights.load of floor 3"),
        ("avcap_zoo.ops.masking", "import avcap_zoo.metrics.captions", "floor 1 imports"),
        ("avcap_zoo.ops.masking", "def f():\n    from avcap_zoo.weights.load import read", "masking:2"),
        ("avcap_zoo.ops.masking", "from ..weights.load import read", "floor 1 imports avcap_zoo.weights.load"),
        ("avcap_zoo.ops.masking", "from .. import weights", "floor 1 imports avcap_zoo.weights of"),
        ("avcap_zoo.ops.masking", "READER = 'avcap_zoo.weights.load.read'", "floor 1 imports"),
        ("avcap_zoo.batch", "from avcap_zoo.ops import masking", "floor 0 imports"),
        ("avcap_zoo.metrics.captions", "from avcap_zoo.data_modules.base import X", "stands beside it on floor 4"),
        ("avcap_zoo.systems.base", "from avcap_zoo.systems.lavcap import LAVCap", "floor 5 imports"),
        ("avcap_zoo.systems.lavcap.model", "from avcap_zoo.systems.vlrm import X", "stands beside it on floor 6"),
        ("avcap_zoo.systems.lavcap.model", "from ..vlrm import X", "stands beside it on floor 6"),
        ("avcap_zoo.systems.lavcap.model", "from avcap_zoo.tables import report", "floor 6 imports"),
        ("avcap_zoo.systems.base", "from avcap_zoo.data_modules.base import X", "meet in batch.py only"),
        ("avcap_zoo.systems.lavcap.model", "if TYPE_CHECKING:\n    import avcap_zoo.data_modules", "in batch.py only"),
    ],
)  # fmt: skip
def test_an_import_that_points_elsewhere_is_found(module: str, source: str, said: str) -> None:
    (problem,) = floor_problems(source, module)
    assert said in problem


@pytest.mark.parametrize(
    ("module", "is_package", "source"),
    [
        ("avcap_zoo.systems.lavcap", True, "from .model import M\nfrom avcap_zoo.systems.base import S"),
        ("avcap_zoo.systems.lavcap.model", False, "from . import keymap\nfrom avcap_zoo.ops.masking import m"),
        ("avcap_zoo.cli.main", False, "from avcap_zoo.tables import report\nimport avcap_zoo.systems.lavcap"),
        ("avcap_zoo.data_modules.base", False, "import torch\nfrom avcap_zoo.batch import Batch"),
        ("avcap_zoo.ops", True, "from avcap_zoo.ops.masking import m\nfrom avcap_zoo import batch"),
    ],
)
def test_an_import_that_points_down_is_allowed(module: str, is_package: bool, source: str) -> None:
    assert floor_problems(source, module, is_package=is_package) == []


@pytest.mark.parametrize(
    "source",
    [
        "class VLRMHead: ...",
        "x = base.LAVCapModel",
        "def f(bubogpt_stage): ...",
        "NAMES = ['ZerAuCap']",
        "import lavcap",
    ],
)
def test_a_system_named_too_low_is_found(source: str) -> None:
    assert rules.system_name_problems(source, "avcap_zoo.weights.load", {"lavcap"}) != []
    assert rules.system_name_problems(source, "avcap_zoo.systems.lavcap.model", {"lavcap"}) == []


def test_only_functions_of_the_package_itself_may_look_up() -> None:
    lazy = "def load():\n    from avcap_zoo.tables import x\n    return x\n"
    assert floor_problems(lazy, "avcap_zoo", is_package=True) == []
    assert len(floor_problems("from avcap_zoo.tables import x\n" + lazy, "avcap_zoo", is_package=True)) == 1
    assert len(floor_problems(lazy, "avcap_zoo.ops.masking")) == 1


def test_a_paper_may_be_cited_anywhere() -> None:
    source = '"""Log plan.\n\nSource: LAVCap (arXiv 2501.09291)."""\nx: int\n"""As VLRM has it."""  # BuboGPT too\n'
    assert rules.system_name_problems(source, "avcap_zoo.ops.masking", set()) == []


def test_import_of_the_package_is_quick_and_brings_no_torch() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import avcap_zoo; spent = time.perf_counter() - start;"
        "print(spent, *sorted({'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    runs = [_run_python(code) for _ in range(3)]
    assert [run[1:] for run in runs] == [[], [], []]
    assert min(float(run[0]) for run in runs) < 0.3


def _run_python(code: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree.ROOT / "src")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return run.stdout.split()
