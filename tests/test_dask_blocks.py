"""Rows of dask give the same bytes as rows in memory, wherever tasks run and whatever is lost."""

import multiprocessing
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.engines import chunks, dense_pass, tile_memory, tiles
from pgkmeans_sk.engines.ordered_tasks import Share, runs_of, shares_of
from tests import problems
from tests.test_row_blocks import assert_same_fit

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
bag = pytest.importorskip("dask.bag")

from pgkmeans_sk.engines import dask_blocks  # noqa: E402
from tests.dask_problems import WEIGHTS, X, lazy, many_chunks  # noqa: E402, F401  # needs dask


@pytest.fixture(autouse=True)
def synchronous():
    """One thread, unless a test says otherwise: what fails is then easy to follow."""
    with dask.config.set(scheduler="synchronous"):
        yield


CHUNKS = {
    "one": ((903,), (4,)),
    "even": (200, 4),
    "ragged": ((1, 5, 890, 2, 5), (4,)),
    "without rows": ((0, 400, 0, 503, 0), (4,)),
    "cut columns": (300, (1, 3)),
}
chunkings = pytest.mark.parametrize("cut", CHUNKS.values(), ids=CHUNKS)


# ------------------------------------------------------------------ the same bytes


@chunkings
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.usefixtures("many_chunks")
def test_fit_is_that_of_rows_in_memory(cut, weighted):
    weights = WEIGHTS if weighted else None
    parameters = {"n_clusters": 20, "random_state": 3, "refine": 1}
    expected = PGKMeans(**parameters).fit(X, sample_weight=weights)
    # Weights cut otherwise than the rows.
    own = da.from_array(WEIGHTS, chunks=301) if weighted else None
    found = PGKMeans(**parameters).fit(lazy(X, cut), sample_weight=own)
    assert isinstance(found.labels_, da.Array)
    assert found.labels_.dtype == np.int32
    assert_same_fit(found, expected)
    assert found.engine_.startswith("dask-dense-")
    assert len(tile_memory.memory) == 0  # nothing is kept when a fit is over


@pytest.mark.parametrize(
    "parameters",
    [
        {"init": "k-means++", "n_init": 2},
        {"init": "random", "n_init": 2},
        {"init": "partition-ball"},
        {"metric": "cosine"},
        {"algorithm": "lloyd", "max_iter": 3},
        {"init": X[:20].astype(np.float64)},
    ],
    ids=lambda parameters: str(next(iter(parameters))),
)
@pytest.mark.usefixtures("many_chunks")
def test_every_start_is_that_of_rows_in_memory(parameters):
    parameters = {"n_clusters": 20, "random_state": 0} | parameters
    expected = PGKMeans(**parameters).fit(X, sample_weight=WEIGHTS)
    found = PGKMeans(**parameters).fit(lazy(X, (250, 4)), sample_weight=WEIGHTS)
    assert_same_fit(found, expected)


@pytest.mark.parametrize(
    "pattern", ["duplicates", "all rows equal", "one outlier", "two far blobs"]
)
@pytest.mark.parametrize("n_features", [1, 3])
def test_rows_that_are_hard_to_cluster(pattern, n_features):
    rows = problems.rows(pattern, 60, n_features, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = PGKMeans(12, random_state=0).fit(rows)
        found = PGKMeans(12, random_state=0).fit(lazy(rows, (7, n_features)))
    assert_same_fit(found, expected)


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(0, 60), max_size=8), seed=st.integers(0, 99))
def test_how_rows_are_cut_does_not_matter(lengths, seed):
    rows = np.round(np.random.default_rng(seed).normal(size=(150, 2)), 1)
    ends = np.minimum(np.cumsum([0, *lengths]), 150)
    cut = (*np.diff(ends).tolist(), 150 - int(ends[-1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_WORK", 3000)
        patch.setattr(dask_blocks, "TILES_PER_THREAD", seed % 4)
        expected = PGKMeans(6, random_state=seed).fit(rows)
        found = PGKMeans(6, random_state=seed).fit(lazy(rows, (cut, 2)))
    assert_same_fit(found, expected)


def test_threads_do_not_matter():
    expected = PGKMeans(9, random_state=0).fit(X)
    with dask.config.set(scheduler="threads", num_workers=4):
        assert_same_fit(PGKMeans(9, random_state=0).fit(lazy(X, (50, 4))), expected)


@pytest.mark.slow
def test_processes_do_not_matter():
    parameters = {"n_clusters": 9, "random_state": 0, "init": X[:9], "max_iter": 2}
    expected = PGKMeans(**parameters).fit(X)
    spawning = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(2, mp_context=spawning) as pool,
        dask.config.set(scheduler="processes", pool=pool),
    ):
        assert_same_fit(PGKMeans(**parameters).fit(lazy(X, (250, 4))), expected)


def test_bounds_do_not_change_a_bit(monkeypatch):
    from pgkmeans_sk.engines import pruning

    monkeypatch.setattr(pruning, "LEAST_WORK", 1)
    monkeypatch.setattr(pruning, "WARM_UP", 1)
    rows = problems.blobs(6000, 8, 64, seed=1).astype(np.float32)
    used = []
    monkeypatch.setattr(
        dense_pass.DensePass,
        "look_at_doubts",
        lambda *arguments, original=dense_pass.DensePass.look_at_doubts: (
            used.append(1) or original(*arguments)
        ),
    )
    parameters = {"n_clusters": 64, "random_state": 0, "init": "random", "n_init": 1}
    expected = PGKMeans(**parameters).fit(rows)
    assert_same_fit(PGKMeans(**parameters).fit(lazy(rows, (2500, 8))), expected)
    assert used


def test_what_is_remembered_only_saves_work(monkeypatch):
    """Tiles are forgotten between any two tasks, as if their worker was lost."""
    parameters = {"n_clusters": 9, "random_state": 0, "init": "random", "n_init": 1}
    expected = PGKMeans(**parameters).fit(X)
    rng = np.random.default_rng(0)

    def keep(self, fit, first, known, original=tile_memory.Memory.keep):
        if rng.random() < 0.5:
            original(self, fit, first, known)

    def keep_centers(self, now, original=tile_memory.Memory.keep_centers):
        if rng.random() < 0.5:
            original(self, now)

    monkeypatch.setattr(tile_memory.Memory, "keep", keep)
    monkeypatch.setattr(tile_memory.Memory, "keep_centers", keep_centers)
    assert_same_fit(PGKMeans(**parameters).fit(lazy(X, (250, 4))), expected)


def test_memory_is_limited_and_forgets_the_oldest():
    memory = tile_memory.Memory()
    known = tile_memory.Remembered(0, np.zeros(1, np.int32), 0, None)
    for fit in "abcdef":
        memory.keep(fit, 0, known)
    assert len(memory) == tile_memory.MAX_FITS
    assert memory.take("a", 0) is None
    assert memory.take("f", 0) is known
    assert memory.take("f", 0) is None
    for number in range(3):
        memory.keep_centers(a_pass("f", number))
    assert memory.centers_of("f", 0) is None
    assert [memory.centers_of("f", number)[0, 0] for number in (1, 2)] == [1, 2]
    memory.forget("f")
    assert memory.centers_of("f", 2) is None


def a_pass(fit, number, before=None):
    centers = np.full((2, 4), number, np.float32)
    return tile_memory.Pass(fit, number, centers, before, np.zeros(4, np.float32), 1.0)


def test_centers_are_sent_again_to_who_has_not_seen_them(monkeypatch):
    tile = tiles.Tile(X[:10], None, 0)
    assert tile_memory.label_tile(tile, a_pass("new", 5), Share((0, 10), True)) is None
    sent = []

    def label_tile(tile, now, share, original=tile_memory.label_tile):
        sent.append(now.before is not None)
        if now.number == 3 and now.before is None:
            tile_memory.forget(now.fit)  # as by a worker that was started anew
        return original(tile, now, share)

    monkeypatch.setattr(tile_memory, "label_tile", label_tile)
    parameters = {"n_clusters": 9, "random_state": 0, "init": "random", "n_init": 1, "tol": 0}
    found = PGKMeans(**parameters).fit(lazy(X, (250, 4)))
    assert sent[:4] == [False] * 4
    assert sent[-4:] == [True] * 4
    assert_same_fit(found, PGKMeans(**parameters).fit(X))


def test_shares_of_tiles_by_hand():
    shares = shares_of(np.array([0, 4, 5, 9]), np.array([0, 2, 7, 9]))
    assert [share.cuts for share in shares] == [(0, 2, 4), (1,), (2, 4)]
    assert [share.is_closed for share in shares] == [False, False, True]
    assert [share.goes_on for share in shares] == [False, True, True]
    assert runs_of(["a", "a", "b", None, None, "a"]) == [[0, 1], [2], [3, 4], [5]]


# ------------------------------------------------------------------ other methods


@chunkings
def test_predict_and_transform_are_lazy(cut):
    kmeans = PGKMeans(9, random_state=0).fit(X)
    rows = lazy(X, cut)
    labels, distances = kmeans.predict(rows), kmeans.transform(rows)
    assert isinstance(labels, da.Array)
    assert isinstance(distances, da.Array)
    assert (labels.dtype, distances.dtype) == (np.int32, np.float32)
    lengths = tuple(length for length in rows.chunks[0] if length)
    assert labels.chunks[0] == distances.chunks[0] == lengths
    assert distances.shape == (903, 9)
    np.testing.assert_array_equal(labels.compute(), kmeans.predict(X))
    np.testing.assert_array_equal(distances.compute(), kmeans.transform(X))
    assert kmeans.score(rows, sample_weight=WEIGHTS) == kmeans.score(X, sample_weight=WEIGHTS)
    with pytest.raises(NotFittedError):
        PGKMeans().predict(rows)


def test_fit_predict_and_fit_transform():
    rows, kmeans = lazy(X, (250, 4)), PGKMeans(5, random_state=0, metric="cosine")
    np.testing.assert_array_equal(
        kmeans.fit_predict(rows), PGKMeans(**kmeans.get_params()).fit_predict(X)
    )
    np.testing.assert_array_equal(kmeans.fit_transform(rows), kmeans.transform(X))


def test_partial_fit_takes_a_collection_as_one_batch():
    expected, found = PGKMeans(15, random_state=0), PGKMeans(15, random_state=0)
    # The second leaves clusters without rows of this batch.
    for batch in (X, X[:300] + 40.0, X[::-1]):
        expected.partial_fit(batch)
        found.partial_fit(lazy(batch, (100, 4)))
        assert_same_fit(found, expected)
    weights = WEIGHTS[:300]
    expected.partial_fit(X[:300] - 90.0, sample_weight=weights)
    found.partial_fit(lazy(X[:300] - 90.0, (100, 4)), sample_weight=weights)
    assert_same_fit(found, expected)


def test_a_fitted_estimator_can_be_pickled():
    kmeans = PGKMeans(5, random_state=0).fit(lazy(X, (250, 4)))
    again = pickle.loads(pickle.dumps(kmeans))
    np.testing.assert_array_equal(again.labels_.compute(), kmeans.predict(X))


def test_dataframes_and_unknown_lengths():
    pandas = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    table = pandas.DataFrame(X, columns=list("abcd"))
    frame = dd.from_pandas(table, npartitions=4)
    expected = PGKMeans(9, random_state=0).fit(table, sample_weight=WEIGHTS)
    found = PGKMeans(9, random_state=0).fit(frame, sample_weight=WEIGHTS)
    assert_same_fit(found, expected)
    assert list(found.feature_names_in_) == list("abcd")
    np.testing.assert_array_equal(found.predict(frame), expected.predict(table))
    with pytest.raises(ValueError, match="feature names should match"):
        found.predict(frame.rename(columns={"a": "z"}))
    # A weight for each row of the frame, in the same partitions.
    series = dd.from_pandas(table.assign(w=WEIGHTS), npartitions=4)["w"]
    assert_same_fit(PGKMeans(9, random_state=0).fit(frame, sample_weight=series), expected)

    rows = lazy(X, (250, 4))
    rows = rows[rows[:, 0] > 0]
    assert np.isnan(rows.shape[0])
    kept = X[X[:, 0] > 0]
    expected = PGKMeans(9, random_state=0).fit(kept)
    assert_same_fit(PGKMeans(9, random_state=0).fit(rows), expected)
    np.testing.assert_array_equal(expected.predict(rows).compute(), expected.labels_)
    weights = da.ones(903, chunks=100)
    with pytest.raises(ValueError, match="10 chunks, but expected 4"):
        PGKMeans(9).fit(rows, sample_weight=weights)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8"])
def test_dtypes_are_those_of_fit(dtype):
    rows = (X * 3).astype(dtype)
    expected = PGKMeans(5, random_state=0).fit(rows)
    assert_same_fit(PGKMeans(5, random_state=0).fit(lazy(rows, (300, 4))), expected)


class Stopper:
    """Stops a fit after so many iterations."""

    def __init__(self, n_iter):
        self.n_iter = n_iter

    def setup(self, estimator, context):
        self.rows = []

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context, *, X):
        self.rows.append(X)

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
        return context.task_name == "iteration" and fitted_estimator.n_iter_ == self.n_iter


def test_callbacks_stop_a_fit():
    pytest.importorskip("sklearn.callback")

    def fitted(rows):
        kmeans, stopper = PGKMeans(20, random_state=0, init="random", n_init=1, tol=0), Stopper(3)
        kmeans.set_callbacks(stopper).fit(rows)
        assert len(stopper.rows) == 5  # fit, start, three iterations
        assert all(seen is rows for seen in stopper.rows)
        return kmeans

    expected = fitted(X)
    assert expected.n_iter_ == 3
    assert_same_fit(fitted(lazy(X, (250, 4))), expected)


# ------------------------------------------------------------------ what is refused


def refused(rows, error, message, sample_weight=None, **parameters):
    kmeans = PGKMeans(3, random_state=0, **parameters)
    fitted = PGKMeans(3, random_state=0).fit(X)
    vars(kmeans).update({k: v for k, v in vars(fitted).items() if k.endswith("_")})
    before = pickle.dumps(kmeans)
    with pytest.raises(error, match=message):
        kmeans.fit(rows, sample_weight=sample_weight)
    assert pickle.dumps(kmeans) == before


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "contains NaN: got it in chunk 2"), (np.inf, "contains infinity: got it in chunk 2")],
)
def test_bad_chunks_are_named(value, message):
    bad = X.copy()
    bad[520, 1] = value
    refused(lazy(bad, (250, 4)), ValueError, message)
    kmeans = PGKMeans(3, random_state=0).fit(X)
    labels = kmeans.predict(lazy(bad, (250, 4)))  # not looked at before it is asked for
    with pytest.raises(ValueError, match=message):
        labels.compute()


def test_wrong_chunks_are_named():
    def narrow(chunk, block_info=None):
        return chunk[:, :3] if block_info[None]["chunk-location"][0] == 1 else chunk

    rows = lazy(X, (250, 4)).map_blocks(narrow, dtype=X.dtype, chunks=((250, 250, 250, 153), (4,)))
    refused(rows, ValueError, r"chunk 1 of shape \(250, 3\), but expected \(rows, 4\)")
    strange = lazy(X, (250, 4)).map_blocks(lambda chunk: chunk.tolist(), dtype=X.dtype, meta=X[:0])
    refused(strange, ValueError, "chunk 0 of type list")


def test_other_checks_are_those_of_fit():
    rows = lazy(X, (250, 4))
    refused(rows, ValueError, "Got size_min=2 with rows in blocks", size_min=2)
    refused(rows, ValueError, "Got consolidate='auto' with rows in blocks", consolidate="auto")
    refused(rows[:2], ValueError, "n_samples=2 should be >= n_clusters=3")
    refused(rows[:0], ValueError, "0 sample")
    refused(rows[:, 0], ValueError, "Expected 2D array")
    refused(rows.astype(complex), ValueError, "dtype complex")
    refused(rows, ValueError, r"sample_weight.shape == \(3,\)", sample_weight=np.ones(3))
    refused(rows, ValueError, "Negative values", sample_weight=-da.ones(903, chunks=100))
    refused(rows, ValueError, "at least one non-zero", sample_weight=np.zeros(903))
    refused(rows, ValueError, "sample_weight contains NaN", sample_weight=np.full(903, np.nan))
    refused(rows, ValueError, "finite sum", sample_weight=np.full(903, 1e308))
    refused(bag.from_sequence([1]), (TypeError, ValueError), "bag|2D")
    with pytest.raises(ValueError, match="3 features, but PGKMeans is expecting 4"):
        PGKMeans(3, random_state=0).fit(X).predict(rows[:, :3])
