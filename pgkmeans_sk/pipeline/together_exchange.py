"""Moves of centres for many problems at once: each as ``exchange.py`` would make them.

Rounds are made in step. What differs from problem to problem are a few numbers: how boldly it
moves, how many centres at most, and whether what it could move has to be looked for again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.pipeline.exchange import (
    DONOR_SHARE,
    HOPELESS_SHARE,
    SHARES_OF_UTILITY,
    SMALLEST_GAIN,
    STEPS_BETWEEN,
    TWO_MEANS_STEPS,
)
from pgkmeans_sk.pipeline.settings import Settings
from pgkmeans_sk.pipeline.together_lloyd import lloyd_together, settle_together
from pgkmeans_sk.results import Cut, FloatArray, IntArray

if TYPE_CHECKING:
    from pgkmeans_sk.engines.torch_problems import TorchProblems
    from pgkmeans_sk.engines.torch_states import States


def rebalance_together(
    problems: TorchProblems, which: IntArray, states: States, settings: Settings, max_rounds: int
) -> tuple[States, MovesTogether]:
    """``rebalance`` from the states of the problems ``which`` (A,)."""
    few_steps = replace(settings, max_iter=STEPS_BETWEEN, accelerate=False, tol=0.0)
    states, _, _ = lloyd_together(problems, which, states, few_steps)
    moves = MovesTogether.of_none(len(which), settings.n_clusters, problems.n_features)
    if settings.n_clusters < 3:
        return states, moves
    shares = np.array(SHARES_OF_UTILITY)
    boldness = np.zeros(len(which), dtype=np.int64)  # positions in ``shares``
    limits = np.full(len(which), settings.n_clusters)
    n_failed = np.zeros(len(which), dtype=np.int64)
    goes_on = ~states.has_empty
    for _ in range(max_rounds):
        goes_on &= states.inertias != 0.0
        unknown = np.flatnonzero(goes_on & ~moves.is_known)
        if len(unknown):
            survey_together(problems, which, states, unknown, moves)
        n_moves = moves.n_worthwhile(shares[boldness], limits)
        goes_on &= n_moves > 0
        if not goes_on.any():
            break
        gains = np.zeros(len(which))
        tried = np.flatnonzero(goes_on & (n_moves != n_failed))
        if len(tried):
            centers = moves.made(problems, states, tried, n_moves[tried])
            found = settle_together(problems, which[tried], centers, settings)
            found, _, _ = lloyd_together(problems, which[tried], found, few_steps)
            gains[tried] = 1.0 - found.inertias / states.inertias[tried]
            n_failed[tried] = n_moves[tried]
            better = gains[tried] > 0.0
            rest = np.setdiff1d(np.arange(len(which)), tried[better])
            states = problems.joined([(rest, states.at(rest)), (tried[better], found.at(better))])
            n_failed[tried[better]], moves.is_known[tried[better]] = 0, False
        poor = goes_on & (gains < SMALLEST_GAIN)
        fewer = poor & (boldness == len(shares) - 1)
        limits = np.where(fewer, np.minimum(limits, n_moves) // 2, limits)
        boldness[poor & ~fewer] += 1
    again = np.flatnonzero(n_failed)
    if len(again):  # labels are those of the states again
        problems.assign(which[again], states.at(again).centers)
    return states, moves


def are_settled(
    problems: TorchProblems, which: IntArray, states: States, moves: MovesTogether
) -> NDArray[np.bool_]:
    """``is_settled`` (A,) for the states of the problems ``which`` (A,), with these ``moves``."""
    settled = moves.is_known & (moves.gains[:, 0] <= HOPELESS_SHARE * moves.prices[:, 0])
    asked = np.flatnonzero(settled)
    if len(asked):
        sq_errors = states.sq_errors[asked]
        utilities = problems.utilities(which[asked], sq_errors.shape[1])
        gains = _trial(problems, which[asked], sq_errors, sq_errors.shape[1]).gains
        settled[asked] = gains[:, 0] <= HOPELESS_SHARE * utilities.min(axis=1)
    return settled


@dataclass
class MovesTogether:
    """What could be moved in A problems; fields are those of ``Moves``, problem by problem."""

    is_known: NDArray[np.bool_]  # (A,) whether the others are from its state
    donors: IntArray  # (A, m)
    left: FloatArray  # (A, m, d) means of the parts of donors
    right: FloatArray
    by_gain: IntArray  # (A, m)
    gains: FloatArray  # (A, m)
    givers: IntArray  # (A, at most m)
    prices: FloatArray

    @classmethod
    def of_none(cls, n_problems: int, n_clusters: int, n_features: int) -> MovesTogether:
        """Room for moves, none of which pays."""
        m = max(1, int(DONOR_SHARE * n_clusters))
        n_givers = min(m, n_clusters - m)
        numbers = np.zeros((n_problems, m), dtype=np.int64)
        means = np.zeros((n_problems, m, n_features))
        return cls(
            np.zeros(n_problems, dtype=bool), numbers, means, means.copy(), numbers.copy(),
            np.zeros((n_problems, m)), np.zeros((n_problems, n_givers), dtype=np.int64),
            np.zeros((n_problems, n_givers)),
        )  # fmt: skip

    def n_worthwhile(self, shares: FloatArray, most_moves: IntArray) -> IntArray:
        """``Moves.n_worthwhile`` (A,) for shares and limits of each."""
        n_pairs = self.prices.shape[1]
        pays = self.gains[:, :n_pairs] > shares[:, None] * self.prices
        pays &= np.arange(n_pairs) < most_moves[:, None]
        return np.asarray(np.count_nonzero(pays, axis=1))

    def made(
        self, problems: TorchProblems, states: States, positions: IntArray, n_moves: IntArray
    ) -> Any:
        """Centres (a, K, d) of the states at ``positions`` after ``n_moves`` (a,) of them."""
        ranks = np.arange(self.givers.shape[1])
        of, rank = np.nonzero(ranks < n_moves[:, None])
        own = positions[of]
        chosen = self.by_gain[own, rank]
        return states.at(positions).moved(
            np.concatenate([of, of]),
            np.concatenate([self.donors[own, chosen], self.givers[own, rank]]),
            np.concatenate([self.left[own, chosen], self.right[own, chosen]]),
            problems.place,
        )


def survey_together(
    problems: TorchProblems,
    which: IntArray,
    states: States,
    positions: IntArray,
    moves: MovesTogether,
) -> None:
    """``survey`` the states at ``positions`` (a,), and write down what could be moved there."""
    own, (m, d) = which[positions], moves.left.shape[1:]
    sq_errors = states.sq_errors[positions]
    n_problems, n_clusters = sq_errors.shape
    utilities = problems.utilities(own, n_clusters)
    trial = _trial(problems, own, sq_errors, m)
    by_utility = _rising(utilities)
    is_donor: NDArray[np.bool_] = np.zeros((n_problems, n_clusters), dtype=bool)
    np.put_along_axis(is_donor, trial.donors, True, axis=1)
    stays = ~np.take_along_axis(is_donor, by_utility, axis=1)
    givers = by_utility[stays].reshape(n_problems, n_clusters - m)[:, :m]

    moves.is_known[positions] = True
    moves.donors[positions], moves.by_gain[positions] = trial.donors, trial.by_gain
    moves.left[positions] = trial.cut.left.means.reshape(n_problems, m, d)
    moves.right[positions] = trial.cut.right.means.reshape(n_problems, m, d)
    moves.gains[positions] = trial.gains
    moves.givers[positions] = givers
    moves.prices[positions] = np.take_along_axis(utilities, givers, axis=1)


class _Trial(NamedTuple):
    """The worst clusters of A problems, cut in two; fields are those of ``Moves``."""

    donors: IntArray  # (A, m)
    cut: Cut  # of A * m nodes
    by_gain: IntArray  # (A, m)
    gains: FloatArray  # (A, m) in this order


def _trial(
    problems: TorchProblems, which: IntArray, sq_errors: FloatArray, n_donors: int
) -> _Trial:
    """Cut so many clusters of each of the problems ``which`` (A,), by their errors (A, K)."""
    n_problems, n_clusters = sq_errors.shape
    donors = _rising(-sq_errors)[:, :n_donors]
    nodes = problems.open_clusters(which, donors, n_clusters)
    fractions, counts = np.full(len(nodes), -1.0), np.full(n_problems, n_donors)
    cut = problems.cut(nodes, fractions, "principal", TWO_MEANS_STEPS, counts)
    gains = np.where(cut.possible, nodes.scatters - cut.left.scatters - cut.right.scatters, 0.0)
    gains = gains.reshape(n_problems, n_donors)
    by_gain = _rising(-gains)
    return _Trial(donors, cut, by_gain, np.take_along_axis(gains, by_gain, axis=1))


def _rising(values: FloatArray) -> IntArray:
    """The order of each row of ``values`` (a, m), equal ones as they stand."""
    return np.argsort(values, axis=1, kind="stable")
