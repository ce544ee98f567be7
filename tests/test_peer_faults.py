"""What users of other k-means ran into, one test for each report, with their own data if given.

Reports on single topics are where the topic is: batches in test_partial_fit.py, threads in
test_concurrency.py, dtypes in test_inputs.py, callbacks in test_callbacks.py.
"""

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from pgkmeans_sk import PGKMeans, RepairRecord
from tests.problems import blobs, n_distinct, rows, same_partition, weighted_sse

ALGORITHMS = ["auto", "lloyd", "elkan"]
CONTAINERS = [np.asarray, sparse.csr_matrix]


# ------------------------------------------------------------------ fewer clusters than asked for

# scikit-learn#10059: 17 points, 9 of them distinct.
FEW_DISTINCT = np.array(
    [
        *[[1086, 348], [1087, 347], [1190, 244], [1190, 244], [1086, 348], [1185, 249]],
        *[[1193, 241], [1185, 249], [1087, 347], [1188, 247], [1187, 233], [26, 111]],
        *[[26, 111], [26, 110], [26, 110], [26, 110], [26, 110]],
    ]
)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("init", ["partition", "partition-ball", "k-means++", "random"])
def test_fewer_distinct_rows_than_clusters_is_said(init, container):
    X = container(FEW_DISTINCT)
    for n_clusters in (10, 17):
        # scikit-learn PR#10099: at first, nothing was said.
        with pytest.warns(ConvergenceWarning) as warned:
            estimator = PGKMeans(n_clusters, init=init, random_state=0).fit(X)
        (warning,) = warned
        expected = f"distinct clusters (9) found smaller than n_clusters ({n_clusters})"
        assert expected in str(warning.message)
        assert warning.filename == __file__  # where the user called
        assert estimator.n_effective_clusters_ == 9
        assert set(estimator.labels_) == set(range(9))
        assert estimator.inertia_ == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(
            estimator.cluster_centers_[9:],
            np.tile(estimator.cluster_centers_[0], (n_clusters - 9, 1)),
        )
        assert estimator.transform(X).shape == (17, n_clusters)
    assert len(set(PGKMeans(9, init=init, random_state=0).fit(X).labels_)) == 9


def test_warning_of_a_batch_points_to_the_user():
    with pytest.warns(ConvergenceWarning) as warned:
        PGKMeans(10).partial_fit(FEW_DISTINCT)
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_warning_of_given_centers_points_to_the_user(method):
    estimator = PGKMeans(2, init=FEW_DISTINCT[:2], n_init=3)
    with pytest.warns(RuntimeWarning, match="only one init") as warned:
        getattr(estimator, method)(FEW_DISTINCT)
    assert [warning.filename for warning in warned] == [__file__]


def test_thousands_of_clusters_on_a_square():
    # scipy#13242: 1 998 or 1 999 of 2 000 clusters; scipy#24002: now and then, a warning in tests.
    X = np.random.default_rng(0).uniform(-1.0, 1.0, (10_000, 2))
    for init in ("partition", "random"):
        estimator = PGKMeans(2000, init=init, n_init=1, max_iter=5, random_state=0).fit(X)
        assert len(np.unique(estimator.labels_)) == 2000


def test_a_quarter_as_many_clusters_as_rows():
    # fast_pytorch_kmeans#24: 39 to 50 labels of 50.
    for seed in range(30):
        X = np.random.default_rng(seed).normal(size=(200, 3)).astype(np.float32)
        for init in ("partition", "random"):
            estimator = PGKMeans(50, init=init, n_init=1, random_state=seed).fit(X)
            assert len(np.unique(estimator.labels_)) == 50


def test_pruned_weights():
    # kmeans_pytorch#41, #3: an empty cluster is the mean of nothing, NaN, on weights of a ResNet.
    rng = np.random.default_rng(0)
    weights = rng.normal(scale=0.02, size=(64, 64, 9)).astype(np.float32)
    weights[rng.random((64, 64)) < 0.9] = 0.0
    blocks = weights.reshape(-1, 9)
    for n_clusters in (16, 256, n_distinct(blocks)):
        estimator = PGKMeans(n_clusters, max_iter=20).fit(blocks)
        assert np.isfinite(estimator.cluster_centers_).all()
        assert len(np.unique(estimator.labels_)) == n_clusters


def test_depthwise_convolution():
    # kill-the-bits#7: few blocks, badly balanced; a million tries left clusters empty.
    rng = np.random.default_rng(0)
    blocks = rng.normal(size=(96, 9)) * np.exp(2.0 * rng.normal(size=(96, 1)))
    blocks[:40] = 1e-3 * np.round(blocks[:40])
    n_blocks = n_distinct(blocks)
    estimator = PGKMeans(n_blocks).fit(blocks)
    assert len(np.unique(estimator.labels_)) == n_blocks
    assert len(estimator.repair_log_) <= 2
    with pytest.warns(ConvergenceWarning, match=rf"clusters \({n_blocks}\) found smaller"):
        estimator = PGKMeans(96).fit(blocks)
    assert estimator.n_effective_clusters_ == n_blocks


def test_two_distinct_points_are_two_clusters():
    # faiss#436: one cluster, after 512 iterations.
    two = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32)
    X = np.concatenate([np.repeat(two[:1], 248, axis=0), two[1:]])
    estimator = PGKMeans(2).fit(X)
    assert sorted(np.bincount(estimator.labels_)) == [1, 248]
    assert estimator.inertia_ == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_many_clusters_as_rows(dtype):
    # faiss#842: an IndexError; its rows were all zeros.
    for seed in range(5):
        X = rows("Cauchy", 40, 3, seed, dtype)
        for init in ("partition", "random", X[::-1], X[np.zeros(40, dtype=int)]):
            estimator = PGKMeans(40, init=init, random_state=0).fit(X)
            assert np.bincount(estimator.labels_).tolist() == [1] * 40
            assert estimator.inertia_ == 0.0
    with pytest.warns(ConvergenceWarning, match=r"\(1\) found smaller than n_clusters \(5\)"):
        PGKMeans(5).fit(np.zeros((5, 10), dtype=dtype))


# ------------------------------------------------------------------ empty clusters on the way


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_labels_do_not_hop_for_ever(algorithm, container):
    # scikit-learn#28055: relocation swapped two clusters in each of 10 000 iterations.
    X = [[100, 100], [100, 102], [106, 100], [107, 101], [107, 101], [108, 100]]
    init = np.array([[98, 104], [103, 100], [109, 102], [110, 100], [111, 100], [112, 100]])
    with pytest.warns(ConvergenceWarning, match=r"\(5\) found smaller than n_clusters \(6\)"):
        estimator = PGKMeans(6, init=init, algorithm=algorithm, max_iter=10_000).fit(container(X))
    assert estimator.n_iter_ <= 3
    assert estimator.inertia_ == pytest.approx(0.0, abs=1e-9)
    assert estimator.n_effective_clusters_ == 5


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_labels_are_those_of_the_final_centers(algorithm, container):
    # scikit-learn#34074: labels [2, 2, 0] after a relocation, where predict says [2, 1, 0].
    X = container([[1.0], [2.0], [3.0]])
    init = np.array([[4.0], [0.0], [1.0]])
    estimator = PGKMeans(3, init=init, max_iter=10, tol=0, algorithm=algorithm).fit(X)
    np.testing.assert_array_equal(estimator.labels_, estimator.predict(X))
    assert sorted(estimator.labels_) == [0, 1, 2]
    assert estimator.inertia_ == -estimator.score(X) == 0.0


def test_labels_are_not_one_step_behind():
    # flash-kmeans, dask-ml: after the last iteration, labels or inertia of the step before.
    X = rows("normal", 500, 2, seed=0)
    for max_iter in range(1, 8):
        for algorithm in ALGORITHMS:
            estimator = PGKMeans(9, init=X[:9], max_iter=max_iter, algorithm=algorithm, tol=0).fit(
                X
            )
            centers = estimator.cluster_centers_
            nearest = ((X[:, np.newaxis] - centers) ** 2).sum(axis=2).argmin(axis=1)
            np.testing.assert_array_equal(estimator.labels_, nearest)
            assert estimator.inertia_ == pytest.approx(weighted_sse(X, centers, nearest), rel=1e-12)


def test_repairs_are_on_record():
    # faiss#1928: nobody could see when and why a cluster was split.
    X = blobs(200, 2, 4, seed=0)
    init = np.concatenate([X[:2], np.full((4, 2), 500.0)])
    log = PGKMeans(6, init=init).fit(X).repair_log_
    first = log[0]
    assert isinstance(first, RepairRecord)
    assert (first.iteration, first.n_empty) == (0, 4)
    # Both clusters with rows were divided: four blobs for two centres.
    assert sorted(first.donors) == [0, 1]
    assert first.inertia_after < 0.2 * first.inertia_before
    assert PGKMeans(4).fit(X).repair_log_ == []


def test_one_pass_fills_all_empty_clusters():
    # The usual repair fills one cluster a pass, at the price of a pass over all rows for each.
    X = rows("normal", 3000, 4, seed=0)
    init = np.repeat(X[:1], 500, axis=0)
    estimator = PGKMeans(500, init=init, max_iter=10).fit(X)
    assert estimator.repair_log_[0].n_empty == 499
    assert len([repair for repair in estimator.repair_log_ if repair.iteration == 0]) <= 3
    assert len(np.unique(estimator.labels_)) == 500


# ------------------------------------------------------------------ weights


def test_start_knows_the_weights():
    # scikit-learn#25527: the start took a row of almost no weight, and Lloyd could not mend it.
    X = np.array([[1.0], [1.0], [5.0], [5.0], [100.0], [100.0]])
    weights = 10.0 ** np.array([8, 8, 8, 8, -8, -8])
    for init in ("partition", "partition-ball", "k-means++"):
        for seed in range(5):
            estimator = PGKMeans(2, init=init, random_state=seed).fit(X, sample_weight=weights)
            np.testing.assert_allclose(np.sort(estimator.cluster_centers_[:, 0]), [1.0, 5.0])
    np.testing.assert_allclose(np.sort(PGKMeans(2).fit(X).cluster_centers_[:, 0]), [3.0, 100.0])


def test_weights_are_not_scaled_in_place():
    weights = np.array([0.5, 0.2, 0.3])  # scikit-learn#17203
    PGKMeans(2).fit([[1], [2], [4]], sample_weight=weights)
    assert weights.tolist() == [0.5, 0.2, 0.3]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("algorithm", ["auto", "lloyd"])
def test_weight_two_is_the_row_twice(algorithm, container):
    for seed in range(5):
        X = rows("normal", 150, 3, seed)
        weights = np.random.default_rng(seed).integers(0, 4, 150)
        weighted = PGKMeans(10, algorithm=algorithm).fit(container(X), sample_weight=weights)
        repeated = PGKMeans(10, algorithm=algorithm).fit(container(np.repeat(X, weights, axis=0)))
        assert weighted.inertia_ == pytest.approx(repeated.inertia_, rel=1e-9)
        labels = np.repeat(weighted.labels_, weights)
        assert same_partition(labels, repeated.labels_)
        # The last iteration may find nothing but rounding to gain, or not even that.
    assert abs(weighted.n_iter_ - repeated.n_iter_) <= 1


@pytest.mark.parametrize("init", ["partition", "partition-ball", "k-means++", "random"])
def test_ones_are_no_weights(init):
    X = rows("Cauchy", 200, 3, seed=0)
    common = {"n_clusters": 9, "init": init, "random_state": 0}
    none = PGKMeans(**common).fit(X)
    ones = PGKMeans(**common).fit(X, sample_weight=np.ones(200))
    np.testing.assert_array_equal(ones.cluster_centers_, none.cluster_centers_)
    np.testing.assert_array_equal(ones.labels_, none.labels_)
    assert ones.inertia_ == none.inertia_


def test_one_number_is_the_weight_of_all_rows():
    X = rows("Cauchy", 200, 3, seed=0)
    seven, one = PGKMeans(9).fit(X, sample_weight=7), PGKMeans(9).fit(X)
    assert seven.inertia_ == pytest.approx(7.0 * one.inertia_, rel=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_unit_of_the_weights_does_not_matter(factor):
    # cuvs#1940: convergence was judged without them.
    X = rows("normal", 300, 3, seed=0)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 300)
    for algorithm in ("auto", "lloyd"):
        plain = PGKMeans(10, algorithm=algorithm).fit(X, sample_weight=weights)
        scaled = PGKMeans(10, algorithm=algorithm).fit(X, sample_weight=factor * weights)
        np.testing.assert_array_equal(plain.labels_, scaled.labels_)
        assert plain.n_iter_ == scaled.n_iter_
        assert scaled.inertia_ == pytest.approx(factor * plain.inertia_, rel=1e-9)
