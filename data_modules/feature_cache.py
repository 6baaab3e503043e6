"""What a frozen encoder makes of the clips, kept on disk: one memory-mapped array per split, with an index.

<folder>/cache.json                  modality, key of the encoder, how clips were decoded, number type
<folder>/<split>/ids.json            clip ids in the order of the rows
<folder>/<split>/features.npy        (clips, N, C); bfloat16 as the bits of uint16, which numpy can hold
<folder>/<split>/lengths.npy         (clips,) int32: tokens of each clip; 0 = could not be read, -1 = not done yet

Several processes may fill one folder, each its share of the rows; a killed one is taken up where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from avcap_zoo.batch import Modality, Split
from avcap_zoo.data_modules.files import json_bytes, write_file
from avcap_zoo.errors import DataError, first_line

NumberType = Literal["float32", "float16", "bfloat16"]
STORED_AS: dict[NumberType, str] = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}
_NOT_DONE = -1
_ROWS_PER_COPY = 256


@dataclass(frozen=True)
class CacheInfo:
    """What a cache was made with; two caches are the same only if all of it is.

    Args:
        modality: `audio` or `visual`.
        encoder: key of weights and settings of the encoder, see `batch.FrozenEncoder`.
        decoding: keys of the data module that changed the input, and their values.
        dtype: of the stored numbers.
    """

    modality: Modality
    encoder: str
    decoding: dict[str, Any]
    dtype: NumberType

    def check(self, folder: Path, *, wanted: CacheInfo) -> None:
        """Refuse a cache made with something else.

        Raises:
            DataError: names what was found and what was wanted.
        """
        differences = [
            f"{field.name} {_spell(found)}, wanted {_spell(asked)}"
            for field in fields(self)
            if (found := getattr(self, field.name)) != (asked := getattr(wanted, field.name))
        ]
        if differences:
            raise DataError(
                f"{folder} was made with {'; '.join(differences)}: change the configuration, or make another cache "
                f"with avcap cache {wanted.modality}"
            )


def read_info(folder: Path) -> CacheInfo | None:
    """What a cache says of itself; None when the folder holds none.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / "cache.json"
    if not path.is_file():
        return None
    try:
        return CacheInfo(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({first_line(error)}): delete {folder} and make the cache anew") from error


class FeatureWriter:
    """Fills one split of a cache.

    Args:
        folder: of the cache; made if it does not exist.
        split: which split.
        clip_ids: all clips of the split, in order. Clips that a former run did not know are added; what it stored of
            the others stays.
        info: what the features are made with.

    Raises:
        DataError: the folder holds features made with something else, or cannot be written.
    """

    def __init__(self, folder: Path, split: Split, clip_ids: Sequence[str], info: CacheInfo) -> None:
        self.folder = folder / split
        self.info = info
        self.clip_ids = list(clip_ids)
        self._row = {clip_id: row for row, clip_id in enumerate(self.clip_ids)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write {self.folder}: {error.strerror}") from error
        self._lock = FileLock(folder / ".lock")
        with self._lock:
            found = read_info(folder)
            if found is None:
                write_file(folder / "cache.json", json_bytes(asdict(info), indent=None))
            else:
                found.check(folder, wanted=info)
            self._adopt()
        self._lengths = np.lib.format.open_memmap(self.folder / "lengths.npy", mode="r+")
        self._features: NDArray[Any] | None = None

    def todo(self, shard: tuple[int, int] = (0, 1)) -> list[int]:
        """Rows of a share (i of n) that are not there yet; those that could not be read are tried again."""
        index, count = shard
        return [row for row in range(index, len(self.clip_ids), count) if self._lengths[row] < 1]

    def write(self, clip_ids: Sequence[str], tokens: Tensor, mask: Tensor) -> None:
        """Store the tokens of some clips.

        Args:
            clip_ids: B ids.
            tokens: (B, N, C).
            mask: (B, N) bool; a clip's real tokens come first.

        Raises:
            DataError: N or C differ from those of the clips before, or a number cannot be stored in this type.
        """
        values = tokens.detach().to("cpu", getattr(torch, self.info.dtype))
        if not torch.isfinite(values).all():
            raise DataError(
                f"features of {', '.join(clip_ids[:5])} are not finite in {self.info.dtype}"
                + ("; bfloat16 holds larger numbers" if self.info.dtype == "float16" else "")
            )
        stored = self._array((tokens.shape[1], tokens.shape[2]))
        rows = [self._row[clip_id] for clip_id in clip_ids]
        bits = values.view(torch.int16) if self.info.dtype == "bfloat16" else values
        stored[rows] = bits.numpy().view(STORED_AS[self.info.dtype])
        stored.flush()  # type: ignore[attr-defined]
        self._lengths[rows] = mask.sum(dim=1).cpu().numpy()
        self._lengths.flush()

    def mark_unreadable(self, clip_ids: Sequence[str]) -> None:
        """Note clips whose media could not be read."""
        self._lengths[[self._row[clip_id] for clip_id in clip_ids]] = 0
        self._lengths.flush()

    def _adopt(self) -> None:
        """Make the files fit the clips; rows of clips that are known keep what they hold."""
        ids_path, lengths_path, features_path = (
            self.folder / name for name in ("ids.json", "lengths.npy", "features.npy")
        )
        known: list[str] = json.loads(ids_path.read_text(encoding="utf-8")) if ids_path.is_file() else []
        if known == self.clip_ids and lengths_path.is_file():
            return
        lengths = np.full(len(self.clip_ids), _NOT_DONE, np.int32)
        old_row = {clip_id: row for row, clip_id in enumerate(known)}
        shared = [(row, old_row[clip_id]) for clip_id, row in self._row.items() if clip_id in old_row]
        if shared and features_path.is_file() and lengths_path.is_file():
            old_lengths, old = np.load(lengths_path), np.load(features_path, mmap_mode="r", allow_pickle=False)
            staging = features_path.with_suffix(".partial")
            new = open_memmap(staging, mode="w+", dtype=old.dtype, shape=(len(lengths), *old.shape[1:]))
            for start in range(0, len(shared), _ROWS_PER_COPY):
                ours, theirs = (list(rows) for rows in zip(*shared[start : start + _ROWS_PER_COPY], strict=True))
                new[ours] = old[theirs]
                lengths[ours] = old_lengths[theirs]
            new.flush()
            staging.replace(features_path)
        else:
            features_path.unlink(missing_ok=True)
        ids_path.unlink(missing_ok=True)  # last to come back: a run that is killed here starts the split again
        np.save(lengths_path, lengths)
        write_file(ids_path, json_bytes(self.clip_ids, indent=None))

    def _array(self, shape: tuple[int, int]) -> NDArray[Any]:
        if self._features is None:
            path = self.folder / "features.npy"
            with self._lock:
                if not path.is_file():
                    staging = path.with_suffix(".partial")
                    dtype = np.dtype(STORED_AS[self.info.dtype])
                    open_memmap(staging, mode="w+", dtype=dtype, shape=(len(self.clip_ids), *shape)).flush()
                    staging.replace(path)
            self._features = open_memmap(path, mode="r+")
        if self._features.shape[1:] != shape:
            raise DataError(f"{self.folder} holds {self._features.shape[1:]} tokens and width a clip, now {shape} come")
        return self._features


class FeatureReader:
    """One split of a cache. Small to copy into data workers: each opens the files for itself.

    Args:
        folder: of the cache.
        split: which split.

    Raises:
        DataError: there is no cache, or not of this split, or it is damaged.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        info = read_info(folder)
        if info is None:
            raise DataError(f"{folder} holds no feature cache: make one with avcap cache, or correct the path")
        self.info = info
        self.folder = folder / split
        if not (self.folder / "ids.json").is_file():
            present = ", ".join(sorted(path.parent.name for path in folder.glob("*/ids.json"))) or "nothing"
            raise DataError(
                f"{folder} has no split {split}, only {present}: avcap cache {info.modality} --splits {split}"
            )
        self._features: NDArray[Any] | None = None

    def lengths(self) -> dict[str, int]:
        """Tokens of each clip; 0 for those whose media could not be read. Clips that are not done are left out.

        Raises:
            DataError: the files do not fit each other.
        """
        ids, lengths = self._index()
        return {clip_id: int(length) for clip_id, length in zip(ids, lengths, strict=True) if length != _NOT_DONE}

    def rows(self) -> dict[str, int]:
        """Row of each clip."""
        return {clip_id: row for row, clip_id in enumerate(self._index()[0])}

    def read(self, row: int, length: int) -> Tensor:
        """(length, C) float32 tokens of a row.

        Raises:
            DataError: the array is missing or damaged.
        """
        if self._features is None:
            self._features = self._open("features.npy")
            if self._features.dtype != STORED_AS[self.info.dtype] or self._features.ndim != 3:
                found = f"{self._features.ndim} dimensions of {self._features.dtype}"
                raise DataError(f"{self.folder / 'features.npy'} has {found}, cache.json says {self.info.dtype}")
        values = np.array(self._features[row, :length])
        if self.info.dtype == "bfloat16":
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(values).float()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_features": None}

    def _index(self) -> tuple[list[str], NDArray[np.int32]]:
        ids: list[str] = json.loads((self.folder / "ids.json").read_text(encoding="utf-8"))
        lengths = self._open("lengths.npy")
        if len(ids) != len(lengths):
            raise DataError(f"{self.folder} names {len(ids)} clips and has {len(lengths)} lengths: delete it")
        return ids, lengths

    def _open(self, name: str) -> NDArray[Any]:
        path = self.folder / name
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({first_line(error)}): make the cache anew") from error
        return array


def _spell(value: Any) -> str:
    return ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)
