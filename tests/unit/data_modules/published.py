"""Copies of the generated clips in a published format, to be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def copy_of(scenes_root: Path, name: str, folder: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(scenes_root / name, folder / name))


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite a JSON file; `change` works in place or gives the new content."""
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")


def change_text(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text that must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
