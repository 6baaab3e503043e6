"""A short training of LAVCap's self-made backbones, in the place of the pre-training that CED, CLIP and Llama bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.audio.ced import CED, PATCH_SIZE
from avcap_zoo.backbones.language import CausalLanguageModel
from avcap_zoo.batch import ClipSource, FrozenEncoder, Modality
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.lavcap.model import LAVCapModel
from avcap_zoo.systems.lavcap.module import LAVCap
from avcap_zoo.systems.preparation import Lesson, PrepareParts, Task, endless, label_columns, labelled_frames


class PrepareBackbones(PrepareParts):
    """Before a fit from nothing: teach the audio encoder sounds, the vision encoder objects, the decoder captions.

    Beside what `PrepareParts` does, what frozen encoders make of the training and validation clips is stored in the
    cache, and the data module reads that instead of decoding and encoding the same clips again and again.

    Args:
        audio_steps: optimizer steps on time-wise sound labels; 0 = leave the audio encoder as it is.
        vision_steps: steps on frame-wise object labels.
        language_steps: steps on the training captions alone.
        batch_size: clips or captions per step; frames per step are eight times as many.
        lr: peak learning rate of AdamW, one cosine down to zero after a tenth of warm-up.
        seed: of initial draws.
        cache_dir: None = `~/.cache/avcap_zoo/prepared`.
    """

    def __init__(
        self,
        audio_steps: int = 300,
        vision_steps: int = 1200,
        language_steps: int = 250,
        batch_size: int = 16,
        lr: float = 2e-3,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        steps = {"vision_encoder": vision_steps, "audio_encoder": audio_steps, "language": language_steps}
        super().__init__(steps, batch_size, lr, seed, cache_dir)

    def lessons(self, module: LightningModule) -> dict[str, Lesson]:
        """One for each backbone."""
        if not isinstance(module, LAVCap):
            raise ConfigError(f"PrepareBackbones prepares LAVCap, found {type(module).__name__}")
        return {
            name: Lesson((name,), asdict(settings), partial(task, module.model))
            for name, settings, task in (
                ("vision_encoder", module.vision, object_task),
                ("audio_encoder", module.audio, sound_task),
                ("language", module.language, caption_task),
            )
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare, then store what frozen encoders make of the clips.

        Raises:
            ConfigError: used with another system, or with data without labels.
        """
        super().on_fit_start(trainer, pl_module)
        assert isinstance(pl_module, LAVCap)
        data: ClipSource = trainer.datamodule  # type: ignore[attr-defined]
        model = pl_module.model
        constant: list[Modality] = ["visual"] if model.fusion.settings.needs_vision else []
        if model.audio_is_constant:
            constant.append("audio")
        folder = self.folder(data)
        for modality in constant:
            encoder = model.frozen_encoder(modality)
            features = folder / f"{modality}-{encoder.key}"
            if trainer.is_global_zero:
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{features}.lock"):  # another run may be storing the same
                    store_features(encoder, data, features, pl_module.device)
            trainer.strategy.barrier()
            data.use_feature_cache(features, modality)

    def _train(self, name: str, lesson: Lesson, parts: nn.Module, data: ClipSource, device: torch.device) -> None:
        frozen_norms = [part for part in parts.modules() if isinstance(part, CED) and part.batch_norm_frozen]
        for part in frozen_norms:
            part.batch_norm_frozen = False  # its statistics are what it learns here, whatever follows
        super()._train(name, lesson, parts, data, device)
        for part in frozen_norms:
            part.freeze_batch_norm()


def sound_task(model: LAVCapModel, data: ClipSource, batch_size: int, device: torch.device) -> Task:
    """Which labelled sounds are heard during each audio token, as binary cross-entropy.

    Args:
        model: its audio encoder is trained.
        data: needs `sound_events`.
        batch_size: clips per step.
        device: where to compute.

    Returns:
        A throw-away linear head and a generator of losses without end.

    Raises:
        ConfigError: the data has no labelled sounds.
    """
    labels = label_columns(data, "sounds")
    settings = model.audio_settings.encoder
    token_s = PATCH_SIZE * settings.frame_shift_ms / 1000
    head = nn.Linear(settings.embed_dim, len(labels)).to(device)

    def losses() -> Iterator[Tensor]:
        for batch in endless(data, batch_size, ("audio",)):
            batch = batch.to(device)
            assert batch.sound_events is not None
            assert batch.waveform is not None
            assert batch.num_samples is not None
            logits = head(model.encode_spectrogram(model.spectrogram(batch.waveform, batch.num_samples)))
            starts = torch.arange(logits.shape[1]) * token_s
            target = torch.zeros(logits.shape)
            for row, events in enumerate(batch.sound_events):
                for event in events:
                    heard = (starts + token_s > event.onset_s) & (starts < event.offset_s)
                    target[row, :, labels[event.label]] += heard
            yield F.binary_cross_entropy_with_logits(logits, target.clamp_max(1).to(device))

    return head, losses


def object_task(model: LAVCapModel, data: ClipSource, batch_size: int, device: torch.device) -> Task:
    """Which labelled objects are seen in single frames, as binary cross-entropy; arguments as in `sound_task`."""
    labels = label_columns(data, "objects")
    head = nn.Linear(model.vision_encoder.embed_dim, len(labels)).to(device)
    frames, targets = labelled_frames(data, batch_size)

    def losses() -> Iterator[Tensor]:
        while True:
            chosen = torch.randint(len(frames), (8 * batch_size,))
            logits = head(model.vision_encoder(frames[chosen][:, None].to(device))[:, 0])
            yield F.binary_cross_entropy_with_logits(logits, targets[chosen].to(device))

    return head, losses


def caption_task(model: LAVCapModel, data: ClipSource, batch_size: int, device: torch.device) -> Task:
    """Next-token prediction of the training captions alone; arguments as in `sound_task`."""
    language: CausalLanguageModel = model.language
    captions = data.training_captions()
    embed = language.model.get_input_embeddings()

    def losses() -> Iterator[Tensor]:
        none = (
            torch.zeros((batch_size, 0), dtype=torch.long, device=device),
            torch.zeros((batch_size, 0), dtype=torch.bool, device=device),
        )
        prefix = torch.zeros((batch_size, 0, embed.embedding_dim), device=device)
        while True:
            chosen = [captions[index] for index in torch.randint(len(captions), (batch_size,)).tolist()]
            ids = language.token_ids(chosen, end=True)
            yield language.loss(language.wrap(prefix, none[1], none, none, ids))

    return nn.Identity(), losses


def store_features(encoder: FrozenEncoder, data: ClipSource, folder: Path, device: torch.device) -> None:
    """Fill a feature cache of the training and validation clips.

    Args:
        encoder: sees every clip once, in evaluation mode.
        data: gives the clips.
        folder: of the cache; clips that it holds already are not seen again.
        device: where to compute.
    """
    was_training = encoder.module.training
    encoder.module.eval()
    data.cache_features(encoder, folder, ("train", "val"), device=device)
    encoder.module.train(was_training)
