"""Windows of tokens: how many, which, and that each is read alone."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.backbones.qformer import QFormerSettings
from avcap_zoo.errors import ShapeError
from avcap_zoo.systems.lavcap.windowed_qformer import WindowedQFormer

TINY = QFormerSettings(num_queries=2, embed_dim=8, depth=1, num_heads=2, mlp_dim=8, cross_attention_frequency=1)


def windowed(size: int, stride: int, *, keep_partial: bool, drop_last: bool) -> WindowedQFormer:
    return WindowedQFormer(TINY, 6, size=size, stride=stride, keep_partial=keep_partial, drop_last=drop_last).eval()


def windows_by_hand(num_tokens: int, reader: WindowedQFormer) -> list[list[int]]:
    """Token numbers of each window, one start after another until all tokens are in."""
    found: list[list[int]] = []
    for start in range(0, num_tokens, reader.stride):
        window = list(range(start, min(start + reader.size, num_tokens)))
        if len(window) == reader.size or (reader.keep_partial and not any(window[-1] in earlier for earlier in found)):
            found.append(window)
    return found[: len(found) - reader.drop_last]


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 3), (3, 2), (4, 1), (2, 3), (1, 1)])
@pytest.mark.parametrize(
    "kept", [(True, False), (False, True), (False, False)], ids=["plain", "released_ot", "released"]
)
def test_each_window_is_read_alone(size: int, stride: int, kept: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    reader = windowed(size, stride, keep_partial=kept[0], drop_last=kept[1])
    for num_tokens in range(1, 9):
        windows = windows_by_hand(num_tokens, reader)
        assert int(reader.num_windows(torch.tensor(num_tokens))) == len(windows)
        tokens = torch.randn(2, num_tokens, 6)
        every = torch.ones(2, num_tokens, dtype=torch.bool)
        if not windows:
            with pytest.raises(ShapeError, match=f"a clip has {num_tokens} tokens, the Q-Former's windows need"):
                reader(tokens, every)
            continue
        read, mask = reader(tokens, every)
        assert mask.all()
        wanted = torch.cat([reader.qformer(tokens[:, window]) for window in windows], dim=1)
        torch.testing.assert_close(read, wanted, rtol=1e-4, atol=1e-5)


def test_a_short_clip_beside_a_long_one_keeps_its_own_end() -> None:
    reader = windowed(2, 2, keep_partial=True, drop_last=False)
    tokens, mask = torch.randn(2, 7, 6), torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3:] = False
    read, real = reader(tokens, mask)
    assert real.tolist() == [[True] * 8, [True] * 4 + [False] * 4]
    assert torch.isfinite(read).all()
    alone, _ = reader(tokens[1:, :3], mask[1:, :3])
    torch.testing.assert_close(read[1:, :4], alone, rtol=1e-4, atol=1e-5)
