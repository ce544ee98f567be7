"""Cutting a set of rows in two: by hand, against the oracle, and what must always hold."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from pgkmeans_sk.kernels import split
from pgkmeans_sk.kernels.linked import address_of
from pgkmeans_sk.kernels.points import dense_points, sparse_points
from tests import reference

RULES = {"ball": split.BALL, "principal": split.PRINCIPAL}
both_rules = pytest.mark.parametrize("rule", RULES)


class Children(NamedTuple):
    """Row numbers of both sides, in rising order, and their moments."""

    left: list[int]
    right: list[int]
    weights: np.ndarray  # (2,)
    means: np.ndarray  # (2, d)
    scatters: np.ndarray  # (2,)


def bins():
    """Working memory, with what an earlier node may have left in it."""
    return np.full((3, split.BINS), np.nan)


def children(X, sample_weight, rule, fraction, n_two_means=0, rows=None):
    """Cut the node of ``rows`` (all, if None) of ``X``; None if that is impossible."""
    points = sparse_points(X) if sparse.issparse(X) else dense_points(X)
    weights = np.ones(1) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    order = np.arange(X.shape[0]) if rows is None else np.array(rows)
    order = np.concatenate([[-1], order, [-1]]).astype(np.int32)  # what must not be touched
    keys = np.full(len(order), np.nan)
    high, step = len(order) - 1, int(sample_weight is not None)
    mean = np.empty((1, X.shape[1]))
    split.node_moments(points, weights, step, order, 1, high, mean[0])
    middles = np.empty(1, dtype=np.int64)
    moments = np.full((1, 2), np.nan), np.full((1, 2, X.shape[1]), np.nan), np.full((1, 2), np.nan)
    before = order.copy()
    select = address_of(split.select_by_weight, weights, step, order, keys, 0, 0, 0.0)
    moments_at = address_of(split.node_moments, points, weights, step, order, 0, 0, mean[0])
    split.cut_nodes(
        points, weights, step, order, keys, np.array([[1, high]]), mean,
        np.array([float(fraction)]), moments_at, select, RULES[rule], n_two_means, 0, 1,
        np.full((2, X.shape[1]), np.nan), bins(), middles, *moments,
    )  # fmt: skip
    assert order[0] == order[-1] == -1
    reference.assert_same_rows([order], before)
    middle = middles[0]
    if middle == 1:
        return None
    assert 1 < middle < high
    left, right = sorted(order[1:middle].tolist()), sorted(order[middle:high].tolist())
    for side, members in enumerate((left, right)):
        own = None if sample_weight is None else weights[members]
        expected = reference.weighted_moments(X[members], own)
        np.testing.assert_allclose(moments[1][0, side], expected[0], atol=1e-9)
        np.testing.assert_allclose(moments[0][0, side], expected[1])
        np.testing.assert_allclose(moments[2][0, side], expected[2], rtol=1e-9, atol=1e-9)
    return Children(left, right, *(moment[0] for moment in moments))


# ------------------------------------------------------------------ by hand

LINE = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])  # mean 3.2, farthest member 10


@pytest.mark.parametrize(
    ("rule", "fraction", "left"),
    [
        # The ball around 10 takes the rows from the right.
        ("ball", 0.2, [4]),
        ("ball", 0.4, [3, 4]),
        ("ball", 0.8, [1, 2, 3, 4]),
        ("ball", -1, [4]),
        # The direction points to 10, so the smallest positions are on the left of the line.
        ("principal", 0.2, [0]),
        ("principal", 0.4, [0, 1]),
        ("principal", 0.8, [0, 1, 2, 3]),
        ("principal", -1, [0, 1, 2, 3]),
        # Never nobody and never everybody.
        ("principal", 0.0, [0]),
        ("principal", 1.0, [0, 1, 2, 3]),
        ("ball", 0.0, [4]),
        ("ball", 1.0, [1, 2, 3, 4]),
        # 0.5 of five rows is halfway between two and three: the lighter one.
        ("principal", 0.5, [0, 1]),
    ],
)
def test_five_rows_on_a_line(rule, fraction, left):
    found = children(LINE, None, rule, fraction)
    assert found.left == left
    assert found.right == [row for row in range(5) if row not in left]


def test_moments_of_the_children_by_hand():
    found = children(LINE, [1.0, 3.0, 1.0, 1.0, 2.0], "principal", 0.5)
    # Weights up to each row: 1, 4, 5, 6, 8. Half of 8 is reached after row 1.
    assert found.left == [0, 1]
    np.testing.assert_allclose(found.weights, [4, 4])
    np.testing.assert_allclose(found.means, [[0.75], [(2 + 3 + 20) / 4]])
    np.testing.assert_allclose(found.scatters, [3 / 4, 4 + 9 + 200 - 25**2 / 4])


def test_ball_and_principal_by_hand_in_the_plane():
    #  row 0 is far from the rest, along y; the rest spreads along x
    X = np.array([[0.0, 6], [-3, 0], [-2, 0], [-1, 0], [1, 0], [2, 0], [3, 0]])
    assert children(X, None, "ball", 1 / 7).left == [0]
    # The balls around (0, 6) grow towards the middle of the x axis.
    assert children(X, None, "ball", 3 / 7).left == [0, 3, 4]
    # Along y the scatter is 30.9, along x 28: y wins, pointing to row 0; the others tie.
    assert children(X, None, "principal", 1 / 7).left == [1, 2, 3, 4, 5, 6]


def test_two_means_moves_the_cut_by_hand():
    X = np.array([[0.0], [1], [2], [10], [11], [13]])
    assert children(X, None, "principal", 1 / 6).left == [0]
    # Means 0 and 7.4 part at 3.7; the means 1 and 34 / 3 then keep all rows where they are.
    for n_steps in (1, 2, 9):
        assert children(X, None, "principal", 1 / 6, n_steps).left == [0, 1, 2]


@both_rules
@pytest.mark.parametrize("fraction", [-1, 0.0, 0.3, 1.0])
def test_equal_rows_cannot_be_cut(rule, fraction):
    # 0.1 and its mean differ by rounding, which must not look like a direction.
    for X in (np.full((7, 3), 0.1), np.full((1, 3), 0.1), np.zeros((4, 1))):
        for form in (X, X.astype(np.float32), sparse.csr_matrix(X)):
            assert children(form, None, rule, fraction, 2) is None
            assert children(form, np.linspace(0.1, 0.3, len(X)), rule, fraction, 2) is None


@both_rules
@pytest.mark.parametrize("fraction", [-1, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_equal", [1, 2, 3, 6])
def test_two_distinct_rows_are_always_told_apart(rule, fraction, n_equal):
    # Here rounding lets all positions along the principal direction coincide for some n_equal.
    X = np.full((n_equal + 1, 3), 0.1)
    X[-1, 2] = np.nextafter(0.1, 1)
    found = children(X, None, rule, fraction, 2)
    assert sorted((found.left, found.right)) == [list(range(n_equal)), [n_equal]]


@both_rules
@pytest.mark.parametrize("fraction", [-1, 0.25, 0.5, 0.75])
def test_symmetric_rows_can_be_cut(rule, fraction):
    # Both directions have the same variance, opposite rows are equally far.
    X = np.array([[0.0, 2], [0, -2], [2, 0], [-2, 0]])
    assert children(X, None, rule, fraction) is not None


# ------------------------------------------------------------------ against the oracle


def elongated(rng, n_rows, n_features):
    """Rows whose principal direction is beyond doubt after a few steps of power iteration."""
    spread = np.concatenate([[20.0], rng.uniform(0.5, 1.0, n_features - 1)])
    rotation, _ = np.linalg.qr(rng.standard_normal((n_features, n_features)))
    return rng.standard_normal((n_rows, n_features)) * spread @ rotation + 3.0


@both_rules
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("weighting", ["none", "random"])
@pytest.mark.parametrize("n_features", [1, 2, 7])
def test_fraction_is_that_of_the_oracle(rule, fraction, weighting, n_features):
    X = elongated(np.random.default_rng(n_features), 120, n_features)
    sample_weight = reference.sample_weights(120)[weighting]
    expected = np.flatnonzero(reference.cut(X, sample_weight, rule, fraction)).tolist()
    assert children(X, sample_weight, rule, fraction).left == expected
    assert children(sparse.csr_matrix(X), sample_weight, rule, fraction).left == expected
    assert children(X.astype(np.float32), sample_weight, rule, fraction).left == expected


@both_rules
def test_best_cut_is_close_to_that_of_the_oracle(rule):
    # The search runs over a histogram: the error of its cut is within 1 % of the least one.
    for seed in range(10):
        rng = np.random.default_rng(seed)
        X = elongated(rng, 300, 3)
        X[: rng.integers(5, 200)] += 60.0
        expected = reference.cut(X, None, rule, -1)
        found = np.isin(np.arange(300), children(X, None, rule, -1).left)
        keys = reference.cut_keys(X, None, rule)[:, np.newaxis]
        found, expected = (
            sum(reference.weighted_moments(keys[part])[2] for part in (side, ~side))
            for side in (found, expected)
        )
        assert expected * (1 - 1e-9) <= found <= 1.01 * expected


def test_two_means_are_lloyds():
    X = elongated(np.random.default_rng(4), 200, 3)
    sample_weight = reference.sample_weights(200)["random"]
    start = children(X, sample_weight, "ball", 0.9)
    steps = reference.lloyd(X, start.means, sample_weight)
    for n_steps in (1, 2, 3):
        _, labels, _ = next(steps)
        assert children(X, sample_weight, "ball", 0.9, n_steps).left == (
            np.flatnonzero(labels == 0).tolist()
        )


def test_only_the_rows_of_the_node_count():
    X = elongated(np.random.default_rng(1), 90, 3)
    rows = np.random.default_rng(2).permutation(90)[:40]
    found = children(X, None, "principal", 0.4, 2, rows)
    alone = children(X[rows], None, "principal", 0.4, 2)
    assert found.left == sorted(rows[alone.left].tolist())


# ------------------------------------------------------------------ what must always hold

small_problems = st.tuples(
    st.integers(2, 12),  # rows
    st.integers(1, 3),  # features
    st.integers(0, 10**6),  # seed
    st.sampled_from([2, 4, 50]),  # values a feature takes: few make ties and equal rows
    st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.9]),
    st.sampled_from(sorted(RULES)),
    st.integers(0, 3),
)


def drawn(problem):
    n_rows, n_features, seed, n_values, fraction, rule, n_two_means = problem
    rng = np.random.default_rng(seed)
    X = rng.integers(0, n_values, (n_rows, n_features)).astype(np.float64)
    return X, rng.integers(1, 4, n_rows).astype(np.float64), fraction, rule, n_two_means


@given(small_problems)
def test_equal_rows_stay_together(problem):
    X, sample_weight, fraction, rule, n_two_means = drawn(problem)
    found = children(X, sample_weight, rule, fraction, n_two_means)
    if len(np.unique(X, axis=0)) == 1:
        assert found is None
        return
    sides = [{tuple(X[row]) for row in side} for side in (found.left, found.right)]
    assert sides[0].isdisjoint(sides[1])


@given(small_problems)
def test_a_row_of_weight_two_is_the_row_twice(problem):
    # Integers: sums are exact, so that it is the same cut and not only a similar one. Positions
    # along a direction are not; only for them it matters that no two rows of a grid tie.
    if problem[5] == "principal":
        problem = (*problem[:3], 10**6, *problem[4:])
    X, sample_weight, fraction, rule, n_two_means = drawn(problem)
    twice = np.repeat(np.arange(len(X)), sample_weight.astype(int))
    weighted = children(X, sample_weight, rule, fraction, n_two_means)
    repeated = children(X[twice], None, rule, fraction, n_two_means)
    if weighted is None:
        assert repeated is None
        return
    assert weighted.left == sorted(set(twice[repeated.left].tolist()))
    assert weighted.right == sorted(set(twice[repeated.right].tolist()))


@given(small_problems, st.randoms(use_true_random=False))
def test_order_of_the_rows_does_not_matter(problem, random):
    # The numbers of the rows decide only between rows equally far from the mean: keep them.
    X, sample_weight, fraction, rule, n_two_means = drawn(problem)
    rows = list(range(len(X)))
    expected = children(X, sample_weight, rule, fraction, n_two_means, rows)
    random.shuffle(rows)
    found = children(X, sample_weight, rule, fraction, n_two_means, rows)
    assert (found is None) == (expected is None)
    if found is not None:
        assert (found.left, found.right) == (expected.left, expected.right)


@given(small_problems)
def test_dense_and_csr_are_cut_alike(problem):
    # Sparse distances round differently. That would decide between two rows equally far from the
    # mean, but here there are none: all values and weights are random, though some rows are equal.
    n_rows, n_features, seed, n_distinct, fraction, rule, n_two_means = problem
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_distinct, n_features))[rng.integers(0, n_distinct, n_rows)]
    sample_weight = rng.uniform(0.5, 2.0, n_rows)
    dense = children(X, sample_weight, rule, fraction, n_two_means)
    csr = children(sparse.csr_matrix(X), sample_weight, rule, fraction, n_two_means)
    assert (dense is None) == (csr is None)
    if dense is not None:
        assert (dense.left, dense.right) == (csr.left, csr.right)


# ------------------------------------------------------------------ the parts


def selected(keys, w, target):
    """The mask of the keys that went left, and a check that keys and rows moved together."""
    order, moved = np.arange(len(keys), dtype=np.int32), keys.copy()
    middle = split.select_by_weight(w, 1, order, moved, 0, len(keys), target)
    np.testing.assert_array_equal(moved, keys[order])
    return np.isin(np.arange(len(keys)), order[:middle])


@given(
    st.lists(st.integers(0, 6) | st.integers(0, 1000), min_size=1, max_size=60),
    st.integers(0, 10**6),
    st.floats(0, 1),
)
def test_select_by_weight_is_a_sort(keys, seed, fraction):
    keys = np.array(keys, dtype=np.float64)
    w = np.random.default_rng(seed).integers(1, 5, len(keys)).astype(np.float64)
    target = np.rint(4 * fraction * w.sum()) / 4  # exact, and often exactly on a boundary
    np.testing.assert_array_equal(
        selected(keys, w, target), reference.select_by_weight(keys, w, target)
    )


@pytest.mark.parametrize(
    "keys",
    [
        np.arange(20_000),
        np.arange(20_000)[::-1],
        np.minimum(np.arange(20_000), np.arange(20_000)[::-1]),
        np.arange(20_000) % 3,
        np.random.default_rng(0).random(20_000),
    ],
    ids=["rising", "falling", "rising and falling", "three values", "random"],
)
def test_select_by_weight_on_many_keys(keys):
    keys = keys.astype(np.float64)
    w = np.random.default_rng(1).integers(1, 9, len(keys)) / 8
    for fraction in (0.001, 0.25, 0.9):
        found = selected(keys, w, fraction * w.sum())
        # Sorted by hand: the oracle would take a second.
        order = np.argsort(keys, kind="stable")
        weights, last = np.cumsum(w[order]), np.append(np.diff(keys[order]) > 0, False)
        cuts = np.flatnonzero(last)
        best = cuts[np.abs(weights[cuts] - fraction * w.sum()).argmin()]
        np.testing.assert_array_equal(np.flatnonzero(found), np.sort(order[: best + 1]))


@given(st.integers(0, 10**6))
def test_best_threshold_is_exact_where_each_key_has_its_bin(seed):
    rng = np.random.default_rng(seed)
    keys = np.concatenate([[0], rng.integers(0, 256, rng.integers(1, 30)), [255]]).astype(float)
    w = rng.integers(1, 5, len(keys)).astype(np.float64)
    order = np.arange(len(keys), dtype=np.int32)
    found = split.best_threshold(w, 1, order, keys, 0, len(keys), bins())
    errors = [
        sum(
            reference.weighted_moments(keys[side, np.newaxis], w[side])[2]
            for side in (keys <= threshold, keys > threshold)
        )
        for threshold in (found, reference.best_threshold(keys, w))
    ]
    assert errors[0] <= errors[1] * (1 + 1e-12)


@both_rules
@pytest.mark.parametrize("n_features", [1, 5])
def test_best_cut_isolates_a_far_outlier(rule, n_features):
    X = np.random.default_rng(6).standard_normal((1000, n_features))
    X[137] = 1e4
    found = children(X, None, rule, -1)
    assert [137] in (found.left, found.right)


@pytest.mark.parametrize("scale", [1e-60, 1e-300, 1e-310, 1e300])
def test_best_threshold_at_the_ends_of_the_range_of_numbers(scale):
    # Keys are squared distances: 1e-310 is what rows around 1e-155 give.
    keys = np.array([0.0, 1, 2, 100, 101]) * scale
    order = np.arange(5, dtype=np.int32)
    assert split.best_threshold(np.ones(1), 0, order, keys.copy(), 0, 5, bins()) == keys[2]
