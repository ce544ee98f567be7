"""PGKMeans: parameters, validation and fitted attributes; the algorithm lives in ``pipeline``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from numpy.typing import ArrayLike
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from pgkmeans_sk import validation
from pgkmeans_sk.array_kinds import as_numpy
from pgkmeans_sk.arrays import home_of, on_host, outline
from pgkmeans_sk.callbacks import (
    WRAPPER_FRAMES,
    CallbackMonitor,
    CallbackSupportMixin,
    with_callbacks,
)
from pgkmeans_sk.fitted import remember_solution, remembered_stream, unchanged_on_error
from pgkmeans_sk.inputs import (
    as_given,
    check_fit_of_blocks,
    check_input,
    check_kind,
    check_rows_alone,
    check_tree_of_blocks,
    fit_batches,
    open_input,
    opened_input,
)
from pgkmeans_sk.parameters import (
    check_engine_limits,
    check_parameters,
    check_without_limits,
    settings_of,
    size_limits_of,
    starts_of,
)
from pgkmeans_sk.pipeline import run
from pgkmeans_sk.pipeline.mini_batch import Stream, add_batch, begin_stream
from pgkmeans_sk.pipeline.settings import Journal
from pgkmeans_sk.verbosity import spoken


class PGKMeans(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClusterMixin,
    BaseEstimator,
):
    """K-means that never leaves a cluster empty: Partitioning-Guided k-means.

    A drop-in for :class:`sklearn.cluster.KMeans`. What it promises after every ``fit``:

    * as many non-empty clusters as asked for, if there are as many distinct rows;
    * ``labels_`` equal ``predict(X)`` (unless sizes are limited), and ``inertia_`` is that of
      exactly these labels and centres;
    * the inertia never rises from one iteration to the next;
    * the same bits for any number of threads.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters, at least 1.

    init : str, callable or array-like of shape (n_clusters, n_features), default="partition"
        How the first centres are found.

        * "partition": a partition tree on a sample, improved there and then on all rows; with a
          single feature (and ``metric="euclidean"``), the global optimum, up to rounding: no other
          clustering has less inertia;
        * "partition-ball", "partition-ball-error", "partition-principal",
          "partition-principal-error": the plain tree over all rows, cut around the row farthest
          from the mean or across the principal direction; leaves shared by population or by error;
        * "k-means++", "random": as in scikit-learn;
        * a callable ``init(X, n_clusters, random_state)`` that returns centres; or the centres.

    n_init : int or "auto", default="auto"
        How many starts are tried; the one of least inertia is kept. "auto" is 10 for "random" and
        callables, else 1. A partition tree is the same each time, so that further starts of it are
        those of "k-means++"; beside the optimum of a single feature there are none.

    max_iter : int, default=300
        Most iterations of one start.

    tol : float, default=1e-4
        A fit has converged when the squared moves of the centres in one iteration add up to at most
        ``tol`` times the mean variance of the columns. With ``algorithm="auto"`` it also stops when
        the inertia falls by less than ``tol / 2``, relatively, per iteration. 0 asks for labels
        that repeat.

    verbose : int, default=0
        If not 0, the logger "pgkmeans_sk" tells of starts and iterations.

    random_state : int, RandomState instance or None, default=None
        For all random choices. The partition trees make none on up to 262 144 rows.

    copy_x : bool, default=True
        For compatibility: ``X`` is never written, whatever the value.

    algorithm : {"auto", "lloyd", "elkan"}, default="auto"
        "auto" is Lloyd's iteration with momentum: it gets further in fewer iterations. "lloyd" is
        Lloyd's iteration as it is; "elkan" is accepted for compatibility and means the same.

    consolidate : {None, "exact", "auto"} or float > 0, default=None
        Replace rows that lie close together by one weighted mean before clustering: equal rows
        ("exact"), rows within a distance, or within the distance that costs at most 1 % of
        the expected inertia ("auto"). Labels are those of the original rows in any case.

    refine : int, default=0
        After convergence, up to so many rounds of moving centres from where they are of least use
        into the clusters with the largest error, each followed by Lloyd's iteration. The inertia
        falls with each round; the last is the one that gains less than 0.02 %.

    metric : {"euclidean", "cosine"}, default="euclidean"
        "cosine" is spherical k-means: rows and centres are scaled to length 1, and the squared
        distance between them is ``2 (1 - cosine)``. Rows of zeros are kept as they are.

    engine : {"auto", "numba", "torch"}, default="auto"
        Who does the work. "auto" is "torch" for PyTorch tensors and where a ``device`` is named,
        else "numba". "torch" takes dense rows; on the CPU it shares their memory with the kernels
        of "numba", which do the work there.

    device : str, torch.device or None, default=None
        Where the engine "torch" works: "cuda", "cuda:1", "cpu". None is where a tensor is, or the
        CPU if there is no float64; for other rows a CUDA device, if there is one, else the CPU.

    size_min, size_max : float > 0 or None, default=None
        Least and largest weight of a cluster: the number of its rows if there are no weights.
        Limits act in ``fit`` alone: they hold for ``labels_``, exactly if all rows weigh the same,
        else up to the weight of the heaviest row. ``predict`` names the nearest centre, so that
        ``labels_`` differ from ``predict(X)`` where a nearer cluster is full, or a row was needed
        elsewhere. Not together with ``consolidate``, not in ``partial_fit``, and only in the
        memory of the host: with ``engine="numba"``, or ``device="cpu"``.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features), float32 or float64
        Centres, in the precision of the data.

    labels_ : ndarray of shape (n_samples,), int32
        For each row, the number of the nearest centre; of several, the lowest. With ``size_min``
        or ``size_max``: labels of least inertia within the limits, for these centres or those
        of the iteration before. After a fit of a dask collection, a dask array that is computed
        later.

    inertia_ : float
        Weighted sum of squared distances of the rows to their centres.

    n_iter_ : int
        Iterations of the best start; with ``size_min`` or ``size_max``, those within the limits,
        which begin from the centres of a fit without.

    n_effective_clusters_ : int
        Clusters that own rows: ``n_clusters`` unless there are fewer distinct rows. Then centres
        beyond are copies of the first.

    repair_log_ : list of RepairRecord
        Each pass that filled empty clusters: iteration, number of empty clusters, the clusters that
        were partitioned, inertia before and after.

    start_ : str
        Where the best solution began: with ``init="partition"`` the name of the tree (on small
        tables two of them race each other), or "optimum" in one dimension; else ``init``, "array"
        or "callable".

    engine_ : str
        The engine that did the work, the form of the rows and the width of the vector registers
        that its kernels were written for: "numba-dense-256bit", "numba-csr-512bit"; with rows in
        blocks "blocks-dense-256bit", "dask-dense-256bit". For "torch" the device, and on the CPU
        that width: "torch-cuda:0", "torch-cpu-256bit".

    n_features_in_ : int
        Number of features seen during ``fit``.

    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if all are strings.

    See Also
    --------
    pg_kmeans : The same as a function.
    InertiaMonitor : A callback that keeps the inertia of each iteration.
    pgkmeans_sk.displays.ClusterSizeDisplay : A picture of the clusters' sizes.

    Notes
    -----
    Results live where ``X`` lives. Of PyTorch tensors, ``cluster_centers_``, ``labels_`` and what
    ``predict`` and ``transform`` return are tensors on the same device (float32 or float64; centres
    of 16-bit rows are float32), of anything else NumPy arrays; ``inertia_`` is a float. An
    estimator may be fitted on tensors and predict for arrays, and the other way round; weights may
    be of another kind than the rows. With scikit-learn's ``array_api_dispatch``, arrays of other
    libraries come back as such, and ``predict`` asks for the kind that ``fit`` has seen.

    A label is the number of the centre with the least squared distance, summed up in float64 in the
    order of the features. It does not depend on the batch, on threads or on the processor.

    References
    ----------
    Partitioning-Guided K-Means: Extreme Empty Cluster Resolution for Extreme Model Compression,
    arXiv:2306.14031. Which parts are stated there and which are our reading: docs/algorithm.md.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import PGKMeans
    >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> kmeans = PGKMeans(n_clusters=2, random_state=0).fit(X)
    >>> kmeans.labels_
    array([1, 1, 1, 0, 0, 0], dtype=int32)
    >>> kmeans.predict([[0, 0], [12, 3]])
    array([1, 0], dtype=int32)
    >>> kmeans.cluster_centers_
    array([[10.,  2.],
           [ 1.,  2.]])
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "partition",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
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
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.consolidate = consolidate
        self.refine = refine
        self.metric = metric
        self.engine = engine
        self.device = device
        self.size_min = size_min
        self.size_max = size_max

    # ---------------------------------------------------------------- fitting

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Find the clusters of ``X``.

        Parameters
        ----------
        X : array-like, sparse matrix, tensor, RowBlocks or dask collection, (n_samples, n_features)
            Rows to cluster; float32 and float64 are used as they are, float16 becomes float32,
            integers float64. Never written, and not copied, but for up to 48 MiB in Fortran
            order. Rows in blocks, of :class:`RowBlocks` or dask, stay where they are
            (docs/scaling.md).
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0, not all zero; None means ones. A row of weight 2 counts like the row
            twice; a row of weight 0 gets a label, and that is all.

        Returns
        -------
        self : PGKMeans
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter, the rows or the weights are not as described. Nothing was changed then.

        Warns
        -----
        ConvergenceWarning
            If there are fewer distinct rows than clusters.
        """
        with unchanged_on_error(self), spoken(self.verbose) as log:
            check_parameters(self)
            check_fit_of_blocks(self, X)
            home = home_of(X)
            X, weights = check_input(self, X, sample_weight, reset=True)
            validation.check_enough_rows(X.shape[0], self.n_clusters)
            check_tree_of_blocks(self, X)
            size_limits = size_limits_of(self, X.shape[0], as_numpy(weights))
            rng = check_random_state(self.random_state)
            starts = starts_of(self, outline(X), stacklevel=3 + WRAPPER_FRAMES)
            settings = settings_of(self, log, size_limits)
            with opened_input(self, X, weights) as engine:
                check_engine_limits(engine, size_limits)
                monitor = CallbackMonitor(self, as_given(X), len(starts), self.max_iter)
                heard = monitor if monitor.is_heard else None
                solution = run(engine, starts, settings, rng, self.consolidate, heard)
            used = solution.centers[: solution.n_effective_clusters]
            stream = Stream(solution.centers, solution.sizes, used)
            remember_solution(self, engine, solution, stream, stacklevel=3 + WRAPPER_FRAMES)
            home.adopt(self)
            self.__dict__.pop("n_steps_", None)  # counts batches, and this was none
            monitor.end_fit()
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Update the clusters with a batch of rows, or with an iterator of batches.

        The first batch must have at least ``n_clusters`` rows. After each call every cluster owns
        at least one of the rows seen so far (of all calls since the estimator was new; after a
        ``fit``, its centres stand for the rows it has seen).

        Parameters
        ----------
        X : array-like, sparse matrix, tensor, RowBlocks or dask collection, (n_samples, n_features)
            The batch; or an iterator, each item of which is one.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0, not all zero; None means ones.

        Returns
        -------
        self : PGKMeans
            With ``labels_`` and ``inertia_`` of this batch, and ``n_steps_`` counted up.

        Raises
        ------
        ValueError
            As in ``fit``.

        References
        ----------
        MacQueen 1967, "Some methods for classification and analysis of multivariate observations";
        Sculley 2010, "Web-scale k-means clustering".

        Examples
        --------
        >>> import numpy as np
        >>> from pgkmeans_sk import PGKMeans
        >>> rows = np.random.default_rng(0).normal(size=(3000, 4))
        >>> kmeans = PGKMeans(n_clusters=50, random_state=0)
        >>> for batch in np.split(rows, 10):
        ...     kmeans = kmeans.partial_fit(batch)
        >>> len(np.unique(kmeans.predict(rows)))
        50
        """
        if isinstance(X, Iterator):
            with unchanged_on_error(self):
                fit_batches(self, X, sample_weight)
            return self
        with unchanged_on_error(self), spoken(self.verbose) as log:
            check_parameters(self)
            check_without_limits(self)
            check_fit_of_blocks(self, X)
            is_new = not hasattr(self, "cluster_centers_")
            home = home_of(X)
            X, weights = check_input(self, X, sample_weight, reset=is_new)
            check_tree_of_blocks(self, X)
            settings, journal = settings_of(self, log), Journal()
            with opened_input(self, X, weights) as engine:
                if is_new:
                    validation.check_enough_rows(X.shape[0], self.n_clusters)
                    rng = check_random_state(self.random_state)
                    start = starts_of(self, outline(X), stacklevel=3)[0]
                    stream = begin_stream(engine, start, settings, rng, journal)
                else:
                    stream = remembered_stream(self)
                stream, solution = add_batch(engine, stream, settings, journal)
            remember_solution(self, engine, solution, stream, stacklevel=3)
            home.adopt(self)
            self.n_steps_ = 1 if is_new else getattr(self, "n_steps_", 0) + 1
        return self

    # ---------------------------------------------------------------- using the clusters

    def predict(self, X: Any) -> Any:
        """Number of the nearest centre for each row.

        Parameters
        ----------
        X : array-like, sparse matrix, tensor, RowBlocks or dask collection, (n_samples, n_features)
            Rows, of any accepted dtype: it need not be that of ``fit``.

        Returns
        -------
        labels : ndarray or tensor of shape (n_samples,), int32
            Where ``X`` lives; for dask collections, a dask array that is computed later. Of several
            centres at the same distance, the lowest number.
        """
        check_is_fitted(self)
        check_kind(self, X, "predict")
        home = home_of(X)
        X = check_rows_alone(self, X)
        return home.result(open_input(self, X, None).nearest(on_host(self.cluster_centers_)))

    def fit_predict(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Any:
        """Fit and return ``labels_``; see ``fit``."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def transform(self, X: Any) -> Any:
        """Distances of each row to all centres.

        Parameters
        ----------
        X : array-like, sparse matrix, tensor, RowBlocks or dask collection, (n_samples, n_features)
            Rows.

        Returns
        -------
        X_new : ndarray or tensor of shape (n_samples, n_clusters), float32 or float64
            Where ``X`` lives; for dask collections, a dask array that is computed later. Euclidean
            distances (not squared); with ``metric="cosine"``, 1 - cosine.
        """
        check_is_fitted(self)
        check_kind(self, X, "transform")
        home = home_of(X)
        X = check_rows_alone(self, X)
        distances = open_input(self, X, None).distances(on_host(self.cluster_centers_))
        return home.result(distances**2 / 2 if self.metric == "cosine" else distances)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Any:
        """Fit and return ``transform(X)``; see ``fit``."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Opposite of the inertia of ``X``.

        Parameters
        ----------
        X : array-like, sparse matrix, tensor, RowBlocks or dask collection, (n_samples, n_features)
            Rows.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0, not all zero; None means ones.

        Returns
        -------
        score : float
            Minus the weighted sum of squared distances to the nearest centres.
        """
        check_is_fitted(self)
        check_kind(self, X, "score")
        X, weights = check_input(self, X, sample_weight, reset=False)
        with opened_input(self, X, weights) as engine:
            return -engine.assign(on_host(self.cluster_centers_)).inertia

    # ---------------------------------------------------------------- conventions

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's tools should know."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
