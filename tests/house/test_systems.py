"""Every system's folder has the same five files."""

from __future__ import annotations

from pathlib import Path

from tests.house import tree


def missing_files(folder: Path) -> list[str]:
    return [name for name in tree.SYSTEM_FILES if not (folder / name).is_file()]


def test_every_system_has_the_five_files() -> None:
    folders = tree.system_folders()
    assert folders
    assert {folder.name: missing_files(folder) for folder in folders} == {folder.name: [] for folder in folders}


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    for name in tree.SYSTEM_FILES[1:]:
        (tmp_path / name).touch()
    assert missing_files(tmp_path) == [tree.SYSTEM_FILES[0]]
