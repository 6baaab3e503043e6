from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avcap_zoo.backbones.audio.ced import CEDSettings
from avcap_zoo.backbones.language import GenerationSettings, LanguageSettings
from avcap_zoo.backbones.vision.clip import CLIPSettings
from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
from avcap_zoo.errors import DataError, WeightsError
from avcap_zoo.systems.base import CHECKPOINT_KEY, OptimizerSettings
from avcap_zoo.systems.captions import ScoreSettings
from avcap_zoo.systems.lavcap import LAVCap
from avcap_zoo.systems.lavcap.fusion import FusionSettings
from avcap_zoo.systems.lavcap.fusion_kinds import FusionKind
from avcap_zoo.systems.lavcap.model import AudioSettings, PromptSettings
from avcap_zoo.tables.clip_views import load_model, look_at_clips
from avcap_zoo.tables.run_results import read_annotations

PROMPT = "USER: <SpeechHere> ASSISTANT:"


def save(path: Path, kind: FusionKind) -> dict[str, Any]:
    """A checkpoint of random weights, as a run saves it; returns its content."""
    torch.manual_seed(1)
    encoder = CEDSettings(
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_mel_bins=64,
        target_length=400,
        frame_shift_ms=25.0,
        pad_with_silence=True,
    )
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    system = LAVCap(
        audio=AudioSettings(encoder=encoder, training="full", mask_padding=True),
        vision=CLIPSettings(source=None, config={**size, "projection_dim": 32, "image_size": 32, "patch_size": 16}),
        language=LanguageSettings(
            source=None, config={**size, "model_type": "llama"}, dtype="float32", training="full"
        ),
        fusion=FusionSettings(kind=kind, features="raw"),
        prompts=PromptSettings(training=(PROMPT,), evaluation=PROMPT),
        generation=GenerationSettings(max_new_tokens=3),
        optimizer=OptimizerSettings(),
        scores=ScoreSettings(),
    )
    system.configure_model()
    content: dict[str, Any] = {"state_dict": system.state_dict()}
    system.on_save_checkpoint(content)
    torch.save(content, path)
    return content


@pytest.fixture
def data(scenes_root: Path) -> ScenesDataModule:
    return ScenesDataModule(str(scenes_root), num_train=24, num_val=6, num_test=6, image_size_px=32)


def test_a_view_shows_what_the_model_meets(tmp_path: Path, scenes_root: Path, data: ScenesDataModule) -> None:
    content = save(tmp_path / "best.ckpt", "ot_attention")
    model = load_model(tmp_path / "best.ckpt")
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, content["state_dict"][f"model.{name}"])
    annotations = read_annotations(scenes_root)
    ids = sorted(annotations, reverse=True)[:3]
    views = look_at_clips(model, data, ids)
    assert [view.clip_id for view in views] == ids
    for view in views:
        duration_s = annotations[view.clip_id]["duration_s"]
        assert view.duration_s == duration_s
        assert view.wav[:4] == b"RIFF"
        assert view.frames.shape == (20, 64, 64, 3)
        assert view.frames.dtype == np.uint8
        assert view.spectrogram.shape[0] == 64
        assert view.spectrogram.shape[1] == pytest.approx(duration_s / 0.025, abs=2)
        assert view.plan is not None
        assert view.plan.shape == (20, np.ceil(view.spectrogram.shape[1] / 16))
        assert view.plan.sum() == pytest.approx(1, abs=1e-3)
        assert view.plan.sum(axis=1) == pytest.approx(1 / 20, abs=1e-3)
        assert 0 <= view.plan_end_s - duration_s < 0.4 + 0.03


def test_without_transport_there_is_no_plan(tmp_path: Path, scenes_root: Path, data: ScenesDataModule) -> None:
    save(tmp_path / "best.ckpt", "concatenation")
    (view,) = look_at_clips(load_model(tmp_path / "best.ckpt"), data, [min(read_annotations(scenes_root))])
    assert view.plan is None


def test_an_unknown_clip_is_named(tmp_path: Path, data: ScenesDataModule) -> None:
    save(tmp_path / "best.ckpt", "ot_attention")
    with pytest.raises(DataError, match="lacks the test clips stranger"):
        look_at_clips(load_model(tmp_path / "best.ckpt"), data, ["stranger"])


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    with pytest.raises(WeightsError, match="does not exist"):
        load_model(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(WeightsError, match="was not saved by avcap-zoo"):
        load_model(path)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    content = save(path, "ot_attention")
    lost = content["state_dict"].pop("model.projector.weight")
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"projector\.weight"):
        load_model(path)
    content["state_dict"]["model.projector.weight"] = lost
    settings = json.loads(content[CHECKPOINT_KEY]["init_args"])
    content[CHECKPOINT_KEY]["init_args"] = json.dumps({**settings, "of_old": 1})
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"another version of avcap-zoo \(.*\): model\.init_args\.of_old"):
        load_model(path)
