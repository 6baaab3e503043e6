"""avcap-zoo: four published captioning systems in one PyTorch Lightning codebase.

Importing the package imports no torch; systems, data modules and metrics are imported from their own modules.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avcap_zoo.serving.caption import Captioner

try:
    __version__ = version("avcap-zoo")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0.0.0"

__all__ = ["__version__", "load"]


def load(checkpoint: str | PathLike[str] | None = None, **options: Any) -> Captioner:
    """A trained system, ready to caption: `avcap_zoo.load("best.ckpt").caption(["a.mp4"])`.

    Args:
        checkpoint: of a run; None for a system that needs no trained weights.
        options: `configs` (YAML files laid over the checkpoint's settings), `device` (auto, cpu, cuda, hpu),
            `num_frames`, `image_size_px`; see `serving.caption.Captioner.load`.

    Returns:
        Has `caption(paths)` and `explain(paths)`.

    Raises:
        AvcapError: the checkpoint, a configuration or the device cannot be used.
    """
    from avcap_zoo.serving.caption import Captioner  # the only way here to torch

    return Captioner.load(checkpoint, **options)
