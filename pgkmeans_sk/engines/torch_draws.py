"""Rows drawn at random on a torch device, with the random numbers of the host's generator.

For equal weights they are those that the engine for NumPy arrays draws, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.engines.draws import draw_numbers
from pgkmeans_sk.engines.torch_memory import block_rows, blocks, sum_rows
from pgkmeans_sk.engines.torch_source import RowSource
from pgkmeans_sk.engines.torch_sums import row_sums

BLOCK = 2**10
"""Numbers that are added up before the host looks at the sums."""


def draw_rows_by_weight(
    source: RowSource, weights: torch.Tensor | None, n_rows: int, rng: np.random.RandomState
) -> torch.Tensor:
    """Numbers of up to ``n_rows`` rows of positive weight, without replacement, by weight."""
    device, n_all = source.device, source.shape[0]
    if weights is None:
        return torch.from_numpy(draw_numbers(n_all, min(n_rows, n_all), rng)).to(device)
    candidates = weights.nonzero().squeeze(1)
    own = weights[candidates]
    n_drawn = min(n_rows, len(candidates))
    if bool((own == own[0]).all()):
        drawn = torch.from_numpy(draw_numbers(len(candidates), n_drawn, rng)).to(device)
    else:
        # The least of exponential variables with these rates (Efraimidis & Spirakis 2006).
        waiting = torch.from_numpy(rng.standard_exponential(len(candidates))).to(device) / own
        drawn = torch.argsort(waiting, stable=True)[:n_drawn]
    return candidates[drawn]


class Lottery:
    """Draws numbers 0 <= i < n with probabilities in proportion to ``chances`` (n,), float64."""

    def __init__(self, chances: torch.Tensor) -> None:
        self._n = len(chances)
        padded = torch.nn.functional.pad(chances, (0, -self._n % BLOCK))
        self._blocks = padded.view(-1, BLOCK)
        self._ends = np.cumsum(self._blocks.sum(dim=1).cpu().numpy())

    @property
    def total(self) -> float:
        """Sum of the chances."""
        return float(self._ends[-1])

    def at(self, places: NDArray[Any]) -> NDArray[Any]:
        """The numbers (m,) in whose share of the running sum the ``places`` (m,) lie."""
        of_block = np.searchsorted(self._ends, places, side="right")
        of_block = np.minimum(of_block, len(self._ends) - 1)
        chosen = torch.from_numpy(of_block).to(self._blocks.device)
        running = np.cumsum(self._blocks[chosen].cpu().numpy(), axis=1)
        before = np.where(of_block > 0, self._ends[of_block - 1], 0.0)
        within = (running <= (places - before)[:, np.newaxis]).sum(axis=1)
        numbers = of_block * BLOCK + np.minimum(within, BLOCK - 1)
        return np.asarray(np.minimum(numbers, self._n - 1))


def draw_kmeans_plusplus(
    source: RowSource,
    weights: torch.Tensor | None,
    n_clusters: int,
    rng: np.random.RandomState,
) -> torch.Tensor:
    """Numbers (K,) of rows drawn by greedy k-means++ (Arthur & Vassilvitskii 2007), by weight.

    Each is the best of 2 + log K rows that are drawn in proportion to their share of the inertia.
    """
    n_rows, device = source.shape[0], source.device
    n_trials = 2 + int(np.log(n_clusters))
    w = weights if weights is not None else torch.ones(n_rows, dtype=torch.float64, device=device)
    lottery = Lottery(w)
    first = lottery.at(np.array([rng.random_sample()]) * lottery.total)
    chosen = [int(_with_chance(first, w, 0)[0])]
    least = torch.full((1, n_rows), float("inf"), dtype=torch.float64, device=device)
    least = _least_sq_distances(source, torch.tensor(chosen, device=device), least)[0]
    for _ in range(1, n_clusters):
        lottery = Lottery(least * w)
        places = rng.uniform(size=n_trials) * lottery.total
        trials = _with_chance(lottery.at(places), least * w, chosen[0])
        improved = _least_sq_distances(source, torch.from_numpy(trials).to(device), least[None])
        inertias = (improved * w).sum(dim=1).cpu().numpy()
        best = int(np.argmin(inertias))
        chosen.append(int(trials[best]))
        least = improved[best].clone()
    return torch.tensor(chosen, device=device)


def _with_chance(numbers: NDArray[Any], chances: torch.Tensor, otherwise: int) -> NDArray[Any]:
    """``numbers`` (m,), where rounding has hit one without a chance replaced by one that has."""
    has_chance = chances[torch.from_numpy(numbers).to(chances.device)].cpu().numpy() > 0.0
    if has_chance.all():
        return numbers
    present = chances.nonzero()
    spare = int(present[0, 0]) if len(present) else otherwise
    return np.where(has_chance, numbers, spare)


def _least_sq_distances(
    source: RowSource, numbers: torch.Tensor, least: torch.Tensor
) -> torch.Tensor:
    """The lesser (m, n) of ``least`` (1, n) and the squared distances to rows ``numbers`` (m,)."""
    n_rows, n_features = source.shape
    others = source.take(numbers).to(torch.float64)
    found = torch.empty((len(others), n_rows), dtype=torch.float64, device=source.device)
    for first, last, rows in source.chunks(sum_rows(n_features)):
        for start, stop in blocks(last - first, block_rows(source.device, 24 * n_features)):
            block = rows[start:stop].to(torch.float64)
            for number, other in enumerate(others):
                found[number, first + start : first + stop] = row_sums((block - other).square_())
    return torch.minimum(found, least, out=found)
