"""The embedded scenes as instructions: what is seen, what is heard, and whether the two belong together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from avcap_zoo.batch import Dialogue, Modality, Split
from avcap_zoo.data_modules.base import ClipRecord, SplitIndex
from avcap_zoo.data_modules.instructions import (
    KINDS,
    UNRELATED,
    InstructionsDataModule,
    InstructionSet,
    Kind,
    MixedSet,
    Mixture,
    NegativeSettings,
    unrelated_pair,
)
from avcap_zoo.data_modules.media.video import frame_times_s
from avcap_zoo.data_modules.records import PackedRecords
from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
from avcap_zoo.data_modules.scenes.events import PICTURES, SOUNDS, SOUNDS_OF_PICTURE
from avcap_zoo.errors import DataError

QUESTION = "Are the audio and image related to each other? What are they?"
"""Asked of pairs and of negatives alike, so that the question does not give the answer away."""
FACT_QUESTION = "Are the audio and image related to each other?"
"""Asked in dialogues about one thing and one sound, whose answer is the verdict alone."""
RELATED = "They seem related. "
"""Said of pairs, as `instructions.UNRELATED` is of negatives."""

HEARD: Final = MappingProxyType(
    {
        "hiss": "sizzling",
        "thud": "banging",
        "beep": "beeping",
        "hum": "rumbling",
        "horn": "honking",
        "siren": "wailing",
        "bark": "barking",
        "growl": "growling",
        "chirp": "chirping",
        "bell": "chiming",
        "wind": "blowing",
        "claps": "clapping",
    }
)
"""How answers name each sound: words of the scenes' captions, none of which is also the name of a picture."""
_UNPAIRED = "negatives"
_LABELLED_FRAMES = 5
_FACTS_SHARE = 0.25


class SceneInstructionsDataModule(InstructionsDataModule):
    """Scenes with one picture each. Readers: `scene_pictures`, `scene_sounds`, `scene_pairs`, and `negatives`.

    Answers are made of the labels: "the picture is of a dog", "the sound is of barking and honking". Of a picture and a
    sound together it is told first whether they belong: "They seem related." or "They seem unrelated.". Validation and
    test hold each pair of their clips, and as many negatives where the mixture has any.

    Args:
        root: folder of the scenes, made if it does not exist; None = `$AVCAP_DATA/instructions`.
        sets: by name.
        num_train: training clips.
        num_val: validation clips.
        num_test: test clips.
        scene_seed: of the generator.
        scene_size_px: side of the generated pictures.
        evaluate_negatives: whether validation and test hold negatives; None = if the mixture does.
        options: see `InstructionsDataModule`.
    """

    name = "scene_instructions"
    kinds: Mapping[str, Kind] = {
        "scene_pictures": "pictures",
        "scene_sounds": "sounds",
        "scene_pairs": "pairs",
        _UNPAIRED: KINDS[_UNPAIRED],
    }

    def __init__(
        self,
        root: str | None = None,
        *,
        sets: dict[str, InstructionSet],
        num_train: int = 2000,
        num_val: int = 100,
        num_test: int = 300,
        scene_seed: int = 0,
        scene_size_px: int = 64,
        evaluate_negatives: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(root, sets=sets, **options)
        self.negatives = NegativeSettings((QUESTION,))
        self.labelled_clips = ScenesDataModule(
            str(self.root),
            num_train=num_train,
            num_val=num_val,
            num_test=num_test,
            scene_seed=scene_seed,
            scene_size_px=scene_size_px,
            sample_rate_hz=self.sample_rate_hz,
            num_frames=_LABELLED_FRAMES,
            image_size_px=self.image_size_px,
            modalities=("audio", "visual"),
        )
        has_negatives = any(wanted.reader == _UNPAIRED for wanted in sets.values())
        self.evaluate_negatives = has_negatives if evaluate_negatives is None else evaluate_negatives

    def has_validation(self) -> bool:
        """The scenes have clips of their own for it."""
        return True

    def prepare_data(self) -> None:
        """Generate what is not there yet, then check the folder."""
        self.labelled_clips.prepare_data()
        super().prepare_data()

    def read_split(self, split: Split) -> SplitIndex:
        """Training: every set. Other splits: every pair once, and a negative of each picture.

        Raises:
            DataError: the folder of the scenes is damaged, or holds no usable pair.
        """
        if split == "train":
            return super().read_split(split)
        index = self.read_set(InstructionSet("scene_pairs"), split)
        if not index.records:
            raise DataError(f"{self.name} {split}: no scene shows what is heard in it")
        if self.evaluate_negatives:
            pictures = self.read_set(InstructionSet("scene_pictures"), split).records
            sounds = PackedRecords(self.read_set(InstructionSet("scene_sounds"), split).records)
            rng = np.random.default_rng((self.seed, {"val": 1, "test": 2}[split]))
            paired = {record.clip_id for record in index.records}
            index.records += [
                unrelated_pair(picture, sounds, rng, self.negatives)
                for picture in pictures
                if picture.clip_id in paired
            ]
        return index

    def dialogues(self, count: int, seed: int) -> list[Dialogue]:
        """Questions about the training clips, whatever the mixture holds, and whether one thing makes one sound.

        Args:
            count: of dialogues.
            seed: of what is drawn.
        """
        clips = {
            reader: PackedRecords(self.read_set(InstructionSet(reader), "train").records)
            for reader in ("scene_pictures", "scene_sounds", "scene_pairs")
        }
        sets = [MixedSet(reader, self.kinds[reader], 1.0, records) for reader, records in clips.items()]
        sets.append(MixedSet(_UNPAIRED, "negatives", 1.0, clips["scene_pictures"], clips["scene_sounds"]))
        mixture = Mixture(sets, count, together=1, seed=seed, negatives=self.negatives)
        rng = np.random.default_rng((seed, count))
        made = []
        for position in range(count):
            if rng.random() < _FACTS_SHARE:
                made.append(_fact(rng))
                continue
            record = mixture.draw(0, position)
            answer = record.captions[0]
            told: dict[Modality, list[str]] = {}
            if seen := words_in(answer, PICTURES):
                told["visual"] = seen
            if heard := words_in(answer, HEARD.values()):
                told["audio"] = heard
            made.append(Dialogue(record.instruction or "", answer, told))
        return made

    def read_set(self, wanted: InstructionSet, split: Split) -> SplitIndex:
        """The clips of one kind, with their answers."""
        index = self.labelled_clips.read_split(split)
        make = {"scene_pictures": _picture, "scene_sounds": _sound, "scene_pairs": _pair}[wanted.reader]
        made = [make(record) for record in index.records]
        index.records = [record for record in made if record is not None]
        return index


def words_in(answer: str, names: Collection[str]) -> list[str]:
    """The names that an answer holds, in its order: what it says is seen (`PICTURES`) or heard (`HEARD`)."""
    return [word for word in answer.split() if word in names]


def _fact(rng: np.random.Generator) -> Dialogue:
    """Whether a thing makes a sound; as often yes as no."""
    related = bool(rng.random() < 0.5)
    picture = PICTURES[int(rng.integers(len(PICTURES)))]
    sounds = [sound for sound in SOUNDS if (sound in SOUNDS_OF_PICTURE[picture]) == related]
    sound = sounds[int(rng.integers(len(sounds)))]
    answer = (RELATED if related else UNRELATED).strip()
    return Dialogue(FACT_QUESTION, answer, {"visual": [picture], "audio": [HEARD[sound]]})


def _picture(record: ClipRecord) -> ClipRecord | None:
    """What is seen in the one frame; its sounds become all that could be heard of it."""
    seen = _seen(record)
    if not seen:
        return None
    possible = sorted({sound for label in seen for sound in SOUNDS_OF_PICTURE[label]})
    return ClipRecord(
        record.clip_id,
        [_picture_answer(seen)],
        visual=record.visual,
        duration_s=record.duration_s,
        sounds=[{"label": label, "onset_s": 0.0, "offset_s": record.duration_s} for label in possible],
    )


def _sound(record: ClipRecord) -> ClipRecord | None:
    heard = _heard(record)
    if not heard:
        return None
    return ClipRecord(
        record.clip_id,
        [_sound_answer(heard)],
        audio=record.audio,
        duration_s=record.duration_s,
        sounds=record.sounds,
    )


def _pair(record: ClipRecord) -> ClipRecord | None:
    """The scene as it is, where one thing that is seen is heard."""
    seen, heard = _seen(record), _heard(record)
    if not any(SOUNDS_OF_PICTURE[label] & set(heard) for label in seen):
        return None
    return ClipRecord(
        record.clip_id,
        [f"{RELATED}{_picture_answer(seen)} {_sound_answer(heard)}"],
        audio=record.audio,
        visual=record.visual,
        duration_s=record.duration_s,
        instruction=QUESTION,
    )


def _seen(record: ClipRecord) -> list[str]:
    (time_s,) = frame_times_s(record.duration_s, 1)
    return sorted({o["label"] for o in record.objects or [] if o["onset_s"] <= time_s < o["offset_s"]})


def _heard(record: ClipRecord) -> list[str]:
    return sorted({sound["label"] for sound in record.sounds or []})


def _picture_answer(seen: list[str]) -> str:
    return "the picture is of " + " and ".join(f"a {label}" for label in seen)


def _sound_answer(heard: list[str]) -> str:
    return "the sound is of " + " and ".join(HEARD[label] for label in heard)
