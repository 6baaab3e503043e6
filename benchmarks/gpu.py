"""The three heaviest pieces of work on one GPU, at the papers' sizes with random weights, against its arithmetic.

    python -m benchmarks.gpu            on a GPU of at least 80 GB
    python -m benchmarks.gpu --tiny     toy sizes on whatever there is: does the script run?

- A training step of LAVCap (Llama-2-7B, CED-base, CLIP ViT-L/14) with cached and with live CLIP features.
- ZerAuCap's guided decoding (OPT-1.3B, BERT-base, 45 candidates, 20 tokens), 1, 8 and 32 clips at once.
- An iteration of VLRM (BLIP-2 OPT-2.7B) on as many captions of 30 tokens as fit.

The floor is the time that an H200 needs for the arithmetic alone, or for reading the weights once where that is more:
790 TFLOP/s in bfloat16, 4.3 TB/s. Shares of it are printed for full sizes only. The vocabularies of ZerAuCap and VLRM
are those of a toy, as texts must be read back: 8 and 5 % of their language models' weights are not there, but are in
the floor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.backbones.adapters import LoRASettings
from avcap_zoo.backbones.language import GenerationSettings
from avcap_zoo.batch import Batch
from avcap_zoo.decoding.guided import CosineScorer, GuidedDecoder, GuidedSettings
from avcap_zoo.systems.vlrm.captioner import CaptionerSettings, SamplingSettings
from avcap_zoo.systems.vlrm.model import UpdateSettings, VLRMModel
from avcap_zoo.systems.vlrm.rewards import RewardSettings
from avcap_zoo.systems.vlrm.value_head import ValueHeadSettings
from benchmarks import lavcap_step
from benchmarks.guided_decoding import NEW_TOKENS, PROMPT_TOKENS, SMALL_BERT, WORDS, TextTower, word_tokenizer
from benchmarks.vlrm_iteration import build as build_toy_vlrm
from benchmarks.vlrm_iteration import iterate, pictures

PEAK_TFLOPS, CAPTION_TOKENS = 790.0, 30
LAVCAP_TFLOP = {"cached": 3.28, "live": 6.52}
"""Of a sample: forward, backward through activations, adapters."""
ZERAUCAP_TFLOP, ZERAUCAP_FIRST_S = 2.07, 13.6e-3
"""Of a clip; and the seconds of one alone, which must read all weights at every token."""
VLRM_FLOOR_S = 12.4 / 4096
"""Of a caption, with one pass of the image tower per image."""
OPT = {"hidden_size": 2048, "word_embed_proj_dim": 2048, "num_hidden_layers": 24, "ffn_dim": 8192}
SMALL_OPT = {"hidden_size": 64, "word_embed_proj_dim": 64, "num_hidden_layers": 2, "ffn_dim": 128}
BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY_LAVCAP: dict[str, Any] = {
    "audio": {"embed_dim": 32, "depth": 1, "num_heads": 2},
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    "patch": 56,
    "language": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
    "dtype": "float32",
}


def seconds_of(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median time of a piece of work; the first two rounds do not count."""
    spent = []
    for _ in range(rounds + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
    return sorted(spent[2:])[rounds // 2]


def report(name: str, seconds: float, samples: int, tokens: float, floor_s: float | None) -> None:
    """One line of the table."""
    share = "      -" if floor_s is None else f"{100 * floor_s / seconds:5.0f} %"
    print(f"{name:34}{1000 * seconds:10.1f} ms{samples / seconds:12.2f}{tokens / seconds:12.0f}{share:>10}", flush=True)


def lavcap(device: torch.device, batch_sizes: list[int], rounds: int, *, tiny: bool) -> None:
    """Steps of LAVCap; tokens are positions of the language model."""
    model = lavcap_step.build(TINY_LAVCAP if tiny else lavcap_step.SIZES["full"], device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    positions = 0

    def count(_module: Any, _arguments: Any, options: dict[str, Any]) -> None:
        nonlocal positions
        positions = options["inputs_embeds"].shape[:2].numel()

    model.language.model.register_forward_pre_hook(count, with_kwargs=True)
    for size in batch_sizes:
        caption = "a dog barks and a car drives past"
        live = Batch(
            clip_ids=[str(index) for index in range(size)],
            captions=[[caption]] * size,
            caption=[caption] * size,
            waveform=0.1 * torch.randn(size, 160_000),
            num_samples=torch.full((size,), 160_000),
            frames=torch.randint(0, 256, (size, lavcap_step.NUM_FRAMES, 3, 224, 224), dtype=torch.uint8),
            frame_mask=torch.ones(size, lavcap_step.NUM_FRAMES, dtype=torch.bool),
        ).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            features, mask = model.encode_vision(live)
        cached = Batch(
            live.clip_ids,
            live.captions,
            live.caption,
            live.waveform,
            live.num_samples,
            frame_mask=mask,
            visual_features=features.float(),
        )
        for kind, batch in (("cached", cached), ("live", live)):

            def step(batch: Batch = batch) -> None:
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
                    loss = torch.stack([part.float() for part in model(batch).values()]).sum()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            seconds = seconds_of(step, device, rounds)
            floor_s = None if tiny else size * LAVCAP_TFLOP[kind] / PEAK_TFLOPS
            report(f"LAVCap step, {kind} CLIP, batch {size}", seconds, size, positions, floor_s)


@torch.no_grad()
def zeraucap(device: torch.device, batch_sizes: list[int], rounds: int, *, tiny: bool) -> None:
    """Guided decoding; tokens are those of the captions."""
    from transformers import OPTConfig, OPTForCausalLM

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    tower = TextTower(SMALL_BERT if tiny else BERT).to(device, dtype)
    tokenizer = word_tokenizer("</s>", cased=True)
    size = SMALL_OPT if tiny else OPT
    config = OPTConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=size["hidden_size"] // 64,
        max_position_embeddings=128,
        init_std=0.1,
        **size,
    )
    model = OPTForCausalLM(config).to(device, dtype).eval()
    for clips in batch_sizes:
        lengths = [PROMPT_TOKENS[index % len(PROMPT_TOKENS)] for index in range(clips)]
        prompts = [" ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (length - 1,))) for length in lengths]
        settings = GuidedSettings(mode="released", decoding_length=max(lengths) + NEW_TOKENS)
        width = tower.bert.config.hidden_size
        embeddings = F.normalize(torch.randn(clips, width, device=device, dtype=dtype), dim=1)
        decoder = GuidedDecoder(model, tokenizer, settings, stop_tokens=())
        texts: list[Any] = []

        def decode(
            decoder: GuidedDecoder = decoder,
            prompts: list[str] = prompts,
            embeddings: Tensor = embeddings,
            texts: list[Any] = texts,
        ) -> None:
            texts[:] = decoder.decode(prompts, CosineScorer(tower, embeddings))

        seconds = seconds_of(decode, device, rounds)
        floor_s = ZERAUCAP_FIRST_S if clips == 1 else max(ZERAUCAP_FIRST_S, clips * ZERAUCAP_TFLOP / PEAK_TFLOPS)
        tokens = sum(len(text.token_ids) for text in texts)
        report(f"ZerAuCap decoding, {clips} clip(s)", seconds, clips, tokens, None if tiny else floor_s)


def build_vlrm() -> VLRMModel:
    """BLIP-2 OPT-2.7B, the rewards of the paper that need no other tower, captions of 30 tokens."""
    parts: dict[str, Any] = {"vision_config": {}, "qformer_config": {}, "num_query_tokens": 32}
    text = {"hidden_size": 2560, "word_embed_proj_dim": 2560, "num_hidden_layers": 32, "ffn_dim": 10240}
    return VLRMModel(
        CaptionerSettings(
            source=None,
            config={**parts, "text_config": {"model_type": "opt", "num_attention_heads": 32, **text}},
            dtype="bfloat16",
            lora=LoRASettings(rank=32, alpha=16, dropout=0.0, targets=("q_proj", "v_proj")),
        ),
        SamplingSettings(top_k=1, min_new_tokens=CAPTION_TOKENS, max_new_tokens=CAPTION_TOKENS),
        ValueHeadSettings(),
        {
            "itm": RewardSettings("itm", options={"source": None, "config": {**parts, "image_text_hidden_size": 256}}),
            **{kind: RewardSettings(kind) for kind in ("reference", "bad_phrases", "repeated_words", "missing_end")},
        },
        UpdateSettings(micro_batch_size=32),
        GenerationSettings(num_beams=1, max_new_tokens=CAPTION_TOKENS),
    )


def vlrm(device: torch.device, captions: int, rounds: int, *, tiny: bool) -> None:
    """Iterations of VLRM without the optimizers' step; tokens are those of the captions."""
    with device:
        model = build_toy_vlrm(6, layers=1, image_size_px=28) if tiny else build_vlrm()
    batch = pictures(captions, 28 if tiny else 224).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            iterate(model, batch)
        model.zero_grad()

    seconds = seconds_of(step, device, rounds)
    tokens = captions * (6 if tiny else CAPTION_TOKENS)
    report(f"VLRM iteration, {captions} captions", seconds, captions, tokens, None if tiny else captions * VLRM_FLOOR_S)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, also on a processor")
    parser.add_argument("--rounds", type=int, default=5, help="of each piece of work; the median counts (%(default)s)")
    parser.add_argument("--lavcap", type=int, nargs="*", metavar="BATCH", help="batch sizes (4 64)")
    parser.add_argument("--zeraucap", type=int, nargs="*", metavar="CLIPS", help="clips at once (1 8 32)")
    parser.add_argument("--vlrm", type=int, metavar="CAPTIONS", help="per iteration (256)")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        raise SystemExit("there is no GPU here; --tiny checks that the script runs")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "a processor, toy sizes: no measurement"
    print(f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"{'':34}{'time':>13}{'samples/s':>12}{'tokens/s':>12}{'of floor':>10}")
    torch.manual_seed(0)
    tiny = options.tiny
    lavcap(device, ([2] if tiny else [4, 64]) if options.lavcap is None else options.lavcap, options.rounds, tiny=tiny)
    clips = ([1, 2] if tiny else [1, 8, 32]) if options.zeraucap is None else options.zeraucap
    zeraucap(device, clips, options.rounds, tiny=tiny)
    vlrm(device, options.vlrm or (4 if tiny else 256), options.rounds, tiny=tiny)


if __name__ == "__main__":
    main()
