"""BuboGPT as a LightningModule."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

from torch import Tensor

from avcap_zoo.backbones.joiner import Modality
from avcap_zoo.backbones.language import GenerationSettings, LanguageSettings
from avcap_zoo.batch import Batch
from avcap_zoo.systems.base import TEXT_TOKENS, OptimizerSettings, Requirements, StepWork
from avcap_zoo.systems.bubogpt.model import (
    MODALITIES,
    AudioSettings,
    BuboGPTModel,
    JoinerSettings,
    VisionSettings,
)
from avcap_zoo.systems.bubogpt.prompts import PromptSettings
from avcap_zoo.systems.captions import CaptionSystem, ScoreSettings

_FROZEN_PARTS = ("audio_encoder", "vision_encoder", "language")


class BuboGPT(CaptionSystem):
    """A language model that sees pictures and hears sounds: frozen encoders, trained Q-Formers and projections.

    Stage 1 trains a Q-Former and its projection (`training: full`), stage 2 the projections alone
    (`training: projection`), starting from the checkpoint of stage 1 (`start_from`).

    Args:
        language: the language model.
        audio: the audio tower and its input.
        audio_joiner: Q-Former and projection of sound.
        vision: the image encoder and its input.
        vision_joiner: Q-Former and projection of pictures.
        prompts: text around them.
        generation: decoding.
        optimizer: learning rate and schedule.
        scores: which scores are computed.
        modalities: what is built: `vision`, `audio` or both.
        start_from: checkpoint whose weights are taken for all parts that it holds, ours or official.

    Source: Zhao et al., "BuboGPT: Enabling Visual Grounding in Multi-Modal LLMs", arXiv 2307.08581.
    """

    model: BuboGPTModel

    def __init__(
        self,
        language: LanguageSettings,
        audio: AudioSettings,
        audio_joiner: JoinerSettings,
        vision: VisionSettings,
        vision_joiner: JoinerSettings,
        prompts: PromptSettings,
        generation: GenerationSettings,
        optimizer: OptimizerSettings,
        scores: ScoreSettings,
        modalities: tuple[Modality, ...] = MODALITIES,
        start_from: str | None = None,
    ) -> None:
        arguments = {
            "language": language,
            "audio": audio,
            "audio_joiner": audio_joiner,
            "vision": vision,
            "vision_joiner": vision_joiner,
            "prompts": prompts,
            "generation": generation,
            "optimizer": optimizer,
            "scores": scores,
            "modalities": list(modalities),
            "start_from": start_from,
        }
        super().__init__(optimizer, scores, arguments)
        self.language = language
        self.audio = audio
        self.audio_joiner = audio_joiner
        self.vision = vision
        self.vision_joiner = vision_joiner
        self.prompts = prompts
        self.generation = generation
        self.modalities = modalities
        self.start_from = start_from

    @property
    def requirements(self) -> Requirements:
        """Sound at the rate of the clips, and pictures, as far as they are built."""
        rate = self.audio.clips.sample_rate_hz if "audio" in self.modalities else None
        both = (("audio", "audio" in self.modalities), ("visual", "vision" in self.modalities))
        return Requirements(rate, tuple(name for name, used in both if used))  # type: ignore[misc]

    def configure_model(self) -> None:
        """Build the model once, on the device and in the precision that Lightning has set."""
        if not hasattr(self, "model"):
            self.model = BuboGPTModel(
                self.language,
                self.audio,
                self.audio_joiner,
                self.vision,
                self.vision_joiner,
                self.prompts,
                self.generation,
                self.modalities,
                self.start_from,
            )

    def settings_in_use(self) -> dict[str, Any]:
        """As in the base, without the modalities that are not built."""
        built = {*self.modalities, *(f"{modality}_joiner" for modality in self.modalities)}
        parts = {*MODALITIES, *(f"{modality}_joiner" for modality in MODALITIES)}
        return {key: value for key, value in self.init_args.items() if key not in parts - built}

    def step_work(self, num_frames: int) -> StepWork:
        """Every clip is counted with all modalities that are built."""
        positions: dict[str, float] = {}
        foreign = 0
        if self.model.audio_encoder is not None:
            queries = self.audio_joiner.qformer.num_queries * self.audio.clips.num_clips
            positions["audio_encoder"] = self.audio.encoder.num_tokens * self.audio.clips.num_clips
            positions["audio_joiner"] = queries
            foreign += queries
        if self.model.vision_encoder is not None:
            queries = self.vision_joiner.qformer.num_queries
            positions["vision_encoder"] = (self.vision.encoder.image_size_px // self.vision.encoder.patch_size) ** 2 + 1
            positions["vision_joiner"] = queries
            foreign += queries
        positions["language"] = foreign + TEXT_TOKENS
        return StepWork(positions, behind=("language",))

    def checkpoint_names(self) -> set[str]:
        """As in the base, without the constants of frozen encoders, which their own files hold."""
        still = tuple(f"model.{part}." for part in _FROZEN_PARTS if part not in self.model.self_made)
        parameters = self.named_parameters(remove_duplicate=False)  # a tied head has two names, as in the base
        moving = {name for name, parameter in parameters if parameter.requires_grad}
        return {name for name in super().checkpoint_names() if name in moving or not name.startswith(still or ("\0",))}

    def on_fit_start(self) -> None:
        """Keep Lightning from warning that frozen parts are in evaluation mode, which is meant."""
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the answers."""
        losses: dict[str, Tensor] = self.model(batch, self.mean_over_processes)
        return losses

    def caption(self, batch: Batch) -> list[str]:
        """One answer per clip."""
        return self.model.caption(batch)

    def decode_settings(self) -> dict[str, Any]:
        """Generation settings and the prompts."""
        return {**asdict(self.generation), "templates": list(self.prompts.templates), "wrapper": self.prompts.wrapper}
