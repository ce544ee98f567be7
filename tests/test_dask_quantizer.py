"""ProductQuantizer on rows in blocks, of dask and RowBlocks: the same bytes as in memory."""

import multiprocessing
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from pgkmeans_sk import ProductQuantizer, RowBlocks
from pgkmeans_sk.engines import chunks, closest
from pgkmeans_sk.quantization import blocked_rows, fit
from tests import problems
from tests.test_product_quantizer import VARIANTS, quantizer, table
from tests.test_row_blocks import Chunks

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

from pgkmeans_sk.engines import dask_blocks  # noqa: E402  # after the check that dask is there
from tests.dask_problems import lazy, local_cluster  # noqa: E402


@pytest.fixture(autouse=True)
def synchronous():
    """One thread, unless a test says otherwise: what fails is then easy to follow."""
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def like_many(monkeypatch):
    """Few rows are summed and sampled like many."""
    monkeypatch.setattr(chunks, "CHUNK_WORK", 900)
    monkeypatch.setattr(closest, "LENGTH_NUMBERS", 64)
    monkeypatch.setattr(fit, "SAMPLE_ROWS_PER_CODE", 9)


N = 611
X = table(N, 10)
WEIGHTS = np.where(np.arange(N) % 5 == 0, 0.0, np.random.default_rng(0).uniform(0, 3, N))

CUTS = {
    "one": ((N,), (10,)),
    "ragged": ((1, 5, 588, 2, 15), (10,)),
    "without rows": ((0, 400, 0, 211, 0), (10,)),
    "cut columns": (130, (3, 7)),
}
cuts = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)


def in_blocks(X):
    """The rows in two kinds of blocks."""
    return [lazy(X, (130, X.shape[1])), RowBlocks(X, memory_limit=3000)]


def assert_same_bytes(found, expected):
    found = np.asarray(found)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


def assert_same_fit(found, expected):
    """Fitted attributes, and all that a decoder is made of."""
    parts, wanted = found.decoder_.arrays(), expected.decoder_.arrays()
    assert parts.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_same_bytes(parts[name], value)
    assert found.decoder_.dtype == expected.decoder_.dtype
    assert found.n_iter_ == expected.n_iter_
    assert_same_bytes(found.n_effective_codes_, expected.n_effective_codes_)


def assert_same_use(found, expected, rows, X, weights=None):
    """``found`` does with ``rows`` what ``expected`` does with the same rows ``X`` in memory."""
    codes = expected.transform(X)
    assert_same_bytes(found.transform(rows), codes)
    assert found.score(rows, sample_weight=weights) == expected.score(X, sample_weight=weights)
    small, wanted = found.encode(rows), expected.encode(X)
    assert_same_bytes(small.codes(), wanted.codes())
    assert small.relative_error == wanted.relative_error
    assert small.entropy == wanted.entropy
    assert small.nbytes == wanted.nbytes


# ------------------------------------------------------------------ the same bytes


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows_per_code", [7, 256])
@pytest.mark.usefixtures("like_many")
def test_fit_is_that_of_rows_in_memory(variant, weighted, rows_per_code):
    weights = WEIGHTS if weighted else None
    parameters = variant | {"rows_per_code": rows_per_code}
    expected = quantizer(**parameters).fit(X, sample_weight=weights)
    for rows in in_blocks(X):
        found = quantizer(**parameters).fit(rows, sample_weight=weights)
        assert_same_fit(found, expected)
        assert_same_use(found, expected, rows, X, weights)


@cuts
@pytest.mark.usefixtures("like_many")
def test_chunks_do_not_matter(cut):
    parameters = {"rows_per_code": 8, "scale": "row", "n_stages": 2}
    expected = quantizer(**parameters).fit(X, sample_weight=WEIGHTS)
    weights = da.from_array(WEIGHTS, chunks=301)  # cut otherwise than the rows
    found = quantizer(**parameters).fit(lazy(X, cut), sample_weight=weights)
    assert_same_fit(found, expected)
    assert_same_use(found, expected, lazy(X, cut), X)
    assert found.score(lazy(X, cut), sample_weight=weights) == expected.score(X, None, WEIGHTS)


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=8),
    seed=st.integers(0, 99),
    variant=st.sampled_from(sorted(VARIANTS)),
    weighted=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_how_rows_are_cut_does_not_matter(lengths, seed, variant, weighted, dtype):
    rows = np.round(table(150, 7, seed=seed, dtype=dtype), 1)  # some are equal
    weights = np.random.default_rng(seed).integers(0, 3, 150).astype(float) if weighted else None
    ends = np.minimum(np.cumsum([0, *lengths]), 150)
    cut = (*np.diff(ends).tolist(), 150 - int(ends[-1]))
    parameters = VARIANTS[variant] | {"n_codes": 8, "rows_per_code": 1 + seed % 20}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        patch.setattr(chunks, "CHUNK_WORK", 700)
        patch.setattr(dask_blocks, "TILES_PER_THREAD", seed % 4)
        expected = quantizer(**parameters).fit(rows, sample_weight=weights)
        found = quantizer(**parameters).fit(lazy(rows, (cut, 7)), sample_weight=weights)
    assert_same_fit(found, expected)
    assert_same_use(found, expected, lazy(rows, (cut, 7)), rows)


@pytest.mark.parametrize(
    "parameters",
    [
        {"block_size": 1, "n_codes": 5},
        {"block_size": 1, "n_codes": 5, "codebook": "shared"},
        {"block_size": 3},  # a last block of one column, all of which is looked at
        {"block_size": 3, "codebook": "shared"},
        {"rows_per_code": None},
        {"block_size": 99},
        {"n_codes": 300},
        {"quantizer": KMeans(n_init=1, max_iter=3)},
        {"max_iter": 1, "random_state": np.random.RandomState(3)},
    ],
    ids=", ".join,
)
def test_every_option_is_that_of_rows_in_memory(parameters):
    def fitted(rows):
        copied = pickle.loads(pickle.dumps(parameters))  # a generator, too
        return quantizer(**({"rows_per_code": 9} | copied)).fit(rows, sample_weight=WEIGHTS)

    for rows in in_blocks(X):
        assert_same_fit(fitted(rows), fitted(X))


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("codebook", ["shared", "per_block"])
def test_importance_is_that_of_rows_in_memory(metric, codebook):
    factor = np.random.default_rng(0).normal(size=(4, 4))
    importance = factor @ factor.T if metric else np.arange(10.0)
    parameters = {"codebook": codebook, "rows_per_code": 9}
    expected = quantizer(**parameters).fit(X, importance=importance)
    for rows in in_blocks(X):
        found = quantizer(**parameters).fit(rows, importance=importance)
        assert_same_fit(found, expected)
        assert_same_use(found, expected, rows, X)


@pytest.mark.parametrize(
    "pattern", ["duplicates", "all rows equal", "one outlier", "two far blobs"]
)
@pytest.mark.parametrize("variant", ["plain", "all", "blocks"])
def test_rows_that_are_hard_to_quantize(pattern, variant):
    rows = problems.rows(pattern, 60, 8, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = quantizer(**VARIANTS[variant]).fit(rows)
        found = quantizer(**VARIANTS[variant]).fit(lazy(rows, (7, 8)))
    assert_same_fit(found, expected)
    assert_same_use(found, expected, lazy(rows, (7, 8)), rows)


def test_rows_of_zeros_have_a_size_too():
    rows = np.where(np.arange(N)[:, None] % 3 == 0, 0.0, X)
    for own in (rows, np.zeros_like(rows)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            expected = quantizer(scale="row", rows_per_code=5).fit(own)
            found = quantizer(scale="row", rows_per_code=5).fit(lazy(own, (100, 10)))
        assert_same_fit(found, expected)
        assert_same_use(found, expected, lazy(own, (100, 10)), own)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8"])
def test_dtypes_are_those_of_fit(dtype):
    rows = (np.abs(X) * 5).astype(dtype)
    expected = quantizer().fit(rows)
    for own in in_blocks(rows):
        found = quantizer().fit(own)
        assert_same_fit(found, expected)
        assert_same_use(found, expected, own, rows)
    assert_same_bytes(
        found.inverse_transform(found.transform(lazy(rows, (99, 10)))),
        expected.inverse_transform(expected.transform(rows)),
    )


def test_arrays_that_come_one_after_the_other():
    parameters = {"rows_per_code": 8, "scale": "block", "codebook": "shared", "rotation": "opq"}
    expected = quantizer(**parameters).fit(X, sample_weight=WEIGHTS)
    rows = RowBlocks(Chunks(X, [7, 300, 1, 90]))
    found = quantizer(**parameters).fit(rows, sample_weight=WEIGHTS)
    assert_same_fit(found, expected)
    assert_same_use(found, expected, rows, X, WEIGHTS)


def test_blocks_without_weight_are_not_drawn():
    """The square of a tiny scale is nothing."""
    rows = np.round(table(N, 8, dtype=np.float64), 1)
    rows[:, 4:] *= 1e-170
    parameters = {"rows_per_code": 8, "scale": "block", "codebook": "shared"}
    expected = quantizer(**parameters).fit(rows)
    assert_same_fit(quantizer(**parameters).fit(lazy(rows, (99, 8))), expected)


def test_how_rows_lie_in_memory_does_not_matter():
    for parameters in ({"scale": "row"}, {"scale": "block", "codebook": "shared"}, {}):
        expected = quantizer(**parameters).fit(X)
        turned = np.asfortranarray(X)
        found = quantizer(**parameters).fit(turned)
        assert_same_fit(found, expected)
        assert_same_use(found, expected, turned, X)


def test_threads_do_not_matter():
    parameters = {"rows_per_code": 8, "rotation": "hadamard", "n_stages": 2}
    expected = quantizer(**parameters).fit(X, sample_weight=WEIGHTS)
    with dask.config.set(scheduler="threads", num_workers=4):
        found = quantizer(**parameters).fit(lazy(X, (50, 10)), sample_weight=WEIGHTS)
        assert_same_fit(found, expected)
        assert_same_use(found, expected, lazy(X, (50, 10)), X)


@pytest.mark.slow
def test_processes_do_not_matter():
    parameters = {"rows_per_code": 8, "rotation": "hadamard", "scale": "row", "n_stages": 2}
    expected = quantizer(**parameters).fit(X, sample_weight=WEIGHTS)
    spawning = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(2, mp_context=spawning) as pool,
        dask.config.set(scheduler="processes", pool=pool),
    ):
        found = quantizer(**parameters).fit(lazy(X, (250, 10)), sample_weight=WEIGHTS)
        assert_same_fit(found, expected)
        assert_same_use(found, expected, lazy(X, (250, 10)), X)
        blocks = quantizer(codebook="shared", scale="block").fit(lazy(X, (250, 10)))
        assert_same_fit(blocks, quantizer(codebook="shared", scale="block").fit(X))


# ------------------------------------------------------------------ what is computed, and where


def test_only_what_training_looks_at_comes_to_one_place(monkeypatch):
    brought = []

    def each(self, work, *arguments, original=dask_blocks.DaskBlocks.each, **options):
        found = original(self, work, *arguments, **options)
        brought.append((work.__name__, len(pickle.dumps(found))))
        return found

    monkeypatch.setattr(dask_blocks.DaskBlocks, "each", each)
    rows = table(20_000, 10)
    ProductQuantizer(4, 16, rows_per_code=8, n_stages=2, rotation="hadamard").fit(
        lazy(rows, (3000, 10))
    )
    assert [name for name, _ in brought] == ["_take_blocks", "_take_blocks"]  # one a stage
    values = 16 * 8 * 10 * 4
    assert all(values < n_bytes < 2 * values + 10_000 < rows.nbytes / 10 for _, n_bytes in brought)


@cuts
def test_transform_and_inverse_transform_are_lazy(cut):
    pq = quantizer(scale="row").fit(X)
    rows = lazy(X, cut)
    codes = pq.transform(rows)
    decoded = pq.inverse_transform(codes)
    assert isinstance(codes, da.Array)
    assert isinstance(decoded, da.Array)
    assert (codes.dtype, codes.shape, decoded.shape) == (np.uint8, (N, 4), (N, 10))
    assert decoded.dtype == np.float32
    lengths = tuple(length for length in rows.chunks[0] if length)
    assert codes.chunks[0] == decoded.chunks[0] == lengths
    expected = pq.transform(X)
    assert_same_bytes(codes.compute(), expected)
    assert_same_bytes(decoded.compute(), pq.inverse_transform(expected))
    assert_same_bytes(pq.fit_transform(rows).compute(), expected)
    with pytest.raises(NotFittedError):
        quantizer().transform(rows)


def test_many_codes_and_other_integers():
    pq = quantizer(n_codes=300).fit(X)
    codes = pq.transform(lazy(X, (99, 10)))
    assert codes.dtype == np.uint16
    wide = codes.astype(np.int64).rechunk((40, 1))
    assert_same_bytes(pq.inverse_transform(wide).compute(), pq.inverse_transform(pq.transform(X)))


def test_a_compressed_collection_is_that_of_its_rows(tmp_path):
    files = [tmp_path / name for name in ("expected", "found")]
    for rows, file in zip((X, lazy(X, (99, 10))), files, strict=True):
        quantizer(scale="row", rows_per_code=5).compress(rows, sample_weight=WEIGHTS).save(file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_dataframes_and_unknown_lengths():
    pandas = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    whole = pandas.DataFrame(X, columns=list("abcdefghij"))
    frame = dd.from_pandas(whole, npartitions=4)
    expected = quantizer().fit(whole, sample_weight=WEIGHTS)
    series = dd.from_pandas(whole.assign(w=WEIGHTS), npartitions=4)["w"]
    found = quantizer().fit(frame, sample_weight=series)
    assert_same_fit(found, expected)
    assert list(found.feature_names_in_) == list("abcdefghij")
    assert_same_bytes(found.transform(frame).compute(), expected.transform(whole))
    with pytest.raises(ValueError, match="feature names should match"):
        found.transform(frame.rename(columns={"a": "z"}))

    rows = lazy(X, (130, 10))
    rows, kept = rows[rows[:, 0] > 0], X[X[:, 0] > 0]
    assert np.isnan(rows.shape[0])
    expected = quantizer().fit(kept)
    found = quantizer().fit(rows)
    assert_same_fit(found, expected)
    codes = found.transform(rows)
    assert_same_bytes(codes.compute(), expected.transform(kept))
    assert_same_bytes(
        found.inverse_transform(codes).compute(),
        expected.inverse_transform(expected.transform(kept)),
    )


# ------------------------------------------------------------------ what is refused


def refused(rows, error, message, sample_weight=None, **parameters):
    pq = quantizer().fit(X).set_params(**parameters)
    before = pickle.dumps(pq)
    with pytest.raises(error, match=message):
        pq.fit(rows, sample_weight=sample_weight)
    assert pickle.dumps(pq) == before


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_bad_chunks_are_named(value, name):
    bad = X.copy()
    bad[300, 1] = value
    message = f"contains {name}: got it in chunk 2"
    refused(lazy(bad, (130, 10)), ValueError, message)
    pq = quantizer().fit(X)
    codes = pq.transform(lazy(bad, (130, 10)))  # not looked at before it is asked for
    with pytest.raises(ValueError, match=message):
        codes.compute()
    for method in (pq.score, pq.encode):
        with pytest.raises(ValueError, match=message):
            method(lazy(bad, (130, 10)))


def test_wrong_chunks_are_named():
    def narrow(chunk, block_info=None):
        return chunk[:, :3] if block_info[None]["chunk-location"][0] == 1 else chunk

    rows = lazy(X, (400, 10)).map_blocks(narrow, dtype=X.dtype, chunks=((400, 211), (10,)))
    refused(rows, ValueError, r"chunk 1 of shape \(211, 3\), but expected \(rows, 10\)")


def test_codes_that_are_none_are_named():
    pq = quantizer().fit(X)
    codes = pq.transform(X)
    codes[200, 1] = 16
    decoded = pq.inverse_transform(lazy(codes, (130, 3)))
    with pytest.raises(ValueError, match=r"Got code 16, but expected 0 to 15: it is in chunk 1"):
        decoded.compute()
    with pytest.raises(ValueError, match="Got codes with 2 columns, but expected 3"):
        pq.inverse_transform(lazy(codes[:, :2], 99))
    with pytest.raises(ValueError, match="Got codes of dtype float64"):
        pq.inverse_transform(lazy(codes.astype(float), 99))


def test_other_checks_are_those_of_fit():
    rows = lazy(X, (250, 10))
    refused(rows[:9], ValueError, "Got 9 blocks for a codebook")
    refused(rows[:0], ValueError, "0 sample")
    refused(rows[:, 0], ValueError, "Expected 2D array")
    refused(rows, ValueError, r"sample_weight.shape == \(3,\)", sample_weight=np.ones(3))
    refused(rows, ValueError, "Negative values", sample_weight=-da.ones(N, chunks=100))
    refused(rows, ValueError, "Got block_size=0", block_size=0)
    with pytest.raises(ValueError, match="3 features, but ProductQuantizer is expecting 10"):
        quantizer().fit(X).transform(rows[:, :3])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"scale": "row"}, f"Got scale='row' .* at most 600 values .* they are {N}"),
        ({"rows_per_code": None}, f"Got rows_per_code=None .* they are {10 * N}"),
        ({"quantizer": KMeans()}, f"Got a quantizer of its own .* they are {10 * N}"),
        ({"block_size": 1, "n_codes": 2, "rows_per_code": 3}, "Got block_size=1 with rows"),
        ({"block_size": 3, "rows_per_code": 3}, f"a last block of one column, .* they are {N}"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_needs_too_many_rows_together_is_named(parameters, message, monkeypatch):
    monkeypatch.setattr(blocked_rows, "GATHERED_NUMBERS", 600)
    for rows in in_blocks(X):
        refused(rows, ValueError, message, **parameters)
    quantizer(rows_per_code=3).fit(in_blocks(X)[0])  # what is drawn may be any number


# ------------------------------------------------------------------ a cluster


def test_a_client_in_use_is_taken():
    parameters = {"rows_per_code": 8, "codebook": "shared", "scale": "block", "n_stages": 2}
    expected = quantizer(**parameters).fit(X, sample_weight=WEIGHTS)
    with dask.config.set({"distributed.worker.memory.target": False}), local_cluster(2):
        rows = lazy(X, (100, 10)).persist()
        distributed.wait(rows)
        found = quantizer(**parameters).fit(rows, sample_weight=WEIGHTS)
        assert_same_fit(found, expected)
        assert_same_use(found, expected, rows, X)
