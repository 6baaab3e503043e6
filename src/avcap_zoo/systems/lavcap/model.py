"""LAVCap without Lightning: encoders, optimal-transport fusion, projector, language model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.adapters import LoRASettings, TrainingMode, set_training_mode
from avcap_zoo.backbones.audio.ced import CED, CEDSettings
from avcap_zoo.backbones.language import CausalLanguageModel, GenerationSettings, LanguageSettings
from avcap_zoo.backbones.vision.clip import CLIPFrameEncoder, CLIPSettings
from avcap_zoo.batch import Batch, FrozenEncoder, Modality
from avcap_zoo.errors import ConfigError, ShapeError, WeightsError
from avcap_zoo.ops.masking import length_mask
from avcap_zoo.ops.spec_augment import spec_augment
from avcap_zoo.systems.lavcap.fusion import FusedTokens, Fusion, FusionSettings
from avcap_zoo.systems.lavcap.keymap import ced_to_encoder
from avcap_zoo.weights.fingerprint import fingerprint
from avcap_zoo.weights.load import load_strictly, load_tensors

MARKER = "<SpeechHere>"
EVALUATION_PROMPT = "USER: <Speech><SpeechHere></Speech> Please describe the audio.\nASSISTANT:"


@dataclass
class AudioSettings:
    """The audio encoder.

    Args:
        encoder: its size and input.
        checkpoint: official CED file (`audiotransformer_base_mAP_4999.pt`); None = random weights.
        training: `frozen`, `lora` or `full`.
        lora: adapters of mode `lora`.
        mask_padding: True hides tokens that hear only padding; the released code keeps all.
        augment_bins: SpecAugment, widest band in mel bins, 0 = none.
        augment_frames: SpecAugment, longest span in frames, 0 = none.
    """

    encoder: CEDSettings = field(default_factory=CEDSettings)
    checkpoint: str | None = None
    training: TrainingMode = "lora"
    lora: LoRASettings = field(default_factory=LoRASettings)
    mask_padding: bool = False
    augment_bins: int = 48
    augment_frames: int = 192


@dataclass
class PromptSettings:
    """The text around the tokens; each holds the marker `<SpeechHere>` once.

    Args:
        training: one is drawn for each clip.
        evaluation: used for every generated caption.
        max_caption_tokens: longer captions are cut in training; the end token stays.
        released_gap: True leaves masked padding between prompt and caption, as the released code does.
        label_smoothing: of the caption loss.
    """

    training: tuple[str, ...] = (EVALUATION_PROMPT,)
    evaluation: str = EVALUATION_PROMPT
    max_caption_tokens: int = 300
    released_gap: bool = False
    label_smoothing: float = 0.0


class LAVCapModel(nn.Module):
    """LAVCap (arXiv 2501.09291, Fig. 1). Sizes are those of its parts.

    Args:
        audio: CED encoder.
        vision: CLIP encoder, always frozen; not built for `audio_only`.
        language: causal language model.
        fusion: how audio and visual tokens meet.
        prompts: text around them.
        generation: decoding of captions.

    Raises:
        ConfigError, WeightsError: from the parts, with the key in the message.
    """

    def __init__(
        self,
        audio: AudioSettings,
        vision: CLIPSettings,
        language: LanguageSettings,
        fusion: FusionSettings,
        prompts: PromptSettings,
        generation: GenerationSettings,
    ) -> None:
        super().__init__()
        for prompt in (*prompts.training, prompts.evaluation):
            if prompt.count(MARKER) != 1:
                raise ConfigError(f"model.init_args.prompts: {prompt!r} must hold {MARKER} exactly once")
        self.audio_settings = audio
        self.prompts = prompts
        self.generation = generation
        self.language = CausalLanguageModel(language)
        if fusion.needs_audio:
            self.audio_encoder = build_audio_encoder(audio)
        if fusion.needs_vision:
            self.vision_encoder = CLIPFrameEncoder(vision).requires_grad_(False)
        visual_width = self.vision_encoder.embed_dim if fusion.needs_vision else 0
        self.fusion = Fusion(fusion, audio.encoder.embed_dim, visual_width)
        self.projector = nn.Linear(self.fusion.width, self.language.embed_dim)
        self.self_made = [
            name
            for name, source, built in (
                ("audio_encoder", audio.checkpoint, fusion.needs_audio),
                ("vision_encoder", vision.source, fusion.needs_vision),
                ("language", language.source, True),
            )
            if built and source is None
        ]
        """Backbones without a file of their own: their weights exist only in this model and its checkpoints."""
        self._accepted_keys: set[str] = set()

    def train(self, mode: bool = True) -> LAVCapModel:
        """Set training mode; the frozen vision encoder stays in evaluation mode."""
        super().train(mode)
        if self.fusion.settings.needs_vision:
            self.vision_encoder.eval()
        return self

    @property
    def audio_is_constant(self) -> bool:
        """Whether a clip's audio tokens never change in training, so that they may be computed once."""
        return self.fusion.settings.needs_audio and tokens_are_constant(self.audio_settings)

    def frozen_encoder(self, modality: Modality) -> FrozenEncoder:
        """The encoder of a modality whose tokens may be cached.

        Raises:
            ConfigError: the fusion kind does not use the modality, or its tokens change in training.
        """
        settings = self.fusion.settings
        if not (settings.needs_vision if modality == "visual" else settings.needs_audio):
            raise ConfigError(f"fusion.kind {settings.kind} uses no {modality} features: there is nothing to cache")
        if modality == "visual":
            return frozen_vision(self.vision_encoder)
        return frozen_audio(self.audio_encoder, self.audio_settings)

    def spectrogram(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """(B, T, F) input of the audio encoder, of (B, S) waveforms at 16 kHz."""
        return self.audio_encoder.spectrogram(waveform, num_samples)

    def encode_spectrogram(self, spectrogram: Tensor) -> Tensor:
        """(B, T', C) audio tokens of (B, T, F) spectrograms: encoder, then mean over frequency (`spec_f_mean`)."""
        if self.training and (self.audio_settings.augment_bins or self.audio_settings.augment_frames):
            spectrogram = spec_augment(
                spectrogram,
                max_bins=self.audio_settings.augment_bins,
                max_frames=self.audio_settings.augment_frames,
                value=self.audio_settings.encoder.blank_value,
            )
        tokens: Tensor = self.audio_encoder(spectrogram).mean(dim=1)
        return tokens

    def encode_audio(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Audio tokens (B, T', C) and their mask (B, T'): cached ones if the batch has them, else CED's.

        Raises:
            ConfigError: the batch has no sound.
            ShapeError: cached tokens of another width.
            WeightsError: cached tokens of another encoder.
        """
        if batch.audio_features is not None and batch.audio_mask is not None:
            self._check_cached(batch, "audio", batch.audio_features.shape[2], self.audio_settings.encoder.embed_dim)
            return batch.audio_features, batch.audio_mask
        if batch.waveform is None or batch.num_samples is None:
            raise ConfigError(f"fusion.kind {self.fusion.settings.kind} needs sound, the data module gives none")
        tokens = self.encode_spectrogram(self.spectrogram(batch.waveform, batch.num_samples))
        return tokens, token_mask(self.audio_encoder, self.audio_settings, tokens, batch.num_samples)

    def encode_vision(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Visual tokens (B, K, C) and their mask (B, K): cached features if the batch has them, else CLIP's.

        Raises:
            ConfigError: the batch has neither frames nor features.
            ShapeError: cached features of another width.
            WeightsError: cached features of another encoder.
        """
        mask = batch.frame_mask
        if batch.visual_features is not None:
            features = batch.visual_features
            self._check_cached(batch, "visual", features.shape[2], self.vision_encoder.embed_dim)
        elif batch.frames is not None:
            with torch.no_grad():
                features = self.vision_encoder(batch.frames)
        else:
            raise ConfigError(f"fusion.kind {self.fusion.settings.kind} needs pictures, the data module gives none")
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return features, mask

    def _check_cached(self, batch: Batch, modality: Modality, found: int, width: int) -> None:
        """Refuse features that this model's encoder would not give."""
        if found != width:
            raise ShapeError(
                f"cached {modality} features have width {found}, the {modality} encoder gives {width}: "
                f"they were made with another encoder"
            )
        key = batch.feature_keys.get(modality)
        if key is None or key in self._accepted_keys:
            return
        own = self.frozen_encoder(modality).key
        if key != own:
            raise WeightsError(
                f"the cached {modality} features come from the encoder {key}, the configured one is {own}: make them "
                f"anew with avcap cache {modality}, or remove data.init_args.{modality}_cache"
            )
        self._accepted_keys.add(key)

    def fuse(self, batch: Batch) -> FusedTokens:
        """Encode and join what the fusion kind uses of a batch."""
        audio = audio_mask = visual = visual_mask = None
        if self.fusion.settings.needs_audio:
            audio, audio_mask = self.encode_audio(batch)
        if self.fusion.settings.needs_vision:
            visual, visual_mask = self.encode_vision(batch)
        fused: FusedTokens = self.fusion(audio, visual, audio_mask, visual_mask)
        return fused

    def forward(self, batch: Batch, mean_count: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Losses of a training batch.

        Args:
            batch: B clips.
            mean_count: see `CausalLanguageModel.loss`.

        Returns:
            `caption` (cross-entropy of the caption tokens) and, for kinds with transport, `ot` (already weighted).

        Source: LAVCap Eq. 5-7.
        """
        fused = self.fuse(batch)
        chosen = torch.randint(len(self.prompts.training), (len(batch),)).tolist()
        prompts = [self.prompts.training[index] for index in chosen]
        before, after = self._prompt_ids(prompts, self.prompts.training)
        caption = self.language.token_ids(batch.caption, end=True, max_tokens=self.prompts.max_caption_tokens)
        text = self.language.wrap(
            self.projector(fused.tokens), fused.mask, before, after, caption, keep_gaps=self.prompts.released_gap
        )
        smoothing = self.prompts.label_smoothing
        losses = {"caption": self.language.loss(text, label_smoothing=smoothing, mean_count=mean_count)}
        if fused.ot_loss is not None:
            losses["ot"] = fused.ot_loss
        return losses

    @torch.no_grad()
    def caption(self, batch: Batch, fused: FusedTokens | None = None) -> list[str]:
        """One caption per clip, decoded with the evaluation prompt.

        Args:
            batch: B clips.
            fused: what `fuse` made of this batch, where that is known already.
        """
        fused = self.fuse(batch) if fused is None else fused
        before, after = self._prompt_ids([self.prompts.evaluation] * len(batch), [])
        text = self.language.wrap(self.projector(fused.tokens), fused.mask, before, after)
        return self.language.decode(self.language.generate(text, self.generation))

    def _prompt_ids(
        self, prompts: Sequence[str], possible: Sequence[str]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Ids and masks of the text before and after the marker, tokenised apart as released.

        Where shapes are to be few, they are as long as the longest of all `possible` prompts.
        """
        longest = possible if self.language.length_buckets else []
        halves = zip(*(prompt.split(MARKER) for prompt in (*prompts, *longest)), strict=True)
        before, after = (self.language.token_ids(texts) for texts in halves)
        count = len(prompts)
        return (before[0][:count], before[1][:count]), (after[0][:count], after[1][:count])


def build_audio_encoder(settings: AudioSettings) -> CED:
    """The audio encoder with its checkpoint, adapters and frozen parts.

    Raises:
        WeightsError: the checkpoint cannot be read or does not fit.
    """
    encoder = CED(settings.encoder)
    if settings.checkpoint is not None:
        tensors = ced_to_encoder(load_tensors(settings.checkpoint), settings.encoder)
        load_strictly(encoder, tensors, settings.checkpoint)
    set_training_mode(encoder, settings.training, settings.lora, "model.init_args.audio")
    if settings.training != "full" and settings.encoder.frozen_batch_norm == "eval":
        encoder.freeze_batch_norm()
    return encoder


def tokens_are_constant(settings: AudioSettings) -> bool:
    """Whether a clip's audio tokens depend on nothing but the clip: no training, and no longer clip beside it."""
    alone = settings.encoder.front_end == "kaldi"  # of fixed length; the other is as long as the batch
    still = alone and settings.training == "frozen" and settings.encoder.frozen_batch_norm == "eval"
    return still and not (settings.augment_bins or settings.augment_frames)


def token_mask(encoder: CED, settings: AudioSettings, tokens: Tensor, num_samples: Tensor) -> Tensor:
    """(B, T') mask of (B, T', C) audio tokens: those that hear more than padding, or all of them as released."""
    if not settings.mask_padding:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return length_mask(encoder.num_tokens(num_samples), tokens.shape[1])


def frozen_vision(encoder: CLIPFrameEncoder) -> FrozenEncoder:
    """The vision encoder by itself, for a feature cache."""

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.frames is None or batch.frame_mask is None:
            raise ConfigError("visual features are made of pictures, the data module gives none")
        return encoder(batch.frames), batch.frame_mask

    config = encoder.model.config
    shape = {name: getattr(config, name) for name in ("image_size", "patch_size", "num_attention_heads", "hidden_act")}
    return FrozenEncoder("visual", encoder, encode, f"clip-{_hash([fingerprint(encoder.state_dict()), shape])}")


def frozen_audio(encoder: CED, settings: AudioSettings) -> FrozenEncoder:
    """The audio encoder and its front end by themselves, for a feature cache.

    Raises:
        ConfigError: its tokens change in training.
    """
    if not tokens_are_constant(settings):
        raise ConfigError(
            f"audio tokens change in training (model.init_args.audio.training is {settings.training}, "
            f"encoder.frozen_batch_norm {settings.encoder.frozen_batch_norm}, augment_bins {settings.augment_bins}, "
            f"augment_frames {settings.augment_frames}) or with the batch (encoder.front_end "
            f"{settings.encoder.front_end}): they can be cached with frozen, eval, 0, 0 and kaldi only"
        )

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.waveform is None or batch.num_samples is None:
            raise ConfigError("audio features are made of sound, the data module gives none")
        tokens = encoder(encoder.spectrogram(batch.waveform, batch.num_samples)).mean(dim=1)
        return tokens, token_mask(encoder, settings, tokens, batch.num_samples)

    made_with = [fingerprint(encoder.state_dict()), asdict(settings.encoder), settings.mask_padding]
    return FrozenEncoder("audio", encoder, encode, f"ced-{_hash(made_with)}")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
