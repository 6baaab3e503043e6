"""Prompts cut into rows, rows put together."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.backbones.joiner import Modality
from avcap_zoo.backbones.language import CausalLanguageModel, LanguageSettings
from avcap_zoo.errors import ConfigError, ShapeError
from avcap_zoo.systems.bubogpt.prompts import (
    MARKER,
    PromptSettings,
    Row,
    answer_ids,
    assemble,
    matching_templates,
    modalities_in,
    prompt_row,
    with_markers,
)
from tests.integration.tiny_bubogpt import LANGUAGE


@pytest.fixture(scope="module")
def language() -> CausalLanguageModel:
    return CausalLanguageModel(LanguageSettings(source=None, config=LANGUAGE, dtype="float32", training="frozen"))


def test_modalities_in_the_order_of_the_prompt() -> None:
    assert modalities_in("<Audio><ModalityHere></Audio> <Vision><ModalityHere></Vision> x") == ["audio", "vision"]
    assert modalities_in("x") == []


@pytest.mark.parametrize(
    "prompt", [MARKER, f"<Video>{MARKER}</Video>", f"<Vision>{MARKER}</Audio>", f"<Audio>{MARKER}</Audio>" * 2]
)
def test_a_marker_out_of_place_is_refused(prompt: str) -> None:
    with pytest.raises(ConfigError, match="may stand once"):
        modalities_in(prompt)


def test_questions_get_markers_sound_first() -> None:
    assert with_markers("Q", ("vision", "audio")) == ("<Audio><ModalityHere></Audio> <Vision><ModalityHere></Vision> Q")
    own = "<Vision><ModalityHere></Vision> Q"
    assert with_markers(own, ("vision", "audio")) == own
    assert with_markers("Q", ()) == "Q"


def test_templates_of_exactly_these_modalities() -> None:
    templates = PromptSettings().templates
    assert [len(matching_templates(templates, m)) for m in (("vision",), ("audio",), ("vision", "audio"), ())] == [
        4,
        4,
        3,
        0,
    ]


@pytest.mark.parametrize("released", [False, True])
def test_an_over_long_question_keeps_the_assistants_tag_unless_as_released(
    language: CausalLanguageModel, released: bool
) -> None:
    settings = PromptSettings(max_text_tokens=40, released_layout=released)
    question = "<Vision><ModalityHere></Vision> " + "what is it " * 50
    row = prompt_row(language, settings, question, ("vision",), own=True)
    tail = language.tokenizer("###Assistant: ", add_special_tokens=False).input_ids
    assert len(row.slices[1]) == 40
    assert (row.slices[1][-len(tail) :] == tail) is not released
    answer = answer_ids(language, settings, "a dog " * 60)
    end = language.end_sequences("###")[0]
    assert len(answer) == 40
    assert (tuple(answer[-len(end) :]) == end) is not released
    assert len(prompt_row(language, settings, question, ("vision",), own=False).slices[1]) > 100


def test_no_room_for_a_question_is_refused(language: CausalLanguageModel) -> None:
    with pytest.raises(ConfigError, match="max_text_tokens is 5"):
        prompt_row(language, PromptSettings(max_text_tokens=5), "what is it", (), own=True)


def test_rows_of_all_kinds_in_one_batch(language: CausalLanguageModel) -> None:
    """Each row of a mixed batch equals the same row alone, but for padding on the right."""
    settings = PromptSettings()
    kinds: list[tuple[Modality, ...]] = [("vision",), ("audio",), ("vision", "audio"), ()]
    rows = []
    for kind in kinds:
        row = prompt_row(language, settings, with_markers("what is it", kind), kind, own=True)
        row.answer = answer_ids(language, settings, "a dog")
        rows.append(row)
    width = language.embed_dim
    tokens: dict[Modality, torch.Tensor] = {"vision": torch.randn(2, 3, width), "audio": torch.randn(2, 4, width)}
    text = assemble(language, rows, tokens)
    places = {"vision": iter((0, 1)), "audio": iter((0, 1))}
    for number, row in enumerate(rows):
        own: dict[Modality, torch.Tensor] = {
            m: tokens[m][[next(places[m])]] for m in ("vision", "audio") if m in row.modalities
        }
        alone = assemble(language, [row], own)
        length = alone.inputs_embeds.shape[1]
        assert torch.equal(text.inputs_embeds[number, :length], alone.inputs_embeds[0])
        assert torch.equal(text.labels[number, :length], alone.labels[0])
        assert text.attention_mask[number].sum() == length
        assert (text.labels[number] != -100).sum() == len(row.answer or [])
    with pytest.raises(ConfigError, match="same modalities"):
        assemble(language, rows, tokens, released_layout=True)
    with pytest.raises(ShapeError, match="3 foreign embeddings for 6 places"):
        assemble(language, rows[:3], {"vision": tokens["vision"][:1], "audio": tokens["audio"]})
    with pytest.raises(ShapeError, match="names audio"):
        assemble(language, [rows[1]], {})


def test_too_many_positions_are_refused_and_the_last_can_be_kept(language: CausalLanguageModel) -> None:
    row = Row([[5] * 600], [])
    with pytest.raises(ConfigError, match="601 tokens do not fit"):
        assemble(language, [row], {})
    assert assemble(language, [row], {}, last=100).inputs_embeds.shape[1] == 100
