"""Every kind of fusion trains two steps inside a whole tiny LAVCap, and captions."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.backbones.qformer import QFormerSettings
from avcap_zoo.batch import Batch
from avcap_zoo.systems.lavcap.fusion import FusionSettings
from avcap_zoo.systems.lavcap.fusion_kinds import RECIPES
from tests.integration.tiny import tiny_lavcap


def two_clips() -> Batch:
    """Seven audio tokens and two frames each; the second clip has one frame."""
    torch.manual_seed(0)
    return Batch(
        clip_ids=["a", "b"],
        captions=[["a dog barks"], ["rain falls on a roof"]],
        caption=["a dog barks", "rain falls on a roof"],
        waveform=torch.rand(2, 160_000) - 0.5,
        num_samples=torch.tensor([160_000, 90_000]),
        frames=torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8),
        frame_mask=torch.tensor([[True, True], [True, False]]),
    )


@pytest.mark.parametrize("kind", RECIPES)
def test_two_steps_and_a_caption(kind: str) -> None:
    window_s = 0.333333 if RECIPES[kind].transport else 0.06
    fusion = FusionSettings(
        kind=kind,  # type: ignore[arg-type]
        qformer=QFormerSettings(1, embed_dim=32, depth=1, num_heads=2, mlp_dim=32, cross_attention_frequency=1),
        window_s=window_s,
        stride_s=window_s,
    )
    batch = two_clips()
    system = tiny_lavcap(fusion=fusion, training="lora")
    system.configure_model()
    system.train()
    trained = {name: p for name, p in system.model.named_parameters() if p.requires_grad}
    in_fusion = {name: p for name, p in trained.items() if name.startswith("fusion.")}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):
        losses = system.training_loss(batch)
        assert ("ot" in losses) == RECIPES[kind].transport
        total = torch.stack(list(losses.values())).sum()
        assert torch.isfinite(total)
        optimizer.zero_grad()
        total.backward()
        assert [name for name, p in in_fusion.items() if p.grad is None] == []
        optimizer.step()
    moved = {name for name, p in trained.items() if not torch.equal(p, before[name])}
    assert {"projector.weight"} <= moved
    for part, _ in system.model.fusion.named_children():
        assert any(name.startswith(f"fusion.{part}.") for name in moved), part
    assert ("fusion.logit_scale" in moved) == RECIPES[kind].transport
    captions = system.eval().caption(batch)
    assert len(captions) == 2
    assert all(isinstance(caption, str) for caption in captions)
