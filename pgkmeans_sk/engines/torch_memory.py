"""How many rows the torch engine looks at at a time.

Two kinds of blocks: those whose size changes no result follow the memory that is free; those in
which sums are added up follow the shape of the problem alone, so that the sums have the same bits
on a full device as on an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK_BYTES = 2**28
"""Working memory for a block on an accelerator, if so much is free."""
HOST_BLOCK_BYTES = 2**22
"""The same on the CPU, where a block had better stay in the cache."""
FREE_SHARE = 4
"""At most one part in so many of the free memory is taken."""
SUM_NUMBERS = 2**23
"""Numbers in a block of rows that are added up: 64 MiB in float64."""
MAX_SUM_ROWS = 2**18
PROBLEMS_BYTES = 2**33
"""Memory for problems that are worked on together on an accelerator, if so much is free."""
HOST_PROBLEMS_BYTES = 2**30
"""The same on the CPU."""


def free_bytes(device: torch.device) -> int | None:
    """What the device has left, the allocator's own reserve included; None if nobody can tell."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + reserve)


def block_rows(device: torch.device, bytes_per_row: int) -> int:
    """Rows in a block, if each needs so much working memory; at least one."""
    budget = HOST_BLOCK_BYTES if device.type == "cpu" else BLOCK_BYTES
    free = free_bytes(device)
    if free is not None:
        budget = min(budget, free // FREE_SHARE)
    return max(1, budget // max(1, bytes_per_row))


def problems_at_once(device: torch.device, bytes_each: int) -> int:
    """How many problems are worked on together, if each takes so much memory; at least one."""
    budget = HOST_PROBLEMS_BYTES if device.type == "cpu" else PROBLEMS_BYTES
    free = free_bytes(device)
    if free is not None:
        budget = min(budget, free // FREE_SHARE)
    return max(1, budget // bytes_each)


def sum_rows(n_features: int) -> int:
    """Rows that are added up at a time: the same for any device and any state of it."""
    return max(1, min(MAX_SUM_ROWS, SUM_NUMBERS // (n_features + 2)))


def blocks(n_rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Bounds of blocks of ``size`` rows, one after the other."""
    for start in range(0, n_rows, size):
        yield start, min(n_rows, start + size)
