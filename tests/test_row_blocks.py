"""Rows read block by block give the same bytes as rows in memory, within a limit of memory."""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from pgkmeans_sk import PGKMeans, RowBlocks, pg_kmeans
from pgkmeans_sk.engines import block_engine, chunks, draws, node_members, stored_blocks
from pgkmeans_sk.engines.chunks import chunk_bounds
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.pipeline import starts
from tests import problems

FITTED = ("cluster_centers_", "labels_", "inertia_", "n_iter_", "repair_log_", "start_")


class Chunks:
    """An iterable of arrays that can be read again."""

    def __init__(self, X, lengths):
        ends = np.cumsum(lengths)
        self.arrays = [*np.split(X, ends[ends < len(X)]), X[:0]]

    def __iter__(self):
        return iter(self.arrays)


class Sliced:
    """Rows that can be sliced and nothing else, as those of h5py."""

    def __init__(self, X):
        self._X, self.shape, self.dtype = X, X.shape, X.dtype
        self.most_rows = 0

    def __getitem__(self, rows):
        part = self._X[rows].copy()
        self.most_rows = max(self.most_rows, len(part))
        return part


def assert_same_fit(found, expected):
    for name in FITTED:
        value, wanted = getattr(found, name), getattr(expected, name)
        if isinstance(wanted, np.ndarray):
            assert value.dtype == wanted.dtype
            np.testing.assert_array_equal(np.asarray(value), wanted, err_msg=name)
        else:
            assert value == wanted, name


@pytest.fixture
def many_chunks(monkeypatch):
    """Few rows are cut into chunks, sampled and partitioned like many."""
    monkeypatch.setattr(chunks, "CHUNK_WORK", 2000)
    monkeypatch.setattr(starts, "SAMPLE_ROWS", 300)
    monkeypatch.setattr(node_members, "NODE_NUMBERS", 600)
    monkeypatch.setattr(node_members, "FEWEST_MEMBERS", 8)


SOURCES = {
    "few rows at a time": lambda X: RowBlocks(X, memory_limit=1000),
    "some rows at a time": lambda X: RowBlocks(Sliced(X), memory_limit=6000),
    "all at once": RowBlocks,
    "arrays": lambda X: RowBlocks(Chunks(X, [1, 700, 3, 296, 1000])),
    "a list": lambda X: RowBlocks(np.array_split(X, 9)),
}
sources = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)


@sources
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighting", ["none", "some zero"])
@pytest.mark.usefixtures("many_chunks")
def test_fit_is_that_of_rows_in_memory(source, dtype, weighting):
    X = problems.blobs(2003, 5, 12, seed=0, spread=3.0).astype(dtype)
    weights = None
    if weighting != "none":
        weights = np.random.default_rng(1).uniform(0, 3, len(X))
        weights[::7] = 0
    parameters = {"n_clusters": 30, "random_state": 3, "refine": 1}
    expected = PGKMeans(**parameters).fit(X, sample_weight=weights)
    found = PGKMeans(**parameters).fit(source(X), sample_weight=weights)
    assert_same_fit(found, expected)
    assert found.engine_.startswith("blocks-dense-")
    np.testing.assert_array_equal(found.predict(source(X)), expected.predict(X))
    np.testing.assert_array_equal(found.transform(source(X)), expected.transform(X))
    assert found.score(source(X), sample_weight=weights) == expected.score(X, sample_weight=weights)


@pytest.mark.parametrize(
    "parameters",
    [
        {"init": "k-means++", "n_init": 2},
        {"init": "random", "n_init": 3},
        {"init": "partition-ball"},
        {"init": "partition-principal-error"},
        {"init": "partition", "n_init": 2, "algorithm": "lloyd"},
        {"metric": "cosine"},
        {"n_clusters": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.usefixtures("many_chunks")
def test_every_start_is_that_of_rows_in_memory(parameters, weighted):
    X = problems.blobs(900, 3, 20, seed=2).astype(np.float32)
    weights = np.arange(900) % 4 if weighted else None
    parameters = {"n_clusters": 25, "random_state": 0} | parameters
    expected = PGKMeans(**parameters).fit(X, sample_weight=weights)
    found = PGKMeans(**parameters).fit(RowBlocks(np.array_split(X, 7)), sample_weight=weights)
    assert_same_fit(found, expected)


@pytest.mark.parametrize("pattern", problems.PATTERNS)
@pytest.mark.parametrize("n_features", [1, 3])
def test_rows_that_are_hard_to_cluster(pattern, n_features):
    X = problems.rows(pattern, 60, n_features, seed=5)
    with np.errstate(over="ignore"):
        expected = ignoring_warnings(PGKMeans(12, random_state=0).fit, X)
        source = RowBlocks(X, memory_limit=8 * n_features * 7)
        found = ignoring_warnings(PGKMeans(12, random_state=0).fit, source)
    assert_same_fit(found, expected)


def ignoring_warnings(call, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*arguments)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=12),
    n_clusters=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_how_rows_are_cut_does_not_matter(lengths, n_clusters, seed):
    X = np.round(np.random.default_rng(seed).normal(size=(150, 2)), 1)
    arrays = np.split(X, np.minimum(np.cumsum([*lengths, 0]), 150))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_WORK", 3000)
        patch.setattr(node_members, "NODE_NUMBERS", 100)
        expected = PGKMeans(n_clusters, random_state=seed).fit(X)
        found = PGKMeans(n_clusters, random_state=seed).fit(RowBlocks(arrays))
    assert_same_fit(found, expected)


@pytest.mark.usefixtures("many_chunks")
def test_one_row_at_a_time(monkeypatch):
    monkeypatch.setattr(stored_blocks, "effective_n_threads", lambda: 1)
    X = problems.blobs(70, 3, 9, seed=4)
    found = PGKMeans(20, random_state=0).fit(RowBlocks(X, memory_limit=24))
    assert_same_fit(found, PGKMeans(20, random_state=0).fit(X))


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.usefixtures("many_chunks")
def test_threads_do_not_matter(n_threads, monkeypatch):
    X = problems.blobs(1500, 4, 9, seed=4).astype(np.float32)
    expected = PGKMeans(20, random_state=0).fit(X)
    monkeypatch.setattr(stored_blocks, "effective_n_threads", lambda: n_threads)
    for source in (RowBlocks(X, memory_limit=3000), RowBlocks(np.array_split(X, 11))):
        assert_same_fit(PGKMeans(20, random_state=0).fit(source), expected)


def test_enough_rows_for_several_chunks_and_samples():
    # Nothing made small here: more rows than a start takes whole, labels in real chunks.
    X = problems.blobs(300_000, 2, 40, seed=6).astype(np.float32)
    parameters = {"n_clusters": 50, "random_state": 1, "max_iter": 5}
    expected = PGKMeans(**parameters).fit(X)
    assert len(chunk_bounds(300_000, chunks.pass_work(300_000, expected.cluster_centers_))) > 8
    found = PGKMeans(**parameters).fit(RowBlocks(X, memory_limit=2**20))
    assert_same_fit(found, expected)


def test_the_same_centers_are_not_looked_at_twice(monkeypatch):
    """A fit goes on where its start has ended; in memory that pass is saved, too."""
    X = problems.blobs(300, 3, 5, seed=1).astype(np.float32)
    engine = stored_blocks.look_at_rows(RowBlocks(X), None).open(None)
    expected = NumbaEngine(X, None)
    n_passes = []
    original = stored_blocks.StoredBlocks.assign
    monkeypatch.setattr(
        stored_blocks.StoredBlocks, "assign", lambda *a: n_passes.append(1) or original(*a)
    )
    first, moved = X[:5].copy(), X[:5] + np.float32(0.5)
    for centers, wanted in ((first, 1), (first, 1), (moved, 2), (first, 3)):
        found, other = engine.assign(centers), expected.assign(centers)
        assert len(n_passes) == wanted
        assert found.n_changed == other.n_changed
        np.testing.assert_array_equal(found.centroids, other.centroids)
        np.testing.assert_array_equal(engine.labels, expected.labels)
    first += np.float32(0.5)  # in place: what was found is not that of these
    np.testing.assert_array_equal(engine.assign(first).centroids, expected.assign(moved).centroids)


# ------------------------------------------------------------------ streams of batches


@sources
def test_partial_fit_takes_blocks_as_one_batch(source):
    first = problems.blobs(2003, 3, 6, seed=7)
    other = problems.blobs(2003, 3, 6, seed=8) + 40.0  # leaves clusters without rows of this batch
    expected, found = PGKMeans(15, random_state=0), PGKMeans(15, random_state=0)
    for batch in (first, other, first[::-1]):
        expected.partial_fit(batch)
        found.partial_fit(source(batch))
        assert_same_fit(found, expected)
    assert found.n_steps_ == 3


def test_partial_fit_takes_an_iterator_as_batches():
    X = problems.blobs(1000, 3, 6, seed=9)
    expected = PGKMeans(5, random_state=0)
    for batch in np.array_split(X, 4):
        expected.partial_fit(batch)
    found = PGKMeans(5, random_state=0).partial_fit(batch for batch in np.array_split(X, 4))
    assert_same_fit(found, expected)
    assert found.n_steps_ == 4


def test_an_iterator_that_fails_leaves_the_estimator_as_it_was():
    X = problems.blobs(100, 3, 6, seed=9)
    kmeans = PGKMeans(5, random_state=0).fit(X)
    before = pickle.dumps(kmeans)

    def batches():
        yield X + 1.0
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="on fire"):
        kmeans.partial_fit(batches())
    assert pickle.dumps(kmeans) == before
    with pytest.raises(ValueError, match=r"Got sample_weight .* iterator"):
        kmeans.partial_fit(iter([X]), sample_weight=np.ones(100))
    with pytest.raises(ValueError, match="without a batch"):
        kmeans.partial_fit(iter([]))
    assert pickle.dumps(kmeans) == before


# ------------------------------------------------------------------ where rows come from


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint8", "bool"])
def test_dtypes_are_those_of_fit(dtype):
    X = problems.blobs(300, 3, 6, seed=10) * 3
    X = X > 0.0 if dtype == "bool" else X.astype(dtype)
    expected = PGKMeans(2, random_state=0).fit(X)
    assert_same_fit(PGKMeans(2, random_state=0).fit(RowBlocks(X, memory_limit=500)), expected)


def test_memory_map_is_read_and_not_kept(tmp_path):
    X = problems.blobs(4000, 8, 6, seed=11).astype(np.float32)
    X.tofile(tmp_path / "rows")
    expected = PGKMeans(5, random_state=0).fit(X)
    for mode in ("r", "c", "r+"):
        mapped = np.memmap(tmp_path / "rows", np.float32, mode, shape=X.shape)
        if mode != "r":
            mapped[0] = X[0]  # a changed page, of which nothing may be lost
        found = PGKMeans(5, random_state=0).fit(RowBlocks(mapped, memory_limit=10_000))
        assert_same_fit(found, expected)
        np.testing.assert_array_equal(mapped, X)
    view = np.memmap(tmp_path / "rows", np.float32, "r", shape=X.shape)[100::3, 1:]
    assert_same_fit(
        PGKMeans(5, random_state=0).fit(RowBlocks(view, memory_limit=10_000)),
        PGKMeans(5, random_state=0).fit(X[100::3, 1:]),
    )


def test_changes_in_a_private_map_are_kept(tmp_path):
    np.zeros((100, 8), np.float32).tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "c", shape=(100, 8))
    mapped[50:] = 1.0
    kmeans = PGKMeans(2, random_state=0).fit(RowBlocks(mapped, memory_limit=1000))
    assert kmeans.inertia_ == 0.0
    assert (np.asarray(mapped)[50:] == 1.0).all()


def test_blocks_keep_to_the_limit(monkeypatch):
    monkeypatch.setattr(stored_blocks, "effective_n_threads", lambda: 2)
    X = Sliced(problems.blobs(3000, 4, 6, seed=12))
    PGKMeans(5, random_state=0).fit(RowBlocks(X, memory_limit=64_000))
    # Two threads, each with rows of 32 bytes as they were read and again as they are used.
    assert 400 < X.most_rows <= 64_000 / 2 / 64


def test_function_and_clone():
    X = problems.blobs(200, 2, 4, seed=13)
    centers, labels, inertia = pg_kmeans(RowBlocks(X), 4, random_state=0)
    expected = pg_kmeans(X, 4, random_state=0)
    np.testing.assert_array_equal(centers, expected[0])
    np.testing.assert_array_equal(labels, expected[1])
    assert inertia == expected[2]
    assert repr(RowBlocks(X)) == "RowBlocks(ndarray, memory_limit=268435456)"


def test_a_callable_gets_the_source():
    source = RowBlocks(problems.blobs(200, 2, 4, seed=14))

    def init(X, n_clusters, random_state):
        assert X is source
        return X.read(0, n_clusters)

    PGKMeans(4, init=init, n_init=1).fit(source)


def test_labels_of_an_earlier_start_are_kept():
    X = problems.blobs(500, 2, 8, seed=15)
    parameters = {"n_clusters": 8, "init": "random", "n_init": 8, "random_state": 0, "max_iter": 2}
    kmeans = PGKMeans(**parameters).fit(RowBlocks(X))
    np.testing.assert_array_equal(kmeans.labels_, kmeans.predict(X))


# ------------------------------------------------------------------ what is refused


def refused(source, error, message, **parameters):
    X = problems.blobs(60, 2, 3, seed=16)
    kmeans = PGKMeans(3, random_state=0, **parameters)
    fitted = PGKMeans(3, random_state=0).fit(X)
    vars(kmeans).update({k: v for k, v in vars(fitted).items() if k.endswith("_")})
    before = pickle.dumps(kmeans)
    with pytest.raises(error, match=message):
        kmeans.fit(source)
    assert pickle.dumps(kmeans) == before


def with_value(value, row=17):
    X = problems.blobs(60, 2, 3, seed=16)
    X[row, 1] = value
    return X


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"contains NaN: got it in {}, row 17 of all"),
        (np.inf, r"contains infinity: got it in {}, row 17 of all"),
        (-1e200, r"size 1e\+200 in {}, row 17 of all"),
    ],
)
def test_bad_values_are_found_and_named(value, message):
    X = with_value(value)
    sliced = RowBlocks(X, memory_limit=16 * 2 * 10)  # named as rows
    refused(sliced, ValueError, message.format(r"rows \d+ to \d+"))
    refused(RowBlocks(np.array_split(X, 6)), ValueError, message.format("chunk 1"))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda: RowBlocks(iter([np.eye(2)])), TypeError, "only once"),
        (lambda: RowBlocks(7), TypeError, "type int"),
        (lambda: RowBlocks(np.eye(3), memory_limit=23), ValueError, "at least 24"),
        (lambda: RowBlocks(np.eye(3), memory_limit="1 GB"), TypeError, "number of bytes"),
        (lambda: RowBlocks(np.zeros(3)), ValueError, r"shape \(3,\)"),
        (lambda: RowBlocks(np.zeros((0, 3))), ValueError, r"shape \(0, 3\)"),
        (lambda: RowBlocks([]).shape, ValueError, "without rows"),
        (lambda: RowBlocks([np.eye(2), np.eye(3)]).shape, ValueError, r"chunk 1 of shape \(3, 3\)"),
    ],
)
def test_sources_that_are_none(source, error, message):
    with pytest.raises(error, match=message):
        source()


def test_parameters_that_need_all_rows():
    rows = RowBlocks(problems.blobs(60, 2, 3, seed=16))
    for parameters in ({"size_min": 2}, {"size_max": 40}, {"consolidate": "exact"}):
        (name,) = parameters
        refused(rows, ValueError, f"Got {name}=.* with rows in blocks", **parameters)


def test_plain_trees_over_too_many_rows(monkeypatch):
    monkeypatch.setattr(block_engine, "GATHERED_NUMBERS", 100)
    monkeypatch.setattr(block_engine, "GATHERED_PER_CLUSTER", 1)
    rows = RowBlocks(problems.blobs(60, 2, 3, seed=16))
    refused(rows, ValueError, "needs all rows in memory", init="partition-ball")
    # Others find a way with fewer.
    for init in ("partition", "k-means++", "random"):
        assert len(np.unique(PGKMeans(3, init=init, random_state=0).fit(rows).labels_)) == 3
    line = RowBlocks(np.arange(150.0)[:, np.newaxis])
    assert PGKMeans(3, random_state=0).fit(line).start_ != "optimum"


def test_rows_that_are_not_the_same_each_time():
    class Shrinking:
        n_read = 0

        def __iter__(self):
            self.n_read += 1
            return iter([np.eye(4), np.eye(4)[: 4 - self.n_read // 4]])

    refused(RowBlocks(Shrinking()), ValueError, "the same each time")


def test_other_checks_are_those_of_fit():
    rows = RowBlocks(problems.blobs(60, 2, 3, seed=16))
    refused(RowBlocks(np.eye(2)), ValueError, "n_samples=2 should be >= n_clusters=3")
    refused(RowBlocks(np.array([["a"], ["b"]])), ValueError, "dtype <U1")
    refused(RowBlocks([np.eye(3) * 1j]), ValueError, "dtype complex128")
    with pytest.raises(ValueError, match=r"sample_weight.shape == \(3,\)"):
        PGKMeans(3).fit(rows, sample_weight=np.ones(3))
    with pytest.raises(NotFittedError):
        PGKMeans(3).predict(rows)
    kmeans = PGKMeans(3, random_state=0).fit(rows)
    with pytest.raises(ValueError, match="3 features, but PGKMeans is expecting 2"):
        kmeans.predict(RowBlocks(np.eye(3)))


# ------------------------------------------------------------------ the rules that engines share


@pytest.mark.parametrize(("n_members", "n_taken"), [(10, 10), (10, 3), (1000, 7), (5, 1), (3, 0)])
def test_positions_are_one_of_each_stretch(n_members, n_taken):
    positions = node_members.positions_taken(n_members, n_taken)
    assert len(positions) == n_taken
    ends = np.arange(n_taken + 1) * n_members // max(1, n_taken)
    assert (positions >= ends[:-1]).all()
    assert (positions < ends[1:]).all()


def test_nodes_of_some_members_stand_for_all(monkeypatch):
    X = problems.blobs(4000, 3, 2, seed=17, spread=2.0)
    whole, part = NumbaEngine(X, None), NumbaEngine(X, None)
    centers = X[:2]
    whole.assign(centers)
    part.assign(centers)
    expected = whole.open_clusters(np.array([1, 0]))
    monkeypatch.setattr(node_members, "NODE_NUMBERS", 3000)
    found = part.open_clusters(np.array([1, 0]))
    assert found.counts.max() == 500
    np.testing.assert_allclose(found.weights, expected.weights)
    np.testing.assert_allclose(found.scatters, expected.scatters, rtol=0.2)
    cut = part.cut(found, np.array([-1.0, -1.0]), "principal", 3)
    np.testing.assert_allclose(cut.left.weights + cut.right.weights, expected.weights)
    children = cut.left.scatters + cut.right.scatters
    assert (children < found.scatters).all()


def test_draws_among_many_are_different_numbers_and_uniform(monkeypatch):
    monkeypatch.setattr(draws, "SHUFFLED", 10)
    rng = np.random.RandomState(0)
    counts = np.zeros(100)
    for _ in range(1000):
        drawn = draws.draw_numbers(100, 30, rng)
        assert len(set(drawn.tolist())) == 30
        counts[drawn] += 1
    # 300 each, with a standard deviation of 14.5.
    assert np.abs(counts - 300).max() < 4.5 * 14.5
    assert sorted(draws.draw_numbers(12, 12, rng)) == list(range(12))
