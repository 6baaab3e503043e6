"""ZerAuCap as a LightningModule."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from avcap_zoo.backbones.audio_text import CropSettings
from avcap_zoo.batch import Batch
from avcap_zoo.decoding.guided import GuidedSettings
from avcap_zoo.errors import ConfigError, WeightsError
from avcap_zoo.systems.base import TEXT_TOKENS, OptimizerSettings, Requirements, StepWork
from avcap_zoo.systems.captions import CaptionSystem, Explanation, ScoreSettings
from avcap_zoo.systems.zeraucap.explaining import explain_caption
from avcap_zoo.systems.zeraucap.model import AudioTextSettings, FrozenLanguageSettings, KeywordSettings, ZerAuCapModel
from avcap_zoo.systems.zeraucap.prompts import KeywordPromptSettings


class ZerAuCap(CaptionSystem):
    """Audio captioning without training: keywords from a sound, and a language model that is guided by it.

    Args:
        audio_text: hears the clip, finds the keywords, judges the candidates.
        language: writes.
        keywords: list and number of keywords; number 0 = row "no keywords".
        prompts: text around them.
        guided: decoding; beta 0 = row "no guidance".
        crop: what is heard of clips that are longer than the audio-text model's window.
        scores: which scores are computed.
        made_by: folders among the sources that a command makes, and that command, for the message when one is absent.

    Source: Salewski et al., "Zero-shot audio captioning with audio-language model guidance and audio context
    keywords", arXiv 2311.08396.
    """

    model: ZerAuCapModel

    def __init__(
        self,
        audio_text: AudioTextSettings,
        language: FrozenLanguageSettings,
        keywords: KeywordSettings,
        prompts: KeywordPromptSettings,
        guided: GuidedSettings,
        crop: CropSettings,
        scores: ScoreSettings,
        made_by: dict[str, str] | None = None,
    ) -> None:
        arguments: dict[str, Any] = {
            "audio_text": audio_text,
            "language": language,
            "keywords": keywords,
            "prompts": prompts,
            "guided": guided,
            "crop": crop,
            "scores": scores,
            "made_by": made_by,
        }
        super().__init__(OptimizerSettings(), scores, arguments)
        self.audio_text = audio_text
        self.language = language
        self.keywords = keywords
        self.prompts = prompts
        self.guided = guided
        self.crop = crop
        self.made_by = made_by or {}

    @property
    def requirements(self) -> Requirements:
        """Sound at the rate of the audio-text model."""
        self._check_sources()
        return Requirements(self.audio_text.sample_rate_hz, ("audio",))

    def setup(self, stage: str) -> None:
        """Check the data module.

        Raises:
            ConfigError: the verb is `fit`, or the data do not fit.
        """
        if stage == "fit":
            raise ConfigError("ZerAuCap is not trained: use test (scores) or predict (captions) with the same -c")
        super().setup(stage)

    def settings_in_use(self) -> dict[str, Any]:
        """As in the base, without the other kind of audio-text model."""
        return self.init_args | {"audio_text": self.audio_text.in_use()}

    def step_work(self, num_frames: int) -> StepWork:
        """A caption: the text once through the language model, the candidates of each token through the judge."""
        judged = self.guided.num_candidates * TEXT_TOKENS // 2 * TEXT_TOKENS
        return StepWork({"language": TEXT_TOKENS, "audio_text": judged})

    def configure_model(self) -> None:
        """Build the model once, on the device that Lightning has set.

        Raises:
            WeightsError: a folder of `made_by` does not exist; names the command.
        """
        if not hasattr(self, "model"):
            self._check_sources()
            self.model = ZerAuCapModel(
                self.audio_text, self.language, self.keywords, self.prompts, self.guided, self.crop
            )

    def caption(self, batch: Batch) -> list[str]:
        """One caption per clip."""
        return self.model.caption(batch)

    def decode_settings(self) -> dict[str, Any]:
        """Decoding, keywords, prompt, crop, and which models."""
        audio_text = self.audio_text
        hears = audio_text.checkpoint if audio_text.kind == "wavcaps" else audio_text.clap.source
        return {
            **asdict(self.guided),
            "keywords": self.keywords.source,
            "num_keywords": self.keywords.num_keywords,
            "prompts": asdict(self.prompts),
            "crop": asdict(self.crop),
            "audio_text": f"{audio_text.kind}: {hears}",
            "language": self.language.source,
        }

    def explain(self, batch: Batch) -> list[Explanation]:
        """Caption each clip; show its keywords, and the best candidates of each step with what they scored."""
        tokenizer = self.model.language.tokenizer
        return [explain_caption(clip, tokenizer) for clip in self.model.describe(batch, trace=True)]

    def on_validation_epoch_start(self) -> None:
        """Forget the last scores; begin the crops again."""
        super().on_validation_epoch_start()
        self.model.restart_crops()

    def on_test_epoch_start(self) -> None:
        """Forget the last scores; begin the crops again."""
        super().on_test_epoch_start()
        self.model.restart_crops()

    def on_predict_epoch_start(self) -> None:
        """Forget the last captions; begin the crops again."""
        super().on_predict_epoch_start()
        self.model.restart_crops()

    def _check_sources(self) -> None:
        absent = {folder: command for folder, command in self.made_by.items() if not Path(folder).is_dir()}
        if absent:
            commands = "; ".join(f"{folder} does not exist, make it: {command}" for folder, command in absent.items())
            raise WeightsError(commands)
