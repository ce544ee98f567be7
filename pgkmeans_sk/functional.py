"""PG k-means as functions: like ``sklearn.cluster.k_means``, and for many problems at once."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from pgkmeans_sk.arrays import home_of
from pgkmeans_sk.kmeans import PGKMeans


def pg_kmeans(
    X: Any,
    n_clusters: int,
    *,
    sample_weight: ArrayLike | None = None,
    init: Any = "partition",
    n_init: int | str = "auto",
    max_iter: int = 300,
    verbose: int = 0,
    tol: float = 1e-4,
    random_state: Any = None,
    copy_x: bool = True,
    algorithm: str = "auto",
    consolidate: str | float | None = None,
    refine: int = 0,
    metric: str = "euclidean",
    engine: str = "auto",
    device: Any = None,
    size_min: float | None = None,
    size_max: float | None = None,
    return_n_iter: bool = False,
) -> tuple[Any, ...]:
    """Partitioning-Guided k-means clustering.

    Parameters
    ----------
    X : {array-like, sparse matrix, tensor} of shape (n_samples, n_features)
        Rows to cluster. Results are tensors, on its device, if it is a PyTorch tensor.
    n_clusters : int
        Number of clusters.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights >= 0, not all zero; None means ones.
    init, n_init, max_iter, verbose, tol, random_state, copy_x, algorithm, consolidate, refine, metric, engine, device, size_min, size_max
        As in :class:`PGKMeans`.
    return_n_iter : bool, default=False
        Whether to return the number of iterations, too.

    Returns
    -------
    centroid : ndarray of shape (n_clusters, n_features)
        Centres.
    label : ndarray of shape (n_samples,), int32
        Number of the nearest centre for each row; within ``size_min`` and ``size_max``, if given.
    inertia : float
        Weighted sum of squared distances of the rows to their centres.
    best_n_iter : int
        Iterations of the best start. Only if ``return_n_iter``.

    Raises
    ------
    ValueError
        As :meth:`PGKMeans.fit`.

    See Also
    --------
    PGKMeans : The estimator.

    References
    ----------
    arXiv:2306.14031; see docs/algorithm.md.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import pg_kmeans
    >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> centroid, label, inertia = pg_kmeans(X, n_clusters=2)
    >>> label
    array([1, 1, 1, 0, 0, 0], dtype=int32)
    >>> inertia
    16.0
    """  # noqa: E501
    estimator = PGKMeans(
        n_clusters,
        init=init,
        n_init=n_init,
        max_iter=max_iter,
        tol=tol,
        verbose=verbose,
        random_state=random_state,
        copy_x=copy_x,
        algorithm=algorithm,
        consolidate=consolidate,
        refine=refine,
        metric=metric,
        engine=engine,
        device=device,
        size_min=size_min,
        size_max=size_max,
    ).fit(X, sample_weight=sample_weight)
    result = estimator.cluster_centers_, estimator.labels_, estimator.inertia_
    return (*result, estimator.n_iter_) if return_n_iter else result


def pg_kmeans_batch(
    X: Any,
    n_clusters: int,
    *,
    sample_weight: Any = None,
    init: Any = "partition",
    n_init: int | str = "auto",
    max_iter: int = 300,
    tol: float = 1e-4,
    random_state: Any = None,
    algorithm: str = "auto",
    consolidate: str | float | None = None,
    refine: int = 0,
    metric: str = "euclidean",
    engine: str = "auto",
    device: Any = None,
) -> tuple[Any, Any, Any]:
    """Partitioning-Guided k-means clustering of many problems of one shape.

    Each problem is clustered as :func:`pg_kmeans` would cluster it alone, with the same parameters,
    and with no empty cluster. Those in the memory of the host are worked on side by side, to the
    same bits. Those on another device are worked on in step, each operation for all of them; where
    the rounding of matrix products tells which of two centres is of less use, a problem may end
    otherwise than alone (docs/tensors.md).

    Parameters
    ----------
    X : {array-like, tensor} of shape (n_problems, n_samples, n_features)
        Rows to cluster, problem by problem. Results are tensors, on its device, if it is a PyTorch
        tensor.
    n_clusters : int
        Number of clusters of each problem.
    sample_weight : array-like of shape (n_samples,) or (n_problems, n_samples), default=None
        Weights >= 0, not all zero in any problem; None means ones.
    init : str, callable or array-like of shape (n_problems, n_clusters, n_features)
        As in :class:`PGKMeans`; or the first centres of each problem.
    random_state : int, RandomState instance or None, default=None
        Each problem begins with the same random numbers.
    n_init, max_iter, tol, algorithm, consolidate, refine, metric, engine, device
        As in :class:`PGKMeans`.

    Returns
    -------
    centroids : ndarray or tensor of shape (n_problems, n_clusters, n_features)
        Centres.
    labels : ndarray or tensor of shape (n_problems, n_samples), int32
        Number of the nearest centre of its own problem for each row.
    inertias : ndarray of shape (n_problems,), float64
        Weighted sums of squared distances of the rows to their centres.

    Raises
    ------
    ValueError
        If a parameter, the rows or the weights are not as described.

    Warns
    -----
    ConvergenceWarning
        If a problem has fewer distinct rows than clusters.

    See Also
    --------
    pg_kmeans : A single problem.

    References
    ----------
    arXiv:2306.14031; see docs/algorithm.md.

    Examples
    --------
    A codebook of 16 words for each of four groups of weights:

    >>> import numpy as np
    >>> from pgkmeans_sk import pg_kmeans_batch
    >>> groups = np.random.default_rng(0).normal(size=(4, 500, 2))
    >>> centroids, labels, inertias = pg_kmeans_batch(groups, n_clusters=16)
    >>> centroids.shape, labels.shape, inertias.shape
    ((4, 16, 2), (4, 500), (4,))
    """
    from pgkmeans_sk.batch import fit_problems  # a single problem need not wait for it

    estimator = PGKMeans(
        n_clusters,
        init=init,
        n_init=n_init,
        max_iter=max_iter,
        tol=tol,
        random_state=random_state,
        algorithm=algorithm,
        consolidate=consolidate,
        refine=refine,
        metric=metric,
        engine=engine,
        device=device,
    )
    home = home_of(X)
    centroids, labels, inertias = fit_problems(estimator, X, sample_weight)
    return home.result(centroids), home.result(labels), inertias
