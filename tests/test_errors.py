"""What is wrong is said, by value and by what was expected, before anything is changed."""

import re

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import NotFittedError

from pgkmeans_sk import PGKMeans, pg_kmeans
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from tests.problems import blobs, same_partition

X = blobs(40, 3, 4, seed=0)
ONES = np.ones(40)


def with_value(value, dtype=np.float64):
    rows = X.astype(dtype)
    rows[3, 1] = value
    return rows


def state_of(estimator):
    """All there is, arrays as bytes."""
    return {
        name: (value.dtype, value.shape, value.tobytes())
        if isinstance(value, np.ndarray)
        else value
        for name, value in vars(estimator).items()
    }


def estimators(**parameters):
    """A new estimator and a fitted one; ``parameters`` are set after the fit."""
    streamed = PGKMeans(4).partial_fit(X)
    return [estimator.set_params(**parameters) for estimator in (PGKMeans(4), fitted(), streamed)]


def fitted():
    return PGKMeans(4).fit(X)


def assert_refused(estimator, method, error, message, *args, **kwargs):
    """``method`` raises, and nothing about the estimator is other than before."""
    before = state_of(estimator)
    with pytest.raises(error, match=message) as raised:
        getattr(estimator, method)(*args, **kwargs)
    assert type(raised.value).__module__.split(".")[0] in ("builtins", "pgkmeans_sk", "sklearn")
    assert state_of(estimator) == before


# ------------------------------------------------------------------ rows

WRONG_ROWS = {
    "NaN": (with_value(np.nan), "Input X contains NaN"),
    "infinity": (with_value(np.inf), "Input X contains infinity"),
    "minus infinity": (with_value(-np.inf, np.float32), "Input X contains infinity"),
    "NaN in float16": (with_value(np.nan, np.float16), "Input X contains NaN"),
    "NaN in CSR": (sparse.csr_matrix(with_value(np.nan)), "Input X contains NaN"),
    "one-dimensional": (X[:, 0], "Expected 2D array, got 1D array instead"),
    "a number": (3.0, "Expected 2D array, got scalar array instead"),
    "three-dimensional": (X[np.newaxis], "Found array with dim 3"),
    "no rows": (X[:0], r"Found array with 0 sample\(s\) \(shape=\(0, 3\)\)"),
    "no columns": (X[:, :0], r"Found array with 0 feature\(s\) \(shape=\(40, 0\)\)"),
    "complex": (X + 1j, "Complex data not supported"),
    "words": (np.array([["a", "b", "c"]] * 40), "could not convert string to float"),
    # Their squares are beyond the largest float64.
    "too large": (with_value(1e200), r"value of size 1e\+200.*expected at most 1e\+150"),
    "too large, negative": (with_value(-2e160), r"value of size 2e\+160.*at most 1e\+150"),
    "too large in CSR": (sparse.csr_matrix(with_value(1e200)), r"value of size 1e\+200"),
}


@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_predict", "fit_transform"])
@pytest.mark.parametrize("case", WRONG_ROWS)
def test_wrong_rows(case, method):
    rows, message = WRONG_ROWS[case]
    for estimator in estimators():
        assert_refused(estimator, method, ValueError, message, rows)


@pytest.mark.parametrize("method", ["predict", "transform", "score"])
@pytest.mark.parametrize("case", WRONG_ROWS)
def test_wrong_rows_for_a_fitted_estimator(case, method):
    rows, message = WRONG_ROWS[case]
    assert_refused(fitted(), method, ValueError, message, rows)


def test_large_rows_that_can_be_clustered():
    for dtype, largest in ((np.float32, 1e36), (np.float64, 1e150)):
        rows = (X / np.abs(X).max() * largest).astype(dtype)
        estimator = PGKMeans(4).fit(rows)
        assert same_partition(estimator.labels_, np.arange(40) % 4)
        assert np.isfinite(estimator.inertia_)
        assert np.isfinite(estimator.cluster_centers_).all()
        assert np.isfinite(estimator.transform(rows)).all()


def test_centers_too_far_away_are_repaired():
    for value in (1e160, 1e200):
        estimator = PGKMeans(4, init=np.full((4, 3), value)).fit(X)
        assert same_partition(estimator.labels_, np.arange(40) % 4)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_too_few_rows(method):
    for rows in (X[:3], sparse.csr_matrix(X[:3])):
        message = "n_samples=3 should be >= n_clusters=4"
        assert_refused(PGKMeans(4), method, ValueError, message, rows)
    assert_refused(fitted(), "fit", ValueError, "n_samples=3 should be >= n_clusters=4", X[:3])
    fitted().partial_fit(X[:3])  # only the first batch is one to begin with


@pytest.mark.parametrize("method", ["predict", "transform", "score", "partial_fit"])
def test_other_number_of_columns(method):
    for estimator in estimators()[1:]:
        message = "X has 2 features, but PGKMeans is expecting 3 features as input"
        assert_refused(estimator, method, ValueError, message, X[:, :2])


@pytest.mark.parametrize("method", ["predict", "transform", "score"])
def test_unfitted(method):
    message = "This PGKMeans instance is not fitted yet"
    assert_refused(PGKMeans(4), method, NotFittedError, message, X)
    with pytest.raises(NotFittedError, match=message):
        PGKMeans(4).get_feature_names_out()


# ------------------------------------------------------------------ weights

WRONG_WEIGHTS = {
    "negative": (np.append(ONES[1:], -0.5), "got -0.5, but expected weights >= 0"),
    "all zero": (np.zeros(40), "must contain at least one non-zero number"),
    "NaN": (np.append(ONES[1:], np.nan), "sample_weight contains NaN"),
    "infinity": (np.append(ONES[1:], np.inf), "sample_weight contains infinity"),
    "sum beyond float64": (np.full(40, 1e308), "sum inf, but expected a finite sum"),
    "too few": (np.ones(39), re.escape("sample_weight.shape == (39,), expected (40,)!")),
    "two-dimensional": (np.ones((40, 2)), "must be 1D array or scalar"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_predict", "fit_transform"])
@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_wrong_weights(case, method):
    weights, message = WRONG_WEIGHTS[case]
    for estimator in estimators():
        assert_refused(estimator, method, ValueError, message, X, sample_weight=weights)
    assert_refused(fitted(), "score", ValueError, message, X, sample_weight=weights)


# ------------------------------------------------------------------ parameters

WHOLE_NUMBERS = [0, -1, 2.0, 2.5, True, np.True_, "4", None, np.nan, [4]]
WRONG_PARAMETERS = [
    *[("n_clusters", value, "an int >= 1") for value in WHOLE_NUMBERS],
    *[("max_iter", value, "an int >= 1") for value in WHOLE_NUMBERS],
    *[("n_init", value, "an int >= 1") for value in (0, -1, 2.0, True, "many", None)],
    *[
        ("tol", value, "a finite number >= 0")
        for value in (-1e-9, np.nan, np.inf, "0", None, True, 1j)
    ],
    *[
        ("algorithm", value, "one of 'auto', 'lloyd', 'elkan'")
        for value in ("full", "", None, 1, ["lloyd"])
    ],
    *[("metric", value, "one of 'euclidean', 'cosine'") for value in ("l2", None, 2, len)],
    *[("engine", value, "one of 'auto', 'numba'") for value in ("cuda", None, 0)],
    *[("consolidate", value, "one of 'exact', 'auto'") for value in ("all", "")],
    *[("consolidate", value, "a finite number > 0") for value in (0, -1.0, np.nan, True, [1.0])],
    *[("init", value, "one of 'partition'") for value in ("kmeans++", "")],
]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    WRONG_PARAMETERS,
    ids=[f"{n}={v!r}" for n, v, _ in WRONG_PARAMETERS],
)
def test_wrong_parameter(name, value, expected):
    message = re.escape(f"Got {name}={value!r}, but expected {expected}")
    for estimator in estimators(**{name: value}):
        for method in ("fit", "partial_fit"):
            assert_refused(estimator, method, ValueError, message, X)
            assert_refused(estimator, method, TypeError, message, X)  # it is both
    parameters = {"n_clusters": 4, name: value}
    with pytest.raises(ValueError, match=message):
        pg_kmeans(X, **parameters)


def test_wrong_random_state():
    for estimator in estimators(random_state="seed", init="random"):
        assert_refused(estimator, "fit", ValueError, "'seed' cannot be used to seed", X)


def test_parameters_are_not_looked_at_before_fit():
    estimator = PGKMeans("all wrong", init=0, n_init=None, max_iter=[], tol=None, metric=3)
    assert estimator.get_params()["n_clusters"] == "all wrong"


def test_numpy_numbers_are_numbers():
    estimator = PGKMeans(np.int16(4), n_init=np.uint8(2), max_iter=np.int64(5), tol=np.float32(0.1))
    assert len(np.unique(estimator.fit(X).labels_)) == 4
    PGKMeans(4, tol=0, consolidate=np.float32(0.5)).fit(X)


WRONG_CENTERS = {
    "too few": (X[:3], r"initial centers \(3, 3\) does not match the number of clusters 4"),
    "too narrow": (X[:4, :2], r"centers \(4, 2\) does not match the number of features.* 3"),
    "too wide": (np.ones((4, 5)), r"centers \(4, 5\) does not match the number of features.* 3"),
    "NaN": (with_value(np.nan)[:4], "contains NaN"),
    "infinity": (with_value(np.inf)[:4], "contains infinity"),
    "one-dimensional": (X[0], "Expected 2D array, got 1D array"),
}


@pytest.mark.parametrize("case", WRONG_CENTERS)
@pytest.mark.parametrize("form", ["array", "callable"])
def test_wrong_centers(case, form):
    centers, message = WRONG_CENTERS[case]
    init = centers if form == "array" else lambda X, n_clusters, random_state: centers
    for estimator in estimators(init=init):
        assert_refused(estimator, "fit", ValueError, message, X)
    assert_refused(PGKMeans(4, init=init), "partial_fit", ValueError, message, X)


def test_an_error_in_the_users_callable_comes_through():
    def init(X, n_clusters, random_state):
        raise ZeroDivisionError("mine")

    for estimator in estimators(init=init):
        assert_refused(estimator, "fit", ZeroDivisionError, "mine", X)


# ------------------------------------------------------------------ interruptions


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("n_passes", [1, 2])
def test_interrupted(method, error, n_passes, monkeypatch):
    """As Ctrl-C would, in one of the passes over the rows."""
    passes = []

    def interrupted(self, centers, assign=NumbaEngine.assign, **options):
        passes.append(centers)
        if len(passes) == n_passes:
            raise error("stop")
        return assign(self, centers, **options)

    targets = estimators()
    monkeypatch.setattr(NumbaEngine, "assign", interrupted)
    other = np.column_stack([X, X]) if method == "fit" else X
    for estimator in targets:
        passes.clear()
        assert_refused(estimator, method, error, "stop", other + 1.0)
    monkeypatch.undo()
    for estimator in targets[1:]:
        np.testing.assert_array_equal(estimator.predict(X), estimator.labels_)
        estimator.partial_fit(X)
