"""LAVCap as a LightningModule."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from avcap_zoo.backbones.language import GenerationSettings, LanguageSettings
from avcap_zoo.backbones.vision.clip import CLIPFrameEncoder, CLIPSettings
from avcap_zoo.batch import Batch, FrozenEncoder, Modality
from avcap_zoo.errors import ConfigError
from avcap_zoo.ops.heat_map import heat_map
from avcap_zoo.systems.base import OptimizerSettings, Requirements
from avcap_zoo.systems.captions import CaptionSystem, ScoreSettings
from avcap_zoo.systems.lavcap.fusion import FusionSettings
from avcap_zoo.systems.lavcap.model import (
    AudioSettings,
    LAVCapModel,
    PromptSettings,
    build_audio_encoder,
    frozen_audio,
    frozen_vision,
)

SAMPLE_RATE_HZ = 16_000


class LAVCap(CaptionSystem):
    """Audio captioning with pictures: CED and CLIP joined by optimal transport, told by a language model.

    Args:
        audio: the CED encoder.
        vision: the CLIP encoder.
        language: the language model.
        fusion: how the modalities meet; `fusion.kind` is the row of the paper's Tables II and III.
        prompts: text around the tokens.
        generation: decoding.
        optimizer: learning rate and schedule.
        scores: which scores are computed.

    Source: Rho et al., "LAVCap: LLM-based Audio-Visual Captioning using Optimal Transport", arXiv 2501.09291.
    """

    model: LAVCapModel

    def __init__(
        self,
        audio: AudioSettings,
        vision: CLIPSettings,
        language: LanguageSettings,
        fusion: FusionSettings,
        prompts: PromptSettings,
        generation: GenerationSettings,
        optimizer: OptimizerSettings,
        scores: ScoreSettings,
    ) -> None:
        arguments = {
            "audio": audio,
            "vision": vision,
            "language": language,
            "fusion": fusion,
            "prompts": prompts,
            "generation": generation,
            "optimizer": optimizer,
            "scores": scores,
        }
        super().__init__(optimizer, scores, arguments)
        self.audio = audio
        self.vision = vision
        self.language = language
        self.fusion = fusion
        self.prompts = prompts
        self.generation = generation

    @property
    def requirements(self) -> Requirements:
        """16 kHz sound and pictures, as far as the fusion kind uses them."""
        if not self.fusion.needs_audio:
            return Requirements(None, ("visual",))
        return Requirements(SAMPLE_RATE_HZ, ("audio", "visual") if self.fusion.needs_vision else ("audio",))

    def configure_model(self) -> None:
        """Build the model once, on the device and in the precision that Lightning has set."""
        if not hasattr(self, "model"):
            self.model = LAVCapModel(self.audio, self.vision, self.language, self.fusion, self.prompts, self.generation)

    def frozen_encoder(self, modality: Modality) -> FrozenEncoder:
        """Of the model if it is built, else that encoder alone: no language model is loaded to cache features.

        Raises:
            ConfigError: the modality is not used, is trained, or its weights exist only in a checkpoint.
        """
        if hasattr(self, "model"):
            return self.model.frozen_encoder(modality)
        source = self.vision.source if modality == "visual" else self.audio.checkpoint
        if source is None:
            key = "vision.source" if modality == "visual" else "audio.checkpoint"
            raise ConfigError(
                f"model.init_args.{key} is null: the weights of the {modality} encoder exist only in a checkpoint of "
                f"this model; add --ckpt_path"
            )
        if modality == "visual":
            return frozen_vision(CLIPFrameEncoder(self.vision).requires_grad_(False).eval())
        return frozen_audio(build_audio_encoder(self.audio).eval(), self.audio)

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Caption loss, and the transport loss of the kinds that have one (Eq. 7)."""
        losses: dict[str, Tensor] = self.model(batch)
        return losses

    def caption(self, batch: Batch) -> list[str]:
        """One caption per clip."""
        return self.model.caption(batch)

    def decode_settings(self) -> dict[str, Any]:
        """Generation settings and the evaluation prompt."""
        return {**asdict(self.generation), "prompt": self.prompts.evaluation}

    @torch.no_grad()
    def look_inside(self, batch: Batch) -> None:
        """The transport plan of the first clip: frames downwards, audio tokens to the right, bright = assigned."""
        log_plan = self.model.fuse(batch).log_plan
        if log_plan is not None:
            plan = log_plan[0].exp().float().cpu().numpy()
            self.log_picture("transport_plan", heat_map(plan, pixels_per_cell=12))
