"""Our batched transport plan against a plain loop over the clips: time on one thread, error under bfloat16 autocast.

    python benchmarks/optimal_transport.py

Prints both best times and their ratio, measured in turns in one run, and the largest error of either log plan against
float64. The sizes are LAVCap's: 16 clips, 20 frames, 64 audio tokens, width 768, epsilon 0.1, 50 iterations.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.ops.optimal_transport import sinkhorn_log_plan

EPSILON = 0.1
NUM_ITERATIONS = 50


@dataclass
class Result:
    """What one run measured.

    Attributes:
        loop_s: best time of the loop.
        ours_s: best time of the batched plan.
        loop_error: largest error of the loop's log plan under bfloat16 autocast.
        ours_error: likewise ours, with the similarity kept in float32 as the fusion does.
        ours_error_rounded: ours, from the similarity that autocast has rounded to bfloat16.
    """

    loop_s: float
    ours_s: float
    loop_error: float
    ours_error: float
    ours_error_rounded: float

    @property
    def ratio(self) -> float:
        """How many times faster the batched plan is."""
        return self.loop_s / self.ours_s


def plan_clip_by_clip(similarity: Tensor) -> Tensor:
    """(B, N, M) log plans, one clip after another, in the dtype that is given."""
    plans = []
    for scores in similarity / EPSILON:
        num_rows, num_columns = scores.shape
        row, column = scores.new_zeros(num_rows), scores.new_zeros(num_columns)
        for _ in range(NUM_ITERATIONS):
            row = -math.log(num_rows) - torch.logsumexp(scores + column[None, :], dim=1)
            column = -math.log(num_columns) - torch.logsumexp(scores + row[:, None], dim=0)
        plans.append(scores + row[:, None] + column[None, :])
    return torch.stack(plans)


def plan_batched(similarity: Tensor) -> Tensor:
    """(B, N, M) log plans by `ops.optimal_transport`."""
    return sinkhorn_log_plan(similarity, epsilon=EPSILON, num_iterations=NUM_ITERATIONS)


def best_times_s(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Shortest of `repeats` times of each call, in turns, so that a busy machine disturbs all alike."""
    best = [math.inf] * len(calls)
    for _ in range(repeats):
        for index, call in enumerate(calls):
            started = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - started)
    return best


def measure(num_clips: int, num_frames: int, num_audio_tokens: int, width: int, repeats: int) -> Result:
    """Time and error of both on random unit vectors of few dimensions (seed 0)."""
    torch.manual_seed(0)
    # Few directions give similarities over most of [-1, 1], so that the plans are far from uniform.
    directions = torch.randn(min(8, width), width)
    visual, audio = (
        F.normalize(torch.randn(num_clips, count, len(directions)) @ directions, dim=-1)
        for count in (num_frames, num_audio_tokens)
    )
    similarity = visual @ audio.transpose(1, 2)
    exact = plan_clip_by_clip(visual.double() @ audio.double().transpose(1, 2))
    loop_s, ours_s = best_times_s([lambda: plan_clip_by_clip(similarity), lambda: plan_batched(similarity)], repeats)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = visual @ audio.transpose(1, 2)
        plans = plan_clip_by_clip(rounded), plan_batched(similarity), plan_batched(rounded)
    errors = [float((plan.double() - exact).abs().max()) for plan in plans]
    return Result(loop_s, ours_s, *errors)


def main() -> None:
    """Measure at LAVCap's size and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    result = measure(16, 20, 64, 768, repeats)
    print(f"loop over clips   {1e3 * result.loop_s:7.2f} ms   (best of {repeats}, one thread, float32)")
    print(f"batched           {1e3 * result.ours_s:7.2f} ms   {result.ratio:.1f} times faster")
    print("largest error of the log plan under bfloat16 autocast, against float64")
    print(f"loop              {result.loop_error:.1e}")
    print(f"batched           {result.ours_error:.1e}   ({result.ours_error_rounded:.1e} from a rounded similarity)")


if __name__ == "__main__":
    main()
