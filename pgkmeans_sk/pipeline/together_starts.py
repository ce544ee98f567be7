"""The first centres of many problems at once: those that ``starts.py`` would find for each.

Trees are grown for all problems together, and so are their errors mended. Rows are drawn for each
problem by its own random numbers; what is drawn one row after the other, as for k-means++, and what
the user chooses is found for each problem alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pgkmeans_sk.engines.draws import draw_numbers
from pgkmeans_sk.pipeline.partition import PartitionRule, grow
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.pipeline.starts import (
    FULL_ROUNDS,
    NESTED_ROUNDS,
    NESTED_SEED,
    NESTING,
    SAMPLE_ROUNDS,
    SAMPLE_STEPS,
    STARTS,
    TREES,
    Start,
    is_nested,
    rows_of_sample,
    rules_of_race,
)
from pgkmeans_sk.pipeline.together_exchange import MovesTogether, are_settled, rebalance_together
from pgkmeans_sk.pipeline.together_lloyd import lloyd_together, settle_together
from pgkmeans_sk.results import Cut, FloatArray, IntArray, Nodes

if TYPE_CHECKING:
    from pgkmeans_sk.engines.torch_problems import TorchProblems
    from pgkmeans_sk.engines.torch_states import States

Generators = Sequence[np.random.RandomState]
StartTogether = Callable[["TorchProblems", Settings, Generators], Any]


def first_centers(
    problems: TorchProblems, starts: Sequence[Start], settings: Settings, rngs: Generators
) -> Any:
    """Centres (B, K, d) on the device, by a start for each of B problems, all of a kind."""
    together = _TOGETHER.get(starts[0])
    if together is not None:
        return together(problems, settings, rngs)
    return _one_by_one(problems, starts, settings, rngs)


def _one_by_one(
    problems: TorchProblems, starts: Sequence[Start], settings: Settings, rngs: Generators
) -> Any:
    leaves = np.stack(
        [
            start(problems.alone(number), settings, rng, Journal())
            for number, (start, rng) in enumerate(zip(starts, rngs, strict=True))
        ]
    )
    return problems.as_centers(leaves, leaves)


def _partition(
    problems: TorchProblems, which: IntArray, settings: Settings, rule: PartitionRule
) -> Any:
    """Centres (A, K, d) at the leaves of a tree for each of the problems ``which`` (A,)."""

    def cut(nodes: Nodes, fractions: FloatArray, owners: IntArray) -> Cut:
        counts = np.bincount(owners, minlength=len(which))
        return problems.cut(nodes, fractions, rule.cut, 0, counts)

    leaves = grow(cut, problems.roots(which), settings.n_clusters, rule, problems.n_features)
    leaves = leaves.reshape(len(which), settings.n_clusters, problems.n_features)
    return problems.as_centers(leaves, leaves)


def _start_from_partition(problems: TorchProblems, settings: Settings, rngs: Generators) -> Any:
    every = np.arange(problems.n_problems)
    n_rows = rows_of_sample(problems.n_features, settings.n_clusters)
    if problems.n_rows <= 2 * n_rows:
        return problems.as_placed(_start_small(problems, settings).centers)
    few = _drawn(problems, n_rows, rngs)
    states = _start_small(few, settings)
    steps = replace(settings, max_iter=SAMPLE_STEPS)
    states, _, _ = lloyd_together(few, every, states, steps)
    del few  # with its copy of rows
    states = settle_together(problems, every, states.centers.clone(), settings)
    states, _ = rebalance_together(problems, every, states, settings, FULL_ROUNDS)
    return problems.as_placed(states.centers)


def _start_small(problems: TorchProblems, settings: Settings) -> States:
    every = np.arange(problems.n_problems)
    if not is_nested(problems.n_rows, settings.n_clusters):
        return _race(problems, settings)
    rngs = [np.random.RandomState(NESTED_SEED) for _ in every]
    part = _drawn(problems, problems.n_rows // NESTING, rngs)
    states = _start_small(part, settings)
    del part  # with its copy of rows
    states = settle_together(problems, every, states.centers.clone(), settings)
    return rebalance_together(problems, every, states, settings, NESTED_ROUNDS)[0]


def _race(problems: TorchProblems, settings: Settings) -> States:
    """The first trees; where they are hardly to be improved, they stay, the others race."""
    every = np.arange(problems.n_problems)
    rules = rules_of_race(problems.n_rows, problems.n_features, settings.n_clusters)
    first, *rivals = rules.values()
    best, moves = _grown(problems, every, first, settings)
    racing = np.flatnonzero(~are_settled(problems, every, best, moves)) if rivals else every[:0]
    rest = np.setdiff1d(every, racing)
    for rule in rivals if len(racing) else ():
        before = best.at(racing)
        found, _ = _grown(problems, racing, rule, settings)
        better = found.where(found.inertias < before.inertias * (1.0 - 1e-9), before)
        best = problems.joined([(racing, better), (rest, best.at(rest))])
    return problems.assign(every, best.centers)


def _grown(
    problems: TorchProblems, which: IntArray, rule: PartitionRule, settings: Settings
) -> tuple[States, MovesTogether]:
    """Trees of the problems ``which`` with their errors mended, and what could still be moved."""
    states = settle_together(problems, which, _partition(problems, which, settings, rule), settings)
    return rebalance_together(problems, which, states, settings, SAMPLE_ROUNDS)


def _start_from_random_rows(problems: TorchProblems, settings: Settings, rngs: Generators) -> Any:
    if problems.weights is not None:
        return _one_by_one(problems, [STARTS["random"]] * len(rngs), settings, rngs)
    numbers = _drawn_numbers(np.full(len(rngs), problems.n_rows), settings.n_clusters, rngs)
    return problems.as_placed(problems.rows_at(numbers))


def fewest_rows(n_rows: int, n_features: int, n_clusters: int, starts: Sequence[Start]) -> int:
    """How many rows of positive weight a problem needs, so that samples are as large as others'."""
    if STARTS["partition"] not in starts:
        return 1
    n_sample = rows_of_sample(n_features, n_clusters)
    if n_rows > 2 * n_sample:
        return n_sample
    return n_rows // NESTING if is_nested(n_rows, n_clusters) else 1


def _drawn(problems: TorchProblems, n_rows: int, rngs: Generators) -> TorchProblems:
    """The problems with so many of their rows."""
    return problems.sampled(np.sort(_drawn_numbers(problems.n_present, n_rows, rngs), axis=1))


def _drawn_numbers(n_candidates: IntArray, n_rows: int, rngs: Generators) -> IntArray:
    """Numbers (B, n_rows) below ``n_candidates`` (B,), by the generator of each problem.

    Generators in the same state draw the same, and are asked once.
    """
    found: dict[Any, tuple[IntArray, Any]] = {}
    numbers = []
    for n, rng in zip(n_candidates.tolist(), rngs, strict=True):
        state: Any = rng.get_state(legacy=True)
        key = state[1].tobytes(), state[2], n
        if key not in found:
            found[key] = draw_numbers(n, n_rows, rng), rng.get_state()
        drawn, after = found[key]
        rng.set_state(after)
        numbers.append(drawn)
    return np.stack(numbers)


def _tree(rule: PartitionRule) -> StartTogether:
    def start(problems: TorchProblems, settings: Settings, rngs: Generators) -> Any:
        return _partition(problems, np.arange(problems.n_problems), settings, rule)

    return start


_TOGETHER: dict[Start, StartTogether] = {
    STARTS["partition"]: _start_from_partition,
    STARTS["random"]: _start_from_random_rows,
    **{STARTS[name]: _tree(rule) for name, rule in TREES.items()},
}
