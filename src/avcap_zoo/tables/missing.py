"""What a row at full size lacks on this machine, each with how to get it: data, weights, files, extras, a device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from avcap_zoo.cli.prepare import DATA_SETS
from avcap_zoo.errors import AvcapError, ConfigError, WeightsError, first_line
from avcap_zoo.tables.paper_tables import PaperRow, PaperTable
from avcap_zoo.tables.row_runs import merged
from avcap_zoo.weights.manifest import MANIFEST, check_listed

WEIGHTS = Path("checkpoints")
"""Where the configurations look for files of weights."""
MODULE_OF_EXTRA = {"clip": "open_clip"}
_ROOT_VARIABLE = "AVCAP_DATA"


def what_is_missing(table: PaperTable, row: PaperRow) -> list[str]:
    """One line for each thing that keeps a row from being run at full size; empty if it can be.

    Args:
        table: of the row.
        row: has files for full size.
    """
    content = merged(row.full)
    found = [missing_data(content, trained=row.trained)]
    found += [missing_weights(name) for name in row.weights]
    found += [
        f"file {name}: does not exist; the heads of the rows' configurations say what it holds"
        for name in row.files
        if not Path(name).is_file()
    ]
    if table.extra and find_spec(MODULE_OF_EXTRA[table.extra]) is None:
        found.append(f"extra {table.extra}: pip install 'avcap-zoo[{table.extra}]'")
    if table.needs_accelerator and not _has_accelerator():
        found.append("device: this row is too much for a processor; run it on a machine with a GPU or HPU")
    return [line for line in found if line]


def missing_data(content: Mapping[str, Any], *, trained: bool) -> str:
    """What is wrong with the data of a configuration, or "".

    Args:
        content: merged configuration.
        trained: whether training clips are needed, too.
    """
    name = content["data"]["class_path"].rpartition(".")[0].rpartition(".")[2]
    root = content["data"].get("init_args", {}).get("root")
    above = os.environ.get(_ROOT_VARIABLE)
    get = f"avcap prepare {name} --videos DIR --out ROOT, " if name in DATA_SETS else ""
    if root is None and not above:
        return f"data {name}: no folder is named; give --data ROOT, which holds {name}/ ({get}docs/data.md)"
    folder = Path(root) if root is not None else Path(str(above)).expanduser() / name
    if not folder.is_dir():
        return f"data {name}: {folder} does not exist ({get}docs/data.md shows what belongs there)"
    # Only now: this takes torch and lightning.
    try:
        from avcap_zoo.tables.row_data import data_module

        data = data_module(content["data"])
        for stage in ("fit", "test") if trained else ("test",):
            data.setup(stage)
    except AvcapError as error:
        return f"data {name}: {first_line(error)} (docs/data.md)"
    return ""


def clips_present(content: Mapping[str, Any]) -> list[Any]:
    """What of the test split is here, for the key of a run: folder, clips present and official."""
    from avcap_zoo.tables.row_data import data_module

    data = data_module(content["data"])
    data.setup("test")
    return [str(data.root.resolve()), data.num_clips("test"), data.num_official("test")]


def missing_weights(name: str) -> str:
    """What is wrong with an entry of checkpoints/manifest.yaml, or ""."""
    entry = manifest_entry(name)
    if "hub_id" in entry:
        if Path(entry["hub_id"]).is_dir() or _in_hub_cache(entry["hub_id"]):
            return ""
        return f"weights {name}: {entry['hub_id']} is not in the hub's cache; hf download {entry['hub_id']}"
    path = WEIGHTS / entry["file"]
    if not path.exists():
        return f"weights {name}: {path} does not exist; from {entry['source']} (checkpoints/README.md)"
    if path.is_file():
        try:
            check_listed(path)
        except WeightsError as error:
            return f"weights {name}: {first_line(error)}"
    return ""


def manifest_entry(name: str) -> dict[str, Any]:
    """An entry of checkpoints/manifest.yaml.

    Raises:
        ConfigError: there is no manifest, or no such entry.
    """
    path = WEIGHTS / MANIFEST
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: run avcap reproduce in a checkout of avcap-zoo")
    entries: list[dict[str, Any]] = _manifest(path, path.stat().st_mtime_ns)
    for entry in entries:
        if entry["id"] == name:
            return entry
    raise ConfigError(f"{path} lists no weights {name!r}")


@lru_cache(maxsize=4)
def _manifest(path: Path, stamp: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["weights"]
    return found


def _in_hub_cache(hub_id: str) -> bool:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    return any((cache / f"models--{hub_id.replace('/', '--')}" / "snapshots").glob("*/*"))


@lru_cache(maxsize=1)
def _has_accelerator() -> bool:
    if find_spec("habana_frameworks") is not None:
        return True
    import torch

    return torch.cuda.is_available()
