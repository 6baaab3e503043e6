"""What a caption of a still picture says, how much of it is right, and whether it is a sentence of the grammar.

The counterpart of `grammar.picture_captions`, for captions that a model made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from avcap_zoo.data_modules.scenes.events import PICTURES
from avcap_zoo.data_modules.scenes.grammar import PLACES
from avcap_zoo.data_modules.scenes.pictures import BACKGROUNDS, COLOURS

_THING: Final = rf"(?:({'|'.join(COLOURS)}) )?({'|'.join(PICTURES)})"
_PLACE: Final = rf"({'|'.join(PLACES)})"
_PALE: Final = rf"pale ({'|'.join(BACKGROUNDS)}) background"
_OBJECT: Final = rf"(an?) {_THING}(?: at the {_PLACE})?"
_BACKGROUND: Final = rf"on a {_PALE}"
_ANY_OBJECT: Final = re.compile(rf"\b{_THING}(?: (?:at the )?{_PLACE})?\b")
_ANY_BACKGROUND: Final = re.compile(rf"\b{_PALE}\b")
_LISTED: Final = rf"{_THING}(?: {_PLACE})?"
_KEYWORDS: Final = re.compile(rf"{_LISTED}(?: {_LISTED})*(?: {_PALE})?\.?")
_SENTENCE: Final = re.compile(
    rf"(?:there is |a picture of )?{_OBJECT}(?:(?:, | and | next to | with ){_OBJECT})*(?: {_BACKGROUND})?\."
)
_ARTICLE: Final = re.compile(r"\b(an?) (\w)")


@dataclass(frozen=True)
class ObjectSaid:
    """One object of a caption; "" stands for what is not said of it."""

    picture: str
    colour: str = ""
    place: str = ""


@dataclass(frozen=True)
class PictureSaid:
    """What was read from a caption.

    Attributes:
        objects: in the order of mention.
        background: "" if it is not said.
        grammatical: whether the whole text is one sentence as the grammar joins them, with the right articles. The
            number of objects, and which of them have colours and places, do not matter.
        listed: whether the whole text is a list of keywords: as such a sentence, without all that joins them.
    """

    objects: tuple[ObjectSaid, ...]
    background: str
    grammatical: bool
    listed: bool


@dataclass(frozen=True)
class Details:
    """Details of one kind in a caption.

    Attributes:
        told: how many the caption tells.
        right: how many of these are true. An object told twice is true once.
        all: how many there are.
    """

    told: int
    right: int
    all: int


def read_picture_caption(text: str) -> PictureSaid:
    """Read what can be read of any text, sentence or not; nonsense gives an empty result, never an error."""
    lowered = text.lower()
    objects = tuple(ObjectSaid(picture, colour, place) for colour, picture, place in _ANY_OBJECT.findall(lowered))
    backgrounds: list[str] = _ANY_BACKGROUND.findall(lowered)
    articles = all((article == "an") == (letter in "aeiou") for article, letter in _ARTICLE.findall(lowered))
    grammatical = bool(_SENTENCE.fullmatch(lowered)) and articles
    return PictureSaid(objects, (backgrounds or [""])[-1], grammatical, bool(_KEYWORDS.fullmatch(lowered)))


def count_details(caption: str, whole: str) -> dict[str, Details]:
    """Hold a caption against the one that tells everything.

    Args:
        caption: the caption to judge.
        whole: the picture's detailed caption: the last and longest of `grammar.picture_captions`.

    Returns:
        What it tells of each kind: `picture` (the objects), `colour`, `place`, `background`.
    """
    said, truth = read_picture_caption(caption), read_picture_caption(whole)
    true = {thing.picture: thing for thing in truth.objects}
    pairs = [(thing, true.pop(thing.picture, None)) for thing in said.objects]
    found = {}
    for kind in ("picture", "colour", "place"):
        told = [(getattr(thing, kind), real) for thing, real in pairs if getattr(thing, kind)]
        right = sum(real is not None and value == getattr(real, kind) for value, real in told)
        found[kind] = Details(len(told), right, len(truth.objects))
    told_background = bool(said.background)
    right_background = told_background and said.background == truth.background
    return {**found, "background": Details(int(told_background), int(right_background), 1)}
