"""The two prompts, and two ways to read a caption."""

from __future__ import annotations

from typing import Any

import pytest

from avcap_zoo.backbones.language import word_piece_tokenizer
from avcap_zoo.systems.zeraucap.prompts import KeywordPromptSettings, build_prompt, full_text, read_caption

RELEASED, PAPER = KeywordPromptSettings(), KeywordPromptSettings(grammar="paper")


@pytest.mark.parametrize(
    ("keywords", "released", "paper"),
    [
        ([], "This is a sound of ", "This is a sound of"),
        (["Car"], "Objects: , and a Car. This is a sound of ", "Objects: Car. This is a sound of"),
        (["Speech", "Owl"], "Objects: Speech, and an Owl. This is a sound of ",
         "Objects: Speech, Owl. This is a sound of"),
        (["a", "b", "Hour"], "Objects: a, b, and a Hour. This is a sound of ",
         "Objects: a, b, Hour. This is a sound of"),
    ],
)  # fmt: skip
def test_both_grammars(keywords: list[str], released: str, paper: str) -> None:
    assert build_prompt(keywords, RELEASED) == released
    assert build_prompt(keywords, PAPER) == paper


def test_texts_of_ones_own() -> None:
    own = KeywordPromptSettings(text="This is the sound of ", keyword_text="Heard: ")
    assert build_prompt(["Car", "Engine"], own) == "Heard: Car, and an Engine. This is the sound of "


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_piece_tokenizer()


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def read(tokenizer: Any, prompt: str, new: str, **settings: Any) -> str:
    prompt_ids = [tokenizer.bos_token_id, *ids_of(tokenizer, prompt)]
    own = KeywordPromptSettings(text="this is a sound of ", keyword_text="objects: ", **settings)
    return read_caption(tokenizer, prompt_ids, ids_of(tokenizer, new), own)


PROMPT = "objects: dog, and a car. this is a sound of "


@pytest.mark.parametrize(
    ("new", "continuation", "released"),
    [
        ("a dog barks.", "a dog barks.", "a dog barks."),
        ("a dog</s> and a cat", "a dog", "a dog"),
        ("a dog. this is a sound of rain", "a dog. this is a sound of rain", "rain"),
        ("", "", "objects : dog, and a car. this is a sound of"),
        ("</s>", "", "objects : dog, and a car. this is a sound of"),
    ],
)
def test_both_readings(tokenizer: Any, new: str, continuation: str, released: str) -> None:
    assert read(tokenizer, PROMPT, new) == continuation
    assert read(tokenizer, PROMPT, new, caption="released") == released


def test_the_paper_prompt_is_found_without_its_space(tokenizer: Any) -> None:
    prompt = "objects: dog. this is a sound of"
    assert read(tokenizer, prompt, "rain", caption="released", grammar="paper") == "rain"
    assert read(tokenizer, prompt, "", caption="released", grammar="paper") == ""


def test_text_up_to_the_next_begin_or_end_token(tokenizer: Any) -> None:
    dog, cat = ids_of(tokenizer, "a dog"), ids_of(tokenizer, "cat")
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for ids in ([begin, *dog, end, *cat], [*dog, begin, *cat], [begin, *dog]):
        assert full_text(tokenizer, ids) == "a dog"
    assert full_text(tokenizer, [begin, begin, *dog]) == ""
    assert full_text(tokenizer, []) == ""
