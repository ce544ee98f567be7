"""Soft k-means over rows in tiles: an iteration, soft rows, and what gradients pull them by.

With rows x_i (of multiplicity q_i), centroids c_j and a temperature tau, the attention of a row ::

    A_ij = softmax_j(-distance(x_i, c_j) / tau)

moves centroids, in an iteration F, to ``c'_j = sum_i q_i A_ij x_i / sum_i q_i A_ij``, and makes the
row soft: ``sum_j A_ij c_j``. The attention of all rows is never in memory: a tile of rows has its
own while it is needed, and in the backward pass it is computed again. So memory is
O(n b + tile K).

References
----------
Cho et al. 2022, "DKM: Differentiable K-Means Clustering Layer for Neural Network Compression",
arXiv:2108.12659, section 3.2; Cho et al. 2023, "eDKM", arXiv:2309.00964, section 2.2, for equal
16-bit values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_VALUES = {"cpu": 1 << 18}
"""Numbers of a tile's attention, by type of device: on a CPU they stay in the cache."""
OTHER_TILE_VALUES = 1 << 24

SMALLEST_MASS = 1e-30
"""A centroid with less attention than that stays where it is."""


@dataclass(frozen=True, eq=False)
class Points:
    """Rows that are clustered.

    Attributes
    ----------
    values : tensor of shape (n, b)
        Distinct rows, or simply all; float32 or float64.
    counts : tensor of shape (n,), or None
        How often each of them is there; None: once.
    members : int32 tensor of shape (m,), or None
        Which of them each row is; None: they are the rows, in order.
    """

    values: Tensor
    counts: Tensor | None = None
    members: Tensor | None = None

    @classmethod
    def of(cls, rows: Tensor) -> Points:
        """The points of rows (m, b): of single 16-bit numbers, each distinct value is one."""
        rows = rows.detach()
        if rows.shape[1] > 1 or rows.element_size() != 2:
            return cls(rows)
        # A table of all 65 536 numbers there are is faster than sorting.
        patterns = rows.reshape(-1).view(torch.int16).to(torch.int32) + (1 << 15)
        counts = torch.bincount(patterns, minlength=1 << 16)
        is_there = counts > 0
        numbers = torch.cumsum(is_there, 0, dtype=torch.int32) - 1
        found = torch.arange(-(1 << 15), 1 << 15, device=rows.device)[is_there]
        values = found.to(torch.int16).view(rows.dtype).to(torch.float32)
        return cls(
            values.unsqueeze(1),
            counts[is_there].to(torch.float32),
            numbers.index_select(0, patterns),
        )

    def added_up(self, values: Tensor) -> Tensor:
        """Of numbers (m, b) for each row, the sums over the rows that are one point: (n, b)."""
        if self.members is None:
            return values
        total = torch.zeros_like(self.values)
        return total.index_add_(0, self.members, values.to(total.dtype))

    def spread(self, values: Tensor) -> Tensor:
        """Numbers (n, b) for each point, given to each of its rows: (m, b)."""
        return values if self.members is None else values.index_select(0, self.members)


@dataclass(frozen=True, eq=False)
class SoftKMeans:
    """The arithmetic, without autograd.

    Attributes
    ----------
    tau : tensor of shape ()
        The temperature, in the dtype of the points: in units of the squared distance, or of the
        distance.
    is_squared : bool
        Whether the attention is by the squared Euclidean distance, not by the distance.
    """

    tau: Tensor
    is_squared: bool

    def moved(self, points: Points, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """F: the centroids (K, b) after an iteration, and the attention (K,) that each gets."""
        attention = _Attention(self, centroids)
        sums, mass = torch.zeros_like(centroids), torch.zeros_like(centroids[:, 0])
        for tile in _tiles(points.values, len(centroids)):
            rows = attention.shifted(points.values[tile])
            shares = _weighted(attention.of(rows), points.counts, tile)
            sums.addmm_(shares.T, rows)
            mass += shares.sum(0)
        is_seen = (mass > SMALLEST_MASS).unsqueeze(1)
        means = sums / mass.unsqueeze(1).clamp(min=SMALLEST_MASS) + attention.origin
        return torch.where(is_seen, means, centroids), mass

    def moved_backward(
        self,
        points: Points,
        centroids: Tensor,
        moved: tuple[Tensor, Tensor],
        pull: Tensor,
        *,
        for_points: bool,
    ) -> tuple[Tensor | None, Tensor]:
        """From the gradient (K, b) of moved centroids to those of points and of centroids.

        That of a point (n, b) is for one of its rows, of which it has ``counts``.
        """
        means, mass = moved
        is_seen = (mass > SMALLEST_MASS).unsqueeze(1)
        share = torch.where(is_seen, pull / mass.unsqueeze(1).clamp(min=SMALLEST_MASS), 0.0)
        attention = _Attention(self, centroids)
        bias = -(attention.shifted(means) * share).sum(1)
        of_points = torch.empty_like(points.values) if for_points else None
        of_centroids = torch.where(is_seen, 0.0, pull)
        for tile in _tiles(points.values, len(centroids)):
            rows = attention.shifted(points.values[tile])
            shares = attention.of(rows)
            logits = _softmax_backward(shares, torch.addmm(bias, rows, share.T))
            if of_points is not None:
                torch.addmm(
                    attention.pull_on_rows(rows, logits), shares, share, out=of_points[tile]
                )
            weighted = _weighted(logits, points.counts, tile)
            of_centroids += attention.pull_on_centroids(rows, weighted)
        return of_points, of_centroids

    def jacobian(self, points: Points, centroids: Tensor, moved: tuple[Tensor, Tensor]) -> Tensor:
        """Derivatives (K b, K b) of moved centroids, a row each, by centroids, a column each."""
        means, mass = moved
        attention = _Attention(self, centroids)
        means = attention.shifted(means)
        n_codes, size = centroids.shape
        own = centroids.new_zeros(n_codes, size, size)
        others = centroids.new_zeros(n_codes * size, n_codes * size)
        for tile in _tiles(points.values, n_codes * size):
            rows = attention.shifted(points.values[tile])
            shares = attention.of(rows)
            slopes = shares.unsqueeze(2) * attention.slopes(rows)
            steps = _weighted(rows.unsqueeze(1) - means, points.counts, tile)
            own += torch.einsum("ija,ijb->jab", steps, slopes)
            others.addmm_((steps * shares.unsqueeze(2)).flatten(1).T, slopes.flatten(1))
        index = torch.arange(n_codes, device=centroids.device)
        found = -others.view(n_codes, size, n_codes, size)
        found[index, :, index] += own
        found /= mass.clamp(min=SMALLEST_MASS).view(-1, 1, 1, 1)
        is_still = mass <= SMALLEST_MASS
        found = found.masked_fill(is_still.view(-1, 1, 1, 1), 0.0)
        is_still = is_still.to(centroids.dtype).repeat_interleave(size)
        return found.view(n_codes * size, -1) + torch.diag(is_still)

    def softened(self, points: Points, centroids: Tensor) -> Tensor:
        """The soft rows (n, b) of points."""
        attention = _Attention(self, centroids)
        found = torch.empty_like(points.values)
        for tile in _tiles(points.values, len(centroids)):
            shares = attention.of(attention.shifted(points.values[tile]))
            torch.mm(shares, centroids, out=found[tile])
        return found

    def softened_backward(
        self, points: Points, centroids: Tensor, pull: Tensor, *, for_points: bool
    ) -> tuple[Tensor | None, Tensor]:
        """From the gradient of the points' soft rows (n, b) to those of points and of centroids."""
        attention = _Attention(self, centroids)
        of_points = torch.empty_like(points.values) if for_points else None
        of_centroids = torch.zeros_like(centroids)
        for tile in _tiles(points.values, len(centroids)):
            rows = attention.shifted(points.values[tile])
            shares = attention.of(rows)
            of_centroids.addmm_(shares.T, pull[tile])
            # Of centroids less their mean: it makes no difference, but for rounding.
            logits = _softmax_backward(shares, pull[tile] @ attention.centroids.T)
            if of_points is not None:
                of_points[tile] = attention.pull_on_rows(rows, logits)
            of_centroids += attention.pull_on_centroids(rows, logits)
        return of_points, of_centroids


class _Attention:
    """The attention of tiles of rows to some centroids.

    Rows and centroids are taken relative to the centroids' mean: distances are the same, and lose
    less to rounding where all of them are far from zero.
    """

    def __init__(self, settings: SoftKMeans, centroids: Tensor) -> None:
        self.tau, self.is_squared = settings.tau, settings.is_squared
        self.origin = centroids.mean(0)
        self.centroids = centroids - self.origin
        self._bias = -self.centroids.square().sum(1) / self.tau
        self._slopes = (2.0 / self.tau) * self.centroids.T

    def shifted(self, rows: Tensor) -> Tensor:
        """Rows (t, b) as all other methods take them."""
        return rows - self.origin

    def of(self, rows: Tensor) -> Tensor:
        """A (t, K) of shifted rows (t, b)."""
        if not self.is_squared:
            return torch.softmax(self._distances(rows) / -self.tau, 1)
        if rows.shape[1] == 1:
            return torch.softmax(torch.addcmul(self._bias, rows, self._slopes), 1)
        return torch.softmax(torch.addmm(self._bias, rows, self._slopes), 1)

    def pull_on_rows(self, rows: Tensor, logits: Tensor) -> Tensor:
        """The gradient (t, b) of rows, from that of the logits (t, K)."""
        if self.is_squared:  # logits of a row add up to zero, and so does what the row itself adds
            return logits @ ((2.0 / self.tau) * self.centroids)
        steps = self._steps(rows, logits)
        return torch.addmm(-rows * steps.sum(1, keepdim=True), steps, self.centroids)

    def pull_on_centroids(self, rows: Tensor, logits: Tensor) -> Tensor:
        """The gradient (K, b) of centroids, from that of the logits (t, K)."""
        steps = (2.0 / self.tau) * logits if self.is_squared else self._steps(rows, logits)
        return torch.addmm(-self.centroids * steps.sum(0).unsqueeze(1), steps.T, rows)

    def slopes(self, rows: Tensor) -> Tensor:
        """The derivatives (t, K, b) of logits by their centroids."""
        steps = rows.unsqueeze(1) - self.centroids
        if self.is_squared:
            return (2.0 / self.tau) * steps
        ones = torch.ones_like(steps[..., 0])
        return self._steps(rows, ones).unsqueeze(2) * steps

    def _steps(self, rows: Tensor, logits: Tensor) -> Tensor:
        """The gradient of logits over tau and the distance; 0 at a centroid: there is none."""
        distances = self._distances(rows)
        return torch.where(distances > 0.0, logits / (self.tau * distances), 0.0)

    def _distances(self, rows: Tensor) -> Tensor:
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(rows, self.centroids, compute_mode=exact)


def nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """The numbers (m,) of the centroids (K, b) nearest to rows (m, b); of equal ones the first."""
    if rows.shape[1] == 1:
        return _nearest_on_line(rows[:, 0], centroids[:, 0])
    found = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    for tile in _tiles(rows, len(centroids)):
        # Column by column, not as a product of matrices: that may be rounded to few bits on GPUs.
        total = torch.zeros(1, dtype=rows.dtype, device=rows.device)
        for column in range(rows.shape[1]):
            total = total + (rows[tile, column, None] - centroids[:, column]).square_()
        found[tile] = total.argmin(1)
    return found


def _nearest_on_line(values: Tensor, centroids: Tensor) -> Tensor:
    ordered, order = torch.sort(centroids.to(torch.float64), stable=True)
    bounds = ((ordered[1:] + ordered[:-1]) / 2).to(values.dtype)
    places = torch.bucketize(values, bounds)
    first = torch.searchsorted(ordered, ordered)  # of several that are equal
    return order[first][places]


def _tiles(rows: Tensor, n_columns: int) -> Iterator[slice]:
    n_values = TILE_VALUES.get(rows.device.type, OTHER_TILE_VALUES)
    step = max(n_values // n_columns, 1)
    return (slice(start, start + step) for start in range(0, len(rows), step))


def _weighted(values: Tensor, counts: Tensor | None, tile: slice) -> Tensor:
    """Values (t, ...) times the multiplicities of their rows; they are overwritten."""
    return (
        values if counts is None else values.mul_(counts[tile].view(-1, *[1] * (values.ndim - 1)))
    )


def _softmax_backward(shares: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of logits (t, K) from that of their softmax, which is overwritten."""
    gradient.mul_(shares)
    return gradient.addcmul_(shares, gradient.sum(1, keepdim=True), value=-1.0)
