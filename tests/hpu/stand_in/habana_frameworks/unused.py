"""Names of the vendor's container that lightning-habana imports and nothing of ours uses."""

from __future__ import annotations

import sys
from types import ModuleType

MODULES = {
    "habana_dataloader": [],
    "habana_frameworks.mediapipe": ["fn"],
    "habana_frameworks.mediapipe.media_types": ["decoderStage", "dtype", "ftype", "imgtype", "randomCropType"],
    "habana_frameworks.mediapipe.mediapipe": ["MediaPipe"],
    "habana_frameworks.mediapipe.operators": [],
    "habana_frameworks.mediapipe.operators.cpu_nodes": [],
    "habana_frameworks.mediapipe.operators.cpu_nodes.cpu_nodes": ["media_function"],
    "habana_frameworks.mediapipe.plugins": [],
    "habana_frameworks.mediapipe.plugins.iterator_pytorch": ["HPUResnetPytorchIterator"],
    "habana_frameworks.torch.utils": [],
    "habana_frameworks.torch.utils.library_loader": ["is_habana_available"],  # whose instance counts as true
    "habana_frameworks.torch.hpex": [],
    "habana_frameworks.torch.hpex.experimental": [],
    "habana_frameworks.torch.hpex.experimental.transformer_engine": ["fp8"],
    "habana_frameworks.torch.hpex.experimental.transformer_engine.recipe": ["DelayedScaling"],
}


def install() -> None:
    """Put a module for each name where imports look first."""
    for name, contents in MODULES.items():
        module = sys.modules[name] = ModuleType(name)
        above, _, own = name.rpartition(".")
        if above in sys.modules:
            setattr(sys.modules[above], own, module)
        for content in contents:
            setattr(module, content, type(content, (), {}))
