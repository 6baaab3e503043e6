"""The Q-Former: its sizes, masks, names and refusals."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.backbones.qformer import QFormer, QFormerSettings, from_blip2_names
from avcap_zoo.errors import ConfigError, ShapeError

TINY = QFormerSettings(num_queries=3, embed_dim=16, depth=3, num_heads=4, mlp_dim=24)


@pytest.mark.parametrize(("encoder_dim", "parameters"), [(1408, 105_137_664), (768, 99_239_424)])
def test_blip2_size(encoder_dim: int, parameters: int) -> None:
    with torch.device("meta"):
        qformer = QFormer(QFormerSettings(), encoder_dim)
    assert qformer.queries.shape == (1, 32, 768)
    assert sum(parameter.numel() for parameter in qformer.model.parameters()) == parameters


@pytest.mark.parametrize(("frequency", "layers"), [(1, {0, 1, 2}), (2, {0, 2}), (3, {0})])
def test_cross_attention_comes_every_so_many_layers(frequency: int, layers: set[int]) -> None:
    settings = QFormerSettings(num_queries=3, embed_dim=16, depth=3, num_heads=4, cross_attention_frequency=frequency)
    names = QFormer(settings, 8).state_dict()
    assert {
        layer for layer in range(3) if f"model.encoder.layer.{layer}.crossattention.attention.key.bias" in names
    } == layers


def test_masked_tokens_are_not_read() -> None:
    torch.manual_seed(0)
    qformer = QFormer(TINY, 8).eval()
    tokens, mask = torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    read = qformer(tokens, mask)
    assert read.shape == (2, 3, 16)
    torch.testing.assert_close(read[1:], qformer(tokens[1:, :4]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read[:1], qformer(tokens[:1]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(read[1:], qformer(tokens[1:]), atol=1e-3)


def test_dropout_is_for_training_only() -> None:
    qformer, tokens = QFormer(TINY, 8), torch.randn(2, 5, 8)
    assert not torch.equal(qformer(tokens), qformer(tokens))
    qformer.eval()
    assert torch.equal(qformer(tokens), qformer(tokens))


def test_blip2_names_become_ours_and_the_text_branch_goes() -> None:
    qformer = QFormer(TINY, 8)
    official = {"query_tokens": qformer.queries.detach()}
    for name, value in qformer.model.state_dict().items():
        name = name.replace("layernorm.", "embeddings.LayerNorm.").replace("attention.attention.", "attention.self.")
        official[f"Qformer.bert.{name}"] = value
    text = dict.fromkeys(
        (
            "Qformer.bert.embeddings.word_embeddings.weight",
            "Qformer.bert.embeddings.position_embeddings.weight",
            "Qformer.bert.embeddings.position_ids",
            "Qformer.bert.encoder.layer.0.intermediate.dense.weight",
            "Qformer.bert.encoder.layer.11.output.LayerNorm.bias",
            "Qformer.cls.predictions.bias",
            "ln_vision.weight",
        ),
        torch.zeros(1),
    )
    ours = from_blip2_names(official | text, queries="query_tokens", prefix="Qformer.bert.")
    assert {name: tuple(value.shape) for name, value in ours.items()} == {
        name: tuple(value.shape) for name, value in qformer.state_dict().items()
    }


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="embed_dim 16 is not a multiple of num_heads 3"):
        QFormer(QFormerSettings(embed_dim=16, num_heads=3), 8)
    with pytest.raises(ShapeError, match=r"tokens are \(2, 5, 9\), the Q-Former reads \(clips, tokens, 8\)"):
        QFormer(TINY, 8)(torch.randn(2, 5, 9))
