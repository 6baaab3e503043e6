"""An iteration of VLRM against one that encodes its images anew for each pass and samples without a cache, in one run.

    python benchmarks/vlrm_iteration.py [--batch-size 16] [--tokens 24] [--rounds 3]

Random weights at toy size; the same captions for both, since only the likeliest token is drawn. Counted are the images
that go through the image tower. Then, each in a process of its own, what a policy pass with and without
`captioner.gradient_checkpointing` adds to the peak of the process's memory (`ru_maxrss`, on the processor).

Claims: one call of the tower per image, at least twice as fast, less memory with checkpointing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avcap_zoo.backbones.adapters import LoRASettings, adapters_off
from avcap_zoo.backbones.language import GenerationSettings
from avcap_zoo.batch import Batch
from avcap_zoo.ops.returns import whiten
from avcap_zoo.systems.vlrm.captioner import CaptionerSettings, SamplingSettings
from avcap_zoo.systems.vlrm.model import Rollout, UpdateSettings, VLRMModel
from avcap_zoo.systems.vlrm.rewards import RewardSettings
from avcap_zoo.systems.vlrm.value_head import ValueHeadSettings

CLAIM = 2.0
VISION = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6}
QFORMER = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    "hidden_size": 192,
    "word_embed_proj_dim": 192,
    "ffn_dim": 768,
    "num_attention_heads": 6,
    "max_position_embeddings": 128,
}


def build(tokens: int, *, layers: int = 4, image_size_px: int = 112, checkpointing: bool = False) -> VLRMModel:
    """A model whose captions all have so many tokens."""
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "vision_config": {**VISION, "image_size": image_size_px, "patch_size": 14},
        "qformer_config": QFORMER,
        "num_query_tokens": 8,
    }
    rewards = {
        "itm": RewardSettings("itm", options={"source": None, "config": {**parts, "image_text_hidden_size": 8}}),
        **{kind: RewardSettings(kind) for kind in ("reference", "bad_phrases", "repeated_words", "missing_end")},
    }
    return VLRMModel(
        CaptionerSettings(
            source=None,
            config={**parts, "text_config": {**TEXT, "num_hidden_layers": layers}},
            dtype="float32",
            lora=LoRASettings(rank=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj")),
            gradient_checkpointing=checkpointing,
        ),
        SamplingSettings(top_k=1, min_new_tokens=tokens, max_new_tokens=tokens),
        ValueHeadSettings(hidden_mult=2),
        rewards,
        UpdateSettings(),
        GenerationSettings(num_beams=1, max_new_tokens=tokens),
    )


def pictures(count: int, side_px: int) -> Batch:
    """Noise."""
    frames = torch.randint(256, (count, 1, 3, side_px, side_px), generator=torch.Generator().manual_seed(0))
    names = [str(index) for index in range(count)]
    return Batch(names, [[] for _ in names], [""] * count, frames=frames.to(torch.uint8))


def backward(loss: Tensor) -> None:
    """Gradients, without the module of Lightning around them."""
    loss.backward()


def iterate(model: VLRMModel, batch: Batch) -> Tensor:
    """One iteration without the optimizers' step; the sampled tokens."""
    rollout = model.collect(batch)
    counts = rollout.counts()
    values, _ = model.value_pass(rollout, counts, backward)
    model.policy_pass(rollout, whiten(rollout.returns - values, rollout.mask), counts, backward)
    return rollout.captions.tokens


def iterate_plainly(model: VLRMModel, batch: Batch) -> Tensor:
    """The same, encoding the images for sampling, for the matcher, for value and for policy, and without a cache."""
    captioner, images = model.captioner, batch.frames[:, 0]  # type: ignore[index]
    prefix = captioner.project(captioner.encode_images(images)).detach()
    tokens = torch.full((len(images), 0), 0)
    with torch.no_grad(), adapters_off(captioner.language_model):
        for _ in range(model.sampling.max_new_tokens):
            states = captioner.states(prefix, tokens, torch.ones_like(tokens, dtype=torch.bool))
            logits: Tensor = captioner.language_model.get_output_embeddings()(states[:, -1])
            short = tokens.shape[1] < model.sampling.min_new_tokens
            logits[:, captioner.end_id] = -torch.inf if short else logits[:, captioner.end_id]
            tokens = torch.cat([tokens, logits.argmax(dim=1, keepdim=True)], dim=1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    ended = tokens[:, -1] == captioner.end_id
    features = captioner.encode_images(images)
    captions = model.describe(batch.clip_ids, images, features, tokens, mask, ended, batch.captions)
    rollout = model.judge(captions, prefix)
    counts = rollout.counts()
    rollout.prefix = captioner.project(captioner.encode_images(images)).detach()
    values, _ = model.value_pass(rollout, counts, backward)
    rollout.captions.features = captioner.encode_images(images)
    model.policy_pass(rollout, whiten(rollout.returns - values, rollout.mask), counts, backward)
    return tokens


@dataclass
class Found:
    """What one way took: seconds, images through the tower for each image, and the tokens it drew."""

    seconds: float
    tower_calls: float
    tokens: Tensor


def measure(model: VLRMModel, batch: Batch, way: Callable[[VLRMModel, Batch], Tensor]) -> Found:
    """Run one way once."""
    seen = 0

    def count(_: Any, __: Any, output: Any) -> None:
        nonlocal seen
        seen += len(output)

    handle = model.captioner.blip.vision_model.embeddings.register_forward_hook(count)
    started = time.perf_counter()
    tokens = way(model, batch)
    seconds = time.perf_counter() - started
    handle.remove()
    model.zero_grad()
    return Found(seconds, seen / len(batch), tokens)


def peak_of_a_pass(batch_size: int, tokens: int, layers: int, *, checkpointing: bool) -> float:
    """MB that a policy pass adds to the peak of this process."""
    torch.set_num_threads(1)
    model = build(tokens, layers=layers, image_size_px=28, checkpointing=checkpointing)
    rollout: Rollout = model.collect(pictures(batch_size, 28))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.policy_pass(rollout, rollout.returns, rollout.counts(), backward)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24, help="per caption (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each way, in turns; the best counts (%(default)s)")
    parser.add_argument("--memory", choices=("with", "without"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(peak_of_a_pass(64, 24, 8, checkpointing=options.memory == "with"))
        return
    torch.set_num_threads(1)
    model, batch = build(options.tokens), pictures(options.batch_size, 112)
    rounds = [[measure(model, batch, way) for way in (iterate, iterate_plainly)] for _ in range(options.rounds + 1)]
    assert all(torch.equal(ours.tokens, plain.tokens) for ours, plain in rounds)
    ours, plain = (min((pair[way] for pair in rounds[1:]), key=lambda found: found.seconds) for way in (0, 1))
    ratio = plain.seconds / ours.seconds
    print(f"{options.batch_size} images of 112 px, captions of {options.tokens} tokens, one thread")
    print(f"tower calls per image: {ours.tower_calls:g} against {plain.tower_calls:g}")
    print(f"iteration: {ours.seconds:.2f} s against {plain.seconds:.2f} s: {ratio:.1f}x (claim: {CLAIM:g}x)")
    command = [sys.executable, __file__, "--memory"]
    peaks = [
        float(subprocess.run([*command, word], check=True, capture_output=True, text=True).stdout.split()[-1])
        for word in ("with", "without")
    ]
    print(f"policy pass of 64 captions, 8 layers: {peaks[0]:.0f} MB with checkpointing, {peaks[1]:.0f} MB without")
    if ours.tower_calls != 1 or ratio < CLAIM or peaks[0] >= peaks[1]:
        sys.exit("a claim does not hold here")


if __name__ == "__main__":
    main()
