"""The engine for rows on a torch device: the same k-means in plain PyTorch operations.

All of length n stays on the device; the host sees what is of length K, and counts. Nothing here
depends on the order in which threads finish, on how much memory is free, or on the precision that
PyTorch multiplies float32 with. Work goes to the current stream; no gradient is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.engines.draws import draw_numbers
from pgkmeans_sk.engines.line_optimum import optimal_centers
from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.engines.torch_draws import draw_kmeans_plusplus, draw_rows_by_weight
from pgkmeans_sk.engines.torch_host import open_host_engine
from pgkmeans_sk.engines.torch_labels import pack_centers, sq_distances
from pgkmeans_sk.engines.torch_memory import block_rows, blocks, sum_rows
from pgkmeans_sk.engines.torch_merging import merge_close_rows
from pgkmeans_sk.engines.torch_nodes import TorchNodes, clusters_of
from pgkmeans_sk.engines.torch_passes import added_quickly, label_quickly
from pgkmeans_sk.engines.torch_rows import (
    ORIGIN_ROWS,
    as_user,
    check_rows_are_dense,
    numpy_dtype,
    origin_of,
    reported_dtype,
    to_tensor,
    work_place,
)
from pgkmeans_sk.engines.torch_source import ResidentRows, RowSource, open_source
from pgkmeans_sk.engines.torch_sums import ends_of_runs, lowest_where, sums_of_runs
from pgkmeans_sk.engines.torch_totals import LabelledRows, new_totals, parts_of
from pgkmeans_sk.results import (
    Assignment,
    Cut,
    FloatArray,
    IntArray,
    Nodes,
    SizeLimits,
    SmallLloyd,
    SmallStart,
    State,
)  # fmt: skip

USES_KERNELS = True
"""Whether the work on the CPU is left to the Numba kernels; False runs plain PyTorch there, too."""
FEWEST_CANDIDATES = 1024
"""Rows that are looked at first when those farthest from their centres are sought."""


def works_on_host(X: torch.Tensor) -> bool:
    """Whether the work on a tensor is left to the kernels, which share its memory."""
    return X.device.type == "cpu" and USES_KERNELS


def open_torch_engine(
    X: Any, sample_weight: Any, device: Any = None, directions: bool = False
) -> Engine:
    """Open the engine over validated rows (see ``open_engine``)."""
    place = work_place(device, X)
    check_rows_are_dense(X)
    if place.type == "cpu" and USES_KERNELS:
        return open_host_engine(X, sample_weight, directions)
    return open_device_engine(X, sample_weight, place, directions)


def open_device_engine(
    X: Any, sample_weight: Any, place: torch.device, directions: bool = False
) -> TorchEngine:
    """Open the engine that works with PyTorch operations, on the CPU, too."""
    weights = None if sample_weight is None else to_tensor(sample_weight).to(place)
    source = open_source(to_tensor(X), place, directions)
    return TorchEngine(source, weights, X, None if directions else X)


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
        source: RowSource,
        weights: torch.Tensor | None,
        like: Any,
        user_data: Any = None,
    ) -> None:
        self._source, self._weights, self._device = source, weights, source.device
        self._like, self._user_data = like, user_data
        self._dtype = reported_dtype(source.dtype)  # of centres, as tensors
        self.n_rows, self.n_features = source.shape
        self.dtype = numpy_dtype(source.dtype)
        self._nodes = TorchNodes(source, weights)
        self._gap_space: torch.Tensor | None = None
        # What a pass tells by the way: these centres, and how much farther the second nearest is.
        self._gaps: tuple[NDArray[np.floating], torch.Tensor] | None = None

    @property
    def name(self) -> str:
        return f"torch-{self._device}"

    @property
    def user_data(self) -> Any:
        if self._user_data is None:  # rows of our own making, asked for by those who choose centres
            self._user_data = as_user(self._all_rows(), self._like)
        return self._user_data

    @property
    def labels(self) -> Any:
        return as_user(self._labels.clone(), self._like)

    def like_rows(self, values: NDArray[Any]) -> Any:
        return as_user(torch.from_numpy(values), self._like)

    def share(self, labels: torch.Tensor, gaps: torch.Tensor) -> None:
        """Keep labels (n,), and how near the second centre is, in tensors of others."""
        self._labels, self._gap_space = labels, gaps

    @cached_property
    def _labels(self) -> torch.Tensor:
        return torch.full((self.n_rows,), -1, dtype=torch.int32, device=self._device)

    @cached_property
    def _origin(self) -> torch.Tensor:
        step = 1 + (self.n_rows - 1) // ORIGIN_ROWS
        return origin_of(self._source.take(torch.arange(0, self.n_rows, step, device=self._device)))

    @cached_property
    def _has_weight(self) -> torch.Tensor | None:
        return None if self._weights is None else self._weights > 0.0

    def _on_device(self, centers: NDArray[np.floating]) -> torch.Tensor:
        """Centres (K, d) as float64 on the device."""
        return torch.from_numpy(np.array(centers, dtype=np.float64)).to(self._device)

    # ---------------------------------------------------------------- passes over all rows

    def assign(self, centers: NDArray[np.floating], last: bool = False) -> Assignment:
        exact = self._on_device(centers)
        packed = pack_centers(exact, self._origin)
        gaps = self._gap_space
        if gaps is None:
            gaps = torch.empty(self.n_rows, dtype=self._dtype, device=self._device)
        totals, n_changed, are_told = new_totals(exact), 0, True
        self._gaps = None
        for start, stop, rows in self._source.chunks(sum_rows(self.n_features)):
            labels, is_told = label_quickly(
                rows, packed, gaps[start:stop], must_tell=self._gap_space is not None
            )
            are_told &= is_told
            n_changed += int((labels != self._labels[start:stop]).sum())
            self._labels[start:stop] = labels
            totals = added_quickly(self._with_labels(rows, start), exact, totals)
        if are_told:
            self._gaps = np.array(centers), gaps
        return self._assignment(exact, totals, n_changed)

    def measure(self, centers: NDArray[np.floating]) -> Assignment:
        exact = self._on_device(centers)
        totals = new_totals(exact)
        for start, _, rows in self._source.chunks(sum_rows(self.n_features)):
            totals = added_quickly(self._with_labels(rows, start), exact, totals)
        return self._assignment(exact, totals, 0)

    def _with_labels(self, rows: torch.Tensor, first: int) -> LabelledRows:
        """A chunk of ``rows``, from number ``first`` on, with what is known of them."""
        chunk = slice(first, first + len(rows))
        weights = None if self._weights is None else self._weights[chunk]
        return LabelledRows(rows, self._labels[chunk], weights)

    def _assignment(self, exact: torch.Tensor, totals: torch.Tensor, n_changed: int) -> Assignment:
        """What the ``totals`` tell of the clusters with ``exact`` centres (K, d)."""
        sums, sizes, sq_errors = parts_of(totals)
        centroids = exact + sums / torch.where(sizes > 0.0, sizes, float("nan"))[:, None]
        parts = [part.cpu().numpy().copy() for part in (centroids, sizes, sq_errors)]
        return Assignment(parts[0], parts[1], parts[2], n_changed)

    def _label_all(
        self, centers: NDArray[np.floating], gaps: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Labels (n,) for ``centers``; those of ``assign`` are left as they are.

        ``gaps`` (n,) are those of ``assign``, from chunks of the same size.
        """
        packed = pack_centers(self._on_device(centers), self._origin)
        labels = torch.empty(self.n_rows, dtype=torch.int32, device=self._device)
        for start, stop, rows in self._source.chunks(sum_rows(self.n_features)):
            own = None if gaps is None else gaps[start:stop]
            labels[start:stop], _ = label_quickly(rows, packed, own, must_tell=gaps is not None)
        return labels

    def utilities(
        self, centers: NDArray[np.floating], is_wanted: NDArray[np.bool_] | None = None
    ) -> FloatArray:
        if self._gaps is not None and np.array_equal(self._gaps[0], centers):
            labels, gaps = self._labels, self._gaps[1]
        else:
            gaps = torch.empty(self.n_rows, dtype=self._dtype, device=self._device)
            labels = self._label_all(centers, gaps)
        totals = torch.zeros((len(centers), 1), dtype=torch.float64, device=self._device)
        for start, stop in blocks(self.n_rows, sum_rows(1)):
            own, order = torch.sort(labels[start:stop], stable=True)
            values = gaps[start:stop][order].to(torch.float64)
            if self._weights is not None:
                values = values * self._weights[start:stop][order]
            totals += sums_of_runs(values[:, None], ends_of_runs(own, len(centers)))
        return np.asarray(totals[:, 0].cpu().numpy())

    def nearest(self, centers: NDArray[np.floating]) -> Any:
        return as_user(self._label_all(centers), self._like)

    def distances(self, centers: NDArray[np.floating]) -> Any:
        exact = self._on_device(centers)
        place = self._like.device if isinstance(self._like, torch.Tensor) else "cpu"
        found = torch.empty((self.n_rows, len(exact)), dtype=self._dtype, device=place)
        row_bytes = 16 * len(exact) + 8 * self.n_features
        for first, last, rows in self._source.chunks(1):
            for start, stop in blocks(last - first, block_rows(self._device, row_bytes)):
                block = rows[start:stop].to(torch.float64)
                # Differences, not products: a row that is a centre is at no distance from it.
                found[first + start : first + stop] = torch.cdist(
                    block, exact, compute_mode="donot_use_mm_for_euclid_dist"
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
        totals = torch.zeros(2 * d, dtype=torch.float64, device=self._device)
        for first, last, rows in self._source.chunks(sum_rows(2 * d)):
            for start, stop in blocks(last - first, sum_rows(2 * d)):
                errors = rows[start:stop].to(torch.float64) - origin
                values = torch.cat([errors, errors.square()], dim=1)
                if self._weights is not None:
                    values *= self._weights[first + start : first + stop][:, None]
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
            rows = torch.arange(self.n_rows, device=self._device)
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
        return self._source.take(numbers).to(self._dtype).cpu().numpy()

    def _own_sq_errors(self, exact: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Block by block: which rows, and their squared distances (b,) to their own centres."""
        size = sum_rows(self.n_features)
        for first, last, rows in self._source.chunks(size):
            for start, stop in blocks(last - first, size):
                block = slice(first + start, first + stop)
                yield block, sq_distances(rows[start:stop], exact[self._labels[block]])

    def small_start(
        self, n_clusters: int, plan: SmallStart, leaves: NDArray[np.floating] | None = None
    ) -> None:
        return None

    def small_lloyd(self, state: State, plan: SmallLloyd) -> None:
        return None

    def farthest_rows(self, centers: NDArray[np.floating], n_rows: int) -> NDArray[np.floating]:
        exact = self._on_device(centers)
        errors = torch.empty(self.n_rows, dtype=torch.float64, device=self._device)
        for block, own in self._own_sq_errors(exact):
            errors[block] = own
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
        for block, errors in self._own_sq_errors(exact):
            labels = self._labels[block].to(torch.int64)
            rows = torch.arange(block.start, block.stop, device=device)
            if self._has_weight is not None:
                present = self._has_weight[block]
                errors, labels, rows = errors[present], labels[present], rows[present]
            found = torch.full_like(least, float("inf")).scatter_reduce_(0, labels, errors, "amin")
            is_found = errors == found[labels]
            firsts = lowest_where(is_found, labels, rows, n_clusters)
            # An error may overflow, and still count; of equal ones the first block has the first.
            better = (found < least) | ((found == least) & (firsts < numbers))
            least, numbers = torch.where(better, found, least), torch.where(better, firsts, numbers)
        return self._rows(numbers[numbers < 2**62])

    def draw_rows(self, n_rows: int, rng: np.random.RandomState) -> NDArray[np.floating]:
        drawn = draw_rows_by_weight(self._source, self._weights, n_rows, rng)
        # Too few rows: repeated, repaired later.
        return np.resize(self._rows(drawn), (n_rows, self.n_features))

    def draw_kmeans_plusplus(
        self, n_clusters: int, rng: np.random.RandomState
    ) -> NDArray[np.floating]:
        return self._rows(draw_kmeans_plusplus(self._source, self._weights, n_clusters, rng))

    # ---------------------------------------------------------------- one column

    def line_optimum(self, n_clusters: int) -> FloatArray | None:
        if self.n_features != 1:
            return None
        column = self._all_rows()[:, 0].cpu().numpy()
        weights = None if self._weights is None else self._weights.cpu().numpy()
        centers = optimal_centers(column, weights, n_clusters)
        return None if centers is None else centers[:, np.newaxis]

    # ---------------------------------------------------------------- fewer rows

    def _all_rows(self) -> torch.Tensor:
        """All rows on the device, in the precision of centres."""
        return torch.cat([rows.to(self._dtype) for _, _, rows in self._source.chunks(1)])

    def _over(self, X: torch.Tensor, weights: torch.Tensor | None) -> TorchEngine:
        """An engine over other rows on the same device."""
        return TorchEngine(ResidentRows(X), weights, self._like)

    def sample(self, n_rows: int, rng: np.random.RandomState) -> TorchEngine:
        if self._has_weight is None:
            drawn = draw_numbers(self.n_rows, min(n_rows, self.n_rows), rng)
            numbers = torch.from_numpy(np.sort(drawn)).to(self._device)
            return self._over(self._source.take(numbers), None)
        candidates = self._has_weight.nonzero().squeeze(1)
        drawn = draw_numbers(len(candidates), min(n_rows, len(candidates)), rng)
        numbers = candidates[torch.from_numpy(np.sort(drawn)).to(self._device)]
        assert self._weights is not None
        return self._over(self._source.take(numbers), self._weights[numbers])

    def extended(self, rows: NDArray[np.floating]) -> TorchEngine:
        added = torch.from_numpy(np.array(rows, dtype=self.dtype)).to(self._device)
        weights = self._weights
        if weights is not None:
            mean = weights[weights > 0].mean()
            weights = torch.cat([weights, mean.expand(len(rows))])
        return TorchEngine(self._source.followed_by(added), weights, self._like)

    def of_rows(self, rows: NDArray[np.floating]) -> TorchEngine:
        tensor = torch.from_numpy(np.array(rows, dtype=self.dtype)).to(self._device)
        return self._over(tensor, None)

    def merge_rows(self, radius: float) -> tuple[TorchEngine, float]:
        merged = merge_close_rows(self._source, self._weights, radius)
        if merged is None:
            return self, 0.0
        rows, weights, lost = merged
        return self._over(rows, weights), lost
