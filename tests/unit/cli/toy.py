"""A system and a data module small enough to be run by the command line in a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from avcap_zoo.batch import Batch, Split
from avcap_zoo.data_modules.base import CaptionDataModule, ClipRecord, SplitIndex
from avcap_zoo.errors import WeightsError
from avcap_zoo.systems.base import OptimizerSettings, Requirements
from avcap_zoo.systems.captions import CaptionSystem, ScoreSettings


@dataclass
class ToyLanguage:
    """Nested settings, as the real systems have them."""

    source: str | None = None
    width: int = 8


@dataclass
class ToySize:
    """Nested settings without a default."""

    depth: int
    width: int = 8


class ToySystem(CaptionSystem):
    """Captions every clip with the settings it was given."""

    def __init__(
        self,
        ot_weight: float = 0.1,
        beams: int = 2,
        language: ToyLanguage | None = None,
        mode: Literal["loud", "quiet"] = "loud",
        trouble: Literal["none", "file", "weights"] = "none",
        marker: str | None = None,
    ) -> None:
        super().__init__(OptimizerSettings(lr=0.1), ScoreSettings(("rouge_l",), ("rouge_l",)), {"beams": beams})
        if trouble == "file":
            raise FileNotFoundError("vocabulary.txt")
        if trouble == "weights":
            raise WeightsError("toy.pt holds nothing of use")
        self.save_hyperparameters()
        self.ot_weight = ot_weight
        self.beams = beams
        self.language = language
        self.mode = mode
        self.marker = marker
        self.model = torch.nn.Linear(2, 1)

    @property
    def requirements(self) -> Requirements:
        return Requirements(None, ())

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.marker is not None:
            Path(self.marker).touch()
            time.sleep(60)
        return {"caption": self.model(torch.ones(len(batch), 2)).square().mean()}

    def caption(self, batch: Batch) -> list[str]:
        return [f"{self.beams} beams at {self.ot_weight}"] * len(batch)

    def decode_settings(self) -> dict[str, Any]:
        return {"beams": self.beams}


class NeedySystem(ToySystem):
    """A system with arguments that must be given."""

    def __init__(self, size: ToySize, language_model: ToyLanguage, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.size = size


class ToyDataModule(CaptionDataModule):
    """Clips of nothing but captions."""

    name = "toy"

    def __init__(self, root: str = ".", clips: int = 4) -> None:
        super().__init__(root)
        self.clips = clips

    def read_split(self, split: Split) -> SplitIndex:
        return SplitIndex([ClipRecord(f"{split}{i}", ["a toy rattles"]) for i in range(self.clips)])
