"""Words that name things: by rules, and out of a language model's answers, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from avcap_zoo.errors import ConfigError, WeightsError
from avcap_zoo.systems.bubogpt.matching import (
    LanguageModelMatcher,
    RuleMatcher,
    cut_text,
    entity_colours,
    parse_answer,
    place_pairs,
    read_matching,
)
from tests.unit.systems.bubogpt.tiny_finders import save_language_model


def named(text: str, entities: list[str], **synonyms: list[str]) -> list[tuple[str, str]]:
    spans = RuleMatcher(synonyms).match(text, entities).spans
    assert all(text[span.start : span.end] == span.text for span in spans)
    assert [span.start for span in spans] == sorted(span.start for span in spans)
    return [(span.text, span.entity) for span in spans]


@pytest.mark.parametrize(
    ("text", "entities", "found"),
    [
        ("A brown dog and a dog.", ["dog", "brown dog"], [("brown dog", "brown dog"), ("dog", "dog")]),
        ("Trees line the street; CARS wait.", ["tree", "car"], [("Trees", "tree"), ("CARS", "car")]),
        ("a cup of coffee", ["coffee cup", "cup"], [("cup of coffee", "coffee cup")]),
        ("The train leaves.", ["passenger train"], [("train", "passenger train")]),
        ("The dog’s bowl, the boys' ball", ["dog", "boy"], [("dog’s", "dog"), ("boys", "boy")]),
        ("Women, children and firemen", ["woman", "child", "fireman"], None),
        ("two buses, three boxes, some cherries, glasses", ["bus", "box", "cherry", "glass"], None),
        ("„Café“—naïve Ärzte… 犬!", ["café", "犬"], [("Café", "café"), ("犬", "犬")]),
        ("(dog)...[cat]?!", ["dog", "cat"], [("dog", "dog"), ("cat", "cat")]),
        ("carpets scar", ["car", "pet"], []),
        ("İstanbul has a dog", ["dog"], [("dog", "dog")]),
        ("nothing", [], []),
        ("", ["dog"], []),
        ("a dog", ["...", "dog"], [("dog", "dog")]),
    ],
)
def test_rules(text: str, entities: list[str], found: list[tuple[str, str]] | None) -> None:
    got = named(text, entities)
    if found is None:
        assert [entity for _, entity in got] == entities
    else:
        assert got == found


def test_synonyms() -> None:
    assert named("A telephone rings.", ["phone"], phone=["telephone"]) == [("telephone", "phone")]


ANSWER = """Sure! Here are the pairs:
1. brown dog - Dog
- "the ball" – ball
* grass → lawn.
cat - unicorn
no pair here"""


def test_an_answer_is_read_robustly() -> None:
    assert parse_answer(ANSWER, ["dog", "ball", "lawn"]) == [
        ("brown dog", "dog"),
        ("the ball", "ball"),
        ("grass", "lawn"),
    ]
    assert parse_answer(ANSWER, ["dog", "ball", "lawn"], "released") == [("1. brown dog", "dog")]


def test_words_are_found_whole_first_and_across_line_breaks() -> None:
    (span,) = place_pairs("A scarf in a car.", [("car", "car")])
    assert span.start == 13
    (span,) = place_pairs("A scarf in a car.", [("car", "car")], "released")
    assert span.start == 3
    (span,) = place_pairs("A brown\n dog", [("Brown dog", "dog")])
    assert span.text == "brown\n dog"
    (span,) = place_pairs("İ İ dog", [("DOG", "dog")])
    assert span.text == "dog"
    assert place_pairs("a dog", [("wolf", "dog"), ("", "dog")]) == ()


@pytest.mark.parametrize("answer", ["", "I cannot help with that.", "wolf - dog", "dog - wolf", "\x00 - \n - - -"])
def test_an_answer_that_says_nothing_leaves_it_to_the_rules(answer: str) -> None:
    matching = read_matching("A dog.", ["dog"], answer, by="parrot", style="robust", rules=RuleMatcher())
    assert [span.text for span in matching.spans] == ["dog"]
    assert matching.by == "rules"
    assert matching.answer == answer
    assert matching.note.startswith("the answer of parrot has no pair")
    assert matching.note.endswith("the rules were used")
    assert "\n" not in matching.note


def test_an_answer_that_can_be_read_is_taken() -> None:
    matching = read_matching("A hound.", ["dog"], "hound - dog", by="parrot", style="robust", rules=RuleMatcher())
    assert [(span.text, span.entity) for span in matching.spans] == [("hound", "dog")]
    assert (matching.by, matching.note) == ("parrot", "")


def test_the_pieces_of_a_text_lose_nothing() -> None:
    text = "A dog and a cat."
    spans = RuleMatcher().match(text, ["dog", "cat"]).spans
    pieces = cut_text(text, spans, lambda span: span.entity)
    assert "".join(piece for piece, _ in pieces) == text
    assert [label for _, label in pieces] == [None, "dog", None, "cat", None]


def test_colours_begin_again() -> None:
    colours = entity_colours([f"thing {number}" for number in range(12)])
    assert colours["thing 11"] == colours["thing 0"] == "red"
    assert "grey" not in colours.values()


def test_a_language_model_is_asked_and_its_noise_is_not_taken(tmp_path: Path) -> None:
    matcher = LanguageModelMatcher(save_language_model(tmp_path / "model"), "float32", max_new_tokens=4)
    matching = matcher.match("A dog.", ["dog", "car"])
    assert matching.by == "rules"
    assert matching.answer is not None
    assert [span.entity for span in matching.spans] == ["dog"]
    assert matcher.match("A dog.", []).spans == ()
    assert matcher.match(" ", ["dog"]).by == matcher.source


def test_a_question_too_long_is_left_to_the_rules(tmp_path: Path) -> None:
    matcher = LanguageModelMatcher(save_language_model(tmp_path / "model", positions=64), "float32", max_new_tokens=4)
    matching = matcher.match("A dog.", ["dog"])
    assert (matching.by, matching.answer) == ("rules", None)
    assert "tokens, too many for" in matching.note


def test_a_chat_template_is_used(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "model")
    matcher = LanguageModelMatcher(folder, "float32", max_new_tokens=2)
    tokenizer, _ = matcher.chat._loaded
    tokenizer.chat_template = (
        "{% for turn in messages %}{% if not loop.first and turn.role == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{{ turn.content[:3] }} {% endfor %}"
    )
    assert matcher.match("A dog.", ["dog"]).answer is not None


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"matcher.init_args.max_new_tokens is 0"):
        LanguageModelMatcher("x", max_new_tokens=0)
    with pytest.raises(WeightsError, match=r"matcher.init_args.source: cannot load"):
        LanguageModelMatcher(str(tmp_path / "missing")).match("A dog.", ["dog"])
