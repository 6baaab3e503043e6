"""The sixteen events of the scenes: which sound and which picture each has, and the words that name it.

No modality is enough: rain and a sizzling pan share one sound, a car that drives and a car that honks one picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Loudness = Literal["normal", "loud", "quiet"]
Speed = Literal["normal", "fast", "slow"]
Relation = Literal["single", "then", "while"]
Split = Literal["train", "val", "test"]

LOUDNESSES: Final[tuple[Loudness, ...]] = ("normal", "loud", "quiet")
SPEEDS: Final[tuple[Speed, ...]] = ("normal", "fast", "slow")
RELATIONS: Final[tuple[Relation, ...]] = ("single", "then", "while")
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")

SOUNDS: Final[tuple[str, ...]] = (
    "hiss",
    "thud",
    "beep",
    "hum",
    "horn",
    "siren",
    "bark",
    "growl",
    "chirp",
    "bell",
    "wind",
    "claps",
)
"""The twelve sounds, by the names used in `annotations.jsonl`."""

PICTURES: Final[tuple[str, ...]] = (
    "cloud",
    "pan",
    "hammer",
    "shoe",
    "phone",
    "microwave",
    "car",
    "truck",
    "dog",
    "bird",
    "bell",
    "tree",
    "crowd",
)
"""The thirteen pictures; each is also the English noun for what is seen."""


@dataclass(frozen=True)
class Verb:
    """A verb in the two forms the grammar needs."""

    finite: str
    gerund: str


@dataclass(frozen=True)
class EventKind:
    """One of the sixteen events.

    Attributes:
        name: readable label, such as "dog barking".
        sound: one of `SOUNDS`.
        picture: one of `PICTURES`.
        repeatable: whether the sound comes in strokes, so that it can be fast or slow.
        subjects: noun phrases with their article; the last word of each is the head noun.
        verbs: every verb that may follow every subject.
    """

    name: str
    sound: str
    picture: str
    repeatable: bool
    subjects: tuple[str, ...]
    verbs: tuple[Verb, ...]


_KINDS: Final[tuple[EventKind, ...]] = (
    EventKind("rain falling", "hiss", "cloud", False, ("rain",), (Verb("falls", "falling"), Verb("pours", "pouring"))),
    EventKind("food sizzling", "hiss", "pan", False, ("food", "oil"), (Verb("sizzles", "sizzling"),)),
    EventKind(
        "hammer pounding",
        "thud",
        "hammer",
        True,
        ("a hammer",),
        (Verb("pounds", "pounding"), Verb("bangs", "banging")),
    ),
    EventKind("person walking", "thud", "shoe", True, ("someone", "a person"), (Verb("walks", "walking"),)),
    EventKind("phone ringing", "beep", "phone", True, ("a phone", "a telephone"), (Verb("rings", "ringing"),)),
    EventKind("microwave beeping", "beep", "microwave", True, ("a microwave",), (Verb("beeps", "beeping"),)),
    EventKind(
        "car driving",
        "hum",
        "car",
        False,
        ("a car",),
        (Verb("drives", "driving"), Verb("accelerates", "accelerating")),
    ),
    EventKind(
        "truck driving",
        "hum",
        "truck",
        False,
        ("a truck",),
        (Verb("drives", "driving"), Verb("rumbles", "rumbling")),
    ),
    EventKind("car honking", "horn", "car", True, ("a car", "a car horn"), (Verb("honks", "honking"),)),
    EventKind(
        "siren wailing",
        "siren",
        "truck",
        True,
        ("a siren",),
        (Verb("wails", "wailing"), Verb("sounds", "sounding")),
    ),
    EventKind("dog barking", "bark", "dog", True, ("a dog",), (Verb("barks", "barking"),)),
    EventKind("dog growling", "growl", "dog", True, ("a dog",), (Verb("growls", "growling"),)),
    EventKind(
        "bird chirping", "chirp", "bird", True, ("a bird",), (Verb("chirps", "chirping"), Verb("sings", "singing"))
    ),
    EventKind("bell ringing", "bell", "bell", True, ("a bell",), (Verb("rings", "ringing"), Verb("chimes", "chiming"))),
    EventKind("wind blowing", "wind", "tree", False, ("wind", "the wind"), (Verb("blows", "blowing"),)),
    EventKind(
        "crowd clapping",
        "claps",
        "crowd",
        False,
        ("a crowd", "an audience"),
        (Verb("claps", "clapping"), Verb("applauds", "applauding")),
    ),
)

EVENTS: Final = MappingProxyType({kind.name: kind for kind in _KINDS})
"""Every event by its name, in a fixed order."""

EVENT_NAMES: Final[tuple[str, ...]] = tuple(EVENTS)

SOUNDS_OF_PICTURE: Final = MappingProxyType(
    {picture: frozenset(kind.sound for kind in _KINDS if kind.picture == picture) for picture in PICTURES}
)
"""The sounds that each picture can stand for."""
