"""Captions and back: every sentence the grammar makes is read as it was meant; nonsense is never an error."""

from __future__ import annotations

import numpy as np
import pytest

from avcap_zoo.data_modules.scenes.events import EVENTS
from avcap_zoo.data_modules.scenes.grammar import (
    EventMention,
    ParsedCaption,
    events_correct,
    fully_correct,
    parse_caption,
    picture_captions,
    split_words,
    terse_caption,
    vocabulary,
)
from avcap_zoo.data_modules.scenes.published_forms import annotate
from avcap_zoo.data_modules.scenes.scene import detailed_caption, sample_scene, still_captions, terse_captions


def test_parser_inverts_every_sentence() -> None:
    words: set[str] = set()
    known = set(vocabulary())
    sentences: set[str] = set()
    for index in range(1000):
        scene = sample_scene(7, "train", index)
        for caption in (*terse_captions(scene, 3), detailed_caption(scene)):
            assert fully_correct(caption, scene), caption
            assert events_correct(caption, scene)
            sentences.add(caption)
            words.update(split_words(caption))
        for caption in still_captions(scene, scene.duration_s / 3):
            assert parse_caption(caption).events == (), caption
            words.update(split_words(caption))
    assert len(sentences) > 3000
    assert words <= known


def test_vocabulary_is_sorted_and_holds_nothing_unused() -> None:
    words = vocabulary()
    assert words == sorted(set(words))
    used = {
        word
        for index in range(800)
        for scene in [sample_scene(0, "train", index)]
        for caption in (*terse_captions(scene, 5), *still_captions(scene, 0.1), detailed_caption(scene))
        for word in split_words(caption)
    }
    assert set(words) == used


def test_terse_captions_need_only_white_space_tokens() -> None:
    known = set(vocabulary())
    for index in range(200):
        for caption in terse_captions(sample_scene(0, "val", index)):
            tokens = caption.split(" ")
            assert set(tokens) <= known
            assert 2 <= len(tokens) <= 15


def test_confusable_pairs_share_only_what_they_must() -> None:
    def same(first: str, second: str, attribute: str) -> bool:
        return bool(getattr(EVENTS[first], attribute) == getattr(EVENTS[second], attribute))

    for first, second in (
        ("rain falling", "food sizzling"),
        ("hammer pounding", "person walking"),
        ("phone ringing", "microwave beeping"),
        ("car driving", "truck driving"),
    ):
        assert same(first, second, "sound")
        assert not same(first, second, "picture")
    for first, second in (
        ("car driving", "car honking"),
        ("truck driving", "siren wailing"),
        ("dog barking", "dog growling"),
    ):
        assert same(first, second, "picture")
        assert not same(first, second, "sound")


def test_every_clause_names_one_event() -> None:
    generator = np.random.default_rng(0)
    for name in EVENTS:
        for _ in range(20):
            assert parse_caption(terse_caption([EventMention(name)], "single", generator)).events == (name,)


@pytest.mark.parametrize(
    ("text", "events", "relation"),
    [
        ("a dog barks after a bell rings", ("bell ringing", "dog barking"), "then"),
        ("a dog barks before a bell rings", ("dog barking", "bell ringing"), "then"),
        ("while a bell rings, a dog barks", ("bell ringing", "dog barking"), "while"),
        ("A dog barks. Then a bell rings.", ("dog barking", "bell ringing"), "then"),
        ("a dog barks and a bell rings", ("dog barking", "bell ringing"), ""),
        ("a dog barks followed by a a a", ("dog barking",), "then"),
        ("a dog barks then a bell rings while rain falls", ("dog barking", "bell ringing", "rain falling"), "mixed"),
        ("a dog rings", (), ""),
        ("barks", (), ""),
        ("", (), ""),
        ("!!! .. 123 <unk> \x00 é 犬", (), ""),
    ],
)
def test_model_made_captions_are_read_as_far_as_they_go(text: str, events: tuple[str, ...], relation: str) -> None:
    parsed = parse_caption(text)
    assert parsed.events == events
    assert parsed.relation == relation


def test_random_words_never_raise() -> None:
    generator = np.random.default_rng(0)
    words = vocabulary()
    for _ in range(2000):
        text = " ".join(generator.choice(words, int(generator.integers(0, 20))))
        parsed = parse_caption(text)
        assert len(parsed.adverbs) == len(parsed.events)


def test_adverbs_belong_to_their_own_verb() -> None:
    parsed = parse_caption("a dog barks quickly and loudly then faintly a bell rings")
    assert parsed.adverbs == (("loud", "fast"), ("quiet", "normal"))
    assert parse_caption("a dog loudly barks").adverbs == (("loud", "normal"),)


def test_order_matters_for_then_and_not_for_while() -> None:
    then = ParsedCaption(("dog barking", "bell ringing"), "then", (("normal", "normal"), ("loud", "normal")))
    assert events_correct("a dog barking followed by a bell chiming", then)
    assert not events_correct("a bell rings followed by a dog barking", then)
    assert not events_correct("a dog barks while a bell rings", then)
    assert not events_correct("a dog barks", then)
    assert fully_correct("a dog barks then a bell rings loudly", then)
    assert not fully_correct("a dog barks then a bell rings", then)
    assert not fully_correct("a dog barks loudly then a bell rings", then)
    assert not fully_correct("a dog barks quickly then a bell rings loudly", then)
    during = ParsedCaption(then.events, "while", then.adverbs)
    assert fully_correct("a bell rings loudly while a dog barks", during)
    assert not fully_correct("a bell rings while a dog barks loudly", during)
    assert not events_correct("", ParsedCaption((), "", ()))


def test_truth_may_be_a_scene_an_annotation_or_a_reference() -> None:
    for index in range(30):
        scene = sample_scene(0, "test", index)
        candidate = terse_captions(scene)[0]
        assert fully_correct(candidate, annotate(scene))
        assert fully_correct(candidate, terse_captions(scene)[1])
        assert not events_correct(candidate, sample_scene(0, "test", index, relation="single").clip_id)


def test_wrong_counts_are_refused() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="takes 2"):
        terse_caption([EventMention("dog barking")], "then", generator)
    with pytest.raises(ValueError, match="needs an object"):
        picture_captions([], "grey", generator)
