"""VLRM: vision-language models act as reward models for image captioning (arXiv 2404.01911)."""

from avcap_zoo.systems.vlrm.model import VLRMModel
from avcap_zoo.systems.vlrm.module import VLRM

__all__ = ["VLRM", "VLRMModel"]
