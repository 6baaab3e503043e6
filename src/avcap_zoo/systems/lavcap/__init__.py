"""LAVCap: LLM-based audio-visual captioning using optimal transport (arXiv 2501.09291)."""

from avcap_zoo.systems.lavcap.model import LAVCapModel
from avcap_zoo.systems.lavcap.module import LAVCap

__all__ = ["LAVCap", "LAVCapModel"]
