"""Moves of centres: by hand on a line, and an inertia that never rises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from pgkmeans_sk.pipeline import exchange as module
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.exchange import Moves, is_settled, rebalance, survey
from pgkmeans_sk.pipeline.settings import Journal, Settings
from tests import reference
from tests.test_empty_clusters import assert_state_belongs, column

forms = pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])

THREE_PAIRS = column(-1, 1, 99, 101, 199, 201)


def settled(opened, centers):
    return settle(opened, centers, Settings(len(centers)), Journal())


def exchange(opened, state, settings, share):
    """Centres after all moves that are worth their share, or None if none is."""
    moves = survey(opened, state, settings)
    n_moves = moves.n_worthwhile(share, settings.n_clusters)
    return moves.made(n_moves, settings, opened.dtype) if n_moves else None


# ------------------------------------------------------------------ by hand


@forms
def test_a_centre_moves_to_where_it_is_missed(engine, form):
    # The first pair has two centres, which would cost 4 each; the other two share one, and to
    # part them gains 10000. Which of the two equals is moved is a matter of rounding.
    opened = engine(form(THREE_PAIRS))
    state = settled(opened, column(-1, 1, 150))
    centers = exchange(opened, state, Settings(3), 0.5)
    # The direction of the cut points to 99, the first of those farthest from 150: the left part,
    # which keeps the number of the cluster, is {199, 201}.
    moved = 0 if centers[0, 0] > 50 else 1
    np.testing.assert_allclose(centers[[moved, 2], 0], [100, 200])
    np.testing.assert_allclose(centers[1 - moved, 0], [1, -1][moved == 1])


def test_no_centre_moves_from_where_it_is_needed(engine):
    opened = engine(THREE_PAIRS)
    state = settled(opened, column(0, 100, 200))
    assert exchange(opened, state, Settings(3), 0.5) is None


@pytest.mark.parametrize(("share", "moves"), [(0.5, True), (0.7, False)])
def test_gain_is_compared_with_a_share_of_the_utility(engine, share, moves):
    # Without the centre at 0, or that at 2, the inertia grows by 4. Parting the last pair gains
    # 2.42, which is 0.605 of that.
    opened = engine(column(0, 2, 98.9, 101.1))
    state = settled(opened, column(0, 2, 100))
    assert (exchange(opened, state, Settings(3), share) is not None) == moves


def test_a_cluster_does_not_give_its_centre_to_itself(engine):
    # The first cluster has the largest error, 458, and the least utility, 8.8; the second has 265
    # and 11.4. The centre between them that is cheapest to lose is the one that is being parted.
    opened = engine(column(-1, 20, 30, 30, 30, 1000, 1001))
    state = settled(opened, column(20.4, 20.6, 1000.5))
    utilities, errors = opened.utilities(state.centers), state.assignment.sq_errors
    assert utilities.argmin() == errors.argmax() == 0
    np.testing.assert_allclose(exchange(opened, state, Settings(3), 0.5), column(20, -1, 1000.5))


def test_weights_count(engine):
    # As before, but the pair weighs ten times as much; then the rows at 0 and 2 do.
    X, centers = column(0, 2, 98.9, 101.1), column(0, 2, 100)
    for weights, moves in (([1, 1, 10, 10], True), ([10, 10, 1, 1], False)):
        opened = engine(X, np.array(weights, dtype=np.float64))
        found = exchange(opened, settled(opened, centers), Settings(3), 0.7)
        assert (found is not None) == moves


@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rebalance_finds_the_pairs(engine, form, dtype):
    X = THREE_PAIRS.astype(dtype)
    opened, journal = engine(form(X)), Journal()
    state = settled(opened, column(-1, 1, 150).astype(dtype))
    found, _ = rebalance(opened, state, Settings(3), journal, 5)
    np.testing.assert_array_equal(np.sort(found.centers, axis=0), column(0, 100, 200))
    assert found.centers.dtype == dtype
    assert found.inertia == pytest.approx(6)
    assert_state_belongs(opened, found, X)


def test_many_misplaced_centres_find_their_blobs(engine):
    # 20 blobs on a grid, all centres in one of them: Lloyd's iteration alone would stay there.
    rng = np.random.default_rng(0)
    blobs = 50.0 * np.array([[i % 5, i // 5] for i in range(20)])
    X = np.repeat(blobs, 40, axis=0) + rng.standard_normal((800, 2))
    opened = engine(X)
    state = settled(opened, X[:20])
    found, _ = rebalance(opened, state, Settings(20), Journal(), 25)
    np.testing.assert_array_equal(found.assignment.sizes, np.full(20, 40))


# ------------------------------------------------------------------ what must always hold


def test_moves_that_do_not_pay_are_taken_back(engine, monkeypatch):
    asked, made = [], []

    class Senseless(Moves):
        def n_worthwhile(self, share, limit):
            asked.append((share, limit))
            return min(3, limit)

        def made(self, n_moves, settings, dtype):
            made.append(n_moves)
            return self.state.centers + 0.1

    # Without Lloyd's steps, which would bring the centres back.
    monkeypatch.setattr(module, "lloyd", lambda opened, state, *_: (state, 0, True))
    monkeypatch.setattr(module, "survey", lambda _, state, __: Senseless(state, *[None] * 6))
    X = column(0, 2, 10, 12, 20, 22)
    opened = engine(X)
    state = settled(opened, column(1, 11, 21))
    assert rebalance(opened, state, Settings(3), Journal(), 9)[0] is state
    # Less boldly, then fewer at a time, then no more; what has failed is not tried twice.
    assert asked == [(0.5, 3), (0.8, 3), (0.8, 1), (0.8, 0)]
    assert made == [3, 1]
    assert_state_belongs(opened, state, X)


@pytest.mark.parametrize("max_rounds", [0, 1, 3])
def test_rounds_are_limited(engine, monkeypatch, max_rounds):
    asked = []

    class Counted(Moves):
        def n_worthwhile(self, *arguments):
            asked.append(super().n_worthwhile(*arguments))
            return asked[-1]

    def counted(*arguments):
        return Counted(**vars(survey(*arguments)))

    monkeypatch.setattr(module, "survey", counted)
    X = np.random.default_rng(1).random((2000, 2))
    opened = engine(X)
    state, _ = rebalance(opened, settled(opened, X[:40]), Settings(40), Journal(), max_rounds)
    assert len(asked) == max_rounds
    assert all(asked)
    assert_state_belongs(opened, state, X)


def test_a_survey_is_made_once_for_each_state(engine, monkeypatch):
    surveyed = []

    def noted(opened, state, settings):
        surveyed.append(state)
        return survey(opened, state, settings)

    monkeypatch.setattr(module, "survey", noted)
    X = np.random.default_rng(1).random((2000, 2))
    opened = engine(X)
    rebalance(opened, settled(opened, X[:40]), Settings(40), Journal(), 25)
    assert len(surveyed) > 1
    assert len({id(state) for state in surveyed}) == len(surveyed)


def test_two_clusters_have_nothing_to_exchange(engine):
    opened = engine(THREE_PAIRS)
    found, _ = rebalance(opened, settled(opened, column(0, 1)), Settings(2), Journal(), 5)
    assert_state_belongs(opened, found, THREE_PAIRS)
    assert (found.assignment.sizes > 0).all()


def test_fewer_distinct_rows_than_clusters(engine):
    X = column(0, 0, 1, 1)
    opened = engine(X)
    found, _ = rebalance(opened, settled(opened, column(0, 1, 2, 3)), Settings(4), Journal(), 5)
    assert found.inertia == 0
    assert_state_belongs(opened, found, X)


@forms
def test_rebalance_far_from_the_origin(engine, form):
    # Here distances between the rows are near the rounding error of their norms.
    for seed in range(20):
        X = 1e8 + np.random.default_rng(seed).integers(0, 4, (8, 2)).astype(np.float64)
        opened = engine(form(X))
        found, _ = rebalance(opened, settled(opened, X[:4]), Settings(4), Journal(), 5)
        np.testing.assert_array_equal(opened.labels, reference.labels(X, found.centers))


@st.composite
def states(draw):
    """Rows, weights and centres, many of them in the wrong place."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n_clusters, n_features = draw(st.integers(1, 15)), draw(st.integers(1, 3))
    n_rows = n_clusters + draw(st.integers(0, 60))
    X = rng.standard_normal((n_rows, n_features)) * draw(st.sampled_from([1.0, 1e-3, 1e4]))
    X += draw(st.sampled_from([0.0, 10.0, 1e4])) * rng.integers(0, 3, (n_rows, 1))
    if draw(st.booleans()):
        X = np.rint(X)  # equal rows, and clusters without error
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    weights = reference.sample_weights(n_rows)
    return X.astype(dtype), n_clusters, weights[draw(st.sampled_from(sorted(weights)))]


@forms
@given(states(), st.sampled_from([1, 2, 10]))
def test_rebalance_never_raises_the_inertia(engine, form, problem, max_rounds):
    X, n_clusters, weights = problem
    opened = engine(form(X), weights)
    state = settled(opened, X[:n_clusters])
    found, _ = rebalance(opened, state, Settings(n_clusters), Journal(), max_rounds)
    assert found.inertia <= state.inertia
    assert found.centers.dtype == X.dtype
    assert_state_belongs(opened, found, X, weights)
    assert len(found.assignment.empty) == len(state.assignment.empty)


# ------------------------------------------------------------------ when to stop looking


@pytest.mark.parametrize(
    ("centers", "expected"),
    [
        (column(1, 101, 201, 301), True),  # each a cluster of its own
        (column(0.5, 2, 151, 301), False),  # one is cut, and two are together
        (column(1, 100, 102, 201, 301), False),  # to lose a part costs little
    ],
)
def test_what_is_hardly_to_be_improved(engine, centers, expected):
    X = column(*(place + step for place in (0, 100, 200, 300) for step in (0, 1, 2)))
    opened, settings = engine(X), Settings(len(centers))
    state = settled(opened, centers)
    assert is_settled(opened, state, settings, survey(opened, state, settings)) == expected
    assert not is_settled(opened, state, settings, None)


def test_a_bunch_that_is_cut_in_two_is_seen_though_both_parts_are_donors(engine):
    # The others lie far apart: beside what they cost, to cut a part once more gains nothing.
    rng = np.random.default_rng(0)
    bunch = rng.standard_normal((400, 2))
    places = 1e3 * np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1]])
    X = np.concatenate([bunch, np.repeat(places, 10, axis=0) + rng.random((50, 2))])
    is_left = bunch[:, 0] < 0
    centers = np.stack([bunch[is_left].mean(axis=0), bunch[~is_left].mean(axis=0), *places])
    opened, settings = engine(X), Settings(len(centers))
    state = settled(opened, centers)
    moves = survey(opened, state, settings)
    assert sorted(moves.donors) == [0, 1]
    assert moves.gains[0] < 0.01 * moves.prices[0]
    assert not is_settled(opened, state, settings, moves)
