"""Lloyd's iteration: step by step against the oracle, and an inertia that never rises."""

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.lloyd import _Momentum, lloyd
from pgkmeans_sk.pipeline.settings import Journal, Settings
from tests import reference
from tests.test_empty_clusters import assert_state_belongs, column

forms = pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
both_ways = pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "momentum"])


class Diary:
    """A monitor that writes down what it hears, and stops after ``stop_at`` iterations."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.numbers, self.centers, self.inertias = [], [], []

    def begin_start(self, number):
        raise AssertionError("starts are the business of the pipeline")

    end_start = begin_start

    def end_iteration(self, number, centers, inertia):
        self.numbers.append(number)
        self.centers.append(centers.copy())
        self.inertias.append(inertia)
        return number == self.stop_at


def iterated(opened, centers, diary=None, journal=None, **parameters):
    """First state, last state, iterations, whether converged."""
    settings = Settings(len(centers), **parameters)
    journal = Journal() if journal is None else journal
    first = settle(opened, centers, settings, journal)
    return first, *lloyd(opened, first, settings, journal, diary)


# ------------------------------------------------------------------ by hand


@forms
def test_four_rows_by_hand(engine, form):
    opened, diary = engine(form(column(0, 1, 10, 11))), Diary()
    first, last, n_iter, converged = iterated(
        opened, column(0, 1), diary, accelerate=False, tol=0.0
    )
    assert first.inertia == 0 + 0 + 81 + 100
    # Means of {0} and {1, 10, 11}, then of {0, 1} and {10, 11}, whose rows stay the same.
    np.testing.assert_allclose(diary.centers[0], column(0, 22 / 3))
    np.testing.assert_allclose(diary.centers[1], column(0.5, 10.5))
    np.testing.assert_allclose(last.centers, column(0.5, 10.5))
    assert last.inertia == pytest.approx(1)
    assert (n_iter, converged) == (2, True)
    np.testing.assert_array_equal(opened.labels, [0, 0, 1, 1])


def test_weights_by_hand(engine):
    opened = engine(column(0, 1, 10), np.array([3.0, 1, 0]))
    _, last, *_ = iterated(opened, column(5), accelerate=False)
    np.testing.assert_allclose(last.centers, column(0.25))
    assert last.inertia == pytest.approx(3 / 16 + 9 / 16)


@both_ways
@pytest.mark.parametrize("distance", [10.0, 1e9, 1e30])
def test_one_cluster_ends_at_the_mean(engine, accelerate, distance):
    # However far the first centre is, and though the labels repeat from the beginning.
    X = np.random.default_rng(0).standard_normal((1000, 3))
    _, last, *_ = iterated(engine(X), np.full((1, 3), distance), accelerate=accelerate)
    np.testing.assert_allclose(last.inertia, reference.weighted_moments(X)[2], rtol=1e-9)


# ------------------------------------------------------------------ against the oracle


@forms
@dtypes
@pytest.mark.parametrize("weighting", ["none", "random", "some zero"])
def test_plain_iteration_is_the_oracles(engine, form, dtype, weighting):
    rng = np.random.default_rng(11)
    X = rng.standard_normal((300, 3)).astype(dtype)
    weights = reference.sample_weights(300)[weighting]
    opened, diary, journal = engine(form(X), weights), Diary(), Journal()
    first, *_ = iterated(opened, X[:6], diary, journal, accelerate=False, tol=0.0, max_iter=6)
    assert journal.repairs == []  # otherwise the oracle would not be the same algorithm
    assert diary.numbers == list(range(1, 7))
    steps = list(islice(reference.lloyd(X, X[:6], weights), 7))
    found = zip([first.centers, *diary.centers], [first.inertia, *diary.inertias], strict=True)
    eps = np.finfo(dtype).eps
    for (centers, inertia), (true_centers, labels, true_inertia) in zip(found, steps, strict=True):
        np.testing.assert_allclose(centers, true_centers, atol=8 * eps)
        np.testing.assert_array_equal(reference.labels(X, centers), labels)
        np.testing.assert_allclose(inertia, true_inertia, rtol=8 * eps)


@forms
@dtypes
@both_ways
def test_converged_labels_repeat(engine, form, dtype, accelerate):
    X = np.random.default_rng(7).standard_normal((200, 2)).astype(dtype)
    opened = engine(form(X))
    _, last, _, converged = iterated(opened, X[:5], accelerate=accelerate, tol=0.0)
    assert converged
    # A fixed point: one more step of the oracle changes next to nothing.
    _, (centers, labels, inertia) = islice(reference.lloyd(X, last.centers), 2)
    np.testing.assert_allclose(centers, last.centers, atol=8 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(labels, opened.labels)
    np.testing.assert_allclose(inertia, last.inertia, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("weighting", ["none", "random"])
def test_tolerance_is_relative_to_the_mean_variance(engine, scale, weighting):
    X = scale * np.random.default_rng(3).random((300, 2))
    weights = reference.sample_weights(300)[weighting]
    path = [centers for centers, _, _ in islice(reference.lloyd(X, X[:6], weights), 5)]
    shifts = [((after - before) ** 2).sum() for before, after in pairwise(path)]
    assert shifts[3] < min(shifts[:3])
    tol = shifts[3] / reference.mean_variance(X, weights)
    opened = engine(X, weights)
    _, last, n_iter, converged = iterated(opened, X[:6], accelerate=False, tol=1.01 * tol)
    assert (n_iter, converged) == (4, True)
    np.testing.assert_allclose(last.centers, path[4])  # the step that was found small is taken
    assert iterated(opened, X[:6], accelerate=False, tol=0.99 * tol)[2] > 4


@both_ways
@pytest.mark.parametrize("max_iter", [1, 2, 3])
def test_number_of_iterations_is_limited(engine, accelerate, max_iter):
    X = np.random.default_rng(1).standard_normal((500, 2))
    opened, diary = engine(X), Diary()
    _, last, n_iter, converged = iterated(
        opened, X[:9], diary, accelerate=accelerate, tol=0.0, max_iter=max_iter
    )
    assert (n_iter, converged) == (max_iter, False)
    assert diary.numbers == list(range(1, max_iter + 1))
    assert_state_belongs(opened, last, X)


@both_ways
@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_monitor_stops_the_iteration(engine, accelerate, stop_at):
    X = np.random.default_rng(1).standard_normal((500, 2))
    opened, diary = engine(X), Diary(stop_at)
    _, last, n_iter, _ = iterated(opened, X[:9], diary, accelerate=accelerate, tol=0.0)
    assert n_iter == stop_at
    np.testing.assert_array_equal(last.centers, diary.centers[-1])
    assert_state_belongs(opened, last, X)


def test_repairs_are_recorded_with_their_iteration(engine):
    # The second centre owns {4} at first; then {4, 5.9} fall to the outer two, whose means moved.
    X, journal = column(0, 2, 2.9, 4, 5.1, 6, 8), Journal()
    opened = engine(X)
    _, last, *_ = iterated(opened, column(0.5, 4, 4, 7), journal=journal, accelerate=False)
    assert journal.repairs[0].iteration == 0  # two equal centres: one is empty at once
    assert all(repair.iteration <= journal.iteration for repair in journal.repairs)
    assert (last.assignment.sizes > 0).all()


def test_a_cluster_that_loses_its_rows_is_filled_at_once(engine):
    # One step moves the outer centres to -4 and 4 and leaves the middle one with no row.
    X, journal, diary = column(-5, -3, -0.1, 0.1, 3, 5), Journal(), Diary()
    opened = engine(X)
    settings = Settings(3, accelerate=False, tol=0.0)
    first = settle(opened, column(-4, 30, 4), settings, journal)
    assert [(repair.iteration, repair.n_empty) for repair in journal.repairs] == [(0, 1)]
    last, *_ = lloyd(opened, first, settings, journal, diary)
    assert (last.assignment.sizes > 0).all()
    assert_state_belongs(opened, last, X)


# ------------------------------------------------------------------ momentum


def test_momentum_gains_on_plain_steps(engine):
    # Uniform rows: Lloyd's own steps are slow there.
    totals = {}
    for accelerate in (False, True):
        totals[accelerate] = 0.0
        for seed in range(5):
            X = np.random.default_rng(seed).random((2000, 2))
            _, last, *_ = iterated(engine(X), X[:30], accelerate=accelerate, tol=0.0, max_iter=25)
            totals[accelerate] += last.inertia
    assert totals[True] < 0.995 * totals[False]


def test_momentum_grows_and_starts_anew():
    momentum, means = _Momentum(np.float64), column(1, 5)
    centers = column(0, 7)
    np.testing.assert_array_equal(momentum.beyond(centers, means), means)  # no move so far
    # Half a step more than to the means. Nesterov's sequence is 1, 1.618, 2.194, 2.750; shares
    # (t_k - 1) / t_(k + 1) of the means' last move.
    for number, share in ((1, 0.2817), (2, 0.4340)):
        moved = means + number
        target = momentum.beyond(centers, moved)
        np.testing.assert_allclose(target, centers + 1.5 * (moved - centers) + share, atol=1e-4)
    momentum.reset()
    np.testing.assert_array_equal(momentum.beyond(centers, means), means)


def test_rejected_steps_are_taken_back(engine, monkeypatch):
    # Every step with momentum overshoots so far that all but one cluster are empty.
    monkeypatch.setattr(_Momentum, "beyond", lambda momentum, centers, means: means * 1e3)
    resets = []
    monkeypatch.setattr(_Momentum, "reset", lambda momentum: resets.append(1))
    X = np.random.default_rng(0).standard_normal((200, 2)) + 5
    opened, diary, journal = engine(X), Diary(stop_at=5), Journal()
    first, last, *_ = iterated(opened, X[:4], diary, journal, tol=0.0)
    assert journal.repairs == []  # a trial is not repaired
    # Every other iteration is a plain one, and only those get anywhere.
    plain = [centers for centers, _, _ in islice(reference.lloyd(X, X[:4]), 3)]
    np.testing.assert_array_equal(first.centers, plain[0])
    for centers, expected in zip(diary.centers, np.repeat(plain, 2, axis=0)[1:], strict=True):
        np.testing.assert_allclose(centers, expected)
    assert len(resets) == 3
    assert_state_belongs(opened, last, X)  # though the last iteration was a rejected one


def test_a_step_that_empties_a_cluster_is_rejected_even_if_the_inertia_fell(engine, monkeypatch):
    def lose_the_first(momentum, centers, means):
        return np.concatenate([column(1e6), means[1:]])

    monkeypatch.setattr(_Momentum, "beyond", lose_the_first)
    # The means are 0, 22 / 3 and 40. Without the first the inertia falls from 197 to 114.
    opened, diary, journal = engine(column(0, 1, 10, 11, 40)), Diary(stop_at=1), Journal()
    first, last, *_ = iterated(opened, column(-5, 5.4, 30), diary, journal, tol=0.0)
    assert first.inertia == pytest.approx(25 + 4.4**2 + 4.6**2 + 5.6**2 + 100)
    np.testing.assert_array_equal(last.centers, first.centers)
    assert journal.repairs == []


def test_labels_repeat_only_if_they_are_the_states(engine, monkeypatch):
    # The rejected step gives the labels {0, 1}, {10, 11}, and so does the plain one after it. That
    # is not the end: the labels of the state before were {0}, {1, 10, 11}.
    monkeypatch.setattr(
        _Momentum, "beyond", lambda momentum, centers, means: means + column(-100, 100)
    )
    opened = engine(column(0, 1, 10, 11))
    _, last, _, converged = iterated(opened, column(0, 1), Diary(), tol=0.0)
    assert converged
    np.testing.assert_allclose(last.centers, column(0.5, 10.5))


# ------------------------------------------------------------------ what must always hold


@st.composite
def small_problems(draw):
    """Rows, first centres and weights, with many equal rows and weights of zero among them."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n_rows, n_features = draw(st.integers(1, 60)), draw(st.integers(1, 4))
    n_clusters = draw(st.integers(1, min(n_rows, 10)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    X = rng.standard_normal((n_rows, n_features))
    n_values = draw(st.sampled_from([1, 3, None]))
    if n_values is not None:
        X = np.rint(n_values * X)
    if draw(st.booleans()):
        X[rng.random(n_rows) < 0.3] += draw(st.sampled_from([10.0, 1e4]))
    centers = X[rng.integers(0, n_rows, n_clusters)]
    weights = reference.sample_weights(n_rows)
    weights = weights[draw(st.sampled_from(sorted(weights)))]
    return X.astype(dtype), centers.astype(dtype), weights


@both_ways
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])
@given(
    small_problems(),
    st.sampled_from([0.0, 1e-4]),
    st.sampled_from([1, 2, 3, 50]),
    st.sampled_from([None, 2]),
)
def test_inertia_never_rises(engine, accelerate, form, problem, tol, max_iter, stop_at):
    X, centers, weights = problem
    opened, diary, journal = engine(form(X), weights), Diary(stop_at), Journal()
    first, last, n_iter, _ = iterated(
        opened, centers, diary, journal, accelerate=accelerate, tol=tol, max_iter=max_iter
    )
    inertias = [first.inertia, *diary.inertias]
    assert all(after <= before for before, after in pairwise(inertias))
    assert last.inertia == inertias[-1]
    assert n_iter == len(diary.numbers) <= max_iter
    assert last.centers.dtype == X.dtype
    assert_state_belongs(opened, last, X, weights)
    present = X if weights is None else X[weights > 0]
    n_distinct = len(np.unique(present, axis=0))
    assert np.count_nonzero(last.assignment.sizes) == min(n_distinct, len(centers))
