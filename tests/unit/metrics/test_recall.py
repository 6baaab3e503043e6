"""Ranks and recall of captions that look for their picture."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from avcap_zoo.errors import DataError, ShapeError
from avcap_zoo.metrics.recall import RetrievalScores, recall_scores, retrieval_ranks


def test_copies_of_the_own_picture_do_not_count_against_it() -> None:
    images = torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    copies = torch.cat([images, images * 3, images + 1e-8])  # the last ones differ as two passes of a model do
    ranks = retrieval_ranks(copies, copies.flip(1).flip(1) * 0.5)
    assert ranks.tolist() == [1] * 18


def test_ranks_by_hand() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    texts = torch.tensor([[0.0, 2.0], [0.1, 1.0], [3.0, 0.1]])
    assert retrieval_ranks(images, texts).tolist() == [3, 1, 2]
    scores = recall_scores(torch.tensor([3, 1, 2]), cut_offs=(1, 2))
    assert scores["mrr"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert (scores["recall_1"], scores["recall_2"]) == pytest.approx((1 / 3, 2 / 3))
    assert (scores["mean_rank"], scores["median_rank"], scores["max_rank"]) == (2, 2, 3)


def test_what_is_no_direction_is_refused() -> None:
    good = torch.eye(3)
    with pytest.raises(ShapeError, match=r"\(3, 3\) and text embeddings \(2, 3\)"):
        retrieval_ranks(good, good[:2])
    with pytest.raises(DataError, match="text embedding of row 1 has length 0"):
        retrieval_ranks(good, good * torch.tensor([[1.0], [0.0], [1.0]]))
    with pytest.raises(DataError, match="image embedding of row 2 has length nan"):
        retrieval_ranks(good * torch.tensor([[1.0], [1.0], [torch.nan]]), good)


def test_no_clips_have_no_scores() -> None:
    assert RetrievalScores().compute() == {}


def work(rank: int, folder: str, port: int) -> None:
    """One of two processes; the last clip of the first one comes again in the second."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    scores = RetrievalScores()
    images, texts = embeddings()
    rows = slice(0, 4) if rank == 0 else slice(3, 7)
    scores.update(list("abcdefg")[rows], images[rows], texts[rows])
    torch.save(scores.compute(), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 5, generator=generator)
    return images, images + torch.randn(7, 5, generator=generator)


def test_two_processes_search_one_gallery(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(str(tmp_path), port), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
    wanted = recall_scores(retrieval_ranks(*embeddings()))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(wanted)
    assert wanted["mrr"] < 1
