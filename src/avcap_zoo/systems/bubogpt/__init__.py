"""BuboGPT: a language model that sees and hears, with visual grounding (arXiv 2307.08581)."""

from avcap_zoo.systems.bubogpt.model import BuboGPTModel
from avcap_zoo.systems.bubogpt.module import BuboGPT

__all__ = ["BuboGPT", "BuboGPTModel"]
