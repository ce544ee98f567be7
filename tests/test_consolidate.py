"""Consolidation: fewer rows to cluster, hardly another result, labels of the original rows."""

from collections import Counter

import numpy as np
import pytest
from scipy import sparse

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.arrays import on_host
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from tests.problems import n_distinct, rows, same_partition, weighted_sse

CONTAINERS = [np.asarray, sparse.csr_matrix]


def bunched(n_rows=6000, n_bunches=300, seed=0, spread=0.01):
    """Rows close around some hundred places."""
    rng = np.random.default_rng(seed)
    places = 3.0 * rng.normal(size=(n_bunches, 3))
    return places[rng.integers(0, n_bunches, n_rows)] + spread * rng.normal(size=(n_rows, 3))


def merged(engine, X, radius, sample_weight=None):
    """What the engine makes of the rows: means, weights and the inertia that is lost."""
    opened, lost = engine(X, sample_weight).merge_rows(radius)
    means = opened.user_data.toarray() if sparse.issparse(X) else on_host(opened.user_data)
    return means, opened.assign(means).sizes, lost  # each mean is the nearest to itself


# ------------------------------------------------------------------ merging


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_rows_become_one(engine, container, dtype):
    X = np.array([[1, 2], [3, 4], [1, 2], [0, 5], [1, 2], [3, 4], [-0.0, 5]], dtype=dtype)
    weights = np.array([1.0, 2.0, 0.5, 1.0, 0.25, 3.0, 4.0])
    means, totals, lost = merged(engine, container(X), 0.0, weights)
    found = {tuple(mean): total for mean, total in zip(means.tolist(), totals, strict=True)}
    assert found == {(1.0, 2.0): 1.75, (3.0, 4.0): 5.0, (0.0, 5.0): 5.0}
    assert means.dtype == dtype
    assert lost == pytest.approx(0.0, abs=1e-12)
    assert sum(merged(engine, container(X), 0.0)[1]) == len(X)


@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_within_the_radius_become_their_mean(engine, container):
    X = bunched(2000, 100)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(X))
    mean, previous = weights @ X / weights.sum(), len(X) + 1
    for radius in (1e-3, 0.03, 0.3, 3.0):
        means, totals, lost = merged(engine, container(X), radius, weights)
        assert len(means) < previous
        previous = len(means)
        assert totals.sum() == pytest.approx(weights.sum())
        np.testing.assert_allclose(totals @ means / totals.sum(), mean, atol=1e-12)
        # No row moved farther than the radius, and what that costs is what is told.
        nearest = ((X[:, np.newaxis] - means) ** 2).sum(axis=2).min(axis=1)
        assert np.sqrt(nearest.max()) <= radius
        total_scatter = weights @ ((X - mean) ** 2).sum(axis=1)
        left = totals @ ((means - mean) ** 2).sum(axis=1)
        assert lost == pytest.approx(total_scatter - left, rel=1e-6, abs=1e-9 * total_scatter)
    assert previous < 100


@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_of_no_weight_are_left_out(engine, container):
    X = np.array([[0.0], [1.0], [1.0], [2.0]])
    means, totals, _ = merged(engine, container(X), 0.0, np.array([0.0, 1.0, 0.0, 3.0]))
    assert sorted(zip(means.ravel().tolist(), totals, strict=True)) == [(1.0, 1.0), (2.0, 3.0)]


# ------------------------------------------------------------------ fitting


@pytest.fixture
def passes(monkeypatch):
    """Counts assignments of the pipeline by the number of rows they looked at."""
    counted = Counter()

    def assign(self, centers, original=NumbaEngine.assign):
        counted[self.n_rows] += 1
        return original(self, centers)

    monkeypatch.setattr(NumbaEngine, "assign", assign)
    # Kernels that do all of it in one go, once they are compiled, have the same bits.
    monkeypatch.setattr(NumbaEngine, "small_start", lambda *_: None)
    monkeypatch.setattr(NumbaEngine, "small_lloyd", lambda *_: None)
    return counted


def assert_consistent(estimator, X):
    np.testing.assert_array_equal(estimator.labels_, estimator.predict(X))
    assert len(np.unique(estimator.labels_)) == estimator.n_clusters
    dense = X.toarray() if sparse.issparse(X) else X
    expected = weighted_sse(dense, estimator.cluster_centers_, estimator.labels_)
    assert estimator.inertia_ == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("algorithm", ["auto", "lloyd"])
def test_exact_changes_nothing(container, dtype, algorithm, passes):
    X = rows("normal", 150, 3, seed=0, dtype=dtype)
    X = X[np.random.default_rng(1).integers(0, 150, 4000)]
    data, common = container(X), {"algorithm": algorithm, "random_state": 0}
    plain = PGKMeans(12, **common).fit(data)
    assert set(passes) == {4000}
    passes.clear()
    exact = PGKMeans(12, consolidate="exact", **common).fit(data)
    assert passes[n_distinct(X)] == passes.total() - passes[4000] >= 3
    assert passes[4000] <= 2  # labels of the original rows
    assert exact.inertia_ == pytest.approx(plain.inertia_, rel=1e-9)
    assert same_partition(exact.labels_, plain.labels_)
    assert exact.labels_.shape == (4000,)
    assert_consistent(exact, data)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("n_clusters", [8, 50])
def test_auto_loses_little_and_sees_fewer_rows(container, n_clusters, passes):
    ratios = []
    for seed in range(4):
        X = container(bunched(seed=seed))
        plain = PGKMeans(n_clusters, random_state=0).fit(X)
        passes.clear()
        auto = PGKMeans(n_clusters, consolidate="auto", random_state=0).fit(X)
        n_few = max(passes, key=passes.get)
        assert n_few < 3000
        assert passes[n_few] > 3
        assert_consistent(auto, X)
        ratios.append(auto.inertia_ / plain.inertia_)
        # From the same place, 1 % is all that is given away.
        auto.set_params(init=plain.cluster_centers_).fit(X)
        assert auto.inertia_ < 1.015 * plain.inertia_
    assert np.mean(ratios) < 1.03  # the rest is the luck of another local optimum


def test_auto_keeps_rows_that_matter():
    # Nothing can be merged without a loss where there is a cluster for every row.
    X = rows("normal", 40, 2, seed=0)
    for n_clusters in (39, 40):
        estimator = PGKMeans(n_clusters, consolidate="auto").fit(X)
        assert_consistent(estimator, X)
    assert estimator.inertia_ == 0.0


@pytest.mark.parametrize("container", CONTAINERS)
def test_radius(container, passes):
    X = container(bunched(2000, 40, spread=0.001))
    estimator = PGKMeans(10, consolidate=0.05, random_state=0).fit(X)
    n_few = max(passes, key=passes.get)
    assert 40 <= n_few < 400
    assert_consistent(estimator, X)
    assert estimator.inertia_ <= 1.05 * PGKMeans(10, random_state=0).fit(X).inertia_


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("radius", [10.0, 1e6, 1e300])
def test_too_large_a_radius_empties_no_cluster(container, radius):
    X = container(rows("normal", 200, 3, seed=0))
    for n_clusters in (2, 50, 200):
        estimator = PGKMeans(n_clusters, consolidate=radius, random_state=0).fit(X)
        assert_consistent(estimator, X)


@pytest.mark.parametrize("radius", [1e-300, 1e-12, np.float32(1e-6)])
def test_too_small_a_radius_is_exact(radius):
    X = np.repeat(rows("normal", 100, 3, seed=0), 3, axis=0)
    tiny, exact = (PGKMeans(9, consolidate=c, random_state=0).fit(X) for c in (radius, "exact"))
    np.testing.assert_array_equal(tiny.labels_, exact.labels_)
    assert tiny.inertia_ == exact.inertia_


def test_weights_are_kept():
    X = bunched(1500, 60)
    weights = np.random.default_rng(0).integers(0, 4, len(X)).astype(np.float64)
    for consolidate in ("exact", "auto", 0.05):
        common = {"n_clusters": 12, "consolidate": consolidate, "random_state": 0}
        weighted = PGKMeans(**common).fit(X, sample_weight=weights)
        repeated = PGKMeans(**common).fit(np.repeat(X, weights.astype(int), axis=0))
        assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-9)
        assert weighted.inertia_ == pytest.approx(
            weighted_sse(X, weighted.cluster_centers_, weighted.labels_, weights), rel=1e-9
        )


def test_directions_can_be_merged():
    # Equal directions, other lengths: one row on the unit sphere. Powers of two keep every digit.
    X = rows("normal", 60, 3, seed=0)
    X = np.concatenate([X, 2.0 * X, 0.25 * X])
    exact = PGKMeans(8, metric="cosine", consolidate="exact", random_state=0).fit(X)
    plain = PGKMeans(8, metric="cosine", random_state=0).fit(X)
    assert exact.inertia_ == pytest.approx(plain.inertia_, rel=1e-9)
    np.testing.assert_array_equal(exact.labels_, exact.predict(X))
    np.testing.assert_array_equal(exact.labels_[:60], exact.labels_[60:120])
