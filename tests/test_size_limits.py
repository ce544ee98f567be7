"""Limits for the weight of each cluster: they hold, at least cost, whatever the rows are like."""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.base import clone

from pgkmeans_sk import PGKMeans, pg_kmeans
from pgkmeans_sk.engines import numba_cpu, numba_limits, open_engine
from pgkmeans_sk.kernels.directions import to_directions
from pgkmeans_sk.results import SizeLimits
from tests import reference
from tests.problems import PATTERNS, blobs, rows, weighted_sse
from tests.test_promises import recorded_inertias

FORMS = {"dense": np.asarray, "csr": sparse.csr_matrix}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
LINE = np.array([[0.0], [1], [2], [3], [10], [11]])


@pytest.fixture(scope="module")
def limiting_engine():
    """What ``engine`` is, for the one engine that can limit sizes."""
    return lambda X, sample_weight=None: open_engine("numba", X, sample_weight)


def assert_within(estimator, X, smallest, largest, weights=None, leeway=0.0):
    """Sizes within the limits, no empty cluster, centres finite, inertia that of the labels."""
    weights = np.ones(X.shape[0]) if weights is None else weights
    n_clusters = estimator.n_clusters
    sizes = np.bincount(estimator.labels_, weights, minlength=n_clusters)
    leeway += 1e-9 * weights.sum() if leeway else 0.0
    assert sizes.min() >= smallest - leeway
    assert sizes.max() <= largest + leeway
    assert (np.bincount(estimator.labels_[weights > 0], minlength=n_clusters) > 0).all()
    assert estimator.n_effective_clusters_ == n_clusters
    assert np.isfinite(estimator.cluster_centers_).all()
    X = to_directions(X) if estimator.metric == "cosine" else X
    rows_ = reference.as_float64(X)
    expected = weighted_sse(rows_, estimator.cluster_centers_, estimator.labels_, weights)
    rounding = 1e-12 * (weights @ (rows_**2).sum(axis=1)) if sparse.issparse(X) else 0.0
    assert estimator.inertia_ == pytest.approx(expected, rel=1e-9, abs=rounding)


# ------------------------------------------------------------------ by hand


@forms
def test_assignment_by_hand(limiting_engine, form):
    opened, centers = limiting_engine(form(LINE)), np.array([[1.0], [10.0]])
    # Nearest: 4 and 2. With 3 each, row 3 goes (49 instead of 4); with at most 5, nobody has to.
    for limits, expected in (
        (SizeLimits(3, 3), [0, 0, 0, 1, 1, 1]),
        (SizeLimits(0, 5), [0, 0, 0, 0, 1, 1]),
        (SizeLimits(1, np.inf), [0, 0, 0, 0, 1, 1]),
    ):
        prices, changed = opened.assign_within(centers, limits, None)
        np.testing.assert_array_equal(opened.labels, expected)
        assert changed
        assert (prices[0] - prices[1] >= 45) == (limits.largest == 3)
        assert not opened.assign_within(centers, limits, prices)[1]  # nothing to gain


@forms
def test_measure_by_hand(limiting_engine, form):
    opened = limiting_engine(form(LINE), np.array([1.0, 1, 2, 1, 0, 1]))
    centers = np.array([[1.0], [10.0]])
    opened.assign_within(centers, SizeLimits(0, 5), None)
    np.testing.assert_array_equal(opened.labels, [0, 0, 0, 0, 1, 1])
    found = opened.measure(centers)
    np.testing.assert_allclose(found.centroids, [[8 / 5], [11]])
    np.testing.assert_allclose(found.sizes, [5, 1])
    np.testing.assert_allclose(found.sq_errors, [1 + 0 + 2 + 4, 1])


def test_rows_are_handed_on_along_a_chain(limiting_engine):
    # Cluster 0 has one row too many, cluster 2 lacks one; 1 passes on what it gets.
    X = np.array([[0.0], [1], [2], [10], [11], [20]])
    opened = limiting_engine(X)
    opened.assign_within(np.array([[0.0], [9], [20]]), SizeLimits(2, 2), None)
    np.testing.assert_array_equal(opened.labels, [0, 0, 1, 1, 2, 2])


def test_fit_by_hand():
    estimator = PGKMeans(2, size_min=3, size_max=3).fit(LINE)
    np.testing.assert_array_equal(estimator.labels_ == estimator.labels_[0], [1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(np.sort(estimator.cluster_centers_[:, 0]), [1, 8])
    assert estimator.inertia_ == pytest.approx(2 + 25 + 4 + 9)
    # Row 3 lies nearer to 1 than to 8: predict knows no limits.
    assert (estimator.predict(LINE) != estimator.labels_).tolist() == [False] * 3 + [True] + [
        False
    ] * 2
    center, label, inertia = pg_kmeans(LINE, 2, size_max=3)
    np.testing.assert_array_equal(label, estimator.labels_)
    np.testing.assert_array_equal(center, estimator.cluster_centers_)
    assert inertia == estimator.inertia_


# ------------------------------------------------------------------ at least cost


@pytest.mark.parametrize("pattern", ["normal", "integer grid", "two far blobs", "duplicates"])
@pytest.mark.parametrize("n_clusters", [2, 7, 15])
@pytest.mark.parametrize("limits", ["balanced", "at most", "at least", "both"])
@forms
def test_assignment_is_optimal(limiting_engine, form, pattern, n_clusters, limits):
    X = rows(pattern, 150, 3, seed=n_clusters)
    X[:100] += 1.0  # crowded on one side
    centers = X[np.random.default_rng(0).choice(150, n_clusters, replace=False)]
    smallest, largest = {
        "balanced": (150 // n_clusters, -(-150 // n_clusters)),
        "at most": (1, 200 // n_clusters),
        "at least": (120 // n_clusters, np.inf),
        "both": (100 // n_clusters, 170 // n_clusters + 1),
    }[limits]
    opened = limiting_engine(form(X))
    opened.assign_within(centers, SizeLimits(smallest, largest), None)
    found = opened.measure(centers)
    assert smallest <= found.sizes.min()
    assert found.sizes.max() <= largest
    expected = reference.least_inertia_within(X, centers, smallest, largest)
    # From one side: the linear program itself is off where far blobs make costs of 10^8.
    assert found.inertia <= expected * (1.0 + 1e-6) + 1e-9


def test_assignment_of_many_rows_is_optimal_by_its_prices(limiting_engine):
    """Too many for a linear program; but prices prove it (complementary slackness)."""
    X = blobs(20_000, 4, 12, seed=3)
    centers = X[:12] + 2.0
    opened = limiting_engine(X)
    prices, _ = opened.assign_within(centers, SizeLimits(1500, 1800), None)
    costs = reference.sq_distances(X, centers) + prices
    own = costs[np.arange(len(X)), opened.labels]
    assert (own <= costs.min(axis=1) + 1e-8 * np.abs(costs).max()).all()
    sizes = np.bincount(opened.labels, minlength=12)
    assert sizes.min() >= 1500
    assert sizes.max() <= 1800
    assert (sizes[prices > 0] == 1800).all()
    assert (sizes[prices < 0] == 1500).all()


def forty_blobs(n_rows, seed):
    """Rows in blobs of very different sizes, so far apart that no row is near to another one."""
    rng = np.random.default_rng(seed)
    means, shares = rng.normal(0.0, 4.0, size=(40, 8)), rng.dirichlet(np.ones(40))
    return rng.standard_normal((n_rows, 8)) + means[rng.choice(40, n_rows, p=shares)]


def assert_optimal_by_prices(costs, labels, prices, smallest, largest):
    """Complementary slackness, which proves that no assignment within the limits costs less."""
    sizes = np.bincount(labels, minlength=len(prices))
    assert smallest <= sizes.min()
    assert sizes.max() <= largest
    rounding = 1e-11 * (costs.max() + np.abs(prices).max())
    priced = costs + prices
    assert (priced[np.arange(len(labels)), labels] <= priced.min(axis=1) + rounding).all()
    assert (sizes[prices > rounding] == largest).all()
    assert (sizes[prices < -rounding] == smallest).all()


@pytest.mark.parametrize("n_clusters", [25, 50, 100])
@pytest.mark.parametrize("seed", [0, 1])
@forms
def test_rows_leave_far_blobs_at_least_cost(limiting_engine, monkeypatch, form, n_clusters, seed):
    """More clusters in a blob than rows of the size allowed, and far to go for the others."""
    caught = numba_limits.kernels.enforce_limits

    def catch_nothing(*arguments):
        labels, before = arguments[5], arguments[5].copy()
        caught(*arguments)
        np.testing.assert_array_equal(labels, before)

    monkeypatch.setattr(numba_limits.kernels, "enforce_limits", catch_nothing)
    share = 20
    X = forty_blobs(share * n_clusters, seed)
    centers = PGKMeans(n_clusters, random_state=0, max_iter=5).fit(X).cluster_centers_
    costs = reference.sq_distances(X, centers)
    opened = limiting_engine(form(X))
    for smallest, largest in ((share, share), (0.8 * share, 1.3 * share), (0, 1.1 * share)):
        limits = SizeLimits(smallest, largest)
        prices, _ = opened.assign_within(centers, limits, None)
        assert_optimal_by_prices(costs, opened.labels, prices, max(smallest, 1), largest)
        if smallest == largest:
            found = costs[np.arange(len(X)), opened.labels].sum()
            matched, slots = linear_sum_assignment(np.repeat(costs, share, axis=1))
            assert found <= costs[matched, slots // share].sum() * (1.0 + 1e-9)
        # From prices that are off: the centres have moved since.
        moved = np.ascontiguousarray(centers + 0.1 * np.sin(np.arange(centers.size)).reshape(-1, 8))
        prices, _ = opened.assign_within(moved, limits, prices)
        priced = reference.sq_distances(X, moved)
        assert_optimal_by_prices(priced, opened.labels, prices, max(smallest, 1), largest)


def test_rows_leave_far_blobs_on_every_level(limiting_engine):
    """Enough rows that prices are found from fewer of them first."""
    X = forty_blobs(12_000, 3)
    centers = PGKMeans(60, random_state=0, max_iter=3).fit(X).cluster_centers_
    opened = limiting_engine(X)
    for smallest, largest in ((200, 200), (150, 270)):
        prices, _ = opened.assign_within(centers, SizeLimits(smallest, largest), None)
        costs = reference.sq_distances(X, centers)
        assert_optimal_by_prices(costs, opened.labels, prices, smallest, largest)


# ------------------------------------------------------------------ limits hold

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def limited_problems(draw):
    """Rows, weights, the limits as fractions of the mean weight of a cluster."""
    n_rows, n_features = draw(st.integers(1, 60)), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    X = rows(draw(st.sampled_from(sorted(PATTERNS))), n_rows, n_features, draw(SEEDS), dtype)
    rng = np.random.default_rng(draw(SEEDS))
    weights = {
        "none": None,
        "equal": np.full(n_rows, 0.3),
        "zero or one": np.append(rng.integers(0, 2, n_rows - 1), 1).astype(np.float64),
        "random": rng.uniform(0.1, 5.0, n_rows),
        "far apart": 10.0 ** rng.integers(-8, 9, n_rows),
    }[draw(st.sampled_from(["none", "none", "equal", "zero or one", "random", "far apart"]))]
    present = np.ones(n_rows) if weights is None else weights[weights > 0]
    n_clusters = draw(st.sampled_from([1, 2, len(present)]) | st.integers(1, len(present)))
    n_clusters = min(n_clusters, len(present))
    share = present.sum() / n_clusters
    smallest = draw(st.sampled_from([None, 0.3, 0.8, 1.0]))
    largest = draw(st.sampled_from([None, 1.0, 1.1, 1.6]))
    unit = present.max()
    if unit == present.min():  # whole rows
        share = len(present) / n_clusters
        smallest = None if smallest is None else np.floor(smallest * share) * unit
        largest = None if largest is None else np.ceil(largest * share) * unit
    else:
        smallest = None if smallest is None else smallest * share
        largest = None if largest is None else max(largest * share, unit)
    if not smallest and largest is None:
        largest = present.sum()
    form = draw(st.sampled_from(list(FORMS.values())))
    parameters = {
        "metric": draw(st.sampled_from(["euclidean", "euclidean", "cosine"])),
        "algorithm": draw(st.sampled_from(["auto", "lloyd"])),
        "max_iter": draw(st.sampled_from([1, 3, 40])),
        "random_state": 0,
    }
    return form(X), weights, n_clusters, smallest, largest, parameters


@settings(max_examples=150)
@given(problem=limited_problems())
def test_limits_always_hold(problem):
    X, weights, n_clusters, smallest, largest, parameters = problem
    estimator = PGKMeans(n_clusters, size_min=smallest, size_max=largest, **parameters)
    with recorded_inertias() as starts:
        estimator.fit(X, sample_weight=weights)
    present = np.ones(1) if weights is None else weights[weights > 0]
    exact = present.min() == present.max()
    # Up to the rounding of a sum, or up to a row.
    leeway = 1e-9 * present.max() if exact else present.max()
    limits = smallest or 0, np.inf if largest is None else largest
    assert_within(estimator, X, *limits, weights, leeway)
    (inertias,) = starts
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] == estimator.inertia_
    assert len(inertias) == estimator.n_iter_ <= estimator.max_iter


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_balanced_clusters_of_any_rows(pattern, dtype):
    X = rows(pattern, 120, 3, 0, dtype)
    for n_clusters in (1, 8, 40, 120):
        estimator = PGKMeans(n_clusters, size_min=120 // n_clusters, size_max=120 // n_clusters)
        assert_within(estimator.fit(X), X, 120 // n_clusters, 120 // n_clusters)
        assert estimator.cluster_centers_.dtype == dtype


def test_more_equal_rows_than_candidates():
    # Each row knows 8 clusters; here 500 cost the same, and then all but one.
    X = np.zeros((3000, 2))
    for outlier in (0.0, 1e6):
        X[7] = outlier
        assert_within(PGKMeans(500, size_min=6, size_max=6).fit(X), X, 6, 6)


def test_far_blobs_exchange_as_many_rows_as_needed():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 3))
    X[:2500] += 1e4
    centers = np.concatenate([X[:10], X[-10:]])
    estimator = PGKMeans(20, size_min=150, size_max=150, init=centers).fit(X)
    assert_within(estimator, X, 150, 150)


def test_rows_of_weight_zero_go_to_the_nearest_centre():
    X, weights = blobs(400, 3, 4, seed=1), np.ones(400)
    weights[::3] = 0.0
    estimator = PGKMeans(7, size_min=38, size_max=39).fit(X, sample_weight=weights)
    assert_within(estimator, X, 38, 39, weights)
    # Centres may have moved on since labels were found, hence most of them.
    same = estimator.labels_[::3] == estimator.predict(X)[::3]
    assert same.mean() > 0.9


def test_limits_that_do_not_bind_change_nothing():
    X = blobs(600, 3, 6, seed=0, spread=0.3)
    free = PGKMeans(6, random_state=0).fit(X)
    limited = PGKMeans(6, random_state=0, size_min=50, size_max=150).fit(X)
    np.testing.assert_array_equal(limited.labels_, limited.predict(X))
    assert limited.inertia_ == pytest.approx(free.inertia_, rel=1e-12)


def test_equal_weights_count_like_none():
    X = blobs(300, 3, 5, seed=0)
    plain = PGKMeans(5, size_max=61, random_state=0).fit(X)
    weighted = PGKMeans(5, size_max=61 * 0.1, random_state=0).fit(
        X, sample_weight=np.full(300, 0.1)
    )
    np.testing.assert_array_equal(plain.labels_, weighted.labels_)


@pytest.mark.parametrize("weighted", [False, True])
def test_same_bits_for_any_number_of_threads(monkeypatch, weighted):
    X = blobs(30_000, 5, 7, seed=0).astype(np.float32)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, len(X)) if weighted else None
    total = len(X) if weights is None else weights.sum()
    found = []
    for n_threads in (1, 3):
        monkeypatch.setattr(numba_cpu, "effective_n_threads", lambda n=n_threads: n)
        estimator = PGKMeans(
            20, size_min=0.9 * total / 20, size_max=1.1 * total / 20, random_state=0, max_iter=4
        ).fit(X, sample_weight=weights)
        found.append((estimator.labels_.tobytes(), estimator.cluster_centers_.tobytes()))
    assert found[0] == found[1]


# ------------------------------------------------------------------ the estimator


def test_conventions():
    X = blobs(100, 2, 4, seed=0)
    estimator = PGKMeans(4, size_min=20, size_max=30.0)
    assert clone(estimator).get_params() == estimator.get_params()
    assert estimator.get_params()["size_max"] == 30.0
    np.testing.assert_array_equal(estimator.fit_predict(X), estimator.labels_)
    loaded = pickle.loads(pickle.dumps(estimator))
    assert loaded.get_params() == estimator.get_params()
    np.testing.assert_array_equal(loaded.predict(X), estimator.predict(X))
    assert PGKMeans().size_min is PGKMeans().size_max is None


def test_no_warning_with_fewer_distinct_rows_than_clusters():
    X = np.repeat([[0.0], [1.0]], 6, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator = PGKMeans(4, size_max=3).fit(X)
    assert_within(estimator, X, 3, 3)
    assert estimator.inertia_ == 0.0


TEN = np.arange(20.0).reshape(10, 2)
RISING = np.arange(1.0, 11.0)
WRONG = {
    "size_min": ({"size_min": 4}, None, r"size_min=4, .* at most n_samples / n_clusters = 10 / 3"),
    "whole rows": ({"size_min": 3.1}, None, r"size_min=3.1, but expected at most"),
    "size_max": ({"size_max": 3}, None, r"size_max=3, .* at least n_samples / n_clusters = 10 / 3"),
    "crossed": ({"size_min": 3, "size_max": 2}, None, "size_min=3, .* at most size_max=2"),
    "negative": ({"size_min": -1}, None, "size_min=-1, but expected a finite number >= 0"),
    "zero": ({"size_max": 0}, None, "size_max=0, but expected a finite number > 0"),
    "infinite": ({"size_max": np.inf}, None, "size_max=inf, but expected a finite number"),
    "not a number": ({"size_max": "4"}, None, "size_max='4', but expected a finite number"),
    "heavy row": (
        {"size_max": 8},
        RISING,
        "size_max=8, .* at least 10, the weight of the",
    ),
    "weights": ({"size_min": 20}, RISING, "size_min=20, .* total weight / n_clusters = 55 / 3"),
    "few rows": ({"size_max": 8}, RISING < 3, "Got 2 rows of positive weight"),
    "consolidate": ({"size_max": 8, "consolidate": "exact"}, None, "Got consolidate='exact' with"),
}


@pytest.mark.parametrize("case", WRONG)
def test_limits_that_cannot_be_obeyed(case):
    parameters, weights, message = WRONG[case]
    estimator = PGKMeans(3, **parameters)
    with pytest.raises(ValueError, match=message):
        estimator.fit(TEN, sample_weight=weights)
    assert not hasattr(estimator, "labels_")


@pytest.mark.parametrize("name", ["size_min", "size_max"])
def test_streams_have_no_limits(name):
    with pytest.raises(ValueError, match=f"Got {name}=4, but expected None: partial_fit cannot"):
        PGKMeans(2, **{name: 4}).partial_fit(TEN)


def test_a_callback_stops_the_iterations():
    callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 brought callbacks")
    assert callback
    from tests.test_callbacks import Recorder

    X = rows("normal", 3000, 3, seed=0)

    class Stop(Recorder):
        def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
            return context.task_name == "iteration" and context.task_id == 1

    estimator = PGKMeans(9, size_max=340, tol=0.0).set_callbacks(Stop()).fit(X)
    assert estimator.n_iter_ == 2
    assert_within(estimator, X, 1, 340)
