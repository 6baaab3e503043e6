"""Weight files checked against the list that lies beside them, before anything of them is read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from avcap_zoo.errors import WeightsError

MANIFEST = "manifest.yaml"

_BLOCK_BYTES = 1 << 22


def check_listed(path: Path) -> None:
    """Compare a file with its entry in the `manifest.yaml` of its folder, as `checkpoints/` has one.

    Nothing is compared when there is no such list, no entry with this file name, or neither size nor hash in it.

    Args:
        path: a weight file that exists.

    Raises:
        WeightsError: the list cannot be read, or size or hash differ; both are named.
    """
    listing = path.parent / MANIFEST
    for entry in entries(listing):
        if entry.get("file") != path.name:
            continue
        size, wanted_size = path.stat().st_size, entry.get("size_bytes")
        if wanted_size is not None and size != wanted_size:
            raise WeightsError(
                f"{path} has {size:,} bytes, {listing} lists {wanted_size:,}: "
                f"{'a broken download' if size < wanted_size else 'another file'}; fetch it again"
            )
        wanted_hash = entry.get("sha256")
        if wanted_hash is not None:
            found = _sha256(path)
            if found != str(wanted_hash).lower():
                raise WeightsError(f"{path} has sha256 {found}, {listing} lists {wanted_hash}: fetch it again")


def entries(listing: Path) -> list[dict[str, Any]]:
    """What a list of weights names; nothing where there is no such file.

    Raises:
        WeightsError: the list cannot be read.
    """
    if not listing.is_file():
        return []
    import yaml

    try:
        content = yaml.safe_load(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise WeightsError(f"{listing}, the list of weights, is not readable YAML") from error
    found = content.get("weights") if isinstance(content, dict) else None
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
