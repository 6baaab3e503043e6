"""Weights that a configuration names, found or not, without loading them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from avcap_zoo.errors import WeightsError
from avcap_zoo.weights.inventory import NamedWeights, check_readable, look_for, named_weights, size_text
from tests.unit.weights.hostile import Hostile

SETTINGS = {
    "audio": {"checkpoint": "checkpoints/a.pt", "size": "base", "frozen": None},
    "language": {"source": "org/model", "tokenizer": "org/words"},
    "rewards": {"itm": {"options": {"source": None, "checkpoint": None}}},
    "recall": {"model": "ViT-B-32", "checkpoint": "openai"},
    "keywords": {"source": "audioset"},
    "scores": {"tokenizer": "auto"},
    "lists": [{"tags": "tags.txt"}],
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_everything_named_is_found_with_its_key() -> None:
    assert list(named_weights(SETTINGS, "model")) == [
        NamedWeights("model.audio.checkpoint", "checkpoints/a.pt", "file"),
        NamedWeights("model.language.source", "org/model", "model"),
        NamedWeights("model.language.tokenizer", "org/words", "tokenizer"),
        NamedWeights("model.recall.checkpoint", "openai", "openclip", "ViT-B-32"),
        NamedWeights("model.lists.0.tags", "tags.txt", "text"),
    ]


def test_a_listed_file_that_is_absent_says_where_it_is_from() -> None:
    Path("checkpoints").mkdir()
    entry = {"id": "a", "file": "a.pt", "source": "Zenodo record 1", "what": "A, an encoder", "licence": "MIT (code)"}
    Path("checkpoints/manifest.yaml").write_text(yaml.safe_dump({"weights": [entry]}))
    stock = look_for(NamedWeights("k", "checkpoints/a.pt", "file"))
    assert not stock.present
    assert stock.text == "checkpoints/a.pt does not exist (A; MIT)"
    assert stock.remedy == "fetch it from Zenodo record 1, and put it at checkpoints/a.pt"
    torch.save({"a": torch.zeros(3)}, "checkpoints/a.pt")
    size = Path("checkpoints/a.pt").stat().st_size
    assert look_for(NamedWeights("k", "checkpoints/a.pt", "file")).text == f"{size_text(size)}, readable"
    Path("checkpoints/manifest.yaml").write_text(yaml.safe_dump({"weights": [entry | {"size_bytes": size}]}))
    assert look_for(NamedWeights("k", "checkpoints/a.pt", "file")).text == f"{size_text(size)}, as listed"
    Path("checkpoints/manifest.yaml").write_text(yaml.safe_dump({"weights": [entry | {"size_bytes": size + 1}]}))
    stock = look_for(NamedWeights("k", "checkpoints/a.pt", "file"))
    assert not stock.present
    assert "a broken download; fetch it again" in stock.text


def test_a_folder_lacks_shards() -> None:
    folder = Path("model")
    folder.mkdir()
    named = NamedWeights("k", "model", "model")
    assert "holds no weights" in look_for(named).text
    save_file({"a": torch.zeros(3)}, folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text("[]")
    assert "no readable 'weight_map'" in look_for(named).text
    index.write_text(json.dumps({"weight_map": shards}))
    assert "lacks 1 of 2 shards: model-00002-of-00002.safetensors" in look_for(named).text
    save_file({"b": torch.zeros(3)}, folder / "model-00002-of-00002.safetensors")
    assert look_for(named).present


def test_a_folder_without_a_tokenizer() -> None:
    Path("words").mkdir()
    assert "holds no tokenizer" in look_for(NamedWeights("k", "words", "tokenizer")).text
    Path("words/vocab.txt").touch()
    assert look_for(NamedWeights("k", "words", "tokenizer")).present


def test_a_hub_id_is_fetched_and_a_toy_model_made() -> None:
    stock = look_for(NamedWeights("k", "org/model", "model"))
    assert (stock.text, stock.remedy) == ("org/model is not in the hub's cache", "hf download org/model")
    stock = look_for(NamedWeights("k", "runs/pretrained/blip2", "model"))
    assert stock.remedy == "make it: lightning fit -c configs/tiny/blip2.yaml"
    assert look_for(NamedWeights("a.b", "mine.ckpt", "file")).remedy == "name one of yours: --a.b ..."


def test_openclip_knows_its_names() -> None:
    stock = look_for(NamedWeights("k", "laion2b_s12b_b42k", "openclip", "ViT-g-14"))
    assert stock.remedy == "hf download laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
    assert "OpenCLIP has no weights 'nonsense' of ViT-g-14; there are: laion2b" in (
        look_for(NamedWeights("k", "nonsense", "openclip", "ViT-g-14")).text
    )


def test_more_than_tensors_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": Hostile(tmp_path / "ran")}, "bad.pt")
    with pytest.raises(WeightsError, match="damaged, or more than tensors"):
        check_readable(Path("bad.pt"))
    assert not (tmp_path / "ran").exists()


def test_older_files_of_torch_are_read() -> None:
    torch.save({"a": torch.zeros(3)}, "old.pth", _use_new_zipfile_serialization=False)
    check_readable(Path("old.pth"))
    Path("cut.pth").write_bytes(Path("old.pth").read_bytes()[:40])
    with pytest.raises(WeightsError, match=r"cut\.pth cannot be read as weights"):
        check_readable(Path("cut.pth"))
    Path("cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        check_readable(Path("cut.safetensors"))


def test_sizes_in_words() -> None:
    assert [size_text(n) for n in (5, 1234, 13_476_000_000)] == ["5 B", "1.23 kB", "13.5 GB"]
