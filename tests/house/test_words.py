"""What no file may hold, and what every public name must have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.house import rules, tree

OURS = tree.python_files("src", "data_modules")
TESTS = tree.python_files("tests")
# The rules and their samples spell what they look for; every other text is read.
OTHER_TESTS = [path for path in TESTS if path.name not in {"rules.py", Path(__file__).name}]
TEXTS = [
    path
    for folder in ("configs", "docs", "benchmarks", "checkpoints", ".ci")
    for path in sorted((tree.ROOT / folder).rglob("*"))
    if path.suffix in {".yaml", ".md", ".py", ".sh", ""} and path.is_file()
] + [tree.ROOT / name for name in ("Makefile", "setup.cfg", "pyproject.toml", "README.md", "CONTRIBUTING.md")]


def problems_of(rule: Callable[[str, str], list[str]], paths: list[Path]) -> list[str]:
    return [
        problem
        for path in paths
        if path.exists()
        for problem in rule(path.read_text(encoding="utf-8"), path.relative_to(tree.ROOT).as_posix())
    ]


def assert_none(problems: list[str]) -> None:
    assert not problems, "\n".join(problems)


def test_there_is_something_to_read() -> None:
    assert len(OURS) > 10
    assert Path(__file__) in TESTS
    assert tree.ROOT / "configs/tiny/lavcap.yaml" in TEXTS


def test_nothing_is_left_undone() -> None:
    assert_none(problems_of(rules.unfinished_problems, OURS + OTHER_TESTS + TEXTS))


@pytest.mark.parametrize("bad", ["# TODO: later", "raise NotImplementedError", "x = 1  # FIXME"])
def test_work_left_undone_is_found(bad: str) -> None:
    assert rules.unfinished_problems(f"x = 0\n{bad}", "f.py")[0].startswith("f.py:2: ")


def test_no_path_of_one_machine() -> None:
    assert_none(problems_of(rules.foreign_path_problems, OURS + OTHER_TESTS + TEXTS))


@pytest.mark.parametrize(
    "bad",
    ["open('/work/main/x')", "Path('../shared/golden')", "/root/data", "root: /home/me", "here.parents[3] / 'shared'"],
)
def test_a_path_of_one_machine_is_found(bad: str) -> None:
    assert len(rules.foreign_path_problems(bad, "f.py")) == 1


@pytest.mark.parametrize("good", ["a/work/b", "https://site/home", "clip.parent / 'frames'", "{root}/home/x"])
def test_an_ordinary_path_is_allowed(good: str) -> None:
    assert rules.foreign_path_problems(good, "f.py") == []


def test_no_way_to_run_foreign_code() -> None:
    assert_none(problems_of(rules.unsafe_problems, OURS + OTHER_TESTS))


@pytest.mark.parametrize(
    "bad",
    [
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "f(**{'trust_remote_code': True})",
        "AutoModel.from_pretrained(x, trust_remote_code=asked)",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=safe)",
        "numpy.load(x, allow_pickle=True)",
        "import torchaudio.compliance.kaldi",
        "from torchaudio import transforms",
        "importlib.import_module('torchaudio')",
        "pickle.load(file)",
        "pickle.loads(text)",
        "from pickle import load",
        "import joblib",
    ],
)
def test_a_way_to_run_foreign_code_is_found(bad: str) -> None:
    assert len(rules.unsafe_problems(bad, "f.py")) == 1


def test_what_is_safe_is_allowed() -> None:
    source = (
        '"""As torchaudio does; trust_remote_code is never used."""\nimport pickle\n'
        "torch.load(x, weights_only=True)\npickle.loads(pickle.dumps(x))\nnumpy.load(x, allow_pickle=False)\n"
        "AutoModel.from_pretrained(x, trust_remote_code=False)\n"
    )
    assert rules.unsafe_problems(source, "f.py") == []


def test_every_public_name_has_a_docstring() -> None:
    assert_none(problems_of(rules.docstring_problems, OURS))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("x = 1", ["m:1: the module"]),
        ('"""M."""\ndef f(): ...', ["m:2: f"]),
        ('"""M."""\nasync def f(): ...', ["m:2: f"]),
        ('"""M."""\nclass A:\n    def g(self): ...', ["m:2: A", "m:3: A.g"]),
        ('"""M."""\nif x:\n    def f(): ...', ["m:3: f"]),
        ('"""M."""\nclass A:\n    """A."""\n    class B: ...', ["m:4: A.B"]),
    ],
)
def test_a_missing_docstring_is_found(bad: str, said: list[str]) -> None:
    assert rules.docstring_problems(bad, "m") == said


def test_private_names_need_no_docstring() -> None:
    source = '"""M."""\ndef _f(): ...\nclass A:\n    """A."""\n    def __len__(self): ...\n    def _g(self): ...\n'
    assert rules.docstring_problems(source, "m") == []


def test_no_vague_names() -> None:
    paths = [path.relative_to(tree.ROOT).as_posix() for path in OURS + TESTS]
    assert rules.vague_name_problems(paths) == []
    bad = ["src/utils.py", "src/helpers/x.py", "data_modules/common.py"]
    assert rules.vague_name_problems([*bad, "src/utility_bills.py"]) == bad


def test_no_test_leaves_the_machine() -> None:
    # test_serve.py asks a server that it started itself; the guard of conftest.py watches over its addresses.
    elsewhere = [path for path in OTHER_TESTS if path.name != "test_serve.py"]
    assert_none(problems_of(rules.network_problems, elsewhere))


@pytest.mark.parametrize(
    "bad",
    [
        "import requests",
        "from urllib import request",
        "import urllib.request",
        "import http.client as c",
        "hub.snapshot_download('x')",
        "torch.hub.load('x', 'y')",
    ],
)
def test_a_test_that_leaves_the_machine_is_found(bad: str) -> None:
    assert len(rules.network_problems(bad, "f.py")) == 1


def test_golden_data_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in (tree.ROOT / "tests/golden").rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 10e6, sorted(sizes, key=lambda path: -sizes[path])[:5]
