"""What all data modules share: settings, checks of the folder, loaders, reports of what is missing or broken.

A data module needs `CaptionDataModule`, `ClipRecord` and `SplitIndex`; all three may be imported from here.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch.utils.data import DataLoader
from tqdm import tqdm

from avcap_zoo.batch import Batch, FrozenEncoder, Modality, SkippedClip, Split, run_folder
from avcap_zoo.data_modules.annotations import read_id_list
from avcap_zoo.data_modules.cropping import CropPolicy
from avcap_zoo.data_modules.dataset import ClipDataset, DecodeSettings, Sample, collate_or_error
from avcap_zoo.data_modules.feature_cache import CacheInfo, FeatureReader, FeatureWriter, NumberType
from avcap_zoo.data_modules.media.limits import DEFAULT_LIMITS, MediaLimits
from avcap_zoo.data_modules.records import ClipRecord, PackedRecords, SplitIndex
from avcap_zoo.data_modules.sampling import ClipLoader, Draw, EpochSampler, ResumableLoader, leave_process_group
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
        subset: file that lists the clip ids to use, one a line, relative to the data folder: of the test split, or
            a file per split as in {test: paper_test_ids.txt}. Its hash goes into the results.
        max_duration_s: longer sounds are cropped to this; None = never. Pictures are not affected.
        crop: which part of a longer sound is kept: `start`, `centre`, or `seeded` (drawn by seed and clip id, in
            training anew in each epoch).
        frames_per_s: take frames at this rate, `num_frames` of them at most, instead of spreading `num_frames` evenly;
            what a short clip lacks is masked.
        audio_buckets_s: lengths to which the sound of a batch is padded, so that few shapes occur; longer clips to a
            multiple of the last, and features of sound to the longest there are. Empty = padded to the longest clip.
        drop_last: leave clips that fill no training batch to the next epoch, so that all batches have one size; in
            evaluation the last batch is filled with clips that come again, and count once.
        limits: what a single media file may cost.
        visual_cache: folder made by `avcap cache visual`, taken instead of pictures.
        audio_cache: folder made by `avcap cache audio`, taken instead of sound.
        pin_memory: batches in page-locked memory; None = if there is a CUDA device.
        persistent_workers: keep decoding processes from epoch to epoch.
        worker_timeout_s: a batch that takes the decoding processes longer than this ends the run; 0 = never.

    Raises:
        ConfigError: a value out of range, or a modality that the data set does not have.
    """

    name: str
    """Lower-case name of the data set."""
    given_modalities: ClassVar[tuple[Modality, ...]] = ("audio", "visual")
    """What the data set has."""

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
        subset: str | dict[Split, str] | None = None,
        max_duration_s: float | None = None,
        crop: CropPolicy = "start",
        frames_per_s: float | None = None,
        audio_buckets_s: tuple[float, ...] = (),
        drop_last: bool = False,
        limits: MediaLimits = DEFAULT_LIMITS,
        visual_cache: str | None = None,
        audio_cache: str | None = None,
        pin_memory: bool | None = None,
        persistent_workers: bool = True,
        worker_timeout_s: float = 600.0,
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
        if max_duration_s is not None and not max_duration_s > 0:
            raise ConfigError(f"data.init_args.max_duration_s is {max_duration_s}, wanted more than 0 (or null)")
        if not 0 <= worker_timeout_s < math.inf:
            raise ConfigError(f"data.init_args.worker_timeout_s is {worker_timeout_s}, wanted 0 or more")
        absent = [modality for modality in modalities if modality not in self.given_modalities]
        if absent or not modalities:
            raise ConfigError(
                f"data.init_args.modalities is {list(modalities)}, but {self.name} gives "
                f"{' and '.join(self.given_modalities)}"
            )
        for key, numbers in (
            ("frames_per_s", () if frames_per_s is None else (frames_per_s,)),
            ("audio_buckets_s", audio_buckets_s),
        ):
            if not all(0 < number < math.inf for number in numbers):
                raise ConfigError(f"data.init_args.{key} is {', '.join(map(str, numbers))}, wanted more than 0")
        self.root = _root(root, self.name)
        self.subset: dict[Split, str] = {"test": subset} if isinstance(subset, str) else dict(subset or {})
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
        self.frames_per_s = frames_per_s
        self.drop_last = drop_last
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.worker_timeout_s = worker_timeout_s
        self.decode = DecodeSettings(
            sample_rate_hz,
            num_frames,
            image_size_px,
            tuple(modalities),
            on_error,
            max_duration_s=max_duration_s,
            crop=crop,
            limits=limits,
            frames_per_s=frames_per_s,
            audio_buckets_s=tuple(audio_buckets_s),
        )
        named: dict[Modality, str | None] = {"visual": visual_cache, "audio": audio_cache}
        self.feature_caches = {modality: Path(path).expanduser() for modality, path in named.items() if path}
        self.splits: dict[Split, SplitIndex] = {}
        self.captioned_before: Callable[[], Collection[str]] = set
        self.skipped: dict[Split, dict[str, SkippedClip]] = {}
        self._packed: dict[Split, PackedRecords] = {}
        self._readers: dict[tuple[Split, Modality], FeatureReader] = {}

    @abstractmethod
    def read_split(self, split: Split) -> SplitIndex:
        """Read the annotations of a split and look for its media.

        Raises:
            DataError: files missing or malformed; all problems of a file at once.
        """

    def has_validation(self) -> bool:
        """Whether there is a validation split; a fit goes without one where the data set publishes none."""
        return True

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
                    f"{self.name} {split}: only {present} of {official} official clips ({present / official:.0%}) are "
                    f"in {self.root}{reasons}; lower data.init_args.min_present_share if that is meant"
                )
            counted = self.counted_things(split)
            rank_zero_info(f"{self.name} {split}: {present} of {official} {counted} present{_extent(index)}")

    def records(self, split: Split) -> PackedRecords:
        """The clips of a split that are on disk."""
        if split not in self._packed:
            self._packed[split] = PackedRecords(self._index(split).records)
        return self._packed[split]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled by seed and epoch; resumes in mid-epoch.

        Raises:
            ConfigError: with `drop_last`, fewer clips than one batch.
        """
        records = self.records("train")
        num_clips = len(records)
        whole = self.batch_size if self.drop_last else None
        sampler = EpochSampler(num_clips, *self._rank(), whole)
        if not len(sampler):
            raise ConfigError(
                f"{self.name} train has {num_clips} clips, which fill no batch of data.init_args.batch_size "
                f"{self.batch_size} on {sampler.world_size} processes: set data.init_args.drop_last to false"
            )
        return ResumableLoader(
            sampler=sampler,
            progress=self._progress,
            move_progress=self._move_progress,
            batch_size=self.batch_size,
            **self._loader_options("train", records),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split in file order; no batches if the data set has none."""
        return self.evaluation_loader("val") if self.has_validation() else []  # type: ignore[return-value]

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split in file order."""
        return self.evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """What of the split named by `predict_split` is to be captioned still, in file order."""
        return self.evaluation_loader(self.predict_split, self.captioned_before())

    def evaluation_loader(self, split: Split, done: Collection[str] = ()) -> DataLoader[Batch]:
        """Any split in file order, every clip once (over several processes, and with `drop_last`, some come again).

        Args:
            split: which clips.
            done: ids to leave out; one clip stays, since Lightning runs no epoch, nor its end, without any.
        """
        records = self.records(split)
        if done:
            records = records.without(done) or PackedRecords([records[0]])
        return ClipLoader(
            sampler=EpochSampler(
                len(records),
                *self._rank(),
                filled_batches_of=self.eval_batch_size if self.drop_last else 1,
            ),
            batch_size=self.eval_batch_size,
            **self._loader_options(split, records),
        )

    def num_official(self, split: Split) -> int:
        """Clips that the annotations of a split name, on disk or not."""
        return self._index(split).num_official

    def counted_things(self, split: Split) -> str:
        """What the records of a split are, in the report at the start."""
        return "official clips"

    def num_clips(self, split: Split) -> int:
        """Clips of a split that are on disk, or as far as is known."""
        return len(self.records(split))

    def describe_split(self, split: Split) -> dict[str, Any]:
        """What a split was read from and what of it is here, for the files of results."""
        index = self._index(split)
        described: dict[str, Any] = {
            "name": self.name,
            "split": split,
            "annotations": index.sources,
            "present": len(index.records),
            "official": index.num_official,
            "left_out": index.left_out,
        }
        if index.subset is not None:
            described["subset"] = {"file": str(index.subset.path), "sha256": index.subset.sha256}
        if self.decode.max_duration_s is not None:
            described["crop"] = {"max_duration_s": self.decode.max_duration_s, "policy": self.decode.crop}
        return described

    def fingerprint(self, split: Split = "train") -> str:
        """Short hash of the clips of a split and of how they are decoded."""
        clips = [
            (record.clip_id, record.captions, *_stamp(record.audio), *_stamp(record.visual))
            for record in self._index(split).records
        ]
        decoding = [str(self.root.resolve()), self._decoding("audio"), self._decoding("visual")]
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
        """A loader outside the Trainer, in this process: for preparing backbones.

        Args:
            split: which clips.
            batch_size: clips per batch.
            modalities: what is decoded, even if cached features are in use.
            shuffled: order of seed and epoch (`loader.sampler.set_epoch`) instead of file order.
        """
        return self._decoding_loader(
            split, batch_size, modalities, EpochSampler(len(self.records(split))), shuffled=shuffled
        )

    def cache_features(
        self,
        encoder: FrozenEncoder,
        folder: Path,
        splits: tuple[Split, ...],
        *,
        device: torch.device,
        dtype: NumberType = "float32",
        shard: tuple[int, int] = (0, 1),
        batch_size: int = 32,
    ) -> dict[Split, tuple[int, int]]:
        """Store what an encoder makes of every clip; what is there already is not computed again.

        Args:
            encoder: sees each clip once, without gradient.
            folder: of the cache.
            splits: which clips.
            device: where `encoder` is.
            dtype: of the stored numbers.
            shard: share of the clips, i of n; n processes fill one folder.
            batch_size: clips per call of the encoder.

        Returns:
            By split, clips of this share that are stored, and clips of this share.

        Raises:
            DataError: the folder was made with something else or cannot be written.
        """
        info = CacheInfo(encoder.modality, encoder.key, self._decoding(encoder.modality), dtype)
        counts: dict[Split, tuple[int, int]] = {}
        for split in splits:
            ids = [record.clip_id for record in self._index(split).records]
            writer = FeatureWriter(folder, split, ids, info)
            draws = [(0, row) for row in writer.todo(shard)]
            loader = self._decoding_loader(split, batch_size, (encoder.modality,), draws, num_workers=self.num_workers)
            for batch in tqdm(loader, desc=f"{encoder.modality} features, {split}", mininterval=1.0, disable=not draws):
                if batch.skipped:
                    writer.mark_unreadable([clip.clip_id for clip in batch.skipped])
                    for clip in batch.skipped:
                        rank_zero_warn(
                            f"{self.name} {split}: clip {clip.clip_id} left out ({clip.path}): {clip.reason}"
                        )
                if len(batch):
                    with torch.inference_mode():
                        writer.write(batch.clip_ids, *encoder.encode(batch.to(device)))
            share = len(range(shard[0], len(ids), shard[1]))
            counts[split] = (share - len(writer.todo(shard)), share)
        return counts

    def use_feature_cache(self, folder: Path, modality: Modality) -> None:
        """Take a modality's features from a cache from now on.

        Raises:
            DataError: it was made from clips decoded in another way, or lacks a split in use.
        """
        self.feature_caches[modality] = folder
        for split, index in self.splits.items():
            self._attach_cache(index, split, modality, folder)
        self._packed.clear()

    def _decoding(self, modality: Modality) -> dict[str, Any]:
        """What of our settings changes the input of an encoder, by key of `data.init_args`."""
        if modality == "visual":
            return {key: getattr(self, key) for key in ("num_frames", "image_size_px", "frames_per_s")}
        decode = self.decode
        cropped = (
            {} if decode.max_duration_s is None else {"max_duration_s": decode.max_duration_s, "crop": decode.crop}
        )
        return {"sample_rate_hz": self.sample_rate_hz, **cropped}  # buckets only pad

    def _attach_cache(self, index: SplitIndex, split: Split, modality: Modality, folder: Path) -> None:
        reader = FeatureReader(folder, split)
        encoder, dtype = reader.info.encoder, reader.info.dtype  # the system checks the one; the other is free
        reader.info.check(folder, wanted=CacheInfo(modality, encoder, self._decoding(modality), dtype))
        lengths, rows = reader.lengths(), reader.rows()
        kept = []
        for record in index.records:
            if record.clip_id not in lengths:
                index.missing.append((record.clip_id, f"not in the {modality} cache {folder}"))
                continue
            if lengths[record.clip_id]:  # else its media could not be read: decoding will say why
                record.cached[modality] = (rows[record.clip_id], lengths[record.clip_id])
            kept.append(record)
        index.records = kept
        self._readers[split, modality] = reader

    def _decoding_loader(
        self,
        split: Split,
        batch_size: int,
        modalities: tuple[Modality, ...],
        draws: EpochSampler | list[Draw],
        *,
        shuffled: bool = False,
        num_workers: int = 0,
    ) -> DataLoader[Batch]:
        decode = replace(self.decode, modalities=modalities, prefer_features=False)
        return ClipLoader(
            ClipDataset(self.records(split), decode, seed=self.seed, training=shuffled),  # type: ignore[arg-type]
            sampler=draws,
            batch_size=batch_size,
            num_workers=num_workers,
            timeout=self.worker_timeout_s if num_workers else 0,
            worker_init_fn=leave_process_group,
            collate_fn=self._collate(),
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _collate(self) -> Callable[[Sequence[Sample] | DataError], Batch | DataError]:
        return partial(
            collate_or_error,
            num_frames=self.num_frames,
            frames_per_s=self.frames_per_s,
            audio_lengths=self.decode.audio_lengths,
            audio_tokens=self._audio_tokens() if self.decode.audio_lengths else 0,
        )

    def _audio_tokens(self) -> int:
        """Of the clip with the most in the caches of sound."""
        readers = (reader for (_, modality), reader in self._readers.items() if modality == "audio")
        return max((length for reader in readers for length in reader.lengths().values()), default=0)

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
        total = self.num_clips(split)
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
        return needed.get(stage or "fit", ["train", "val"] if self.has_validation() else ["train"])

    def _index(self, split: Split) -> SplitIndex:
        if split not in self.splits:
            index = self.read_split(split)
            if split in self.subset:
                index.narrow(read_id_list(self.root / self.subset[split]))
            for modality, folder in self.feature_caches.items():
                self._attach_cache(index, split, modality, folder)
            self.splits[split] = index
        return self.splits[split]

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _progress(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _move_progress(self, batches: int) -> None:
        if self.trainer is None:
            return
        current = self.trainer.fit_loop.epoch_loop.batch_progress.current
        further = batches - current.ready
        # All of its counters alike: which of them is one behind tells Lightning where in a step it was saved.
        for name, count in vars(current).items():
            setattr(current, name, count + further)

    def _loader_options(self, split: Split, records: PackedRecords) -> dict[str, Any]:
        caches: dict[Modality, FeatureReader] = {
            modality: reader for (of, modality), reader in self._readers.items() if of == split
        }
        decode = replace(self.decode, caches=caches)
        return {
            "dataset": ClipDataset(records, decode, seed=self.seed, training=split == "train"),
            "collate_fn": self._collate(),
            "num_workers": self.num_workers,
            "timeout": self.worker_timeout_s if self.num_workers else 0,
            "worker_init_fn": leave_process_group,
            # Its own generator: torch would draw a seed from the global one at each epoch, and a resumed run one less.
            "generator": torch.Generator().manual_seed(self.seed),
            "persistent_workers": self.persistent_workers and self.num_workers > 0,
            "pin_memory": torch.cuda.is_available() if self.pin_memory is None else self.pin_memory,
        }


def _stamp(path: str | None) -> tuple[int, int]:
    """Size and time of change of a file, so that exchanged media are noticed."""
    if path is None or not Path(path).exists():
        return (0, 0)
    status = Path(path).stat()
    return (status.st_size, status.st_mtime_ns)


def _extent(index: SplitIndex) -> str:
    """What else there is to say about a split: id list, what was left out, where the missing are listed."""
    parts = [f"narrowed to {index.subset.path.name}"] if index.subset is not None else []
    parts += [f"{count} {what} left out" for what, count in index.left_out.items()]
    parts += ["missing.csv lists the others"] if index.missing else []
    return f"; {'; '.join(parts)}" if parts else ""


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
