"""Every library with every setting of its effort knob: the points of the time-to-quality curves.

A *line* is one way to use a library (its start, its sample); a *setting* of it is one fit, mostly a
number of iterations, and among them the library's own default. Fixed numbers of iterations switch
stopping rules off, so that a setting does what its name says; a default keeps its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import data
from benchmarks.peers import OURS, PEERS, Array, Fitted, Peer

ITERATIONS = (1, 2, 4, 8, 16, 25, 50, 100)
_HIERARCHICAL_ABOVE = 100_000  # rows; superkmeans' own choice

FitPoints = Callable[[Array, int, int], Fitted]  # points (n, d), clusters, seed


@dataclass(frozen=True)
class Setting:
    """One fit of one library; settings of a line are tried in the order of ``effort``."""

    line: str
    words: str
    effort: float
    fit: FitPoints
    is_default: bool = False


@dataclass(frozen=True)
class Line:
    """One way to use a library, and how its settings follow from numbers of iterations."""

    name: str
    peer: Peer  # whose package must be installed, and whose memory limit holds
    about: str
    settings: Callable[[str, int, Sequence[int]], list[Setting]]  # name, rows, iterations

    @property
    def is_ours(self) -> bool:
        return self.peer.name == OURS


def _counted(iterations: int) -> str:
    return f"{iterations} iteration{'' if iterations == 1 else 's'}"


def _sweep(
    peer_name: str,
    default_effort: int,
    from_random_rows: bool = False,
    same_as_default: bool = False,
) -> Callable[[str, int, Sequence[int]], list[Setting]]:
    """Settings of a peer's adapter: iterations, and its default.

    ``same_as_default``: the default has no stopping rule, so that it *is* ``default_effort``
    iterations and needs no second fit.
    """
    adapter = PEERS[peer_name].fit

    def fit(iterations: int | None, X: Array, n_clusters: int, seed: int) -> Fitted:
        # Drawing rows is part of the fit, as k-means++ is.
        start = data.sampled_start(X, n_clusters, seed) if from_random_rows else None
        return adapter(X, n_clusters, start, iterations, seed)

    def settings(name: str, n_rows: int, iterations: Sequence[int]) -> list[Setting]:
        return [
            Setting(name, _counted(count), count, partial(fit, count))
            for count in iterations
            if not (same_as_default and count == default_effort)
        ] + [Setting(name, "default", default_effort, partial(fit, None), is_default=True)]

    return settings


def _fit_ours(parameters: dict[str, Any], X: Array, n_clusters: int, seed: int) -> Fitted:
    from pgkmeans_sk import PGKMeans

    model = PGKMeans(n_clusters, random_state=seed, **parameters).fit(X)
    return Fitted(model.cluster_centers_, model.n_iter_)


def _ours(init: str) -> Callable[[str, int, Sequence[int]], list[Setting]]:
    """Our settings with one start: iterations without a stopping rule, and tolerances."""
    # One start only: "random" alone would take ten.
    start: dict[str, Any] = {} if init == "partition" else {"init": init, "n_init": 1}

    def settings(name: str, n_rows: int, iterations: Sequence[int]) -> list[Setting]:
        counted = [
            Setting(
                name,
                _counted(count),
                count,
                partial(_fit_ours, start | {"max_iter": count, "tol": 0.0}),
            )
            for count in iterations
        ]
        # The tolerances in rising effort, all of them at most 300 iterations.
        tolerances = [
            Setting(name, f"tol={tol:g}", effort, partial(_fit_ours, start | {"tol": tol}))
            for effort, tol in ((100.5, 1e-2), (101.0, 1e-3), (300.0, 1e-5))
        ]
        default = Setting(name, "default", 200.0, partial(_fit_ours, start), is_default=True)
        return [*counted, *tolerances, default]

    return settings


def _fit_superkmeans(parameters: dict[str, Any], X: Array, n_clusters: int, seed: int) -> Fitted:
    from superkmeans import SuperKMeans

    model = SuperKMeans(n_clusters, X.shape[1], seed=seed, **parameters)
    centers = model.train(X)
    return Fitted(centers, len(model.iteration_stats) or None)


def _superkmeans_sampled(name: str, n_rows: int, iterations: Sequence[int]) -> list[Setting]:
    """Flat, on its own share of the rows and on others."""
    fixed = {"hierarchical": False, "early_termination": False}
    found = [
        Setting(name, _counted(count), count, partial(_fit_superkmeans, fixed | {"iters": count}))
        for count in iterations
    ]
    for share in (0.1, 0.5):
        for count in sorted({iterations[len(iterations) // 2], iterations[-1]}):
            parameters = fixed | {"iters": count, "sampling_fraction": share}
            words = f"{_counted(count)}, {share:.0%} of the rows"
            # As much work as so many fewer iterations.
            found.append(Setting(name, words, count * share, partial(_fit_superkmeans, parameters)))
    if n_rows <= _HIERARCHICAL_ABOVE:
        found.append(Setting(name, "default", 10, partial(_fit_superkmeans, {}), is_default=True))
    return found


def _superkmeans_hierarchical(name: str, n_rows: int, iterations: Sequence[int]) -> list[Setting]:
    """Iterations of the coarse, the fine and the last level, with its sample and with all rows."""
    found = []
    for share in (None, 1.0):
        for levels in ((1, 1, 0), (3, 5, 0), (10, 10, 0), (25, 25, 0), (3, 5, 5), (3, 5, 25)):
            if share is None and levels == (3, 5, 0) and n_rows > _HIERARCHICAL_ABOVE:
                continue  # the default
            parameters = dict(
                zip(
                    ("iters_mesoclustering", "iters_fineclustering", "iters_refinement"),
                    levels,
                    strict=True,
                ),
                hierarchical=True,
                sampling_fraction=share,
            )
            words = "+".join(map(str, levels)) + ("" if share is None else ", all rows")
            # The last level meets all clusters and costs the most.
            effort = levels[0] + levels[1] + 4 * levels[2]
            found.append(Setting(name, words, effort, partial(_fit_superkmeans, parameters)))
    if n_rows > _HIERARCHICAL_ABOVE:
        found.append(Setting(name, "default", 8, partial(_fit_superkmeans, {}), is_default=True))
    return found


def _line(
    name: str, peer: str, about: str, settings: Callable[[str, int, Sequence[int]], list[Setting]]
) -> Line:
    return Line(name, PEERS[peer], about, settings)


_SKLEARN, _INTELEX, _TORCH = "scikit-learn", "scikit-learn-intelex", "fast-pytorch-kmeans"
_FLAT, _TREE = "superkmeans flat", "superkmeans (default)"

LINES: dict[str, Line] = {
    line.name: line
    for line in (
        _line(OURS, OURS, "from the partition tree", _ours("partition")),
        _line(f"{OURS} random", OURS, "from random rows, one start", _ours("random")),
        _line(f"{OURS} k-means++", OURS, "from k-means++", _ours("k-means++")),
        _line("scikit-learn", _SKLEARN, "from k-means++", _sweep(_SKLEARN, 300)),
        _line("scikit-learn random", _SKLEARN, "from random rows", _sweep(_SKLEARN, 300, True)),
        _line("scikit-learn-intelex", _INTELEX, "from k-means++", _sweep(_INTELEX, 300)),
        _line(
            "scikit-learn-intelex random",
            _INTELEX,
            "from random rows",
            _sweep(_INTELEX, 300, True),
        ),
        _line("faiss", "faiss", "all points", _sweep("faiss", 25, same_as_default=True)),
        _line(
            "faiss sampled",
            "faiss (default)",
            "at most 256 points per cluster, its default",
            _sweep("faiss (default)", 25, same_as_default=True),
        ),
        _line(
            "faiss SuperKmeans",
            "faiss SuperKmeans",
            "all points",
            _sweep("faiss SuperKmeans", 25, same_as_default=True),
        ),
        _line("superkmeans flat", _FLAT, "all points", _sweep(_FLAT, 10)),
        _line(
            "superkmeans flat sampled",
            _FLAT,
            "30 % of the rows unless it says another share; its default up to 100 000 rows",
            _superkmeans_sampled,
        ),
        _line(
            "superkmeans hierarchical",
            _TREE,
            "iterations of its coarse, fine and last level; its default above 100 000 rows",
            _superkmeans_hierarchical,
        ),
        _line(_TORCH, _TORCH, "from random rows", _sweep(_TORCH, 100)),
    )
}
