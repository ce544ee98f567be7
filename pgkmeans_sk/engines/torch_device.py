"""The engine for rows on a torch device: the same k-means in plain PyTorch operations.

All of length n stays on the device; the host sees what is of length K, and counts. Nothing here
depends on the order in which threads finish, on how much memory is free, or on the precision that
PyTorch multiplies float32 with. Work goes to the current stream; no gradient is recorded.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.engines.line_optimum import optimal_centers
from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.engines.torch_draws import draw_kmeans_plusplus, draw_numbers
from pgkmeans_sk.engines.torch_host import open_host_engine
from pgkmeans_sk.engines.torch_labels import label_rows, pack_centers, sq_distances
from pgkmeans_sk.engines.torch_memory import block_rows, blocks, sum_rows
from pgkmeans_sk.engines.torch_merging import merge_close_rows
from pgkmeans_sk.engines.torch_nodes import TorchNodes, clusters_of
from pgkmeans_sk.engines.torch_rows import (
    as_user,
    check_device,
    check_rows_are_dense,
    numpy_dtype,
    origin_of,
    reported_dtype,
    to_directions,
    to_tensor,
)
from pgkmeans_sk.engines.torch_sums import ends_of_runs, lowest_where, row_sums, sums_of_runs
from pgkmeans_sk.results import Assignment, Cut, FloatArray, IntArray, Nodes, SizeLimits

USES_KERNELS = True
"""Whether the work on the CPU is left to the Numba kernels; False runs plain PyTorch there, too."""
FEWEST_CANDIDATES = 1024
"""Rows that are looked at first when those farthest from their centres are sought."""


def open_torch_engine(
    X: Any, sample_weight: Any, device: Any = None, directions: bool = False
) -> Engine:
    """Open the engine over validated rows (see ``open_engine``)."""
    place = check_device(device, X)
    check_rows_are_dense(X)
    if place.type == "cpu" and USES_KERNELS:
        return open_host_engine(X, sample_weight, directions)
    return open_device_engine(X, sample_weight, place, directions)


def open_device_engine(
    X: Any, sample_weight: Any, place: torch.device, directions: bool = False
) -> TorchEngine:
    """Open the engine that works with PyTorch operations, on the CPU, too."""
    rows = to_tensor(X, place)
    if directions:
        rows = to_directions(rows)
    weights = None if sample_weight is None else to_tensor(sample_weight, place)
    return TorchEngine(rows, weights, user_data=X, like=X)


class TorchEngine:
    """Rows of a tensor, read where they are; what methods do is said in ``protocol``.

    Memory beyond the rows: 8 or 12 bytes a row (labels, and how near the second centre is); while
    nodes are open 8 bytes for each of their rows, and about 50 while they are cut; a block of
    working memory (``torch_memory.py``).

    ``line_optimum`` takes the one column to the host. There are no size limits.
    """

    limits_sizes = False

    def __init__(
        self,
        X: torch.Tensor,
        weights: torch.Tensor | None,
        user_data: Any = None,
        like: Any = None,
    ) -> None:
        self._X, self._weights = X, weights
        self._user_data = user_data
        self._like = X if like is None else like
        self.n_rows, self.n_features = X.shape
        self.dtype = numpy_dtype(X.dtype)
        self._nodes = TorchNodes(X, weights)
        # What a pass tells by the way: these centres, and how much farther the second nearest is.
        self._gaps: tuple[NDArray[np.floating], torch.Tensor] | None = None

    @property
    def name(self) -> str:
        return f"torch-{self._X.device}"

    @property
    def user_data(self) -> Any:
        if self._user_data is None:  # rows of our own making, for whoever chooses centres
            self._user_data = as_user(self._X, self._like)
        return self._user_data

    @property
    def labels(self) -> Any:
        return as_user(self._labels.clone(), self._like)

    def like_rows(self, values: NDArray[Any]) -> Any:
        return as_user(torch.from_numpy(values), self._like)

    @cached_property
    def _labels(self) -> torch.Tensor:
        return torch.full((self.n_rows,), -1, dtype=torch.int32, device=self._X.device)

    @cached_property
    def _origin(self) -> torch.Tensor:
        return origin_of(self._X)

    @cached_property
    def _has_weight(self) -> torch.Tensor | None:
        return None if self._weights is None else self._weights > 0.0

    def _on_device(self, centers: NDArray[np.floating]) -> torch.Tensor:
        """Centres (K, d) as float64 on the device."""
        return torch.from_numpy(np.array(centers, dtype=np.float64)).to(self._X.device)

    # ---------------------------------------------------------------- passes over all rows

    def assign(self, centers: NDArray[np.floating], last: bool = False) -> Assignment:
        exact = self._on_device(centers)
        gaps = torch.empty(self.n_rows, dtype=reported_dtype(self._X.dtype), device=self._X.device)
        labels = label_rows(self._X, pack_centers(exact, self._origin), gaps)
        n_changed = int((labels != self._labels).sum())
        self._labels.copy_(labels)
        self._gaps = np.array(centers), gaps
        return self._assignment(exact, n_changed)

    def measure(self, centers: NDArray[np.floating]) -> Assignment:
        return self._assignment(self._on_device(centers), 0)

    def _assignment(self, exact: torch.Tensor, n_changed: int) -> Assignment:
        """What the labels mean for the clusters with ``exact`` centres (K, d)."""
        n_clusters, d = exact.shape
        totals = torch.zeros((n_clusters, d + 2), dtype=torch.float64, device=exact.device)
        for start, stop in blocks(self.n_rows, sum_rows(d)):
            labels, order = torch.sort(self._labels[start:stop], stable=True)
            rows = self._X[start:stop][order].to(torch.float64)
            # Relative to the centre: less rounding, and none in a cluster of rows equal to it.
            errors = rows - exact[labels]
            sq_errors = row_sums(errors.square())[:, None]
            values = torch.cat([errors, sq_errors, torch.ones_like(sq_errors)], dim=1)
            if self._weights is not None:
                values *= self._weights[start:stop][order][:, None]
            totals += sums_of_runs(values, ends_of_runs(labels, n_clusters))
        sums, (sq_errors, sizes) = totals[:, :d], totals[:, d:].T
        centroids = exact + sums / torch.where(sizes > 0.0, sizes, float("nan"))[:, None]
        parts = [part.cpu().numpy().copy() for part in (centroids, sizes, sq_errors)]
        return Assignment(parts[0], parts[1], parts[2], n_changed)

    def utilities(self, centers: NDArray[np.floating]) -> FloatArray:
        if self._gaps is not None and np.array_equal(self._gaps[0], centers):
            labels, gaps = self._labels, self._gaps[1]
        else:
            gaps = torch.empty(self.n_rows, dtype=self._origin.dtype, device=self._X.device)
            packed = pack_centers(self._on_device(centers), self._origin)
            labels = label_rows(self._X, packed, gaps)
        totals = torch.zeros((len(centers), 1), dtype=torch.float64, device=self._X.device)
        for start, stop in blocks(self.n_rows, sum_rows(1)):
            own, order = torch.sort(labels[start:stop], stable=True)
            values = gaps[start:stop][order].to(torch.float64)
            if self._weights is not None:
                values = values * self._weights[start:stop][order]
            totals += sums_of_runs(values[:, None], ends_of_runs(own, len(centers)))
        return np.asarray(totals[:, 0].cpu().numpy())

    def nearest(self, centers: NDArray[np.floating]) -> Any:
        packed = pack_centers(self._on_device(centers), self._origin)
        return as_user(label_rows(self._X, packed), self._like)

    def distances(self, centers: NDArray[np.floating]) -> Any:
        exact = self._on_device(centers)
        dtype = reported_dtype(self._X.dtype)
        found = torch.empty((self.n_rows, len(exact)), dtype=dtype, device=exact.device)
        for start, stop in blocks(self.n_rows, block_rows(exact.device, 16 * len(exact))):
            rows = self._X[start:stop].to(torch.float64)
            # Differences, not products: a row that is a centre is at no distance from it.
            found[start:stop] = torch.cdist(
                rows, exact, compute_mode="donot_use_mm_for_euclid_dist"
            )
        return as_user(found, self._like)

    @cached_property
    def total_weight(self) -> float:
        return float(self.n_rows if self._weights is None else self._weights.sum())

    def mean_variance(self) -> float:
        return self._mean_variance

    @cached_property
    def _mean_variance(self) -> float:
        d = self.n_features
        origin = self._origin.to(torch.float64)
        totals = torch.zeros(2 * d, dtype=torch.float64, device=self._X.device)
        for start, stop in blocks(self.n_rows, sum_rows(2 * d)):
            errors = self._X[start:stop].to(torch.float64) - origin
            values = torch.cat([errors, errors.square()], dim=1)
            if self._weights is not None:
                values *= self._weights[start:stop][:, None]
            totals += values.sum(dim=0)
        mean, square = (totals / self.total_weight).view(2, d)
        return float((square - mean.square()).clamp_(min=0.0).mean())

    def assign_within(
        self, centers: NDArray[np.floating], limits: SizeLimits, prices: FloatArray | None
    ) -> tuple[FloatArray, bool]:
        raise NotImplementedError("size limits are checked before any work: see limits_sizes")

    # ---------------------------------------------------------------- sets of rows

    def root(self) -> Nodes:
        if self._has_weight is None:
            rows = torch.arange(self.n_rows, device=self._X.device)
        else:
            rows = self._has_weight.nonzero().squeeze(1)
        return self._nodes.open(rows, np.array([len(rows)]))

    def open_clusters(self, clusters: IntArray) -> Nodes:
        return self._nodes.open(*clusters_of(self._labels, clusters, self._has_weight))

    def cut(self, nodes: Nodes, fractions: FloatArray, rule: str, n_two_means: int) -> Cut:
        return self._nodes.cut(nodes, fractions, rule, n_two_means)

    # ---------------------------------------------------------------- single rows

    def _rows(self, numbers: torch.Tensor) -> NDArray[np.floating]:
        """Copies of single rows, on the host."""
        return self._X[numbers].to(reported_dtype(self._X.dtype)).cpu().numpy()

    def _own_sq_errors(self, start: int, stop: int, exact: torch.Tensor) -> torch.Tensor:
        """Squared distance (b,) of rows to their own centres."""
        return sq_distances(self._X[start:stop], exact[self._labels[start:stop]])

    def farthest_rows(self, centers: NDArray[np.floating], n_rows: int) -> NDArray[np.floating]:
        exact = self._on_device(centers)
        errors = torch.empty(self.n_rows, dtype=torch.float64, device=self._X.device)
        for start, stop in blocks(self.n_rows, sum_rows(self.n_features)):
            errors[start:stop] = self._own_sq_errors(start, stop, exact)
        if self._weights is not None:
            errors[self._weights == 0] = 0.0
        numbers = torch.argsort(errors, descending=True, stable=True)[: int(errors.count_nonzero())]
        seen: dict[bytes, NDArray[np.floating]] = {}
        start, size = 0, max(FEWEST_CANDIDATES, 2 * n_rows)
        while start < len(numbers) and len(seen) < n_rows:
            for row in self._rows(numbers[start : start + size]) + 0.0:  # -0.0 and 0.0 are one
                seen.setdefault(row.tobytes(), row)
                if len(seen) == n_rows:
                    break
            start += size
        return np.array(list(seen.values()), dtype=self.dtype).reshape(-1, self.n_features)

    def closest_rows(self, centers: NDArray[np.floating]) -> NDArray[np.floating]:
        exact, n_clusters = self._on_device(centers), len(centers)
        device = exact.device
        least = torch.full((n_clusters,), float("inf"), dtype=torch.float64, device=device)
        numbers = torch.full((n_clusters,), 2**62, dtype=torch.int64, device=device)
        for start, stop in blocks(self.n_rows, sum_rows(self.n_features)):
            errors = self._own_sq_errors(start, stop, exact)
            labels = self._labels[start:stop].to(torch.int64)
            rows = torch.arange(start, stop, device=device)
            if self._has_weight is not None:
                present = self._has_weight[start:stop]
                errors, labels, rows = errors[present], labels[present], rows[present]
            found = torch.full_like(least, float("inf")).scatter_reduce_(0, labels, errors, "amin")
            is_found = errors == found[labels]
            firsts = lowest_where(is_found, labels, rows, n_clusters)
            # An error may overflow, and still count; of equal ones the first block has the first.
            better = (found < least) | ((found == least) & (firsts < numbers))
            least, numbers = torch.where(better, found, least), torch.where(better, firsts, numbers)
        return self._rows(numbers[numbers < 2**62])

    def draw_rows(self, n_rows: int, rng: np.random.RandomState) -> NDArray[np.floating]:
        drawn = draw_numbers(self._X, self._weights, n_rows, rng)
        # Too few rows: repeated, repaired later.
        return np.resize(self._rows(drawn), (n_rows, self.n_features))

    def draw_kmeans_plusplus(
        self, n_clusters: int, rng: np.random.RandomState
    ) -> NDArray[np.floating]:
        return self._rows(draw_kmeans_plusplus(self._X, self._weights, n_clusters, rng))

    # ---------------------------------------------------------------- one column

    def line_optimum(self, n_clusters: int) -> FloatArray | None:
        if self.n_features != 1:
            return None
        column = self._X[:, 0].to(reported_dtype(self._X.dtype)).cpu().numpy()
        weights = None if self._weights is None else self._weights.cpu().numpy()
        centers = optimal_centers(column, weights, n_clusters)
        return None if centers is None else centers[:, np.newaxis]

    # ---------------------------------------------------------------- fewer rows

    def _over(self, X: torch.Tensor, weights: torch.Tensor | None) -> TorchEngine:
        """An engine over other rows on the same device."""
        return TorchEngine(X, weights, like=self._like)

    def sample(self, n_rows: int, rng: np.random.RandomState) -> TorchEngine:
        if self._has_weight is None:
            drawn = rng.choice(self.n_rows, min(n_rows, self.n_rows), replace=False)
            numbers = torch.from_numpy(np.sort(drawn)).to(self._X.device)
            return self._over(self._X[numbers], None)
        candidates = self._has_weight.nonzero().squeeze(1)
        drawn = rng.choice(len(candidates), min(n_rows, len(candidates)), replace=False)
        numbers = candidates[torch.from_numpy(np.sort(drawn)).to(self._X.device)]
        assert self._weights is not None
        return self._over(self._X[numbers], self._weights[numbers])

    def extended(self, rows: NDArray[np.floating]) -> TorchEngine:
        dtype = reported_dtype(self._X.dtype)
        added = torch.from_numpy(np.array(rows, dtype=self.dtype)).to(self._X.device)
        weights = self._weights
        if weights is not None:
            mean = weights[weights > 0].mean()
            weights = torch.cat([weights, mean.expand(len(rows))])
        return self._over(torch.cat([self._X.to(dtype), added]), weights)

    def of_rows(self, rows: NDArray[np.floating]) -> TorchEngine:
        tensor = torch.from_numpy(np.array(rows, dtype=self.dtype)).to(self._X.device)
        return self._over(tensor, None)

    def merge_rows(self, radius: float) -> tuple[TorchEngine, float]:
        merged = merge_close_rows(self._X, self._weights, radius)
        if merged is None:
            return self, 0.0
        rows, weights, lost = merged
        return self._over(rows, weights), lost
