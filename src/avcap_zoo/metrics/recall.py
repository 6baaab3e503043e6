"""How well captions find their pictures again: reciprocal rank and recall from embeddings of any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.errors import DataError, ShapeError

CUT_OFFS = (1, 5, 10)
_ROUNDING = 1e-6
"""Cosines that differ by less are equal: the same picture twice has embeddings that differ in their last bits."""


def retrieval_ranks(images: Tensor, texts: Tensor, *, chunk_size: int = 1024) -> Tensor:
    """Rank of each text's own picture among all pictures, by cosine.

    Args:
        images: (N, C) embeddings of any length.
        texts: (N, C), in the same order.
        chunk_size: texts compared at once; memory grows with chunk_size times N.

    Returns:
        (N,) int64: 1 + the number of pictures that are strictly nearer than the own one. Pictures as near as it, such
        as copies of it, do not count.

    Raises:
        ShapeError: the two do not fit together, or are empty.
        DataError: an embedding is not finite or zero; its row is named.
    Source: Chan et al., IC3 (arXiv 2302.01328), "CLIP recall"; VLRM (arXiv 2404.01911), section 4.
    """
    if images.shape != texts.shape or images.ndim != 2 or not len(images):
        raise ShapeError(
            f"image embeddings {tuple(images.shape)} and text embeddings {tuple(texts.shape)} do not fit: "
            f"wanted (N, C) of both, N at least 1"
        )
    for kind, embeddings in (("image", images), ("text", texts)):
        lengths = embeddings.double().norm(dim=1)
        if not bool((lengths.isfinite() & (lengths > 0)).all()):
            row = int((~(lengths.isfinite() & (lengths > 0))).nonzero()[0])
            raise DataError(f"the {kind} embedding of row {row} has length {float(lengths[row])}, wanted a direction")
    gallery = F.normalize(images.double(), dim=1).T
    ranks = []
    for start, queries in zip(range(0, len(texts), chunk_size), texts.split(chunk_size), strict=True):
        cosines = F.normalize(queries.double(), dim=1) @ gallery
        own = cosines.diagonal(offset=start)[:, None]
        ranks.append(1 + (cosines > own + _ROUNDING).sum(dim=1))
    return torch.cat(ranks)


def recall_scores(ranks: Tensor, cut_offs: Sequence[int] = CUT_OFFS) -> dict[str, float]:
    """Scores of (N,) ranks: `mrr` (mean of 1 / rank), `recall_<k>` (share of ranks up to k), mean, median, maximum."""
    exact = ranks.double()
    scores = {"mrr": float(exact.reciprocal().mean())}
    scores |= {f"recall_{k}": float((ranks <= k).double().mean()) for k in cut_offs}
    middle = float(exact.quantile(0.5))
    return scores | {"mean_rank": float(exact.mean()), "median_rank": middle, "max_rank": float(exact.max())}


class RetrievalScores:
    """Embeddings of a whole split, of all processes: call update() with batches, then compute() on every one.

    Clips that come again, as the last ones of several processes do, count once.
    """

    def __init__(self) -> None:
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}

    def update(self, clip_ids: Sequence[str], images: Tensor, texts: Tensor) -> None:
        """Take in one batch.

        Args:
            clip_ids: B ids.
            images: (B, C) embeddings.
            texts: (B, C) embeddings of the captions.
        """
        pairs = zip(images.float().cpu(), texts.float().cpu(), strict=True)
        self._rows |= dict(zip(clip_ids, pairs, strict=True))

    def compute(self) -> dict[str, float]:
        """`recall_scores` of all clips; every process gives the same. Empty where there are no clips.

        Every clip of the split is in the gallery.
        """
        gathered: list[Any] = [self._rows]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, self._rows)
        everyone = {clip_id: pair for rows in gathered for clip_id, pair in rows.items()}
        if not everyone:
            return {}
        images, texts = (torch.stack(column) for column in zip(*everyone.values(), strict=True))
        return recall_scores(retrieval_ranks(images, texts))
