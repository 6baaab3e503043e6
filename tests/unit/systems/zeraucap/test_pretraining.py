"""The small models that stand for the large ones: their texts, their loss, and what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from avcap_zoo.backbones.language import LanguageSettings
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.base import OptimizerSettings
from avcap_zoo.systems.zeraucap.pretraining import (
    CLAPPretraining,
    LanguagePretraining,
    contrastive_loss,
    named_keywords,
)
from avcap_zoo.systems.zeraucap.prompts import KeywordPromptSettings
from tests.unit.systems.zeraucap.toy import AUDIO_TEXT, LANGUAGE, WORDS, keyword_file


def language_pretraining(folder: Path, **options: Any) -> LanguagePretraining:
    arguments: dict[str, Any] = {"num_keywords": 2, "bare_share": 0.0, "wrong_share": 0.0, **options}
    return LanguagePretraining(
        language=LanguageSettings(source=None, config=LANGUAGE, dtype="float32", training="full"),
        keywords=str(keyword_file(folder)),
        prompts=KeywordPromptSettings(),
        save_to=str(folder / "saved"),
        optimizer=OptimizerSettings(),
        **arguments,
    )


@pytest.mark.parametrize(
    ("captions", "wanted"),
    [
        (["A dog barks loudly"], ["dog barking"]),
        (["rain falls", "a bell is ringing"], ["rain"]),
        (["the bell rings then wind blows"], ["bell ringing", "wind blowing"]),
        (["a dog growls while an engine barks"], []),
        (["a scar"], []),
        ([], []),
    ],
)
def test_keywords_that_captions_name(captions: list[str], wanted: list[str]) -> None:
    assert named_keywords(captions, WORDS) == wanted


def test_texts_name_the_right_keywords_unless_told_otherwise(tmp_path: Path) -> None:
    system = language_pretraining(tmp_path)
    texts = {system.text("a dog barks.", ["a dog barks.", "rain"]) for _ in range(20)}
    assert texts == {
        "Objects: dog barking, and a rain. This is a sound of a dog barks.",
        "Objects: rain, and a dog barking. This is a sound of a dog barks.",
    }
    filled = {system.text("a dog barks", ["a dog barks"]) for _ in range(40)}
    assert all("dog barking" in text for text in filled)
    assert len(filled) > 4
    assert language_pretraining(tmp_path, bare_share=1.0).text("a dog", ["a dog"]) == "This is a sound of a dog."
    wrong = {language_pretraining(tmp_path, wrong_share=1.0).text("x", ["a dog barks"]) for _ in range(10)}
    assert not any("dog barking" in text for text in wrong)


def test_contrastive_loss_is_the_mean_of_both_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    sounds, texts = (F.normalize(torch.randn(4, 5, generator=generator), dim=1) for _ in range(2))
    found = contrastive_loss(sounds, texts, torch.tensor(3.0), torch.tensor(7.0))
    one_way = -(3 * sounds @ texts.T).log_softmax(dim=1).diagonal().mean()
    other_way = -(7 * sounds @ texts.T).log_softmax(dim=0).diagonal().mean()
    torch.testing.assert_close(found, (one_way + other_way) / 2)


def test_only_a_clap_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audio_text\.kind is wavcaps, only clap"):
        CLAPPretraining(AUDIO_TEXT, str(keyword_file(tmp_path)), str(tmp_path), OptimizerSettings())


def test_more_keywords_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_keywords is 9, the list has 6"):
        language_pretraining(tmp_path, num_keywords=9)


def test_texts_of_sounds_are_captions_or_labels(tmp_path: Path) -> None:
    def texts(share: float, captions: list[str]) -> set[str]:
        clap = replace(AUDIO_TEXT, kind="clap")
        words, saved = str(keyword_file(tmp_path)), str(tmp_path / "saved")
        system = CLAPPretraining(clap, words, saved, OptimizerSettings(), keyword_share=share)
        return {system.text("a dog barks", captions) for _ in range(30)}

    assert texts(0.0, ["rain falls"]) == {"a dog barks"}
    assert texts(1.0, ["rain falls", "a dog barks"]) == {"rain", "dog barking"}
    assert texts(1.0, ["nothing"]) == {"a dog barks"}
    assert texts(0.5, ["rain falls"]) == {"a dog barks", "rain"}
