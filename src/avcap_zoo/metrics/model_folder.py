"""Models that score captions come from folders on this disk; no hub is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avcap_zoo.backbones.pretrained import load_part
from avcap_zoo.errors import WeightsError, first_line


def check_folder(folder: Path, option: str, how_to_get: str) -> Path:
    """The folder, if it is one.

    Args:
        folder: what the user named.
        option: that named it, for the message.
        how_to_get: command that brings it.

    Raises:
        WeightsError: there is no such folder.
    """
    if not folder.is_dir():
        raise WeightsError(f"{option}: {folder} is no folder; get it: {how_to_get}")
    return folder


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object beside the weights; empty where there is no such file.

    Raises:
        WeightsError: the file is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds no JSON object")
    return content


def load_tokenizer(folder: Path, option: str) -> Any:
    """The tokenizer of a folder in transformers format.

    Raises:
        WeightsError: the folder holds none.
    """
    from transformers import AutoTokenizer

    return load_part(AutoTokenizer, str(folder), option, local_files_only=True)
