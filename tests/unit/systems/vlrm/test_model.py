"""What one iteration does, statement by statement, at toy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avcap_zoo.backbones.adapters import LoRASettings
from avcap_zoo.backbones.language import GenerationSettings
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError, ShapeError, WeightsError
from avcap_zoo.ops.returns import token_log_probs, whiten
from avcap_zoo.systems.vlrm import VLRMModel
from avcap_zoo.systems.vlrm.captioner import Captioner, CaptionerSettings
from avcap_zoo.systems.vlrm.model import Rollout, middle_frames
from tests.unit.systems.vlrm import toy


def gradients(model: VLRMModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def iterate(model: VLRMModel, rollout: Rollout) -> dict[str, Tensor]:
    """Gradients of one iteration."""
    model.zero_grad()
    counts = rollout.counts()
    values, _ = model.value_pass(rollout, counts, lambda loss: loss.backward())
    whitened = whiten(rollout.returns - values, rollout.mask)
    model.policy_pass(rollout, whitened, counts, lambda loss: loss.backward())
    return gradients(model)


def stir_adapters(model: VLRMModel) -> None:
    """Give the adapters an effect: they begin as nothing."""
    with torch.no_grad():
        for parameter in model.captioner.value_parameters():
            parameter.normal_()


# -- sampling -------------------------------------------------------------------------------------------------------


def test_each_image_is_encoded_once_and_shared_by_policy_value_and_matching() -> None:
    model = toy.model(toy.ALL, sampling_batch_size=4, micro_batch_size=2)
    seen: list[int] = []
    model.captioner.blip.vision_model.encoder.register_forward_hook(lambda *args: seen.append(len(args[2][0])))
    rollout = model.collect(toy.batch(6))
    iterate(model, rollout)
    assert sum(seen) == 6


def test_the_image_tower_gets_no_gradient() -> None:
    model = toy.model()
    assert not model.captioner.encode_images(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).requires_grad


def test_samples_are_padded_and_their_masks_reach_the_end_token() -> None:
    model = toy.model()
    prefix = model.captioner.project(model.captioner.encode_images(middle_frames(toy.batch(2))))
    end, pad = model.captioner.end_id, model.captioner.pad_id
    tokens, mask, ended = model.captioner.cut_at_end(torch.tensor([[7, 8, end, 9], [7, 8, 9, 9]]))
    assert tokens.tolist() == [[7, 8, end, pad], [7, 8, 9, 9]]
    assert mask.tolist() == [[True, True, True, False], [True] * 4]
    assert ended.tolist() == [True, False]
    drawn, drawn_mask, _ = model.captioner.sample(prefix, model.sampling)
    assert drawn.shape == drawn_mask.shape
    assert drawn_mask.sum(dim=1).min() > model.sampling.min_new_tokens
    assert drawn.shape[1] <= model.sampling.max_new_tokens


def test_samples_come_from_the_top_six_at_temperature_two() -> None:
    model = toy.model()
    captioner = model.captioner
    prefix = captioner.project(captioner.encode_images(middle_frames(toy.batch(1)))).expand(600, -1, -1)
    torch.manual_seed(0)
    tokens, mask, _ = captioner.sample(prefix, model.sampling)
    logits = captioner.logits(captioner.states(prefix[:1], tokens[:1], mask[:1]))[0, 0]
    logits[captioner.end_id] = -torch.inf  # the end token cannot be drawn first
    top = logits.topk(6)
    want = torch.zeros_like(logits).scatter(0, top.indices, (top.values / 2).softmax(0))
    found = torch.bincount(tokens[:, 0], minlength=len(logits)) / 600
    assert found[want == 0].sum() == 0
    assert (found - want).abs().max() < 0.08


def test_sampling_with_the_cache_is_sampling_without_it() -> None:
    model = toy.model()
    captioner = model.captioner
    prefix = captioner.project(captioner.encode_images(middle_frames(toy.batch(4))))
    ids = captioner.caption_ids(prefix, GenerationSettings(num_beams=1, max_new_tokens=8, min_length=8))
    mask = torch.ones_like(ids, dtype=torch.bool)
    greedy = captioner.logits(captioner.states(prefix, ids, mask))
    greedy[..., captioner.end_id] = -torch.inf
    assert torch.equal(greedy.argmax(-1), ids)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_value_updates_change_neither_samples_nor_captions(checkpointing: bool) -> None:
    model = toy.model(gradient_checkpointing=checkpointing)
    batch = toy.batch(3)
    torch.manual_seed(1)
    before = model.collect(batch)
    captions = model.caption(batch)
    stir_adapters(model)
    torch.manual_seed(1)
    after = model.collect(batch)
    assert torch.equal(after.captions.tokens, before.captions.tokens)
    assert torch.equal(after.returns, before.returns)
    assert model.caption(batch) == captions


# -- value pass -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_value_pass_trains_adapters_and_value_head_only(checkpointing: bool) -> None:
    model = toy.model(gradient_checkpointing=checkpointing)
    rollout = model.collect(toy.batch(3))
    model.value_pass(rollout, rollout.counts(), lambda loss: loss.backward())
    wanted = {n for n, p in model.named_parameters() if any(p is q for q in model.value_parameters())}
    assert set(gradients(model)) == wanted
    assert any("lora_" in name for name in wanted)


def test_values_depend_on_the_adapters() -> None:
    model = toy.model()
    rollout = model.collect(toy.batch(3))
    before, _ = model.value_pass(rollout, rollout.counts(), lambda loss: None)
    stir_adapters(model)
    after, _ = model.value_pass(rollout, rollout.counts(), lambda loss: None)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize(("position", "depends"), [("before", False), ("after", True)])
def test_the_value_before_a_token_does_not_depend_on_it(position: Any, depends: bool) -> None:
    model = toy.model(value_position=position)
    torch.nn.init.normal_(model.value_head.last.weight)
    rollout = model.collect(toy.batch(2))
    before, _ = model.value_pass(rollout, rollout.counts(), lambda loss: None)
    rollout.captions.tokens[:, 1] = (rollout.captions.tokens[:, 1] + 1) % 50
    after, _ = model.value_pass(rollout, rollout.counts(), lambda loss: None)
    assert torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1], after[:, 1]) != depends
    assert not torch.equal(before[:, 2], after[:, 2])


# -- policy pass ----------------------------------------------------------------------------------------------------


def test_the_policy_pass_trains_queries_qformer_and_projection_only() -> None:
    model = toy.model()
    rollout = model.collect(toy.batch(3))
    model.policy_pass(rollout, torch.randn_like(rollout.returns), rollout.counts(), lambda loss: loss.backward())
    found = gradients(model)
    wanted = {n for n, p in model.named_parameters() if any(p is q for q in model.policy_parameters())}
    assert set(found) == wanted
    assert all(value.abs().sum() > 0 for name, value in found.items() if not name.endswith("key.bias"))
    starts = {name.split(".")[2] for name in wanted}
    assert starts == {"query_tokens", "qformer", "language_projection"}


def test_the_policy_is_that_of_the_sampling_model() -> None:
    model = toy.model(prob_distribution="sampling")
    stir_adapters(model)
    torch.manual_seed(0)
    rollout = model.collect(toy.batch(64))
    policy = model.policy_pass(rollout, rollout.returns, rollout.counts(), lambda loss: None)
    # Six tokens share the probability of the law that was drawn from.
    assert policy.entropy[rollout.mask].max() <= torch.tensor(6.0).log() + 1e-5
    assert policy.log_probs[rollout.mask].exp().min() > 0.01
    captioner = model.captioner
    logits = captioner.logits(captioner.states(rollout.prefix, rollout.captions.tokens, rollout.mask))
    assert not torch.allclose(
        token_log_probs(logits, rollout.captions.tokens)[0][rollout.mask], policy.log_probs[rollout.mask]
    )


@pytest.mark.parametrize("objective", ["prob", "logprob"])
def test_a_small_step_raises_the_probability_of_better_tokens(objective: Any) -> None:
    model = toy.model(policy_objective=objective)
    rollout = model.collect(toy.batch(4))
    advantages = whiten(torch.randn(rollout.returns.shape, generator=torch.Generator().manual_seed(0)), rollout.mask)
    counts = rollout.counts()
    before = model.policy_pass(rollout, advantages, counts, lambda loss: loss.backward())
    with torch.no_grad():
        for parameter in model.policy_parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad / parameter.grad.norm().clamp_min(1e-6), alpha=1e-2)
    after = model.policy_pass(rollout, advantages, counts, lambda loss: None)
    assert after.loss < before.loss


# -- micro-batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["caption", "token"])
def test_any_micro_batch_size_gives_the_same_gradients(reduction: Any) -> None:
    model = toy.model(toy.CHEAP, loss_reduction=reduction)
    torch.manual_seed(3)
    rollout = model.collect(toy.batch(7))
    lengths = torch.tensor([8, 3, 5, 8, 1, 2, 6])
    rollout.mask &= torch.arange(rollout.mask.shape[1]) < lengths[:, None]
    whole = iterate(model, rollout)
    assert len(whole) > 20
    for size in (1, 2, 3, 5):
        model.update.micro_batch_size = size
        for name, value in iterate(model, rollout).items():
            torch.testing.assert_close(value, whole[name], rtol=1e-4, atol=1e-6, msg=f"{size}: {name}")


def test_padding_to_buckets_changes_shapes_only() -> None:
    model = toy.model(toy.ALL, micro_batch_size=2)
    rollouts = []
    for buckets in ((), (5, 12)):
        model.captioner.length_buckets = buckets
        torch.manual_seed(3)
        rollouts.append(model.collect(toy.batch(7)))
    plain, padded = rollouts
    longest = plain.mask.shape[1]
    assert padded.mask.shape[1] == 12 > longest
    assert padded.captions.tokens[:, :longest].equal(plain.captions.tokens)
    assert not padded.mask[:, longest:].any()
    torch.testing.assert_close(padded.returns[:, :longest][plain.mask], plain.returns[plain.mask])
    for rollout in rollouts:
        rollout.mask &= torch.arange(rollout.mask.shape[1]) < torch.tensor([8, 3, 5, 8, 1, 2, 6])[:, None]
    lengths: set[int] = set()
    stack = model.captioner.language_model.base_model
    stack.register_forward_pre_hook(
        lambda _, given, named: lengths.add(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    whole = iterate(model, padded)
    assert lengths == {3 + 1 + 5, 3 + 1 + 12}
    model.captioner.length_buckets = ()
    for name, value in iterate(model, plain).items():
        torch.testing.assert_close(whole[name], value, rtol=1e-4, atol=1e-6, msg=name)
    model.captioner.length_buckets = (200,)
    assert model.captioner.padded_length(9) == 64 - 3 - 1  # what there are positions for


def test_a_process_whose_captions_are_all_left_out_has_no_part_in_the_gradients() -> None:
    model = toy.model(micro_batch_size=2)
    rollout = model.collect(toy.batch(3))
    rollout.mask[:] = False  # of another process something is left
    counts, backward = torch.tensor([4.0, 20.0]), lambda loss: loss.backward()
    _, value_loss = model.value_pass(rollout, counts, backward)
    policy = model.policy_pass(rollout, torch.zeros_like(rollout.returns), counts, backward)
    assert value_loss == policy.loss == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert not any(gradient.any() for gradient in gradients)


def test_checkpointing_gives_the_same_gradients() -> None:
    plain, checkpointed = toy.model(), toy.model(gradient_checkpointing=True)
    torch.manual_seed(0)
    rollout = plain.collect(toy.batch(3))
    stir_adapters(plain)
    checkpointed.load_state_dict(plain.state_dict())
    runs: list[int] = []
    layer = checkpointed.captioner.language_model.model.decoder.layers[0]
    layer.fc1.register_forward_hook(lambda *_: runs.append(1))
    want, got = iterate(plain, rollout), iterate(checkpointed, rollout)
    assert len(runs) == 4  # twice for each of the two passes
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


def test_training_mode_brings_no_dropout() -> None:
    model = toy.model()
    captioner = model.captioner
    rollout = model.collect(toy.batch(2))
    inputs = (rollout.prefix, rollout.captions.tokens, rollout.mask)
    before = captioner.states(*inputs)
    model.train()
    assert not model.training
    with captioner.in_training():
        assert captioner.language_model.training
        assert torch.equal(captioner.states(*inputs), before)
    captioner.blip.train()
    features = captioner.encode_images(middle_frames(toy.batch(2)))
    assert torch.equal(captioner.project(features), captioner.project(features))


# -- weights --------------------------------------------------------------------------------------------------------


def test_a_partial_file_is_exported_and_loaded_back(tmp_path: Path) -> None:
    first, second = toy.model(seed=0), toy.model(seed=1)
    partial = first.captioner.export_partial()
    assert all(tensor.dtype == torch.float16 for tensor in partial.values())
    path = tmp_path / "vlrm.pt"
    torch.save(partial, path)
    settings = first.captioner.settings
    torch.manual_seed(1)
    loaded = Captioner(CaptionerSettings(None, settings.config, None, str(path), "float32", settings.lora))
    own = loaded.blip.state_dict()
    for name, tensor in partial.items():
        assert own[name].dtype == torch.float32
        assert torch.equal(own[name], tensor.float())
    frozen = {n: t for n, t in second.captioner.blip.state_dict().items() if n not in partial and "lora_" not in n}
    assert all(torch.equal(own[name], tensor) for name, tensor in frozen.items())
    assert loaded.export_partial().keys() == partial.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("query_tokens"), "1 missing: query_tokens"),
        (lambda t: t.update({"model.query_tokens": t.pop("query_tokens")}), "1 unknown: model.query_tokens"),
        (lambda t: t.update(query_tokens=torch.zeros(1, 32, 16)), r"query_tokens \(1, 32, 16\), wanted \(1, 3, 16\)"),
    ],
)
def test_a_partial_file_must_fit(change: Any, message: str, tmp_path: Path) -> None:
    captioner = toy.model().captioner
    tensors = captioner.export_partial()
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    settings = CaptionerSettings(
        None, captioner.settings.config, None, str(tmp_path / "x.safetensors"), "float32", captioner.settings.lora
    )
    with pytest.raises(WeightsError, match=f"captioner.weights: .*{message}"):
        Captioner(settings)


def test_a_hub_folder_is_loaded(tmp_path: Path) -> None:
    first = toy.model(seed=0).captioner
    with torch.no_grad():
        for parameter in first.value_parameters():
            parameter.zero_()
    plain = {n.replace(".base_layer.", "."): t for n, t in first.blip.state_dict().items() if "lora_" not in n}
    first.blip.config.save_pretrained(tmp_path)
    save_file({n: t.clone() for n, t in plain.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    first.tokenizer.save_pretrained(tmp_path)
    loaded = Captioner(CaptionerSettings(str(tmp_path), dtype="float32", lora=LoRASettings(2, 4, 0.0, ("q_proj",))))
    images = middle_frames(toy.batch(2))
    torch.testing.assert_close(loaded.project(loaded.encode_images(images)), first.project(first.encode_images(images)))
    assert loaded.end_id == first.end_id


def test_dtypes_of_frozen_and_trained_parts() -> None:
    settings = toy.parts()["captioner"]
    settings.dtype = "bfloat16"
    captioner = Captioner(settings)
    assert {p.dtype for p in captioner.policy_parameters() + captioner.value_parameters()} == {torch.float32}
    assert captioner.blip.vision_model.post_layernorm.weight.dtype == torch.bfloat16
    assert captioner.language_model.get_input_embeddings().weight.dtype == torch.bfloat16
    prefix = captioner.project(captioner.encode_images(middle_frames(toy.batch(2))))
    tokens, mask, _ = captioner.sample(prefix, toy.parts()["sampling"])
    assert captioner.text_log_probs(tokens, mask).dtype == torch.float32


def test_wrong_sources_and_configs_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"captioner.(tokenizer|source): cannot load"):
        Captioner(CaptionerSettings(str(tmp_path)))
    config = {"vision_config": toy.VISION | {"num_attention_heads": 3}}
    with pytest.raises(ConfigError, match=r"captioner.config: .*num_heads"):
        Captioner(CaptionerSettings(None, config))


def test_pictures_are_needed() -> None:
    model = toy.model()
    without = Batch(clip_ids=["x"], captions=[[]], caption=[""])
    with pytest.raises(ConfigError, match="needs pictures"):
        model.caption(without)
    with pytest.raises(ShapeError, match=r"wanted .clips, 3, height, width. torch.uint8"):
        model.captioner.encode_images(torch.zeros(1, 3, 16, 16))


def test_of_several_frames_the_middle_one_is_captioned() -> None:
    batch = toy.batch(2, num_frames=5)
    assert batch.frames is not None
    assert torch.equal(middle_frames(batch), batch.frames[:, 2])
