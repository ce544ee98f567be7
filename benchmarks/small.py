"""Small tables, where what surrounds the arithmetic counts: ours and scikit-learn's KMeans.

* ``default``: what a user gets from the defaults of both, SSE included.
* ``same start``: both from the same rows, until they have converged by their own rules.

Fits of one pair take turns, many times, since a fit takes a millisecond and machines drift.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_number, as_percent, as_whole

MODES = ("default", "same start")
REAL = ("iris", "wine", "breast_cancer", "digits")
SHORTEST_SECONDS, MOST_PAIRS, FEWEST_PAIRS = 0.4, 60, 3
FEWEST_ROWS_PER_CLUSTER = 5
COMPILING_FITS = 60
"""Small fits after which all kernels are compiled (engines/small_kernels.py)."""

Fit = Callable[[], Any]
Table = NDArray[np.floating]


@dataclass
class Plan:
    """What to measure; every field can be set from the command line."""

    n_rows: Sequence[int] = (150, 500, 2_000, 10_000, 50_000)
    n_features: Sequence[int] = (2, 4, 16, 64)
    n_clusters: Sequence[int] = (3, 8, 32)
    seed: int = 0


def tables(plan: Plan) -> Iterator[tuple[str, Table, int]]:
    """Yield name, rows and number of clusters: scikit-learn's tables, then mixtures."""
    from sklearn import datasets

    for name in REAL:
        X = getattr(datasets, f"load_{name}")().data
        for n_clusters in plan.n_clusters:
            yield name, X, n_clusters
    for n in plan.n_rows:
        for d in plan.n_features:
            for n_clusters in plan.n_clusters:
                if n >= FEWEST_ROWS_PER_CLUSTER * n_clusters:
                    X = datasets.make_blobs(
                        n, d, centers=n_clusters, cluster_std=3.0, random_state=plan.seed
                    )[0]
                    yield "mixture (synthetic)", X, n_clusters


def in_turns(ours: Fit, theirs: Fit) -> tuple[list[float], list[float]]:
    """Return the seconds of both, one after the other and many times."""
    seconds: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(seconds[0]) < FEWEST_PAIRS or (
        time.perf_counter() - begin < SHORTEST_SECONDS and len(seconds[0]) < MOST_PAIRS
    ):
        for fit, own in zip((ours, theirs), seconds, strict=True):
            before = time.perf_counter()
            fit()
            own.append(time.perf_counter() - before)
    return seconds


def run(plan: Plan, console: Console) -> dict[str, Any]:
    """Run a plan and return the result as a JSON-ready dictionary."""
    _compile()
    rows = []
    for name, X, n_clusters in tables(plan):
        for mode in MODES:
            ours, theirs = _fits(X, n_clusters, mode, plan.seed)
            our_fit, their_fit = ours(), theirs()
            our_seconds, their_seconds = in_turns(ours, theirs)
            rows.append({
                "case": name, "mode": mode, "n": X.shape[0], "d": X.shape[1], "k": n_clusters,
                "seconds": median(our_seconds), "their_seconds": median(their_seconds),
                "ours_over_theirs": median(
                    a / b for a, b in zip(our_seconds, their_seconds, strict=True)
                ),
                "n_pairs": len(our_seconds),
                "sse": float(our_fit.inertia_), "their_sse": float(their_fit.inertia_),
            })  # fmt: skip
        console.print(f"  {name} {X.shape[0]} x {X.shape[1]}, K={n_clusters}: "
                      f"{rows[-2]['ours_over_theirs']:.2f}, "
                      f"{rows[-1]['ours_over_theirs']:.2f}")  # fmt: skip
    return {
        "kind": "small",
        "settings": {"seed": plan.seed},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
        "skipped": [],
    }


def _fits(X: Table, n_clusters: int, mode: str, seed: int) -> tuple[Fit, Fit]:
    """Both fits of a case."""
    from sklearn.cluster import KMeans

    from pgkmeans_sk import PGKMeans

    options: dict[str, Any] = {"random_state": seed}
    if mode == "same start":
        drawn = np.random.default_rng(seed).choice(len(X), n_clusters, replace=False)
        options |= {"init": X[drawn], "n_init": 1}
    return (
        lambda: PGKMeans(n_clusters, **options).fit(X),
        lambda: KMeans(n_clusters, **options).fit(X),
    )


def _compile() -> None:
    """Fit until no kernel is left to be compiled."""
    from pgkmeans_sk import PGKMeans

    X = np.random.default_rng(0).standard_normal((5_000, 3))
    PGKMeans(8).fit(X)
    for _ in range(COMPILING_FITS):
        PGKMeans(8).fit(X[:100])


def sheets(result: dict[str, Any]) -> list[Sheet]:
    """Make one table per mode."""
    columns = (
        "table",
        "n",
        "d",
        "K",
        "ours ms",
        "scikit-learn ms",
        "ours / theirs",
        "SSE to theirs",
    )
    found = []
    for mode in MODES:
        rows = [row for row in result["rows"] if row["mode"] == mode]
        if not rows:
            continue
        table = [
            (
                row["case"], *(as_whole(row[key]) for key in ("n", "d", "k")),
                *(as_number(1e3 * row[key], 2) for key in ("seconds", "their_seconds")),
                as_number(row["ours_over_theirs"], 2),
                as_percent(row["sse"] / row["their_sse"] - 1.0),
            )
            for row in rows
        ]  # fmt: skip
        ratios = [row["ours_over_theirs"] for row in rows]
        caption = (
            f"Ratios: geometric mean {geometric_mean(ratios):.2f}, largest {max(ratios):.2f}; "
            f"{sum(ratio > 1.0 for ratio in ratios)} of {len(ratios)} above 1."
        )
        found.append(Sheet(f"small tables, {mode}", columns, table, caption))
    return found
