"""Mixtures of instruction sets: each clip with a question and the answer that is learned, and pairs that do not belong.

Questions are text alone; where picture and sound stand beside them is the system's affair.

Source: BuboGPT (arXiv 2307.08581), section 4; released configurations and texts (spec bubogpt.md, sections 5, 6, 9).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from avcap_zoo.batch import Split
from avcap_zoo.data_modules.base import CaptionDataModule, ClipRecord, SplitIndex
from avcap_zoo.data_modules.dataset import ClipDataset, Sample
from avcap_zoo.data_modules.instruction_files import (
    read_alignment,
    read_clotho_detail,
    read_llava,
    read_vggss_instructions,
)
from avcap_zoo.data_modules.records import PackedRecords
from avcap_zoo.data_modules.sampling import epoch_order
from avcap_zoo.data_modules.vggss import VGGSSDataModule
from avcap_zoo.data_modules.wavcaps import WavCapsDataModule
from avcap_zoo.errors import ConfigError, DataError

Kind = Literal["pictures", "sounds", "questions", "pairs", "negatives"]
QUESTIONS: dict[str, tuple[str, ...]] = {
    "pictures": (
        "Describe this image in detail.",
        "Take a look at this image and describe what you notice.",
        "Please provide a detailed description of the picture.",
        "Could you describe the contents of this image for me?",
    ),
    "sounds": (
        "Describe this audio in detail.",
        "Pay attention to this audio and describe what you notice.",
        "Please provide a detailed description of the sound.",
        "Could you describe the contents of this audio for me? ",
    ),
    "pairs": (
        "Please find the source that emits the given sound in this image.",
        "Pay attention to the given audio and image, and tell me where is the sound coming from in this picture.",
        "Which part of this scene is the source of the given sound?",
    ),
    "negatives": (
        "Please describe the image and audio respectively.",
        "What is the audio and the image?",
        "Please provide a detailed description of the sound and the image.",
        "Could you tell the contents of this audio and photo for me?",
        "Are the audio and image related to each other? What are they?",
    ),
}
"""The published questions of each kind of set that brings none."""
QUESTION_WRAPPERS = (
    "{}",
    "Quesion: {}",  # spelled so in the released prompts
    "{} A detail answer to the question is",
    "Quesion: {} detail answer:",
    "Based on the image, respond to this question with a detail answer: {} Answer:",
    "Use the provided image to answer the question: {}",
    "What is the answer to the following question? {}",
)
SOURCE_SENTENCES = (
    "The sound is that of {}, and its source can be seen in the image.",
    "What is heard is {}, and it happens in this picture.",
    "The source of the given sound is in the image: {}.",
    "In this scene, the sound comes from what the image shows as {}.",
)
"""Answers made of the class label of a sounding object. They are ours: the published ones come without templates."""
UNRELATED = "They seem unrelated. "
_SIGNS = re.compile(r'[\n"()*#~]')
_SPACES = re.compile(r"\s{2,}")
_PAIRING_ATTEMPTS = 50
_SHARED_WORDS = 2
_WORD = re.compile(r"[a-z]{4,}")
_NEEDLESS_WORDS = {
    *("image", "picture", "photo", "shows", "audio", "sound", "sounds", "contains", "background", "foreground"),
    *("with", "that", "this", "there", "from", "while", "also", "into", "over", "they", "their", "which", "appears"),
    *("seems", "being", "some", "other"),
}


@dataclass
class InstructionSet:
    """One set of a mixture.

    Args:
        reader: `alignment` (MiniGPT-4's), `llava`, `vggss` (the published sentences), `vggss_labels` (our sentences
            around the labels of vggss.json), `clotho_detail`, `wavcaps`, or `negatives`, which pairs the pictures of
            one set with the sounds of another. Further data modules know further ones.
        ratio: how often it is drawn, relative to the others.
        files: annotation files, relative to the root.
        media: folder of its media, relative to the root.
        parts: of `wavcaps`, its parts.
        pictures: of `negatives`, the set that gives pictures.
        sounds: of `negatives`, the set that gives sounds.
    """

    reader: str
    ratio: float = 1.0
    files: tuple[str, ...] = ()
    media: str = ""
    parts: tuple[str, ...] = ()
    pictures: str = ""
    sounds: str = ""


KINDS: dict[str, Kind] = {
    "alignment": "pictures",
    "llava": "questions",
    "vggss": "pairs",
    "vggss_labels": "pairs",
    "clotho_detail": "sounds",
    "wavcaps": "sounds",
    "negatives": "negatives",
}
"""What the clips of each reader are asked."""
_CLEANED: frozenset[Kind] = frozenset(("sounds", "pairs", "negatives"))


def clean_caption(text: str) -> str:
    """Quotes, brackets, stars, hashes, tildes and line ends become spaces, and runs of white space one.

    Source: `imagebind_caption` of the released code.
    """
    return _SPACES.sub(" ", _SIGNS.sub(" ", text)).strip()


def negative_answer(picture: str, sound: str, question: str, *, prefixed: bool, separator: str = " ") -> str:
    """What is learned of a picture and a sound that do not belong together.

    Args:
        picture: description of the picture.
        sound: description of the sound.
        question: one that holds the word "related" is always told that they are not.
        prefixed: whether other questions are told so, too.
        separator: between the descriptions; as released there is none.

    Source: spec section 9, "Negative set".
    """
    prefix = UNRELATED if prefixed or "related" in question else ""
    return clean_caption(f"{prefix}{picture}{separator}{sound}")


def relatedness(picture: ClipRecord, sound: ClipRecord) -> float:
    """How much speaks for a picture and a sound of different clips belonging together after all.

    Returns:
        Infinity if they are of one clip, or if a sound that the picture's record lists is heard. Else the number of
        words of four letters and more that their descriptions share; 0 where both list their sounds.
    """
    if picture.clip_id == sound.clip_id or (picture.audio is not None and picture.audio == sound.audio):
        return math.inf
    if picture.sounds is not None and sound.sounds is not None:
        shared = {item["label"] for item in picture.sounds} & {item["label"] for item in sound.sounds}
        return math.inf if shared else 0.0
    words = [set(_WORD.findall(" ".join(record.captions).lower())) - _NEEDLESS_WORDS for record in (picture, sound)]
    return float(len(words[0] & words[1]))


@dataclass
class NegativeSettings:
    """How pairs that do not belong are made.

    Attributes:
        questions: one of them is drawn.
        separator: see `negative_answer`.
        unrelated_share: how often they are told to be unrelated where the question does not ask.
    """

    questions: Sequence[str] = QUESTIONS["negatives"]
    separator: str = " "
    unrelated_share: float = 0.5


def unrelated_pair(
    picture: ClipRecord, sounds: PackedRecords, rng: np.random.Generator, settings: NegativeSettings
) -> ClipRecord:
    """A picture with a sound that does not belong to it, as far as `relatedness` knows.

    The first drawn sound that shares at most two words is taken; after fifty, the one that shares fewest.

    Raises:
        DataError: all of them surely belong to it.
    """
    best, least = None, math.inf
    for _ in range(_PAIRING_ATTEMPTS):
        sound = sounds[int(rng.integers(len(sounds)))]
        found = relatedness(picture, sound)
        if found < least:
            best, least = sound, found
        if least <= _SHARED_WORDS:
            break
    if best is None:
        raise DataError(
            f"{_PAIRING_ATTEMPTS} sounds in a row belong to the picture of {picture.clip_id}: "
            f"give the negatives a set of other sounds"
        )
    question = settings.questions[int(rng.integers(len(settings.questions)))]
    answer = negative_answer(
        picture.captions[0],
        best.captions[0],
        question,
        prefixed=bool(rng.random() < settings.unrelated_share),
        separator=settings.separator,
    )
    return ClipRecord(
        f"{picture.clip_id}+{best.clip_id}",
        [answer],
        audio=best.audio,
        visual=picture.visual,
        duration_s=picture.duration_s,
        instruction=question,
        frame_at_s=picture.frame_at_s,
    )


@dataclass
class MixedSet:
    """A set that is ready to be drawn from."""

    name: str
    kind: Kind
    ratio: float
    clips: PackedRecords
    others: PackedRecords | None = None
    """Of negatives, the sounds; `clips` are the pictures then."""


class Mixture(PackedRecords):
    """Clips of several sets, drawn by epoch and position: the same seed gives the same draws.

    Within a set no clip comes twice before all have come, as far as one epoch and one run through the set go.

    Args:
        sets: with their ratios.
        num_draws: draws of an epoch.
        together: so many draws in a row come from one set.
        seed: of everything.
        negatives: how they are made.
        questions: False asks nothing: descriptions alone.
    """

    def __init__(
        self,
        sets: Sequence[MixedSet],
        num_draws: int,
        *,
        together: int,
        seed: int,
        negatives: NegativeSettings,
        questions: bool = True,
    ) -> None:
        self.sets = list(sets)
        self.questions = questions
        self.num_draws = num_draws
        self.together = together
        self.seed = seed
        self.negatives = negatives
        self.shares = np.array([mixed.ratio for mixed in sets], dtype=np.float64)
        self.shares /= self.shares.sum()
        self._orders: dict[tuple[int, int], torch.Tensor] = {}

    def __len__(self) -> int:
        """Draws of an epoch."""
        return self.num_draws

    def __getitem__(self, code: int) -> ClipRecord:
        """The clip of `epoch * num_draws + position`."""
        return self.draw(*divmod(code, self.num_draws))

    def without(self, clip_ids: Collection[str]) -> Mixture:
        """The whole mixture: what it gives is drawn, and comes more than once anyway."""
        return self

    def set_of(self, epoch: int, position: int) -> MixedSet:
        """The set that a position of an epoch belongs to."""
        draw = np.random.default_rng((self.seed, epoch, position // self.together, 0))
        return self.sets[int(draw.choice(len(self.sets), p=self.shares))]

    def draw(self, epoch: int, position: int) -> ClipRecord:
        """The clip of a position, with question and answer.

        Raises:
            DataError: every sound belongs to a picture that wants another.
        """
        mixed = self.set_of(epoch, position)
        number = self.sets.index(mixed)
        key = (number, epoch)
        if key not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known[1] == epoch}
            self._orders[key] = epoch_order(len(mixed.clips), self.seed + number, epoch)
        record = mixed.clips[int(self._orders[key][position % len(mixed.clips)])]
        rng = np.random.default_rng((self.seed, epoch, position, 1))
        if mixed.others is not None:
            return unrelated_pair(record, mixed.others, rng, self.negatives)
        return asked(record, mixed.kind, rng if self.questions else None)


def asked(record: ClipRecord, kind: Kind, rng: np.random.Generator | None) -> ClipRecord:
    """A clip with a drawn question, or its own in a drawn wrapper; without a generator, with none."""
    question = record.instruction
    if rng is not None and kind == "questions":
        question = QUESTION_WRAPPERS[int(rng.integers(len(QUESTION_WRAPPERS)))].format(question)
    elif rng is not None and question is None:
        question = QUESTIONS[kind][int(rng.integers(len(QUESTIONS[kind])))]
    answers = [clean_caption(text) for text in record.captions] if kind in _CLEANED else record.captions
    return replace(record, instruction=question, captions=answers)


class MixtureDataset(ClipDataset):
    """Decodes the clips of a mixture; what a clip lacks becomes empty, so that clips of all kinds share a batch."""

    def _index(self, epoch: int, position: int) -> int:
        return epoch * len(self.records) + position if isinstance(self.records, Mixture) else position

    def _decode(self, record: ClipRecord, epoch: int) -> Sample:
        sample = super()._decode(record, epoch)
        size = self.settings.image_size_px
        if sample.waveform is None and "audio" in self.settings.modalities:
            sample.waveform = torch.zeros(0)
        if sample.frames is None and "visual" in self.settings.modalities:
            sample.frames = torch.zeros(0, 3, size, size, dtype=torch.uint8)
        return sample


class InstructionsDataModule(CaptionDataModule):
    """Instruction sets in given ratios. As published, a batch comes from one set.

    Args:
        root: folder above all sets; None = `$AVCAP_DATA/instructions`.
        sets: by name.
        batches_per_epoch: training batches of every process in an epoch.
        one_set_per_batch: False mixes the sets in every batch.
        questions: False asks nothing, as in the first stage of training: descriptions alone.
        separator: between the descriptions of a negative pair; "" as released.
        unrelated_share: how often negatives are told to be unrelated where the question does not ask.
        num_frames: frames per clip; a picture has one.
        options: see `CaptionDataModule`.

    Raises:
        ConfigError: no sets, an unknown reader, or ratios that are not positive.
    """

    name = "instructions"
    kinds: Mapping[str, Kind] = KINDS

    def __init__(
        self,
        root: str | None = None,
        *,
        sets: dict[str, InstructionSet],
        batches_per_epoch: int = 5000,
        one_set_per_batch: bool = True,
        questions: bool = True,
        separator: str = " ",
        unrelated_share: float = 0.5,
        num_frames: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(root, num_frames=num_frames, **options)
        key = "data.init_args.sets"
        if not sets:
            raise ConfigError(f"{key} is empty")
        for name, wanted in sets.items():
            if wanted.reader not in self.kinds:
                raise ConfigError(f"{key}.{name}.reader is {wanted.reader!r}, wanted one of {', '.join(self.kinds)}")
            if not wanted.ratio > 0:
                raise ConfigError(f"{key}.{name}.ratio is {wanted.ratio}, wanted more than 0")
            if wanted.reader == "negatives":
                for part in (wanted.pictures, wanted.sounds):
                    if part not in sets or sets[part].reader == "negatives":
                        raise ConfigError(f"{key}.{name}: negatives need pictures and sounds, names of other sets")
        if batches_per_epoch < 1:
            raise ConfigError(f"data.init_args.batches_per_epoch is {batches_per_epoch}, wanted at least 1")
        self.sets = sets
        self.batches_per_epoch = batches_per_epoch
        self.one_set_per_batch = one_set_per_batch
        self.questions = questions
        self.negatives = NegativeSettings(separator=separator, unrelated_share=unrelated_share)
        self._of_set: dict[Split, dict[str, list[str]]] = {}

    def has_validation(self) -> bool:
        """The published sets are all training data."""
        return False

    def read_split(self, split: Split) -> SplitIndex:
        """Read every set and look for its media.

        Raises:
            DataError: any other split than `train`, a file that is missing or malformed, or a set of which nothing is
                there.
        """
        index = SplitIndex()
        self._of_set[split] = {}
        for name, wanted in self.sets.items():
            if wanted.reader == "negatives":
                continue
            found = self.read_set(wanted, split)
            if not found.records:
                reason = f", the first missing: {': '.join(found.missing[0])}" if found.missing else ""
                raise DataError(f"{self.name} {split}: nothing of the set {name} is in {self.root}{reason}")
            for record in found.records:
                record.clip_id = f"{name}_{record.clip_id}"
            self._of_set[split][name] = [record.clip_id for record in found.records]
            index.records += found.records
            index.missing += [(f"{name}_{clip_id}", reason) for clip_id, reason in found.missing]
            index.sources += found.sources
            for what, count in found.left_out.items():
                index.leave_out(what, count)
        return index

    def read_set(self, wanted: InstructionSet, split: Split) -> SplitIndex:
        """Read one set that is no set of negatives.

        Raises:
            DataError: a file is missing or malformed, or the set has no such split.
        """
        if split != "train":
            raise DataError(f"the sets of {self.name} have no {split} split: they are all training data")
        if wanted.reader == "wavcaps":
            options: dict[str, Any] = {"parts": wanted.parts} if wanted.parts else {}
            return WavCapsDataModule(str(self.root / wanted.media), **options).read_split(split)
        if wanted.reader == "vggss_labels":
            index = VGGSSDataModule(str(self.root / wanted.media), whole_set_as="train").read_split(split)
            for record in index.records:
                record.captions = [sentence.format(record.captions[0]) for sentence in SOURCE_SENTENCES]
            return index
        readers: dict[str, Callable[[Path, Path], SplitIndex]] = {
            "alignment": read_alignment,
            "llava": read_llava,
            "vggss": read_vggss_instructions,
            "clotho_detail": read_clotho_detail,
        }
        read = readers[wanted.reader]
        if not wanted.files:
            raise DataError(f"a set with reader {wanted.reader} needs files: data.init_args.sets.NAME.files")
        whole = SplitIndex()
        for file in wanted.files:
            part = read(self.root / file, self.root / wanted.media)
            for record in part.records:
                if len(wanted.files) > 1:
                    record.clip_id = f"{file.rpartition('/')[2].partition('.')[0]}_{record.clip_id}"
            whole.records += part.records
            whole.missing += part.missing
            whole.sources += part.sources
            for what, count in part.left_out.items():
                whole.leave_out(what, count)
        return whole

    def records(self, split: Split) -> PackedRecords:
        """Of training the mixture, of other splits every clip once."""
        if split != "train":
            return super().records(split)
        if split not in self._packed:
            self._packed[split] = self.mixture(split)
        return self._packed[split]

    def mixture(self, split: Split) -> Mixture:
        """The sets of a split in their ratios."""
        known = {record.clip_id: record for record in self._index(split).records}
        clips = {
            name: PackedRecords(known[clip_id] for clip_id in ids if clip_id in known)
            for name, ids in self._of_set[split].items()
        }
        mixed = []
        for name, wanted in self.sets.items():
            negative = wanted.reader == "negatives"
            mixed.append(
                MixedSet(
                    name,
                    self.kinds[wanted.reader],
                    wanted.ratio,
                    clips[wanted.pictures if negative else name],
                    clips[wanted.sounds] if negative else None,
                )
            )
        world_size = self._rank()[1]
        return Mixture(
            mixed,
            self.batches_per_epoch * self.batch_size * world_size,
            together=self.batch_size * world_size if self.one_set_per_batch else 1,
            seed=self.seed,
            negatives=self.negatives,
            questions=self.questions,
        )

    def _loader_options(self, split: Split, records: PackedRecords) -> dict[str, Any]:
        options = super()._loader_options(split, records)
        plain: ClipDataset = options["dataset"]
        options["dataset"] = MixtureDataset(plain.records, plain.settings, seed=self.seed, training=split == "train")
        return options
