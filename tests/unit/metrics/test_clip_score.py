from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avcap_zoo.errors import ConfigError, WeightsError
from avcap_zoo.metrics.clip_score import load_clip, score_clip
from avcap_zoo.metrics.contrast import ContrastModel
from tests.unit.metrics import judges

CANDIDATES = ["a dog is barking", "a man speaks", ""] * 12
REFERENCES = [["a dog", "rain and a dog"], ["a man speaks"], ["birds"]] * 12
PICTURES = torch.randint(0, 256, (36, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
CPU = torch.device("cpu")


@pytest.mark.parametrize("write", [judges.write_transformers_clip, judges.write_open_clip])
@torch.no_grad()
def test_the_formula_by_hand(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    """Each pair alone through the model as it was built, against batches through the one that was loaded."""
    built = write(tmp_path)
    model = load_clip(tmp_path)
    progress: list[int] = []
    scores = score_clip(lambda place: PICTURES[place], CANDIDATES, REFERENCES, model, CPU, progress.append)
    signs = set()
    for index in range(36):
        if not CANDIDATES[index]:
            assert scores["clip_score"][index] == scores["ref_clip_score"][index] == 0.0
            continue
        seen = _image_vector(built, PICTURES[index : index + 1])
        read = _text_vector(built, CANDIDATES[index])
        cosine = float(torch.cosine_similarity(seen, read, dim=0))
        nearest = max(
            float(torch.cosine_similarity(_text_vector(built, text), read, dim=0)) for text in REFERENCES[index]
        )
        score = 2.5 * max(cosine, 0.0)
        assert scores["clip_score"][index] == pytest.approx(score, abs=1e-5)
        mean = 2 / (1 / score + 1 / nearest) if score > 1e-6 and nearest > 0 else 0.0
        assert scores["ref_clip_score"][index] == pytest.approx(mean, abs=1e-4)
        signs.add(cosine > 0)
    assert signs == {True, False}  # both what is cut off at 0 and what is not
    assert progress == [32, 4]


def _image_vector(built: Any, picture: Tensor) -> Tensor:
    if isinstance(built, ContrastModel):
        return built.embed_images(picture)[0]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = (picture.float() / 255 - mean) / std
    found = built.get_image_features(pixel_values=pixels)
    vector: Tensor = getattr(found, "pooler_output", found)[0]  # transformers 5 wraps it
    return vector


def _text_vector(built: Any, text: str) -> Tensor:
    whole = f"A photo depicts {text}"
    if isinstance(built, ContrastModel):
        return built.embed_texts([whole])[0]
    words = whole.lower().split()
    ids = torch.tensor([[2, *(4 + judges.WORDS.index(word) for word in words), 3]])
    found = built.get_text_features(input_ids=ids)
    vector: Tensor = getattr(found, "pooler_output", found)[0]
    return vector


def test_long_captions_are_cut(tmp_path: Path) -> None:
    judges.write_transformers_clip(tmp_path)
    model = load_clip(tmp_path)
    assert model.embed_texts(["rain " * 100]).shape == (1, 8)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--clip: .*nowhere is no folder; get it: hf download openai/clip"):
        load_clip(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="--clip: cannot load"):
        load_clip(tmp_path)
    judges.write_json(tmp_path / "open_clip_config.json", {"model_cfg": judges.OPEN_CLIP})
    with pytest.raises(WeightsError, match=r"has no open_clip_model\.safetensors or open_clip_pytorch_model\.bin"):
        load_clip(tmp_path)
    judges.write_open_clip(tmp_path)
    judges.write_json(tmp_path / "open_clip_config.json", {})
    with pytest.raises(WeightsError, match=r"has no model_cfg in its open_clip_config\.json"):
        load_clip(tmp_path)
    settings = {"model_cfg": judges.OPEN_CLIP, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    judges.write_json(tmp_path / "open_clip_config.json", settings)
    with pytest.raises(WeightsError, match=r"wants pictures of mean \[0.5, 0.5, 0.5\], only CLIP's own"):
        load_clip(tmp_path)
    judges.write_json(tmp_path / "open_clip_config.json", {"model_cfg": {"embed_dim": 8, "custom": 1}})
    with pytest.raises(ConfigError, match="no CLIP model can be made of it"):
        load_clip(tmp_path)
