"""ProductQuantizer: what codes mean, what a fit finds, and what it does with its parameters."""

import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.base import clone
from sklearn.cluster import DBSCAN, KMeans, MeanShift
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pgkmeans_sk import PGKMeans, ProductQuantizer
from pgkmeans_sk.quantization import encode
from tests import reference_codes as reference


def table(n=400, d=10, seed=0, dtype=np.float32):
    """Rows whose columns differ in size and go together."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * rng.uniform(0.2, 3, d)).astype(
        dtype
    )


VARIANTS = {
    "plain": {},
    "shared": {"codebook": "shared"},
    "stages": {"n_stages": 3},
    "shared stages": {"codebook": "shared", "n_stages": 2},
    "rows": {"scale": "row"},
    "blocks": {"codebook": "shared", "scale": "block"},
    "hadamard": {"rotation": "hadamard"},
    "opq": {"rotation": "opq"},
    "all": {"codebook": "shared", "n_stages": 2, "rotation": "hadamard", "scale": "row"},
    "opq rows": {"n_stages": 2, "rotation": "opq", "scale": "row"},
    "half": {"codebook_dtype": "float16"},
    "half all": {"codebook_dtype": "float16", "rotation": "opq", "scale": "block", "n_stages": 2},
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def quantizer(**parameters):
    return ProductQuantizer(4, 16, random_state=0).set_params(**parameters)


# ---------------------------------------------------------------- what codes mean


def test_by_hand():
    X = np.array([[0.0, 9.0, 5.0], [1.0, 9.0, 7.0], [0.0, 2.0, 5.0], [1.0, 2.0, 7.0]])
    pq = ProductQuantizer(2, 2, random_state=0)
    codes = pq.fit_transform(X)
    assert codes.tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    # The first block of two columns has its words at the means of rows 0, 1 and of rows 2, 3; the
    # last block is one column wide.
    expected = np.array([[0.5, 9.0, 5.0], [0.5, 9.0, 7.0], [0.5, 2.0, 5.0], [0.5, 2.0, 7.0]])
    np.testing.assert_array_equal(pq.inverse_transform(codes), expected)
    assert pq.codebooks_.shape == (1, 2, 2, 2)
    assert (pq.codebooks_[0, 1, :, 1] == 0).all()
    assert pq.score(X) == pytest.approx(-(0.5**2) / 3)
    assert pq.bits_per_weight_ == 2 / 3


def test_how_many_rows_are_encoded_at_a_time_does_not_matter(variant, monkeypatch):
    X = table()
    pq = quantizer(**variant).fit(X)
    expected = pq.transform(X)
    for numbers in (1, 77, 10**9):
        monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", numbers)
        np.testing.assert_array_equal(pq.transform(X), expected)


def test_encoding_makes_no_second_matrix(monkeypatch):
    monkeypatch.setattr(encode, "NUMBERS_AT_ONCE", 2**16)
    X = table(40_000, 64)
    pq = quantizer(rotation="hadamard", n_stages=2, scale="row").fit(X[:1000])
    pq.transform(X[:100])  # compiled
    tracemalloc.start()
    codes = pq.transform(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < codes.nbytes + 8 * 4 * 2**16 < X.nbytes / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_are_the_nearest_and_decode_as_told(variant, dtype):
    X, fresh = table(dtype=dtype), table(60, seed=1, dtype=dtype)
    pq = quantizer(**variant).fit(X)
    codes = pq.transform(fresh)
    tolerance = (1e-4 if dtype == np.float32 or "half" in str(variant) else 1e-10) * X.var()
    found = reference.margins(pq.decoder_, fresh, codes)
    assert found.max() <= tolerance
    scale_codes = reference.prepared(pq.decoder_, fresh)[1]
    if scale_codes is not None:
        assert (codes[:, -1] == scale_codes).mean() > 0.95  # but for ties within rounding
    decoded = pq.inverse_transform(codes)
    expected = reference.decode(pq.decoder_, codes)
    assert decoded.dtype == dtype
    np.testing.assert_allclose(decoded, expected, atol=(1e-4 if dtype == np.float32 else 1e-11))


def test_all_code_words_are_in_use(variant):
    X = table(2000)
    pq = quantizer(**variant)
    codes = pq.fit_transform(X)
    assert (pq.n_effective_codes_ == 16).all()
    assert pq.n_effective_codes_.shape == pq.codebooks_.shape[:2]
    if "codebook_dtype" not in variant and variant.get("codebook") != "shared":
        blocks = codes[:, : pq.decoder_.n_block_codes]
        assert all(len(np.unique(column)) == 16 for column in blocks.T)


def test_any_rows_give_the_same_codes_alone(variant):
    X = table()
    pq = quantizer(**variant).fit(X)
    codes = pq.transform(X)
    np.testing.assert_array_equal(pq.transform(X[7:9]), codes[7:9])
    np.testing.assert_array_equal(
        pq.inverse_transform(codes[[50, 3]]), pq.inverse_transform(codes)[[50, 3]]
    )


def test_layouts_and_threads_give_the_same_bits(variant):
    X = table(3000, 12)
    expected = quantizer(**variant).fit(X)
    wide = np.zeros((3000, 24), dtype=X.dtype)
    wide[:, ::2] = X
    read_only = X.copy()
    read_only.flags.writeable = False
    for same in (np.asfortranarray(X), wide[:, ::2], read_only):
        found = quantizer(**variant).fit(same)
        np.testing.assert_array_equal(found.codebooks_, expected.codebooks_)
        np.testing.assert_array_equal(found.transform(same), expected.transform(X))
    with threadpool_limits(1):
        found = quantizer(**variant).fit(X)
    np.testing.assert_array_equal(found.codebooks_, expected.codebooks_)
    np.testing.assert_array_equal(found.transform(X), expected.transform(X))


def test_the_users_arrays_are_left_alone(variant):
    X, weights, importance = table(), np.linspace(0, 2, 400), np.linspace(1, 2, 10)
    before = X.copy(), weights.copy(), importance.copy()
    pq = quantizer(**variant).fit(X, sample_weight=weights, importance=importance)
    pq.topk(X[:3], pq.transform(X), 2)
    pq.encode(X).decode()
    for array, copy in zip((X, weights, importance), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("n_codes", "dtype", "bits"), [(2, np.uint8, 1), (3, np.uint8, 2), (200, np.uint8, 8),
                                   (256, np.uint8, 8), (257, np.uint16, 9), (300, np.uint16, 9)]
)  # fmt: skip
def test_codes_take_the_smallest_dtype(n_codes, dtype, bits):
    X = table(600, 4)
    pq = ProductQuantizer(2, n_codes, random_state=0)
    codes = pq.fit_transform(X)
    assert codes.dtype == dtype
    assert pq.code_bits_ == bits
    assert codes.max() == n_codes - 1
    assert pq.bits_per_weight_ == bits / 2


def test_half_precision_in_and_out():
    X = table(dtype=np.float16)
    pq = quantizer().fit(X)
    assert pq.codebooks_.dtype == np.float16
    decoded = pq.inverse_transform(pq.transform(X))
    assert decoded.dtype == np.float16
    full = quantizer(codebook_dtype="float16").fit(X.astype(np.float32))
    np.testing.assert_array_equal(full.codebooks_, pq.codebooks_)
    np.testing.assert_array_equal(
        full.inverse_transform(full.transform(X)).astype(np.float16), decoded
    )


def test_integers_become_float64():
    X = np.random.default_rng(0).integers(0, 50, size=(100, 4))
    pq = quantizer(block_size=2, n_codes=8).fit(X)
    assert pq.inverse_transform(pq.transform(X)).dtype == np.float64


# ---------------------------------------------------------------- what a fit finds


def test_no_worse_than_kmeans_of_scikit_learn():
    X = table(3000, 12, dtype=np.float64)
    theirs = 0.0
    for columns in reference.slices(12, 4):
        theirs += KMeans(16, random_state=0).fit(X[:, columns]).inertia_
    assert -quantizer().fit(X).score(X) * X.size <= 1.02 * theirs


def test_each_option_pays_where_it_should():
    """Same bits, less error; on rows made for the option."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 16)) @ rng.normal(size=(16, 16))
    plain = quantizer().fit(X).score(X)
    assert quantizer(rotation="opq").fit(X).score(X) > 0.9 * plain
    sized = rng.normal(size=(4000, 16)) * rng.lognormal(sigma=2, size=(4000, 1))
    assert quantizer(scale="row").fit(sized).score(sized) > 0.7 * quantizer().fit(sized).score(
        sized
    )
    uneven = rng.normal(size=(4000, 16)) * np.repeat([1, 2, 3, 5], 4)
    shared = quantizer(codebook="shared")
    scaled = clone(shared).set_params(scale="block").fit(uneven).score(uneven)
    assert scaled > 0.97 * shared.fit(uneven).score(uneven)
    few_large = np.zeros((4000, 16))
    few_large[np.arange(4000), rng.integers(0, 16, 4000)] = 10
    few_large += rng.normal(size=few_large.shape)
    two_stages = quantizer(n_stages=2).fit(few_large).score(few_large)
    assert two_stages > quantizer().fit(few_large).score(few_large)


def test_more_steps_lower_the_error():
    X = table(40_000, 12)
    scores = [ProductQuantizer(12, max_iter=i, random_state=0).fit(X).score(X) for i in (2, 5, 25)]
    assert scores == sorted(scores)


def test_more_rows_lower_the_error():
    X = table(20_000, 12)
    pq = ProductQuantizer(12, 64, random_state=0)
    scores = [pq.set_params(rows_per_code=r).fit(X).score(X) for r in (4, 32, None)]
    assert scores == sorted(scores)
    everything = pq.codebooks_
    np.testing.assert_array_equal(pq.set_params(rows_per_code=20_000).fit(X).codebooks_, everything)


def test_stages_never_add_error():
    X = table(2000)
    scores = [quantizer(n_stages=s).fit(X).score(X) for s in (1, 2, 3, 4)]
    assert scores == sorted(scores)
    # The first stage does not depend on how many follow.
    one, two = quantizer().fit(X), quantizer(n_stages=2).fit(X)
    np.testing.assert_array_equal(one.codebooks_[0], two.codebooks_[0])
    np.testing.assert_array_equal(one.transform(X), two.transform(X)[:, :3])


def test_scalar_blocks_are_optimal():
    import kmeans1d

    X = table(300, 3, dtype=np.float64)
    pq = ProductQuantizer(1, 5, random_state=0).fit(X)
    for j in range(3):
        labels, centers = kmeans1d.cluster(X[:, j], 5)
        best = ((X[:, j] - np.array(centers)[labels]) ** 2).sum()
        column = pq.inverse_transform(pq.transform(X))[:, j]
        assert ((X[:, j] - column) ** 2).sum() == pytest.approx(best)
    shared = ProductQuantizer(1, 7, codebook="shared", random_state=0).fit(X)
    labels, centers = kmeans1d.cluster(X.ravel(), 7)
    best = ((X.ravel() - np.array(centers)[labels]) ** 2).sum()
    assert -shared.score(X) * X.size == pytest.approx(best)


@pytest.mark.parametrize("codebook", ["per_block", "shared"])
def test_weight_two_is_the_row_twice(codebook):
    X = table(200, dtype=np.float64)
    counts = np.random.default_rng(1).integers(0, 4, 200)
    counts[:16] = 1
    weighted = quantizer(codebook=codebook, scale="row").fit(X, sample_weight=counts)
    repeated = quantizer(codebook=codebook, scale="row").fit(np.repeat(X, counts, axis=0))
    np.testing.assert_allclose(weighted.codebooks_, repeated.codebooks_)
    assert weighted.score(X, sample_weight=counts) == pytest.approx(
        repeated.score(np.repeat(X, counts, axis=0))
    )


def test_ones_are_no_weights():
    X = table()
    plain = quantizer().fit(X)
    weighted = quantizer().fit(X, sample_weight=np.ones(400), importance=np.ones(10))
    np.testing.assert_array_equal(plain.codebooks_, weighted.codebooks_)
    np.testing.assert_array_equal(plain.transform(X), weighted.transform(X))


@pytest.mark.parametrize("codebook", ["per_block", "shared"])
def test_important_columns_lose_less(codebook):
    X = np.random.default_rng(0).normal(size=(3000, 8))
    importance = np.array([100, 1, 1, 1, 1, 1, 1, 100.0])
    pq = quantizer(codebook=codebook)

    def weighted_error(decoded):
        return float((((X - decoded) ** 2) * importance).mean())

    plain = weighted_error(pq.inverse_transform(pq.fit_transform(X)))
    codes = pq.fit_transform(X, importance=importance)
    assert weighted_error(pq.inverse_transform(codes)) < 0.6 * plain


def test_a_column_of_no_importance_stays_finite():
    X = table()
    pq = quantizer().fit(X, importance=np.arange(10.0))
    assert np.isfinite(pq.inverse_transform(pq.transform(X))).all()


@pytest.mark.parametrize("codebook", ["per_block", "shared"])
def test_metric_of_blocks(codebook):
    X = table(2000, 10, dtype=np.float64)
    A = np.random.default_rng(2).normal(size=(4, 4))
    H = A @ A.T
    pq = quantizer(codebook=codebook).fit(X, importance=H)
    codes = pq.transform(X)
    assert reference.margins(pq.decoder_, X[:50], codes[:50], H).max() < 1e-3

    def error_in_metric(fitted):
        e = (X - fitted.inverse_transform(fitted.transform(X)))[:, :8].reshape(-1, 4)
        return float(np.einsum("it,tu,iu->", e, H, e))

    assert error_in_metric(pq) < error_in_metric(quantizer(codebook=codebook).fit(X))
    assert pq.decoder_.column_scales is None  # a metric costs nothing


@pytest.mark.parametrize(
    "other",
    [KMeans(n_init=1), PGKMeans(metric="cosine"), PGKMeans(max_iter=2)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_other_quantizers(other):
    X = table(500, dtype=np.float64)
    pq = quantizer(quantizer=other)
    codes = pq.fit_transform(X)
    assert pq.n_effective_codes_.tolist() == [[16, 16, 16]]
    assert not hasattr(other, "cluster_centers_")
    alone = clone(other).set_params(n_clusters=16, random_state=0).fit(X[:, :4])
    assert alone.cluster_centers_.shape == pq.codebooks_[0, 0].shape
    assert reference.margins(pq.decoder_, X, codes).max() < 1e-9


def test_a_quantizer_that_finds_fewer_words():
    X = np.repeat(np.eye(4) * 10, 10, axis=0) + table(40, 4, dtype=np.float64) * 1e-3
    pq = ProductQuantizer(4, 16, quantizer=MeanShift(bandwidth=1.0))
    with pytest.warns(ConvergenceWarning, match="1 of 1 codebooks have fewer than n_codes=16"):
        pq.fit(X)
    assert pq.n_effective_codes_.tolist() == [[4]]
    assert set(np.unique(pq.transform(X))) == {0, 1, 2, 3}


def test_fewer_distinct_blocks_than_words():
    X = np.zeros((50, 6))
    X[:, :2] = np.arange(50)[:, np.newaxis] % 5
    X[:, 2:] = table(50, 4, dtype=np.float64)
    pq = ProductQuantizer(2, 8, random_state=0)
    with pytest.warns(ConvergenceWarning, match="1 of 3 codebooks .* one of them 5"):
        pq.fit(X)
    assert pq.n_effective_codes_.tolist() == [[5, 8, 8]]
    np.testing.assert_allclose(pq.inverse_transform(pq.transform(X))[:, :2], X[:, :2])


# ---------------------------------------------------------------- search and packed codes


def test_topk_finds_the_nearest_decoded_rows(variant):
    X, queries = table(), table(9, seed=3)
    pq = quantizer(**variant)
    codes = pq.fit_transform(X, importance=np.linspace(1, 3, 10))
    decoded = reference.decode(pq.decoder_, codes)
    sq_dist, rows = pq.topk(queries, codes, k=5)
    expected, _ = reference.nearest(decoded, queries, 5)
    scale = (queries.astype(float) ** 2).sum(axis=1).max()
    np.testing.assert_allclose(sq_dist, expected, atol=1e-5 * scale)
    own = ((queries[:, None].astype(float) - decoded[rows]) ** 2).sum(axis=2)
    np.testing.assert_allclose(own, sq_dist, atol=1e-5 * scale)
    products, rows = pq.topk(queries, codes, k=5, metric="inner_product")
    expected = -np.sort(-(queries.astype(float) @ decoded.T), axis=1)[:, :5]
    np.testing.assert_allclose(products, expected, atol=1e-5 * scale)


def test_compressed_matrix(variant):
    X = table()
    pq = quantizer(**variant)
    matrix = pq.compress(X)
    codes = pq.transform(X)
    np.testing.assert_array_equal(matrix.codes(), codes)
    np.testing.assert_array_equal(matrix.decode(), pq.inverse_transform(codes))
    np.testing.assert_array_equal(matrix.decode([4, 4, 399]), matrix.decode()[[4, 4, 399]])
    assert matrix.shape == X.shape
    error = np.linalg.norm(X.astype(float) - matrix.decode()) / np.linalg.norm(X.astype(float))
    assert matrix.relative_error == pytest.approx(error)
    n_codes = 400 * pq.decoder_.n_block_codes
    n_bytes = n_codes * 4 // 8 + (400 if matrix.scale_codes is not None else 0)
    assert matrix.nbytes == n_bytes + pq.decoder_.nbytes
    assert 0 < matrix.entropy <= 4
    assert matrix.bits_per_weight == 8 * matrix.nbytes / X.size
    values, rows = matrix.topk(X[:3], 4)
    expected = pq.topk(X[:3], codes, 4)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(rows, expected[1])


@pytest.mark.parametrize("row", [3, -1])
def test_rows_that_a_matrix_does_not_have(row):
    """Three rows of 4 bits lie in two bytes, where a fourth one would have room."""
    pq = ProductQuantizer(4, 16, random_state=0).fit(table(50, 4))
    matrix = pq.encode(table(3, 4))
    assert matrix.packed.nbytes == 2
    for method in (matrix.codes, matrix.decode):
        with pytest.raises(ValueError, match=f"{row}"):
            method([row])


def test_encode_uses_the_codebooks_there_are():
    pq = quantizer().fit(table())
    fresh = table(50, seed=5)
    before = pq.codebooks_.copy()
    np.testing.assert_array_equal(pq.encode(fresh).codes(), pq.transform(fresh))
    np.testing.assert_array_equal(pq.codebooks_, before)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@given(
    n=st.integers(20, 60),
    d=st.integers(1, 12),
    block_size=st.integers(1, 5),
    n_codes=st.integers(2, 20),
    codebook=st.sampled_from(["per_block", "shared"]),
    rotation=st.sampled_from([None, "hadamard"]),
    scale=st.sampled_from([None, "row", "block"]),
    n_stages=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)
def test_round_trips(n, d, block_size, n_codes, codebook, rotation, scale, n_stages, seed):
    X = np.random.default_rng(seed).normal(size=(n, d))
    pq = ProductQuantizer(
        block_size, n_codes, codebook=codebook, rotation=rotation, scale=scale,
        n_stages=n_stages, random_state=seed,
    )  # fmt: skip
    codes = pq.fit_transform(X)
    matrix = pq.encode(X)
    np.testing.assert_array_equal(matrix.codes(), codes)
    np.testing.assert_array_equal(matrix.decode(), pq.inverse_transform(codes))
    again = pq.score(X)
    assert again <= 0
    assert matrix.relative_error == pytest.approx(np.sqrt(-again * X.size / (X**2).sum()))


# ---------------------------------------------------------------- conventions


def test_in_a_pipeline_and_a_grid_search():
    X = table(300, 12, dtype=np.float64)
    pipeline = make_pipeline(PCA(8, random_state=0), quantizer())
    codes = pipeline.fit_transform(X)
    assert codes.shape == (300, 2)
    assert pipeline.inverse_transform(codes).shape == X.shape
    search = GridSearchCV(quantizer(), {"block_size": [2, 6]}, cv=2).fit(X)
    assert search.best_params_ == {"block_size": 2}


def test_set_output_and_names():
    X = pd.DataFrame(table(dtype=np.float64), columns=[f"x{t}" for t in range(10)])
    pq = quantizer(scale="row").set_output(transform="pandas")
    codes = pq.fit_transform(X)
    assert list(codes.columns) == [f"productquantizer{c}" for c in range(4)]
    assert (codes.dtypes == np.uint8).all()
    assert pq.inverse_transform(codes).shape == (400, 10)


def test_clone_and_pickle(variant):
    X = table()
    pq = quantizer(**variant).fit(X)
    np.testing.assert_array_equal(clone(pq).fit(X).codebooks_, pq.codebooks_)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pq)).transform(X), pq.transform(X))


def test_random_state_decides():
    X = table(40_000, 10)  # large enough for random rows
    first, again = (ProductQuantizer(10, 256, random_state=3).fit(X) for _ in range(2))
    other = ProductQuantizer(10, 256, random_state=4).fit(X)
    np.testing.assert_array_equal(first.codebooks_, again.codebooks_)
    assert (first.codebooks_ != other.codebooks_).any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"block_size": 0}, r"Got block_size=0, but expected an int >= 1"),
        ({"n_codes": 1}, r"Got n_codes=1, but expected an int >= 2"),
        ({"n_codes": 65_537}, r"Got n_codes=65537, but expected at most 65536"),
        ({"n_codes": 16.0}, r"Got n_codes=16.0, but expected an int"),
        ({"n_stages": 0}, r"Got n_stages=0"),
        ({"max_iter": 0}, r"Got max_iter=0"),
        ({"rows_per_code": 0}, r"Got rows_per_code=0"),
        ({"codebook": "none"}, r"Got codebook='none', but expected one of 'per_block', 'shared'"),
        ({"rotation": "pca"}, r"Got rotation='pca', but expected one of 'hadamard', 'opq'"),
        ({"scale": True}, r"Got scale=True, but expected one of 'row', 'block'"),
        ({"codebook_dtype": "int8"}, r"Got codebook_dtype='int8'"),
        ({"quantizer": 3}, r"Got quantizer=3, but expected a clusterer or None"),
        ({"n_codes": 500}, r"Got 400 blocks for a codebook \(n_samples=400\).* n_codes=500"),
    ],
)
def test_wrong_parameters(parameters, message):
    pq = quantizer().fit(table())
    before = pq.codebooks_
    with pytest.raises(ValueError, match=message):
        pq.set_params(**parameters).fit(table())
    assert pq.codebooks_ is before


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones(9), r"shape \(9,\), but expected \(10,\), .* or \(4, 4\)"),
        (np.full(10, np.nan), "not finite"),
        (-np.ones(10), "from -1 to -1, but expected weights >= 0"),
        (np.zeros(10), "not all zero"),
        (np.arange(16.0).reshape(4, 4), "not symmetric"),
        (-np.eye(4), "eigenvalue -1"),
        (np.zeros((4, 4)), "zero or not symmetric"),
    ],
)
def test_wrong_importance(importance, message):
    with pytest.raises(ValueError, match=message):
        quantizer().fit(table(), importance=importance)


def test_a_metric_of_blocks_and_a_rotation_exclude_each_other():
    with pytest.raises(ValueError, match=r"metric of blocks .* rotation='opq'"):
        quantizer(rotation="opq").fit(table(), importance=np.eye(4))


@pytest.mark.parametrize("factor", [1e6, 1e-7])
def test_half_precision_that_cannot_hold_the_words(factor):
    with pytest.raises(ValueError, match=r"codebook_dtype='float16'.* to within 1 %"):
        quantizer(codebook_dtype="float16").fit(table() * np.float32(factor))


def test_wrong_codes():
    pq = quantizer(n_codes=10, scale="row").fit(table())
    codes = pq.transform(table())
    with pytest.raises(ValueError, match="Got codes of dtype float64, but expected integers"):
        pq.inverse_transform(codes.astype(float))
    with pytest.raises(ValueError, match="3 columns, but expected 4"):
        pq.inverse_transform(codes[:, :3])
    wrong = codes.astype(np.int64)
    wrong[5, 1] = 10
    with pytest.raises(ValueError, match="Got code 10, but expected 0 to 9"):
        pq.inverse_transform(wrong)
    wrong[5, 1], wrong[5, 3] = -1, 256
    with pytest.raises(ValueError, match="Got code -1"):
        pq.topk(table(3), wrong, 2)
    wrong[5, 1] = 0
    with pytest.raises(ValueError, match="Got size 256, but expected 0 to 255"):
        pq.inverse_transform(wrong)


def test_wrong_searches():
    pq = quantizer().fit(table())
    codes = pq.transform(table())
    with pytest.raises(ValueError, match="Got k=401, but expected at most 400"):
        pq.topk(table(3), codes, 401)
    with pytest.raises(ValueError, match="Got k=0"):
        pq.topk(table(3), codes, 0)
    with pytest.raises(ValueError, match="Got metric='cosine'"):
        pq.topk(table(3), codes, 3, metric="cosine")
    with pytest.raises(ValueError, match="NaN"):
        pq.topk(np.full((1, 10), np.nan), codes, 3)


def test_weights_that_a_quantizer_cannot_use():
    class NoWeights(MeanShift):
        def fit(self, X, y=None):
            return super().fit(X)

    with pytest.raises(ValueError, match=r"NoWeights.fit has no sample_weight"):
        quantizer(quantizer=NoWeights()).fit(table(), sample_weight=np.ones(400))
    with pytest.raises(ValueError, match="DBSCAN has no cluster_centers_"):
        quantizer(quantizer=DBSCAN()).fit(table())


def test_unfitted():
    for call in ("transform", "score", "encode"):
        with pytest.raises(NotFittedError):
            getattr(quantizer(), call)(table())


def test_a_row_of_zeros_and_constant_columns():
    X = table()
    X[3] = 0
    X[:, 2] = 7
    for parameters in VARIANTS.values():
        pq = quantizer(**parameters).fit(X)
        assert np.isfinite(pq.inverse_transform(pq.transform(X))).all()
    zeros = np.zeros((40, 8))
    for scale in (None, "row", "block"):
        with pytest.warns(ConvergenceWarning):
            pq = quantizer(scale=scale).fit(zeros)
        np.testing.assert_array_equal(pq.inverse_transform(pq.transform(zeros)), zeros)
        assert pq.encode(zeros).relative_error == 0.0


def test_weights_and_importance_are_routed():
    X = table(300, 8, dtype=np.float64)
    weights, importance = np.linspace(0.1, 2, 300), np.linspace(1, 9, 8)
    with config_context(enable_metadata_routing=True):
        pq = quantizer().set_fit_request(sample_weight=True, importance=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, pq).fit(X, sample_weight=weights, importance=importance)
    scaled = StandardScaler().fit_transform(X)
    expected = quantizer().fit(scaled, sample_weight=weights, importance=importance)
    np.testing.assert_array_equal(pipeline[-1].codebooks_, expected.codebooks_)


def test_memory_of_a_fit_and_of_encoding():
    """Beyond the rows: codes, and little that does not grow with them."""
    X = table(60_000, 64)  # 15 MB
    pq = ProductQuantizer(8, 16, max_iter=2, random_state=0)
    with threadpool_limits(1):  # each thread has blocks of its own under way
        pq.fit(X).encode(X)  # compiling takes megabytes of its own
        tracemalloc.start()
        matrix = pq.fit(X).encode(X)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert matrix.nbytes < 60_000 * 8 * 4 / 8 + pq.decoder_.nbytes + 1
    assert peak < 60_000 * (8 + 8 + 4) + 2**23
