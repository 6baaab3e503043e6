"""The vendor's collectives, by gloo: like them it has no mean."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from habana_frameworks.torch.device import record


def create(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


dist.Backend.register_backend("hccl", create, devices=["cpu"])


def initialize_distributed_hpu(world_size: int, rank: int, local_rank: int) -> tuple[int, int, int]:
    os.environ["LOCAL_RANK"] = str(local_rank)
    record["process_group"] = [world_size, rank, local_rank]
    return world_size, rank, local_rank
