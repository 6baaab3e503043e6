"""What `avcap caption` takes of the configurations of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jsonargparse import set_loader

from avcap_zoo.cli.parser import PARSER_MODE, load_yaml
from avcap_zoo.serving.loading import _parse_or_explain

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("device", ["cpu", "hpu"])
def test_an_overlay_of_a_device_may_be_named(device: str) -> None:
    set_loader(PARSER_MODE, load_yaml, exceptions=(yaml.YAMLError,))
    files = [CONFIGS / "tiny/lavcap.yaml", CONFIGS / f"device/{device}.yaml"]
    settings = _parse_or_explain([word for path in files for word in ("-c", str(path))])
    assert settings.trainer["accelerator"] == device
    assert settings.model.class_path.endswith("LAVCap")
