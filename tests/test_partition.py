"""The partition tree: its leaves are the first clusters, and none is without rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from pgkmeans_sk.pipeline.partition import PartitionRule, partition
from tests.reference import LAYOUTS, assert_same_rows, numbered, row_sets

RULES = [
    PartitionRule(cut, share) for cut in ("ball", "principal") for share in ("population", "error")
]
all_rules = pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.cut}-{rule.share}")
by_population = pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.share == "population"], ids=lambda rule: rule.cut
)
forms = pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])


class Recorder:
    """An engine that remembers every node it hands out."""

    def __init__(self, engine):
        self._engine = engine
        self.nodes = None
        self.n_cuts = 0

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def root(self):
        self.nodes = self._engine.root()
        return self.nodes

    def cut(self, nodes, fractions, rule, n_two_means):
        cut = self._engine.cut(nodes, fractions, rule, n_two_means)
        self.n_cuts += 1
        self.nodes = self.nodes + cut.left[cut.possible] + cut.right[cut.possible]
        return cut

    def leaves(self, means):
        """The nodes with these means, in their order."""
        places = {mean.tobytes(): p for p, mean in enumerate(self.nodes.means)}
        return self.nodes[np.array([places[mean.tobytes()] for mean in means])]


# ------------------------------------------------------------------ by hand

LINE = np.array([0.0, 1, 2, 3, 10, 11, 12, 13])[:, np.newaxis]


@all_rules
def test_four_leaves_on_a_line(engine, rule):
    leaves = partition(engine(LINE), 4, rule)
    # Squared distances to 0 are 0, 1, 4, 9: the best cut of these four numbers is before the 9.
    by_squares = rule == PartitionRule("ball", "error")
    expected = [1, 3, 11, 13] if by_squares else [0.5, 2.5, 10.5, 12.5]
    np.testing.assert_allclose(np.sort(leaves[:, 0]), expected)


def test_three_leaves_on_a_line(engine):
    # The mean is 6.5; of the farthest rows 0 and 13 the first one gives the direction, so that the
    # third for one leaf (2.67 rows, rounded to 3) comes from the other end. What is left has its
    # mean at 3.2 and its farthest row at 10; of 5 rows half is 2, the lighter of two choices.
    leaves = partition(engine(LINE), 3, PartitionRule("principal", "population"))
    np.testing.assert_allclose(leaves[:, 0], [12, 0.5, 5])
    # The ball around 0 has three rows; 3 is farthest from the mean 9.8 of the others, and the ball
    # around it has two of five.
    leaves = partition(engine(LINE), 3, PartitionRule("ball", "population"))
    np.testing.assert_allclose(leaves[:, 0], [1, 6.5, 12])


def test_weight_counts_and_not_rows(engine):
    weights = np.array([3.0, 1, 1, 1, 1, 1, 1, 1])
    leaves = partition(engine(LINE, weights), 2, PartitionRule("principal", "population"))
    np.testing.assert_allclose(
        np.sort(leaves[:, 0]), [(0 + 1 + 2) / 5, (3 + 10 + 11 + 12 + 13) / 5]
    )


def test_leaves_go_where_the_error_is(engine):
    # 900 rows close together, 100 rows spread out.
    rng = np.random.default_rng(3)
    X = np.concatenate([0.01 * rng.standard_normal((900, 2)), 100 + rng.standard_normal((100, 2))])
    opened = engine(X)
    by_rows = partition(opened, 10, PartitionRule("principal", "population"))
    by_error = partition(opened, 10, PartitionRule("principal", "error"))
    assert np.count_nonzero(by_rows[:, 0] < 50) == 9
    assert np.count_nonzero(by_error[:, 0] < 50) == 1


def test_share_by_error_is_the_square_root_in_the_plane(engine):
    # d = 2: leaves in proportion to squared error to the power d / (d + 2) = 1 / 2. The squared
    # errors are as 1 to 16, so 10 leaves are shared 2 to 8.
    square = np.array([[x, y] for x in range(8) for y in range(8)], dtype=np.float64)
    X = np.concatenate([square, 4 * square + 1000])
    leaves = partition(engine(X), 10, PartitionRule("principal", "error"))
    assert np.count_nonzero(leaves[:, 0] < 500) == 2


# ------------------------------------------------------------------ what must always hold


@all_rules
@forms
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_leaves", [1, 2, 3, 7, 20, 40])
def test_leaves_part_the_rows(engine, form, rule, weighted, n_leaves):
    rng = np.random.default_rng(n_leaves)
    weights = 2.0 ** rng.integers(-2, 3, 40) if weighted else None
    recorder = Recorder(engine(form(numbered(rng.standard_normal((40, 3)), weights)), weights))
    means = partition(recorder, n_leaves, rule)
    assert means.shape == (n_leaves, 4)
    assert means.dtype == np.float64
    rows = row_sets(recorder.leaves(means))
    assert all(rows)  # no leaf is empty
    assert_same_rows(rows, range(40))


@by_population
@pytest.mark.parametrize("n_leaves", [2, 3, 7, 16, 33, 100])
def test_leaves_have_about_the_same_number_of_rows(engine, rule, n_leaves):
    X = np.random.default_rng(0).standard_cauchy((1000, 3))  # all distinct, far from even
    recorder = Recorder(engine(X))
    counts = recorder.leaves(partition(recorder, n_leaves, rule)).counts
    # Each level rounds to whole rows once.
    assert np.abs(counts - 1000 / n_leaves).max() < 2
    assert recorder.n_cuts == np.ceil(np.log2(n_leaves))


@all_rules
@forms
@pytest.mark.parametrize("weighted", [False, True])
def test_as_many_leaves_as_rows(engine, form, rule, weighted):
    rng = np.random.default_rng(1)
    X = rng.standard_cauchy((50, 2))
    weights = 10.0 ** rng.integers(-6, 7, 50) if weighted else None
    leaves = partition(engine(form(X), weights), 50, rule)
    order = [np.lexsort(rows.T) for rows in (leaves, X)]
    np.testing.assert_allclose(leaves[order[0]], X[order[1]], rtol=1e-12)


@all_rules
@forms
def test_surplus_leaves_are_copies(engine, form, rule):
    rng = np.random.default_rng(2)
    distinct = rng.standard_normal((5, 3))
    X = np.concatenate([distinct[rng.integers(0, 5, 30)], distinct, rng.standard_normal((4, 3))])
    weights = np.concatenate([np.ones(35), np.zeros(4)])  # nobody counts the last rows
    leaves = partition(engine(form(X), weights), 12, rule)
    assert leaves.shape == (12, 3)
    distances = np.abs(leaves[:, np.newaxis] - distinct).max(axis=2)
    assert distances.min(axis=1).max() < 1e-12  # every leaf is a row
    assert distances.min(axis=0).max() < 1e-12  # every row is a leaf


@all_rules
def test_equal_rows_give_equal_leaves(engine, rule):
    leaves = partition(engine(np.full((9, 2), 0.1)), 4, rule)
    np.testing.assert_allclose(leaves, np.full((4, 2), 0.1), rtol=1e-15)


@all_rules
@pytest.mark.parametrize("layout", ["Fortran", "strided columns", "read-only"])
def test_leaves_depend_on_the_values_alone(engine, rule, layout):
    X = np.random.default_rng(3).standard_normal((500, 4)).astype(np.float32)
    leaves = [partition(engine(form(X)), 17, rule).tobytes() for form in (np.copy, LAYOUTS[layout])]
    assert leaves[0] == leaves[1]


@given(
    st.integers(1, 25),
    st.integers(1, 3),
    st.integers(1, 30),
    st.sampled_from([2, 3, 100]),
    st.sampled_from(RULES),
    st.integers(0, 10**6),
)
def test_number_of_distinct_leaves(engine, n_rows, n_features, n_leaves, n_values, rule, seed):
    # Few values make equal rows: as many different leaves as asked for, or as there can be.
    rng = np.random.default_rng(seed)
    X = rng.integers(0, n_values, (n_rows, n_features)).astype(np.float64)
    leaves = partition(engine(X), n_leaves, rule)
    assert leaves.shape == (n_leaves, n_features)
    assert np.isfinite(leaves).all()
    n_distinct = len(np.unique(X, axis=0))
    if n_leaves <= 1 or n_distinct == n_rows:
        assert len(np.unique(leaves.round(9), axis=0)) == min(n_leaves, n_distinct)
    else:
        assert len(np.unique(leaves.round(9), axis=0)) <= min(n_leaves, n_distinct)
