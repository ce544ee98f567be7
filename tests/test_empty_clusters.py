"""Cautious partitioning: numbers on a line by hand, then what must always hold."""

import itertools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from pgkmeans_sk.pipeline import empty_clusters
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.results import RepairRecord
from tests import reference

FAR = 1e6
"""Where no row is: a centre there is empty."""

forms = pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])


def column(*values):
    return np.array(values, dtype=np.float64)[:, np.newaxis]


def settled(opened, centers, journal=None):
    settings = Settings(len(centers))
    return settle(opened, centers, settings, Journal() if journal is None else journal)


def assert_state_belongs(opened, state, X, sample_weight=None):
    """The statistics and the engine's labels are those of the state's centres."""
    expected = reference.assignment(X, state.centers, sample_weight)
    np.testing.assert_array_equal(opened.labels, reference.labels(X, state.centers))
    np.testing.assert_allclose(state.assignment.sizes, expected.sizes, rtol=1e-12)
    scale = (reference.as_float64(X) ** 2).sum() + 1e-300
    np.testing.assert_allclose(state.inertia, expected.inertia, rtol=1e-9, atol=1e-13 * scale)


# ------------------------------------------------------------------ by hand

TWO_GROUPS = column(0, 1, 2, 3, 10, 11, 12, 13)


@forms
def test_nothing_happens_without_empty_clusters(engine, form):
    opened, journal = engine(form(TWO_GROUPS)), Journal()
    state = settled(opened, column(1, 11), journal)
    assert journal.repairs == []
    np.testing.assert_array_equal(state.centers, column(1, 11))  # not yet moved
    assert state.inertia == 1 + 0 + 1 + 4 + 1 + 0 + 1 + 4


@forms
def test_one_empty_cluster(engine, form):
    # Errors are 5 and 5: the first donates. Its direction points to row 0, so that the left part,
    # which keeps the number of the donor, is {2, 3}.
    opened, journal = engine(form(TWO_GROUPS)), Journal(iteration=4)
    state = settled(opened, column(1.5, 11.5, FAR), journal)
    np.testing.assert_allclose(state.centers, column(2.5, 11.5, 0.5))
    np.testing.assert_array_equal(opened.labels, [2, 2, 0, 0, 1, 1, 1, 1])
    (repair,) = journal.repairs
    assert repair == RepairRecord(4, 1, (0,), pytest.approx(10), pytest.approx(6))


@forms
def test_two_empty_clusters_in_one_pass(engine, form):
    opened, journal = engine(form(TWO_GROUPS)), Journal()
    state = settled(opened, column(-FAR, 1.5, FAR, 11.5), journal)
    np.testing.assert_allclose(state.centers, column(0.5, 2.5, 10.5, 12.5))
    (repair,) = journal.repairs
    assert repair == RepairRecord(0, 2, (1, 3), pytest.approx(10), pytest.approx(2))


def test_one_donor_for_two_empty_clusters(engine):
    # Errors are 109 and 8.5. The second cluster is opened too, but its centre is only off the mean:
    # about that its error is 0.5, and the halves {0, 3} and {10, 13} have 4.5 each.
    X, journal = column(0, 3, 10, 13, 100, 101), Journal()
    opened = engine(X)
    state = settled(opened, column(6.5, 102.5, FAR, -FAR), journal)
    # The direction points to row 0, so the left half is {10, 13}; of two equal errors it is the
    # first, and is cut again.
    np.testing.assert_allclose(state.centers, column(13, 102.5, 1.5, 10))
    (repair,) = journal.repairs
    assert repair == RepairRecord(0, 2, (0,), pytest.approx(109 + 8.5), pytest.approx(4.5 + 8.5))


def test_a_populous_tight_cluster_is_left_alone(engine):
    X = np.concatenate([np.linspace(0, 0.1, 500)[:, np.newaxis], column(50, 60)])
    opened, journal = engine(X), Journal()
    state = settled(opened, column(0.05, 55, FAR), journal)
    assert journal.repairs[0].donors == (1,)
    np.testing.assert_array_equal(state.assignment.sizes, [500, 1, 1])


def test_a_cluster_of_equal_rows_donates_nothing(engine):
    # Cluster 0 has the largest error, since its centre is far from its only value. It cannot be
    # cut; a centre is put on that value instead, and cluster 0, now empty itself, is filled next.
    X = column(0, 0, 0, 0, 50, 51)
    opened, journal = engine(X), Journal()
    state = settled(opened, column(-9, 50.5, FAR), journal)
    np.testing.assert_allclose(np.sort(state.centers, axis=0), column(0, 50, 51))
    assert [repair.donors for repair in journal.repairs] == [(), (1,)]


@forms
def test_rows_without_weight_fill_no_cluster(engine, form):
    X, weights = column(0, 1, 7, 9, FAR), np.array([1.0, 1, 1, 1, 0])
    opened, journal = engine(form(X), weights), Journal()
    state = settled(opened, column(0.5, 8, FAR), journal)
    assert journal.repairs[0].n_empty == 1
    np.testing.assert_allclose(np.sort(state.centers, axis=0), column(0.5, 7, 9))
    assert (state.assignment.sizes > 0).all()


@forms
@pytest.mark.parametrize("n_clusters", [4, 7])
def test_fewer_distinct_rows_than_clusters(engine, form, n_clusters):
    X = column(0.1, 0.1, 0.1, 0.7, 0.7, 5.3)
    opened = engine(form(X))
    state = settled(opened, np.linspace(0, 1, n_clusters)[:, np.newaxis])
    assert len(state.assignment.empty) == n_clusters - 3
    # The rows lie on centres, whatever rounding the sum of errors has.
    assert set(X[:, 0]) <= set(state.centers[:, 0])
    assert reference.assignment(X, state.centers).inertia == 0
    assert state.inertia == (pytest.approx(0, abs=1e-12) if sparse.issparse(form(X)) else 0)


def test_all_rows_equal(engine):
    opened, journal = engine(np.full((5, 2), 0.1)), Journal()
    state = settled(opened, np.array([[9.0, 9], [0, 0], [0.1, 0.2]]), journal)
    assert state.inertia == 0
    assert len(state.assignment.empty) == 2
    settled(opened, np.full((3, 2), 0.1), journal := Journal())
    assert journal.repairs == []  # nothing to mend where every row is on its centre


# ------------------------------------------------------------------ the ordinary case


@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_empty", [1, 5, 18])
def test_one_pass_is_enough_for_an_ordinary_case(engine, form, dtype, n_empty):
    X = np.random.default_rng(n_empty).standard_normal((500, 4)).astype(dtype)
    centers = X[:20].copy()
    centers[:n_empty] += FAR
    opened, journal = engine(form(X)), Journal()
    state = settled(opened, centers, journal)
    (repair,) = journal.repairs
    assert repair.n_empty == n_empty
    assert 1 <= len(repair.donors) <= n_empty
    assert len(set(repair.donors)) == len(repair.donors)
    assert set(repair.donors) <= set(range(n_empty, 20))
    assert state.centers.dtype == dtype
    assert_state_belongs(opened, state, X)
    # Centres of clusters that gave nothing stay where they were.
    others = np.setdiff1d(np.arange(n_empty, 20), repair.donors)
    np.testing.assert_array_equal(state.centers[others], centers[others])


def test_new_centers_lie_on_the_sphere(engine):
    X = np.random.default_rng(0).standard_normal((200, 3))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    centers = np.concatenate([X[:4], np.tile(X[:1], (4, 1))])
    state = settle(engine(X), centers, Settings(8, spherical=True), Journal())
    assert (state.assignment.sizes > 0).all()
    np.testing.assert_allclose(np.linalg.norm(state.centers, axis=1), 1)


# ------------------------------------------------------------------ when caution fails


def no_cautious_pass(*arguments):
    return None, ()


@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_farthest_rows_fill_all_clusters_too(engine, form, dtype, monkeypatch):
    monkeypatch.setattr(empty_clusters, "_partition_donors", no_cautious_pass)
    X = np.random.default_rng(2).standard_normal((100, 3)).astype(dtype)
    opened, journal = engine(form(X)), Journal()
    state = settled(opened, np.tile(X[:1], (60, 1)), journal)
    assert (state.assignment.sizes > 0).all()
    assert_records_fall(journal, state)
    assert all(repair.donors == () for repair in journal.repairs)
    assert_state_belongs(opened, state, X)


def test_cautious_passes_are_limited(engine, monkeypatch):
    # Without a limit a bad case could go on and on: rows taken as centres need at most K passes.
    monkeypatch.setattr(empty_clusters, "MAX_CAUTIOUS_PASSES", 0)
    journal = Journal()
    state = settled(engine(TWO_GROUPS), column(1.5, 11.5, FAR), journal)
    assert [repair.donors for repair in journal.repairs] == [()]
    np.testing.assert_array_equal(state.assignment.empty, [])


def test_a_pass_that_raises_the_inertia_is_taken_back(engine, monkeypatch):
    leaves = empty_clusters._Forest.leaves

    def misplaced(forest):
        slots, means = leaves(forest)
        return slots, means + 2.0

    monkeypatch.setattr(empty_clusters._Forest, "leaves", misplaced)
    # By the labels of the misplaced centres, the row farthest from its centre would be row 3; by
    # those of the centres before it is row 0, the first of four.
    opened, journal = engine(TWO_GROUPS), Journal()
    state = settled(opened, column(1.5, 11.5, -FAR), journal)
    np.testing.assert_array_equal(state.centers, column(1.5, 11.5, 0))
    assert journal.repairs == [RepairRecord(0, 1, (), pytest.approx(10), pytest.approx(7.75))]
    assert_state_belongs(opened, state, TWO_GROUPS)


# ------------------------------------------------------------------ what must always hold


def assert_records_fall(journal, state):
    """Each repair begins where the one before ended, and does not raise the inertia."""
    assert all(repair.inertia_after <= repair.inertia_before for repair in journal.repairs)
    assert all(a.inertia_after == b.inertia_before for a, b in pairwise(journal.repairs))
    if journal.repairs:
        assert journal.repairs[-1].inertia_after == state.inertia


@st.composite
def bad_starts(draw):
    """Rows, weights and centres of which many are equal or far away."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n_rows, n_features = draw(st.integers(1, 40)), draw(st.integers(1, 3))
    n_clusters = draw(st.integers(1, 12))
    n_values = draw(st.sampled_from([2, 5, 1000]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    X = rng.integers(0, n_values, (n_rows, n_features)) / 7
    X += draw(st.sampled_from([0.0, 1e3]))
    if draw(st.booleans()):
        X[0] = 1e5  # one far outlier
    kind = draw(st.sampled_from(["row", "rows", "far", "anywhere"]))
    centers = {
        "row": X[np.zeros(n_clusters, dtype=int)],
        "rows": X[rng.integers(0, n_rows, n_clusters)],
        "far": X.max() + 1 + rng.random((n_clusters, n_features)),
        "anywhere": rng.uniform(X.min() - 1, X.max() + 1, (n_clusters, n_features)),
    }[kind]
    weighting = draw(st.sampled_from(["none", "random", "some zero"]))
    weights = reference.sample_weights(n_rows)[weighting]
    return X.astype(dtype), centers.astype(dtype), weights


@forms
@pytest.mark.parametrize("cautious", [True, False])
@given(bad_starts())
def test_no_cluster_stays_empty(engine, form, cautious, start):
    X, centers, weights = start
    opened, journal = engine(form(X), weights), Journal()
    with pytest.MonkeyPatch.context() as patch:
        if not cautious:
            patch.setattr(empty_clusters, "_partition_donors", no_cautious_pass)
        state = settled(opened, centers, journal)
    present = X if weights is None else X[weights > 0]
    n_distinct = len(np.unique(present, axis=0))
    assert np.count_nonzero(state.assignment.sizes) == min(n_distinct, len(centers))
    assert_records_fall(journal, state)
    assert_state_belongs(opened, state, X, weights)
    if n_distinct < len(centers):
        assert reference.assignment(X, state.centers, weights).inertia == 0


@forms
def test_inertia_does_not_rise_far_from_the_origin(engine, form):
    # One more centre than distinct rows, each on a row or beside it by rounding: errors that are
    # differences of norms are as likely to rise as to fall.
    for seed in range(50):
        rng = np.random.default_rng(seed)
        X = 1000 + rng.integers(0, 1000, (2, 3)) / 7
        opened, journal = engine(form(X), rng.uniform(0.1, 5.0, 2)), Journal()
        state = settled(opened, X[[0, 0, 0]], journal)
        assert_records_fall(journal, state)


@pytest.mark.parametrize("seed", range(3))
def test_many_empty_clusters_need_few_passes(engine, seed):
    # iPQ's way needs one assignment of all rows for each empty cluster: here 300.
    X = np.random.default_rng(seed).standard_normal((3000, 2))
    opened, journal = engine(X), Journal()
    state = settled(opened, np.tile(X[:1], (300, 1)), journal)
    assert len(journal.repairs) <= 3
    assert (state.assignment.sizes > 0).all()
    falls = itertools.accumulate(repair.inertia_after for repair in journal.repairs)
    assert next(falls) < 0.05 * journal.repairs[0].inertia_before
