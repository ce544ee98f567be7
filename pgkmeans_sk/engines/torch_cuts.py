"""Where nodes are cut, for many nodes at once: the rules of ``kernels/split.py`` on tensors.

The members of all nodes stand one after the other; ``node`` (m,) int64 says whose each one is. A
member goes left if its key is at most the threshold of its node, so equal keys stay together.

Note [Whole weights]
~~~~~~~~~~~~~~~~~~~~
Running sums and histograms of weights are kept in whole numbers: adding those in any order gives
the same, so that threads may. One unit is a power of two, and so small that a node's weight has
about 60 bits.
"""

from __future__ import annotations

import numpy as np
import torch

from pgkmeans_sk.results import FloatArray

BINS = 256
"""Resolution of the search for the best cut: the O(m) form of Otsu's threshold."""
WHOLE_BITS = 60


def whole_weights(weights: torch.Tensor, heaviest: FloatArray, node: torch.Tensor) -> torch.Tensor:
    """``weights`` (m,) in units (Note [Whole weights]) for a node of ``heaviest`` (P,) weight."""
    units = torch.from_numpy(np.ldexp(1.0, WHOLE_BITS - np.frexp(heaviest)[1]))
    return (weights * units.to(weights.device)[node]).round_().to(torch.int64)


def cut_by_weight(
    keys: torch.Tensor,
    node: torch.Tensor,
    weights: torch.Tensor | None,
    ends: torch.Tensor,
    fractions: torch.Tensor,
) -> torch.Tensor:
    """Thresholds (P,) at which the weight that goes left is nearest to a share of the node's.

    They lie between two different keys. Of two cuts equally near it is the one with less weight.
    Where all keys of a node are equal the threshold is that key, and all members go left.

    Parameters
    ----------
    keys, node : tensors of shape (m,), float64 and int64
        Keys of the members, node by node.
    weights : tensor of shape (m,), int64, or None for ones
        Whole weights.
    ends : tensor of shape (P,), int64
        Where the members of each node end.
    fractions : tensor of shape (P,), float64
        The shares.
    """
    by_key = torch.argsort(keys, stable=True)
    order = by_key[torch.argsort(node[by_key], stable=True)]
    keys, n_members = keys[order], len(keys)
    if weights is None:
        running = torch.arange(1, n_members + 1, device=keys.device)
    else:
        running = weights[order].cumsum(0)
    totals = torch.cat([running.new_zeros(1), running[(ends - 1).clamp_(min=0)]])
    left = running - totals[node]
    targets = fractions * (totals[1:] - totals[:-1]).to(torch.float64)
    # A cut is possible after a member whose successor in the node has another key.
    is_last = torch.ones(n_members, dtype=torch.bool, device=keys.device)
    is_last[:-1] = node[:-1] != node[1:]
    possible = torch.logical_not(is_last)
    possible[:-1] &= keys[:-1] != keys[1:]
    errors = (left.to(torch.float64) - targets[node]).abs()
    errors = torch.where(possible, errors, float("inf"))
    least = torch.full_like(targets, float("inf")).scatter_reduce_(0, node, errors, "amin")
    places = torch.arange(n_members, device=keys.device)
    chosen = torch.where(errors == least[node], places, n_members)
    first = torch.full_like(ends, n_members).scatter_reduce_(0, node, chosen, "amin")
    # Without a possible cut all errors are equal, and the first member has the key of all.
    return keys[first.clamp_(max=n_members - 1)]  # a node may have no members


def cut_where_errors_fall(
    keys: torch.Tensor, node: torch.Tensor, weights: torch.Tensor | None, n_nodes: int
) -> torch.Tensor:
    """Thresholds (P,) at which two groups have the least squared error about their own means.

    Otsu's method on a histogram of the keys, as shares of their extent: the best cut maximises
    w_l w_r (m_l - m_r)^2. Parameters are those of ``cut_by_weight``.
    """
    infinity = torch.full((n_nodes,), float("inf"), dtype=torch.float64, device=keys.device)
    smallest = infinity.scatter_reduce(0, node, keys, "amin")
    largest = (-infinity).scatter_reduce(0, node, keys, "amax")
    extent = largest - smallest
    positions = (keys - smallest[node]) / torch.where(extent > 0.0, extent, 1.0)[node]
    of_bin = node * BINS + (positions * BINS).to(torch.int64).clamp_(max=BINS - 1)
    if weights is None:
        weights = torch.ones_like(node)
        sum_unit = 2.0**-30  # of at most 2^31 members in a node, each at most 1
        sums = (positions / sum_unit).round_().to(torch.int64)
    else:
        sum_unit = 1.0
        sums = (positions * weights.to(torch.float64)).round_().to(torch.int64)
    size = n_nodes * BINS
    in_bins = torch.zeros((2, size), dtype=torch.int64, device=keys.device)
    in_bins[0].index_add_(0, of_bin, weights)
    in_bins[1].index_add_(0, of_bin, sums)
    running = in_bins.view(2, n_nodes, BINS).cumsum(dim=2)
    left, left_sum = running[0].to(torch.float64), running[1].to(torch.float64) * sum_unit
    right = (running[0][:, -1:] - running[0]).to(torch.float64)
    right_sum = (running[1][:, -1:] - running[1]).to(torch.float64) * sum_unit
    difference = left_sum / left - right_sum / right
    between = left * right * difference * difference
    is_cut = (in_bins[0].view(n_nodes, BINS) > 0) & (right > 0.0)
    between = torch.where(is_cut, between, -1.0)
    bins = torch.arange(BINS, device=keys.device)
    is_best = between == between.amax(dim=1, keepdim=True)
    best = torch.where(is_best, bins, BINS).amin(dim=1)  # the first: argmax names any of several
    tops = smallest.repeat_interleave(BINS).scatter_reduce_(0, of_bin, keys, "amax")
    return tops.view(n_nodes, BINS).gather(1, best[:, None]).squeeze(1)
