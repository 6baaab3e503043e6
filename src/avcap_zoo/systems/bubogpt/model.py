"""BuboGPT without Lightning: frozen encoders, a Q-Former and a projection per modality, language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.audio.imagebind import ImageBindAudio, ImageBindAudioSettings
from avcap_zoo.backbones.joiner import Joiner, Modality
from avcap_zoo.backbones.language import (
    CausalLanguageModel,
    GenerationSettings,
    LanguageSettings,
    PrefixedText,
    is_shared_out,
)
from avcap_zoo.backbones.qformer import QFormerSettings
from avcap_zoo.backbones.vision.eva import EVA, EVASettings
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError, WeightsError
from avcap_zoo.ops.audio_clips import AudioClipSettings, mel_clips
from avcap_zoo.ops.random_crop import random_crops
from avcap_zoo.ops.spec_augment import mix_stripes
from avcap_zoo.ops.zero_loss import zero_loss
from avcap_zoo.systems.bubogpt.prompts import (
    PromptSettings,
    Row,
    answer_ids,
    answer_of,
    assemble,
    matching_templates,
    modalities_in,
    prompt_row,
    with_markers,
)
from avcap_zoo.weights.load import compare_keys, load_tensors
from avcap_zoo.weights.published import (
    load_blip2_qformer,
    load_eva,
    load_imagebind_audio,
    load_joiners,
    load_minigpt4_projection,
)

JoinerTraining = Literal["frozen", "projection", "full"]
MODALITIES: tuple[Modality, ...] = ("vision", "audio")
OFFICIAL_PREFIX, OUR_PREFIX = "multimodal_joiner.", "model."


@dataclass
class AudioSettings:
    """How it listens.

    Args:
        encoder: the audio tower, always frozen.
        clips: how a sound becomes log-mel clips.
        checkpoint: `imagebind_huge.pth`; None = random weights.
        mix_bins: mixture masking in training, widest stripe in mel bins, 0 = none.
        mix_frames: longest stripe in frames, 0 = none.
    """

    encoder: ImageBindAudioSettings = field(default_factory=ImageBindAudioSettings)
    clips: AudioClipSettings = field(default_factory=AudioClipSettings)
    checkpoint: str | None = None
    mix_bins: int = 8
    mix_frames: int = 13


@dataclass
class VisionSettings:
    """How it looks.

    Args:
        encoder: the image encoder, always frozen.
        checkpoint: `eva_vit_g.pth`; None = random weights.
        norm_checkpoint: `blip2_pretrained_flant5xxl.pth`, which has the norm behind the encoder.
        augment: in training a random part of the picture is shown, at least half of its area.
    """

    encoder: EVASettings = field(default_factory=EVASettings)
    checkpoint: str | None = None
    norm_checkpoint: str | None = None
    augment: bool = True


@dataclass
class JoinerSettings:
    """The Q-Former of one modality and its projection.

    Args:
        qformer: its size.
        training: `frozen`, `projection` (the Q-Former stays) or `full`.
        qformer_checkpoint: BLIP-2's file; None = random weights, or those of `start_from`.
        projection_checkpoint: MiniGPT-4's file; None = likewise.
        text_branch: True builds and trains, as released, the text branch of the Q-Former, which nothing reads: the
            81,144,378 parameters between the 102,413,824 of stage 1 and its published 183,558,202.
    """

    qformer: QFormerSettings = field(default_factory=QFormerSettings)
    training: JoinerTraining = "full"
    qformer_checkpoint: str | None = None
    projection_checkpoint: str | None = None
    text_branch: bool = False


class BuboGPTModel(nn.Module):
    """BuboGPT (arXiv 2307.08581, Fig. 2). Modalities without settings are not built.

    Args:
        language: causal language model.
        audio: the audio tower and its input.
        audio_joiner: what stands between it and the language model.
        vision: the image encoder and its input.
        vision_joiner: what stands between it and the language model.
        prompts: text around pictures and sounds.
        generation: decoding of captions.
        modalities: what is built.
        start_from: checkpoint whose weights are taken for all parts that it holds: one of ours (`.ckpt`), or an
            official one with `multimodal_joiner.*`.

    Raises:
        ConfigError, WeightsError: from the parts, with the key in the message.
    """

    def __init__(
        self,
        language: LanguageSettings,
        audio: AudioSettings,
        audio_joiner: JoinerSettings,
        vision: VisionSettings,
        vision_joiner: JoinerSettings,
        prompts: PromptSettings,
        generation: GenerationSettings,
        modalities: Sequence[Modality] = MODALITIES,
        start_from: str | None = None,
    ) -> None:
        super().__init__()
        _check_prompts(prompts)
        if not modalities:
            raise ConfigError("model.init_args.modalities is empty, wanted vision, audio or both")
        self.audio_settings = audio
        self.vision_settings = vision
        self.prompts = prompts
        self.generation = generation
        self.modalities = tuple(modality for modality in MODALITIES if modality in modalities)
        self.language = CausalLanguageModel(language)
        if not self.language.end_sequences(prompts.end):
            raise ConfigError(
                f"model.init_args.prompts.end: the tokenizer makes no token of {prompts.end!r}, and no answer would end"
            )
        self.audio_encoder: ImageBindAudio | None = None
        self.vision_encoder: EVA | None = None
        self.audio_joiner: Joiner | None = None
        self.vision_joiner: Joiner | None = None
        if "audio" in modalities:
            self.audio_encoder = _audio_encoder(audio)
            self.audio_joiner = _joiner(audio_joiner, self.audio_encoder.embed_dim, self.language.embed_dim)
        if "vision" in modalities:
            self.vision_encoder = _vision_encoder(vision)
            self.vision_joiner = _joiner(vision_joiner, self.vision_encoder.embed_dim, self.language.embed_dim)
        started = _start(self, start_from) if start_from is not None else set()
        homes: dict[str, str | None] = {"language": language.source}
        if self.audio_encoder is not None:
            homes |= {
                "audio_encoder": audio.checkpoint,
                "audio_joiner.qformer": audio_joiner.qformer_checkpoint,
                "audio_joiner.projection": audio_joiner.projection_checkpoint,
            }
        if self.vision_encoder is not None:
            homes |= {
                "vision_encoder": vision.checkpoint,
                "vision_joiner.qformer": vision_joiner.qformer_checkpoint,
                "vision_joiner.projection": vision_joiner.projection_checkpoint,
            }
        self.self_made = [
            part for part, home in homes.items() if home is None and not self._came_whole_and_stays(part, started)
        ]
        """Parts without a file of their own: their weights exist only in this model and its checkpoints."""
        self.train()

    def _came_whole_and_stays(self, part: str, started: set[str]) -> bool:
        """Whether a part's weights are all those of `start_from`."""
        module = self.get_submodule(part)
        trained = any(parameter.requires_grad for parameter in module.parameters())
        return not trained and all(f"{part}.{name}" in started for name in module.state_dict())

    def train(self, mode: bool = True) -> BuboGPTModel:
        """Set training mode. What is frozen stays in evaluation mode, and so has no dropout.

        A frozen language model that recomputes its activations is set to training: transformers wants it so.
        """
        super().train(mode)
        parts: list[nn.Module | None] = [self.audio_encoder, self.vision_encoder]
        parts += [joiner.qformer for joiner in self.joiners.values()]
        if not self.language.settings.gradient_checkpointing:
            parts.append(self.language)
        for part in parts:
            if part is not None and not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    @property
    def joiners(self) -> dict[Modality, Joiner]:
        """What is built, by modality."""
        both: dict[Modality, Joiner | None] = {"vision": self.vision_joiner, "audio": self.audio_joiner}
        return {modality: joiner for modality, joiner in both.items() if joiner is not None}

    # From media to tokens

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """(B, queries, C) tokens of the language model of (B, S) waveforms at the settings' sample rate.

        Raises:
            ConfigError: the model was built without audio.
            ShapeError: no such waveform.
        """
        if self.audio_encoder is None or self.audio_joiner is None:
            raise ConfigError("this model does not listen: model.init_args.modalities lacks audio")
        settings = self.audio_settings
        with torch.no_grad():
            clips = mel_clips(waveform, num_samples, settings.clips, training=self.training)
            if self.training and (settings.mix_bins or settings.mix_frames):
                clips = mix_stripes(clips, max_bins=settings.mix_bins, max_frames=settings.mix_frames)
            tokens = self.audio_encoder(clips)
        joined: Tensor = self.audio_joiner(tokens)
        return joined

    def encode_vision(self, images: Tensor) -> Tensor:
        """(B, queries, C) tokens of the language model of (B, 3, H, W) uint8 pictures.

        Raises:
            ConfigError: the model was built without vision.
            ShapeError: no such pictures.
        """
        if self.vision_encoder is None or self.vision_joiner is None:
            raise ConfigError("this model does not look: model.init_args.modalities lacks vision")
        with torch.no_grad():
            if self.training and self.vision_settings.augment:
                images = random_crops(images, self.vision_encoder.image_size_px)
            tokens = self.vision_encoder(images)
        joined: Tensor = self.vision_joiner(tokens.float())
        return joined

    def present(self, batch: Batch) -> list[tuple[Modality, ...]]:
        """The modalities of each clip that the model was built for.

        A clip without samples has no sound, and one whose frames are all masked no picture.
        """
        heard = [False] * len(batch)
        seen = [False] * len(batch)
        if "audio" in self.modalities and batch.waveform is not None and batch.num_samples is not None:
            heard = (batch.num_samples > 0).tolist()
        if "vision" in self.modalities and batch.frames is not None:
            seen = [True] * len(batch) if batch.frame_mask is None else batch.frame_mask.any(dim=1).tolist()
        return [
            tuple(modality for modality, there in (("vision", sees), ("audio", hears)) if there)  # type: ignore[misc]
            for sees, hears in zip(seen, heard, strict=True)
        ]

    def tokens_of(self, batch: Batch, wanted: Sequence[Sequence[Modality]]) -> dict[Modality, Tensor]:
        """Tokens of the modalities that each clip's prompt names, clip by clip.

        Args:
            batch: B clips.
            wanted: of each clip.

        Returns:
            By modality (clips that name it, queries, C); of several frames the middle one is looked at.
        """
        tokens: dict[Modality, Tensor] = {}
        hearing = [index for index, named in enumerate(wanted) if "audio" in named]
        seeing = [index for index, named in enumerate(wanted) if "vision" in named]
        if hearing and batch.waveform is not None and batch.num_samples is not None:
            tokens["audio"] = self.encode_audio(batch.waveform[hearing], batch.num_samples[hearing])
        if seeing and batch.frames is not None:
            frames = batch.frames[seeing]
            real = frames.new_full((len(frames),), frames.shape[1], dtype=torch.long)
            if batch.frame_mask is not None:
                real = batch.frame_mask[seeing].sum(dim=1)
            tokens["vision"] = self.encode_vision(frames[torch.arange(len(frames), device=frames.device), real // 2])
        return tokens

    # Training and captions

    def rows(self, batch: Batch, *, answers: bool) -> list[Row]:
        """The text of each clip: its own question, else a template that names its modalities, else none.

        Args:
            batch: B clips.
            answers: with the captions to learn.

        Raises:
            ConfigError: a question names a modality that its clip does not have, or a clip has nothing at all.
        """
        rows = []
        for index, present in enumerate(self.present(batch)):
            question = batch.instruction[index] if batch.instruction is not None else None
            if question is not None:
                question = with_markers(question, present)
            else:
                fitting = matching_templates(self.prompts.templates, present)
                chosen = int(torch.randint(len(fitting), ())) if fitting and self.training else 0
                question = fitting[chosen] if fitting else None
            named = present if question is None else modalities_in(question)
            clip = batch.clip_ids[index]
            if question is None and not present:
                raise ConfigError(f"clip {clip} has neither picture nor sound nor question")
            lacking = [modality for modality in named if modality not in present]
            if lacking:
                raise ConfigError(f"clip {clip}: its question names {lacking[0]}, and the clip has none: {question!r}")
            own = batch.instruction is not None
            row = prompt_row(self.language, self.prompts, question, present, own)
            if answers:
                row.answer = answer_ids(self.language, self.prompts, batch.caption[index])
            rows.append(row)
        return rows

    def text(self, batch: Batch, *, answers: bool) -> PrefixedText:
        """The sequences of a batch; arguments and errors as in `rows`."""
        rows = self.rows(batch, answers=answers)
        tokens = self.tokens_of(batch, [row.modalities for row in rows])
        return assemble(self.language, rows, tokens, released_layout=self.prompts.released_layout)

    def forward(self, batch: Batch, mean_count: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
        """Losses of a training batch: `caption`, the cross-entropy of answers and their ends.

        Args:
            batch: B clips.
            mean_count: see `CausalLanguageModel.loss`.
        """
        text = self.text(batch, answers=True)
        # A batch without pictures, or without sound, gives its joiner zero gradients: with none at all, processes that
        # train together would wait for each other, and one process would step otherwise than they do.
        trained = [p for joiner in self.joiners.values() for p in joiner.parameters() if p.requires_grad]
        nothing = zero_loss(trained)
        if is_shared_out(self.language.model):  # its layers must then run backwards for text alone, too
            text.inputs_embeds = text.inputs_embeds + nothing
            return {"caption": self.language.loss(text, mean_count=mean_count)}
        return {"caption": self.language.loss(text, mean_count=mean_count) + nothing}

    @torch.no_grad()
    def caption(self, batch: Batch) -> list[str]:
        """One answer per clip, to its own question or to the first template that fits."""
        stop = self.language.end_sequences(self.prompts.end)
        ids = self.language.generate(self.text(batch, answers=False), self.generation, stop=stop)
        end = self.end_of(self.prompts.end)
        texts = self.language.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(answer_of(text, end).split()) for text in texts]

    def end_of(self, end: str) -> str:
        """An end as it stands in decoded text: tokenizers may put white space into it."""
        ids = self.language.tokenizer("a" + end, add_special_tokens=False).input_ids
        decoded: str = self.language.tokenizer.decode(ids)
        return decoded.strip().removeprefix("a").strip() or end


def _check_prompts(prompts: PromptSettings) -> None:
    key = "model.init_args.prompts"
    if prompts.wrapper and prompts.wrapper.count("{}") != 1:
        raise ConfigError(f"{key}.wrapper: {prompts.wrapper!r} must hold {{}} exactly once (or be empty)")
    if prompts.max_text_tokens < 1:
        raise ConfigError(f"{key}.max_text_tokens is {prompts.max_text_tokens}, wanted at least 1")
    if not prompts.end:
        raise ConfigError(f"{key}.end is empty, and no answer would end")
    for template in prompts.templates:
        try:
            modalities_in(template)
        except ConfigError as error:
            raise ConfigError(f"{key}.templates: {error}") from error


def _audio_encoder(settings: AudioSettings) -> ImageBindAudio:
    encoder, clips = settings.encoder, settings.clips
    if (encoder.num_mel_bins, encoder.target_length) != (clips.num_mel_bins, clips.target_length):
        raise ConfigError(
            f"model.init_args.audio: clips are {clips.num_mel_bins} bins x {clips.target_length} frames, the encoder "
            f"takes {encoder.num_mel_bins} x {encoder.target_length}: set num_mel_bins and target_length alike"
        )
    built = ImageBindAudio(encoder)
    if settings.checkpoint is not None:
        load_imagebind_audio(built, settings.checkpoint)
    return built.requires_grad_(False)


def _vision_encoder(settings: VisionSettings) -> EVA:
    if settings.norm_checkpoint is not None and settings.checkpoint is None:
        raise ConfigError(
            "model.init_args.vision: norm_checkpoint alone is not read: give the encoder's checkpoint, too"
        )
    built = EVA(settings.encoder)
    if settings.checkpoint is not None:
        load_eva(built, settings.checkpoint, settings.norm_checkpoint)
    return built.requires_grad_(False)


def _joiner(settings: JoinerSettings, encoder_dim: int, language_dim: int) -> Joiner:
    joiner = Joiner(settings.qformer, encoder_dim, language_dim, text_branch=settings.text_branch)
    if settings.qformer_checkpoint is not None:
        load_blip2_qformer(joiner.qformer, settings.qformer_checkpoint)
    if settings.projection_checkpoint is not None:
        load_minigpt4_projection(joiner.projection, settings.projection_checkpoint)
    joiner.requires_grad_(settings.training == "full")
    joiner.projection.requires_grad_(settings.training != "frozen")
    return joiner


def _start(model: BuboGPTModel, path: str) -> set[str]:
    """Load what a checkpoint holds; names of what was loaded.

    Raises:
        WeightsError: with the key in the message.
    """
    tensors = load_tensors(path)
    state = model.state_dict()
    if any(name.startswith(OFFICIAL_PREFIX) for name in tensors):
        load_joiners(model.joiners, path)
        whole = [m for m in model.joiners if any(f"modality_qformers.{m}." in name for name in tensors)]
        held = tuple(f"{m}_joiner." if m in whole else f"{m}_joiner.projection." for m in model.joiners)
        return {name for name in state if name.startswith(held)}
    ours = {name.removeprefix(OUR_PREFIX): value for name, value in tensors.items()}
    problems = compare_keys({name: tuple(value.shape) for name, value in state.items() if name in ours}, ours)
    if problems or not ours:
        raise WeightsError(
            f"model.init_args.start_from: {path} does not fit the model: {problems or 'it holds no tensors'}"
        )
    model.load_state_dict(ours, strict=False)
    return set(ours)
