"""Which words of a text name which of the things that were found in its picture.

Rules do it by default. A language model does it on request, in the published format: one `words - entity` a line.
Source: BuboGPT (arXiv 2307.08581), section 3.1; parsing as in the released code.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from avcap_zoo.backbones.chat_model import ChatModel, TooLongError
from avcap_zoo.backbones.vision.finders import file_identity
from avcap_zoo.errors import ConfigError
from avcap_zoo.ops.grounding_picture import COLOURS

Style = Literal["robust", "released"]


@dataclass(frozen=True)
class Span:
    """Words of a text that name an entity.

    Attributes:
        start: first character.
        end: behind the last one.
        text: the characters between.
        entity: what they name.
    """

    start: int
    end: int
    text: str
    entity: str


@dataclass(frozen=True)
class Matching:
    """What a matcher found.

    Attributes:
        spans: in the order of the text, without overlap.
        by: what found them, such as "rules".
        note: what did not go as asked for; empty if nothing.
        answer: what a language model wrote; None for rules.
    """

    spans: tuple[Span, ...]
    by: str
    note: str = ""
    answer: str | None = None


class Matcher(ABC):
    """Finds the words of a text that name entities."""

    def __init__(self, **identity: Any) -> None:
        self.device = torch.device("cpu")
        self.identity: dict[str, Any] = {"class": f"{type(self).__module__}.{type(self).__qualname__}", **identity}

    @abstractmethod
    def match(self, text: str, entities: Sequence[str]) -> Matching:
        """Match one text with the entities of its picture; both may be empty."""


class RuleMatcher(Matcher):
    """Finds every mention of an entity by its words.

    Case, plural and possessive forms do not matter. Longer entities come first ("brown dog" before "dog"); "coffee cup"
    is also found as "cup of coffee"; an entity whose whole name is nowhere is found by its last word ("train" for
    "passenger train").

    Args:
        synonyms: further names of entities, such as {phone: [telephone]}.
    """

    def __init__(self, synonyms: Mapping[str, Sequence[str]] | None = None) -> None:
        self.synonyms = {name.lower(): list(others) for name, others in (synonyms or {}).items()}
        super().__init__(synonyms=self.synonyms)

    def match(self, text: str, entities: Sequence[str]) -> Matching:
        """See the class."""
        words = [(found.start(), found.end(), _lemmas(found.group())) for found in _WORD.finditer(text)]
        names = [(entity, _names_of(name)) for entity in entities for name in (entity, *self._others(entity))]
        names = [(entity, name) for entity, name in names if name]
        taken = [False] * len(words)
        hits: list[tuple[int, int, str]] = []
        named: set[str] = set()
        ordered = sorted(names, key=lambda each: -len(each[1]))
        rounds = [[(entity, form) for entity, name in ordered for form in _forms(name)]]
        rounds.append([(entity, name[-1:]) for entity, name in ordered if len(name) > 1])
        for number, forms in enumerate(rounds):
            for entity, form in forms:
                if number and entity in named:
                    continue
                for first in range(len(words) - len(form) + 1):
                    last = first + len(form)
                    if any(taken[first:last]):
                        continue
                    if all(have[2] & want for have, want in zip(words[first:last], form, strict=True)):
                        hits.append((words[first][0], words[last - 1][1], entity))
                        taken[first:last] = [True] * len(form)
                        named.add(entity)
        spans = tuple(Span(start, end, text[start:end], entity) for start, end, entity in sorted(hits))
        return Matching(spans, "rules")

    def _others(self, entity: str) -> list[str]:
        return self.synonyms.get(entity.lower(), [])


class LanguageModelMatcher(Matcher):
    """Asks a language model, and takes the rules where its answer cannot be read.

    With the folder of Vicuna as source it is the system's own chat model; any causal model of transformers will do.
    Decoding is greedy. A tokenizer without chat template gets the `###Human: ... ###Assistant:` of the chat.

    Args:
        source: hub id or folder of a causal language model with its tokenizer.
        dtype: of its weights.
        max_new_tokens: longest answer.
        max_prompt_tokens: longest question; a longer one is answered by the rules. None = what the model's config
            gives as its positions.
        style: `released` asks and reads as the released code does: the list is printed as `dict_keys([...])` and not
            closed, answers are split at " - " and taken as they stand. `robust` mends both.
        synonyms: of the rules behind it.
    """

    def __init__(
        self,
        source: str,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        max_new_tokens: int = 256,
        max_prompt_tokens: int | None = None,
        style: Style = "robust",
        synonyms: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"matcher.init_args.max_new_tokens is {max_new_tokens}, wanted 1 or more")
        self.chat = ChatModel(
            source,
            dtype,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            key="matcher.init_args.source",
        )
        self.source = source
        self.style: Style = style
        self.rules = RuleMatcher(synonyms)
        super().__init__(
            source=file_identity(source),
            dtype=dtype,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            style=style,
            rules=self.rules.identity,
        )

    def match(self, text: str, entities: Sequence[str]) -> Matching:
        """See the class. Nothing is asked when text or entities are empty."""
        if not text.strip() or not entities:
            return Matching((), self.source)
        try:
            answer = self.answer(build_messages(text, entities, self.style))
        except TooLongError as error:
            return self._by_rules(text, entities, str(error), None)
        return read_matching(text, entities, answer, by=self.source, style=self.style, rules=self.rules)

    def answer(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What the model writes next. The published examples answer in the role `system`, which templates refuse."""
        spoken = [
            {**turn, "role": "assistant" if turn["role"] == "system" and place else turn["role"]}
            for place, turn in enumerate(messages)
        ]
        self.chat.device = self.device
        return self.chat.answer([spoken])[0]

    def _by_rules(self, text: str, entities: Sequence[str], why: str, answer: str | None) -> Matching:
        return Matching(self.rules.match(text, entities).spans, "rules", f"{why}; the rules were used", answer)


# -- the question -------------------------------------------------------------------------------------------------

SYSTEM_TEXT = (
    "You get a list of things that were found in a picture, and a text about the picture. Find the words of the text "
    "that name a thing of the list, in the same or in similar words. Write one pair a line: the words exactly as they "
    "stand in the text, then ' - ', then the thing exactly as it stands in the list. Use every stretch of the text at "
    "most once. Write nothing else."
)
"""Our own words: the published ones ask for the same."""

EXAMPLES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("cat", "sofa", "black cat", "cushion"),
        "A black cat sleeps on the old sofa",
        "black cat - black cat\nold sofa - sofa",
    ),
    (
        ("woman", "bus", "city bus", "road", "umbrella"),
        "A lady with an umbrella waits for the bus.",
        "lady - woman\numbrella - umbrella\nbus - city bus",
    ),
    (
        ("boat", "lake", "mountain", "water"),
        "Two small boats drift on a calm lake, with mountains far behind.",
        "small boats - boat\nlake - lake\nmountains - mountain",
    ),
    (
        ("child", "kite", "beach", "sea", "sand"),
        "The picture shows kids who fly a kite. The sand is wet, and the kite is red.",
        "kids - child\nkite - kite\nsand - sand",
    ),
    (
        ("plate dish", "spoon", "soup", "bread loaf", "table"),
        "On a wooden table stands a dish of soup, next to a piece of bread.",
        "wooden table - table\ndish - plate dish\nsoup - soup\nbread - bread loaf",
    ),
    (
        ("piano", "pianist", "stage", "curtain"),
        "It is quiet in the hall, and nobody has come yet.",
        "",
    ),
)
"""(things, text, answer), six as published; the texts are ours."""


def build_messages(text: str, entities: Sequence[str], style: Style = "robust") -> list[dict[str, str]]:
    """The question with its examples, 14 messages as published.

    Args:
        text: whose words to match.
        entities: the things found.
        style: `released` prints the list of the question as `dict_keys([...])` and does not close it.

    Returns:
        {"role", "content"}: system, six times user and system, user. The published answers stand in the role `system`.
    """
    messages = [{"role": "system", "content": SYSTEM_TEXT}]
    for listed, example, answer in EXAMPLES:
        messages.append({"role": "user", "content": user_message(example, listed)})
        messages.append({"role": "system", "content": answer})
    messages.append({"role": "user", "content": user_message(text, entities, style)})
    return messages


def user_message(text: str, entities: Sequence[str], style: Style = "robust") -> str:
    """The list and the text in their tags; see `build_messages`."""
    listed = repr(list(entities))
    if style == "released":
        return f"<List>dict_keys({listed})<List><Text>{text}</Text>"
    return f"<List>{listed}</List><Text>{text}</Text>"


# -- the answer ---------------------------------------------------------------------------------------------------


def read_matching(
    text: str, entities: Sequence[str], answer: str, *, by: str, style: Style, rules: RuleMatcher
) -> Matching:
    """Spans out of an answer, or out of the rules where it holds no pair of these words and things.

    Args:
        text: the text that was asked about.
        entities: the things.
        answer: what came back.
        by: who answered.
        style: see `parse_answer`.
        rules: taken instead of an answer without any pair.
    """
    pairs = parse_answer(answer, entities, style)
    spans = place_pairs(text, pairs, style)
    if spans:
        return Matching(spans, by, answer=answer)
    said = " ".join(answer.split())
    shown = f"{said[:60]}..." if len(said) > 60 else said
    why = f"the answer of {by} has no pair of words of the text and things of the picture ({shown!r})"
    return Matching(rules.match(text, entities).spans, "rules", f"{why}; the rules were used", answer)


def parse_answer(answer: str, entities: Sequence[str], style: Style = "robust") -> list[tuple[str, str]]:
    """The pairs of an answer whose thing is one of `entities`.

    Args:
        answer: lines `words - thing`; every other line is left out.
        entities: the things.
        style: `released` wants " - " exactly, lower-cases both sides and compares the rest as it stands. `robust` also
            reads dashes, arrows, bullets, numbers and quotes, and compares things without case.

    Returns:
        (words, thing as it stands in `entities`), in the order of the answer.
    """
    pairs = []
    known = {entity if style == "released" else entity.strip().lower(): entity for entity in entities}
    for line in answer.split("\n"):
        if style == "released":
            name, dash, thing = line.partition(" - ")
            name, thing = name.lower(), thing.lower()
        else:
            name, dash, thing = _split_line(line)
            thing = thing.lower()
        if dash and thing in known and (name or style == "released"):
            pairs.append((name, known[thing]))
    return pairs


def _split_line(line: str) -> tuple[str, str, str]:
    parts = _SEPARATOR.split(_BULLET.sub("", line.strip()), maxsplit=1)
    if len(parts) < 2:
        return line, "", ""
    return parts[0].strip(_QUOTES), "-", parts[1].strip(_QUOTES + ".,;")


def place_pairs(text: str, pairs: Sequence[tuple[str, str]], style: Style = "robust") -> tuple[Span, ...]:
    """Where the words of the pairs stand: their first place in the text, whatever the case.

    Args:
        text: the text.
        pairs: words and thing.
        style: `released` finds "car" in "scarf" too. `robust` looks for whole words first.

    Returns:
        Spans in the order of the text; one that begins inside another is left out, and so are words that are nowhere.
    """
    return tuple(span for _, span in _placed(text, pairs, style))


def _placed(text: str, pairs: Sequence[tuple[str, str]], style: Style) -> list[tuple[int, Span]]:
    """Spans with their number among all that were found, those left out included, from 1."""
    found = []
    for name, entity in pairs:
        if style == "released":
            start = text.lower().find(name)
            end = start + len(name)
        else:
            words = r"\s+".join(re.escape(word) for word in name.split())
            hit = re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) or re.search(words, text, re.IGNORECASE)
            start, end = hit.span() if hit and words else (-1, -1)
        if start >= 0:
            found.append((start, end, entity))
    placed: list[tuple[int, Span]] = []
    free = 0
    for number, (start, end, entity) in enumerate(sorted(found, key=lambda each: each[0]), start=1):
        if start >= free:
            placed.append((number, Span(start, end, text[start:end], entity)))
            free = end
    return placed


@dataclass
class Highlight:
    """The released code's result.

    Attributes:
        pieces: (piece of the text, number of its entity or None).
        match_state: words of the answer to thing, also where the words are nowhere in the text.
        colours: number to colour.
    """

    pieces: list[tuple[str, str | None]] = field(default_factory=list)
    match_state: dict[str, str] = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)


def highlight_released(text: str, answer: str, colours: Mapping[str, str]) -> Highlight:
    """What the released code makes of an answer, with its flaws.

    A single character behind the last span is lost, and a text that ends in a span gets an empty piece.

    Args:
        text: the text.
        answer: of the language model.
        colours: colour of each thing.
    """
    pairs = parse_answer(answer, list(colours), "released")
    result = Highlight(match_state=dict(pairs))
    done = 0
    for number, span in _placed(text, pairs, "released"):
        if span.start != done:
            result.pieces.append((text[done : span.start], None))
        result.pieces.append((span.text, str(number)))
        result.colours[str(number)] = colours[span.entity]
        done = span.end
    if done != len(text) - 1:
        result.pieces.append((text[done:], None))
    return result


def cut_text(text: str, spans: Sequence[Span], label: Callable[[Span], str]) -> list[tuple[str, str | None]]:
    """The text in pieces, none of it lost: (piece, label of its span or None)."""
    pieces: list[tuple[str, str | None]] = []
    done = 0
    for span in spans:
        if span.start > done:
            pieces.append((text[done : span.start], None))
        pieces.append((span.text, label(span)))
        done = span.end
    if done < len(text):
        pieces.append((text[done:], None))
    return pieces


def entity_colours(entities: Sequence[str]) -> dict[str, str]:
    """A colour for each entity, in their order; after eleven they begin again."""
    return {entity: COLOURS[number % len(COLOURS)] for number, entity in enumerate(dict.fromkeys(entities))}


# -- words --------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_BULLET = re.compile(r"^(?:[-*•]\s+|\(?\d+[.):]\s*)")
_SEPARATOR = re.compile(r"\s+[-–—]+\s+|\s*(?:->|=>|→|—)\s*")
_QUOTES = " \t\"'`*“”‘’"
_IRREGULAR = {
    "children": "child", "people": "person", "persons": "person", "feet": "foot",
    "teeth": "tooth", "geese": "goose", "mice": "mouse", "oxen": "ox", "leaves": "leaf", "knives": "knife",
    "wolves": "wolf", "loaves": "loaf", "shelves": "shelf", "calves": "calf", "halves": "half", "scarves": "scarf",
    "wives": "wife", "lives": "life", "thieves": "thief",
}  # fmt: skip


def _lemmas(word: str) -> frozenset[str]:
    """The forms that a word may stand for: itself, and what it may be the plural of."""
    form = re.sub(r"['’]s?$", "", word.casefold())
    forms = {form}
    if form in _IRREGULAR:
        forms.add(_IRREGULAR[form])
    elif form.endswith("men"):
        forms.add(f"{form[:-3]}man")
    if len(form) > 3 and form.endswith("s") and not form.endswith(("ss", "us", "is")):
        forms.add(form[:-1])
        if form.endswith("ies"):
            forms.add(f"{form[:-3]}y")
        if form.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            forms.add(form[:-2])
    return frozenset(forms)


def _names_of(name: str) -> list[frozenset[str]]:
    return [_lemmas(word) for word in _WORD.findall(name)]


def _forms(name: list[frozenset[str]]) -> list[list[frozenset[str]]]:
    """A name as it stands, and "cup of coffee" for "coffee cup"."""
    if len(name) != 2:
        return [name]
    return [name, [name[1], frozenset({"of"}), name[0]]]
