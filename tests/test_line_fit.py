"""The estimator on one column: its clustering is the optimum, and all other promises hold."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.engines import line_optimum, open_engine
from tests import reference
from tests.problems import PATTERNS, weighted_sse


def fitted(x, n_clusters, w=None, container=np.asarray, **parameters):
    """An estimator on one column, after checks that hold for every fit of a line."""
    X = container(x[:, np.newaxis])
    estimator = PGKMeans(n_clusters, **parameters).fit(X, sample_weight=w)
    np.testing.assert_array_equal(estimator.labels_, estimator.predict(X))
    counted = reference.ones_if_none(w, len(x)) > 0
    assert len(np.unique(estimator.labels_[counted])) == n_clusters
    assert estimator.inertia_ == pytest.approx(
        weighted_sse(x[:, np.newaxis], estimator.cluster_centers_, estimator.labels_, w), rel=1e-6
    )
    assert estimator.n_iter_ <= 2
    assert estimator.repair_log_ == []
    return estimator


def least_inertia(x, n_clusters, w=None):
    line = line_optimum._sorted_line(x.astype(np.float64), w)
    factor = 1.0 if w is None else w.sum() / line.weights.sum()
    errors = reference.line_errors(line.values, line.weights)
    return factor * reference.line_optimum(errors, n_clusters)


@pytest.mark.parametrize("algorithm", ["auto", "lloyd"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("parameters", [{}, {"max_iter": 1}, {"tol": 0.0}, {"n_init": 4}])
def test_a_fit_on_one_column_is_the_optimum(container, dtype, algorithm, parameters):
    rng = np.random.default_rng(0)
    x = rng.normal(size=300).astype(dtype)
    x[rng.random(300) < 0.3] = 0.0
    w = rng.integers(0, 3, 300).astype(np.float64)
    # Centres are rounded to float32, which costs the square of it.
    for weights in (None, w):
        for n_clusters in (1, 2, 9, 40):
            estimator = fitted(x, n_clusters, weights, container, algorithm=algorithm, **parameters)
            best = least_inertia(x, n_clusters, weights)
            assert estimator.inertia_ == pytest.approx(best, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_fit_is_the_optimum_on_any_data(pattern):
    for dtype in (np.float32, np.float64):
        x = PATTERNS[pattern](np.random.default_rng(1), 120, 1)[:, 0].astype(dtype)
        n_values = len(np.unique(x))
        for n_clusters in {1, min(2, n_values), min(8, n_values), n_values}:
            estimator = fitted(x, n_clusters)
            best = least_inertia(x, n_clusters)
            # Half a unit in the last place of a centre, at the size of the largest value.
            rounding = len(x) * (float(np.abs(x).max()) * np.finfo(dtype).eps) ** 2
            assert best * (1 - 1e-12) <= estimator.inertia_ <= best * (1 + 1e-9) + rounding


def test_no_other_start_is_better():
    x = np.random.default_rng(3).standard_cauchy(2000)
    best = fitted(x, 12).inertia_
    for init in ("k-means++", "random", "partition-ball-error"):
        other = PGKMeans(12, init=init, n_init=5, random_state=0).fit(x[:, np.newaxis])
        assert best <= other.inertia_


def test_one_start_is_enough(caplog):
    x = np.random.default_rng(0).normal(size=500)
    with caplog.at_level("INFO", logger="pgkmeans_sk"):
        fitted(x, 5, n_init=3, verbose=1)
    assert sum(message.startswith("start") for message in caplog.messages) == 1
    caplog.clear()
    with caplog.at_level("INFO", logger="pgkmeans_sk"):
        PGKMeans(5, n_init=3, verbose=1).fit(np.column_stack([x, x**2]))
    assert sum(message.startswith("start") for message in caplog.messages) == 3


def test_fewer_distinct_rows_than_clusters_warn_as_ever():
    X = np.array([[1.0], [2.0], [1.0], [2.0]])
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(2\)"):
        estimator = PGKMeans(3).fit(X)
    assert estimator.n_effective_clusters_ == 2
    assert estimator.inertia_ == 0.0


@pytest.mark.parametrize("parameters", [{"metric": "cosine"}, {"init": "partition-principal"}])
def test_only_the_default_start_looks_for_the_optimum(parameters, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(line_optimum, "optimal_cuts", refuse)
    X = np.random.default_rng(0).normal(size=(100, 1))
    with pytest.raises(AssertionError):
        PGKMeans(2).fit(X)
    PGKMeans(2, **parameters).fit(X)


def test_consolidated_rows_keep_their_weight():
    x = np.random.default_rng(0).integers(0, 40, 3000).astype(np.float64)
    exact = fitted(x, 6, consolidate="exact")
    assert exact.inertia_ == pytest.approx(fitted(x, 6).inertia_, rel=1e-12)


def test_a_stream_begins_with_the_optimum_of_its_first_batch():
    x = np.random.default_rng(0).normal(size=200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = PGKMeans(7).partial_fit(x[:, np.newaxis])
    assert stream.inertia_ <= fitted(x, 7).inertia_ * (1 + 1e-9)


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix])
def test_the_engine_answers_for_one_column_alone(container):
    one = np.array([[0.0], [4.0], [0.0], [6.0], [5.0], [90.0]])
    weights = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 0.0])
    engine = open_engine("numba", container(one), weights)
    np.testing.assert_array_equal(engine.line_optimum(2), [[0.0], [5.0]])
    assert engine.line_optimum(5) is None
    assert open_engine("numba", container(np.eye(3)), None).line_optimum(2) is None


@pytest.mark.parametrize("layout", reference.LAYOUTS)
def test_any_layout(layout):
    X = np.random.default_rng(0).normal(size=(300, 1)).astype(np.float32)
    expected = PGKMeans(6).fit(X)
    found = PGKMeans(6).fit(reference.LAYOUTS[layout](X))
    np.testing.assert_array_equal(
        np.sort(found.cluster_centers_, axis=0), expected.cluster_centers_
    )
    assert found.inertia_ == pytest.approx(expected.inertia_, rel=1e-6)
