"""The joiner: what of its checkpoints is read, what is dropped, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avcap_zoo.backbones.joiner import Joiner, Modality, unknown_joiner_names
from avcap_zoo.backbones.qformer import QFormer, QFormerSettings
from avcap_zoo.errors import ShapeError, WeightsError
from avcap_zoo.weights.published import load_blip2_qformer, load_joiners, load_minigpt4_projection

TINY = QFormerSettings(num_queries=3, embed_dim=16, depth=2, num_heads=2, mlp_dim=24)
WIDTHS: dict[Modality, int] = {"audio": 6, "vision": 10}


def make_joiners(seed: int) -> dict[Modality, Joiner]:
    torch.manual_seed(seed)
    return {name: Joiner(TINY, width, 20) for name, width in WIDTHS.items()}


def qformer_file(qformer: QFormer, prefix: str = "") -> dict[str, Tensor]:
    """A Q-Former's tensors in BLIP-2's names, with pieces of the text branch."""
    tensors = {f"{prefix}query_tokens": qformer.queries.detach()}
    for name, value in qformer.model.state_dict().items():
        name = name.replace("attention.attention.", "attention.self.")
        if name.startswith("layernorm."):
            name = f"embeddings.LayerNorm.{name[len('layernorm.') :]}"
        tensors[f"{prefix}Qformer.bert.{name}"] = value
    for text in ("bert.embeddings.position_ids", "bert.encoder.layer.1.output.dense.bias", "cls.predictions.bias"):
        tensors[f"{prefix}Qformer.{text}"] = torch.zeros(2)
    return tensors


def trained_file(joiners: dict[Modality, Joiner], whole: tuple[Modality, ...] = ("audio",)) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {"llama_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    tensors["multimodal_encoder.modality_postprocessors.audio.1.log_logit_scale"] = torch.zeros(())
    for name, joiner in joiners.items():
        for part, value in joiner.projection.state_dict().items():
            tensors[f"multimodal_joiner.modality_post_projectors.{name}.fc.{part}"] = value
        if name in whole:
            tensors |= qformer_file(joiner.qformer, f"multimodal_joiner.modality_qformers.{name}.")
    tensors["multimodal_joiner.modality_qformers.vision.Qformer.bert.embeddings.position_ids"] = torch.zeros(1, 9)
    return tensors


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_checkpoint_of_the_second_stage(tmp_path: Path) -> None:
    source, target, before = make_joiners(1), make_joiners(2), make_joiners(2)
    torch.save({"model": trained_file(source), "epoch": 3}, tmp_path / "x.pth")
    load_joiners(target, tmp_path / "x.pth")
    assert same(source["audio"], target["audio"])
    assert same(source["vision"].projection, target["vision"].projection)
    assert same(before["vision"].qformer, target["vision"].qformer), "it is not in the file and must stay"


def test_both_qformers(tmp_path: Path) -> None:
    source, target = make_joiners(1), make_joiners(2)
    torch.save(trained_file(source, ("audio", "vision")), tmp_path / "x.pth")
    load_joiners(target, tmp_path / "x.pth")
    assert same(source["vision"], target["vision"])


def test_all_problems_are_named_at_once_and_nothing_is_loaded(tmp_path: Path) -> None:
    target, before = make_joiners(2), make_joiners(2)
    tensors = trained_file(make_joiners(1)) | {"llama_proj.weight": torch.zeros(1)}
    del tensors["multimodal_joiner.modality_qformers.audio.query_tokens"]
    tensors["multimodal_joiner.modality_post_projectors.vision.fc.bias"] = torch.zeros(21)
    tensors["multimodal_joiner.modality_qformers.audio.Qformer.bert.encoder.layer.9.x"] = torch.zeros(1)
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as caught:
        load_joiners(target, tmp_path / "x.pth")
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path / 'x.pth'} does not fit the model: 1 missing: audio.qformer.queries; 2 unknown"
    )
    assert "llama_proj.weight" in message
    assert "audio.qformer.model.encoder.layer.9.x" in message
    assert "vision.projection.bias (21,), wanted (20,)" in message
    assert all(same(target[name], before[name]) for name in target)


def test_a_file_of_one_modality_does_not_do_for_two(tmp_path: Path) -> None:
    source = make_joiners(1)
    torch.save(trained_file({"audio": source["audio"]}), tmp_path / "x.pth")
    load_joiners({"audio": make_joiners(2)["audio"]}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"2 missing: vision\.projection\.bias, vision\.projection\.weight"):
        load_joiners(make_joiners(2), tmp_path / "x.pth")


def test_a_name_that_only_looks_like_the_text_branch_is_unknown() -> None:
    names = ["multimodal_encoder.modality_trunks.vision.blocks.0.output.x", "cls_token", "Qformer.other"]
    assert unknown_joiner_names(dict.fromkeys(names, torch.zeros(1))) == sorted(names)


def test_blip2_file(tmp_path: Path) -> None:
    source, target = make_joiners(1)["vision"].qformer, make_joiners(2)["vision"].qformer
    rest = {name: torch.zeros(1) for name in ("ln_vision.weight", "ln_vision.bias", "t5_proj.weight", "t5_proj.bias")}
    torch.save({"model": qformer_file(source) | rest}, tmp_path / "blip2.pth")
    load_blip2_qformer(target, tmp_path / "blip2.pth")
    assert same(source, target)
    torch.save({"model": qformer_file(source) | {"itm_head.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"1 unknown: itm_head\.weight"):
        load_blip2_qformer(target, tmp_path / "other.pth")


def test_minigpt4_file(tmp_path: Path) -> None:
    source, target = nn.Linear(16, 20), nn.Linear(16, 20)
    tensors = {f"llama_proj.{name}": value for name, value in source.state_dict().items()}
    torch.save({"model": tensors}, tmp_path / "prerained_minigpt4_7b.pth")
    load_minigpt4_projection(target, tmp_path / "prerained_minigpt4_7b.pth")
    assert same(source, target)
    with pytest.raises(WeightsError, match=r"weight \(20, 16\), wanted \(24, 16\)"):
        load_minigpt4_projection(nn.Linear(16, 24), tmp_path / "prerained_minigpt4_7b.pth")


def test_masked_tokens_and_another_width() -> None:
    joiner = make_joiners(0)["audio"].eval()
    tokens, mask = torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    joined = joiner(tokens, mask)
    assert joined.shape == (2, 3, 20)
    torch.testing.assert_close(joined[1:], joiner(tokens[1:, :3]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ShapeError, match=r"tokens are \(2, 5, 7\)"):
        joiner(torch.zeros(2, 5, 7))


def test_the_text_branch_is_trained_for_nothing_and_kept_nowhere() -> None:
    torch.manual_seed(0)
    joiner = Joiner(TINY, 6, 20, text_branch=True)
    branch = joiner.text_branch
    assert branch is not None
    plain = Joiner(TINY, 6, 20)
    plain.load_state_dict(joiner.state_dict())
    tokens = torch.randn(2, 4, 6)
    joiner.qformer.eval()
    plain.eval()
    read = joiner(tokens)
    assert torch.equal(read, plain(tokens))
    read.sum().backward()
    gradients = [parameter.grad for parameter in branch.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert "text_branch" not in "".join(joiner.state_dict())
