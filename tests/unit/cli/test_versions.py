from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from avcap_zoo.cli import versions


def make_repository(folder: Path, tracked: list[str]) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)

    git("init")
    git("add", *tracked)
    git("commit", "-m", "first")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the place of versions.py inside an otherwise empty folder."""
    folder = tmp_path / "src" / "avcap_zoo"
    (folder / "cli").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (tmp_path / "README").write_text("")
    monkeypatch.setattr(versions, "__file__", str(folder / "cli" / "versions.py"))
    return folder


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_and_dirt(package: Path, tmp_path: Path) -> None:
    make_repository(tmp_path, ["src"])
    commit = versions.source_commit()
    assert commit is not None
    assert len(commit) == 40
    (package / "__init__.py").write_text("changed = True")
    assert versions.source_commit() == f"{commit}-dirty"
    assert versions.provenance_lines()[1] == f"commit {commit}-dirty"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_somebody_elses_repository_is_not_ours(package: Path, tmp_path: Path) -> None:
    make_repository(tmp_path, ["README"])
    assert versions.source_commit() is None
    assert versions.provenance_lines() == versions.version_lines()


def test_without_git(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(package))
    assert versions.source_commit() is None


def test_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PACKAGES", ("no-such-package-here",))
    assert versions.version_lines() == ["no-such-package-here==not installed"]
