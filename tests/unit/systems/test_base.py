"""Learning-rate schedule and settings of the base system."""

from __future__ import annotations

import pytest

from avcap_zoo.backbones.adapters import LoRASettings
from avcap_zoo.systems.base import OptimizerSettings, learning_rate_share, plain


def test_warm_up_rises_linearly_to_the_peak() -> None:
    settings = OptimizerSettings(schedule="constant")
    shares = [learning_rate_share(step, 100, 4, settings) for step in range(6)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_schedules_fall_from_the_peak_to_the_last_share(schedule: str, middle: float) -> None:
    settings = OptimizerSettings(schedule=schedule, min_lr_share=0.1)  # type: ignore[arg-type]
    assert learning_rate_share(10, 110, 10, settings) == pytest.approx(1.0)
    assert learning_rate_share(60, 110, 10, settings) == pytest.approx(middle)
    assert learning_rate_share(110, 110, 10, settings) == pytest.approx(0.1)
    assert learning_rate_share(500, 110, 10, settings) == pytest.approx(0.1)


def test_cosine_and_linear_differ_off_the_middle() -> None:
    quarter = [
        learning_rate_share(25, 100, 0, OptimizerSettings(schedule=schedule)) for schedule in ("cosine", "linear")
    ]
    assert quarter == pytest.approx([0.8536, 0.75], abs=1e-4)


def test_settings_become_plain_values() -> None:
    assert plain(LoRASettings(rank=3))["rank"] == 3
    assert plain(5) == 5
    assert plain(LoRASettings) is LoRASettings
