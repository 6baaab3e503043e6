"""Golden runs through ZerAuCap's own model: sound to keywords to prompt to tokens to caption, one clip and several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avcap_zoo.backbones.audio_text import AudioTextModel, CropSettings
from avcap_zoo.batch import Batch
from avcap_zoo.decoding.guided import GuidedSettings
from avcap_zoo.systems.zeraucap import model as system
from avcap_zoo.systems.zeraucap.prompts import KeywordPromptSettings
from tests.parity.test_guided_decoding import MODES, RUNS, ByteEncoder, compare, find_case, read_runs


class GoldenAudioText(AudioTextModel):
    """Hears the golden embedding in every clip; embeds texts as the golden runs do."""

    sample_rate_hz, window_samples, max_text_tokens = 16_000, 16_000, 77

    def __init__(self, clip: dict[str, Tensor]) -> None:
        super().__init__()
        self.heard = nn.Parameter(clip["audio_embedding"])
        self.bytes = ByteEncoder(clip["byte_table"])
        self.embed_dim = self.heard.shape[1]

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        return self.heard.expand(len(waveform), -1)

    def encode_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        raise AssertionError("texts are embedded by rows")

    def token_rows(self, texts: Sequence[str]) -> list[list[int]]:
        return self.bytes.token_rows(texts)

    def encode_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return self.bytes.encode_rows(rows)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden language models in transformers format, with their tokenizer."""
    folder = tmp_path_factory.mktemp("language")
    for name in {run.values[0] for run in RUNS}:
        runs = read_runs(str(name))
        runs["language"].save_pretrained(folder / str(name))
        runs["tokenizer"].save_pretrained(folder / str(name))
    return folder


@pytest.mark.parametrize(("name", "case", "mode"), RUNS)
def test_run_from_sound_to_caption(
    name: str, case: str, mode: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = read_runs(name)
    wanted: dict[str, Any] = find_case(runs, case, mode)
    penalty, penalised = MODES[mode]
    monkeypatch.setattr(system, "build_audio_text", lambda _: GoldenAudioText(runs["clip"]))
    monkeypatch.setattr(system, "read_keywords", lambda _: runs["keywords"])
    model = system.ZerAuCapModel(
        system.AudioTextSettings(),
        system.FrozenLanguageSettings(source=str(folders / name)),
        system.KeywordSettings(num_keywords=wanted["l"]),
        KeywordPromptSettings(caption="released"),
        GuidedSettings(
            mode=penalty,  # type: ignore[arg-type]
            num_candidates=wanted["m"],
            beta=wanted["beta"],
            temperature=wanted["temperature"],
            alpha=wanted["alpha"],
            end_penalty=wanted["end_penalty"] if penalised else None,
            decoding_length=wanted["decoding_len"],
            prompt_in_text=wanted["prompt_in_text"],
        ),
        CropSettings(),
    )
    indices = runs["prompts"][str(wanted["l"])]["keyword_indices"] or []
    for clips in (1, 3):
        names = [f"clip{clip}" for clip in range(clips)]
        batch = Batch(names, [[]] * clips, [""] * clips, torch.zeros(clips, 8), torch.full((clips,), 8))
        for found in model.describe(batch, trace=True):
            assert found.prompt == wanted["prompt"]
            assert found.keywords == [runs["keywords"][index] for index in indices]
            assert found.caption == wanted["caption"]
            compare(runs, wanted, found.text)
