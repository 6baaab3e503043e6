"""ZerAuCap: zero-shot audio captioning with audio-language model guidance and keywords (arXiv 2311.08396)."""

from avcap_zoo.systems.zeraucap.model import ZerAuCapModel
from avcap_zoo.systems.zeraucap.module import ZerAuCap

__all__ = ["ZerAuCap", "ZerAuCapModel"]
