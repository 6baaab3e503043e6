"""Captions made from events, and events read back from captions.

Terse captions are lower case without punctuation, as in AudioCaps ("a dog barks loudly followed by a bell ringing").
Detailed and picture captions are ordinary sentences. `parse_caption` inverts every caption about events that the
grammar can make, and reads what it can of a caption that a model made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np

from avcap_zoo.data_modules.scenes.events import EVENTS, PICTURES, EventKind, Loudness, Relation, Speed
from avcap_zoo.data_modules.scenes.pictures import BACKGROUNDS, COLOURS

LOUDNESS_ADVERBS: Final = MappingProxyType({"normal": (), "loud": ("loudly",), "quiet": ("quietly", "faintly")})
SPEED_ADVERBS: Final = MappingProxyType({"normal": (), "fast": ("quickly",), "slow": ("slowly",)})

PLACES: Final = ("top left", "top right", "bottom left", "bottom right")
"""The four cells of a picture, in the order of their numbers."""

_NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# connector -> (relation, whether the second clause is a gerund); "before" and "after" are read but never written
_WRITTEN: Final[dict[str, tuple[tuple[str, bool], ...]]] = {
    "then": (("followed by", True), ("and then", False), ("then", False)),
    "while": (("while", False), ("as", False), ("with", True)),
}
_READ: Final = MappingProxyType(
    {
        "followed": "then",
        "then": "then",
        "before": "then",
        "after": "after",
        "while": "while",
        "as": "while",
        "with": "while",
        "and": "and",
    }
)
# What the templates of detailed and picture captions hold beside nouns, verbs, colours and places.
_FRAME_WORDS: Final = (
    *("a", "an", "the", "and", "but", "there", "is", "it", "makes", "lasts", "no", "sound", "clip", "picture"),
    *("background", "pale", "about", "seconds", "first", "end", "at", "for", "next", "of", "on", "to", "with"),
    *(".", ","),
)
_WORD: Final = re.compile(r"[a-z]+(?:['-][a-z]+)*|[0-9]+|[.,!?;]")


@dataclass(frozen=True)
class EventMention:
    """What a caption says of one event.

    Attributes:
        name: one of `events.EVENT_NAMES`.
        loudness: "normal" leads to no adverb.
        speed: "normal" leads to no adverb.
    """

    name: str
    loudness: Loudness = "normal"
    speed: Speed = "normal"


@dataclass(frozen=True)
class ObjectMention:
    """What a caption says of one object in a picture.

    Attributes:
        picture: one of `events.PICTURES`.
        colour: one of `pictures.COLOURS`.
        place: one of `PLACES`.
        silent: whether none of the sounds comes from it.
        part: when it can be seen: "all", "first" or "last" (part of the clip).
    """

    picture: str
    colour: str
    place: str
    silent: bool = False
    part: str = "all"


@dataclass(frozen=True)
class ParsedCaption:
    """What was read from a caption.

    Attributes:
        events: names in the order in which they happen; in the order of mention where they happen together.
        relation: "single", "then", "while", "mixed" (several kinds of connectors), or "" (none was understood).
        adverbs: (loudness, speed) of each event, in the order of `events`.
    """

    events: tuple[str, ...]
    relation: str
    adverbs: tuple[tuple[str, str], ...]


class DescribesEvents(Protocol):
    """Anything with events and their relation: a `scene.Scene`, for one."""

    @property
    def mentions(self) -> tuple[EventMention, ...]:
        """The events in order."""
        ...

    @property
    def relation(self) -> Relation:
        """How they follow one another."""
        ...


Truth = DescribesEvents | ParsedCaption | Mapping[str, Any] | str
"""What a caption can be held against: a scene, a parsed caption, a line of `annotations.jsonl`, or a reference."""


def split_words(text: str) -> list[str]:
    """Lower-case words and punctuation marks of a text, each as a token of its own."""
    return _WORD.findall(text.lower())


def terse_caption(mentions: Sequence[EventMention], relation: Relation, generator: np.random.Generator) -> str:
    """One draw of a short caption.

    Args:
        mentions: one event for "single", else two; in the order in which they happen.
        relation: "while" lets the caption name either event first.
        generator: makes the choices.

    Returns:
        Lower-case words with single spaces and no punctuation, 2 to 15 of them.

    Raises:
        ValueError: the number of events does not fit the relation.
    """
    _check_count(mentions, relation)
    if relation == "single":
        return _clause(mentions[0], gerund=bool(generator.random() < 0.4), generator=generator)
    first, second = mentions
    if relation == "while" and generator.random() < 0.5:
        first, second = second, first
    connector, second_is_gerund = _WRITTEN[relation][int(generator.integers(3))]
    # "a dog barking with a bell ringing" is English, "a dog barking while a bell rings" is not.
    first_is_gerund = second_is_gerund and bool(generator.random() < 0.4)
    return " ".join(
        (
            _clause(first, gerund=first_is_gerund, generator=generator),
            connector,
            _clause(second, gerund=second_is_gerund, generator=generator),
        )
    )


def detailed_text(
    mentions: Sequence[EventMention],
    relation: Relation,
    objects: Sequence[ObjectMention],
    background: str,
    duration_s: float,
    generator: np.random.Generator,
) -> str:
    """A paragraph on one clip: what is heard, what is seen and where, and for how long.

    Args:
        mentions: as in `terse_caption`.
        relation: as in `terse_caption`.
        objects: everything visible, silent objects too.
        background: one of `pictures.BACKGROUNDS`.
        duration_s: length of the clip, 0 to 10 s.
        generator: makes the choices.

    Returns:
        Ordinary sentences. `parse_caption` reads the events back from them.

    Raises:
        ValueError: the number of events does not fit the relation.
    """
    _check_count(mentions, relation)
    clauses = [_clause(mention, gerund=False, generator=generator) for mention in mentions]
    seconds = _NUMBERS[min(10, int(duration_s + 0.5))]
    if relation == "single":
        sentences = [f"{clauses[0]} for about {seconds} seconds."]
    elif relation == "then":
        sentences = [f"first {clauses[0]} and then {clauses[1]}.", f"the clip lasts about {seconds} seconds."]
    else:
        joined = f" {('while', 'as')[int(generator.integers(2))]} "
        sentences = [f"{joined.join(clauses)}.", f"the clip lasts about {seconds} seconds."]
    when = {"all": "", "first": " at first", "last": " at the end"}
    for thing in objects:
        noun = f"{_article(thing.colour)} {thing.colour} {thing.picture}"
        ending = ", but it makes no sound" if thing.silent else ""
        sentences.append(f"{noun} is at the {thing.place}{when[thing.part]}{ending}.")
    sentences.append(f"the background is pale {background}.")
    return " ".join(_capitalise(sentence) for sentence in sentences)


def picture_captions(
    objects: Sequence[ObjectMention], background: str, generator: np.random.Generator, n: int = 5
) -> list[str]:
    """Captions of a still picture: objects, colours, places. The last one is the detailed one.

    Args:
        objects: what can be seen, one or more.
        background: one of `pictures.BACKGROUNDS`.
        generator: makes the choices.
        n: number of captions, 1 or more; all but the last are terse.

    Returns:
        n sentences with a capital letter and a full stop, as in COCO.

    Raises:
        ValueError: no object, or n < 1.
    """
    if not objects or n < 1:
        raise ValueError(f"a picture caption needs an object and n >= 1, got {len(objects)} objects and n = {n}")
    full = [f"{_article(thing.colour)} {thing.colour} {thing.picture} at the {thing.place}" for thing in objects]
    captions = [_terse_picture_caption(objects, background, generator) for _ in range(n - 1)]
    captions.append(f"{' and '.join(full)} on a pale {background} background")
    return [f"{_capitalise(caption)}." for caption in captions]


def parse_caption(text: str) -> ParsedCaption:
    """Read events, relation and adverbs back from a caption, the grammar's own or a model's.

    A verb counts where one of its subjects stands before it; adverbs belong to the verb they stand next to; sentences
    in which no event is found are passed over. Nonsense gives an empty or partial result, never an error.

    Args:
        text: any string.

    Returns:
        The events in the order in which they happen ("B after A" is turned round).
    """
    names: list[str] = []
    adverbs: list[list[str]] = []
    connectors: list[str] = []
    pending_connectors: list[str] = []
    lost: list[str] = []
    for sentence in _sentences(text):
        found, found_adverbs, found_connectors, trailing = _read_sentence(sentence)
        if not found:
            lost.extend(found_connectors + trailing)
            continue
        pending_connectors.extend(found_connectors)
        connectors.extend(pending_connectors)
        pending_connectors = list(trailing)
        names.extend(found)
        adverbs.extend(found_adverbs)
    connectors.extend(pending_connectors)
    if not names:
        return ParsedCaption((), _relation_of(lost, 0), ())
    relation = _relation_of(connectors, len(names))
    if relation == "after":
        names.reverse()
        adverbs.reverse()
        relation = "then"
    return ParsedCaption(tuple(names), relation, tuple((pair[0], pair[1]) for pair in adverbs))


def events_correct(candidate: str, truth: Truth) -> bool:
    """Whether a caption names exactly the right events in the right relation.

    Order matters for "then", not for "while". Adverbs are not looked at.

    Args:
        candidate: the caption to judge.
        truth: a scene, a parsed caption, a line of `annotations.jsonl`, or a reference caption.
    """
    return _match(parse_caption(candidate), _truth(truth), with_adverbs=False)


def fully_correct(candidate: str, truth: Truth) -> bool:
    """As `events_correct`, and every adverb is right, too: none missing, none invented."""
    return _match(parse_caption(candidate), _truth(truth), with_adverbs=True)


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[str, ...]:
    words: set[str] = set()
    for kind in EVENTS.values():
        words.update(word for subject in kind.subjects for word in subject.split())
        words.update(form for verb in kind.verbs for form in (verb.finite, verb.gerund))
    for table in (LOUDNESS_ADVERBS, SPEED_ADVERBS):
        words.update(word for adverbs in table.values() for word in adverbs)
    words.update(word for pairs in _WRITTEN.values() for connector, _ in pairs for word in connector.split())
    words.update(PICTURES, COLOURS, BACKGROUNDS, _NUMBERS[3:], (word for place in PLACES for word in place.split()))
    words.update(_FRAME_WORDS)
    return tuple(sorted(words))


def vocabulary() -> list[str]:
    """Every token that `split_words` can find in a caption of this grammar: terse, detailed, of pictures. Sorted."""
    return list(_vocabulary())


def _check_count(mentions: Sequence[EventMention], relation: Relation) -> None:
    wanted = 1 if relation == "single" else 2
    if len(mentions) != wanted:
        raise ValueError(f"relation {relation!r} takes {wanted} event(s), got {len(mentions)}")


def _clause(mention: EventMention, *, gerund: bool, generator: np.random.Generator) -> str:
    kind: EventKind = EVENTS[mention.name]
    subject = _pick(kind.subjects, generator)
    verb = kind.verbs[int(generator.integers(len(kind.verbs)))]
    chosen = [
        _pick(choice, generator)
        for choice in (SPEED_ADVERBS[mention.speed], LOUDNESS_ADVERBS[mention.loudness])
        if choice
    ]
    return " ".join(part for part in (subject, verb.gerund if gerund else verb.finite, " and ".join(chosen)) if part)


def _pick(choices: Sequence[str], generator: np.random.Generator) -> str:
    return choices[int(generator.integers(len(choices)))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _capitalise(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _terse_picture_caption(objects: Sequence[ObjectMention], background: str, generator: np.random.Generator) -> str:
    things = [objects[int(i)] for i in generator.permutation(len(objects))]
    plain = [f"{_article(thing.picture)} {thing.picture}" for thing in things]
    coloured = [f"{_article(thing.colour)} {thing.colour} {thing.picture}" for thing in things]
    placed = f"at the {things[0].place}"
    behind = f"on a pale {background} background"
    if len(things) == 1:
        forms: tuple[str, ...] = (
            f"{coloured[0]} {placed}",
            f"there is {plain[0]} {placed}",
            f"a picture of {coloured[0]}",
            f"{coloured[0]} {behind}",
            f"{plain[0]} {behind}",
        )
    elif len(things) == 2:
        forms = (
            " and ".join(coloured),
            f"{coloured[0]} next to {plain[1]}",
            f"a picture of {coloured[0]} with {coloured[1]}",
            f"{plain[0]} and {plain[1]} {behind}",
            f"there is {coloured[0]} {placed} next to {plain[1]}",
        )
    else:
        forms = (
            f"{', '.join(coloured[:-1])} and {coloured[-1]}",
            f"{', '.join(plain[:-1])} and {plain[-1]} {behind}",
            f"a picture of {coloured[0]} with {' and '.join(plain[1:])}",
            f"{coloured[0]} {placed} next to {' and '.join(plain[1:])}",
        )
    return _pick(forms, generator)


def _sentences(text: str) -> Iterable[list[str]]:
    sentence: list[str] = []
    for word in split_words(text):
        if word in ".!?;":
            yield sentence
            sentence = []
        elif word != ",":
            sentence.append(word)
    yield sentence


@lru_cache(maxsize=1)
def _lexicon() -> tuple[dict[tuple[str, str], str], frozenset[str], frozenset[str], dict[str, tuple[int, str]]]:
    """(noun, verb form) -> event; all nouns; all verb forms; adverb -> (0 loudness or 1 speed, value)."""
    pairs = {
        (subject.split()[-1], form): kind.name
        for kind in EVENTS.values()
        for subject in kind.subjects
        for verb in kind.verbs
        for form in (verb.finite, verb.gerund)
    }
    adverbs = {word: (0, value) for value, words in LOUDNESS_ADVERBS.items() for word in words}
    adverbs.update({word: (1, value) for value, words in SPEED_ADVERBS.items() for word in words})
    return pairs, frozenset(noun for noun, _ in pairs), frozenset(form for _, form in pairs), adverbs


def _read_sentence(words: list[str]) -> tuple[list[str], list[list[str]], list[str], list[str]]:
    """Events and adverbs of one sentence, connectors up to the last event, and connectors behind it."""
    pairs, nouns, forms, adverb_values = _lexicon()
    names: list[str] = []
    adverbs: list[list[str]] = []
    connectors: list[str] = []
    open_connectors: list[str] = []
    open_nouns: list[str] = []
    early = ["normal", "normal"]
    for word in words:
        if word in _READ:
            open_connectors.append(_READ[word])
        elif word in adverb_values:
            slot, value = adverb_values[word]
            # "barks loudly" looks back; "then loudly a dog barks" and "a dog loudly barks" look ahead.
            looks_ahead = not adverbs or bool(open_nouns) or any(kind != "and" for kind in open_connectors)
            (early if looks_ahead else adverbs[-1])[slot] = value
        elif word in forms:
            name = next((pairs[noun, word] for noun in reversed(open_nouns) if (noun, word) in pairs), None)
            if name is not None:
                names.append(name)
                adverbs.append(early)
                connectors.extend(open_connectors)
                early, open_nouns, open_connectors = ["normal", "normal"], [], []
        elif word in nouns:
            open_nouns.append(word)
    return names, adverbs, connectors, open_connectors


def _relation_of(connectors: list[str], num_events: int) -> str:
    kinds = set(connectors) - {"and"}
    if kinds == {"then", "after"}:
        return "mixed"
    if len(kinds) > 1:
        return "mixed"
    if kinds:
        return kinds.pop()
    return "single" if num_events == 1 else ""


def _truth(truth: Truth) -> ParsedCaption:
    if isinstance(truth, ParsedCaption):
        return truth
    if isinstance(truth, str):
        return parse_caption(truth)
    if isinstance(truth, Mapping):
        events = truth["events"]
        return ParsedCaption(
            tuple(event["label"] for event in events),
            truth["relation"],
            tuple((event["loudness"], event["speed"]) for event in events),
        )
    mentions = truth.mentions
    return ParsedCaption(
        tuple(mention.name for mention in mentions),
        truth.relation,
        tuple((mention.loudness, mention.speed) for mention in mentions),
    )


def _match(said: ParsedCaption, true: ParsedCaption, *, with_adverbs: bool) -> bool:
    if not said.events or said.relation != true.relation or len(said.events) != len(true.events):
        return False
    said_items = list(zip(said.events, said.adverbs if with_adverbs else said.events, strict=True))
    true_items = list(zip(true.events, true.adverbs if with_adverbs else true.events, strict=True))
    if true.relation == "while":
        return sorted(said_items) == sorted(true_items)
    return said_items == true_items
