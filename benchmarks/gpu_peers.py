"""The k-means libraries for tensors behind one signature, ours included.

An adapter turns rows on a device, K, a start (K, d) or None, a number of iterations or None (the
library's own stopping rule) and a seed into centres. Each import stands inside its adapter, so that
a missing peer costs only itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.gpu_ways import fit_of
from benchmarks.peers import PeerRefusedError

Fit = Callable[[Any, int, Any, int | None, int], Any]


@dataclass(frozen=True)
class TensorPeer:
    """One library, or one way of ours."""

    name: str
    distribution: str  # the package on PyPI that must be installed
    fit: Fit
    takes_start: bool = True
    default_fit: bool = True  # takes part in the comparison of whole fits
    note: str = ""
    bytes_per_score: int = 0  # memory for each of the n * K pairs of a row and a centre


def _parameters(start: Any, iterations: int | None, seed: int) -> dict[str, Any]:
    if start is None:
        return {"random_state": seed} | ({"max_iter": iterations} if iterations else {})
    lloyd = {"algorithm": "lloyd", "init": start, "n_init": 1, "tol": 0.0 if iterations else 1e-4}
    return {"random_state": seed, "max_iter": iterations or 300, **lloyd}


def _ours(X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int) -> Any:
    from pgkmeans_sk import PGKMeans

    return PGKMeans(n_clusters, **_parameters(start, iterations, seed)).fit(X).cluster_centers_


def _ours_on_host(X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int) -> Any:
    start = None if start is None else start.cpu().numpy()
    return _ours(X.cpu().numpy(), n_clusters, start, iterations, seed)


def _plain_lloyd(X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int) -> Any:
    """What one would write: a matrix of all distances, sums by ``index_add_``."""
    import torch

    if start is None:
        generator = torch.Generator(X.device).manual_seed(seed)
        numbers = torch.randperm(len(X), generator=generator, device=X.device)
        start = X[numbers[:n_clusters]]
    centers = start.clone()
    for _ in range(iterations or 25):
        labels = torch.addmm(centers.square().sum(dim=1), X, centers.T, alpha=-2.0).argmin(dim=1)
        sums = torch.zeros_like(centers).index_add_(0, labels, X)
        counts = torch.bincount(labels, minlength=n_clusters)[:, None]
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
    return centers


def _flash_kmeans(X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int) -> Any:
    from flash_kmeans import torch_fallback

    fit = torch_fallback.batch_kmeans_Euclid_torch_native
    if X.device.type == "cuda":
        from flash_kmeans import batch_kmeans_Euclid as fit
    return _of_batches(fit, X, n_clusters, start, iterations, seed)


def _flashlib(X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int) -> Any:
    import flashlib

    if X.device.type != "cuda":
        raise PeerRefusedError("its kernels are for CUDA alone")
    return _of_batches(flashlib.batch_kmeans_Euclid, X, n_clusters, start, iterations, seed)


def _of_batches(
    fit: Any, X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int
) -> Any:
    """Centres of one problem by a function over batches of them."""
    first = None if start is None else start[None]
    return _all_of_batches(fit, X[None], n_clusters, first, iterations, seed)[0]


def _all_of_batches(
    fit: Any, X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int
) -> Any:
    """Centres of a function over batches of problems, whose own number of iterations is 25."""
    import torch

    with _seeded(seed):
        _, centers, _ = fit(
            X.to(torch.float32), n_clusters, max_iters=iterations or 25, tol=0.0,
            init_centroids=start,
        )  # fmt: skip
    return centers


def _fastkmeans(X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int) -> Any:
    import numpy as np
    import torch
    from fastkmeans import FastKMeans

    # Float32: by default a GPU would multiply in half precision, and float16 overflows.
    model = FastKMeans(
        X.shape[1], n_clusters, niter=iterations or 25, seed=seed, dtype=torch.float32,
        device=str(X.device), gpu=X.device.type == "cuda",
    )  # fmt: skip
    before = np.random.get_state()  # noqa: NPY002
    try:
        with _seeded(seed):
            model.train(X.cpu().numpy())  # it takes arrays alone
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return torch.from_numpy(model.centroids).to(X.device)


def _fast_pytorch_kmeans(
    X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int
) -> Any:
    from fast_pytorch_kmeans import KMeans

    with _seeded(seed):
        model = KMeans(n_clusters, max_iter=iterations or 100, tol=0.0 if iterations else 1e-4)
        model.fit(X, centroids=None if start is None else start.clone())
    return model.centroids


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """PyTorch's own generators, from which others draw, begin at ``seed`` inside."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


OURS = "pgkmeans-sk"
ONE_BY_ONE = "pgkmeans-sk (one by one)"
TENSOR_PEERS: dict[str, TensorPeer] = {
    peer.name: peer
    for peer in (
        TensorPeer(OURS, "pgkmeans-sk", _ours),
        *(
            TensorPeer(f"{OURS} ({way})", "pgkmeans-sk", fit_of(way, _ours), note=note)
            for way, note in (
                ("operations", "plain operations alone"),
                ("Triton labels", "labels by a kernel"),
                ("Triton sums", "sums by kernels"),
                ("Triton", "both by kernels"),
            )
        ),
        TensorPeer("pgkmeans-sk (numba)", "pgkmeans-sk", _ours_on_host, note="on the host"),
        TensorPeer("plain Lloyd", "torch", _plain_lloyd, note="25 iterations", bytes_per_score=4),
        TensorPeer("flash-kmeans", "flash-kmeans", _flash_kmeans, note="25 iterations"),
        TensorPeer("flashlib", "flashlib", _flashlib, note="25 iterations"),
        TensorPeer(
            "fastkmeans",
            "fastkmeans",
            _fastkmeans,
            takes_start=False,
            note="25 iterations in float32, from an array on the host; takes no start",
        ),
        TensorPeer(
            "fast-pytorch-kmeans", "fast-pytorch-kmeans", _fast_pytorch_kmeans, bytes_per_score=12
        ),
    )
}


def _ours_together(X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int) -> Any:
    from pgkmeans_sk import pg_kmeans_batch

    return pg_kmeans_batch(X, n_clusters, **_parameters(start, iterations, seed))[0]


def _ours_one_by_one(X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int) -> Any:
    import torch

    starts = [None] * len(X) if start is None else start
    return torch.stack(
        [
            _ours(rows, n_clusters, first, iterations, seed)
            for rows, first in zip(X, starts, strict=True)
        ]
    )


def _plain_lloyd_of_batches(
    X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int
) -> Any:
    """``_plain_lloyd`` with a product for all problems."""
    import torch

    if start is None:
        generator = torch.Generator(X.device).manual_seed(seed)
        numbers = torch.randperm(X.shape[1], generator=generator, device=X.device)
        start = X[:, numbers[:n_clusters]]
    centers = start.clone()
    for _ in range(iterations or 25):
        norms = centers.square().sum(dim=2)[:, None]
        labels = torch.baddbmm(norms, X, centers.mT, alpha=-2.0).argmin(dim=2)
        sums = torch.zeros_like(centers)
        sums.scatter_add_(1, labels[..., None].expand_as(X), X)
        counts = torch.zeros_like(centers[..., 0])
        counts.scatter_add_(1, labels, torch.ones_like(X[..., 0]))
        counts = counts[..., None]
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
    return centers


def _flash_kmeans_of_batches(
    X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int
) -> Any:
    from flash_kmeans import torch_fallback

    fit = torch_fallback.batch_kmeans_Euclid_torch_native
    if X.device.type == "cuda":
        from flash_kmeans import batch_kmeans_Euclid as fit
    return _all_of_batches(fit, X, n_clusters, start, iterations, seed)


def _flashlib_of_batches(
    X: Any, n_clusters: int, start: Any, iterations: int | None, seed: int
) -> Any:
    import flashlib

    if X.device.type != "cuda":
        raise PeerRefusedError("its kernels are for CUDA alone")
    return _all_of_batches(flashlib.batch_kmeans_Euclid, X, n_clusters, start, iterations, seed)


BATCH_PEERS: dict[str, TensorPeer] = {
    peer.name: peer
    for peer in (
        TensorPeer(OURS, "pgkmeans-sk", _ours_together),
        TensorPeer(f"{OURS} (operations)", "pgkmeans-sk", fit_of("operations", _ours_together)),
        TensorPeer(ONE_BY_ONE, "pgkmeans-sk", _ours_one_by_one),
        TensorPeer("plain Lloyd", "torch", _plain_lloyd_of_batches, bytes_per_score=4),
        TensorPeer("flash-kmeans", "flash-kmeans", _flash_kmeans_of_batches),
        TensorPeer("flashlib", "flashlib", _flashlib_of_batches),
    )
}
"""The same over batches (B, n, d), with starts (B, K, d); those of one name are one library."""


def why_missing(peer: TensorPeer) -> str | None:
    """Return why a peer cannot be used here, or None if it is installed."""
    if peer.distribution == "pgkmeans-sk":
        return None  # the checkout itself
    try:
        version(peer.distribution)
    except PackageNotFoundError:
        return f"not installed (pip install {peer.distribution})"
    return None
