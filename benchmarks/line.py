"""K-means on a line: our fit, and the optimum alone, against other libraries' exact optima.

The values are the encoder weights of the real model, one by one. Exact methods find the same SSE up
to rounding, so the seconds compare directly; the judge checks that they do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import data
from benchmarks.clock import timed_fit
from benchmarks.measure import available_memory, judge, machine, package_versions
from benchmarks.peers import own_words
from benchmarks.sheets import Sheet, as_number, as_percent, as_seconds, as_sse, as_whole

Values = NDArray[np.float32]  # (n,)
Result = dict[str, Any]

SIZES = (1_000_000, 10_000_000)
N_CLUSTERS = (16, 256)
OURS = "PGKMeans"
SOURCE = "encoder weights"
_WARM_UP_VALUES = 200_000


@dataclass(frozen=True)
class Solver:
    """One way to solve the problem: values (n,), K -> centres (K,)."""

    name: str
    module: str  # that must be importable
    solve: Callable[[Values, int], NDArray[np.floating]]
    bytes_per_cell: int = 0  # of tables with one cell per value and cluster

    @property
    def is_ours(self) -> bool:
        return self.module == "pgkmeans_sk"


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    sizes: Sequence[int] = SIZES
    n_clusters: Sequence[int] = N_CLUSTERS
    rounds: int = 3
    long_run: float = 300.0  # seconds; a peer that took this long for less is not tried


def _pgkmeans(values: Values, n_clusters: int) -> NDArray[np.floating]:
    from pgkmeans_sk import PGKMeans

    return PGKMeans(n_clusters).fit(values[:, None]).cluster_centers_[:, 0]


def _optimum(values: Values, n_clusters: int) -> NDArray[np.floating]:
    from pgkmeans_sk.engines.line_optimum import optimal_centers

    centers = optimal_centers(values, None, n_clusters)
    if centers is None:
        raise ValueError("gives up: too few different values, or it would take too long")
    return centers


def _kmeans1d(values: Values, n_clusters: int) -> NDArray[np.floating]:
    import kmeans1d

    return np.array(kmeans1d.cluster(values, n_clusters).centroids)


def _faiss(values: Values, n_clusters: int) -> NDArray[np.floating]:
    import faiss

    centers = np.empty(n_clusters, dtype=np.float32)
    pointers = faiss.swig_ptr(values), len(values), n_clusters, faiss.swig_ptr(centers)
    faiss.kmeans1d(*pointers)
    return centers


SOLVERS = (
    Solver(OURS, "pgkmeans_sk", _pgkmeans),
    Solver("the optimum alone", "pgkmeans_sk", _optimum),
    Solver("kmeans1d", "kmeans1d", _kmeans1d, bytes_per_cell=8),
    Solver("faiss.kmeans1d", "faiss", _faiss, bytes_per_cell=16),
)


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    skipped = [
        {"library": solver.name, "reason": f"no module {solver.module}"}
        for solver in SOLVERS
        if find_spec(solver.module) is None
    ]
    absent = {skip["library"] for skip in skipped}
    solvers = [solver for solver in SOLVERS if solver.name not in absent]
    result: Result = {
        "kind": "line",
        "settings": {"rounds": plan.rounds, "not_tried_above_seconds": plan.long_run},
        "machine": machine(),
        "versions": package_versions(),
        "rows": [],
        "skipped": skipped,
    }
    weights = data.load("blocks").ravel()
    worst: dict[str, float] = {}  # solver -> its longest run so far
    problems = sorted((n * k, n, k) for n in plan.sizes for k in plan.n_clusters)
    for _, n, k in problems:
        values = data.draw_rows(weights, n)
        going = []
        for solver in solvers:
            reason = _why_not(solver, len(values), k, worst, plan.long_run)
            if reason is None:
                going.append(solver)
            else:
                skipped.append({"n": f"{n}, K={k}", "library": solver.name, "reason": reason})
        rows = _solve_in_turn(plan, values, k, going, skipped, console)
        worst.update({row["library"]: row["seconds"] for row in rows})
        result["rows"] += rows
    return result


def _why_not(
    solver: Solver, n: int, k: int, worst: dict[str, float], long_run: float
) -> str | None:
    needed = solver.bytes_per_cell * n * k
    if needed > 0.6 * available_memory():
        return f"would need {needed / 2**30:.0f} GiB"
    if not solver.is_ours and worst.get(solver.name, 0.0) > long_run:
        return f"took over {long_run:g} s for less"
    return None


def _solve_in_turn(
    plan: Plan,
    values: Values,
    k: int,
    solvers: Sequence[Solver],
    skipped: list[dict[str, str]],
    console: Console,
) -> list[dict[str, Any]]:
    """Time every solver once per round (a long run only once) and judge its centres."""
    seconds: dict[str, list[float]] = {solver.name: [] for solver in solvers}
    centers: dict[str, NDArray[np.floating]] = {}
    failed: set[str] = set()
    for _ in range(plan.rounds):
        for solver in solvers:
            name, before = solver.name, seconds[solver.name]
            if name in failed or (before and before[0] > plan.long_run):
                continue
            try:
                if not before:  # imports and compilation; small tables need fewer of our kernels
                    solver.solve(values[: _WARM_UP_VALUES if solver.is_ours else 4 * k], k)
                with console.status(f"{name}: {len(values)} values, K={k}"):
                    spent, found = timed_fit(lambda solver=solver: solver.solve(values, k))
            except Exception as error:  # a peer may raise anything; it must not end the others' run
                failed.add(name)
                skip = {"n": f"{len(values)}, K={k}", "library": name, "reason": own_words(error)}
                skipped.append(skip)
                continue
            before.append(spent)
            centers.setdefault(name, found)
            console.print(f"  {len(values)} values, K={k}: {name} {spent:.3f} s")
    return [
        {
            "data": SOURCE,
            "synthetic": False,
            "n": len(values),
            "k": k,
            "library": name,
            "seconds": median(seconds[name]),
            "all_seconds": [round(spent, 5) for spent in seconds[name]],
            "ours_over_theirs": median(
                ours / theirs for ours, theirs in zip(seconds[OURS], seconds[name], strict=False)
            )
            if seconds[OURS]
            else None,
            "sse": judge(values[:, None], centers[name].reshape(-1, 1)).sse,
        }
        for name in centers
    ]


def sheets(result: Result) -> list[Sheet]:
    """Make one table per problem."""
    found = []
    for n, k in dict.fromkeys((row["n"], row["k"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["n"], row["k"]) == (n, k)]
        best = min(row["sse"] for row in rows)
        table = [
            (
                row["library"],
                as_seconds(row["seconds"]),
                str(len(row["all_seconds"])),
                as_number(row["ours_over_theirs"]),
                as_sse(row["sse"]),
                as_percent(row["sse"] / best - 1.0),
            )
            for row in rows
        ]
        columns = ("solver", "seconds", "runs", f"{OURS} / this", "SSE", "SSE to best")
        flag = "synthetic, " if rows[0]["synthetic"] else ""
        title = f"{rows[0]['data']} ({flag}{as_whole(n)} values, K={k})"
        found.append(Sheet(title, columns, table))
    return found
