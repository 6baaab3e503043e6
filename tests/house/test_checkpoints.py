"""The list of weights is readable by a program and agrees with its page."""

from __future__ import annotations

from typing import Any

import yaml

from tests.house import tree

REQUIRED = {"id", "what", "licence", "needed_by"}
OPTIONAL = {"file", "hub_id", "source", "note", "size_bytes", "sha256", "config"}
USERS = {"lavcap", "bubogpt", "zeraucap", "vlrm", "score"}
"""The systems, and the command that judges captions."""


def manifest_problems(entries: list[dict[str, Any]]) -> list[str]:
    problems = []
    for entry in entries:
        name = entry.get("id")
        keys = set(entry)
        if not keys >= REQUIRED or keys - REQUIRED - OPTIONAL:
            problems.append(f"{name}: keys {sorted(keys)}")
        if not keys & {"file", "hub_id"}:
            problems.append(f"{name}: neither a file nor a hub id")
        if "file" in keys and "source" not in keys:
            problems.append(f"{name}: a file, but not where it is from")
        if not entry.get("needed_by") or set(entry["needed_by"]) - USERS:
            problems.append(f"{name}: needed by {entry.get('needed_by')}")
        if [other.get("id") for other in entries].count(name) != 1:
            problems.append(f"{name}: the id is taken twice")
    return problems


def test_the_manifest_is_complete() -> None:
    entries = yaml.safe_load((tree.ROOT / "checkpoints/manifest.yaml").read_text(encoding="utf-8"))["weights"]
    assert manifest_problems(entries) == []
    page = (tree.ROOT / "checkpoints/README.md").read_text(encoding="utf-8")
    assert [entry["id"] for entry in entries if f"`{entry['id']}`" not in page] == []
    needed = {system for entry in entries for system in entry["needed_by"]}
    assert {folder.name for folder in tree.system_folders()} - needed == set()


def test_an_incomplete_entry_is_found() -> None:
    good = {"id": "a", "what": "w", "licence": "l", "hub_id": "x/y", "needed_by": ["lavcap"]}
    assert manifest_problems([good]) == []
    assert len(manifest_problems([good, good])) == 2
    for change in ({"hub_id": None}, {"needed_by": ["nobody"]}, {"size": 3}, {"file": "f.pt"}, {"licence": None}):
        bad = {key: value for key, value in {**good, **change}.items() if value is not None}
        assert manifest_problems([bad]) != []
