from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avcap_zoo.backbones.chat_model import ChatModel, TooLongError
from avcap_zoo.errors import WeightsError
from tests.unit.systems.bubogpt.tiny_finders import save_language_model


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "a dog"}, {"role": "user", "content": text}]


def test_a_batch_answers_as_each_alone(tmp_path: Path) -> None:
    model = ChatModel(save_language_model(tmp_path), "float32", max_new_tokens=6, key="--model")
    for weights in model._loaded[1].parameters():
        torch.nn.init.normal_(weights)  # as they come, such small weights say the same whatever is asked
    questions = [asked("dog"), asked("a dog and a car on a street with a cat"), asked("car car")]
    together = model.answer(questions)
    assert together == [model.answer([question])[0] for question in questions]
    assert len(set(together)) > 1


def test_vicunas_turns_without_a_template(tmp_path: Path) -> None:
    model = ChatModel(save_language_model(tmp_path), "float32", max_new_tokens=2, key="--model")
    tokenizer, _ = model._loaded
    turns = [*asked("dog"), {"role": "assistant", "content": "cat"}, {"role": "user", "content": "car"}]
    wanted = "a dog###Human: dog###Assistant: cat###Human: car###Assistant:"
    assert model._tokens(turns) == tokenizer(wanted).input_ids


def test_what_does_not_fit_and_what_is_not_there(tmp_path: Path) -> None:
    model = ChatModel(save_language_model(tmp_path, positions=16), "float32", max_new_tokens=8, key="--model")
    with pytest.raises(TooLongError, match=r"the question has \d+ tokens, too many for"):
        model.answer([asked("dog " * 20)])
    with pytest.raises(WeightsError, match=r"--model: cannot load"):
        ChatModel(str(tmp_path / "missing"), key="--model").answer([asked("dog")])
