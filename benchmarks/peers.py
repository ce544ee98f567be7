"""The libraries under test behind one table: name -> an adapter with one signature.

An adapter turns ``(X, n_clusters, start, iterations, seed)`` into the fitted centres and nothing
else; whoever calls it takes the time and judges the centres. ``start`` is an array (K, d) or None
for the library's own initialisation, ``iterations`` a fixed number or None for the library's own
stopping rule. Each import stands inside its adapter, so that a missing peer costs only itself.

Rules that keep the comparison fair:

* every library uses all the cores it finds, and none is patched or patched globally;
* a library that trains on a sample by default is told to use every point; where its own default is
  of interest too, it stands in the table a second time under a name that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

OURS = "pgkmeans-sk"
_EVERY_POINT = 10**9  # points per centroid: never reached, so nothing is left out


class Fitted(NamedTuple):
    """What an adapter returns: centres (K, d) and the iterations done (None if it does not say)."""

    centers: NDArray[np.floating]
    n_iter: int | None


Fit = Callable[[Array, int, Array | None, int | None, int], Fitted]


class PeerRefusedError(RuntimeError):
    """The library is installed but did not run this case itself; the message says why."""


def own_words(error: Exception) -> str:
    """Return why a library did not run, as it says itself."""
    if isinstance(error, PeerRefusedError):
        return str(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass(frozen=True)
class Peer:
    """One library (or one of its modes) under test."""

    name: str
    distribution: str  # the package on PyPI that must be installed
    fit: Fit
    takes_start: bool = True
    same_start: bool = True  # takes part in the "same start" comparison
    default_fit: bool = True  # takes part in the "default fit" comparison
    note: str = ""
    bytes_per_score: int = 0  # memory it needs for each of the n * K point-centre pairs


def _pgkmeans_sk(
    X: Array, n_clusters: int, start: Array | None, iterations: int | None, seed: int
) -> Fitted:
    from pgkmeans_sk import PGKMeans

    if start is not None:
        # From a given start every library is asked for the same thing: plain Lloyd iterations.
        model = PGKMeans(
            n_clusters,
            init=start,
            n_init=1,
            max_iter=iterations or 300,
            tol=0.0 if iterations else 1e-4,
            algorithm="lloyd",
            random_state=seed,
        )
    elif iterations is not None:
        model = PGKMeans(n_clusters, max_iter=iterations, tol=0.0, random_state=seed)
    else:
        model = PGKMeans(n_clusters, random_state=seed)
    model.fit(X)
    return Fitted(model.cluster_centers_, model.n_iter_)


def _scikit_learn(
    X: Array, n_clusters: int, start: Array | None, iterations: int | None, seed: int
) -> Fitted:
    from sklearn.cluster import KMeans

    model = KMeans(
        n_clusters,
        init="k-means++" if start is None else start,
        n_init=1,
        max_iter=iterations or 300,
        tol=0.0 if iterations else 1e-4,
        random_state=seed,
    ).fit(X)
    return Fitted(model.cluster_centers_, model.n_iter_)


def _scikit_learn_intelex(
    X: Array, n_clusters: int, start: Array | None, iterations: int | None, seed: int
) -> Fitted:
    from sklearnex.cluster import KMeans

    model = KMeans(
        n_clusters,
        init="k-means++" if start is None else start,
        n_init=1,
        max_iter=iterations or 300,
        tol=0.0 if iterations else 1e-4,
        random_state=seed,
    ).fit(X)
    if not hasattr(model, "_onedal_estimator"):
        raise PeerRefusedError("fell back to scikit-learn's own KMeans for this input")
    return Fitted(model.cluster_centers_, model.n_iter_)


def _faiss_fitted(model: Any) -> Fitted:
    return Fitted(model.centroids, len(model.obj))  # obj: the objective of each iteration


def _faiss(
    X: Array, n_clusters: int, start: Array | None, iterations: int | None, seed: int
) -> Fitted:
    import faiss

    model = faiss.Kmeans(
        X.shape[1],
        n_clusters,
        niter=iterations or 25,
        seed=seed,
        max_points_per_centroid=_EVERY_POINT,
        min_points_per_centroid=1,
    )
    model.train(X, init_centroids=start)
    return _faiss_fitted(model)


def _faiss_default(
    X: Array, n_clusters: int, start: Array | None, iterations: int | None, seed: int
) -> Fitted:
    import faiss

    # The limit of 256 points per centroid stays; only the warning about too few points goes.
    model = faiss.Kmeans(
        X.shape[1], n_clusters, niter=iterations or 25, seed=seed, min_points_per_centroid=1
    )
    model.train(X)
    return _faiss_fitted(model)


def _faiss_superkmeans(
    X: Array, n_clusters: int, start: Array | None, iterations: int | None, seed: int
) -> Fitted:
    import faiss

    if not hasattr(faiss, "SuperKmeans"):
        raise PeerRefusedError(f"faiss {faiss.__version__} has no SuperKmeans")
    model = faiss.SuperKmeans(
        X.shape[1],
        n_clusters,
        niter=iterations or 25,
        seed=seed,
        max_points_per_centroid=_EVERY_POINT,
        min_points_per_centroid=1,
    )
    d_least = 2 * model.cp.d_prime_min  # it prunes on a part of the dimensions
    if X.shape[1] < d_least:
        raise PeerRefusedError(f"refuses d < {d_least}, got d={X.shape[1]}")
    model.train(X)
    return _faiss_fitted(model)


def _superkmeans_flat(
    X: Array, n_clusters: int, start: Array | None, iterations: int | None, seed: int
) -> Fitted:
    from superkmeans import SuperKMeans

    # sampling_fraction=1 switches the sampling off; max_points_per_cluster alone changed nothing.
    model = SuperKMeans(
        n_clusters,
        X.shape[1],
        hierarchical=False,
        iters=iterations or 10,
        sampling_fraction=1.0,
        max_points_per_cluster=_EVERY_POINT,
        early_termination=iterations is None,
        seed=seed,
    )
    centers = model.train(X)
    return Fitted(centers, len(model.iteration_stats))


def _superkmeans_default(
    X: Array, n_clusters: int, start: Array | None, iterations: int | None, seed: int
) -> Fitted:
    from superkmeans import SuperKMeans

    model = SuperKMeans(n_clusters, X.shape[1], seed=seed)
    centers = model.train(X)
    # In its hierarchical mode (above 100 000 rows) the list of iterations stays empty.
    return Fitted(centers, len(model.iteration_stats) or None)


def _fast_pytorch_kmeans(
    X: Array, n_clusters: int, start: Array | None, iterations: int | None, seed: int
) -> Fitted:
    import torch
    from fast_pytorch_kmeans import KMeans

    with torch.random.fork_rng():  # its random start draws from torch's global generator
        torch.manual_seed(seed)
        # tol is an absolute summed squared shift here; 0 means "until nothing moves".
        model = KMeans(n_clusters, max_iter=iterations or 100, tol=0.0 if iterations else 1e-4)
        model.fit(
            torch.from_numpy(X), centroids=None if start is None else torch.from_numpy(start.copy())
        )
    return Fitted(model.centroids.numpy(), iterations)


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(OURS, "pgkmeans-sk", _pgkmeans_sk),
        Peer("scikit-learn", "scikit-learn", _scikit_learn),
        Peer("scikit-learn-intelex", "scikit-learn-intelex", _scikit_learn_intelex),
        Peer("faiss", "faiss-cpu", _faiss, note="all points"),
        Peer(
            "faiss (default)",
            "faiss-cpu",
            _faiss_default,
            takes_start=False,
            same_start=False,
            note="trains on at most 256 points per cluster",
        ),
        Peer(
            "faiss SuperKmeans",
            "faiss-cpu",
            _faiss_superkmeans,
            takes_start=False,
            note="all points; takes no start, draws its own",
        ),
        Peer(
            "superkmeans flat",
            "superkmeans",
            _superkmeans_flat,
            takes_start=False,
            note="all points; takes no start, draws its own",
        ),
        Peer(
            "superkmeans (default)",
            "superkmeans",
            _superkmeans_default,
            takes_start=False,
            same_start=False,
            note="above 100 000 rows hierarchical, below that flat on 30 % of the rows",
        ),
        Peer(
            "fast-pytorch-kmeans",
            "fast-pytorch-kmeans",
            _fast_pytorch_kmeans,
            note="does not report its iterations",
            bytes_per_score=12,  # up to three n x K float32 arrays at once
        ),
    )
}


def why_missing(peer: Peer) -> str | None:
    """Return why a peer cannot be used here, or None if it is installed."""
    if peer.name == OURS:
        return None  # the checkout itself
    try:
        version(peer.distribution)
    except PackageNotFoundError:
        return f"not installed (pip install {peer.distribution})"
    return None


def why_too_large(peer: Peer, n_rows: int, n_clusters: int, available: int) -> str | None:
    """Return why a case does not fit into memory for this peer, or None if it does."""
    needed = peer.bytes_per_score * n_rows * n_clusters
    if needed <= 0.6 * available:
        return None
    return f"would hold {needed / 2**30:.0f} GiB of distances at once"
