"""What all data modules share: settings, checks of the folder, loaders, reports of what is missing or broken.

A data module needs `CaptionDataModule`, `ClipRecord` and `SplitIndex`; all three may be imported from here.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch.utils.data import DataLoader

from avcap_zoo.batch import Batch, Modality, SkippedClip, Split, run_folder
from avcap_zoo.data_modules.dataset import ClipDataset, DecodeSettings, collate_or_error
from avcap_zoo.data_modules.records import ClipRecord, PackedRecords, SplitIndex
from avcap_zoo.data_modules.sampling import ClipLoader, EpochSampler, ResumableLoader
from avcap_zoo.errors import ConfigError, DataError

__all__ = ["CaptionDataModule", "ClipRecord", "SplitIndex"]

ROOT_VARIABLE = "AVCAP_DATA"
_NAMED_IDS = 5


class CaptionDataModule(LightningDataModule):
    """Base of the data modules: official files in, batches out.

    A subclass gives `name` and `read_split`.

    Args:
        root: folder of the data set; None = a folder named after the data set in `$AVCAP_DATA`.
        sample_rate_hz: rate to which sound is resampled.
        num_frames: frames K per clip, spread evenly.
        image_size_px: side of the square frames.
        batch_size: clips per training batch and process.
        eval_batch_size: clips per evaluation batch; None = `batch_size`.
        num_workers: decoding processes per loader; 0 = decode in the training process.
        modalities: what is decoded: `audio`, `visual` or both.
        seed: of the training order and of the choice among captions.
        on_error: `skip` (count, report, go on) or `raise` when a clip cannot be read.
        max_skipped_share: stop when more than this share of a split's clips turned out unreadable.
        min_present_share: stop at the start when fewer than this share of the official clips are on disk.
        predict_split: split captioned by `predict`.

    Raises:
        ConfigError: a value out of range.
    """

    name: str
    """Lower-case name of the data set."""

    def __init__(
        self,
        root: str | None = None,
        *,
        sample_rate_hz: int = 16_000,
        num_frames: int = 20,
        image_size_px: int = 224,
        batch_size: int = 4,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        modalities: tuple[Modality, ...] = ("audio", "visual"),
        seed: int = 0,
        on_error: Literal["skip", "raise"] = "skip",
        max_skipped_share: float = 0.05,
        min_present_share: float = 0.5,
        predict_split: Split = "test",
    ) -> None:
        super().__init__()
        for key, value in (
            ("sample_rate_hz", sample_rate_hz),
            ("num_frames", num_frames),
            ("image_size_px", image_size_px),
            ("batch_size", batch_size),
            ("eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size),
        ):
            if value < 1:
                raise ConfigError(f"data.init_args.{key} is {value}, wanted at least 1")
        for key, value in (("num_workers", num_workers), ("seed", seed)):
            if value < 0:
                raise ConfigError(f"data.init_args.{key} is {value}, wanted at least 0")
        self.root = _root(root, self.name)
        self.sample_rate_hz = sample_rate_hz
        self.modalities = modalities
        self.num_frames = num_frames
        self.image_size_px = image_size_px
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.max_skipped_share = max_skipped_share
        self.min_present_share = min_present_share
        self.predict_split: Split = predict_split
        self.decode = DecodeSettings(sample_rate_hz, num_frames, image_size_px, tuple(modalities), on_error)
        self.splits: dict[Split, SplitIndex] = {}
        self.skipped: dict[Split, dict[str, SkippedClip]] = {}
        self._packed: dict[Split, PackedRecords] = {}

    @abstractmethod
    def read_split(self, split: Split) -> SplitIndex:
        """Read the annotations of a split and look for its media.

        Raises:
            DataError: files missing or malformed; all problems of a file at once.
        """

    def prepare_data(self) -> None:
        """Check the folder and write `missing.csv` (split, id, reason) into it. Runs on one process."""
        if not self.root.is_dir():
            raise DataError(
                f"data folder {self.root} does not exist: set data.init_args.root, "
                f"or ${ROOT_VARIABLE} to the folder above it"
            )
        rows = [
            (split, clip_id, reason)
            for split in self._needed_splits()
            for clip_id, reason in self._index(split).missing
        ]
        if rows:
            _write_csv(self.root / "missing.csv", [("split", "id", "reason"), *rows])
        else:
            with suppress(OSError):  # an older list, of clips that have come since
                (self.root / "missing.csv").unlink()

    def setup(self, stage: str) -> None:
        """Index the splits of a stage and say how much of them is there.

        Raises:
            DataError: a split is empty, or less than `min_present_share` of it is on disk.
        """
        for split in self._needed_splits(stage):
            index = self._index(split)
            present, official = len(index.records), index.num_official
            reasons = f"; the first missing: {index.missing[0][0]}, {index.missing[0][1]}" if index.missing else ""
            if present == 0:
                raise DataError(f"{self.name} {split}: none of {official} clips is in {self.root}{reasons}")
            if present < self.min_present_share * official:
                raise DataError(
                    f"{self.name} {split}: only {present} of {official} official clips are in {self.root}{reasons}; "
                    f"lower data.init_args.min_present_share if that is meant"
                )
            rank_zero_info(f"{self.name} {split}: {present} of {official} official clips present")

    def records(self, split: Split) -> PackedRecords:
        """The clips of a split that are on disk."""
        if split not in self._packed:
            self._packed[split] = PackedRecords(self._index(split).records)
        return self._packed[split]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled by seed and epoch; resumes in mid-epoch."""
        return ResumableLoader(
            sampler=EpochSampler(len(self.records("train")), *self._rank()),
            progress=self._progress,
            batch_size=self.batch_size,
            **self._loader_options("train"),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split in file order."""
        return self.evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split in file order."""
        return self.evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The split named by `predict_split`, in file order."""
        return self.evaluation_loader(self.predict_split)

    def evaluation_loader(self, split: Split) -> DataLoader[Batch]:
        """Any split in file order, every clip once (over several processes the last ones may repeat)."""
        return ClipLoader(
            sampler=EpochSampler(len(self.records(split)), *self._rank()),
            batch_size=self.eval_batch_size,
            **self._loader_options(split),
        )

    def num_official(self, split: Split) -> int:
        """Clips that the annotations of a split name, on disk or not."""
        return self._index(split).num_official

    def fingerprint(self) -> str:
        """Short hash of the training clips and of how they are decoded."""
        clips = [
            (record.clip_id, record.captions, *_stamp(record.audio), *_stamp(record.visual))
            for record in self._index("train").records
        ]
        decoding = [str(self.root.resolve()), self.sample_rate_hz, self.num_frames, self.image_size_px]
        return hashlib.sha256(json.dumps([clips, decoding]).encode()).hexdigest()[:16]

    def label_names(self, kind: Literal["sounds", "objects"]) -> list[str]:
        """Sorted labels of the training clips; empty when they have none."""
        return sorted(
            {item["label"] for record in self._index("train").records for item in getattr(record, kind) or []}
        )

    def training_captions(self) -> list[str]:
        """Every caption of the training clips."""
        return [caption for record in self._index("train").records for caption in record.captions]

    def plain_loader(
        self, split: Split, batch_size: int, modalities: tuple[Modality, ...], *, shuffled: bool = False
    ) -> DataLoader[Batch]:
        """A loader outside the Trainer, in this process: for preparing backbones and caching their features.

        Args:
            split: which clips.
            batch_size: clips per batch.
            modalities: what is decoded, even if cached features are in use.
            shuffled: order of seed and epoch (`loader.sampler.set_epoch`) instead of file order.
        """
        records = self.records(split)
        decode = replace(self.decode, modalities=modalities, prefer_features=False)
        return ClipLoader(
            ClipDataset(records, decode, seed=self.seed, training=shuffled),  # type: ignore[arg-type]
            sampler=EpochSampler(len(records)),
            batch_size=batch_size,
            collate_fn=partial(collate_or_error, num_frames=self.num_frames),
        )

    def use_feature_folder(self, folder: Path, modality: Modality) -> None:
        """Read a modality's features from `folder/<split>/<clip id>.npy` from now on, where such a file exists."""
        field_name = "audio_features" if modality == "audio" else "features"
        for split, index in self.splits.items():
            known = {path.stem for path in (folder / split).glob("*.npy")}
            for record in index.records:
                if record.clip_id in known:
                    setattr(record, field_name, str(folder / split / f"{record.clip_id}.npy"))
        self._packed.clear()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the clips that could not be read.

        Raises:
            DataError: more than `max_skipped_share` of the split.
        """
        if batch.skipped:
            self._count_skipped(batch.skipped)
        return batch

    def teardown(self, stage: str) -> None:
        """Say what was skipped, and write it to `skipped.csv` in the run's folder."""
        if self.trainer is None:
            return
        found = [self.skipped]
        if self.trainer.world_size > 1:
            found = [{} for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(found, self.skipped)
        self._write_skipped(found)

    def on_exception(self, exception: BaseException) -> None:
        """Write `skipped.csv` also when the run breaks off: of this process only, the others may be gone."""
        if self.trainer is not None:
            self._write_skipped([self.skipped])

    @rank_zero_only
    def _write_skipped(self, of_processes: list[dict[Split, dict[str, SkippedClip]]]) -> None:
        unique = {
            (split, clip_id): (split, clip_id, clip.path, clip.reason)
            for skipped in of_processes
            for split, clips in skipped.items()
            for clip_id, clip in clips.items()
        }
        if unique:
            path = run_folder(self.trainer) / "skipped.csv"
            _write_csv(path, [("split", "id", "path", "reason"), *unique.values()])
            rank_zero_warn(f"{self.name}: {len(unique)} clips could not be read, listed in {path}")

    def _count_skipped(self, clips: Iterable[SkippedClip]) -> None:
        split = self._current_split()
        known = self.skipped.setdefault(split, {})
        for clip in clips:
            if clip.clip_id not in known:
                known[clip.clip_id] = clip
                rank_zero_warn(f"{self.name} {split}: clip {clip.clip_id} left out ({clip.path}): {clip.reason}")
        total = len(self.records(split))
        if len(known) > self.max_skipped_share * total:
            named = ", ".join(list(known)[:_NAMED_IDS]) + (", ..." if len(known) > _NAMED_IDS else "")
            raise DataError(
                f"{self.name} {split}: {len(known)} of {total} clips cannot be read ({named}), "
                f"more than data.init_args.max_skipped_share {self.max_skipped_share:g} allows"
            )

    def _current_split(self) -> Split:
        trainer = self.trainer
        if trainer is None or trainer.training:
            return "train"
        if trainer.predicting:
            return self.predict_split
        return "test" if trainer.testing else "val"

    def _needed_splits(self, stage: str | None = None) -> list[Split]:
        if stage is None and self.trainer is not None and self.trainer.state.fn is not None:
            stage = self.trainer.state.fn.value
        needed: dict[str, list[Split]] = {"validate": ["val"], "test": ["test"], "predict": [self.predict_split]}
        return needed.get(stage or "fit", ["train", "val"])

    def _index(self, split: Split) -> SplitIndex:
        if split not in self.splits:
            self.splits[split] = self.read_split(split)
        return self.splits[split]

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _progress(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _loader_options(self, split: Split) -> dict[str, Any]:
        return {
            "dataset": ClipDataset(self.records(split), self.decode, seed=self.seed, training=split == "train"),
            "collate_fn": partial(collate_or_error, num_frames=self.num_frames),
            "num_workers": self.num_workers,
            # Its own generator: torch would draw a seed from the global one at each epoch, and a resumed run one less.
            "generator": torch.Generator().manual_seed(self.seed),
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


def _stamp(path: str | None) -> tuple[int, int]:
    """Size and time of change of a file, so that exchanged media are noticed."""
    if path is None or not Path(path).exists():
        return (0, 0)
    status = Path(path).stat()
    return (status.st_size, status.st_mtime_ns)


def _write_csv(path: Path, rows: list[tuple[Any, ...]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    except OSError as error:  # a report: no reason to lose the run
        rank_zero_warn(f"cannot write {path}: {error.strerror}")


def _root(root: str | None, name: str) -> Path:
    if root is not None:
        return Path(root).expanduser()
    above = os.environ.get(ROOT_VARIABLE)
    if not above:
        raise ConfigError(
            f"data.init_args.root is not set, and neither is ${ROOT_VARIABLE} (the folder that holds {name}/)"
        )
    return Path(above).expanduser() / name
