"""The whole model at toy size: what it takes, what is trained, what it starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avcap_zoo.errors import ConfigError, ShapeError, WeightsError
from avcap_zoo.systems.bubogpt.keymap import model_to_bubogpt
from avcap_zoo.systems.bubogpt.model import BuboGPTModel
from avcap_zoo.systems.bubogpt.module import BuboGPT
from avcap_zoo.systems.bubogpt.prompts import PromptSettings
from tests.integration.tiny_bubogpt import mixed_batch, tiny_bubogpt

TRAINED = {
    ("frozen", "full"): ("audio_joiner.",),
    ("projection", "projection"): ("vision_joiner.projection.", "audio_joiner.projection."),
    ("projection", "frozen"): ("vision_joiner.projection.",),
}


def built(system: BuboGPT) -> BuboGPTModel:
    torch.manual_seed(0)
    system.configure_model()
    return system.model


def test_a_mixed_batch_costs_what_its_clips_cost_alone() -> None:
    model = built(tiny_bubogpt()).eval()
    batch = mixed_batch()
    with torch.no_grad():
        together = model(batch)["caption"]
        alone = [model(mixed_part(index))["caption"] for index in range(4)]
    # Every answer has the same tokens, so the mean of the means is the mean.
    assert torch.allclose(together, torch.stack(alone).mean(), atol=1e-5)


def mixed_part(index: int) -> object:
    from dataclasses import fields, replace

    batch = mixed_batch()
    changed = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name not in {"skipped", "feature_keys"}}
    return replace(batch, **{name: value[index : index + 1] for name, value in changed.items() if value is not None})


def test_captions_of_every_kind_of_clip() -> None:
    captions = built(tiny_bubogpt()).eval().caption(mixed_batch())
    assert len(captions) == 4
    assert all("#" not in caption for caption in captions)


@pytest.mark.parametrize(("vision", "audio"), TRAINED)
def test_what_is_frozen_stays_as_it_is(vision: str, audio: str) -> None:
    model = built(tiny_bubogpt(vision=vision, audio=audio))  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(mixed_batch())["caption"].backward()
    moved = TRAINED[vision, audio]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith(moved), name
    optimizer.step()
    for name, value in model.state_dict().items():
        # The Q-Former's key biases have no influence: softmax does not see them.
        if name.startswith(moved) and not name.endswith("key.bias"):
            assert not torch.equal(value, before[name]), name
        elif not name.startswith(moved):
            assert torch.equal(value, before[name]), name


def test_frozen_parts_have_no_dropout_and_trained_ones_do() -> None:
    model = built(tiny_bubogpt())
    for _ in range(2):
        assert model.audio_joiner is not None
        assert model.vision_joiner is not None
        assert model.audio_joiner.qformer.training
        assert not model.vision_joiner.qformer.training
        assert not model.language.training
        model.eval().train()


def test_a_stage_starts_from_the_checkpoint_of_another(tmp_path: Path) -> None:
    first = built(tiny_bubogpt())
    path = tmp_path / "first.ckpt"
    torch.save({"state_dict": {f"model.{n}": t for n, t in first.state_dict().items()}, "epoch": 1}, path)
    second = built(tiny_bubogpt(audio="projection", start_from=str(path)))
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in second.state_dict().items())
    # What stays as the file has it needs no place in the next checkpoint.
    assert second.self_made == ["audio_joiner.projection", "vision_joiner.projection"]
    torch.save({"state_dict": {"model.unknown.weight": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match=r"start_from: .* 1 unknown: unknown.weight"):
        built(tiny_bubogpt(start_from=str(path)))


def test_it_starts_from_an_official_checkpoint(tmp_path: Path) -> None:
    first = built(tiny_bubogpt())
    held = {n: t for n, t in first.state_dict().items() if n.startswith(("audio_joiner.", "vision_joiner.proj"))}
    torch.save({"model": model_to_bubogpt(held)}, tmp_path / "bubogpt.pth")
    torch.manual_seed(1)
    system = tiny_bubogpt(audio="projection", start_from=str(tmp_path / "bubogpt.pth"))
    system.configure_model()
    state = system.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in held.items())
    assert "audio_joiner.qformer" not in system.model.self_made
    assert "vision_joiner.qformer" in system.model.self_made


@pytest.mark.parametrize(
    ("has", "question", "said"),
    [
        ("picture", "<Audio><ModalityHere></Audio> What?", "clip0: its question names audio, and the clip has none"),
        ("sound", "<Vision><ModalityHere></Vision> What?", "clip0: its question names vision"),
        ("both", "<Audio><ModalityHere></Audio> <ModalityHere>", "may stand once"),
    ],
)
def test_a_question_about_what_is_not_there_is_refused(has: str, question: str, said: str) -> None:
    model = built(tiny_bubogpt())
    with pytest.raises(ConfigError, match=said):
        model(mixed_batch([has], [question]))


def test_a_clip_of_nothing_is_refused_without_a_question() -> None:
    batch = mixed_batch(["none"])
    batch.instruction = None
    with pytest.raises(ConfigError, match="clip0 has neither picture nor sound nor question"):
        built(tiny_bubogpt())(batch)


def test_without_questions_templates_or_nothing_stand_around_the_tokens() -> None:
    batch = mixed_batch(["sound", "sound"])
    batch.instruction = None
    bare = built(tiny_bubogpt(prompts=PromptSettings(templates=(), wrapper="", max_text_tokens=64)))
    row = bare.rows(batch, answers=False)[0]
    assert (row.slices, row.modalities) == ([[], []], ["audio"])
    asked = built(tiny_bubogpt()).eval().rows(batch, answers=False)[0]
    assert len(asked.slices[1]) > 10


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"wrapper": "###Human: ###"}, "wrapper"),
        ({"max_text_tokens": 0}, "max_text_tokens is 0"),
        ({"end": ""}, "end is empty"),
        ({"end": "\n"}, "makes no token"),
        ({"templates": ("<ModalityHere>",)}, "templates"),
    ],
)
def test_wrong_prompts_are_refused(prompts: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        built(tiny_bubogpt(prompts=PromptSettings(**prompts)))  # type: ignore[arg-type]


def test_a_model_of_one_modality() -> None:
    model = built(tiny_bubogpt(modalities=("audio",))).eval()
    assert model.vision_encoder is None
    assert [row.modalities for row in model.rows(mixed_batch(), answers=False)] == [[], ["audio"], ["audio"], []]
    with pytest.raises(ConfigError, match="lacks vision"):
        model.encode_vision(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="modalities is empty"):
        built(tiny_bubogpt(modalities=()))
    with pytest.raises(ShapeError, match="sound 0"):
        model.encode_audio(torch.zeros(1, 10), torch.tensor([0]))


def test_a_norm_without_its_encoder_is_refused() -> None:
    system = tiny_bubogpt()
    system.vision.norm_checkpoint = "blip2.pth"
    with pytest.raises(ConfigError, match="norm_checkpoint alone"):
        built(system)


def test_a_checkpoint_holds_what_has_no_other_home() -> None:
    system = tiny_bubogpt(modalities=("audio",))
    model = built(system)
    held = system.checkpoint_names()
    assert {name.removeprefix("model.") for name in held} == set(model.state_dict())
    model.self_made = []  # as if every part had a file
    assert system.checkpoint_names() == {
        f"model.{name}" for name in model.state_dict() if name.startswith("audio_joiner.")
    }


def test_without_weights_pictures_and_sounds_still_differ() -> None:
    model = built(tiny_bubogpt()).eval()
    pictures = torch.randint(0, 256, (2, 3, 40, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sounds = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.01], [0.3]])
    with torch.no_grad():
        seen = model.encode_vision(pictures)
        heard = model.encode_audio(sounds, torch.tensor([16_000, 16_000]))
    for tokens in (seen, heard):
        assert (tokens[0] - tokens[1]).abs().max() > 1e-4


def test_the_text_branch_gets_gradients_of_zero() -> None:
    system = tiny_bubogpt()
    system.audio_joiner.text_branch = True
    model = built(system)
    model(mixed_batch())["caption"].backward()
    assert model.audio_joiner is not None
    assert model.audio_joiner.text_branch is not None
    gradients = [parameter.grad for parameter in model.audio_joiner.text_branch.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
