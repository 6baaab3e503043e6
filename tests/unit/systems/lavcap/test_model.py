"""LAVCapModel: what is trained in which mode, and clips and files that are out of the ordinary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from avcap_zoo.backbones.adapters import TrainingMode
from avcap_zoo.backbones.audio.ced import FrontEnd
from avcap_zoo.backbones.language import PrefixedText
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ShapeError
from avcap_zoo.systems.lavcap.model import LAVCapModel
from tests.integration.tiny import tiny_lavcap

RATE_HZ = 16_000


def model(
    audio: TrainingMode = "lora", language: TrainingMode = "lora", front_end: FrontEnd = "kaldi", **changes: bool
) -> LAVCapModel:
    torch.manual_seed(0)
    system = tiny_lavcap(training="lora")
    system.audio.training, system.language.training = audio, language
    system.audio.encoder.front_end = front_end
    system.audio.augment_bins = system.audio.augment_frames = 0
    system.audio.mask_padding = changes.pop("mask_padding", False)
    system.configure_model()
    return system.model


def batch(*durations_s: float, loud: bool = True, visual_width: int = 32) -> Batch:
    """Noise, or silence, of given lengths, with features of two pictures each."""
    torch.manual_seed(1)
    waveforms = [torch.randn(int(s * RATE_HZ)) * 0.1 * loud for s in durations_s]
    return Batch(
        clip_ids=[f"clip{index}" for index in range(len(durations_s))],
        captions=[["a dog barks"] for _ in durations_s],
        caption=["a dog barks" for _ in durations_s],
        waveform=torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
        num_samples=torch.tensor([len(waveform) for waveform in waveforms]),
        visual_features=torch.randn(len(durations_s), 2, visual_width),
        frame_mask=torch.ones(len(durations_s), 2, dtype=torch.bool),
    )


# -- Table IV ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["frozen", "lora"])
@pytest.mark.parametrize("audio", ["frozen", "lora", "full"])
def test_gradients_exist_where_the_mode_says(audio: TrainingMode, language: TrainingMode) -> None:
    built = model(audio, language).train()
    for name, parameter in built.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    torch.stack(list(built(batch(2.0, 1.5)).values())).sum().backward()
    found = {name for name, parameter in built.named_parameters() if parameter.grad is not None}
    assert found == {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    always = {"fusion.logit_scale", "projector.weight", "projector.bias"}
    assert always <= found
    for part, mode in (("audio_encoder.", audio), ("language.", language)):
        names = {name for name, _ in built.named_parameters() if name.startswith(part)}
        adapters = {name for name in names if "lora_" in name}
        assert bool(adapters) == (mode == "lora")
        wanted = {"frozen": set(), "lora": adapters, "full": names}[mode]
        assert {name for name in found if name.startswith(part)} == wanted
    assert not any(name.startswith("vision_encoder.") for name in found)
    moved = [n for n in found if not n.endswith("k_proj.bias") and not dict(built.named_parameters())[n].grad.any()]  # type: ignore[union-attr]
    assert moved == []


# -- clips out of the ordinary -----------------------------------------------------------------------------------


@pytest.mark.parametrize("front_end", ["kaldi", "decibel"])
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("durations_s", [(0.2,), (60.0,), (0.2, 60.0, 3.0)])
def test_very_short_and_very_long_clips(
    durations_s: tuple[float, ...], mask_padding: bool, front_end: FrontEnd
) -> None:
    built = model(front_end=front_end, mask_padding=mask_padding)
    losses = built.train()(batch(*durations_s))
    assert all(torch.isfinite(loss) for loss in losses.values())
    captions = built.eval().caption(batch(*durations_s))
    assert len(captions) == len(durations_s)
    assert all(captions)


def test_a_long_clip_is_heard_up_to_the_encoders_length() -> None:
    built = model().eval()  # 112 frames of 100 ms
    long = batch(60.0)
    cut = batch(60.0)
    assert cut.waveform is not None
    assert long.waveform is not None
    # Only the mean of the clip sees the rest.
    cut.waveform = torch.cat([long.waveform[:, : 12 * RATE_HZ], long.waveform[:, 12 * RATE_HZ :].flip(1)], dim=1)
    torch.testing.assert_close(built.fuse(cut).tokens, built.fuse(long).tokens, rtol=1e-4, atol=1e-5)


def test_a_masked_short_clip_has_one_token() -> None:
    built = model(mask_padding=True).eval()
    assert built.fuse(batch(0.2)).mask.sum() == 1 + 2
    assert built.fuse(batch(11.0)).mask.sum() == 7 + 2


@pytest.mark.parametrize("front_end", ["kaldi", "decibel"])
def test_silence_has_a_finite_loss_and_gradient_and_a_caption(front_end: FrontEnd) -> None:
    built = model(front_end=front_end)
    silent = batch(2.0, 1.0, loud=False)
    total = torch.stack(list(built.train()(silent).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in built.parameters() if p.grad is not None)
    captions = built.eval().caption(silent)
    assert all(captions)
    # Under the same pictures two silent clips are one.
    assert silent.visual_features is not None
    silent.visual_features[1] = silent.visual_features[0]
    assert len(set(built.caption(silent))) == 1


def test_features_of_another_encoder_are_refused() -> None:
    with pytest.raises(
        ShapeError,
        match="cached visual features have width 512, the visual encoder gives 32: they were made with another encoder",
    ):
        model().caption(batch(1.0, visual_width=512))


def test_the_end_is_learned_and_padding_and_prompts_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    built = model().train()
    built.language.tokenizer.pad_token = built.language.tokenizer.eos_token  # as many do for Llama
    texts: list[PrefixedText] = []
    loss_of = built.language.loss

    def remember(text: PrefixedText, **options: Any) -> Tensor:
        texts.append(text)
        return loss_of(text, **options)

    monkeypatch.setattr(built.language, "loss", remember)
    two = batch(1.0, 1.0)
    two.caption = ["rain", "a dog barks"]
    built(two)
    (text,) = texts
    for row, caption in enumerate(two.caption):
        labels = text.labels[row][text.labels[row] != -100]
        ids = built.language.tokenizer(caption, add_special_tokens=False).input_ids
        assert labels.tolist() == [*ids, built.language.tokenizer.eos_token_id]
