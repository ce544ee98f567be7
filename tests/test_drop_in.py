"""A script written for ``sklearn.cluster.KMeans`` works with the import swapped."""

import inspect
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.cluster import KMeans, k_means
from sklearn.datasets import load_digits, load_iris, make_blobs
from sklearn.metrics import adjusted_rand_score, euclidean_distances

from pgkmeans_sk import PGKMeans, pg_kmeans
from tests.problems import blobs, same_partition

# ------------------------------------------------------------------ names

# Ours are better here; the old values are accepted.
OTHER_DEFAULTS = {"init", "algorithm"}


def assert_signature_extends(ours, theirs):
    """Each parameter of ``theirs`` exists, in the same place or by keyword, with its default."""
    ours, theirs = (inspect.signature(function).parameters for function in (ours, theirs))
    positional = [name for name, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(ours)[: len(positional)] == positional
    for name, parameter in theirs.items():
        assert ours[name].kind == parameter.kind, name
        if name not in OTHER_DEFAULTS:
            assert ours[name].default == parameter.default, name
    for name in set(ours) - set(theirs):
        assert ours[name].default is not inspect.Parameter.empty, name


def test_constructor_takes_the_same_parameters():
    assert_signature_extends(PGKMeans, KMeans)


def test_function_takes_the_same_parameters():
    assert_signature_extends(pg_kmeans, k_means)


@pytest.mark.parametrize(
    "name", [name for name in dir(KMeans) if callable(getattr(KMeans, name)) and name[0] != "_"]
)
def test_method_takes_the_same_parameters(name):
    ours, theirs = getattr(PGKMeans, name), getattr(KMeans, name)
    if not name.startswith("set_"):  # scikit-learn makes those itself
        assert_signature_extends(ours, theirs)


def test_fitted_attributes():
    X = blobs(100, 3, 4, seed=0)
    ours, theirs = PGKMeans(4).fit(X), KMeans(4).fit(X)
    for name, value in vars(theirs).items():
        if name.endswith("_"):
            own = getattr(ours, name)
            assert type(own) is type(value), name
            assert np.shape(own) == np.shape(value), name
            assert np.asarray(own).dtype == np.asarray(value).dtype, name


# ------------------------------------------------------------------ scripts

SCRIPTS = {
    "pipeline": """
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
model = make_pipeline(StandardScaler(), KMeans(n_clusters=5, n_init=10, random_state=0))
result = model.fit_predict(X), model.predict(X), model.transform(X).shape, model.score(X)
""",
    "grid search": """
from sklearn.model_selection import GridSearchCV
search = GridSearchCV(KMeans(random_state=0, n_init=3), {"n_clusters": [1, 2, 5]}, cv=3).fit(X)
result = search.best_params_, search.best_score_, search.predict(X)
""",
    "distances as features": """
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
both = FeatureUnion([("scaled", StandardScaler()), ("distances", KMeans(5, random_state=0))])
model = make_pipeline(both, LogisticRegression(max_iter=5000)).fit(X, y)
result = model.score(X, y), both.fit_transform(X).shape, list(both.get_feature_names_out()[:3])
""",
    "columns apart": """
from sklearn.compose import ColumnTransformer
parts = ColumnTransformer([("a", KMeans(5, n_init=4), [0, 1]), ("b", "passthrough", [2])])
result = parts.fit_transform(X).shape, parts.named_transformers_["a"].labels_
""",
    "elbow": """
inertias = []
for k in range(1, 6):
    kmeans = KMeans(n_clusters=k, init="k-means++", n_init=10, max_iter=300, random_state=42)
    kmeans.fit(X)
    inertias.append(kmeans.inertia_)
result = inertias, inertias == sorted(inertias, reverse=True)
""",
    "every parameter": """
kmeans = KMeans(
    n_clusters=5, init="random", n_init=20, max_iter=100, tol=1e-5, verbose=0, random_state=1,
    copy_x=False, algorithm="elkan",
)
result = kmeans.fit(X, None, None).predict(X), kmeans.score(X, None, sample_weight=None)
""",
    "weights": """
w = np.linspace(1, 2, len(X))
kmeans = KMeans(5, random_state=0, n_init=5)
result = (
    kmeans.fit_predict(X, sample_weight=w), kmeans.fit_transform(X, None, w).shape,
    kmeans.score(X, sample_weight=w), kmeans.n_features_in_,
)
""",
    "random states": """
result = [
    KMeans(5, n_init=8, random_state=state).fit(X).labels_
    for state in (0, np.int64(0), np.random.RandomState(0), None)
]
""",
    "silhouette": """
from sklearn.metrics import silhouette_score
scores = [silhouette_score(X, KMeans(k, n_init=5).fit_predict(X)) for k in (4, 5, 6)]
result = int(np.argmax(scores))
""",
    "parameters set later": """
from sklearn.base import clone
kmeans = clone(KMeans()).set_params(n_clusters=5, random_state=3, n_init=9)
result = kmeans.get_params()["n_clusters"], kmeans.fit(X).labels_
""",
}


def assert_same_result(ours, theirs):
    """Labels may have other numbers; figures of the best clustering agree."""
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        for own, their in zip(ours, theirs, strict=True):
            assert_same_result(own, their)
    elif isinstance(theirs, np.ndarray):
        assert same_partition(ours, theirs)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=0.01)
    elif not isinstance(theirs, str):
        assert ours == theirs


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_script_runs_with_the_import_swapped(script):
    X = blobs(300, 3, 5, seed=1)
    results = []
    for source in ("pgkmeans_sk import PGKMeans as KMeans", "sklearn.cluster import KMeans"):
        names = {"X": X.copy(), "y": np.arange(300) % 5, "np": np}
        exec(f"from {source}\n{script}", names)
        results.append(names["result"])
    assert_same_result(*results)


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("separated", [False, True])
def test_plain_lloyd_takes_the_same_steps(dtype, container, weighted, separated):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X = blobs(400, 4, 6, seed) if separated else rng.normal(size=(400, 4))
        X = X.astype(dtype)
        init = X[rng.choice(len(X), 6, replace=False)]
        weights = rng.uniform(0.5, 2.0, len(X)) if weighted else None
        for max_iter in (300, 3, 1):
            common = {"init": init, "n_init": 1, "tol": 0, "algorithm": "lloyd"}
            theirs = KMeans(6, max_iter=max_iter, **common)
            ours = PGKMeans(6, max_iter=max_iter, **common)
            for estimator in (theirs, ours):
                estimator.fit(container(X), sample_weight=weights)
            np.testing.assert_array_equal(ours.labels_, theirs.labels_)
            scale = np.abs(X).max()
            error = 20.0 * float(np.finfo(dtype).eps)
            np.testing.assert_allclose(
                ours.cluster_centers_, theirs.cluster_centers_, rtol=0, atol=error * scale
            )
            assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=100 * error)
            if max_iter == 300:
                # scikit-learn counts the pass that shows that labels repeat as an iteration, too.
                n_moves = theirs.n_iter_ - 1
            assert ours.n_iter_ == min(max_iter, n_moves)


def test_convergence_is_judged_alike():
    # tol is relative to the mean variance of the columns: not to their scale or offset.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 5))
    for factor, offset in ((1.0, 0.0), (1e-3, 0.0), (100.0, 1e3)):
        moved = factor * X + offset
        init = moved[:8]
        for tol in (1e-2, 1e-3):
            common = {"init": init, "n_init": 1, "tol": tol, "algorithm": "lloyd"}
            ours, theirs = PGKMeans(8, **common).fit(moved), KMeans(8, **common).fit(moved)
            assert ours.n_iter_ == theirs.n_iter_ < 100


def test_function_is_the_estimator():
    X = blobs(200, 3, 4, seed=2)
    weights = np.linspace(1.0, 3.0, 200)
    parameters = {"init": "k-means++", "n_init": 2, "max_iter": 7, "tol": 1e-3, "random_state": 5}
    parameters |= {"algorithm": "lloyd", "consolidate": "exact", "metric": "cosine"}
    estimator = PGKMeans(4, **parameters).fit(X, sample_weight=weights)
    result = pg_kmeans(X, 4, sample_weight=weights, **parameters, return_n_iter=True)
    centers, labels, inertia, n_iter = result
    np.testing.assert_array_equal(centers, estimator.cluster_centers_)
    np.testing.assert_array_equal(labels, estimator.labels_)
    assert (inertia, n_iter) == (estimator.inertia_, estimator.n_iter_)
    assert len(pg_kmeans(X, 4)) == len(k_means(X, 4)) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_methods_agree_with_one_another(dtype):
    X = blobs(300, 4, 6, seed=3, spread=4.0).astype(dtype)
    new = blobs(50, 4, 6, seed=4, spread=4.0).astype(dtype)
    estimator = PGKMeans(6, random_state=0).fit(X)
    for rows in (X, new, sparse.csr_matrix(new)):
        distances = estimator.transform(rows)
        assert distances.dtype == dtype
        expected = euclidean_distances(rows.astype(np.float64), estimator.cluster_centers_)
        np.testing.assert_allclose(distances, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)
        np.testing.assert_array_equal(distances.argmin(axis=1), estimator.predict(rows))
        inertia = (distances.astype(np.float64).min(axis=1) ** 2).sum()
        assert estimator.score(rows) == pytest.approx(-inertia, rel=1e-5)
    assert estimator.score(X) == -estimator.inertia_
    again = PGKMeans(6, random_state=0)
    np.testing.assert_array_equal(again.fit_predict(X), estimator.labels_)
    np.testing.assert_array_equal(again.fit_transform(X), estimator.transform(X))


def test_score_is_weighted():
    # cuml#8530, cuvs#1940: inertia and score that forgot the weights.
    X = blobs(100, 2, 4, seed=5, spread=3.0)
    weights = np.random.default_rng(0).integers(1, 5, 100)
    estimator = PGKMeans(4).fit(X, sample_weight=weights)
    assert estimator.score(X, sample_weight=weights) == -estimator.inertia_
    assert estimator.inertia_ == pytest.approx(-estimator.score(np.repeat(X, weights, axis=0)))


def test_distances_of_directions_are_one_minus_cosine():
    X = np.random.default_rng(0).normal(size=(200, 5))
    estimator = PGKMeans(7, metric="cosine").fit(X)
    centers = estimator.cluster_centers_
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1.0, rtol=1e-12)
    cosines = X @ centers.T / np.linalg.norm(X, axis=1, keepdims=True)
    np.testing.assert_allclose(estimator.transform(X), 1.0 - cosines, atol=1e-12)
    # scikit-learn#31450, #28098: the length of a row has no say.
    lengths = np.random.default_rng(1).uniform(0.1, 10.0, (200, 1))
    np.testing.assert_array_equal(estimator.predict(lengths * X), estimator.labels_)


# ------------------------------------------------------------------ starts

DIGITS, IRIS = load_digits().data, load_iris().data
QUALITY_CASES = {
    "digits": (DIGITS, 10),
    "digits, 30 clusters": (DIGITS, 30),
    "iris": (IRIS, 3),
    "iris, 10 clusters": (IRIS, 10),
    **{f"10 blobs {seed}": (blobs(1000, 4, 10, seed), 10) for seed in range(4)},
    # Well apart: two centres in one blob and one for two others is the mistake to be mended.
    **{
        f"30 blobs {seed}": (
            make_blobs(1500, 2, centers=30, cluster_std=0.5, random_state=seed)[0],
            30,
        )
        for seed in (0, 1, 8, 15)
    },
}


@pytest.mark.parametrize(("X", "n_clusters"), QUALITY_CASES.values(), ids=QUALITY_CASES)
def test_default_is_as_good_as_scikit_learn(X, n_clusters):
    theirs = [KMeans(n_clusters, random_state=seed).fit(X).inertia_ for seed in range(5)]
    assert PGKMeans(n_clusters, random_state=0).fit(X).inertia_ <= 1.02 * np.median(theirs)


def test_classes_are_found():
    X = blobs(500, 5, 8, seed=0)
    labels = PGKMeans(8).fit_predict(X)
    assert adjusted_rand_score(np.arange(500) % 8, labels) == 1.0


class CountedStart:
    """Rows drawn at random; counts how often it was asked."""

    def __init__(self):
        self.n_calls = 0

    def __call__(self, X, n_clusters, random_state):
        self.n_calls += 1
        return X[random_state.permutation(len(X))[:n_clusters]]


def test_n_init():
    X = np.random.default_rng(0).normal(size=(300, 3))
    for n_init, n_calls in (("auto", 10), (1, 1), (4, 4)):
        start = CountedStart()
        PGKMeans(8, init=start, n_init=n_init, random_state=0).fit(X)
        assert start.n_calls == n_calls
    for init in ("random", "k-means++", "partition"):
        one, many = (PGKMeans(20, init=init, n_init=n, random_state=0).fit(X) for n in (1, 8))
        assert many.inertia_ <= one.inertia_
    many = PGKMeans(20, init="random", random_state=0).fit(X)
    ten = PGKMeans(20, init="random", n_init=10, random_state=0).fit(X)
    assert many.inertia_ == ten.inertia_


def test_given_centers_are_used_once():
    X = blobs(100, 2, 4, seed=0)
    with pytest.warns(RuntimeWarning, match="only one init in PGKMeans instead of n_init=5"):
        PGKMeans(4, init=X[:4], n_init=5).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n_init in ("auto", 1):
            PGKMeans(4, init=X[:4].tolist(), n_init=n_init).fit(X)
        PGKMeans(4, init=sparse.csr_matrix(X[:4])).fit(X)


def test_copy_x_false_does_not_write():
    X = blobs(100, 2, 4, seed=0)
    before = X.copy()
    PGKMeans(4, copy_x=False).fit(X)
    np.testing.assert_array_equal(X, before)
