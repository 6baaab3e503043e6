"""Results of the stages of grounding, kept by the content of what went in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

import avcap_zoo
from avcap_zoo.errors import DataError

MOST_HELD = 1024
"""Results that stay in memory; the oldest go first."""


class StageCache:
    """Looks results up by stage, settings, picture and question; computes only those it does not have.

    Args:
        folder: where results are kept between runs, one small JSON file each; None = in memory alone.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._held: dict[str, Any] = {}

    def get(
        self,
        identity: dict[str, Any],
        items: Sequence[Sequence[Any]],
        compute: Callable[[list[int]], Sequence[Any]],
    ) -> list[Any]:
        """The result for each item.

        Args:
            identity: of the stage: what else decides the results.
            items: what goes in: pictures (tensors) and values that JSON can hold.
            compute: given the positions of items without a result, gives their results, which JSON must be able to
                hold. It is called at most once, with one position of equal items.

        Returns:
            One result per item, as JSON gives it back (tuples are lists).

        Raises:
            DataError: the folder cannot be written to.
        """
        keys = [_key(identity, item) for item in items]
        wanted = dict.fromkeys(key for key in keys if not self._find(key))
        positions = [keys.index(key) for key in wanted]
        if positions:
            for position, result in zip(positions, compute(positions), strict=True):
                self._keep(keys[position], result)
        results = [json.loads(self._held[key]) for key in keys]
        for key in list(self._held)[: max(0, len(self._held) - MOST_HELD)]:
            del self._held[key]
        return results

    def _find(self, key: str) -> bool:
        if key not in self._held and self.folder is not None:
            try:
                text = (self.folder / f"{key}.json").read_text(encoding="utf-8")
                json.loads(text)
            except (OSError, ValueError):  # not there, or cut off: computed again
                return False
            self._held[key] = text
        return key in self._held

    def _keep(self, key: str, result: Any) -> None:
        self._held[key] = json.dumps(result)
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                part = self.folder / f"{key}.{uuid4().hex}.part"
                part.write_text(self._held[key], encoding="utf-8")
                part.replace(self.folder / f"{key}.json")
            except OSError as error:
                raise DataError(f"cache: cannot write to {self.folder}: {error.strerror}") from error


def _key(identity: dict[str, Any], item: Sequence[Any]) -> str:
    digest = hashlib.sha256(json.dumps([avcap_zoo.__version__, identity], sort_keys=True).encode())
    for value in item:
        if isinstance(value, Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype} ".encode())
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(json.dumps(value).encode())
        digest.update(b"\0")
    return digest.hexdigest()
