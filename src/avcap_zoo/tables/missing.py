"""What a row at full size lacks on this machine, each with how to get it: data, weights, a device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from avcap_zoo.cli.prepare import DATA_SETS
from avcap_zoo.errors import AvcapError, first_line
from avcap_zoo.tables.paper_tables import PaperRow, PaperTable
from avcap_zoo.tables.row_runs import merged

_ROOT_VARIABLE = "AVCAP_DATA"


def what_is_missing(table: PaperTable, row: PaperRow) -> list[str]:
    """One line for each thing that keeps a row from being run at full size; empty if it can be.

    Args:
        table: of the row.
        row: has files for full size.
    """
    content = merged(row.full)
    found = [missing_data(content, trained=row.trained), *missing_weights(content, row.weights)]
    if table.needs_accelerator and not _has_gpu():
        found.append("device: this row is too much for a processor; run it on a machine with a GPU")
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


def missing_weights(content: Mapping[str, Any], needed: Sequence[str]) -> list[str]:
    """What is wrong with the weights and lists that a configuration names, one line each.

    Args:
        content: merged configuration.
        needed: ids in checkpoints/manifest.yaml; what is listed there under another id is named but not used.
    """
    # Only now: this takes torch.
    from avcap_zoo.weights.inventory import listed, look_for, named_weights

    found = []
    for named in named_weights(content["model"], "model"):
        entry = listed(named.source)
        if not entry or entry["id"] in needed:
            stock = look_for(named)
            if not stock.present and named.kind == "text":
                found.append(
                    f"list {named.source} does not exist; the heads of the rows' configurations say what it holds"
                )
            elif not stock.present:
                found.append(f"weights {entry.get('id', named.source)}: {stock.text}; {stock.remedy}")
    return found


@lru_cache(maxsize=1)
def _has_gpu() -> bool:
    # Rows ask for accelerator auto, which is no Gaudi.
    import torch

    return torch.cuda.is_available()
