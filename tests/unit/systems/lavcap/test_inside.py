from __future__ import annotations

import pytest
import torch

from avcap_zoo.batch import Batch
from avcap_zoo.systems.lavcap.fusion_kinds import FusionKind
from avcap_zoo.systems.lavcap.inside import look_at
from tests.integration.tiny import tiny_lavcap

TOKEN_S = 16 * 0.1
"""Of the tiny model: 16 columns of 100 ms."""


@pytest.mark.parametrize("kind", ["ot_attention", "concatenation_ot", "qformer"])
def test_the_plan_covers_the_sound_and_not_its_padding(kind: FusionKind) -> None:
    torch.manual_seed(0)
    system = tiny_lavcap(kind=kind)
    system.configure_model()
    system.eval()
    batch = Batch(
        clip_ids=["a", "b"],
        captions=[[], []],
        caption=["", ""],
        waveform=0.1 * torch.randn(2, 160_000),
        num_samples=torch.tensor([160_000, 66_000]),
        frames=torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8),
        frame_mask=torch.tensor([[True] * 4, [True, True, True, False]]),
    )
    with torch.no_grad():
        clips = look_at(system.model, batch, system.model.fuse(batch))
    for clip, duration_s, num_frames in zip(clips, (10.0, 4.125), (4, 3), strict=True):
        assert clip.duration_s == duration_s
        assert clip.spectrogram is not None
        assert clip.spectrogram.shape == (64, (round(duration_s * 16_000) - 400) // 1600 + 1)
        assert clip.frames is not None
        assert clip.plan is not None
        assert len(clip.frames) == len(clip.plan) == num_frames
        assert (clip.plan > 0).all()
        token_s = clip.plan_end_s / clip.plan.shape[1]
        assert -0.1 <= clip.plan_end_s - duration_s < token_s + 1e-6
        if kind != "qformer":
            assert token_s == pytest.approx(TOKEN_S)
