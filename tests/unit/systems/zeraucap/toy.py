"""A ZerAuCap of random weights that are large enough for its captions to differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avcap_zoo.backbones.audio.htsat import HTSATSettings
from avcap_zoo.backbones.audio_text import CropSettings, WavCapsCLAP, WavCapsSettings
from avcap_zoo.batch import Batch
from avcap_zoo.decoding.guided import GuidedSettings
from avcap_zoo.systems.captions import ScoreSettings
from avcap_zoo.systems.zeraucap.model import AudioTextSettings, FrozenLanguageSettings, KeywordSettings
from avcap_zoo.systems.zeraucap.module import ZerAuCap
from avcap_zoo.systems.zeraucap.prompts import KeywordPromptSettings

SAMPLE_RATE_HZ = 16_000
TOWER = {
    "patch_embeds_hidden_size": 4,
    "depths": [1, 1],
    "num_attention_heads": [1, 2],
    "window_size": 4,
    "spec_size": 64,
}
AUDIO_TEXT = AudioTextSettings(
    wavcaps=WavCapsSettings(
        audio=HTSATSettings(
            sample_rate_hz=SAMPLE_RATE_HZ, window_s=1.0, fft_size=256, num_mel_bins=16, high_hz=7000.0, hop_length=160,
            config=TOWER,
        ),
        text={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        embed_dim=16,
        tokenizer=None,
    )
)  # fmt: skip
LANGUAGE = {
    "model_type": "opt",
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
}
WORDS = ("dog barking", "bell ringing", "rain", "a car", "audience", "wind blowing")


def keyword_file(folder: Path, words: tuple[str, ...] = WORDS) -> Path:
    path = folder / "words.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def toy_system(
    folder: Path,
    *,
    keywords: dict[str, Any] | None = None,
    guided: dict[str, Any] | None = None,
    crop: CropSettings | None = None,
    audio_text: AudioTextSettings = AUDIO_TEXT,
    language: dict[str, Any] | None = None,
    **options: Any,
) -> ZerAuCap:
    """Not built yet: call `configure_model` or `built`."""
    settings = GuidedSettings(num_candidates=8, beta=2.0, temperature=20.0, decoding_length=48)
    return ZerAuCap(
        audio_text=audio_text,
        language=FrozenLanguageSettings(**{"source": None, "config": LANGUAGE, **(language or {})}),
        keywords=KeywordSettings(**{"source": str(keyword_file(folder)), **(keywords or {})}),
        prompts=KeywordPromptSettings(),
        guided=replace(settings, **(guided or {})),
        crop=crop or CropSettings(),
        scores=ScoreSettings(validation=("bleu", "rouge_l", "cider"), test=("bleu", "rouge_l", "cider")),
        **options,
    )


def built(system: ZerAuCap) -> ZerAuCap:
    """With its model, the same one each time; sounds and texts are spread around their mean."""
    torch.manual_seed(0)
    system.configure_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for value in system.model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
        ears = system.model.audio_text
        assert isinstance(ears, WavCapsCLAP)
        heard, rows = sounds(0.8, 0.5, 0.9, 0.4), ears.token_rows(WORDS)
        assert heard.waveform is not None
        assert heard.num_samples is not None
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        last = dict(ears.named_parameters())
        last["audio_proj.2.bias"].sub_(ears.encode_audio(heard.waveform, heard.num_samples).mean(dim=0))
        last["text_proj.2.bias"].sub_(ears.encode_ids(ids, ids != 0).mean(dim=0))
    return system


def sounds(*durations_s: float, seed: int = 0) -> Batch:
    """Tones and noise that swells, each of its own pitch and loudness."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [max(1, round(duration_s * SAMPLE_RATE_HZ)) for duration_s in durations_s]
    waveform = torch.zeros(len(lengths), max(lengths))
    for clip, length in enumerate(lengths):
        place = torch.arange(length)
        tone = torch.sin(place * (0.05 + 0.4 * clip))
        noise = torch.randn(length, generator=generator) * torch.linspace(0.01, 0.5, length)
        waveform[clip, :length] = (tone + noise) * (0.5, 0.001, 0.1, 0.01)[clip % 4]
    names = [f"clip{clip}" for clip in range(len(lengths))]
    return Batch(names, [[] for _ in names], ["" for _ in names], waveform, torch.tensor(lengths))


def picked(batch: Batch, *clips: int) -> Batch:
    """Some clips of a batch, padded no longer than they need."""
    assert batch.waveform is not None
    assert batch.num_samples is not None
    lengths: Tensor = batch.num_samples[list(clips)]
    waveform = batch.waveform[list(clips), : int(lengths.max())]
    names = [batch.clip_ids[clip] for clip in clips]
    return Batch(names, [[] for _ in names], ["" for _ in names], waveform, lengths)
