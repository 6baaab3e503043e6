"""avcap-zoo: four published captioning systems in one PyTorch Lightning codebase.

Importing the package imports no torch; systems, data modules and metrics are imported from their own modules.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("avcap-zoo")
except PackageNotFoundError:  # a source tree on PYTHONPATH, not installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
