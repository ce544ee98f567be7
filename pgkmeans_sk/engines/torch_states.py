"""Where many problems stand: centres in tensors on the device, and what the host decides by.

What is of size K x d stays on the device; of each assignment the host reads what is of length K,
for all problems in one go. Steps are taken with the same operations as in ``pipeline/lloyd.py``,
number by number, so that they have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.results import Assignment, FloatArray, IntArray

Place = Callable[[FloatArray, FloatArray, Any], NDArray[Any]]
"""From centroids, and what stands in for them, to centres (K, d)."""


@dataclass(frozen=True)
class States:
    """Centres of A problems, each with its assignment.

    Attributes
    ----------
    centers : tensor of shape (A, K, d)
        As they would be reported.
    means : tensor of shape (A, K, d), float64
        Where they would move next.
    shifts : ndarray of shape (A,), float64
        Squared moves of all centres to their means; up to rounding.
    rests : ndarray of shape (A,), bool
        Whether the centres are the means, up to rounding.
    sizes, sq_errors : ndarrays of shape (A, K), float64
        As in ``Assignment``.
    n_changed : ndarray of shape (A,), int64
        As there.
    """

    centers: torch.Tensor
    means: torch.Tensor
    shifts: FloatArray
    rests: NDArray[np.bool_]
    sizes: FloatArray
    sq_errors: FloatArray
    n_changed: IntArray

    def __len__(self) -> int:
        return len(self.shifts)

    @property
    def inertias(self) -> FloatArray:
        """Inertias (A,): each is summed up as ``Assignment`` does it."""
        return np.asarray(np.ascontiguousarray(self.sq_errors).sum(axis=1))

    @property
    def has_empty(self) -> NDArray[np.bool_]:
        """Which problems have clusters without weight, (A,)."""
        return np.asarray((self.sizes == 0.0).any(axis=1))

    def at(self, positions: NDArray[Any]) -> States:
        """The states at some of the ``positions``, or where a mask is set."""
        if positions.dtype == np.bool_:
            positions = np.flatnonzero(positions)
        if len(positions) == len(self) and (positions == np.arange(len(self))).all():
            return self
        there = torch.from_numpy(positions).to(self.centers.device)
        return States(
            self.centers[there], self.means[there], self.shifts[positions], self.rests[positions],
            self.sizes[positions], self.sq_errors[positions], self.n_changed[positions],
        )  # fmt: skip

    def where(self, chosen: NDArray[np.bool_], others: States) -> States:
        """These states where ``chosen`` (A,), else the ``others``."""
        if chosen.all():
            return self
        there = torch.from_numpy(chosen).to(self.centers.device)[:, None, None]
        return States(
            torch.where(there, self.centers, others.centers),
            torch.where(there, self.means, others.means),
            np.where(chosen, self.shifts, others.shifts),
            np.where(chosen, self.rests, others.rests),
            np.where(chosen[:, None], self.sizes, others.sizes),
            np.where(chosen[:, None], self.sq_errors, others.sq_errors),
            np.where(chosen, self.n_changed, others.n_changed),
        )

    # ---------------------------------------------------------------- steps

    @property
    def n_numbers(self) -> int:
        """Numbers in the centres of a problem."""
        return int(self.means[0].numel())

    def plain_step(self) -> torch.Tensor:
        """Centres (A, K, d) at the means."""
        return self.means.to(self.centers.dtype, copy=True)

    def step_beyond(
        self,
        plain: NDArray[np.bool_],
        previous: torch.Tensor | None,
        has_previous: NDArray[np.bool_],
        length: float,
        shares: FloatArray,
        place: Place | None,
    ) -> torch.Tensor:
        """Centres (A, K, d) after a step with momentum, or where ``plain`` (A,) at the means.

        They go ``length`` times as far as the means, and on by ``shares`` (A,) of the way that the
        means have come from ``previous`` (A, K, d); to the means where there was none.
        """
        targets = self.means
        if previous is not None:
            centers = self.centers.to(torch.float64)
            targets = centers + length * (self.means - centers)
            targets += self._each(shares) * (self.means - previous)
            targets = torch.where(self._each(has_previous), targets, self.means)
        if place is not None:
            targets = placed(targets, self.means, place)
        return torch.where(self._each(plain), self.means, targets).to(self.centers.dtype)

    def previous_after(
        self, plain: NDArray[np.bool_], previous: torch.Tensor | None
    ) -> torch.Tensor:
        """From where the next step with momentum has come: these means, if not ``plain`` (A,)."""
        if previous is None:
            return self.means
        return torch.where(self._each(plain), previous, self.means)

    def moved(
        self, positions: IntArray, clusters: IntArray, centroids: FloatArray, place: Place | None
    ) -> torch.Tensor:
        """Centres (A, K, d), of which ``clusters`` (r,) at ``positions`` are ``centroids`` now."""
        device = self.centers.device
        centers = self.centers.to(torch.float64, copy=True)
        where = torch.from_numpy(positions).to(device), torch.from_numpy(clusters).to(device)
        centers.index_put_(where, torch.from_numpy(centroids).to(device))
        return placed(centers, self.centers, place).to(self.centers.dtype)

    def _each(self, values: NDArray[Any]) -> torch.Tensor:
        """A value (A,) for each problem, for all its centres."""
        return torch.from_numpy(values).to(self.means.device)[:, None, None]

    # ---------------------------------------------------------------- one problem

    def alone(self, position: int) -> tuple[NDArray[np.floating], FloatArray, Assignment]:
        """Centres and means (K, d) of one problem, and its assignment, on the host."""
        centers, means = (part[position].cpu().numpy() for part in (self.centers, self.means))
        assignment = Assignment(
            means.copy(), self.sizes[position], self.sq_errors[position],
            int(self.n_changed[position]),
        )  # fmt: skip
        return centers.copy(), means.copy(), assignment

    def replace(
        self,
        position: int,
        centers: NDArray[np.floating],
        means: FloatArray,
        assignment: Assignment,
    ) -> None:
        """Put the state that a problem has reached alone where its state was."""
        moves = means - centers
        rounding = 8.0 * float(np.finfo(centers.dtype).eps) * np.abs(means).max()
        self.centers[position] = torch.from_numpy(np.array(centers)).to(self.centers.device)
        self.means[position] = torch.from_numpy(np.array(means)).to(self.centers.device)
        self.shifts[position] = (moves**2).sum()
        self.rests[position] = np.abs(moves).max() <= rounding
        self.sizes[position] = assignment.sizes
        self.sq_errors[position] = assignment.sq_errors
        self.n_changed[position] = assignment.n_changed


def joined(parts: Sequence[tuple[IntArray, States]]) -> States:
    """States in the order of the numbers (a,) that come with them."""
    numbers = np.concatenate([part[0] for part in parts])
    states = [part[1] for part in parts]
    together = States(
        torch.cat([state.centers for state in states]),
        torch.cat([state.means for state in states]),
        *(
            np.concatenate([getattr(state, name) for state in states])
            for name in ("shifts", "rests", "sizes", "sq_errors", "n_changed")
        ),
    )
    return together.at(np.argsort(numbers))


def placed(
    centroids: torch.Tensor, fallback: torch.Tensor, place: Place | None = None
) -> torch.Tensor:
    """Centres (A, K, d) in float64: ``Settings.place`` for many problems.

    That itself, as ``place``, is asked where more is to be done than to fill gaps.
    """
    fallback = fallback.to(torch.float64)
    if place is None:
        return torch.where(centroids.isnan(), fallback, centroids)
    flat = centroids.flatten(0, 1).cpu().numpy(), fallback.flatten(0, 1).cpu().numpy()
    found = torch.from_numpy(place(*flat, np.float64))
    return found.to(centroids.device).view(centroids.shape)
