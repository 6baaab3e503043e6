"""The one meeting place of data modules and systems: a batch of clips, and what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import copy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

Modality = Literal["audio", "visual"]
Split = Literal["train", "val", "test"]


@dataclass
class SkippedClip:
    """A clip that was left out of a batch because its media could not be read."""

    clip_id: str
    path: str | None
    reason: str


@dataclass
class SoundEvent:
    """A labelled stretch of sound within a clip, as in AudioSet's strong labels.

    `onset_s` and `offset_s` are seconds from the start of the clip.
    """

    label: str
    onset_s: float
    offset_s: float


@dataclass
class Box:
    """A labelled object in one frame. Coordinates are fractions of the picture's sides, from the top left."""

    label: str
    frame: int
    left: float
    top: float
    right: float
    bottom: float


@dataclass
class Batch:
    """B clips, as every data module gives them and every system takes them.

    What a data set lacks is None. Masks are True where the entry is real. Text and pictures are raw: systems
    tokenise and normalise, on the device.
    """

    clip_ids: list[str]
    captions: list[list[str]]
    """All references of each clip; may be empty lists when captioning unlabelled media."""
    caption: list[str]
    """The caption each clip is trained on in this epoch ("" when there is none)."""
    waveform: Tensor | None = None
    """(B, S) float32 in [-1, 1], zero-padded to the longest clip."""
    num_samples: Tensor | None = None
    """(B,) int64, real samples of each clip."""
    audio_features: Tensor | None = None
    """(B, N, C) float32, tokens of a frozen audio encoder; given instead of `waveform`."""
    audio_mask: Tensor | None = None
    """(B, N) bool, of `audio_features`."""
    frames: Tensor | None = None
    """(B, K, 3, H, W) uint8, RGB."""
    frame_mask: Tensor | None = None
    """(B, K) bool; also the mask of `visual_features`."""
    visual_features: Tensor | None = None
    """(B, K, C) float32, one vector per frame from a frozen encoder; given instead of `frames`."""
    feature_keys: dict[Modality, str] = field(default_factory=dict)
    """Which encoder made the features, where a cache says so; see `FrozenEncoder.key`."""
    instruction: list[str] | None = None
    """What the captions answer, for each clip."""
    sound_events: list[list[SoundEvent]] | None = None
    boxes: list[list[Box]] | None = None
    skipped: list[SkippedClip] = field(default_factory=list)
    """Clips the data module met on the way to this batch and could not read."""

    def __len__(self) -> int:
        """Number of clips B."""
        return len(self.clip_ids)

    def first(self) -> Batch:
        """The same batch with its first clip alone, padding included."""
        changed = copy(self)
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "skipped" and isinstance(value, list | Tensor):
                setattr(changed, f.name, value[:1])
        return changed

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor: a device that compiles graphs makes one for each that it has not seen."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tuple(value.shape) for name, value in values.items() if isinstance(value, Tensor)}

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed = copy(self)
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                setattr(changed, f.name, change(value))
        return changed


@dataclass
class FrozenEncoder:
    """What a system computes of a clip's sound or pictures alone, always alike: it may be computed once and kept.

    Attributes:
        modality: what it needs of a batch.
        module: holds the weights; in evaluation mode.
        encode: batch on the module's device to (B, N, C) tokens and their (B, N) mask, real tokens first.
        key: names weights and settings. Features of another key must not be used in its place.
    """

    modality: Modality
    module: torch.nn.Module
    encode: Callable[[Batch], tuple[Tensor, Tensor]]
    key: str


@runtime_checkable
class ClipSource(Protocol):
    """What systems may ask of a data module beside its batches.

    Attributes:
        name: lower-case name of the data set.
        sample_rate_hz: rate of the sound it gives.
        num_frames: frames of each clip.
        image_size_px: side of the frames.
        modalities: what it decodes.
        predict_split: the split that `predict` captions.
        captioned_before: asked by `predict` for ids to leave out.
        skipped: clips that could not be read so far, by split and id.
    """

    name: str
    sample_rate_hz: int
    num_frames: int
    image_size_px: int
    modalities: tuple[Modality, ...]
    predict_split: Split
    captioned_before: Callable[[], Collection[str]]
    skipped: dict[Split, dict[str, SkippedClip]]

    def num_official(self, split: Split) -> int:
        """Clips that the annotations of a split name, on disk or not."""

    def describe_split(self, split: Split) -> dict[str, Any]:
        """What a split was read from and what of it is here, for the files of results."""

    def fingerprint(self, split: Split = "train") -> str:
        """Short hash of the clips of a split and of how they are decoded."""

    def label_names(self, kind: Literal["sounds", "objects"]) -> list[str]:
        """Sorted labels of the training clips; empty when they have none."""

    def training_captions(self) -> list[str]:
        """Every caption of the training clips."""

    def plain_loader(
        self, split: Split, batch_size: int, modalities: tuple[Modality, ...], *, shuffled: bool = False
    ) -> DataLoader[Any]:
        """Batches outside the Trainer."""

    def cache_features(
        self, encoder: FrozenEncoder, folder: Path, splits: tuple[Split, ...], *, device: torch.device
    ) -> dict[Split, tuple[int, int]]:
        """Store what an encoder makes of every clip; by split, clips stored and clips asked for."""

    def use_feature_cache(self, folder: Path, modality: Modality) -> None:
        """Take a modality's features from such a folder from now on."""


@dataclass
class Dialogue:
    """A question about a clip, its answer, and the clip in words.

    Attributes:
        question: text alone.
        answer: what is to be said.
        told: what is heard or seen, a few words for each modality that the question is about.
    """

    question: str
    answer: str
    told: dict[Modality, list[str]]


@runtime_checkable
class DialogueSource(Protocol):
    """What a data module gives beside its batches for the preparation of models that answer questions.

    Attributes:
        labelled_clips: the same clips with labelled sounds and objects.
    """

    labelled_clips: ClipSource

    def dialogues(self, count: int, seed: int) -> list[Dialogue]:
        """Dialogues about training clips, each told in words."""


def run_folder(trainer: Any) -> Path:
    """Folder of a run's files: that of the first logger that has one, else the Trainer's root.

    `Trainer.log_dir` talks to the other processes and hangs when only some of them ask; this does not.

    Args:
        trainer: a Lightning Trainer.
    """
    folders = (getattr(logger, "log_dir", None) for logger in trainer.loggers)
    return Path(next((folder for folder in folders if folder), trainer.default_root_dir))
