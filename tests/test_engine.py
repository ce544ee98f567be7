"""What the pipeline expects of every engine (engines/protocol.py)."""

import numpy as np
import pytest
from scipy import sparse

from pgkmeans_sk.engines import ENGINE_NAMES
from pgkmeans_sk.kernels.vectors import vector_bytes
from tests import reference
from tests.conftest import ENGINES
from tests.reference import assert_children_make_up, assert_same_rows, numbered, row_sets

FORMS = {"dense": np.asarray, "csr": sparse.csr_matrix}

forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
# Powers of two, as ``numbered`` needs them; row 2 has none.
WEIGHTS = {"none": None, "weighted": np.array([1.0, 2, 0, 4, 1, 0.5] * 6)}
weightings = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
rules = pytest.mark.parametrize("rule", ["ball", "principal"])


def rows_of_test(weights=None, n_features=3):
    return numbered(np.random.default_rng(12).standard_normal((36, n_features)), weighted(weights))


def weighted(weights):
    """Weights as ``numbered`` can take them: what is zero is in no node anyway."""
    return None if weights is None else np.where(weights > 0, weights, 1.0)


def present(weights):
    return range(36) if weights is None else np.flatnonzero(weights)


def assert_moments(nodes, sets, X, weights):
    """Counts, weights, means and scatters are those of the rows in ``sets``."""
    for p, rows in enumerate(sets):
        rows = sorted(rows)
        own = None if weights is None else weights[rows]
        mean, weight, scatter = reference.weighted_moments(X[rows], own)
        assert nodes.counts[p] == len(rows)
        np.testing.assert_allclose(nodes.weights[p], weight, rtol=1e-12)
        np.testing.assert_allclose(nodes.means[p], mean, atol=1e-12)
        np.testing.assert_allclose(nodes.scatters[p], scatter, rtol=1e-9, atol=1e-12)


def test_every_engine_is_tested():
    assert {"auto", *ENGINES} == set(ENGINE_NAMES)


# ------------------------------------------------------------------ the rows as a whole


@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_engine_describes_its_rows(engine, form, dtype):
    X = form(np.random.default_rng(0).standard_normal((20, 3)).astype(dtype))
    opened = engine(X)
    engine_name, *rest = opened.name.split("-")
    assert engine_name in ENGINES
    if engine_name == "torch":
        assert rest in (["cpu"], ["cuda:0"])
    else:
        kind = "csr" if sparse.issparse(X) else "dense"
        assert rest == [kind, f"{8 * vector_bytes()}bit"]
    assert (opened.n_rows, opened.n_features, opened.dtype) == (20, 3, dtype)
    assert opened.user_data is X
    assert opened.total_weight == 20
    assert engine(X, np.linspace(0, 1, 20)).total_weight == pytest.approx(10)


@forms
@pytest.mark.parametrize("weighting", ["none", "random", "some zero"])
@pytest.mark.parametrize("name", ["random n=200 d=8 K=16", "norms 1e5", "duplicates", "one row"])
def test_mean_variance_is_the_weighted_variance(engine, form, weighting, name):
    (X,) = (p.X for p in reference.problems(np.float64) if p.name == f"{name}-float64")
    sample_weight = reference.sample_weights(len(X))[weighting]
    found = engine(form(X), sample_weight).mean_variance()
    # One row has none; what is left there is rounding.
    tiny = 1e-12 * (X**2).max()
    np.testing.assert_allclose(
        found, reference.mean_variance(X, sample_weight), rtol=1e-10, atol=tiny
    )


def test_mean_variance_far_from_the_origin(engine):
    X = 1e6 + np.random.default_rng(0).standard_normal((500, 4))
    np.testing.assert_allclose(engine(X).mean_variance(), X.var(axis=0).mean(), rtol=1e-6)


@forms
def test_labels_are_a_copy(engine, form):
    opened = engine(form(np.array([[0.0], [1], [9]])))
    opened.assign(np.array([[0.0], [9]]))
    opened.labels[:] = 7
    np.testing.assert_array_equal(opened.labels, [0, 0, 1])
    assert opened.labels.dtype == np.int32
    np.testing.assert_array_equal(opened.nearest(np.array([[9.0], [0]])), [1, 1, 0])
    np.testing.assert_array_equal(opened.labels, [0, 0, 1])  # those of the last assign


@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_are_in_the_datas_dtype(engine, form, dtype):
    X = np.random.default_rng(3).standard_normal((30, 4)).astype(dtype)
    found = engine(form(X)).distances(X[:5])
    assert found.dtype == dtype
    assert (found[range(5), range(5)] == 0).all()  # a centre is at no distance from itself
    expected = np.sqrt(reference.sq_distances(X, X[:5]))
    np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(dtype).eps)


@forms
def test_labels_are_measured_as_they_are(engine, form):
    opened = engine(form(np.array([[0.0], [1], [4], [9]])), np.array([1.0, 1, 2, 0]))
    opened.assign(np.array([[0.0], [5]]))
    found = opened.measure(np.array([[9.0], [0]]))  # not where they are nearest
    np.testing.assert_array_equal(opened.labels, [0, 0, 1, 1])
    np.testing.assert_allclose(found.sizes, [2, 2])
    np.testing.assert_allclose(found.centroids, [[0.5], [4]])
    np.testing.assert_allclose(found.sq_errors, [81 + 64, 2 * 16])
    assert found.n_changed == 0


# ------------------------------------------------------------------ nodes


@forms
@weightings
def test_root_has_all_rows_of_positive_weight(engine, form, weights):
    X = rows_of_test(weights)
    root = engine(form(X), weights).root()
    assert len(root) == 1
    assert row_sets(root) == [set(present(weights))]
    assert_moments(root, row_sets(root), X, weights)


@forms
@weightings
def test_opened_clusters_have_their_rows(engine, form, weights):
    X = rows_of_test(weights)
    opened = engine(form(X), weights)
    opened.assign(X[:7])
    clusters = np.array([5, 0, 3])  # neither all nor in order
    nodes = opened.open_clusters(clusters)
    expected = [set(np.flatnonzero(opened.labels == k)) & set(present(weights)) for k in clusters]
    assert row_sets(nodes) == expected
    assert_moments(nodes, expected, X, weights)


def test_opened_cluster_without_rows(engine):
    X = np.array([[0.0], [1.0], [2.0]])
    opened = engine(X, np.array([1.0, 1.0, 0.0]))
    opened.assign(np.array([[0.5], [2.0], [1e9]]))
    # Cluster 1 has a row without weight, cluster 2 none at all.
    nodes = opened.open_clusters(np.array([2, 0, 1]))
    np.testing.assert_array_equal(nodes.counts, [0, 2, 0])
    np.testing.assert_array_equal(nodes.weights, [0.0, 2.0, 0.0])


@forms
@weightings
@rules
@pytest.mark.parametrize("fraction", [-1.0, 0.5])
def test_two_levels_of_cuts_part_the_rows(engine, form, weights, rule, fraction):
    X = rows_of_test(weights)
    opened = engine(form(X), weights)
    opened.assign(X[:4])
    level = opened.open_clusters(np.arange(4))
    assert_same_rows(row_sets(level), present(weights))
    for _ in range(2):
        cut = opened.cut(level, np.full(len(level), fraction), rule, 2)
        assert_children_make_up(level, cut)
        for side in (cut.left, cut.right):
            side = side[cut.possible]
            assert_moments(side, row_sets(side), X, weights)
        alone = level[~cut.possible]
        assert all(len(rows) == 1 for rows in row_sets(alone))  # no two rows are equal here
        level = cut.left[cut.possible] + cut.right[cut.possible]
        assert_same_rows(row_sets(level) + row_sets(alone), present(weights))
        if len(alone):
            break


@rules
@pytest.mark.parametrize("fraction", [-1.0, 0.3])
def test_nodes_are_cut_independently(engine, rule, fraction):
    X = rows_of_test()
    opened = engine(X)
    opened.assign(X[:5])

    def cut_sets(clusters):
        nodes = opened.open_clusters(clusters)
        cut = opened.cut(nodes, np.full(len(nodes), fraction), rule, 1)
        return list(zip(row_sets(cut.left), row_sets(cut.right), strict=True))

    together = cut_sets(np.arange(5))
    assert together == [cut_sets(np.array([k]))[0] for k in range(5)]
    assert cut_sets(np.array([4, 1])) == [together[4], together[1]]


def test_each_node_has_its_own_fraction(engine):
    opened = engine(numbered(np.arange(30.0)[:, np.newaxis]))
    opened.assign(np.array([[4.5, 0], [14.5, 0], [24.5, 0]]))
    nodes = opened.open_clusters(np.arange(3))
    cut = opened.cut(nodes, np.array([0.2, 0.5, 0.9]), "principal", 0)
    np.testing.assert_array_equal(cut.left.counts, [2, 5, 9])
    np.testing.assert_array_equal(cut.right.counts, [8, 5, 1])


@forms
@rules
@pytest.mark.parametrize("fraction", [-1.0, 0.5])
def test_only_nodes_with_distinct_rows_can_be_cut(engine, form, rule, fraction):
    X = np.array([[0.1, 0.7]] * 4 + [[5.3, 0.7]] * 3 + [[9.1, 9.9], [9.1, 9.8]])
    # Distinct, but for a row without weight.
    X, weights = np.append(X, [[5.4, 0.7]], axis=0), np.append(np.ones(9), 0.0)
    opened = engine(form(X), weights)
    opened.assign(np.array([[0.0, 1], [5, 1], [9, 9]]))
    nodes = opened.open_clusters(np.arange(3))
    cut = opened.cut(nodes, np.full(3, fraction), rule, 2)
    np.testing.assert_array_equal(nodes.counts, [4, 3, 2])
    np.testing.assert_array_equal(cut.possible, [False, False, True])
    assert cut.left.counts[2] == cut.right.counts[2] == 1


def test_many_nodes_and_rows(engine):
    # Enough for several groups of nodes, which may run on several threads.
    rng = np.random.default_rng(9)
    X = rng.standard_normal((60_000, 2)).astype(np.float32)
    opened = engine(X)
    opened.assign(X[:200])
    nodes = opened.open_clusters(np.arange(200))
    cut = opened.cut(nodes, np.full(200, 0.5), "principal", 1)
    assert cut.possible.all()
    assert nodes.counts.sum() == 60_000
    assert_children_make_up(nodes, cut)
    # Two-means moved the cut where it lowers the error: halves leave less than the whole.
    assert (cut.left.scatters + cut.right.scatters < nodes.scatters).all()


# ------------------------------------------------------------------ single rows

LINE = np.array([[0.0], [5.0], [0.0], [5.0], [9.0], [1.0], [-0.0]])


@forms
def test_farthest_rows_by_hand(engine, form):
    opened = engine(form(LINE), np.array([1.0, 1, 1, 1, 0, 1, 1]))
    center = np.array([[0.0]])
    opened.assign(center)
    # 9 has no weight, 5 comes once, 0 and -0 lie on the centre.
    for n_rows, expected in ((1, [5]), (2, [5, 1]), (7, [5, 1])):
        np.testing.assert_array_equal(opened.farthest_rows(center, n_rows)[:, 0], expected)
    opened.assign(LINE)
    assert opened.farthest_rows(LINE, 3).shape == (0, 1)
    # 0 and -0 are one value here, too, though their bytes differ.
    center = np.array([[-9.0]])
    opened.assign(center)
    np.testing.assert_array_equal(opened.farthest_rows(center, 7)[:, 0], [5, 1, 0])


@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_farthest_rows_are_distinct_and_in_order(engine, form, dtype):
    rng = np.random.default_rng(2)
    X = rng.standard_normal((40, 3)).astype(dtype)[rng.integers(0, 40, 200)]
    opened = engine(form(X))
    opened.assign(X[:4])
    found = opened.farthest_rows(X[:4], 10)
    assert found.dtype == dtype
    distances = np.unique(reference.sq_distances(X, X[:4]).min(axis=1))[::-1][:10]
    np.testing.assert_array_equal(reference.sq_distances(found, X[:4]).min(axis=1), distances)


@forms
def test_closest_rows_by_hand(engine, form):
    opened = engine(form(LINE))
    centers = np.array([[0.4], [4.0], [100.0], [-7.0]])
    opened.assign(centers)
    # 9 is nearer to 4 than to 100, and nobody is near -7 either: no row stands for these two.
    np.testing.assert_array_equal(opened.closest_rows(centers)[:, 0], [0, 5])


@forms
def test_closest_rows_of_equally_near_ones_is_the_first(engine, form):
    X = np.random.default_rng(6).permutation(np.repeat(np.arange(40.0), 1000))[:, np.newaxis]
    X = np.hstack([X, np.arange(40_000)[:, np.newaxis] < 20_000])  # 1, and then 0
    opened = engine(form(X), np.where(np.arange(40_000) % 7 == 0, 0.0, 1.0))
    centers = np.column_stack([np.arange(40.0), np.full(40, 0.5)])
    opened.assign(np.vstack([centers[:20], [[-900.0, 0]], centers[20:]]))
    found = opened.closest_rows(np.vstack([centers[:20], [[-900.0, 0]], centers[20:]]))
    # All rows of a cluster are equally near; each is there long before the second half begins.
    np.testing.assert_array_equal(found, np.column_stack([np.arange(40.0), np.ones(40)]))


@forms
@weightings
def test_drawn_rows_are_rows_without_repetition(engine, form, weights):
    X = rows_of_test(weights)
    opened = engine(form(X), weights)
    for n_rows in (1, 5, len(present(weights))):
        drawn = opened.draw_rows(n_rows, np.random.RandomState(n_rows))
        numbers = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in drawn]
        assert len(set(numbers)) == n_rows
        assert set(numbers) <= set(present(weights))
        again = opened.draw_rows(n_rows, np.random.RandomState(n_rows))
        np.testing.assert_array_equal(drawn, again)


def test_rows_are_drawn_by_weight(engine):
    X, rng = np.arange(3.0)[:, np.newaxis], np.random.RandomState(0)
    opened = engine(X, np.array([1.0, 0.0, 3.0]))
    drawn = np.array([opened.draw_rows(1, rng)[0, 0] for _ in range(1000)])
    assert set(drawn) == {0.0, 2.0}
    assert np.mean(drawn == 2) == pytest.approx(0.75, abs=0.06)  # four standard deviations
    # Two rows have weight: a third one can only be one of them again.
    assert set(opened.draw_rows(3, rng)[:, 0]) == {0.0, 2.0}


@forms
@weightings
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kmeans_plusplus_draws_distinct_rows(engine, form, weights, dtype):
    X = np.random.default_rng(5).standard_normal((36, 3)).astype(dtype)
    drawn = engine(form(X), weights).draw_kmeans_plusplus(9, np.random.RandomState(0))
    assert drawn.dtype == dtype
    numbers = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in drawn]
    assert len(set(numbers)) == 9
    assert set(numbers) <= set(present(weights))


# ------------------------------------------------------------------ other engines over the rows


@forms
@weightings
@pytest.mark.parametrize("n_rows", [1, 10, 29, 1000])
def test_sample_carries_the_weights(engine, form, weights, n_rows):
    X = rows_of_test(weights)
    few = engine(form(X), weights).sample(n_rows, np.random.RandomState(1))
    assert few.n_rows == min(n_rows, len(present(weights)))
    assert few.n_features == 4
    (rows,) = row_sets(few.root())
    assert len(rows) == few.n_rows
    assert rows <= set(present(weights))
    assert_moments(few.root(), [rows], X, weights)


def test_sample_is_uniform(engine):
    opened, rng = engine(numbered(np.zeros((20, 1)))), np.random.RandomState(2)
    counts = np.zeros(20)
    for _ in range(400):
        (rows,) = row_sets(opened.sample(5, rng).root())
        counts[list(rows)] += 1
    # Each row is in a quarter of the samples: 100 times, with a standard deviation of 8.7.
    assert np.abs(counts - 100).max() < 4.5 * 8.7


@forms
@weightings
def test_extended_rows_have_the_mean_weight(engine, form, weights):
    X = np.random.default_rng(4).standard_normal((36, 3))
    opened, added = engine(form(X), weights), np.full((2, 3), 50.0)
    more = opened.extended(added)
    assert more.n_rows == 38
    mean_weight = 1.0 if weights is None else weights[weights > 0].mean()
    more.assign(np.array([[0.0, 0, 0], [50, 50, 50]]))
    np.testing.assert_array_equal(more.labels, np.repeat([0, 1], [36, 2]))
    np.testing.assert_allclose(
        more.open_clusters(np.arange(2)).weights, [opened.total_weight, 2 * mean_weight]
    )
    assert opened.n_rows == 36


@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_engine_of_other_rows(engine, form, dtype):
    rng = np.random.default_rng(7)
    X = form(rng.standard_normal((36, 3)).astype(dtype))
    opened = engine(X, rng.uniform(1, 2, 36))
    rows = rng.standard_normal((5, 3)).astype(dtype)
    others = opened.of_rows(rows)
    assert (others.n_rows, others.n_features, others.dtype) == (5, 3, dtype)
    assert others.total_weight == 5
    np.testing.assert_array_equal(others.assign(rows[:2]).sizes.sum(), 5)
    np.testing.assert_array_equal(others.labels, reference.labels(rows, rows[:2]))


@forms
def test_last_assignment_is_one_like_any_other(engine, form):
    # So many rows and centres that an engine may keep books between passes.
    rng = np.random.default_rng(11)
    X = form(rng.standard_normal((12_000, 8)).astype(np.float32))
    opened, other = engine(X), engine(X)
    centers = rng.standard_normal((256, 8)).astype(np.float32)
    for last in (False, False, True, False, True, True, False):
        found, expected = opened.assign(centers, last=last), other.assign(centers)
        np.testing.assert_array_equal(opened.labels, other.labels)
        np.testing.assert_array_equal(opened.labels, opened.nearest(centers))
        assert found.inertia == expected.inertia
        assert found.n_changed == expected.n_changed
        centers = found.centroids.astype(np.float32)
