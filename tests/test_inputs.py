"""Every kind of input: dtypes, layouts, sparse formats; never written, copied only to convert."""

import array
import tracemalloc
from itertools import product

import numpy as np
import pytest
from scipy import sparse

from pgkmeans_sk import PGKMeans
from tests.problems import blobs, weighted_sse
from tests.reference import LAYOUTS, csr

# Whole numbers below 128 mean the same in every dtype.
WHOLE = np.round(blobs(90, 3, 5, seed=0) * 4.0) + 60.0
FRACTIONAL = blobs(90, 3, 5, seed=0)

FLOATS = [np.float16, np.float32, np.float64, np.longdouble, ">f4", ">f8"]
INTEGERS = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64]


def used_dtype(dtype):
    """float16 and float32 are computed in float32, all else in float64."""
    return np.float32 if np.dtype(dtype) in (np.float16, np.float32) else np.float64


def assert_same_fit(found, expected):
    np.testing.assert_array_equal(found.cluster_centers_, expected.cluster_centers_)
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    assert found.inertia_ == expected.inertia_


# ------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=lambda dtype: np.dtype(dtype).str)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_dtypes(dtype, method):
    # cuvs#788, kmcuda#87: other dtypes than float32 wanted; scikit-learn PR#6846: float32 kept.
    X = WHOLE.astype(dtype)
    estimator = getattr(PGKMeans(5), method)(X)
    assert estimator.cluster_centers_.dtype == used_dtype(dtype)
    assert estimator.labels_.dtype == np.int32  # sklearn-onnx#199, NimbusML#470
    assert estimator.transform(X).dtype == used_dtype(dtype)
    expected = getattr(PGKMeans(5), method)(WHOLE.astype(used_dtype(dtype)))
    assert_same_fit(estimator, expected)


SPARSE_DTYPES = [np.float32, np.float64, np.int32, np.uint8, np.bool_]
PAIRS = [
    *product([np.asarray], [np.float16, *SPARSE_DTYPES], [np.float16, *SPARSE_DTYPES]),
    *product([sparse.csr_matrix], SPARSE_DTYPES, SPARSE_DTYPES),  # SciPy has no sparse float16
]


@pytest.mark.parametrize(("form", "fitted", "predicted"), PAIRS)
def test_fit_in_one_dtype_predict_in_another(form, fitted, predicted):
    # pycaret#3774, statsmodels#8156: "Buffer dtype mismatch".
    X = np.unpackbits(np.arange(64, dtype=np.uint8)[:, np.newaxis], axis=1)[:, 2:]
    if np.bool_ not in (fitted, predicted):
        X = WHOLE
    estimator = PGKMeans(5).fit(form(X.astype(fitted)))
    new = form(X.astype(predicted))
    np.testing.assert_array_equal(estimator.predict(new), estimator.labels_)
    assert estimator.score(new) == pytest.approx(-estimator.inertia_, rel=1e-6)
    assert estimator.transform(new).shape == (len(X), 5)
    estimator.partial_fit(new)
    assert len(np.unique(estimator.predict(new))) == 5


def test_sums_of_float16_do_not_overflow():
    # kornia PR#4545, kmcuda#34: sums in float16 end at 65 504. lance PR#8608: then no row is
    # assigned, and filling the empty clusters never ends.
    X = np.full((70_000, 2), 50.0, dtype=np.float16)
    X[::2] = 60.0
    estimator = PGKMeans(2).fit(X)
    assert sorted(estimator.cluster_centers_[:, 0]) == [50.0, 60.0]
    assert estimator.inertia_ == 0.0
    assert np.bincount(estimator.labels_).tolist() == [35_000, 35_000]

    large = np.random.default_rng(0).uniform(0, 1000, (1024, 16)).astype(np.float16)
    estimator = PGKMeans(4).fit(large)
    assert estimator.n_effective_clusters_ == 4
    assert np.isfinite(estimator.cluster_centers_).all()


def test_sums_of_float32_are_wide():
    # In float32 the mean of so many rows is off in the third digit.
    X = np.full((200_000, 1), 0.1, dtype=np.float32)
    X[0] = 1e4
    estimator = PGKMeans(2).fit(X)
    assert sorted(estimator.cluster_centers_.ravel().tolist()) == [float(np.float32(0.1)), 1e4]


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy alone has no bfloat16")
    estimator = PGKMeans(5).fit(WHOLE.astype(ml_dtypes.bfloat16))
    assert_same_fit(estimator, PGKMeans(5).fit(WHOLE.astype(np.float32)))


@pytest.mark.parametrize(
    "form",
    [
        lambda X: X.tolist(),
        lambda X: tuple(map(tuple, X)),
        lambda X: X.astype(object),
        lambda X: [array.array("d", row) for row in X],
        lambda X: np.ma.masked_array(X, mask=False),
        lambda X: X.view(type("Rows", (np.ndarray,), {})),
    ],
    ids=["lists", "tuples", "objects", "buffers", "masked array", "subclass"],
)
def test_what_numpy_can_convert(form):
    estimator = PGKMeans(5).fit(form(FRACTIONAL))
    assert_same_fit(estimator, PGKMeans(5).fit(FRACTIONAL))
    np.testing.assert_array_equal(estimator.predict(form(FRACTIONAL)), estimator.labels_)


# ------------------------------------------------------------------ layouts

DENSE_LAYOUTS = {name: form for name, form in LAYOUTS.items() if "csr" not in name}
SPARSE_LAYOUTS = {
    **{name: form for name, form in LAYOUTS.items() if "csr" in name},
    "csr_matrix int64": lambda X: csr(X, sparse.csr_matrix, np.int64),
    "csr_array int32": lambda X: csr(X, sparse.csr_array, np.int32),
    "csc_matrix": sparse.csc_matrix,
    "csc_array": sparse.csc_array,
    "coo_matrix": sparse.coo_matrix,
    "coo_array": sparse.coo_array,
    "lil_matrix": sparse.lil_matrix,
    "csr stored zeros": lambda X: sparse.csr_matrix((X.ravel(), *_full_pattern(X)), shape=X.shape),
}


def _full_pattern(X):
    return np.tile(np.arange(X.shape[1]), len(X)), np.arange(len(X) + 1) * X.shape[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", DENSE_LAYOUTS)
def test_dense_layout_does_not_matter(layout, dtype):
    X = FRACTIONAL.astype(dtype)
    rows = DENSE_LAYOUTS[layout](X)
    for parameters in ({}, {"metric": "cosine"}, {"consolidate": "exact"}):
        expected = PGKMeans(5, **parameters).fit(X)
        estimator = PGKMeans(5, **parameters).fit(rows)
        assert_same_fit(estimator, expected)
        np.testing.assert_array_equal(estimator.predict(rows), expected.labels_)
        np.testing.assert_array_equal(estimator.transform(rows), expected.transform(X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", SPARSE_LAYOUTS)
def test_sparse_format_does_not_matter(layout, dtype):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 15)) * (rng.random((120, 15)) < 0.3)
    X[np.arange(120), np.arange(120) % 6] += 8.0  # six clusters, well apart: no label is in doubt
    X = X.astype(dtype)
    rows = SPARSE_LAYOUTS[layout](X)
    for parameters in ({}, {"metric": "cosine"}, {"consolidate": "exact"}):
        estimator = PGKMeans(6, **parameters).fit(rows)
        dense = PGKMeans(6, **parameters).fit(X)
        np.testing.assert_array_equal(estimator.labels_, dense.labels_)
        tolerance = 10 * np.finfo(dtype).eps
        np.testing.assert_allclose(
            estimator.cluster_centers_, dense.cluster_centers_, atol=10 * tolerance
        )
        assert estimator.inertia_ == pytest.approx(dense.inertia_, rel=float(10 * tolerance))
        np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)
        np.testing.assert_array_equal(estimator.predict(X), estimator.labels_)
        np.testing.assert_allclose(estimator.transform(rows), estimator.transform(X), atol=1e-4)


def test_file_on_disk(tmp_path):
    X = FRACTIONAL.astype(np.float32)
    for order in "CF":
        np.save(tmp_path / "rows.npy", np.asarray(X, order=order))
        rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
        estimator = PGKMeans(5).fit(rows)
        assert_same_fit(estimator, PGKMeans(5).fit(X))
        np.testing.assert_array_equal(estimator.predict(rows), estimator.labels_)


def bytes_of(X):
    if sparse.issparse(X):
        parts = (X.data, X.indices, X.indptr) if X.format == "csr" else (X.data, *X.coords)
        return [(part.dtype.str, part.tobytes()) for part in parts]
    return np.asarray(X).tobytes()


@pytest.mark.parametrize("layout", [*LAYOUTS, "coo_matrix"])
@pytest.mark.parametrize(
    "parameters",
    [{"copy_x": False}, {"metric": "cosine"}, {"consolidate": "auto"}, {"init": "k-means++"}],
    ids=str,
)
def test_nothing_of_the_user_is_written(layout, parameters):
    # scikit-learn#17203: weights were scaled in place.
    X = {**LAYOUTS, **SPARSE_LAYOUTS}[layout](FRACTIONAL)
    weights = np.random.default_rng(0).integers(0, 3, 90).astype(np.float64)
    init = FRACTIONAL[:5].copy()
    before = bytes_of(X), weights.tobytes(), init.tobytes()
    for start in (parameters.get("init", "partition"), init):
        estimator = PGKMeans(5, **{**parameters, "init": start})
        estimator.fit(X, sample_weight=weights).predict(X)
        estimator.transform(X)
        estimator.score(X, sample_weight=weights)
        estimator.partial_fit(X, sample_weight=weights)
        assert (bytes_of(X), weights.tobytes(), init.tobytes()) == before


def test_what_is_returned_belongs_to_the_user():
    init = FRACTIONAL[:5].copy()
    estimator = PGKMeans(5, init=init, max_iter=1).fit(FRACTIONAL)
    assert not np.shares_memory(estimator.cluster_centers_, init)
    predicted = estimator.predict(FRACTIONAL)
    predicted[:] = 0
    np.testing.assert_array_equal(estimator.predict(FRACTIONAL), estimator.labels_)


# ------------------------------------------------------------------ memory


def peak_bytes(work):
    """Most memory that Python and NumPy held at once beyond what they held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_peak_is_seen():
    assert 8e6 < peak_bytes(lambda: np.ones(10**6).sum()) < 9e6


@pytest.mark.parametrize("layout", ["C", "Fortran", "strided rows", "strided columns", "memmap"])
def test_rows_are_not_copied(layout):
    # flash-kmeans PR#17: a temporary X * X doubles the peak. scikit-learn#9943: neither may there
    # be an array of n * n_clusters values.
    rng = np.random.default_rng(0)
    X = LAYOUTS[layout](rng.random((80_000, 256), dtype=np.float32))
    estimator = PGKMeans(4, max_iter=2)
    estimator.fit(X[:100])  # compiles
    allowed = 16 * len(X) + 2**26
    assert X.nbytes > allowed
    assert peak_bytes(lambda: estimator.fit(X)) < allowed
    assert peak_bytes(lambda: estimator.predict(X)) < allowed

    narrow = LAYOUTS[layout](X[:, :4])
    many = PGKMeans(512, max_iter=1, init=narrow[:512].copy())
    distances = 4 * len(X) * 512
    assert distances > allowed
    assert peak_bytes(lambda: many.fit(narrow)) < allowed


def test_sparse_rows_are_not_made_dense():
    rng = np.random.default_rng(0)
    numbers = np.repeat(np.arange(20_000), 4), rng.integers(0, 30_000, 80_000)
    values = rng.random(80_000, dtype=np.float32)
    X = sparse.csr_matrix((values, numbers), shape=(20_000, 30_000))
    estimator = PGKMeans(4, max_iter=2, init="partition-principal")
    estimator.fit(X[:100])
    centers = 8 * 4 * 30_000
    assert peak_bytes(lambda: estimator.fit(X)) < 16 * 20_000 + 2**26 + 16 * centers
    expected = weighted_sse(X[:50].toarray(), estimator.cluster_centers_, estimator.labels_[:50])
    assert estimator.score(X[:50]) == pytest.approx(-expected, rel=1e-6)
