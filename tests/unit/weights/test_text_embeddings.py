"""Embeddings of fixed texts are computed once for each model, list and tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avcap_zoo.backbones.audio_text import WavCapsCLAP
from avcap_zoo.weights.text_embeddings import audio_text_fingerprint, embed_fixed_texts
from tests.unit.systems.zeraucap.test_keymap import model_of

TEXTS = ["dog", "Inside", "rain", "inside"]


class Counted:
    """Counts the calls of a model's text encoder."""

    def __init__(self, model: WavCapsCLAP, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.encode = model.encode_ids
        monkeypatch.setattr(model, "encode_ids", self)

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.encode(ids, mask)


def test_once_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    counted = Counted(model, monkeypatch)
    wanted = model.embed_texts(TEXTS).detach()
    first = embed_fixed_texts(model, TEXTS, tmp_path / "cache")
    again = embed_fixed_texts(model, TEXTS, tmp_path / "cache")
    assert counted.calls == 2
    assert torch.equal(first, again)
    torch.testing.assert_close(first, wanted)
    assert not first.requires_grad
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert torch.equal(embed_fixed_texts(model, TEXTS), first)
    assert counted.calls == 3
    assert embed_fixed_texts(model, [], tmp_path).shape == (0, 6)


def test_another_model_list_or_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    embed_fixed_texts(model, TEXTS, tmp_path)
    counted = Counted(model, monkeypatch)
    embed_fixed_texts(model, TEXTS[::-1], tmp_path)
    for limit, calls in ((4, 2), (3, 3)):  # the text encoder sees one word less
        monkeypatch.setattr(model, "max_text_tokens", limit)
        embed_fixed_texts(model, ["dog in rain"], tmp_path)
        assert counted.calls == calls
    embed_fixed_texts(model, ["dog"], tmp_path)  # sees no more than that either
    assert counted.calls == 3
    with torch.no_grad():
        model.temperature.add_(1)
    embed_fixed_texts(model, ["dog"], tmp_path)
    assert counted.calls == 4
    assert audio_text_fingerprint(model) != audio_text_fingerprint(model_of())
    assert audio_text_fingerprint(model_of(1)) == audio_text_fingerprint(model_of(1))


@pytest.mark.parametrize("damage", [b"", b"not a file of tensors"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    model = model_of()
    wanted = embed_fixed_texts(model, TEXTS, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert torch.equal(embed_fixed_texts(model, TEXTS, tmp_path), wanted)
    counted = Counted(model, monkeypatch)
    assert torch.equal(embed_fixed_texts(model, TEXTS, tmp_path), wanted)
    assert counted.calls == 0


def test_dropout_has_no_say_and_the_mode_stays() -> None:
    model = model_of()
    wanted = embed_fixed_texts(model, TEXTS)
    model.train()
    assert torch.equal(embed_fixed_texts(model, TEXTS), wanted)
    assert model.training


def test_long_lists_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    counted = Counted(model, monkeypatch)
    texts = [f"a{number}" for number in range(1001)]
    found = embed_fixed_texts(model, texts)
    assert counted.calls == 2
    torch.testing.assert_close(found[[0, 1000]], model.embed_texts([texts[0], texts[1000]]), rtol=1e-4, atol=1e-6)
