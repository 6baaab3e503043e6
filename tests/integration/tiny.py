"""The smallest LAVCap and data module that still have every part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from avcap_zoo.backbones.adapters import LoRASettings, TrainingMode
from avcap_zoo.backbones.audio.ced import CEDSettings
from avcap_zoo.backbones.language import GenerationSettings, LanguageSettings
from avcap_zoo.backbones.vision.clip import CLIPSettings
from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
from avcap_zoo.systems.base import OptimizerSettings
from avcap_zoo.systems.captions import ScoreSettings
from avcap_zoo.systems.lavcap.fusion import FusionSettings
from avcap_zoo.systems.lavcap.fusion_kinds import FusionKind
from avcap_zoo.systems.lavcap.model import AudioSettings, PromptSettings
from avcap_zoo.systems.lavcap.module import LAVCap
from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO

VISION = {
    "projection_dim": 32,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
LANGUAGE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}


def tiny_lavcap(
    *,
    training: TrainingMode = "full",
    kind: FusionKind = "ot_attention",
    fusion: FusionSettings | None = None,
    language_source: str | None = None,
    gradient_checkpointing: bool = False,
    lr: float = 2e-3,
) -> LAVCap:
    """A LAVCap of width 32 with adapters' dropout and several prompts, so that a step draws random numbers.

    `fusion` is for more than a `kind`.
    """
    lora = LoRASettings(rank=2, alpha=4, dropout=0.2)
    return LAVCap(
        audio=AudioSettings(
            encoder=CEDSettings(
                embed_dim=32, depth=1, num_heads=2, target_length=112, frame_shift_ms=100.0, pad_with_silence=True
            ),
            training=training,
            lora=lora,
            augment_bins=8,
            augment_frames=16,
        ),
        vision=CLIPSettings(source=None, config=VISION),
        language=LanguageSettings(
            source=language_source,
            config=LANGUAGE,
            dtype="float32",
            training=training,
            lora=lora,
            gradient_checkpointing=gradient_checkpointing,
        ),
        fusion=fusion or FusionSettings(kind=kind),
        prompts=PromptSettings(
            training=("USER: <SpeechHere> ASSISTANT:", "<SpeechHere> Please describe the audio."),
            evaluation="USER: <SpeechHere> ASSISTANT:",
        ),
        generation=GenerationSettings(num_beams=2, max_new_tokens=8),
        optimizer=OptimizerSettings(lr=lr, warmup_steps=2),
        scores=ScoreSettings(validation=("bleu", "cider"), test=("bleu", "cider"), tokenizer="python"),
    )


def tiny_data(root: Path, **options: Any) -> ScenesDataModule:
    """The session's shared scenes, in batches of five: a last batch of an epoch is short."""
    settings: dict[str, Any] = {"image_size_px": 32, "num_frames": 4, "batch_size": 5, "eval_batch_size": 4, **options}
    return ScenesDataModule(str(root), num_train=24, num_val=6, num_test=6, **settings)


def tiny_trainer(folder: Path, *, every: int | None = None, **options: Any) -> Trainer:
    """A CPU trainer without bars; `every` saves a checkpoint each so many steps."""
    checkpoint = ModelCheckpoint(
        dirpath=folder / "checkpoints", filename="{step}", every_n_train_steps=every, save_top_k=-1
    )
    return Trainer(
        accelerator="cpu",
        devices=options.pop("devices", 1),
        default_root_dir=folder,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[*options.pop("callbacks", []), *([checkpoint] if every else [])],
        plugins=options.pop("plugins", [AtomicCheckpointIO()]),
        enable_checkpointing=every is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )
