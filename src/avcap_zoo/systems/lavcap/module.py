"""LAVCap as a LightningModule."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from avcap_zoo.backbones.language import GenerationSettings, LanguageSettings
from avcap_zoo.backbones.vision.clip import CLIPFrameEncoder, CLIPSettings
from avcap_zoo.batch import Batch, ClipSource, FrozenEncoder, Modality
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.base import TEXT_TOKENS, OptimizerSettings, Requirements, StepWork
from avcap_zoo.systems.captions import CaptionSystem, Explanation, ScoreSettings
from avcap_zoo.systems.lavcap.fusion import FusionSettings
from avcap_zoo.systems.lavcap.inside import SAMPLE_RATE_HZ, draw, look_at
from avcap_zoo.systems.lavcap.model import (
    AudioSettings,
    LAVCapModel,
    PromptSettings,
    build_audio_encoder,
    frozen_audio,
    frozen_vision,
)


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

    def settings_in_use(self) -> dict[str, Any]:
        """As in the base, without the encoders that the fusion kind does not build."""
        unused = {"audio": not self.fusion.needs_audio, "vision": not self.fusion.needs_vision}
        return {key: value for key, value in self.init_args.items() if not unused.get(key)}

    def step_work(self, num_frames: int) -> StepWork:
        """Patches of the encoders; audio tokens, frames and text in the language model."""
        positions: dict[str, float] = {}
        heard = seen = 0
        if self.fusion.needs_audio:
            audio = self.model.audio_encoder
            heard = audio.time_pos_embed.shape[-1]
            positions["audio_encoder"] = heard * audio.freq_pos_embed.shape[-2]
        if self.fusion.needs_vision:
            seen = num_frames
            positions["vision_encoder"] = seen * self.model.vision_encoder.num_patches
        positions["projector"] = heard + seen
        positions["language"] = heard + seen + TEXT_TOKENS
        return StepWork(positions, behind=("language",))

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
        losses: dict[str, Tensor] = self.model(batch, self.mean_over_processes)
        return losses

    def caption(self, batch: Batch) -> list[str]:
        """One caption per clip."""
        return self.model.caption(batch)

    def decode_settings(self) -> dict[str, Any]:
        """Generation settings and the evaluation prompt."""
        return {**asdict(self.generation), "prompt": self.prompts.evaluation}

    @torch.no_grad()
    def explain(self, batch: Batch) -> list[Explanation]:
        """Captions, each with its frames over its spectrogram over its transport plan, on one time axis."""
        fused = self.model.fuse(batch)
        captions = self.model.caption(batch, fused)
        return [
            Explanation(clip_id, caption, draw(inside, clip_id=clip_id, caption=caption, kind=self.fusion.kind))
            for clip_id, caption, inside in zip(
                batch.clip_ids, captions, look_at(self.model, batch, fused), strict=True
            )
        ]

    def look_inside(self, batch: Batch) -> None:
        """Log the picture of the first clip; a batch of cached features is decoded anew for it."""
        data = getattr(self.trainer, "datamodule", None)
        if (batch.audio_features is not None or batch.visual_features is not None) and isinstance(data, ClipSource):
            raw = next(iter(data.plain_loader("val", 1, self.requirements.modalities)))
            known = {"audio": raw.waveform, "visual": raw.frames}
            if len(raw) and all(known[modality] is not None for modality in self.requirements.modalities):
                batch = raw.to(self.device)
        picture = self.explain(batch.first())[0].picture
        if picture is not None:
            self.log_picture("inside", picture)
