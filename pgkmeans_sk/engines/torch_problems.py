"""Many problems of one shape on a torch device, all of them in each operation.

What ``torch_device.py`` does for the rows of a problem is done here for those of B problems: as
many operations, and as often is the device waited for, as for one alone, up to the memory for a
block. Labels are the same, and so are the bits of all sums (Note [Sections] in
``torch_members.py``); but how much farther the second nearest centre is comes from products of
other shapes, and these round in their own way, as those of two devices do.

``alone`` is a problem as an engine over the same tensors: for what happens to few, with its own
labels written where the others' are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.engines.torch_device import TorchEngine
from pgkmeans_sk.engines.torch_memory import block_rows, problems_at_once, sum_rows
from pgkmeans_sk.engines.torch_nodes import TorchNodes, members_of
from pgkmeans_sk.engines.torch_problem_labels import (
    are_few,
    blocks_of_problems,
    decide_among_all,
    decide_among_candidates,
    find_nearest,
    pack_problems,
)
from pgkmeans_sk.engines.torch_rows import (
    ORIGIN_ROWS,
    as_user,
    check_device,
    numpy_dtype,
    origin_of,
    reported_dtype,
    to_directions,
    to_tensor,
    work_place,
)
from pgkmeans_sk.engines.torch_source import ResidentRows, StreamedRows, open_source
from pgkmeans_sk.engines.torch_states import Place, States, joined, placed
from pgkmeans_sk.engines.torch_sums import (
    ends_of_runs,
    errors_and_squares,
    row_sums,
    starts_of_pieces,
    sums_of_runs,
)
from pgkmeans_sk.results import Cut, FloatArray, IntArray, Nodes


class TorchProblems:
    """Rows (B, n, d) of problems, with weights (B, n), float64, or None for ones.

    ``place`` is ``Settings.place`` where that does more than to fill gaps. ``user_rows`` (B, n, d)
    are those of the user; None if they are of our own making.
    """

    def __init__(
        self,
        X: torch.Tensor,
        weights: torch.Tensor | None,
        user_rows: Any = None,
        place: Place | None = None,
    ) -> None:
        self.X, self.weights, self._user_rows, self.place = X, weights, user_rows, place
        self.n_problems, self.n_rows, self.n_features = X.shape
        self._device, self._dtype = X.device, reported_dtype(X.dtype)
        self.dtype = numpy_dtype(X.dtype)
        size = (self.n_problems, self.n_rows)
        self.labels = torch.full(size, -1, dtype=torch.int32, device=X.device)
        self._gaps = torch.zeros(size, dtype=self._dtype, device=X.device)
        self._rows = X.reshape(-1, self.n_features)
        self._row_weights = None if weights is None else weights.reshape(-1)
        self._nodes = TorchNodes(ResidentRows(self._rows), self._row_weights)

    @cached_property
    def _origins(self) -> torch.Tensor:
        """A point (B, d) near the bulk of the rows of each problem."""
        step = 1 + (self.n_rows - 1) // ORIGIN_ROWS
        return origin_of(self.X[:, ::step].transpose(0, 1))

    @cached_property
    def _has_weight(self) -> torch.Tensor | None:
        return None if self.weights is None else self.weights > 0.0

    def _index(self, which: IntArray) -> Any:
        """What finds the problems ``which`` (A,) in a tensor: no copy where a slice does."""
        if len(which) and which[-1] - which[0] == len(which) - 1 and (np.diff(which) == 1).all():
            return slice(int(which[0]), int(which[-1]) + 1)
        return torch.from_numpy(which).to(self._device)

    def to_device(self, values: NDArray[Any]) -> torch.Tensor:
        """An array as a tensor where the rows are."""
        return torch.from_numpy(np.array(values)).to(self._device)

    def as_centers(self, centroids: FloatArray, fallback: FloatArray) -> torch.Tensor:
        """Centroids (A, K, d) as centres on the device (``Settings.place``)."""
        found = placed(self.to_device(centroids), self.to_device(fallback), self.place)
        return found.to(self._dtype)

    def as_placed(self, centers: torch.Tensor) -> torch.Tensor:
        """New centres (B, K, d), as the pipeline places what a start has found."""
        exact = centers.to(torch.float64)
        return placed(exact, exact, self.place).to(self._dtype, copy=True)

    def rows_at(self, numbers: IntArray) -> torch.Tensor:
        """Rows (B, m, d) of each problem by their ``numbers`` (B, m), as centres."""
        firsts = self.n_rows * np.arange(self.n_problems)[:, None]
        return self._rows[self.to_device(numbers + firsts)].to(self._dtype)

    # ---------------------------------------------------------------- passes over all rows

    def assign(self, which: IntArray, centers: torch.Tensor) -> States:
        """Label the rows of the problems ``which`` (A,) with the nearest of ``centers`` (A, K, d).

        The device is waited for twice: for the rows in doubt, and for what the host reads.
        """
        exact, own = centers.to(torch.float64), self._index(which)
        labels, gaps = self._nearest(which, exact)
        n_changed = (labels != self.labels[own]).sum(dim=1)
        self.labels[own], self._gaps[own] = labels, gaps
        totals = self._totals(which, labels, exact)
        d = self.n_features
        sizes = totals[..., -1]
        sq_errors = row_sums(totals[..., d:-1].flatten(0, 1)).view(sizes.shape)
        present = torch.where(sizes > 0.0, sizes, float("nan"))
        means = placed(exact + totals[..., :d] / present[..., None], exact, self.place)
        moves = means - exact
        rounding = 8.0 * torch.finfo(self._dtype).eps * means.abs().amax(dim=(1, 2))
        rests = moves.abs().amax(dim=(1, 2)) <= rounding
        shifts = moves.square().sum(dim=(1, 2))
        few = torch.stack([shifts, rests.to(shifts.dtype), n_changed.to(shifts.dtype)], dim=1)
        told = torch.cat([few, sizes, sq_errors], dim=1).cpu().numpy()
        n_clusters = exact.shape[1]
        return States(
            centers, means, told[:, 0].copy(), told[:, 1] > 0.0,
            told[:, 3 : 3 + n_clusters].copy(), told[:, 3 + n_clusters :].copy(),
            told[:, 2].astype(np.int64),
        )  # fmt: skip

    def _nearest(self, which: IntArray, exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels (A, n) int32 for centres (A, K, d), and how much farther the second one is."""
        packed = pack_problems(exact, self._origins[self._index(which)])
        size = (len(which), self.n_rows)
        labels = torch.empty(size, dtype=torch.int32, device=self._device)
        gaps = torch.empty(size, dtype=self._dtype, device=self._device)
        doubtful = torch.empty(size, dtype=torch.bool, device=self._device)
        together = block_rows(self._device, packed.row_bytes)
        for problems, rows in blocks_of_problems(len(which), self.n_rows, together):
            X = self.X[self._index(which[problems])][:, rows]
            block = problems, rows
            labels[block], gaps[block], doubtful[block] = find_nearest(X, packed, problems)
        places = doubtful.view(-1).nonzero().squeeze(1)
        if len(places) and are_few(len(places), packed):
            of = places // self.n_rows
            own = self._rows[self._numbers(which, of, places % self.n_rows)]
            labels.view(-1)[places] = decide_among_all(own, of, packed)
        elif len(places):
            together = block_rows(self._device, packed.pair_bytes)
            for block in blocks_of_problems(len(which), self.n_rows, together):
                X = self.X[self._index(which[block[0]])][:, block[1]]
                decided = decide_among_candidates(X, packed, block[0], doubtful[block])
                labels[block] = torch.where(doubtful[block], decided, labels[block])
        return labels, gaps

    def _numbers(self, which: IntArray, problems: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Numbers among the rows of all problems, of ``rows`` of ``which[problems]``."""
        return self.to_device(which)[problems] * self.n_rows + rows

    def _totals(self, which: IntArray, labels: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        """Sums (A, K, 2 d + 1) of errors, of their squares and of weights, by cluster."""
        n_problems, n_clusters, d = exact.shape
        totals = torch.zeros(
            (n_problems, n_clusters, 2 * d + 1), dtype=torch.float64, device=self._device
        )
        longest = sum_rows(d)
        together = max(longest, block_rows(self._device, 32 * (d + 2)))
        for problems, rows in blocks_of_problems(len(which), self.n_rows, together, longest):
            ids, order, starts = self._in_order(labels[problems, rows], n_clusters)
            numbers = self._block_numbers(which[problems], rows)[order]
            weights = None if self._row_weights is None else self._row_weights[numbers]
            centers = exact[problems].flatten(0, 1)[ids]
            values = errors_and_squares(self._rows[numbers], centers, weights)
            part = totals[problems]
            ends = ends_of_runs(ids, len(part) * n_clusters)
            part += sums_of_runs(values, ends, starts).view(part.shape)
        return totals

    def _in_order(
        self, labels: torch.Tensor, n_clusters: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Labels (a, b) counted through from problem to problem, in order; their order; pieces."""
        n_problems, n_rows = labels.shape
        firsts = n_clusters * torch.arange(n_problems, device=self._device)
        ids, order = torch.sort((labels + firsts[:, None]).flatten(), stable=True)
        return ids, order, starts_of_pieces(np.full(n_problems, n_rows), self._device)

    def _block_numbers(self, which: IntArray, rows: slice) -> torch.Tensor:
        """Numbers (a * b,) of some ``rows`` of each of the problems."""
        columns = torch.arange(rows.start, rows.stop, device=self._device)
        return (self.to_device(which)[:, None] * self.n_rows + columns).flatten()

    def utilities(self, which: IntArray, n_clusters: int) -> FloatArray:
        """``Engine.utilities`` (A, K) for the centres of the last ``assign`` of each."""
        labels, gaps = self.labels[self._index(which)], self._gaps[self._index(which)]
        totals = torch.zeros((len(which), n_clusters), dtype=torch.float64, device=self._device)
        longest = sum_rows(1)
        together = max(longest, block_rows(self._device, 64))
        for problems, rows in blocks_of_problems(len(which), self.n_rows, together, longest):
            ids, order, starts = self._in_order(labels[problems, rows], n_clusters)
            values = gaps[problems, rows].flatten()[order].to(torch.float64)
            if self._row_weights is not None:
                numbers = self._block_numbers(which[problems], rows)[order]
                values = values * self._row_weights[numbers]
            part = totals[problems]
            ends = ends_of_runs(ids, part.numel())
            part += sums_of_runs(values[:, None], ends, starts).view(part.shape)
        return np.asarray(totals.cpu().numpy())

    @cached_property
    def _spreads(self) -> tuple[FloatArray, FloatArray]:
        origins, d = self._origins.to(torch.float64)[:, None], self.n_features
        totals = torch.zeros((self.n_problems, 2 * d + 1), dtype=torch.float64, device=self._device)
        together = block_rows(self._device, 64 * d)
        for problems, rows in blocks_of_problems(self.n_problems, self.n_rows, together):
            errors = self.X[problems, rows].to(torch.float64) - origins[problems]
            ones = torch.ones_like(errors[..., :1])
            values = torch.cat([errors, errors.square(), ones], dim=2)
            if self.weights is not None:
                values *= self.weights[problems, rows, None]
            totals[problems] += values.sum(dim=1)
        means, squares = (totals[:, :-1] / totals[:, -1:]).view(-1, 2, d).unbind(dim=1)
        variances = (squares - means.square()).clamp_(min=0.0).mean(dim=1)
        found = torch.stack([variances, squares.mean(dim=1)]).cpu().numpy()
        rounding = 8.0 * (self.n_rows + 16) * np.finfo(np.float64).eps * found[1]
        return found[0], rounding

    def mean_variances(self, which: IntArray) -> tuple[FloatArray, FloatArray]:
        """``Engine.mean_variance`` (A,) up to rounding, and what that may be at most, (A,)."""
        variances, rounding = self._spreads
        return variances[which], rounding[which]

    def joined(self, parts: Sequence[tuple[IntArray, States]]) -> States:
        """States in the order of the numbers (a,) that come with them."""
        return joined(parts)

    def some(self, values: torch.Tensor, positions: IntArray) -> torch.Tensor:
        """Those of the ``values`` (A, ...) at these positions."""
        return values[self.to_device(positions)]

    def either(
        self, chosen: NDArray[np.bool_], values: torch.Tensor, others: torch.Tensor
    ) -> torch.Tensor:
        """``values`` (A, ...) where ``chosen`` (A,), else the ``others``."""
        shape = (-1, *(1 for _ in values.shape[1:]))
        return torch.where(self.to_device(chosen).view(shape), values, others)

    # ---------------------------------------------------------------- sets of rows

    def roots(self, which: IntArray) -> Nodes:
        """One node for each of the problems ``which`` (A,): its rows of positive weight."""
        counts = self.n_present[which]
        rows = self._block_numbers(which, slice(0, self.n_rows))
        if self._has_weight is not None:
            rows = rows[self._has_weight[self._index(which)].flatten()]
        return self._nodes.open(rows, counts, np.ones_like(counts))

    @cached_property
    def n_present(self) -> IntArray:
        """Rows of positive weight (B,)."""
        if self._has_weight is None:
            return np.full(self.n_problems, self.n_rows)
        return np.asarray(self._has_weight.sum(dim=1).cpu().numpy())

    def open_clusters(self, which: IntArray, clusters: IntArray, n_clusters: int) -> Nodes:
        """One node for each of the ``clusters`` (A, m) of the problems ``which`` (A,)."""
        n_problems, m = clusters.shape
        place = np.full((n_problems, n_clusters), -1, dtype=np.int32)
        numbers = np.arange(n_problems * m, dtype=np.int32).reshape(clusters.shape)
        np.put_along_axis(place, clusters, numbers, axis=1)
        own = self._index(which)
        node = self.to_device(place).gather(1, self.labels[own].to(torch.int64))
        has_weight = None if self._has_weight is None else self._has_weight[own].flatten()
        rows, counts = members_of(node.flatten(), clusters.size, has_weight)
        rows = self._numbers(which, rows // self.n_rows, rows % self.n_rows)
        return self._nodes.open(rows, counts, np.full(n_problems, m))

    def cut(
        self, nodes: Nodes, fractions: FloatArray, rule: str, n_two_means: int, counts: IntArray
    ) -> Cut:
        """``Engine.cut`` for the nodes of several problems, so many ``counts`` (p,) of each."""
        return self._nodes.cut(nodes, fractions, rule, n_two_means, counts)

    # ---------------------------------------------------------------- some problems, some rows

    def sampled(self, numbers: IntArray) -> TorchProblems:
        """Problems of some rows of each: the ``numbers`` (B, m) among those of positive weight."""
        places = self.to_device(numbers)
        if self._has_weight is None:
            chosen = places
        else:
            absent = torch.logical_not(self._has_weight).to(torch.int8)
            chosen = torch.argsort(absent, dim=1, stable=True).gather(1, places)
        firsts = self.n_rows * torch.arange(self.n_problems, device=self._device)
        rows = (chosen + firsts[:, None]).flatten()
        shape = tuple(numbers.shape)
        weights = None if self._row_weights is None else self._row_weights[rows].view(shape)
        X = self._rows[rows].view(*shape, self.n_features)
        return TorchProblems(X, weights, None, self.place)

    def alone(self, number: int) -> TorchEngine:
        """The engine over the rows of a problem; its labels are those here."""
        weights = None if self.weights is None else self.weights[number]
        rows = self.X[number] if self._user_rows is None else self._user_rows[number]
        given = None if self.place is not None else rows  # directions are not as they were given
        engine = TorchEngine(ResidentRows(self.X[number]), weights, rows, given)
        engine.share(self.labels[number], self._gaps[number])
        return engine

    def as_user(self, values: torch.Tensor) -> Any:
        """A result as the rows of the user are, and where they are."""
        return as_user(values, self._user_rows)


def open_problems(
    X: Any, sample_weight: Any, device: Any = None, place: Place | None = None
) -> TorchProblems:
    """Problems over validated rows (B, n, d), and weights (B, n) or None, on a ``device``.

    With ``place``, which puts centres on the unit sphere, rows are divided by their lengths.
    """
    there = check_device(device, X)
    rows = to_tensor(X).to(there)
    if place is not None:
        rows = to_directions(rows.reshape(-1, rows.shape[2])).view(rows.shape)
    weights = None if sample_weight is None else to_tensor(sample_weight).to(there)
    return TorchProblems(rows, weights, X, place)


def problems_together(X: Any, n_clusters: int, device: Any = None) -> int:
    """How many of the problems ``X`` (B, n, d) find room on a device at once; 0 if not even one."""
    there = work_place(device, X)
    if isinstance(X, torch.Tensor) and there.type == "cpu" != X.device.type:
        return 0  # there is no float64 where they are: the kernels take them one by one
    _, n_rows, n_features = X.shape
    if isinstance(open_source(to_tensor(X[0]), there), StreamedRows):
        return 0
    # Rows and their numbers, labels and what a cut needs; centres and what moves them.
    bytes_each = n_rows * (8 * n_features + 100) + 200 * n_clusters * (n_features + 2)
    return problems_at_once(there, bytes_each)
