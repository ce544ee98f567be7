"""Labels and statistics of the CPU engine against the definition, on every kind of data."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse

from pgkmeans_sk.engines import chunks
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.kernels.nearest import ALL_ROWS, assign_dense, pack_centers
from pgkmeans_sk.kernels.points import dense_points
from pgkmeans_sk.kernels.vectors import SUM_BLOCK
from tests import reference
from tests.reference import EPS, LAYOUTS, Problem

PROBLEMS = [*reference.problems(np.float32), *reference.problems(np.float64)]
BY_NAME = {problem.name: problem for problem in PROBLEMS}

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
dense_and_csr = pytest.mark.parametrize("layout", ["C", "csr_matrix int32"])
weightings = pytest.mark.parametrize("weighting", ["none", "random", "some zero"])


@pytest.fixture
def many_chunks(monkeypatch):
    """Small problems are cut into as many chunks as large ones."""
    monkeypatch.setattr(chunks, "CHUNK_WORK", 200)


@every_problem
@dense_and_csr
def test_labels_are_the_definition(problem, layout):
    expected = reference.labels(problem.X, problem.centers)
    engine = NumbaEngine(LAYOUTS[layout](problem.X), None)
    np.testing.assert_array_equal(engine.nearest(problem.centers), expected)
    engine.assign(problem.centers)
    np.testing.assert_array_equal(engine.labels, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "name", ["random n=257 d=3 K=40", "ties on a long grid", "offset 1e6", "mostly zero"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layout_does_not_matter(name, dtype, layout):
    problem = BY_NAME[f"{name}-{dtype}"]
    X = LAYOUTS[layout](problem.X)
    np.testing.assert_array_equal(reference.as_float64(X), problem.X)  # the layout itself is right
    engine = NumbaEngine(X, None)
    found = engine.assign(problem.centers)
    np.testing.assert_array_equal(engine.labels, reference.labels(problem.X, problem.centers))
    np.testing.assert_array_equal(engine.nearest(problem.centers), engine.labels)
    assert_statistics(found, problem, None, sparse.issparse(X))
    distances = reference.sq_distances(problem.X, problem.centers)
    np.testing.assert_array_equal(
        engine.distances(problem.centers), np.sqrt(distances).astype(engine.dtype)
    )


@every_problem
@dense_and_csr
@weightings
def test_statistics_are_those_of_the_clusters(problem, layout, weighting):
    X, sample_weight = (
        LAYOUTS[layout](problem.X),
        reference.sample_weights(len(problem.X))[weighting],
    )
    found = NumbaEngine(X, sample_weight).assign(problem.centers)
    assert_statistics(found, problem, sample_weight, sparse.issparse(X))


def assert_statistics(found, problem: Problem, sample_weight, is_sparse: bool):
    expected = reference.assignment(problem.X, problem.centers, sample_weight)
    n_rows, n_features = problem.X.shape
    X, centers = problem.X.astype(np.float64), problem.centers.astype(np.float64)
    weight = expected.sizes.sum()
    np.testing.assert_allclose(found.sizes, expected.sizes, rtol=n_rows * EPS)
    np.testing.assert_array_equal(found.empty, expected.empty)
    # Rows are added up relative to the origin or to their centre.
    of_sums = 4 * n_rows * EPS * (np.abs(X).max() + np.abs(centers[expected.sizes > 0]).max())
    np.testing.assert_allclose(found.centroids, expected.centroids, rtol=0, atol=of_sums)

    # Dense rows: each distance is a sum of squares. Sparse ones: a difference of norms.
    origin = np.zeros(n_features) if is_sparse else np.median(X, axis=0)
    norms = ((X - origin) ** 2).sum(axis=1).max() + ((centers - origin) ** 2).sum(axis=1).max()
    of_norms = 4 * (n_features + 8) * EPS * weight * norms if is_sparse else 0.0
    rtol = 4 * (n_rows + n_features) * EPS
    np.testing.assert_allclose(found.sq_errors, expected.sq_errors, rtol=rtol, atol=of_norms)
    np.testing.assert_allclose(found.inertia, expected.sq_errors.sum(), rtol=rtol, atol=of_norms)


@every_problem
@dense_and_csr
@weightings
def test_utilities_are_what_a_loss_would_cost_at_most(problem, layout, weighting):
    X = LAYOUTS[layout](problem.X)
    sample_weight = reference.sample_weights(len(problem.X))[weighting]
    engine = NumbaEngine(X, sample_weight)
    engine.assign(problem.centers)
    labels = engine.labels
    found = engine.utilities(problem.centers)
    np.testing.assert_array_equal(engine.labels, labels)
    if len(problem.centers) == 1:
        assert found[0] > 1e30  # there is no second nearest
        return
    expected = reference.utilities(problem.X, problem.centers, sample_weight)
    # They are for guidance, in the precision of the search.
    rows, centers = problem.X.astype(np.float64), problem.centers.astype(np.float64)
    n_rows, n_features = rows.shape
    weight = n_rows if sample_weight is None else sample_weight.sum()
    origin = np.zeros(n_features) if sparse.issparse(X) else np.median(rows, axis=0)
    norms = ((rows - origin) ** 2).sum(axis=1).max() + ((centers - origin) ** 2).sum(axis=1).max()
    eps = np.finfo(problem.X.dtype).eps
    blocks = min(n_features, SUM_BLOCK) + n_features / SUM_BLOCK
    np.testing.assert_allclose(
        found, expected, rtol=4 * (n_rows + n_features) * EPS,
        atol=4 * (blocks + 17) * eps * weight * norms,
    )  # fmt: skip


@pytest.mark.usefixtures("many_chunks")
@every_problem
@dense_and_csr
@weightings
def test_wanted_utilities_have_the_bits_of_all(problem, layout, weighting):
    X = LAYOUTS[layout](problem.X)
    sample_weight = reference.sample_weights(len(problem.X))[weighting]
    expected = NumbaEngine(X, sample_weight).utilities(problem.centers)
    is_wanted = np.random.default_rng(0).random(len(problem.centers)) < 0.5
    for knows_labels in (True, False):
        engine = NumbaEngine(X, sample_weight)
        if knows_labels:
            engine.assign(problem.centers)
            engine._utilities = None
        labels = engine.labels
        found = engine.utilities(problem.centers, is_wanted)
        np.testing.assert_array_equal(found[is_wanted], expected[is_wanted])
        np.testing.assert_array_equal(engine.labels, labels)


@pytest.mark.usefixtures("many_chunks")
@every_problem
@dense_and_csr
def test_threads_do_not_change_a_bit(problem, layout):
    X = LAYOUTS[layout](problem.X)
    sample_weight = reference.sample_weights(len(problem.X))["random"]

    def outcome(n_threads):
        engine = NumbaEngine(X, sample_weight)
        engine._n_threads = n_threads
        found = dataclasses.astuple(engine.assign(problem.centers))
        others = engine.nearest(problem.centers), engine.distances(problem.centers)
        farthest = engine.farthest_rows(problem.centers, 3), engine.mean_variance()
        arrays = (*found, engine.labels, *others, *farthest)
        return b"".join(np.asarray(array).tobytes() for array in arrays)

    if problem.X.size * len(problem.centers) > 2000:
        assert len(NumbaEngine(X, None)._chunk_bounds(problem.X.size * len(problem.centers))) > 8
    alone = outcome(1)
    assert [outcome(n_threads) == alone for n_threads in (2, 3, 4)] == [True] * 3


@pytest.mark.usefixtures("many_chunks")
@every_problem
@dense_and_csr
def test_batch_does_not_matter(problem, layout):
    X = LAYOUTS[layout](problem.X)
    whole = NumbaEngine(X, None).nearest(problem.centers)
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, len(problem.X) // 2):
        rows = rng.permutation(len(problem.X))[:size]
        if len(rows):
            part = NumbaEngine(X[rows], None).nearest(problem.centers)
            np.testing.assert_array_equal(part, whole[rows])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_the_user_stay_as_they_are(layout):
    problem = BY_NAME["mostly zero-float64"]
    X, sample_weight = LAYOUTS[layout](problem.X), reference.sample_weights(200)["some zero"]
    centers = problem.centers.copy()

    def contents():
        parts = (X.data, X.indices, X.indptr) if sparse.issparse(X) else (X,)
        return [part.tobytes() for part in (*parts, sample_weight, centers)]

    before = contents()
    engine = NumbaEngine(X, sample_weight)
    engine.assign(centers)
    engine.cut(engine.root(), np.array([0.5]), "ball", 2)
    engine.farthest_rows(centers, 5)
    engine.closest_rows(centers)
    engine.nearest(centers)
    engine.distances(centers)
    engine.mean_variance()
    assert contents() == before


@dense_and_csr
def test_changed_labels_are_counted(layout):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((300, 4))
    engine = NumbaEngine(LAYOUTS[layout](X), None)
    settings = [rng.standard_normal((k, 4)) for k in (5, 5, 9, 2)]
    settings.insert(2, settings[1])  # nothing moves
    labels, counts = [], []
    for centers in settings:
        counts.append(engine.assign(centers).n_changed)
        engine.nearest(rng.standard_normal((3, 4)))  # does not count as a pass
        labels.append(engine.labels)
    assert counts[0] == 300  # all rows, on the first pass
    assert counts[1:] == [np.count_nonzero(a != b) for a, b in pairwise(labels)]
    assert counts[2] == 0
    assert min(counts[1], counts[3], counts[4]) > 0


@dense_and_csr
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_centers_of_any_precision_and_layout(layout, dtype):
    # A float32 centre is an exact float64; a float64 one must not be rounded to the rows' dtype.
    rng = np.random.default_rng(8)
    X = rng.standard_normal((200, 5)).astype(dtype)
    engine = NumbaEngine(LAYOUTS[layout](X), None)
    close = 1 + 1e-9 * rng.standard_normal((12, 5))
    for centers in (close, close.astype(np.float32), np.asfortranarray(close), close[::-2]):
        centers.flags.writeable = False
        np.testing.assert_array_equal(engine.nearest(centers), reference.labels(X, centers))


@pytest.mark.parametrize("n_rows", [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 95, 96, 97])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_fill_no_whole_tile(n_rows, dtype):
    rng = np.random.default_rng(n_rows)
    X, centers = rng.standard_normal((n_rows, 3)), rng.standard_normal((6, 3))
    X, centers = X.astype(dtype), centers.astype(dtype)
    engine = NumbaEngine(X, None)
    assert engine.assign(centers).sizes.sum() == n_rows
    np.testing.assert_array_equal(engine.labels, reference.labels(X, centers))


@pytest.mark.parametrize("scale", [1e17, 1e18, 1e19, 2e19, 1e20, 1e30])
@dense_and_csr
def test_squares_beyond_float32(scale, layout):
    # |c|^2 or x.c overflow in the vector kernel, where |x - c|^2 in float64 does not.
    rng = np.random.default_rng(3)
    X = (rng.standard_normal((300, 4)) * scale).astype(np.float32)
    X[:3] = 0.0
    engine = NumbaEngine(LAYOUTS[layout](X), None)
    np.testing.assert_array_equal(engine.nearest(X[:25]), reference.labels(X, X[:25]))


@pytest.mark.parametrize("scale", [1e-18, 1e-20, 1e-22, 1e-30, 1e-40])
@dense_and_csr
def test_squares_below_float32(scale, layout):
    rng = np.random.default_rng(3)
    X, centers = rng.standard_normal((300, 4)) * scale, rng.standard_normal((25, 4)) * scale
    X, centers = X.astype(np.float32), centers.astype(np.float32)
    engine = NumbaEngine(LAYOUTS[layout](X), None)
    np.testing.assert_array_equal(engine.nearest(centers), reference.labels(X, centers))


@pytest.mark.parametrize("scale", [1e-165, 1e-161, 1e-158, 1e-150, 1e150, 1e154])
@dense_and_csr
def test_squares_at_the_ends_of_float64(scale, layout):
    rng = np.random.default_rng(3)
    X, centers = rng.standard_normal((300, 4)) * scale, rng.standard_normal((25, 4)) * scale
    engine = NumbaEngine(LAYOUTS[layout](X), None)
    with np.errstate(over="ignore"):
        expected = reference.labels(X, centers)
    np.testing.assert_array_equal(engine.nearest(centers), expected)


@dense_and_csr
@pytest.mark.parametrize("kind", ["read-only", "strided"])
def test_weights_of_any_layout(layout, kind):
    problem = BY_NAME["random n=200 d=8 K=16-float64"]
    sample_weight = reference.sample_weights(200)["random"]
    others = np.repeat(sample_weight, 2)[::2]
    others.flags.writeable = kind != "read-only"
    X = LAYOUTS[layout](problem.X)
    found = NumbaEngine(X, others).assign(problem.centers)
    expected = NumbaEngine(X, sample_weight).assign(problem.centers)
    for one, other in zip(dataclasses.astuple(found), dataclasses.astuple(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@dense_and_csr
def test_rows_on_their_centre_have_no_error(layout):
    # A difference of norms would leave 1e-10 here; the inertia could seem to rise.
    X = 1000 + np.random.default_rng(0).standard_normal((30, 3))
    found = NumbaEngine(LAYOUTS[layout](X), None).assign(X)
    np.testing.assert_array_equal(found.sq_errors, np.zeros(30))


@pytest.mark.parametrize(
    ("X", "at_least", "at_most"),
    [
        # Every row halfway between two centres: all need the second look.
        (np.full((50, 1), 0.5, dtype=np.float32), 50, 50),
        # On a centre, the others far away: a second look would only cost time.
        (np.repeat(np.float32([[0], [1], [2]]), 20, axis=0), 0, 0),
    ],
)
def test_second_look_only_where_it_is_needed(X, at_least, at_most):
    packed = pack_centers(np.float32([[0], [1], [2]]), np.zeros(1, dtype=np.float32))
    labels = np.full(len(X), -1, dtype=np.int32)
    unused = np.empty((1, 1)), np.empty(1), np.empty((1, 4)), np.empty(0), np.empty(0, X.dtype)
    _, n_exact = assign_dense(
        dense_points(X), np.ones(1), 0, 0, len(X), packed, False, labels, *unused, ALL_ROWS
    )
    assert at_least <= n_exact <= at_most
