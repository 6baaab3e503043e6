"""A VLRM of toy size, and batches for it."""

from __future__ import annotations

import functools
from typing import Any

import torch

from avcap_zoo.backbones.adapters import LoRASettings
from avcap_zoo.backbones.language import GenerationSettings
from avcap_zoo.batch import Batch
from avcap_zoo.systems.captions import ScoreSettings
from avcap_zoo.systems.vlrm import VLRM, VLRMModel
from avcap_zoo.systems.vlrm.captioner import CaptionerSettings, SamplingSettings
from avcap_zoo.systems.vlrm.model import UpdateSettings
from avcap_zoo.systems.vlrm.module import AdamSettings, MonitorSettings
from avcap_zoo.systems.vlrm.rewards import RewardSettings
from avcap_zoo.systems.vlrm.value_head import ValueHeadSettings

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.2,
}
QFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.2,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "ffn_dim": 24,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 16,
    "max_position_embeddings": 64,
    "init_std": 0.2,
    "dropout": 0.1,
}
CONTRAST = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PARTS = {"vision_config": VISION, "qformer_config": QFORMER, "num_query_tokens": 3}
MATCHING = RewardSettings("itm", options={"source": None, "config": PARTS | {"image_text_hidden_size": 8}})
RETRIEVAL = RewardSettings("mutual_choice", 0.3, {"config": CONTRAST, "checkpoint": None, "dtype": "float32"})
PENALTIES = {
    "bad_phrases": RewardSettings("bad_phrases"),
    "repeated_words": RewardSettings("repeated_words"),
    "missing_end": RewardSettings("missing_end"),
}
CHEAP = {"reference": RewardSettings("reference"), **PENALTIES}
ALL = {"itm": MATCHING, "retrieval": RETRIEVAL, **CHEAP}


def parts(rewards: dict[str, RewardSettings] | None = None, **update: Any) -> dict[str, Any]:
    """Arguments of a model; weights are drawn from the global seed when it is built."""
    captioner = CaptionerSettings(
        source=None,
        config=PARTS | {"text_config": TEXT},
        dtype="float32",
        lora=LoRASettings(2, 4, 0.0, ("q_proj", "v_proj")),
        gradient_checkpointing=update.pop("gradient_checkpointing", False),
    )
    return {
        "captioner": captioner,
        "sampling": SamplingSettings(top_k=6, temperature=2.0, min_new_tokens=2, max_new_tokens=8),
        "value_head": ValueHeadSettings(hidden_mult=2),
        "rewards": CHEAP if rewards is None else rewards,
        "update": UpdateSettings(**update),
        "generation": GenerationSettings(num_beams=2, max_new_tokens=8, min_length=2, no_repeat_ngram_size=2),
    }


def model(rewards: dict[str, RewardSettings] | None = None, seed: int = 0, **update: Any) -> VLRMModel:
    torch.manual_seed(seed)
    return VLRMModel(**parts(rewards, **update))


def system(
    rewards: dict[str, RewardSettings] | None = None,
    monitor: MonitorSettings | None = None,
    lr: float = 1e-2,
    **update: Any,
) -> VLRM:
    # A large eps: where a gradient is 0 but for rounding, Adam would make a full step of its sign.
    adam = functools.partial(AdamSettings, lr=lr, eps=1e-3, warmup_steps=0)
    return VLRM(
        **parts(rewards, **update),
        policy_optimizer=adam(),
        value_optimizer=adam(),
        scores=ScoreSettings(validation=("bleu",), test=("bleu",), tokenizer="python"),
        monitor=monitor or MonitorSettings(every_n_steps=0),
    )


def batch(count: int, seed: int = 0, num_frames: int = 1) -> Batch:
    frames = torch.randint(256, (count, num_frames, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    return Batch(
        clip_ids=[f"clip{seed}-{index}" for index in range(count)],
        captions=[["a red ball rolls", "a ball"]] * count,
        caption=["a red ball rolls"] * count,
        frames=frames.to(torch.uint8),
    )
