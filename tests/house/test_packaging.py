"""What setup.cfg says is what the tree holds and what a wheel brings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house import rules, tree

SETUP = tree.setup_cfg()
INSTALLED = [Requirement(line) for line in tree.cfg_list(SETUP["options"]["install_requires"])]
EXTRAS = {
    name: [Requirement(line) for line in tree.cfg_list(text)] for name, text in SETUP["options.extras_require"].items()
}


def pins_of(name: str) -> list[Requirement]:
    lines = (tree.ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


PINS = pins_of("constraints.txt")
PINS_OF_GAUDI = pins_of("constraints-hpu.txt")
OF_THE_CONTAINER = {"torch", "torchvision", "numpy"}
MALICIOUS = ("2.6.2", "2.6.3")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# What a bare name in an import is called on the index, where an installed package cannot tell.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "open_clip": "open-clip-torch",
    "groundingdino": "groundingdino-py",
    "segment_anything": "segment-anything",
    "habana_frameworks": "",  # comes with the Gaudi container, not from an index
}


# -- packages and files -------------------------------------------------------------------------------------------


def test_the_package_list_is_the_tree() -> None:
    listed = tree.cfg_list(SETUP["options"]["packages"])
    assert len(listed) == len(set(listed))
    assert set(listed) == tree.packages()


def test_no_python_file_lies_outside_a_package() -> None:
    folders = {name.rpartition("/")[0].replace("/", ".") for name in tree.package_files() if name.endswith(".py")}
    assert folders - tree.packages() == set()


def test_the_link_that_editors_follow() -> None:
    link = tree.ROOT / "src/avcap_zoo/data_modules"
    assert link.is_symlink()
    assert link.readlink() == Path("../../data_modules")


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from a copy of the tree, with the tools that are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    return build_wheel(tree.ROOT, folder)


def build_wheel(root: Path, folder: Path) -> set[str]:
    copy = folder / "copy"
    copy.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in"):
        if (root / name).exists():
            shutil.copy(root / name, copy)
    for name in ("src", "data_modules"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_tree(wheel_names: set[str]) -> None:
    assert wheel_names == set(tree.package_files())


def test_a_file_left_out_of_the_wheel_is_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("src", "data_modules"):
        shutil.copytree(tree.ROOT / name, root / name, symlinks=True)
    for name in ("setup.cfg", "pyproject.toml", "LICENSE"):
        shutil.copy(tree.ROOT / name, root)
    (root / "src/avcap_zoo/ops/table.csv").touch()
    (root / "src/avcap_zoo/forgotten").mkdir()
    (root / "src/avcap_zoo/forgotten/__init__.py").touch()
    assert "avcap_zoo.forgotten" in tree.packages(root)
    (tmp_path / "out").mkdir()
    missing = set(tree.package_files(root)) - build_wheel(root, tmp_path / "out")
    assert missing == {"avcap_zoo/ops/table.csv", "avcap_zoo/forgotten/__init__.py"}


# -- requirements -------------------------------------------------------------------------------------------------


def all_requirements() -> Iterator[Requirement]:
    """All but those of Gaudi, which stands beside no other extra."""
    yield from INSTALLED
    for requirements in (found for name, found in EXTRAS.items() if name != "hpu"):
        yield from (requirement for requirement in requirements if requirement.name != "avcap-zoo")


def pins_on(python: str, name: str, of: list[Requirement] = PINS) -> list[Requirement]:
    environment = {"python_version": python, "sys_platform": "linux"}
    return [
        pin
        for pin in of
        if canonicalize_name(pin.name) == canonicalize_name(name)
        and (pin.marker is None or Marker(str(pin.marker)).evaluate(environment))
    ]


def unpinned(requirements: Iterator[Requirement], python: str, of: list[Requirement] = PINS) -> list[str]:
    """Requirements without exactly one pin that they accept."""
    problems = []
    for requirement in requirements:
        pins = pins_on(python, requirement.name, of)
        versions = [next(iter(pin.specifier)).version for pin in pins]
        if len(versions) != 1 or not requirement.specifier.contains(versions[0], prereleases=True):
            problems.append(f"{requirement}: pinned to {versions}")
    return problems


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pin_that_fits(python: str) -> None:
    assert unpinned(all_requirements(), python) == []
    bad = [Requirement("torch>=99"), Requirement("numpy"), Requirement("no-such-package")]
    assert [line.split(":")[0] for line in unpinned(iter(bad), python)] == ["torch>=99", "no-such-package"]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_of_gaudi_has_one_pin_that_fits(python: str) -> None:
    needed = [*INSTALLED, *EXTRAS["hpu"], *(r for r in EXTRAS["dev"] + EXTRAS["metrics"] if r.name != "avcap-zoo")]
    found = unpinned((r for r in needed if r.name not in OF_THE_CONTAINER), python, PINS_OF_GAUDI)
    assert found == []


def test_the_container_of_gaudi_keeps_what_is_its_own() -> None:
    assert {pin.name for pin in PINS_OF_GAUDI} & (OF_THE_CONTAINER | {"triton"}) == set()
    exact = {pin.name: str(pin.specifier) for pin in PINS_OF_GAUDI}
    assert exact["lightning"] == exact["pytorch-lightning"] == "==2.5.5"
    assert exact["lightning-habana"] == "==1.6.0"
    assert exact["transformers"].startswith("==4.55.")


def test_pins_are_exact_and_leave_out_what_follows_torch() -> None:
    assert [str(pin) for pin in PINS + PINS_OF_GAUDI if not re.fullmatch(r"==[\w.]+", str(pin.specifier))] == []
    assert [pin.name for pin in PINS + PINS_OF_GAUDI if pin.name.startswith(("nvidia", "cuda", "triton"))] == []
    for python in PYTHONS:
        doubled = {pin.name for pin in PINS if len(pins_on(python, pin.name)) > 1}
        assert doubled == set()


def test_malicious_releases_are_excluded() -> None:
    by_name = {requirement.name: requirement for requirement in INSTALLED}
    for name in ("lightning", "pytorch-lightning"):
        assert [version for version in MALICIOUS if by_name[name].specifier.contains(version)] == []
        assert by_name[name].specifier.contains("2.6.6")
        assert [
            str(pin) for python in PYTHONS for pin in pins_on(python, name) if str(pin.specifier)[2:] in MALICIOUS
        ] == []
    assert Requirement("lightning>=2.5,<2.8").specifier.contains(MALICIOUS[0])  # the exclusion is what does it


def undeclared(sources: dict[str, str], declared: set[str]) -> list[str]:
    """Imports of packages that no requirement names."""
    known = packages_distributions()
    problems = []
    for where, source in sources.items():
        for name in sorted(rules.third_party_imports(source) - set(sys.stdlib_module_names)):
            if name in DISTRIBUTIONS:
                candidates = [DISTRIBUTIONS[name]]
            else:
                candidates = [canonicalize_name(found) for found in known.get(name, [name])]
            if not set(candidates) & (declared | {""}):
                problems.append(f"{where}: {name}")
    return problems


def test_every_import_is_declared() -> None:
    declared: set[str] = {canonicalize_name(requirement.name) for requirement in INSTALLED}
    declared |= {
        canonicalize_name(requirement.name)
        for extra, found in EXTRAS.items()
        if extra not in {"dev", "docs"}
        for requirement in found
    }
    sources = {name: path.read_text(encoding="utf-8") for name, path in tree.modules().items()}
    problems = undeclared(sources, declared)
    assert not problems, "\n".join(problems)
    assert undeclared({"m": "import pytest\nimport torch, PIL\nfrom avcap_zoo import x"}, declared) == ["m: pytest"]


def test_every_extra_that_code_asks_for_exists() -> None:
    for name, path in tree.modules().items():
        for module, extra in rules.required_extras(path.read_text(encoding="utf-8")):
            assert extra in EXTRAS, f"{name} asks for the extra {extra!r}, which setup.cfg does not have"
            brings = {canonicalize_name(requirement.name) for requirement in EXTRAS[extra]}
            top = module.split(".")[0]
            assert canonicalize_name(DISTRIBUTIONS.get(top, top)) in brings, f"{name}: {extra} does not bring {module}"
    assert rules.required_extras("errors.require_extra('a.b', 'c')") == [("a.b", "c")]


def test_every_package_of_the_project_card_is_accounted_for() -> None:
    text = (tree.ROOT / "setup.cfg").read_text(encoding="utf-8")
    for name in (
        "lightning", "torch", "transformers", "peft", "open_clip_torch", "salesforce-lavis", "segment-anything",
        "groundingdino-py", "imagebind", "torchmetrics", "pycocoevalcap",
    ):  # fmt: skip
        assert name in text


# -- where things come from ---------------------------------------------------------------------------------------


def index_hosts(text: str) -> list[str]:
    return re.findall(r"https?://\S+|--(?:extra-)?index-url\S*|--find-links\S*", text)


def test_no_file_names_an_index() -> None:
    names = (
        "setup.cfg",
        "pyproject.toml",
        "constraints.txt",
        "constraints-hpu.txt",
        "Makefile",
        ".ci/run",
        ".pre-commit-config.yaml",
        "MANIFEST.in",
    )
    assert {name: index_hosts((tree.ROOT / name).read_text(encoding="utf-8")) for name in names} == {
        name: [] for name in names
    }
    assert len(index_hosts("-f https://host/simple --extra-index-url x")) == 2


def test_the_console_scripts() -> None:
    assert tree.cfg_list(SETUP["options.entry_points"]["console_scripts"]) == [
        "lightning = avcap_zoo.cli.main:lightning",
        "avcap = avcap_zoo.cli.main:avcap",
    ]
