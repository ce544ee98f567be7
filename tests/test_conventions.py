"""The estimator among scikit-learn's tools: data frames, routing, saving, showing."""

import copy
import pickle
import re
from importlib.util import find_spec

import joblib
import numpy as np
import pytest
import sklearn
from sklearn.base import clone, is_clusterer
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from pgkmeans_sk import PGKMeans
from tests.problems import blobs

NAMES = ["a", "b", "c"]
X = blobs(120, 3, 4, seed=0)

needs_pandas = pytest.mark.skipif(not find_spec("pandas"), reason="pandas is not installed")
needs_polars = pytest.mark.skipif(not find_spec("polars"), reason="polars is not installed")
FRAMES = [pytest.param("pandas", marks=needs_pandas), pytest.param("polars", marks=needs_polars)]


def frame(library, columns=NAMES, values=X):
    """Rows as a data frame of the library of that name."""
    return __import__(library).DataFrame(dict(zip(columns, values.T, strict=True)))


# ------------------------------------------------------------------ data frames


@pytest.mark.parametrize("library", FRAMES)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_feature_names(library, method):
    estimator = getattr(PGKMeans(4, random_state=0), method)(frame(library))
    assert estimator.feature_names_in_.tolist() == NAMES
    assert estimator.feature_names_in_.dtype == object
    plain = getattr(PGKMeans(4, random_state=0), method)(X)
    assert not hasattr(plain, "feature_names_in_")
    np.testing.assert_array_equal(estimator.cluster_centers_, plain.cluster_centers_)
    np.testing.assert_array_equal(estimator.predict(frame(library)), plain.labels_)


@pytest.mark.parametrize("library", FRAMES)
@pytest.mark.parametrize("method", ["predict", "transform", "score", "partial_fit"])
def test_other_names_are_refused(library, method):
    estimator = PGKMeans(4).fit(frame(library))
    with pytest.raises(ValueError, match="feature names should match"):
        getattr(estimator, method)(frame(library, ["a", "b", "z"]))
    with pytest.raises(ValueError, match="same order"):
        getattr(estimator, method)(frame(library, ["b", "a", "c"]))
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        getattr(estimator, method)(X)
    with pytest.warns(UserWarning, match="X has feature names, but PGKMeans was fitted without"):
        getattr(PGKMeans(4).fit(X), method)(frame(library))


@pytest.mark.parametrize("library", FRAMES)
def test_mixed_columns_and_weights_as_a_series(library):
    module = __import__(library)
    integers = np.round(X[:, 0]).astype(int)
    mixed = module.DataFrame({"i": integers, "f": X[:, 1].astype(np.float32), "g": X[:, 2]})
    weights = module.Series(np.arange(1.0, 121.0))
    estimator = PGKMeans(4).fit(mixed, sample_weight=weights)
    values = np.column_stack([integers, X[:, 1].astype(np.float32), X[:, 2]])
    expected = PGKMeans(4).fit(values, sample_weight=np.arange(1.0, 121.0))
    np.testing.assert_array_equal(estimator.cluster_centers_, expected.cluster_centers_)


@needs_pandas
def test_column_names_that_are_not_strings():
    estimator = PGKMeans(4).fit(frame("pandas", [0, 1, 2]))
    assert not hasattr(estimator, "feature_names_in_")
    with pytest.raises(TypeError, match="only supported if all input features have string names"):
        PGKMeans(4).fit(frame("pandas", ["a", 1, 2]))


@pytest.mark.parametrize("library", FRAMES)
def test_set_output(library):
    estimator = PGKMeans(4, random_state=0).set_output(transform=library)
    out = estimator.fit_transform(frame(library))
    assert type(out).__module__.split(".")[0] == library
    assert list(out.columns) == ["pgkmeans0", "pgkmeans1", "pgkmeans2", "pgkmeans3"]
    np.testing.assert_array_equal(np.asarray(out), PGKMeans(4).fit_transform(X))
    assert isinstance(estimator.predict(frame(library)), np.ndarray)


@needs_pandas
def test_index_is_kept():
    indexed = frame("pandas").set_index(np.arange(120)[::-1])
    out = PGKMeans(4).set_output(transform="pandas").fit_transform(indexed)
    assert out.index.equals(indexed.index)


def test_feature_names_out():
    estimator = PGKMeans(3).fit(X)
    assert estimator.get_feature_names_out().tolist() == ["pgkmeans0", "pgkmeans1", "pgkmeans2"]
    columns = ColumnTransformer([("part", PGKMeans(2), [0, 1])]).fit(X)
    assert columns.get_feature_names_out().tolist() == ["part__pgkmeans0", "part__pgkmeans1"]
    # Fewer distinct rows than clusters: still one column for each centre.
    with pytest.warns(sklearn.exceptions.ConvergenceWarning):
        estimator = PGKMeans(3).fit(np.repeat(X[:2], 5, axis=0))
    assert len(estimator.get_feature_names_out()) == estimator.transform(X).shape[1] == 3


# ------------------------------------------------------------------ metadata routing


def test_weights_are_routed():
    weights = np.random.default_rng(0).uniform(0.1, 5.0, len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        step = PGKMeans(6).set_fit_request(sample_weight=True)
        step.set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, step).fit(X, sample_weight=weights)
        score = pipeline.score(X, sample_weight=weights)
    scaled = StandardScaler().fit_transform(X)
    expected = PGKMeans(6).fit(scaled, sample_weight=weights)
    np.testing.assert_array_equal(pipeline[-1].labels_, expected.labels_)
    assert score == -expected.inertia_
    assert expected.inertia_ != PGKMeans(6).fit(scaled).inertia_


def test_weights_without_a_request_are_refused():
    weights = np.ones(len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(PGKMeans(6))
        with pytest.raises(ValueError, match="are passed but are not explicitly set as requested"):
            pipeline.fit(X, sample_weight=weights)
        for name in ("fit", "partial_fit", "score"):
            request = getattr(PGKMeans(), f"set_{name}_request")(sample_weight=True)
            assert request.get_metadata_routing().consumes(name, ["sample_weight"])


# ------------------------------------------------------------------ copies


def round_trips(tmp_path):
    def by_file(estimator):
        joblib.dump(estimator, tmp_path / "estimator")
        return joblib.load(tmp_path / "estimator", mmap_mode="r")

    protocols = range(2, pickle.HIGHEST_PROTOCOL + 1)
    pickled = [lambda e, p=p: pickle.loads(pickle.dumps(e, protocol=p)) for p in protocols]
    return [*pickled, copy.deepcopy, copy.copy, by_file]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_saved_estimators_predict_and_go_on_alike(dtype, metric, tmp_path):
    rows = X.astype(dtype)
    fitted = PGKMeans(5, metric=metric, random_state=0).fit(rows)
    streamed = PGKMeans(5, metric=metric, random_state=0).partial_fit(rows[:60])
    for estimator in (fitted, streamed):
        copies = [round_trip(estimator) for round_trip in round_trips(tmp_path)]
        expected = copy.deepcopy(estimator).partial_fit(rows[60:])
        for saved in copies:
            np.testing.assert_array_equal(saved.predict(rows), estimator.predict(rows))
            np.testing.assert_array_equal(saved.transform(rows), estimator.transform(rows))
            saved.partial_fit(rows[60:])
            np.testing.assert_array_equal(saved.cluster_centers_, expected.cluster_centers_)


def test_clone():
    init = X[:4]
    estimator = PGKMeans(4, init=init, n_init=1, metric="cosine", consolidate=0.5, tol=0.0)
    cloned = clone(estimator.fit(X))
    assert not [name for name in vars(cloned) if name.endswith("_")]
    assert {k: v for k, v in cloned.get_params().items() if k != "init"} == {
        k: v for k, v in estimator.get_params().items() if k != "init"
    }
    np.testing.assert_array_equal(cloned.init, init)
    np.testing.assert_array_equal(cloned.fit(X).labels_, estimator.labels_)


@pytest.mark.parametrize("init", ["partition", "k-means++", "random"])
def test_same_seed_same_bytes(init):
    estimators = [PGKMeans(9, init=init, random_state=4).fit(X) for _ in range(2)]
    first, second = (e.cluster_centers_.tobytes() + e.labels_.tobytes() for e in estimators)
    assert first == second
    # Nor does an earlier fit have a say.
    again = estimators[0].fit(X[::-1]).fit(X)
    assert again.cluster_centers_.tobytes() + again.labels_.tobytes() == first


def test_unseeded_fits_differ():
    # cuml#6881: a hidden default seed passes for randomness.
    rows = np.random.default_rng(0).normal(size=(300, 2))
    fits = [PGKMeans(20, init="random", n_init=1).fit(rows).inertia_ for _ in range(8)]
    assert len(set(fits)) > 1


# ------------------------------------------------------------------ what others see


def test_tags():
    tags = get_tags(PGKMeans())
    assert is_clusterer(PGKMeans())
    assert tags.estimator_type == "clusterer"
    assert tags.input_tags.sparse
    assert not tags.input_tags.allow_nan
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
    assert not tags.non_deterministic
    assert not tags.target_tags.required
    assert tags.array_api_support


def test_repr_shows_what_was_changed():
    assert repr(PGKMeans()) == "PGKMeans()"
    assert repr(PGKMeans(5, metric="cosine")) == "PGKMeans(metric='cosine', n_clusters=5)"


def test_html_repr():
    for estimator in (PGKMeans(5), PGKMeans(5).fit(X)):
        html = estimator._repr_html_()
        assert "PGKMeans" in html
        for name in ("n_clusters", "consolidate", "metric"):
            assert re.search(rf"\b{name}\b", html), name
        # scikit-learn's documentation has no page on this class.
        assert 'href="https://scikit-learn.org' not in html
