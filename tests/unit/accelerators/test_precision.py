"""bf16-true: the frozen base in half the memory, and trained weights that still move by small steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from avcap_zoo.accelerators.compiling import CompileFrozenParts, frozen_parts
from avcap_zoo.accelerators.precision import HalfBasePrecision
from avcap_zoo.errors import ConfigError
from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO
from tests.integration.tiny import tiny_data, tiny_lavcap, tiny_trainer
from tests.unit.systems.vlrm import toy as vlrm_toy
from tests.unit.systems.zeraucap import toy as zeraucap_toy


def test_small_steps_are_kept_and_what_is_frozen_is_small(scenes_root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    system = tiny_lavcap(training="lora", lr=5e-6)
    system.configure_model()
    before = {name: p.detach().clone() for name, p in system.named_parameters() if p.requires_grad}
    fingerprint = system.frozen_fingerprint()
    plugins, compiling = [AtomicCheckpointIO(), HalfBasePrecision()], CompileFrozenParts("eager")
    trainer = tiny_trainer(
        tmp_path, max_steps=3, val_check_interval=3, gradient_clip_val=1.0, plugins=plugins, callbacks=[compiling]
    )
    trainer.fit(system, datamodule=tiny_data(scenes_root))
    assert trainer.precision == "bf16-true"
    for name, parameter in system.named_parameters():
        if name in before:
            assert parameter.dtype == torch.float32, name
        elif parameter.ndim >= 2:
            assert parameter.dtype == torch.bfloat16, name
    moved = [name for name, value in before.items() if not torch.equal(value, dict(system.named_parameters())[name])]
    assert any("lora_B" in name for name in moved)
    assert "model.projector.weight" in moved
    assert system.frozen_fingerprint() == fingerprint  # the base is the same base, so checkpoints go both ways
    assert trainer.callback_metrics["val/cider"].isfinite()
    assert system.model.vision_encoder._compiled_call_impl is not None


def test_only_what_is_frozen_is_compiled(tmp_path: Path) -> None:
    system = tiny_lavcap(training="full")
    system.configure_model()
    assert list(frozen_parts(system.model)) == ["vision_encoder"]
    system.model.vision_encoder.requires_grad_(True)
    with pytest.raises(ConfigError, match="finds nothing frozen in LAVCap"):
        CompileFrozenParts().on_test_start(tiny_trainer(tmp_path), system)


def test_parts_within_what_is_no_part_of_its_own_are_compiled(tmp_path: Path) -> None:
    system = zeraucap_toy.built(zeraucap_toy.toy_system(tmp_path))
    sounds = zeraucap_toy.sounds(0.8, 0.5)
    before = system.caption(sounds)
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    compiling = CompileFrozenParts("eager")
    compiling.backend = backend  # type: ignore[assignment]
    compiling.on_test_start(tiny_trainer(tmp_path), system)
    assert system.caption(sounds) == before
    assert graphs
    vlrm = vlrm_toy.system({"itm": vlrm_toy.MATCHING})
    vlrm.configure_model()
    assert list(frozen_parts(vlrm.model)) == ["rewards.itm.matcher"]
