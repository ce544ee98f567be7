"""What NumPy does on small tables until a kernel lies ready: the same bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkmeans_sk.engines import moments, numba_nodes, small_kernels
from pgkmeans_sk.engines.node_members import listed_members
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.kernels import distances, split
from pgkmeans_sk.kernels.points import dense_points
from tests import reference


@pytest.fixture
def patience(monkeypatch):
    """Set how many calls are left to NumPy, as in a process that has no kernels."""

    def set_to(n_calls):
        monkeypatch.setattr(small_kernels, "PATIENCE", n_calls)
        monkeypatch.setattr(small_kernels, "_n_waited", {})
        monkeypatch.setattr(small_kernels, "lies_ready", lambda *_: False)

    return set_to


@given(
    n_rows=st.integers(1, 300),
    n_features=st.integers(1, 9),
    dtype=st.sampled_from([np.float32, np.float64]),
    scale=st.sampled_from([1e-30, 1.0, 1e12]),
    layout=st.sampled_from(["C", "F", "apart"]),
    is_weighted=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_moments_are_those_of_the_kernel(
    n_rows, n_features, dtype, scale, layout, is_weighted, seed
):
    rng = np.random.default_rng(seed)
    X = (scale * (3.0 + rng.standard_normal((n_rows, n_features)))).astype(dtype)
    X = np.repeat(X, 2, axis=1)[:, ::2] if layout == "apart" else np.asarray(X, order=layout)
    weights = rng.integers(0, 3, n_rows) / 7.0 if is_weighted else None
    origin = X[0].astype(np.float64)
    sums, squares = np.zeros((2, n_features))
    total = distances.add_moments(
        dense_points(X), np.ones(1) if weights is None else weights, int(is_weighted), 0, n_rows,
        origin, sums, squares,
    )  # fmt: skip
    found = moments.moments_of(X, weights, origin)
    np.testing.assert_array_equal(found[0], sums)
    np.testing.assert_array_equal(found[1], squares)
    assert found[2] == total


@given(
    n_rows=st.integers(1, 400),
    n_clusters=st.integers(1, 30),
    is_weighted=st.booleans(),
    dtype=st.sampled_from([np.int32, np.int64]),
    seed=st.integers(0, 2**16),
)
def test_members_are_those_of_the_kernel(n_rows, n_clusters, is_weighted, dtype, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_clusters, n_rows).astype(np.int32)
    chosen = rng.permutation(n_clusters)[: rng.integers(1, n_clusters + 1)]
    position = np.full(n_clusters, -1)
    position[chosen] = np.arange(len(chosen))
    weights = rng.integers(0, 2, n_rows).astype(np.float64) if is_weighted else np.ones(1)
    members = labels, position, weights, int(is_weighted)
    counts = np.zeros(len(chosen), dtype=np.int64)
    split.list_members(*members, counts, np.empty(0, dtype))
    rows = np.empty(counts.sum(), dtype)
    split.list_members(*members, np.cumsum(counts) - counts, rows)
    found = listed_members(*members, len(chosen), dtype)
    assert found[0].dtype == rows.dtype
    np.testing.assert_array_equal(found[0], rows)
    np.testing.assert_array_equal(found[1], counts)


@pytest.mark.parametrize("weighting", ["none", "some zero"])
@pytest.mark.parametrize("n_chunks", [1, 5, 64])
def test_an_engine_finds_the_same_with_and_without(patience, monkeypatch, weighting, n_chunks):
    X = np.random.default_rng(0).random((60, 3))
    weights = reference.sample_weights(60)[weighting]
    bounds = np.linspace(0, 60, n_chunks + 1).astype(np.int64)  # of 64, some have no rows
    monkeypatch.setattr(NumbaEngine, "_chunk_bounds", lambda *_: bounds)

    def found():
        engine = NumbaEngine(X, weights)
        engine.assign(X[:7])
        nodes = engine.open_clusters(np.array([4, 0, 6]))
        return [engine.mean_variance(), nodes.handles, nodes.weights, nodes.means, nodes.scatters]

    patience(0)
    expected = found()
    patience(9)
    for name, module in (("add_moments", distances), ("list_members", split)):
        monkeypatch.setattr(module, name, None)  # would raise
    for with_kernel, without in zip(expected, found(), strict=True):
        np.testing.assert_array_equal(with_kernel, without)


def test_large_tables_wait_for_the_kernels(patience, monkeypatch):
    X = np.random.default_rng(0).random((60, 3))
    expected = NumbaEngine(X, None).mean_variance()
    monkeypatch.setattr(moments, "moments_of", None)  # would raise
    monkeypatch.setattr(numba_nodes, "listed_members", None)
    monkeypatch.setattr(moments, "SMALL_NUMBERS", X.size - 1)
    monkeypatch.setattr(numba_nodes, "FEW_ROWS", 59)
    patience(9)
    engine = NumbaEngine(X, None)
    assert engine.mean_variance() == expected
    engine.assign(X[:7])
    assert engine.open_clusters(np.array([1, 2])).counts.sum() > 0
