"""Loading of weight files: safe (no pickled code) and strict (every key accounted for)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from avcap_zoo.errors import WeightsError, first_line
from avcap_zoo.weights.manifest import check_listed

_LISTED = 8


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a flat dict of tensors from a .safetensors file or a torch file, without running code from it.

    A torch file may nest its tensors under "model" or "state_dict". The index of a sharded checkpoint
    (`*.index.json`, as transformers' trainer writes it) stands for all its shards.

    Args:
        path: the file.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        WeightsError: the file is missing, truncated, holds more than tensors, is no weight file, or is not the one that
            a `manifest.yaml` beside it lists.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weight file {path} does not exist; checkpoints/README.md says where each file comes from")
    check_listed(path)
    if path.name.endswith(".index.json"):
        return _load_shards(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        with path.open("rb") as file:
            head = file.read(16)
        if not head.startswith((b"PK", b"\x80")):  # neither zip nor pickle: a web page, a git-lfs pointer
            raise WeightsError(f"{path} is no weight file, it begins with {head!r}") from error
        raise WeightsError(
            f"{path} holds Python objects beside tensors and is not loaded; ask its author for safetensors"
        ) from error
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as weights (truncated?), it has {path.stat().st_size:,} bytes: {first_line(error)}"
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} is not a flat dict of tensors")
    return content


def _load_shards(index: Path) -> dict[str, Tensor]:
    """All tensors that an index names, each from its own file."""
    try:
        files: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise WeightsError(f"{index} is no index of a sharded checkpoint: it has no readable 'weight_map'") from error
    for shard in files.values():
        if not isinstance(shard, str) or Path(shard).name != shard or shard.endswith(".index.json"):
            raise WeightsError(f"{index} names {shard!r} as a shard, wanted the name of a weight file beside it")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(files.values())):
        tensors |= load_tensors(index.parent / shard)
    if tensors.keys() != files.keys():
        problems = compare_keys(dict.fromkeys(files, ()), {name: torch.empty(()) for name in tensors})
        raise WeightsError(f"{index} does not fit its shards: {problems}")
    return tensors


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors into a module; every name and shape must fit.

    Args:
        module: receives the values.
        tensors: name to value, in the module's own names.
        origin: what the tensors are, for the message.

    Raises:
        WeightsError: missing, unknown or mis-shaped names; all kinds are listed at once.
    """
    problems = compare_keys({name: tuple(t.shape) for name, t in module.state_dict().items()}, tensors)
    if problems:
        raise WeightsError(f"{origin} does not fit the model: {problems}")
    module.load_state_dict(dict(tensors))


def compare_keys(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> str:
    """One line on how the names and shapes of `found` differ from `wanted`; empty when they do not."""
    parts = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unknown": sorted(found.keys() - wanted.keys()),
        "other shape": [
            f"{name} {tuple(found[name].shape)}, wanted {wanted[name]}"
            for name in sorted(wanted.keys() & found.keys())
            if tuple(found[name].shape) != wanted[name]
        ],
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
        for kind, names in parts.items()
        if names
    )
