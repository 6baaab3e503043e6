"""Versions of what runs, read without importing it: for `--version` and the head of a saved config.yaml."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import avcap_zoo

PACKAGES = ("avcap-zoo", "lightning", "torch")


def version_lines() -> list[str]:
    """One `name==version` per package; a source tree that is not installed counts as 0.0.0."""
    lines = []
    for package in PACKAGES:
        try:
            found = version(package)
        except PackageNotFoundError:
            found = avcap_zoo.__version__ if package == "avcap-zoo" else "not installed"
        lines.append(f"{package}=={found}")
    return lines


def source_commit() -> str | None:
    """The git commit of avcap_zoo's own files, with `-dirty` when some are changed; None outside a checkout.

    A package installed into a virtual environment that lies inside somebody's repository is not that repository's
    commit: git must track our files.
    """
    package = Path(__file__).resolve().parents[1]
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", "__init__.py"],
            cwd=package,
            check=True,
            capture_output=True,
            timeout=10,
        )
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=package,
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def provenance_lines() -> list[str]:
    """The lines that head a saved configuration."""
    commit = source_commit()
    lines = version_lines()
    return lines if commit is None else [lines[0], f"commit {commit}", *lines[1:]]
