"""A training step of LAVCap with cached against live visual features, in one run.

    python benchmarks/lavcap_step.py

Random weights. On a processor sizes are small; `--size full` takes those of the paper, for a device that holds them.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from avcap_zoo.backbones.adapters import LoRASettings
from avcap_zoo.backbones.audio.ced import CEDSettings
from avcap_zoo.backbones.language import GenerationSettings, LanguageSettings
from avcap_zoo.backbones.vision.clip import CLIPSettings
from avcap_zoo.batch import Batch
from avcap_zoo.systems.lavcap.fusion import FusionSettings
from avcap_zoo.systems.lavcap.model import AudioSettings, LAVCapModel, PromptSettings

NUM_FRAMES = 20
SIZES: dict[str, dict[str, Any]] = {
    "mid": {
        "audio": {"embed_dim": 192, "depth": 4, "num_heads": 3},
        "vision": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4},
        "patch": 32,
        "language": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
        "dtype": "float32",
    },
    "full": {
        "audio": {"embed_dim": 768, "depth": 12, "num_heads": 12},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        "patch": 14,
        "language": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32_000,
        },
        "dtype": "bfloat16",
    },
}


def build(size: dict[str, Any], device: torch.device) -> LAVCapModel:
    """LAVCap with LoRA in both ends, as the paper trains it."""
    lora = LoRASettings(rank=8, alpha=32, dropout=0.1)
    width = size["audio"]["embed_dim"]
    vision = {**size["vision"], "projection_dim": width, "image_size": 224, "patch_size": size["patch"]}
    model = LAVCapModel(
        AudioSettings(encoder=CEDSettings(**size["audio"]), training="lora", lora=lora),
        CLIPSettings(source=None, config=vision),
        LanguageSettings(
            source=None,
            config={"model_type": "llama", "max_position_embeddings": 512, **size["language"]},
            dtype=size["dtype"],
            training="lora",
            lora=lora,
        ),
        FusionSettings(kind="ot_attention"),
        PromptSettings(),
        GenerationSettings(),
    )
    return model.to(device).train()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="mid")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="of each kind, taken in turn (%(default)s)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = build(SIZES[options.size], device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    count = options.batch_size
    live = Batch(
        clip_ids=[str(index) for index in range(count)],
        captions=[["a dog barks and a car drives past"]] * count,
        caption=["a dog barks and a car drives past"] * count,
        waveform=0.1 * torch.randn(count, 160_000),
        num_samples=torch.full((count,), 160_000),
        frames=torch.randint(0, 256, (count, NUM_FRAMES, 3, 224, 224), dtype=torch.uint8),
        frame_mask=torch.ones(count, NUM_FRAMES, dtype=torch.bool),
    ).to(device)
    with torch.no_grad():
        features, mask = model.encode_vision(live)
    cached = Batch(
        live.clip_ids,
        live.captions,
        live.caption,
        live.waveform,
        live.num_samples,
        frame_mask=mask,
        visual_features=features,
    )

    def step(batch: Batch) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            loss = torch.stack([part.float() for part in model(batch).values()]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    spent: dict[str, list[float]] = {"live": [], "cached": []}
    for turn in range(options.steps + 1):
        for name, batch in (("live", live), ("cached", cached)):
            seconds = step(batch)
            if turn:  # the first of each warms up
                spent[name].append(seconds)
    seconds_live, seconds_cached = (sorted(spent[name])[len(spent[name]) // 2] for name in ("live", "cached"))
    print(f"{options.size} size, {count} clips of {NUM_FRAMES} frames, {device}: median of {options.steps} steps")
    ratio = seconds_live / seconds_cached
    print(f"live {1000 * seconds_live:.0f} ms, cached {1000 * seconds_cached:.0f} ms: {ratio:.1f}x")


if __name__ == "__main__":
    main()
