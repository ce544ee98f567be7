"""Tiles of workers keep bounds from pass to pass; that changes their time, and not one bit."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.engines import chunks, coarse_choice, dense_pass, tile_memory
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.engines.ordered_tasks import add_chunks, add_further, shares_of
from pgkmeans_sk.engines.tiles import Tile
from pgkmeans_sk.kernels.vectors import has_products_of_pairs
from tests import problems, reference
from tests.test_coarse import always_coarse  # noqa: F401
from tests.test_pruned import drifting
from tests.test_row_blocks import assert_same_fit

dask = pytest.importorskip("dask")

from pgkmeans_sk.engines import dask_blocks  # noqa: E402
from tests.dask_problems import lazy  # noqa: E402

pytestmark = pytest.mark.skipif(
    not has_products_of_pairs(), reason="a processor without products of pairs"
)


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def swept(monkeypatch):
    """For each call of the kernel: rows that it was given, whether with bounds, rows it swept."""
    found = []
    kernel = dense_pass.assign_coarse

    def counted(*arguments):
        result = kernel(*arguments)
        start, stop = arguments[3:5]
        found.append((stop - start, arguments[-5] >= 0.0, result[2]))
        return result

    monkeypatch.setattr(dense_pass, "assign_coarse", counted)
    return found


def plain_fit(X, sample_weight, parameters):
    """What rows in memory give when all centres are looked at in full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarse_choice, "LEAST_WORK", 10**18)
        return PGKMeans(**parameters).fit(X, sample_weight=sample_weight)


@pytest.mark.usefixtures("always_coarse")
@pytest.mark.parametrize("cut", [(2000,), (700, 1, 1299), (100,) * 20], ids=len)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighting", ["none", "some zero"])
def test_a_fit_has_the_bytes_of_one_without_bounds(cut, dtype, weighting, swept, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_WORK", 200_000)
    X = problems.blobs(2000, 6, 30, seed=3).astype(dtype)
    sample_weight = reference.sample_weights(len(X))[weighting]
    parameters = {"n_clusters": 50, "random_state": 0, "init": "random", "n_init": 1}
    found = PGKMeans(**parameters).fit(lazy(X, (cut, 6)), sample_weight=sample_weight)
    n_given, is_bounded, n_swept = np.array(swept).T
    assert is_bounded.any()
    assert n_swept[is_bounded == 1].sum() < 0.8 * n_given[is_bounded == 1].sum()
    assert_same_fit(found, plain_fit(X, sample_weight, parameters))
    assert len(tile_memory.memory) == 0


@pytest.mark.usefixtures("always_coarse")
def test_bounds_that_are_lost_are_found_again(swept, monkeypatch):
    """Tiles and centres are forgotten between any two tasks, as if their worker was lost."""
    monkeypatch.setattr(chunks, "CHUNK_WORK", 200_000)
    X = problems.blobs(2000, 6, 30, seed=4).astype(np.float32)
    rng = np.random.default_rng(0)
    for name in ("keep", "keep_centers"):
        original = getattr(tile_memory.Memory, name)
        monkeypatch.setattr(
            tile_memory.Memory,
            name,
            lambda *arguments, original=original: rng.random() < 0.7 and original(*arguments),
        )
    parameters = {"n_clusters": 50, "random_state": 0, "init": "random", "n_init": 1}
    found = PGKMeans(**parameters).fit(lazy(X, (300, 6)))
    assert {is_bounded for _, is_bounded, _ in swept} == {True, False}
    assert_same_fit(found, plain_fit(X, None, parameters))


class Carried:
    """The passes over rows that are cut in tiles, as workers do them; each worker remembers.

    A tile is with one of ``n_workers``, and goes to another one with a chance of ``unrest``.
    """

    def __init__(self, X, sample_weight, starts, patch, n_workers=1, unrest=0.0, seed=0):
        self._X, self._weights, self._starts = X, sample_weight, starts
        self._origin = np.median(X, axis=0).astype(X.dtype)
        self._patch, self._rng, self._unrest = patch, np.random.default_rng(seed), unrest
        self.memories = [tile_memory.Memory() for _ in range(n_workers)]
        self._number, self._before = 0, None

    def _go_to_a_worker(self, number):
        if self._rng.random() < self._unrest:
            number = self._rng.integers(len(self.memories))
        self._patch.setattr(tile_memory, "memory", self.memories[number % len(self.memories)])

    def assign(self, centers):
        """Labels, sums, sizes and squared errors, and how many labels have changed."""
        now = tile_memory.Pass("fit", self._number, centers, self._before, self._origin, 1.0)
        shares = shares_of(self._starts, chunks.pass_bounds(len(self._X), centers))
        labels, begun, further, n_changed, last = [], [], [], 0, None
        places = zip(self._starts, self._starts[1:], shares, strict=False)
        for number, (start, stop, share) in enumerate(places):
            weights = None if self._weights is None else self._weights[start:stop]
            tile = Tile(self._X[start:stop], weights, int(start))
            self._go_to_a_worker(number)
            own, n_more = tile_memory.label_tile(tile, now, share)
            on = None
            if share.goes_on:
                self._go_to_a_worker(number)
                again = Tile(tile.rows, weights, tile.first)
                tile_memory.recall_labels(again, now)
                on = add_further(again, now.sum_of_labelled, share, last)
            last = own[-1] if share.n_begun else on
            labels.append(tile.labels.copy())
            begun.append(own)
            further.append(on)
            n_changed += n_more
        self._number, self._before = self._number + 1, centers
        return np.concatenate(labels), add_chunks(None, further, begun, shares)[:3], n_changed


@pytest.mark.usefixtures("always_coarse")
@settings(max_examples=60)
@given(
    st.sampled_from(sorted(problems.PATTERNS)),
    st.integers(1, 200),
    st.integers(1, 20),
    st.lists(st.integers(1, 60), max_size=8),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
)
def test_passes_over_tiles_are_those_in_memory(
    pattern, n_rows, n_features, lengths, seed, dtype, weighted
):
    """Labels are the definition, sums and changes those of the engine, whoever works on what."""
    X = problems.rows(pattern, n_rows, n_features, seed, dtype)
    ends = np.cumsum([0, *lengths])
    starts = np.append(ends[ends < n_rows], n_rows)
    sample_weight = np.arange(n_rows) % 3 * 0.5 if weighted and n_rows > 1 else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_WORK", 20_000)
        carried = Carried(X, sample_weight, starts, patch, n_workers=3, unrest=0.3, seed=seed)
        engine = NumbaEngine(X, sample_weight)
        for centers in drifting(X[: min(n_rows, 1 + seed % 60)], seed):
            labels, (sums, sizes, sq_errors), n_changed = carried.assign(centers)
            engine._found = None  # also the same centres are looked at again
            expected = engine.assign(centers)
            found = chunks.sums_to_assignment(sums, sizes, sq_errors, n_changed, centers)
            np.testing.assert_array_equal(labels, reference.labels(X, centers))
            for one, other in zip(astuple(found), astuple(expected), strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("always_coarse")
def test_memory_holds_no_rows(monkeypatch):
    """Rows that are read anew in each pass would be in memory all together."""
    X = problems.blobs(500, 4, 9, seed=1)
    carried = Carried(X, None, np.array([0, 500]), monkeypatch)
    for centers in drifting(X[:20], seed=0):
        carried.assign(centers)
    known = carried.memories[0].take("fit", 0)
    assert known.looks.coarse._before is not None
    for owner in (known, known.looks, known.looks.coarse, known.looks.pruning):
        for value in vars(owner).values():
            for array in value if isinstance(value, tuple) else (value,):
                assert not isinstance(array, np.ndarray) or not np.shares_memory(array, X)


def test_as_few_slices_as_keep_threads_busy(monkeypatch):
    class Client:
        threads = {"a": 1, "b": 1}  # noqa: RUF012
        nthreads = classmethod(lambda cls: cls.threads)

    monkeypatch.setattr(dask_blocks, "_client", lambda: Client)
    slices = dask_blocks._n_slices
    assert slices(2, {0: "a", 1: "b"}) == 1
    assert slices(3, {0: "a", 1: "b", 2: "b"}) == 1  # b has more to do, in slices as well
    assert slices(2, {}) == 1
    assert slices(3, {}) == 2  # nobody has them: all threads take from all tiles
    assert slices(1, {}) == 2
    Client.threads = {"a": 4, "b": 6}
    assert slices(2, {0: "a", 1: "b"}) == 12
    assert slices(3, {0: "a", 1: "b", 2: "b"}) == 12
    assert slices(100, {number: "ab"[number % 2] for number in range(100)}) == 1
    assert slices(7, {}) == 6
    monkeypatch.setattr(dask_blocks, "_client", lambda: None)
    monkeypatch.setattr(dask_blocks, "effective_n_threads", lambda: 2)
    assert slices(1, {}) == 2
