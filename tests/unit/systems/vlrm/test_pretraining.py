"""Which captions the small models learn from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from avcap_zoo.backbones.pretrained import save_parts
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.base import OptimizerSettings
from avcap_zoo.systems.vlrm.captioner import CaptionerSettings
from avcap_zoo.systems.vlrm.pretraining import (
    BLIP2,
    BLIP2Pretraining,
    MatchingPretraining,
    draw_captions,
    keywords,
    told_share,
    with_wrong_tokens,
)
from tests.unit.systems.vlrm import toy


def test_captions_of_a_style() -> None:
    texts = ["a dog", "a red dog at the left", "a cat"]
    batch = Batch(["a"], [texts], [texts[0]])
    assert {draw_captions(batch, "terse")[0] for _ in range(40)} == {"a dog", "a cat"}
    assert {draw_captions(batch, "all")[0] for _ in range(60)} == set(texts)
    assert draw_captions(batch, "detailed") == [texts[1]]
    assert {draw_captions(batch, "terse", 0.5)[0] for _ in range(60)} == {"a dog", "a cat", "red dog left"}
    assert draw_captions(batch, "all", 1.0) == ["red dog left"]
    with pytest.raises(ConfigError, match="clip a has no caption to learn from"):
        draw_captions(Batch(["a"], [[]], [""]), "all")


def test_some_tokens_are_exchanged_with_a_text_of_the_same_length() -> None:
    row, others = [1, 2, 3, 4], [[1, 2, 3, 4], [1, 5, 3, 6], [7, 8]]
    seen = set()
    for _ in range(60):
        changed, truth = with_wrong_tokens(row, others)
        seen.add(tuple(changed))
        assert [math.isnan(value) for value in truth] == [True, False, True, False]
        assert [truth[place] for place in (1, 3)] == [float(changed[place] == row[place]) for place in (1, 3)]
    assert seen == {(1, 5, 3, 4), (1, 2, 3, 6), (1, 5, 3, 6)}


def test_a_text_of_a_length_of_its_own_is_replaced() -> None:
    assert with_wrong_tokens([1, 2, 3], [[7, 8]]) == ([7, 8], [0, 0])


def test_how_much_a_caption_tells() -> None:
    whole = "A red dog at the left."
    assert told_share(whole, whole) == 1
    assert told_share("There is a dog", whole) == pytest.approx(1 / 3)
    assert told_share(keywords(whole), whole) == 1
    assert told_share("two birds", whole) == 0
    assert told_share("", "") == 0


def test_the_matching_model_begins_with_what_the_captioner_sees_and_learns_on_its_tower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    captioner = BLIP2(toy.parts()["captioner"])
    save_parts(tmp_path, captioner.blip, captioner.tokenizer)
    system = MatchingPretraining(str(tmp_path), toy.QFORMER, str(tmp_path / "itm"), OptimizerSettings(), 3, 16)
    system.configure_model()
    matcher = system.model.matcher
    learnt = captioner.blip.qformer.state_dict()
    for name, tensor in learnt.items():
        assert torch.equal(matcher.qformer.state_dict()[name], tensor), name
    assert len(matcher.qformer.state_dict()) > len(learnt)  # it reads text, too
    assert torch.equal(matcher.query_tokens, captioner.blip.query_tokens)
    batch = toy.batch(4)
    batch.captions = [["a red ball", f"a red ball at the {place}"] for place in ("top", "left", "right", "bottom")]
    losses = system.training_loss(batch)
    assert set(losses) == {"matching", "tokens"}
    torch.stack([*losses.values()]).sum().backward()
    for part in (matcher.qformer, matcher.itm_head, system.model.token_head, matcher.vision_model.post_layernorm):
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())
    idle = [name for name, p in system.model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == [], "processes that train together wait for a gradient of everything"
    assert all(parameter.grad is None for parameter in matcher.vision_model.encoder.parameters())


@pytest.mark.parametrize(("words_steps", "idle"), [(1, "blip.language_model."), (0, "word_heads.")])
def test_everything_has_a_gradient_when_processes_average_it(words_steps: int, idle: str) -> None:
    captioner = CaptionerSettings(source=None, config=toy.PARTS | {"text_config": toy.TEXT}, dtype="float32")
    system = BLIP2Pretraining(captioner, "out", OptimizerSettings(), words_steps=words_steps)
    system.configure_model()
    batch = toy.batch(2)
    batch.captions = [["a dog", "a red dog"], ["a cat", "a cat at the left"]]
    torch.stack(list(system.training_loss(batch).values())).sum().backward()
    assert [name for name, p in system.model.named_parameters() if p.requires_grad and p.grad is None] == []
    system.on_before_optimizer_step(torch.optim.SGD(system.parameters(), lr=0.1))
    passed_over = [name for name, p in system.model.named_parameters() if p.requires_grad and p.grad is None]
    assert passed_over == [name for name, _ in system.model.named_parameters() if name.startswith(idle)]
