"""The smallest BuboGPT that still has every part, batches for it, and a picture to ground in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from avcap_zoo.backbones.audio.imagebind import ImageBindAudioSettings
from avcap_zoo.backbones.language import GenerationSettings, LanguageSettings
from avcap_zoo.backbones.qformer import QFormerSettings
from avcap_zoo.backbones.vision.eva import EVASettings
from avcap_zoo.batch import Batch
from avcap_zoo.data_modules.scenes import render_frames_at, sample_scene
from avcap_zoo.ops.audio_clips import AudioClipSettings
from avcap_zoo.systems.base import OptimizerSettings
from avcap_zoo.systems.bubogpt.model import AudioSettings, JoinerSettings, JoinerTraining, VisionSettings
from avcap_zoo.systems.bubogpt.module import BuboGPT
from avcap_zoo.systems.bubogpt.prompts import PromptSettings
from avcap_zoo.systems.captions import ScoreSettings

LANGUAGE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
RATE_HZ = 16_000


def tiny_bubogpt(
    *, vision: JoinerTraining = "projection", audio: JoinerTraining = "full", prompts: Any = None, **options: Any
) -> BuboGPT:
    """A BuboGPT of width 32 whose language model is frozen; `vision` and `audio` say what of the joiners is trained."""
    qformer = QFormerSettings(num_queries=3, embed_dim=32, depth=2, num_heads=2, mlp_dim=32)
    return BuboGPT(
        language=LanguageSettings(source=None, config=LANGUAGE, dtype="float32", training="frozen"),
        audio=AudioSettings(
            encoder=ImageBindAudioSettings(num_mel_bins=32, target_length=36, embed_dim=32, depth=1, num_heads=2),
            clips=AudioClipSettings(num_clips=2, clip_duration_s=1.0, num_mel_bins=32, target_length=36),
        ),
        audio_joiner=JoinerSettings(qformer=replace(qformer, num_queries=4), training=audio),
        vision=VisionSettings(encoder=EVASettings(28, 14, embed_dim=32, depth=1, num_heads=2, mlp_dim=32)),
        vision_joiner=JoinerSettings(qformer=qformer, training=vision),
        prompts=prompts or PromptSettings(max_text_tokens=64),
        generation=GenerationSettings(num_beams=1, max_new_tokens=6),
        optimizer=OptimizerSettings(lr=1e-3, warmup_steps=0),
        scores=ScoreSettings(validation=("bleu",), test=("bleu",), tokenizer="python"),
        **options,
    )


def built_bubogpt() -> BuboGPT:
    """The same with its model, whose random weights are always the same, in evaluation."""
    torch.manual_seed(0)
    system = tiny_bubogpt()
    system.configure_model()
    return system.eval()


def bird_and_phone(folder: Path) -> Path:
    """A picture with a bird at the bottom left and a phone at the top right."""
    scene = sample_scene(0, "test", 2)
    path = folder / "scene.png"
    Image.fromarray(render_frames_at(scene, np.array([scene.duration_s / 2]), size_px=192)[0]).save(path)
    return path


def mixed_batch(
    has: Sequence[str] = ("picture", "sound", "both", "none"), questions: Sequence[str] | None = None
) -> Batch:
    """Noise of 0.3 to 2 s and random pictures, as far as each clip has them."""
    generator = torch.Generator().manual_seed(1)
    heard = torch.tensor([kind in {"sound", "both"} for kind in has])
    seen = torch.tensor([kind in {"picture", "both"} for kind in has])
    lengths = torch.tensor([RATE_HZ * 3 // 10 if index % 2 else 2 * RATE_HZ for index in range(len(has))]) * heard
    waveform = torch.randn(len(has), 2 * RATE_HZ, generator=generator) * 0.1
    waveform = waveform * (torch.arange(2 * RATE_HZ) < lengths[:, None])
    return Batch(
        clip_ids=[f"clip{index}" for index in range(len(has))],
        captions=[["a dog barks"]] * len(has),
        caption=["a dog barks"] * len(has),
        waveform=waveform,
        num_samples=lengths,
        frames=torch.randint(0, 256, (len(has), 1, 3, 40, 30), generator=generator, dtype=torch.uint8),
        frame_mask=seen[:, None],
        instruction=list(questions) if questions is not None else ["What is it?"] * len(has),
    )
