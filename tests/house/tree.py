"""Where the parts of the project lie, as the house tests see them."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Package folder -> dotted name: the mapping `package_dir` of setup.cfg, the longer name last.
PACKAGE_FOLDERS = {"src/avcap_zoo": "avcap_zoo", "data_modules": "avcap_zoo.data_modules"}
SYSTEM_FILES = ("README.md", "__init__.py", "keymap.py", "model.py", "module.py")


def package_files(root: Path = ROOT) -> dict[str, Path]:
    """Every file of the package, by its path in an installed tree, such as "avcap_zoo/ops/masking.py".

    The link src/avcap_zoo/data_modules is not followed: each file appears once.
    """
    found: dict[str, Path] = {}
    for folder, name in PACKAGE_FOLDERS.items():
        for path in _files_below(root / folder):
            found[f"{name.replace('.', '/')}/{path.relative_to(root / folder).as_posix()}"] = path
    return found


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every Python file of the package by its dotted name; a package stands for its `__init__.py`."""
    python = {name: path for name, path in package_files(root).items() if name.endswith(".py")}
    return {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for name, path in python.items()}


def packages(root: Path = ROOT) -> set[str]:
    """Dotted names of all folders that hold an `__init__.py`."""
    return {name for name, path in modules(root).items() if path.name == "__init__.py"}


def system_folders(root: Path = ROOT) -> list[Path]:
    """The folder of each system."""
    folder = root / "src/avcap_zoo/systems"
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__" and any(path.iterdir())
    )


def python_files(*folders: str, root: Path = ROOT) -> list[Path]:
    """Every Python file below the folders, links not followed."""
    return [path for folder in folders for path in _files_below(root / folder) if path.suffix == ".py"]


def setup_cfg(root: Path = ROOT) -> configparser.RawConfigParser:
    """setup.cfg, read as setuptools reads it: names keep their case and nothing is interpolated."""
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(root / "setup.cfg", encoding="utf-8")
    return parser


def cfg_list(text: str) -> list[str]:
    """The lines of one multi-line value of setup.cfg."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _files_below(folder: Path) -> Iterator[Path]:
    for current, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(
            name for name in subfolders if name != "__pycache__" and not (Path(current) / name).is_symlink()
        )
        for name in sorted(names):
            if not name.endswith((".pyc", ".pyo")) and name != ".DS_Store":
                yield Path(current) / name
