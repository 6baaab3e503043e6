"""Loading from folders in transformers format is strict, and failures name the config key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    CLIPModel,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from avcap_zoo.backbones.pretrained import dtype_option, load_pretrained
from avcap_zoo.errors import WeightsError

KEY = "model.init_args.part.source"
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 11}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=8)).save_pretrained(path)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_whole_folder(folder: Path) -> None:
    model = load_pretrained(LlamaForCausalLM, str(folder), KEY, **dtype_option(torch.bfloat16))
    assert model.dtype == torch.bfloat16
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(model.lm_head.weight.float(), saved["lm_head.weight"].bfloat16().float())


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_not_missing(tmp_path: Path, tied: bool) -> None:
    LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=8, tie_word_embeddings=tied)).save_pretrained(
        tmp_path / "a"
    )
    load_pretrained(LlamaForCausalLM, str(tmp_path / "a"), KEY)
    OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=8, word_embed_proj_dim=8)).save_pretrained(tmp_path / "b")
    load_pretrained(OPTForCausalLM, str(tmp_path / "b"), KEY)


def test_a_part_of_a_larger_model(tmp_path: Path) -> None:
    from transformers import CLIPConfig

    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 11, "projection_dim": 4, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    vision = {**tower, "image_size": 8, "patch_size": 4, "projection_dim": 4}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4))
    whole.save_pretrained(tmp_path / "clip")
    part = load_pretrained(CLIPVisionModelWithProjection, str(tmp_path / "clip"), KEY)
    assert torch.equal(part.visual_projection.weight, whole.visual_projection.weight)


def _drop(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def _cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


LACKING = (
    r"does not hold the weights of a LlamaForCausalLM: 1 missing: model.layers.0.mlp.up_proj.weight; "
    r"1 of another shape: model.norm.weight( \(7,\), wanted \(8,\))?"
)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop, LACKING),
        (_cut, "the weights in .* cannot be read: "),
        (lambda path: (path / "model.safetensors").write_text("<html>404</html>"), "cannot be read: "),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "cannot be read: "),
        (
            lambda path: (path / "model.safetensors").unlink(),
            "cannot load .* no file named (model.safetensors|pytorch_model.bin)",
        ),
        (lambda path: (path / "config.json").write_text("{broken"), "cannot load "),
        (lambda path: (path / "config.json").unlink(), "cannot load "),
    ],
)
def test_damaged_folders(copied: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copied)
    with pytest.raises(WeightsError, match=rf"^{KEY}: .*{message}|^{KEY}: {message}") as caught:
        load_pretrained(AutoModelForCausalLM, str(copied), KEY)
    assert "\n" not in str(caught.value)
    assert str(copied) in str(caught.value)


@pytest.mark.parametrize("source", ["no/such-model", "none-such", "{tmp}/missing"])
def test_nowhere_to_be_found(tmp_path: Path, source: str) -> None:
    source = source.format(tmp=tmp_path)
    with pytest.raises(WeightsError, match=rf"^{KEY}: cannot load '{source}': .*give a local folder") as caught:
        load_pretrained(LlamaForCausalLM, source, KEY)
    assert "\n" not in str(caught.value)


def test_another_model_is_refused_not_filled_up_with_random_weights(folder: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"does not hold the weights of a CLIPVisionModelWithProjection: \d+ missing"
    ):
        load_pretrained(CLIPVisionModelWithProjection, str(folder), KEY)


def test_code_in_a_pickle_is_not_run(copied: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    tensors: dict[str, object] = dict(load_file(copied / "model.safetensors"))
    (copied / "model.safetensors").unlink()
    torch.save({**tensors, "extra": Hostile()}, copied / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=f"^{KEY}: "):
        load_pretrained(LlamaForCausalLM, str(copied), KEY)
    assert not (tmp_path / "ran").exists()
