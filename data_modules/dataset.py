"""From records to batches: decoding of clips, replacement of broken ones, collation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avcap_zoo.batch import Batch, Box, Modality, SkippedClip, SoundEvent
from avcap_zoo.data_modules.cropping import CropPolicy, crop
from avcap_zoo.data_modules.feature_cache import FeatureReader
from avcap_zoo.data_modules.media.audio import read_audio
from avcap_zoo.data_modules.media.limits import DEFAULT_LIMITS, MediaLimits
from avcap_zoo.data_modules.media.video import frame_times_s, read_frames
from avcap_zoo.data_modules.records import ClipRecord, PackedRecords
from avcap_zoo.data_modules.sampling import Draw, epoch_order
from avcap_zoo.errors import DataError, MediaError, first_line
from avcap_zoo.ops.masking import bucket_of

_NAMED_IDS = 5


@dataclass
class Sample:
    """One decoded clip, and the broken ones met on the way to it. `record` is None if there is no clip to show."""

    record: ClipRecord | None
    caption: str = ""
    waveform: Tensor | None = None
    frames: Tensor | None = None
    features: Tensor | None = None
    audio_features: Tensor | None = None
    feature_keys: dict[Modality, str] = field(default_factory=dict)
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
    max_duration_s: float | None = None
    crop: CropPolicy = "start"
    limits: MediaLimits = DEFAULT_LIMITS
    frames_per_s: float | None = None
    audio_buckets_s: tuple[float, ...] = ()
    caches: dict[Modality, FeatureReader] = field(default_factory=dict)

    @property
    def audio_lengths(self) -> tuple[int, ...]:
        """The buckets in samples, shortest first."""
        return tuple(sorted(round(seconds * self.sample_rate_hz) for seconds in self.audio_buckets_s))


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
                sample = self._decode(record, epoch)
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

    def _decode(self, record: ClipRecord, epoch: int) -> Sample:
        settings = self.settings
        sample = Sample(record)
        for modality in settings.modalities:
            kept = self._kept_features(record, modality, sample)
            if kept is not None:
                setattr(sample, "audio_features" if modality == "audio" else "features", kept)
            elif modality == "audio" and record.audio is not None:
                waveform = read_audio(
                    Path(record.audio), settings.sample_rate_hz, record.clip_id, record.window_s, settings.limits
                )
                if settings.max_duration_s is not None:
                    longest = max(1, round(settings.max_duration_s * settings.sample_rate_hz))
                    turn = epoch if self.training else 0  # in evaluation the same part in every epoch
                    waveform = crop(waveform, longest, settings.crop, f"{self.seed} {turn} {record.clip_id}")
                sample.waveform = torch.from_numpy(waveform)
            elif modality == "visual" and record.visual is not None:
                frames = read_frames(
                    Path(record.visual),
                    settings.num_frames,
                    settings.image_size_px,
                    record.clip_id,
                    record.window_s,
                    settings.limits,
                    settings.frames_per_s,
                    record.frame_at_s,
                )
                sample.frames = torch.from_numpy(frames)
        return sample

    def _kept_features(self, record: ClipRecord, modality: Modality, sample: Sample) -> Tensor | None:
        """Features from the cache or from a file of the clip's own, if these are to be used."""
        if not self.settings.prefer_features:
            return None
        if modality in record.cached:
            reader = self.settings.caches[modality]
            sample.feature_keys[modality] = reader.info.encoder
            return reader.read(*record.cached[modality])
        path = record.audio_features if modality == "audio" else record.features
        return None if path is None else torch.from_numpy(_read_features(Path(path), record.clip_id))


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


def collate_or_error(
    samples: Sequence[Sample] | DataError,
    num_frames: int,
    frames_per_s: float | None = None,
    audio_lengths: tuple[int, ...] = (),
    audio_tokens: int = 0,
) -> Batch | DataError:
    """`collate` for `ClipLoader`: an error is handed over, not raised."""
    if isinstance(samples, DataError):
        return samples
    try:
        return collate(samples, num_frames, frames_per_s, audio_lengths, audio_tokens)
    except DataError as error:
        return error


def collate(
    samples: Sequence[Sample],
    num_frames: int,
    frames_per_s: float | None = None,
    audio_lengths: tuple[int, ...] = (),
    audio_tokens: int = 0,
) -> Batch:
    """Samples to a batch: waveforms zero-padded to the longest, pictures stacked, missing clips left out.

    Args:
        samples: decoded clips; those without a record only bring their reports.
        num_frames: K, to which clips with fewer frames are padded; also for the labelled boxes.
        frames_per_s: for the labelled boxes, see `frame_times_s`.
        audio_lengths: samples S that a padded batch may have, ascending, or a multiple of the last; none = those of its
            longest clip.
        audio_tokens: least number N to which audio features are padded.

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
        feature_keys={modality: key for sample in real for modality, key in sample.feature_keys.items()},
    )
    waveforms = _all_or_none([sample.waveform for sample in real], "sound", batch)
    if waveforms:
        batch.num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        longest = max(map(len, waveforms))
        batch.waveform = torch.zeros(len(waveforms), bucket_of(longest, audio_lengths) if audio_lengths else longest)
        for row, waveform in zip(batch.waveform, waveforms, strict=True):
            row[: len(waveform)] = waveform
    frames = _all_or_none([sample.frames for sample in real], "pictures", batch)
    if frames:
        batch.frames = torch.stack([_pad_frames(clip, num_frames) for clip in frames])
        counts = torch.tensor([len(clip) for clip in frames])
        batch.frame_mask = torch.arange(batch.frames.shape[1])[None, :] < counts[:, None]
    features = _all_or_none([sample.features for sample in real], "visual features", batch)
    if features:
        batch.visual_features, batch.frame_mask = _pad_features(features, "visual", batch)
    audio_features = _all_or_none([sample.audio_features for sample in real], "audio features", batch)
    if audio_features:
        batch.audio_features, batch.audio_mask = _pad_features(audio_features, "audio", batch, audio_tokens)
    if records and all(record.instruction is not None for record in records):
        batch.instruction = [record.instruction or "" for record in records]
    if records and all(record.sounds is not None for record in records):
        batch.sound_events = [[SoundEvent(**sound) for sound in record.sounds or []] for record in records]
    if records and all(record.objects is not None for record in records):
        batch.boxes = [_boxes(record, num_frames, frames_per_s) for record in records]
    return batch


def _all_or_none(tensors: list[Tensor | None], what: str, batch: Batch) -> list[Tensor]:
    present = [tensor for tensor in tensors if tensor is not None]
    if present and len(present) < len(tensors):
        lacking = [clip_id for clip_id, tensor in zip(batch.clip_ids, tensors, strict=True) if tensor is None]
        raise DataError(f"clips {', '.join(lacking[:_NAMED_IDS])} have no {what}, others of their batch have")
    return present


def _pad_features(features: list[Tensor], kind: str, batch: Batch, least: int = 0) -> tuple[Tensor, Tensor]:
    """(B, N, C) features and (B, N) mask of sequences of different lengths, N at least `least`."""
    widths = {tensor.shape[1]: clip_id for tensor, clip_id in zip(features, batch.clip_ids, strict=True)}
    if len(widths) > 1:
        named = ", ".join(f"{clip_id} has {width}" for width, clip_id in sorted(widths.items()))
        raise DataError(f"{kind} features of one batch differ in width: {named}; they come from different encoders")
    counts = torch.tensor([len(tensor) for tensor in features])
    mask = torch.arange(max(least, int(counts.max())))[None, :] < counts[:, None]
    padded = features[0].new_zeros((*mask.shape, features[0].shape[1]))
    padded[mask] = torch.cat(features)
    return padded, mask


def _pad_frames(frames: Tensor, num_frames: int) -> Tensor:
    """(K, 3, H, W) frames of a clip that may have fewer."""
    lacking = num_frames - len(frames)
    return frames if lacking <= 0 else torch.cat([frames, frames.new_zeros((lacking, *frames.shape[1:]))])


def _boxes(record: ClipRecord, num_frames: int, frames_per_s: float | None) -> list[Box]:
    """Boxes of the objects seen in each of the K frames."""
    times_s = frame_times_s(record.duration_s, num_frames, frames_per_s)
    return [
        Box(seen["label"], frame, *seen["box"])
        for seen in record.objects or []
        for frame, time_s in enumerate(times_s)
        if seen["onset_s"] <= time_s < seen["offset_s"]
    ]
