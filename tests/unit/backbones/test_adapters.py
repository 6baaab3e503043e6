"""What of a backbone is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from avcap_zoo.backbones.adapters import LoRASettings, adapters_off, set_training_mode
from avcap_zoo.errors import ConfigError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(8, 8)
        self.v_proj = nn.Linear(8, 8)
        self.out = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.q_proj(x) * self.v_proj(x)) + x  # type: ignore[no-any-return]


def blocks(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(Block(), Block()).to(dtype)


def trained(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


LORA = LoRASettings(rank=2, alpha=4, dropout=0.0)


def test_frozen_and_full() -> None:
    module = blocks()
    set_training_mode(module, "frozen", LORA, "x")
    assert trained(module) == []
    set_training_mode(module, "full", LORA, "x")
    assert len(trained(module)) == 16


def test_only_adapters_are_trained_and_the_function_is_unchanged_at_first() -> None:
    module, x = blocks(), torch.randn(3, 8)
    before = module(x)
    names = set(module.state_dict())
    set_training_mode(module, "lora", LORA, "x")
    assert torch.equal(module(x), before)
    assert len(trained(module)) == 8
    assert all("lora_" in name for name in trained(module))
    assert {name.replace("base_layer.", "") for name in module.state_dict() if "lora_" not in name} == names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_are_float32_on_a_smaller_base_and_stay_so(dtype: torch.dtype) -> None:
    module = blocks(dtype)
    set_training_mode(module, "lora", LORA, "x")
    for name, parameter in module.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else dtype)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    before = {name: p.clone() for name, p in module.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        module(torch.randn(3, 8, dtype=dtype)).float().square().sum().backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name


def test_targets_may_be_longer_endings() -> None:
    module = blocks()
    set_training_mode(module, "lora", LoRASettings(rank=2, targets=("0.q_proj",)), "x")
    assert {name.split(".lora_")[0] for name in trained(module)} == {"0.q_proj"}


@pytest.mark.parametrize(
    ("targets", "named"),
    [(("query",), "query"), (("q_proj", "value"), "value"), (("proj",), "proj")],
)
def test_a_target_that_is_not_there(targets: tuple[str, ...], named: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^model.language.lora.targets: no linear layer is named {named}; this model has out, q_proj, v_proj: "
        r"name some of them in model.language.lora.targets$",
    ):
        set_training_mode(blocks(), "lora", LoRASettings(targets=targets), "model.language")


def test_linear_layers_of_gpt_2() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    def gpt_2() -> nn.Module:
        model: nn.Module = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20))
        return model

    for lora in (LoRASettings(rank=2), LoRASettings(rank=2, targets=("c_attn",))):  # by family, and by name
        model = gpt_2()
        set_training_mode(model, "lora", lora, "x")
        assert [name.split(".lora_")[0] for name in trained(model)] == ["transformer.h.0.attn.c_attn"] * 2
    with pytest.raises(ConfigError, match="named q_proj; this model has c_attn, c_fc, c_proj, lm_head: name some"):
        set_training_mode(gpt_2(), "lora", LoRASettings(targets=("q_proj",)), "x")


def test_a_module_of_no_family_has_the_common_layers() -> None:
    module = blocks()
    set_training_mode(module, "lora", LoRASettings(rank=2), "x")
    assert {name.split(".")[1] for name in trained(module)} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match="this model has none"):
        set_training_mode(nn.LayerNorm(3), "lora", LoRASettings(), "x")


def test_without_its_adapters_a_module_is_what_it_was() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    states = torch.randn(2, 4)
    plain = module(states)
    set_training_mode(module, "lora", LoRASettings(2, 4, 0.0, ("0", "1")), "here")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    first = next(p for n, p in module.named_parameters() if "lora_A" in n)
    first.requires_grad_(False)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    adapted = module(states)
    assert not torch.allclose(adapted, plain)
    with pytest.raises(RuntimeError, match="stop"), adapters_off(module):
        assert torch.equal(module(states), plain)
        raise RuntimeError("stop")
    assert torch.equal(module(states), adapted)
    assert {n for n, p in module.named_parameters() if p.requires_grad} == trained
