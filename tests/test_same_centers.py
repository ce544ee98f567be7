"""What an engine does once: passes over the same centres, copies of columns side by side."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.engines import dense_pass, numba_cpu
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.results import SizeLimits

X = np.random.default_rng(0).standard_normal((300, 5))


@pytest.fixture
def passes(monkeypatch):
    """A list that grows with each pass over dense rows."""
    found = []
    look_at_all = dense_pass.DensePass.look_at_all
    monkeypatch.setattr(
        dense_pass.DensePass,
        "look_at_all",
        lambda self, lower: found.append(1) or look_at_all(self, lower),
    )
    return found


# ------------------------------------------------------------------ the same centres


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_the_same_centres_tell_the_same(form):
    engine = NumbaEngine(form(X), None)
    first, again = engine.assign(X[:4]), engine.assign(X[:4].copy())
    assert first.n_changed == 300
    assert again.n_changed == 0
    for name in ("centroids", "sizes", "sq_errors"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()


def test_the_same_centres_take_no_pass(passes):
    engine = NumbaEngine(X, None)
    for centers in (X[:4], X[:4], X[:4].astype(np.float32), X[:5], X[:4]):
        engine.assign(centers)
    assert len(passes) == 4


def test_utilities_of_the_same_centres_take_no_pass(passes):
    engine = NumbaEngine(X, None)
    engine.assign(X[:4])
    known = engine.utilities(X[:4].copy())
    assert len(passes) == 1
    np.testing.assert_array_equal(NumbaEngine(X, None).utilities(X[:4]), known)


def test_centres_that_were_changed_in_place_are_others():
    centers = X[:4].copy()
    engine = NumbaEngine(X, None)
    engine.assign(centers)
    centers += 1.0
    expected = NumbaEngine(X, None).assign(centers)
    assert engine.assign(centers).inertia == expected.inertia != 0


def test_labels_within_limits_are_not_those_of_the_nearest():
    engine = NumbaEngine(X, None)
    nearest = engine.assign(X[:4])
    labels = engine.labels
    engine.assign_within(X[:4], SizeLimits(75.0, 75.0), None)
    assert (engine.labels != labels).any()
    assert engine.assign(X[:4]).inertia == nearest.inertia
    np.testing.assert_array_equal(engine.labels, labels)


def test_a_pass_that_was_broken_off_is_made_again(monkeypatch):
    engine = NumbaEngine(X, None)
    engine.assign(X[:4])
    with monkeypatch.context() as patch:
        patch.setattr(dense_pass, "assign_dense", None)
        with pytest.raises(TypeError):
            engine.assign(X[4:8])
    engine._labels[:] = 0  # what such a pass may leave behind
    engine.assign(X[:4])
    np.testing.assert_array_equal(engine.labels, engine.nearest(X[:4]))


# ------------------------------------------------------------------ columns side by side


def peak_of(work):
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_copy_has_the_same_bits(monkeypatch, dtype):
    rows = np.asfortranarray(X, dtype=dtype)
    copied = PGKMeans(7).fit(rows)
    monkeypatch.setattr(numba_cpu, "COPIED_BYTES", 0)
    read = PGKMeans(7).fit(rows)
    assert copied.cluster_centers_.tobytes() == read.cluster_centers_.tobytes()
    assert copied.labels_.tobytes() == read.labels_.tobytes()
    assert copied.inertia_ == read.inertia_


def test_a_fit_copies_and_a_single_pass_does_not():
    rows = np.asfortranarray(np.random.default_rng(0).standard_normal((100_000, 16)))
    before = rows.copy(order="F")
    options = {"init": rows[:3], "n_init": 1, "max_iter": 3}
    model = PGKMeans(3, **options).fit(rows)
    assert peak_of(lambda: PGKMeans(3, **options).fit(rows)) > rows.nbytes
    assert peak_of(lambda: model.predict(rows)) < rows.nbytes / 2
    assert peak_of(lambda: model.score(rows)) < rows.nbytes / 2
    assert rows.flags.f_contiguous
    np.testing.assert_array_equal(rows, before)
