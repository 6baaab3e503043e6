"""Which weights a configuration names, and what of them is on this machine: nothing is loaded or downloaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from avcap_zoo.backbones.pretrained import local_copy
from avcap_zoo.errors import AvcapError, WeightsError, first_line, how_to_get, require_extra
from avcap_zoo.weights.load import load_tensors
from avcap_zoo.weights.manifest import MANIFEST, check_listed, entries

LISTING = Path("checkpoints") / MANIFEST
_FILE_KEYS = ("checkpoint", "weights", "start_from", "ckpt_path")
_MODEL_KEYS = ("source", "captioner")
_TEXT_SUFFIXES = (".txt", ".csv", ".json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")
_OPENCLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_READ_WHOLE_BYTES = 1 << 29


@dataclass(frozen=True)
class NamedWeights:
    """A value of a configuration that names something on disk or on the hub.

    Attributes:
        key: its place, such as `model.init_args.language.source`.
        source: what it names.
        kind: a weight `file`, a `model` or `tokenizer` in transformers format, OpenCLIP's name of published weights, or
            a `text` file.
        architecture: OpenCLIP's name of the model that is filled with it; "" for weights of anything else.
    """

    key: str
    source: str
    kind: Literal["file", "model", "tokenizer", "openclip", "text"]
    architecture: str = ""


@dataclass(frozen=True)
class Stock:
    """What was found of it.

    Attributes:
        present: whether it can be used.
        text: what there is, or what is wrong.
        remedy: what brings it; "" for what is there.
        num_bytes: of its weights; 0 where it has none, or they are not there.
    """

    present: bool
    text: str
    remedy: str = ""
    num_bytes: int = 0


def named_weights(settings: Any, key: str) -> Iterator[NamedWeights]:
    """Everything that a section of a configuration names, in its order.

    Args:
        settings: dicts, lists and values, as in YAML.
        key: where the section stands.
    """
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            place = f"{key}.{name}"
            if not isinstance(value, str):
                yield from named_weights(value, place)
            elif value.endswith(_TEXT_SUFFIXES):
                yield NamedWeights(place, value, "text")
            elif name.endswith(_FILE_KEYS):
                tag = "model" in settings and not Path(value).suffix
                yield NamedWeights(place, value, "openclip" if tag else "file", str(settings.get("model", "")))
            elif name == "tokenizer" and value not in {"auto", "ptb", "python"}:
                yield NamedWeights(place, value, "tokenizer")
            elif name in _MODEL_KEYS and value != "audioset":
                yield NamedWeights(place, value, "model")
    elif isinstance(settings, (list, tuple)):
        for index, value in enumerate(settings):
            yield from named_weights(value, f"{key}.{index}")


def look_for(named: NamedWeights) -> Stock:
    """Find one of them on this machine, and check as much as can be checked without loading it.

    Raises:
        WeightsError: `checkpoints/manifest.yaml` cannot be read.
    """
    entry = listed(named.source)
    about = "; ".join(re.split(r", |; | \(", str(entry[key]))[0] for key in ("what", "licence") if key in entry)
    try:
        if named.kind == "openclip":
            folder, hub_id = _openclip_copy(named)
            stock = Stock(True, f"in {folder}", num_bytes=_folder_bytes(folder, _OPENCLIP_FILES)) if folder else None
            remedy = f"hf download {hub_id}"
        elif named.kind in {"model", "tokenizer"}:
            stock = _folder_stock(named)
            hub = named.source.count("/") <= 1 and not named.source.startswith(("checkpoints/", ".", "~"))
            remedy = how_to_get(named.source) or (f"hf download {named.source}" if hub else "")
        else:
            if named.architecture:
                require_extra("open_clip", "clip")
            stock = _file_stock(Path(named.source).expanduser())
            remedy = how_to_get(named.source)
    except AvcapError as error:
        return Stock(False, str(error), _from(entry))
    if stock is not None:
        return stock
    where = "is not in the hub's cache" if remedy.startswith("hf ") else "does not exist"
    if named.source.startswith("checkpoints/"):
        remedy = remedy or _from(entry) or "checkpoints/README.md says where each file comes from"
    text = f"{named.source} {where}" + (f" ({about})" if about else "")
    return Stock(False, text, remedy or f"name one of yours: --{named.key} ...")


def listed(source: str) -> dict[str, Any]:
    """The entry of `checkpoints/manifest.yaml` in the current folder for a file, folder or hub id; {} without one.

    Raises:
        WeightsError: the list cannot be read.
    """
    for entry in entries(LISTING):
        file = entry.get("file")
        if source == entry.get("hub_id") or (file and Path(source) == LISTING.parent / str(file)):
            return entry
    return {}


def check_readable(path: Path) -> None:
    """Refuse a weight file that is damaged or holds more than tensors and plain values.

    Raises:
        WeightsError: so, or it is not the one that a manifest beside it lists.
    """
    check_listed(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                file.keys()
        elif not path.name.endswith(".index.json"):
            torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {first_line(error)}") from error
    except Exception as error:
        if "mmap can only be used" in str(error):  # the format of torch before 1.6
            if path.stat().st_size < _READ_WHOLE_BYTES:
                load_tensors(path)
            return
        raise WeightsError(
            f"{path} cannot be read as weights (damaged, or more than tensors), it has {path.stat().st_size:,} bytes: "
            f"{first_line(error)}"
        ) from error


def size_text(num_bytes: float) -> str:
    """Bytes in words, such as 13.5 GB."""
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"


def _from(entry: Mapping[str, Any]) -> str:
    if "file" not in entry:
        return ""
    return f"fetch it from {entry['source']}, and put it at {LISTING.parent / str(entry['file'])}"


def _file_stock(path: Path) -> Stock | None:
    if not path.is_file():
        return None
    size = path.stat().st_size
    if path.suffix in _TEXT_SUFFIXES and not path.name.endswith(".index.json"):
        return Stock(True, size_text(size))
    check_readable(path)
    known = [key for key in ("size_bytes", "sha256") if key in listed(str(path))]
    return Stock(True, f"{size_text(size)}{', as listed' if known else ', readable'}", num_bytes=size)


def _folder_stock(named: NamedWeights) -> Stock | None:
    folder = local_copy(named.source)
    if folder is None:
        return None
    if named.kind == "tokenizer":
        found = [name for name in _TOKENIZER_FILES if (folder / name).exists()]
        if not found:
            raise WeightsError(f"{folder} holds no tokenizer, wanted one of {', '.join(_TOKENIZER_FILES)}")
        return Stock(True, f"in {folder}")
    for index in sorted(folder.glob("*.index.json")):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{index} is no index of a sharded checkpoint: no readable 'weight_map'") from error
        absent = sorted(shard for shard in shards if not (folder / shard).exists())
        if absent:
            raise WeightsError(f"{folder} lacks {len(absent)} of {len(shards)} shards: {', '.join(absent[:3])}")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise WeightsError(f"{folder} holds no weights, wanted *.safetensors or *.bin")
    for file in files:
        check_readable(file)
    size = _folder_bytes(folder, [file.name for file in files])
    return Stock(True, f"{size_text(size)} in {folder}", num_bytes=size)


def _folder_bytes(folder: Path, names: Sequence[str]) -> int:
    return sum((folder / name).stat().st_size for name in names if (folder / name).exists())


def _openclip_copy(named: NamedWeights) -> tuple[Path | None, str]:
    """Folder in the hub's cache, and hub id, of OpenCLIP's published weights.

    Raises:
        MissingExtraError: OpenCLIP is not installed.
        WeightsError: it knows no such weights.
    """
    pretrained = require_extra("open_clip.pretrained", "clip")
    published = pretrained.get_pretrained_cfg(named.architecture, named.source)
    if not published:
        names = ", ".join(pretrained.list_pretrained_tags_by_model(named.architecture)) or "none"
        raise WeightsError(f"OpenCLIP has no weights {named.source!r} of {named.architecture}; there are: {names}")
    hub_id = str(published.get("hf_hub") or "").rstrip("/")
    return (local_copy(hub_id) if hub_id else None), hub_id
