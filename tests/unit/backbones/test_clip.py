"""CLIP as a frame encoder: its preprocessing equals transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor

from avcap_zoo.backbones.vision.clip import CLIPFrameEncoder, CLIPSettings
from avcap_zoo.errors import ShapeError, WeightsError

CONFIG = {
    "projection_dim": 6,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


@pytest.fixture(scope="module")
def encoder() -> CLIPFrameEncoder:
    torch.manual_seed(0)
    return CLIPFrameEncoder(CLIPSettings(source=None, config=CONFIG)).eval()


def picture(height: int, width: int) -> Tensor:
    """(3, H, W) uint8: something like a photo, smooth with edges."""
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(rows / (7 + 3 * c)) * np.cos(columns / (9 - 2 * c)) for c in range(3)]
    pixels = np.stack(waves)
    pixels[:, height // 3 : height // 2, width // 4 : width // 2] = 240
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def processed(image: Tensor, size: int) -> Tensor:
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    pixels: Tensor = processor(images=Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt").pixel_values
    return pixels


def full_size() -> CLIPFrameEncoder:
    return CLIPFrameEncoder(CLIPSettings(source=None, config={**CONFIG, "image_size": 224, "patch_size": 32}))


def test_preprocessing_of_a_224_square_equals_transformers() -> None:
    image = picture(224, 224)
    torch.testing.assert_close(full_size().normalise(image[None]), processed(image, 224), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (448, 448), (100, 150), (225, 224), (360, 640)])
def test_preprocessing_of_other_sizes_is_close(height: int, width: int) -> None:
    image = picture(height, width)
    difference = (full_size().normalise(image[None]) - processed(image, 224)).abs() * 0.27 * 255
    assert float(difference.mean()) < 0.6  # gray levels
    assert float(difference.max()) < 12


def test_frames_are_encoded_one_by_one(encoder: CLIPFrameEncoder) -> None:
    frames = torch.stack([picture(32, 32), picture(32, 32).flip(2), picture(32, 32).flip(1)] * 2).view(2, 3, 3, 32, 32)
    found = encoder(frames)
    assert found.shape == (2, 3, 6)
    assert encoder.embed_dim == 6
    for clip in range(2):
        for frame in range(3):
            alone = encoder(frames[clip : clip + 1, frame : frame + 1])[0, 0]
            torch.testing.assert_close(found[clip, frame], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0, 0], found[0, 1])


def test_dtype_of_the_model(encoder: CLIPFrameEncoder) -> None:
    half = CLIPFrameEncoder(CLIPSettings(source=None, config=CONFIG)).bfloat16()
    assert half.normalise(torch.zeros(1, 3, 40, 50, dtype=torch.uint8)).dtype == torch.bfloat16
    assert half(torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)).dtype == torch.bfloat16
    assert "mean" not in encoder.state_dict()


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(1, 2, 3, 32, 32),
    ],
)
def test_wrong_shapes(encoder: CLIPFrameEncoder, frames: Tensor) -> None:
    shape = str(tuple(frames.shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        ShapeError, match=rf"frames is {shape} {frames.dtype}, wanted \(clips, frames, 3, h.* torch.uint8"
    ):
        encoder(frames)


def test_from_a_folder(encoder: CLIPFrameEncoder, tmp_path: Path) -> None:
    encoder.model.save_pretrained(tmp_path)
    again = CLIPFrameEncoder(CLIPSettings(source=str(tmp_path))).eval()
    frames: Any = picture(32, 32)[None, None]
    torch.testing.assert_close(again(frames), encoder(frames))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"^model.init_args.vision.source: cannot load"):
        CLIPFrameEncoder(CLIPSettings(source=str(tmp_path)))
    with pytest.raises(WeightsError, match=r"^model.init_args.vision.source: cannot load 'no/such-model'"):
        CLIPFrameEncoder(CLIPSettings(source="no/such-model"))
