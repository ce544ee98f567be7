"""The empty-cluster study: what each way of starting and repairing leaves empty on real weights.

Every 2-D weight of the real model is cut into blocks of 8 and clustered at K = 256 to 4096 by
several arms, all with the same number of iterations and no early stop by tolerance. Per layer, K
and arm: empty clusters at the first assignment and at the end, passes spent on nothing but empty
clusters, SSE and seconds (start included). "At the end" is judged from the returned centres on all
points, the same way for every arm.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.exceptions import ConvergenceWarning

from benchmarks import data
from benchmarks.baseline_ipq import DEFAULT_ITERATIONS, fit_ipq_baseline, fit_plain_lloyd
from benchmarks.measure import judge, machine, package_versions
from benchmarks.peers import PEERS, why_missing

DEFAULT_K = (256, 1024, 3072, 4096)
_WARM_UP_K = 8

# One layer of each kind and shape. The word embeddings (1.46 M blocks) take as long as all other
# layers together, so they take part only when named or with "--layers all".
DEFAULT_LAYERS = (
    "position_embeddings",
    "0.attention.query",
    "3.attention.output",
    "2.ffn.in",
    "5.ffn.out",
    "pooler",
)


@dataclass(frozen=True)
class Outcome:
    """What one arm returns: its centres and what it counted on the way."""

    centers: np.ndarray
    n_empty_first: int | None  # None: judged from ``start`` once the clock has stopped
    n_passes: int
    n_iter: int | None
    gave_up: bool = False
    start: np.ndarray | None = None


Arm = Callable[[data.Points, int, int, int], Outcome]  # (X, K, iterations, seed)


def _baseline(X: data.Points, n_clusters: int, iterations: int, seed: int) -> Outcome:
    fit = fit_ipq_baseline(X, n_clusters, iterations, seed)
    return Outcome(fit.centers, fit.n_empty_first, fit.n_passes, fit.n_iter, fit.gave_up)


def _distinct_sampling(X: data.Points, n_clusters: int, iterations: int, seed: int) -> Outcome:
    fit = fit_plain_lloyd(X, data.sampled_start(X, n_clusters, seed), iterations)
    return Outcome(fit.centers, fit.n_empty_first, fit.n_passes, fit.n_iter)


def _plus_plus(X: data.Points, n_clusters: int, seed: int) -> data.Points:
    from sklearn.cluster import kmeans_plusplus

    start, _ = kmeans_plusplus(X, n_clusters, random_state=seed)
    return np.ascontiguousarray(start, dtype=np.float32)


def _kmeans_plus_plus(X: data.Points, n_clusters: int, iterations: int, seed: int) -> Outcome:
    fit = fit_plain_lloyd(X, _plus_plus(X, n_clusters, seed), iterations)
    return Outcome(fit.centers, fit.n_empty_first, fit.n_passes, fit.n_iter)


def _scikit_learn(X: data.Points, n_clusters: int, iterations: int, seed: int) -> Outcome:
    """Fit with scikit-learn's defaults; the seeding is called apart, so that its start is seen."""
    from sklearn.cluster import KMeans

    start = _plus_plus(X, n_clusters, seed)
    model = KMeans(n_clusters, init=start, n_init=1, max_iter=iterations, tol=0.0).fit(X)
    return Outcome(model.cluster_centers_, None, 0, model.n_iter_, start=start)


def _faiss(X: data.Points, n_clusters: int, iterations: int, seed: int) -> Outcome:
    import faiss

    model: Any = faiss.Kmeans(  # Any: its attributes are annotated as if they were always None
        X.shape[1],
        n_clusters,
        niter=iterations,
        seed=seed,
        max_points_per_centroid=10**9,  # every point is used
        min_points_per_centroid=1,
    )
    model.train(X)
    # A "split" fills one empty cluster before the next assignment, which is due anyway.
    splits = [stats["nsplit"] for stats in model.iteration_stats]
    return Outcome(model.centroids, splits[0], 0, len(splits))


def _pg(init: str) -> Arm:
    def fit(X: data.Points, n_clusters: int, iterations: int, seed: int) -> Outcome:
        from pgkmeans_sk import PGKMeans

        model = PGKMeans(
            n_clusters, init=init, n_init=1, max_iter=iterations, tol=0.0, random_state=seed
        ).fit(X)
        repairs = model.repair_log_
        at_first = repairs[0].n_empty if repairs and repairs[0].iteration == 0 else 0
        return Outcome(model.cluster_centers_, at_first, len(repairs), model.n_iter_)

    return fit


PG = "PG (partition)"
ARMS: dict[str, Arm] = {
    "iPQ baseline": _baseline,
    "distinct sampling (left alone)": _distinct_sampling,
    "k-means++ (left alone)": _kmeans_plus_plus,
    "scikit-learn": _scikit_learn,
    "faiss": _faiss,
    "PG (random start)": _pg("random"),
    PG: _pg("partition"),
}

NOTES = {
    "passes": "Passes: for the iPQ baseline, assignments of all points spent on nothing but empty "
    "clusters; for PG, repair passes, each over the members of the split clusters only; "
    "scikit-learn and faiss move centres between two assignments that are due anyway, so they "
    "spend none.",
    "seconds": "The iPQ baseline and the two arms left alone are plain NumPy, written for this "
    "study; their seconds compare among themselves only.",
}


def chosen_layers(names: Sequence[str] | None) -> list[data.Layer]:
    """Return the named layers, the default subset (None) or all of them ("all")."""
    layers = {layer.name: layer for layer in data.layers()}
    if names is not None and list(names) == ["all"]:
        return list(layers.values())
    wanted = DEFAULT_LAYERS if names is None else names
    unknown = [name for name in wanted if name not in layers]
    if unknown:
        raise ValueError(f"Got layers {unknown}, but expected some of {', '.join(layers)}.")
    return [layers[name] for name in wanted]


def run(
    console: Console,
    *,
    layer_names: Sequence[str] | None = None,
    n_clusters: Sequence[int] = DEFAULT_K,
    arms: Sequence[str] = tuple(ARMS),
    iterations: int = DEFAULT_ITERATIONS,
    seeds: Sequence[int] = (0,),
) -> dict[str, Any]:
    """Run the study and return the result as a JSON-ready dictionary."""
    layers = chosen_layers(layer_names)
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    described, versions = machine(), package_versions()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    arms = [arm for arm in arms if not _left_out(arm, skipped)]
    for arm in arms:  # imports and compiled code are paid here, outside the clock
        ARMS[arm](layers[0].blocks[: 8 * _WARM_UP_K], _WARM_UP_K, 2, 0)
    with progress:
        task = progress.add_task("", total=len(layers) * len(n_clusters) * len(arms) * len(seeds))
        for layer in layers:
            for K in n_clusters:
                if len(layer.blocks) < K:
                    reason = f"{len(layer.blocks)} blocks are fewer than {K} clusters"
                    skipped.append({"layer": layer.name, "k": K, "reason": reason})
                    console.print(f"[yellow]{layer.name}, K={K} skipped[/yellow]: {reason}")
                    progress.advance(task, len(arms) * len(seeds))
                    continue
                for arm in arms:
                    progress.update(task, description=f"{layer.name}, K={K}, {arm}")
                    for seed in seeds:
                        rows.append(_measure(layer, K, arm, iterations, seed))
                        progress.advance(task)
    return {
        "kind": "empty-clusters",
        "settings": {
            "layers": [layer.name for layer in layers],
            "k": list(n_clusters),
            "iterations": iterations,
            "seeds": list(seeds),
            "block_size": data.BLOCK_SIZE,
        },
        "machine": described,
        "versions": versions,
        "notes": NOTES,
        "rows": rows,
        "totals": totals(rows),
        "skipped": skipped,
    }


def _left_out(arm: str, skipped: list[dict[str, Any]]) -> bool:
    """Tell whether an arm's library is missing, and if so, put the reason on the list."""
    reason = why_missing(PEERS[arm]) if arm in PEERS else None
    if reason is not None:
        skipped.append({"arm": arm, "reason": reason})
    return reason is not None


def _measure(layer: data.Layer, K: int, arm: str, iterations: int, seed: int) -> dict[str, Any]:
    """Run one arm once and judge its centres."""
    X = layer.blocks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = time.perf_counter()
        outcome = ARMS[arm](X, K, iterations, seed)
        seconds = time.perf_counter() - begin
    verdict = judge(X, outcome.centers)
    n_empty_first = outcome.n_empty_first
    if n_empty_first is None and outcome.start is not None:
        n_empty_first = judge(X, outcome.start).n_empty
    return {
        "layer": layer.name,
        "n": len(X),
        "k": K,
        "arm": arm,
        "seed": seed,
        "n_empty_first": n_empty_first,
        "n_empty_last": verdict.n_empty,
        "n_passes": outcome.n_passes,
        "gave_up": outcome.gave_up,
        "n_iter": outcome.n_iter,
        "sse": verdict.sse,
        "seconds": seconds,
    }


def totals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum up the rows per K and arm; SSE is relative to PG on the same layer, K and seed."""
    pg_sse = {(row["layer"], row["k"], row["seed"]): row["sse"] for row in rows if row["arm"] == PG}
    summed: list[dict[str, Any]] = []
    for K, arm in dict.fromkeys((row["k"], row["arm"]) for row in rows):
        group = [row for row in rows if (row["k"], row["arm"]) == (K, arm)]
        relative = [
            row["sse"] / pg_sse[key] - 1.0
            for row in group
            if (key := (row["layer"], row["k"], row["seed"])) in pg_sse
        ]
        first = [row["n_empty_first"] for row in group if row["n_empty_first"] is not None]
        summed.append(
            {
                "k": K,
                "arm": arm,
                "n_fits": len(group),
                "n_empty_first": sum(first) if first else None,
                "n_empty_last": sum(row["n_empty_last"] for row in group),
                "most_empty_last": max(row["n_empty_last"] for row in group),
                "n_passes": sum(row["n_passes"] for row in group),
                "most_passes": max(row["n_passes"] for row in group),
                "n_gave_up": sum(row["gave_up"] for row in group),
                "sse_over_pg_mean": float(np.mean(relative)) if relative else None,
                "sse_over_pg_worst": max(relative) if relative else None,
                "seconds": sum(row["seconds"] for row in group),
            }
        )
    return summed
