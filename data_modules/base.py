"""What all data modules share: records of clips, decoding, skipping of broken media, batches, reports."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from avcap_zoo.batch import Batch, Box, Modality, SkippedClip, SoundEvent, Split, run_folder
from avcap_zoo.data_modules.media.audio import read_audio
from avcap_zoo.data_modules.media.video import frame_times_s, read_frames
from avcap_zoo.data_modules.sampling import ClipLoader, Draw, EpochSampler, ResumableLoader, epoch_order
from avcap_zoo.errors import ConfigError, DataError, MediaError, first_line

ROOT_VARIABLE = "AVCAP_DATA"
_NAMED_IDS = 5


@dataclass
class ClipRecord:
    """One clip of a split: its references and where its media lie.

    Attributes:
        clip_id: unique in the split.
        captions: references, none empty.
        audio: sound file.
        visual: video file, or folder of pictures.
        features: .npy file with one vector per frame.
        audio_features: .npy file with one vector per audio token.
        sounds: labelled stretches of sound, as keyword arguments of `batch.SoundEvent`.
        objects: labelled objects with the seconds in which they are seen: label, onset_s, offset_s, box (left, top,
            right, bottom).
        duration_s: length of the clip; needed with `objects`.
    """

    clip_id: str
    captions: list[str]
    audio: str | None = None
    visual: str | None = None
    features: str | None = None
    audio_features: str | None = None
    sounds: list[dict[str, Any]] | None = None
    objects: list[dict[str, Any]] | None = None
    duration_s: float = 0.0


@dataclass
class SplitIndex:
    """What a split holds on this disk.

    Attributes:
        records: clips whose media are there.
        missing: id and reason of those that are not.
    """

    records: list[ClipRecord] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)

    @property
    def num_official(self) -> int:
        """Clips that the annotations name."""
        return len(self.records) + len(self.missing)


class PackedRecords:
    """Records as one block of bytes, so that data workers share it instead of copying Python objects.

    Args:
        records: any number of clips.
    """

    def __init__(self, records: Iterable[ClipRecord]) -> None:
        lines = [json.dumps(asdict(record)).encode() for record in records]
        self._bytes = np.frombuffer(b"".join(lines), dtype=np.uint8)
        self._ends = np.cumsum([len(line) for line in lines], dtype=np.int64)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._ends)

    def __getitem__(self, index: int) -> ClipRecord:
        """The record at an index."""
        start = self._ends[index - 1] if index else 0
        return ClipRecord(**json.loads(self._bytes[start : self._ends[index]].tobytes()))


@dataclass
class Sample:
    """One decoded clip, and the broken ones met on the way to it. `record` is None if there is no clip to show."""

    record: ClipRecord | None
    caption: str = ""
    waveform: Tensor | None = None
    frames: Tensor | None = None
    features: Tensor | None = None
    audio_features: Tensor | None = None
    skipped: list[SkippedClip] = field(default_factory=list)


@dataclass
class DecodeSettings:
    """How media become tensors; see the arguments of `CaptionDataModule`."""

    sample_rate_hz: int
    num_frames: int
    image_size_px: int
    modalities: tuple[Modality, ...]
    on_error: Literal["skip", "raise"]
    prefer_features: bool = True


class ClipDataset(Dataset[Sample]):
    """Decodes clips by (epoch, position).

    In training an unreadable clip is replaced by the next of the epoch's order; in evaluation it is left out.

    Args:
        records: clips of the split.
        settings: how to decode.
        seed: of the order and of the choice among captions.
        training: shuffled order and one drawn caption, or file order and the first.
    """

    def __init__(self, records: PackedRecords, settings: DecodeSettings, *, seed: int, training: bool) -> None:
        self.records = records
        self.settings = settings
        self.seed = seed
        self.training = training
        self._order: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Sample:
        """Decode a clip.

        Raises:
            MediaError: with `on_error: raise`.
            DataError: in training, twenty clips in a row (or all) are unreadable.
        """
        epoch, position = draw
        skipped: list[SkippedClip] = []
        attempts = min(20, len(self)) if self.training else 1
        for attempt in range(attempts):
            index = self._index(epoch, (position + attempt) % len(self))
            record = self.records[index]
            try:
                sample = self._decode(record)
            except MediaError as error:
                if self.settings.on_error == "raise":
                    raise
                skipped.append(SkippedClip(error.clip_id, error.path, error.reason))
                continue
            sample.caption = self._caption(record, epoch, index)
            sample.skipped = skipped
            return sample
        if self.training:
            first = skipped[0]
            raise DataError(
                f"{attempts} clips in a row cannot be read, the first is {first.clip_id} ({first.path}): "
                f"{first.reason}; check the media folder"
            )
        return Sample(record=None, skipped=skipped)

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample] | DataError:
        """Decode the clips of a batch for `ClipLoader`, which raises what is returned as an error."""
        try:
            return [self[draw] for draw in draws]
        except DataError as error:
            return error

    def _index(self, epoch: int, position: int) -> int:
        if not self.training:
            return position
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self), self.seed, epoch))
        return int(self._order[1][position])

    def _caption(self, record: ClipRecord, epoch: int, index: int) -> str:
        if not record.captions:
            return ""
        if not self.training:
            return record.captions[0]
        choice = np.random.default_rng((self.seed, epoch, index)).integers(len(record.captions))
        return record.captions[int(choice)]

    def _decode(self, record: ClipRecord) -> Sample:
        settings = self.settings
        sample = Sample(record)
        if "audio" in settings.modalities and record.audio_features is not None and settings.prefer_features:
            sample.audio_features = torch.from_numpy(_read_features(Path(record.audio_features), record.clip_id))
        elif "audio" in settings.modalities and record.audio is not None:
            sample.waveform = torch.from_numpy(read_audio(Path(record.audio), settings.sample_rate_hz, record.clip_id))
        if "visual" in settings.modalities and record.features is not None and settings.prefer_features:
            sample.features = torch.from_numpy(_read_features(Path(record.features), record.clip_id))
        elif "visual" in settings.modalities and record.visual is not None:
            frames = read_frames(Path(record.visual), settings.num_frames, settings.image_size_px, record.clip_id)
            sample.frames = torch.from_numpy(frames)
        return sample


def _read_features(path: Path, clip_id: str) -> NDArray[np.float32]:
    """(K, C) float32 of a .npy file."""
    if not path.is_file():
        raise MediaError(clip_id, path, "no such file")
    try:
        features = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy's header parser lets through whatever a damaged file makes it stumble over
        raise MediaError(clip_id, path, f"not readable as .npy: {first_line(error)}") from error
    if not isinstance(features, np.ndarray):
        raise MediaError(clip_id, path, "is an .npz archive, wanted one array")
    if features.ndim != 2 or not features.size or not np.issubdtype(features.dtype, np.floating):
        raise MediaError(clip_id, path, f"is {features.shape} {features.dtype}, wanted (frames, width) of floats")
    single: NDArray[np.float32] = features.astype(np.float32)
    if not np.isfinite(single).all():
        raise MediaError(clip_id, path, "holds numbers that are not finite")
    return single


def _collate_or_error(samples: Sequence[Sample] | DataError, num_frames: int) -> Batch | DataError:
    """`collate` for `ClipLoader`: an error is handed over, not raised."""
    if isinstance(samples, DataError):
        return samples
    try:
        return collate(samples, num_frames)
    except DataError as error:
        return error


def collate(samples: Sequence[Sample], num_frames: int) -> Batch:
    """Samples to a batch: waveforms zero-padded to the longest, pictures stacked, missing clips left out.

    Args:
        samples: decoded clips; those without a record only bring their reports.
        num_frames: K, for the labelled boxes.

    Raises:
        DataError: some clips have sound or pictures and others do not, or visual features of different widths.
    """
    real = [sample for sample in samples if sample.record is not None]
    records = [sample.record for sample in real if sample.record is not None]
    batch = Batch(
        clip_ids=[record.clip_id for record in records],
        captions=[record.captions for record in records],
        caption=[sample.caption for sample in real],
        skipped=[clip for sample in samples for clip in sample.skipped],
    )
    waveforms = _all_or_none([sample.waveform for sample in real], "sound", batch)
    if waveforms:
        batch.num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        batch.waveform = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    frames = _all_or_none([sample.frames for sample in real], "pictures", batch)
    if frames:
        batch.frames = torch.stack(frames)
        batch.frame_mask = torch.ones(batch.frames.shape[:2], dtype=torch.bool)
    features = _all_or_none([sample.features for sample in real], "visual features", batch)
    if features:
        batch.visual_features, batch.frame_mask = _pad_features(features, "visual", batch)
    audio_features = _all_or_none([sample.audio_features for sample in real], "audio features", batch)
    if audio_features:
        batch.audio_features, batch.audio_mask = _pad_features(audio_features, "audio", batch)
    if records and all(record.sounds is not None for record in records):
        batch.sound_events = [[SoundEvent(**sound) for sound in record.sounds or []] for record in records]
    if records and all(record.objects is not None for record in records):
        batch.boxes = [_boxes(record, num_frames) for record in records]
    return batch


def _all_or_none(tensors: list[Tensor | None], what: str, batch: Batch) -> list[Tensor]:
    present = [tensor for tensor in tensors if tensor is not None]
    if present and len(present) < len(tensors):
        lacking = [clip_id for clip_id, tensor in zip(batch.clip_ids, tensors, strict=True) if tensor is None]
        raise DataError(f"clips {', '.join(lacking[:_NAMED_IDS])} have no {what}, others of their batch have")
    return present


def _stamp(path: str | None) -> tuple[int, int]:
    """Size and time of change of a file, so that exchanged media are noticed."""
    if path is None or not Path(path).exists():
        return (0, 0)
    status = Path(path).stat()
    return (status.st_size, status.st_mtime_ns)


def _pad_features(features: list[Tensor], kind: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """(B, N, C) features and (B, N) mask of sequences of different lengths."""
    widths = {tensor.shape[1]: clip_id for tensor, clip_id in zip(features, batch.clip_ids, strict=True)}
    if len(widths) > 1:
        named = ", ".join(f"{clip_id} has {width}" for width, clip_id in sorted(widths.items()))
        raise DataError(f"{kind} features of one batch differ in width: {named}; they come from different encoders")
    counts = torch.tensor([len(tensor) for tensor in features])
    mask = torch.arange(int(counts.max()))[None, :] < counts[:, None]
    return torch.nn.utils.rnn.pad_sequence(features, batch_first=True), mask


def _boxes(record: ClipRecord, num_frames: int) -> list[Box]:
    """Boxes of the objects seen in each of the K frames."""
    times_s = frame_times_s(record.duration_s, num_frames)
    return [
        Box(seen["label"], frame, *seen["box"])
        for seen in record.objects or []
        for frame, time_s in enumerate(times_s)
        if seen["onset_s"] <= time_s < seen["offset_s"]
    ]


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
            collate_fn=partial(_collate_or_error, num_frames=self.num_frames),
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
            "collate_fn": partial(_collate_or_error, num_frames=self.num_frames),
            "num_workers": self.num_workers,
            # Its own generator: torch would draw a seed from the global one at each epoch, and a resumed run one less.
            "generator": torch.Generator().manual_seed(self.seed),
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


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
