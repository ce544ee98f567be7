"""What every fit promises, on thousands of small problems that are hard in one way or another."""

import warnings
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from pgkmeans_sk import PGKMeans, kmeans
from pgkmeans_sk.callbacks import CallbackMonitor
from pgkmeans_sk.pipeline.starts import STARTS
from tests.problems import PATTERNS, Problem, rows

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def problems(draw, *, is_sparse=False, metric="euclidean"):
    """Rows, weights and parameters; arrays come from seeds, as drawing each value is slow."""
    n_rows, n_features = draw(st.integers(1, 60)), draw(st.integers(1, 6))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    X = rows(draw(st.sampled_from(sorted(PATTERNS))), n_rows, n_features, draw(SEEDS), dtype)
    n_clusters = draw(
        st.one_of(st.sampled_from([1, 2, n_rows - 1, n_rows]), st.integers(1, n_rows)).map(
            lambda k: min(max(k, 1), n_rows)
        )
    )
    rng = np.random.default_rng(draw(SEEDS))
    sample_weight = {
        "none": None,
        "random": rng.uniform(0.1, 5.0, n_rows),
        "some zero": np.append(rng.integers(0, 3, n_rows - 1), 1).astype(np.float64),
        "far apart": 10.0 ** rng.integers(-8, 9, n_rows),
    }[draw(st.sampled_from(["none", "none", "random", "some zero", "far apart"]))]
    init = draw(st.sampled_from([*STARTS, "repeated rows", "far away", "callable"]))
    if init == "repeated rows":
        init = X[rng.integers(0, n_rows, n_clusters)]
    elif init == "far away":
        init = rng.normal(100.0, 1.0, (n_clusters, n_features)).astype(dtype)
    elif init == "callable":
        init = first_row_only
    return Problem(
        X,
        n_clusters,
        sample_weight,
        is_sparse,
        {
            "init": init,
            "metric": metric,
            "algorithm": draw(st.sampled_from(["auto", "lloyd"])),
            "consolidate": draw(st.sampled_from([None, None, None, "exact", "auto", 0.1])),
            "max_iter": draw(st.sampled_from([1, 3, 40])),
            "tol": draw(st.sampled_from([0.0, 1e-4])),
            "n_init": 1 if isinstance(init, np.ndarray) else draw(st.sampled_from([1, 1, 2])),
            "random_state": 0,
        },
    )


def first_row_only(X, n_clusters, random_state):
    """The worst start there is: all centres in one place."""
    row = X[:1].toarray() if hasattr(X, "toarray") else X[:1]
    return np.repeat(row, n_clusters, axis=0)


@contextmanager
def recorded_inertias():
    """Yields a list of lists: the inertia after each iteration, for each start."""
    starts = []

    class RecordingMonitor(CallbackMonitor):
        is_heard = True

        def begin_start(self, number):
            starts.append([])
            super().begin_start(number)

        def end_iteration(self, number, centers, inertia):
            starts[-1].append(inertia)
            return super().end_iteration(number, centers, inertia)

    with mock.patch.object(kmeans, "CallbackMonitor", RecordingMonitor):
        yield starts


def assert_promises_kept(problem: Problem) -> PGKMeans:
    estimator = PGKMeans(problem.n_clusters, **problem.parameters)
    with recorded_inertias() as starts, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(problem.data, sample_weight=problem.sample_weight)
    labels, centers = estimator.labels_, estimator.cluster_centers_

    used = np.unique(labels[problem.weights > 0])
    assert len(used) == problem.n_expected == estimator.n_effective_clusters_
    assert used[-1] == len(used) - 1  # unused numbers come last

    np.testing.assert_array_equal(labels, estimator.predict(problem.data))

    assert centers.dtype == problem.X.dtype
    assert np.isfinite(centers).all()
    expected = problem.inertia_of(centers, labels)
    assert estimator.inertia_ == pytest.approx(expected, rel=1e-9, abs=problem.rounding)

    is_line = problem.X.shape[1] == 1 and estimator.init == "partition"
    # The optimum of a line needs no second start.
    assert len(starts) == estimator.n_init or (is_line and len(starts) == 1)
    for inertias in starts:
        assert 1 <= len(inertias) <= estimator.max_iter
        assert inertias == sorted(inertias, reverse=True)
    assert estimator.n_iter_ in [len(inertias) for inertias in starts]

    for repair in estimator.repair_log_:
        bound = repair.inertia_before * (1.0 + 1e-12) + problem.rounding
        assert repair.inertia_after <= bound
        assert 1 <= repair.n_empty < problem.n_clusters
        assert 0 <= repair.iteration <= estimator.max_iter
    return estimator


# ------------------------------------------------------------------ by hypothesis

# 3 400 problems in all.


@settings(max_examples=2000)
@given(problem=problems())
def test_dense_rows(problem):
    # scikit-learn#10059, #34074, scipy#13242, faiss#436 and #842, kmeans_pytorch#41: fewer clusters
    # than asked for, stale labels, or NaN, by one empty cluster.
    estimator = assert_promises_kept(problem)
    event("repaired" if estimator.repair_log_ else "not repaired")
    event("all clusters used" if problem.n_expected == problem.n_clusters else "too few rows")


@settings(max_examples=700)
@given(problem=problems(is_sparse=True))
def test_sparse_rows(problem):
    assert_promises_kept(problem)


@settings(max_examples=700)
@given(problem=st.booleans().flatmap(lambda s: problems(is_sparse=s, metric="cosine")))
def test_directions(problem):
    assert_promises_kept(problem)


# ------------------------------------------------------------------ seed by seed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_no_empty_cluster_on_any_seed(pattern, dtype):
    n_rows = 50
    for seed in range(20):
        for n_clusters in (8, n_rows - 1, n_rows):
            X = rows(pattern, n_rows, 4, seed, dtype)
            assert_promises_kept(Problem(X, n_clusters, None, False, {"n_init": 1}))


@pytest.mark.parametrize("init", [*STARTS, first_row_only])
def test_no_empty_cluster_from_any_start(init):
    for seed in range(20):
        X = rows("log-normal", 200, 3, seed)
        parameters = {"init": init, "n_init": 1, "random_state": seed}
        estimator = assert_promises_kept(Problem(X, 60, None, False, parameters))
        assert estimator.n_effective_clusters_ == 60
