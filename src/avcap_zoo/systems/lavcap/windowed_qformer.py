"""A Q-Former that reads a token sequence window by window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.qformer import QFormer, QFormerSettings
from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.masking import left_align, length_mask


class WindowedQFormer(nn.Module):
    """Reads windows of tokens one by one; what it says of each window follows in order.

    Args:
        settings: of the Q-Former.
        encoder_dim: channels of the tokens.
        size: tokens of a window.
        stride: tokens from one window to the next.
        keep_partial: True reads a last window that has fewer tokens; the released code leaves it out.
        drop_last: True leaves the last whole window out as well, as the released code with transport does.
    """

    def __init__(
        self,
        settings: QFormerSettings,
        encoder_dim: int,
        *,
        size: int,
        stride: int,
        keep_partial: bool,
        drop_last: bool,
    ) -> None:
        super().__init__()
        self.qformer = QFormer(settings, encoder_dim)
        self.size = size
        self.stride = stride
        self.keep_partial = keep_partial
        self.drop_last = drop_last

    def num_windows(self, num_tokens: Tensor) -> Tensor:
        """Windows of sequences of so many tokens; any shape, integer."""
        if self.keep_partial:
            overlap = max(self.size - self.stride, 0)
            count = (num_tokens - overlap + self.stride - 1).div(self.stride, rounding_mode="floor").clamp_min(1)
        else:
            count = (num_tokens - self.size).div(self.stride, rounding_mode="floor") + 1
        return (count - int(self.drop_last)).clamp_min(0)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Read sequences.

        Args:
            tokens: (B, N, E).
            mask: (B, N) bool; masked tokens are taken out first, so that a window holds neighbours.

        Returns:
            (B, W * num_queries, C) and its mask.

        Raises:
            ShapeError: a clip has too few tokens for one window.
        """
        mask, tokens = left_align(mask, tokens)
        counts = self.num_windows(mask.sum(dim=1))
        num_windows = int(self.num_windows(torch.tensor(tokens.shape[1])))
        if num_windows == 0 or not bool((counts > 0).all()):
            shortest = int(mask.sum(dim=1).min())
            raise ShapeError(
                f"a clip has {shortest} tokens, the Q-Former's windows need at least "
                f"{self.size + self.stride * int(self.drop_last)} (fusion.window_s, fusion.stride_s)"
            )
        index = torch.arange(num_windows, device=mask.device)[:, None] * self.stride
        index = index + torch.arange(self.size, device=mask.device)
        inside = index < tokens.shape[1]
        index = index.clamp_max(tokens.shape[1] - 1)
        windows, real = tokens[:, index], mask[:, index] & inside
        window_mask = length_mask(counts, num_windows)
        # Attention needs something to read even where a window is not used.
        real = real | ~window_mask[:, :, None]
        read = self.qformer(windows.flatten(0, 1), real.flatten(0, 1))
        num_queries = read.shape[1]
        joined = read.unflatten(0, (len(tokens), num_windows)).flatten(1, 2)
        return joined, window_mask.repeat_interleave(num_queries, dim=1)
