"""Models from hub ids and folders in transformers format, and configs from their keys, strictly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from avcap_zoo.errors import ConfigError, WeightsError, first_line, hub_error

_LISTED = 5


def dtype_option(dtype: Any) -> dict[str, Any]:
    """How transformers is told the dtype of a model that it builds or loads; 4.56 renamed the argument."""
    import transformers

    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if release >= (4, 56) else "torch_dtype": dtype}


def load_pretrained(model_class: Any, source: str, key: str, **options: Any) -> Any:
    """Load a transformers model. transformers itself would fill missing or mis-shaped weights with random ones.

    Args:
        model_class: transformers class with `from_pretrained`.
        source: hub id or local folder.
        key: config key the source came from, for the message.
        options: of `from_pretrained`.

    Raises:
        WeightsError: the source cannot be found or read, or does not hold all weights of the model.
    """
    from safetensors import SafetensorError

    with hub_error(source, key):
        try:
            model, found = model_class.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **options
            )
        except (SafetensorError, RuntimeError) as error:
            raise WeightsError(f"{key}: the weights in {source!r} cannot be read: {first_line(error)}") from error
    problems = {
        "missing": sorted(found["missing_keys"]),
        "of another shape": sorted(_mismatch(entry) for entry in found["mismatched_keys"]),
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
            for kind, names in problems.items()
            if names
        )
        raise WeightsError(f"{key}: {source!r} does not hold the weights of a {type(model).__name__}: {listed}")
    return model


def load_part(part_class: Any, source: str, key: str, **options: Any) -> Any:
    """Load what stands beside a model by a class of transformers that looks for parts: a tokenizer, a config.

    Code that a source brings along is not run, nor is anybody asked whether it may be, as transformers would ask.

    Args:
        part_class: such as AutoTokenizer, or SamProcessor, which asks AutoImageProcessor.
        source: hub id or local folder.
        key: config key the source came from, for the message.
        options: of `from_pretrained`.

    Raises:
        WeightsError: the source cannot be found, read, or needs its own code.
    """
    with hub_error(source, key):
        return part_class.from_pretrained(source, trust_remote_code=False, **options)


def _mismatch(entry: str | tuple[str, Any, Any]) -> str:
    """A tensor of another shape; transformers 4.55 gives only its name."""
    if isinstance(entry, str):
        return entry
    name, has, wanted = entry
    return f"{name} {tuple(has)}, wanted {tuple(wanted)}"


def build_config(config_class: Any, keys: dict[str, Any], key: str) -> Any:
    """Make a transformers config. transformers itself would keep a misspelt key and use the default of the right one.

    Args:
        config_class: transformers config class, or a feature extractor's.
        keys: its keys and their values; the rest has its defaults.
        key: config key that they stand under, for the message.

    Raises:
        ConfigError: unknown keys, all of them named, or a value that the class refuses.
    """
    default = config_class()
    if unknown := sorted(name for name in keys if not hasattr(default, name)):
        raise ConfigError(f"{key}: {config_class.__name__} has no {', '.join(unknown)}")
    try:
        return config_class(**keys)
    except Exception as error:  # newer versions check types, with errors of their own
        said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise ConfigError(f"{key}: {config_class.__name__}: {said}") from error


def save_parts(folder: Path, *parts: Any) -> None:
    """Write what parts save of themselves into one folder in transformers format, whole or not at all.

    Args:
        folder: replaced if it is there.
        parts: models, tokenizers, front ends: anything with `save_pretrained`.
    """
    staging = folder.with_name(f".{folder.name}.partial")
    if staging.exists():
        shutil.rmtree(staging)
    for part in parts:
        part.save_pretrained(staging)
    if folder.exists():
        shutil.rmtree(folder)
    staging.rename(folder)


def local_copy(source: str) -> Path | None:
    """Where a hub id or folder in transformers format lies on this machine, without asking the hub.

    Returns:
        The folder; of a hub id, that of its newest snapshot in the hub's cache. None where there is none.
    """
    from transformers.utils import cached_file

    if Path(source).is_dir():
        return Path(source)
    for name in ("config.json", "tokenizer_config.json", "vocab.txt", "open_clip_config.json"):
        try:
            found = cached_file(source, name, local_files_only=True)
        except (OSError, ValueError):  # not there, or no name that the hub could have
            continue
        if found is not None:
            return Path(found).parent
    return None
