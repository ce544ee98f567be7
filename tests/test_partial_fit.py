"""Clustering a stream of batches: no cluster is ever without a row, among all rows seen so far."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from pgkmeans_sk import PGKMeans
from tests.problems import PATTERNS, Problem, blobs, rows


def split(X, *cuts):
    """Batches that end before the rows ``cuts``, and the rest."""
    return np.split(X, cuts)


def stream(batches, weights=None, **parameters):
    estimator = PGKMeans(**{"random_state": 0, **parameters})
    for number, batch in enumerate(batches):
        estimator.partial_fit(batch, sample_weight=None if weights is None else weights[number])
    return estimator


def assert_all_own_rows(estimator, X, sample_weight=None):
    """As many clusters own a row of positive weight as there can be, and this is what is told."""
    is_sparse = sparse.issparse(X)
    problem = Problem(
        X.toarray() if is_sparse else X,
        estimator.n_clusters,
        sample_weight,
        is_sparse,
        estimator.get_params(),
    )
    labels = estimator.predict(X)[problem.weights > 0]
    assert len(np.unique(labels)) == problem.n_expected
    assert estimator.n_effective_clusters_ == problem.n_expected


# ------------------------------------------------------------------ the promise


@st.composite
def streams(draw):
    """Parameters, rows, weights, and where the batches end; some streams drift."""
    n_rows, n_features = draw(st.integers(20, 100)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    X = rows(draw(st.sampled_from(sorted(PATTERNS))), n_rows, n_features, seed)
    if draw(st.booleans()):
        X += np.linspace(0.0, 50.0, n_rows)[:, np.newaxis] * rng.normal()
    X = X.astype(draw(st.sampled_from([np.float32, np.float64])))
    n_clusters = draw(st.integers(1, 12))
    ends = [n_clusters + draw(st.integers(0, 8))]
    while ends[-1] < n_rows:
        ends.append(ends[-1] + draw(st.sampled_from([1, 1, 2, 7, 20])))
    weights = {
        "none": None,
        "random": rng.uniform(0.1, 5.0, n_rows),
        "some zero": rng.integers(0, 2, n_rows).astype(np.float64),
    }[draw(st.sampled_from(["none", "random", "some zero"]))]
    if weights is not None:
        weights[[0, *(end for end in ends if end < n_rows)]] = 1.0  # no batch without weight
    parameters = {
        "n_clusters": n_clusters,
        "metric": draw(st.sampled_from(["euclidean", "euclidean", "cosine"])),
        "init": draw(st.sampled_from(["partition", "k-means++", "random"])),
    }
    return parameters, X, weights, ends, draw(st.sampled_from([False, False, True]))


@settings(max_examples=400)
@given(problem=streams())
def test_no_cluster_is_without_a_row_seen(problem):
    # scikit-learn#23141: MiniBatchKMeans returns fewer clusters than asked for.
    parameters, X, weights, ends, is_sparse = problem
    estimator = PGKMeans(random_state=0, **parameters)
    container = sparse.csr_matrix if is_sparse else np.asarray
    for start, end in zip([0, *ends], ends, strict=False):
        batch = container(X[start:end])
        batch_weights = None if weights is None else weights[start:end]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.partial_fit(batch, sample_weight=batch_weights)
        assert_all_own_rows(
            estimator, container(X[:end]), None if weights is None else weights[:end]
        )
        np.testing.assert_array_equal(estimator.labels_, estimator.predict(batch))
        assert estimator.cluster_centers_.dtype == X.dtype
        assert np.isfinite(estimator.cluster_centers_).all()
        score = estimator.score(batch, sample_weight=batch_weights)
        assert estimator.inertia_ == -score


def test_points_of_the_issue():
    # The rows of scikit-learn#23141: 9 clusters of 11, 11 of 12, 10 of 13.
    points = np.array(
        [
            [-2636.705, 892.6364, 239.4284],
            [-2676.219, 922.741, 227.3839],
            [-2628.628, 902.6482, 245.5609],
            [-2612.497, 860.9032, 248.924],
            [-2639.552, 993.8482, 211.2253],
            [-2602.453, 958.7801, 211.5786],
            [-2598.118, 1032.398, 177.4023],
            [-2582.155, 972.5088, 203.5048],
            [-2548.377, 803.9934, 279.4388],
            [-2550.095, 979.9586, 222.6467],
            [-2746.966, 1021.456, 188.8456],
            [-2745.181, 984.1931, 199.6674],
            [-2729.113, 973.8251, 201.8876],
            [-2720.765, 1014.262, 205.0213],
            [-2747.317, 1099.313, 146.2305],
            [-2739.32, 1005.173, 200.297],
        ]
    )
    for n_clusters in range(7, 17):
        estimator = stream([points] * 3, n_clusters=n_clusters)
        assert len(np.unique(estimator.labels_)) == n_clusters


def test_one_row_at_a_time():
    X = rows("normal", 300, 2, seed=0)
    for drift in (0.0, 5.0):
        drifting = X + drift * np.linspace(0.0, 1.0, 300)[:, np.newaxis]
        estimator = PGKMeans(12)
        for end in range(12, 301):
            start = 0 if end == 12 else end - 1
            estimator.partial_fit(drifting[start:end])
            assert len(np.unique(estimator.predict(drifting[:end]))) == 12


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_equal_rows_first_others_later():
    # Weighted means of equal rows may differ from the row in the last digit: still one cluster.
    equal = np.full((7, 2), 0.1)
    weights = np.array([0.1, 0.3, 0.7, 0.2, 0.3, 0.3, 0.11])
    estimator = PGKMeans(3).partial_fit(equal, sample_weight=weights)
    assert estimator.n_effective_clusters_ == 1
    for n_distinct, row in enumerate(([[0.2, 0.2]], [[0.3, 0.3]]), start=2):
        estimator.partial_fit(row)
        assert estimator.n_effective_clusters_ == n_distinct
    assert len(np.unique(estimator.predict([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]))) == 3


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_rows_of_no_weight_keep_no_cluster_alive():
    estimator = PGKMeans(3).partial_fit([[-0.9], [-2.3], [-4.4]], sample_weight=[0.0, 0.0, 1.0])
    assert estimator.n_effective_clusters_ == 1
    estimator.partial_fit([[-7.4]]).partial_fit([[-6.9], [-8.0]])
    labels = estimator.predict([[-4.4], [-6.9], [-7.4], [-8.0]])
    assert len(np.unique(labels)) == 3


# ------------------------------------------------------------------ counting


def test_centers_are_means_of_all_rows_won():
    estimator = PGKMeans(2).partial_fit([[0.0], [2.0], [10.0], [12.0]])
    estimator.partial_fit([[4.0], [14.0], [14.0]], sample_weight=[1.0, 2.0, 0.0])
    centers = np.sort(estimator.cluster_centers_, axis=None)
    # (0 + 2 + 4) / 3 and (10 + 12 + 2 * 14) / 4
    np.testing.assert_allclose(centers, [2.0, 12.5])


def test_weights_count_like_rows():
    # scikit-learn#30750: in mini-batches, a weight of 2 and the row twice were not the same.
    X = blobs(120, 2, 4, seed=0)
    weights = np.random.default_rng(0).integers(0, 4, 120)
    weights[:4] = 1
    weighted = stream(split(X, 60), split(weights, 60), n_clusters=4)
    halves = zip(split(X, 60), split(weights, 60), strict=True)
    repeated = stream([np.repeat(x, w, axis=0) for x, w in halves], n_clusters=4)
    np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_, rtol=1e-12)
    ones = stream(split(X, 60), [np.ones(60), np.ones(60)], n_clusters=4)
    plain = stream(split(X, 60), n_clusters=4)
    np.testing.assert_array_equal(ones.cluster_centers_, plain.cluster_centers_)


@pytest.mark.parametrize("n_copies", [1, 50])
def test_goes_on_after_a_fit(n_copies):
    X = np.repeat([[0.0], [10.0]], n_copies, axis=0)
    estimator = PGKMeans(2).fit(X).partial_fit([[1.0], [11.0]])
    share = 1.0 / (n_copies + 1)
    centers = np.sort(estimator.cluster_centers_, axis=None)
    np.testing.assert_allclose(centers, [share, 10.0 + share])


@pytest.mark.parametrize(
    ("X", "weights"),
    [([[0.0], [10.0]], [50.0, 50.0]), ([[0.0], [10.0]] * 51, [50.0, 50.0] + [0.0] * 100)],
)
def test_goes_on_after_a_weighted_fit(X, weights):
    # The weights of the rows of a fit, and not their number, are what later batches add to.
    estimator = PGKMeans(2).fit(X, sample_weight=weights).partial_fit([[1.0], [11.0]])
    centers = np.sort(estimator.cluster_centers_, axis=None)
    np.testing.assert_allclose(centers, [1.0 / 51.0, 10.0 + 1.0 / 51.0])


def test_n_steps():
    X = blobs(60, 2, 3, seed=0)
    estimator = PGKMeans(3)
    for n_steps in (1, 2, 3):
        assert estimator.partial_fit(X).n_steps_ == n_steps
    # A fit begins anew: nothing of the stream is left.
    assert set(vars(estimator.fit(X))) == set(vars(PGKMeans(3).fit(X)))
    assert estimator.partial_fit(X).n_steps_ == 1


def test_attributes_are_those_of_the_batch():
    X = blobs(90, 2, 3, seed=0)
    estimator = stream(split(X, 60), n_clusters=3)
    assert estimator.labels_.shape == (30,)
    assert estimator.n_iter_ == 1
    assert estimator.engine_.startswith("numba-dense-")
    assert estimator.n_features_in_ == 2
    assert estimator.transform(X).shape == (90, 3)


def test_number_of_clusters_is_settled():
    X = blobs(60, 2, 3, seed=0)
    for estimator in (PGKMeans(3).partial_fit(X), PGKMeans(3).fit(X)):
        before = estimator.cluster_centers_.copy()
        with pytest.raises(ValueError, match=r"Got n_clusters=5, but expected 3"):
            estimator.set_params(n_clusters=5).partial_fit(X)
        np.testing.assert_array_equal(estimator.cluster_centers_, before)
        estimator.set_params(n_clusters=3).partial_fit(X)


# ------------------------------------------------------------------ quality


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_rows", [20, 100])
def test_not_far_from_a_fit(dtype, batch_rows):
    for seed in range(5):
        X = blobs(1000, 3, 8, seed, spread=1.5).astype(dtype)
        cuts = range(batch_rows, 1000, batch_rows)
        estimator = stream(split(X, *cuts), n_clusters=8)
        assert -estimator.score(X) <= 1.3 * PGKMeans(8, random_state=0).fit(X).inertia_


def test_same_bytes_again():
    X = rows("Cauchy", 200, 3, seed=0)
    first, second = (
        stream(np.split(X, 10), n_clusters=9, init="random", random_state=7) for _ in range(2)
    )
    assert first.cluster_centers_.tobytes() == second.cluster_centers_.tobytes()
    assert first.labels_.tobytes() == second.labels_.tobytes()


def test_dense_and_sparse_batches_mix():
    X = blobs(120, 3, 4, seed=0)
    dense = stream(split(X, 40, 80), n_clusters=4)
    mixed = stream([sparse.csr_matrix(X[:40]), X[40:80], sparse.csr_array(X[80:])], n_clusters=4)
    np.testing.assert_allclose(mixed.cluster_centers_, dense.cluster_centers_, rtol=1e-12)
    np.testing.assert_array_equal(mixed.labels_, dense.labels_)
