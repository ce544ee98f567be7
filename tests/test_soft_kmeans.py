"""Soft k-means in tiles, against NumPy; each backward pass against its definition."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pgkmeans_sk.nn import soft_gradients, soft_kmeans  # noqa: E402
from pgkmeans_sk.nn.gmres import solved  # noqa: E402
from pgkmeans_sk.nn.soft_gradients import at_fixed_point, moved, softened  # noqa: E402
from pgkmeans_sk.nn.soft_kmeans import Points, SoftKMeans, nearest  # noqa: E402
from tests import reference_dkm as reference  # noqa: E402

DISTANCES = ("squared", "euclidean")
TAU = 0.6


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of some rows only, the last of them not full."""
    monkeypatch.setitem(soft_kmeans.TILE_VALUES, "cpu", 36)


def problem(n_rows=23, size=2, n_codes=4, seed=0):
    """Rows and centroids, in float64."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_rows, size)), rng.normal(size=(n_codes, size))


def kmeans_of(distance="squared", tau=TAU, dtype=torch.float64):
    return SoftKMeans(torch.tensor(tau, dtype=dtype), distance == "squared")


def tensors(*arrays, dtype=torch.float64):
    return [torch.tensor(array, dtype=dtype) for array in arrays]


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("size", [1, 3])
def test_values_are_those_of_the_formulas(distance, size):
    rows, centroids = problem(size=size)
    points, start = tensors(rows, centroids)
    kmeans = kmeans_of(distance)
    found, mass = kmeans.moved(Points(points), start)
    expected = reference.moved(rows, centroids, TAU, distance)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    shares = reference.attention(rows, centroids, TAU, distance)
    np.testing.assert_allclose(mass, shares.sum(0), rtol=1e-13)
    soft = reference.softened(rows, centroids, TAU, distance)
    np.testing.assert_allclose(kmeans.softened(Points(points), start), soft, rtol=0, atol=1e-13)


def test_two_rows_between_two_centroids():
    # Row 0 is at distance 0 and 1 from the centroids, row 1 the other way round.
    share = 1 / (1 + np.exp(-2.0))  # softmax of 0 and -1 / 0.5
    rows, centroids = tensors([[0.0], [1.0]], [[0.0], [1.0]])
    kmeans = kmeans_of(tau=0.5)
    np.testing.assert_allclose(kmeans.softened(Points(rows), centroids), [[1 - share], [share]])
    found, mass = kmeans.moved(Points(rows), centroids)
    np.testing.assert_allclose(found, [[1 - share], [share]])
    np.testing.assert_allclose(mass, [1.0, 1.0])


def test_far_from_zero_little_is_lost():
    rows, centroids = problem(size=1)
    # Exact in float32, so that only the arithmetic can be off.
    rows, centroids = np.round(rows * 256) / 256, np.round(centroids * 256) / 256
    near, far = (
        kmeans_of(dtype=torch.float32).moved(Points(points), start)[0]
        for points, start in (
            tensors(rows, centroids, dtype=torch.float32),
            tensors(rows + 1024, centroids + 1024, dtype=torch.float32),
        )
    )
    np.testing.assert_allclose(far - 1024, near, rtol=0, atol=2e-4)


def test_a_centroid_without_attention_stays_where_it_is():
    rows, centroids = tensors(np.linspace(-1, 1, 9)[:, None], [[0.5], [1e4], [-0.5]])
    centroids.requires_grad_()
    kmeans = kmeans_of(tau=1e-3)
    found = moved(kmeans, Points(rows), rows, centroids)
    assert found[1] == 1e4
    assert found[0] > 0
    assert found[2] < 0
    jacobian = torch.autograd.functional.jacobian(
        lambda c: moved(kmeans, Points(rows), rows, c), centroids
    ).reshape(3, 3)
    np.testing.assert_array_equal(jacobian[1], [0.0, 1.0, 0.0])
    at = centroids.detach()
    own = kmeans.jacobian(Points(rows), at, kmeans.moved(Points(rows), at))
    np.testing.assert_allclose(own, jacobian, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_equal_halves_are_one_point(dtype):
    generator = torch.Generator().manual_seed(0)
    halves = torch.randn(3000, 1, generator=generator).to(dtype)
    halves[:3] = torch.tensor([[0.0], [-0.0], [0.0]], dtype=dtype)
    points = Points.of(halves)
    assert len(points.values) == len(halves.view(torch.int16).unique()) < 2900
    assert points.values.dtype == torch.float32
    assert torch.equal(points.spread(points.values).to(dtype), halves)
    assert int(points.counts.sum()) == 3000
    everything = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    assert len(Points.of(everything[:, None]).values) == 1 << 16


def test_blocks_and_wide_numbers_are_points_each():
    for rows in (torch.zeros(7, 2, dtype=torch.float16), torch.zeros(7, 1)):
        points = Points.of(rows)
        assert points.members is None
        assert points.counts is None
        assert len(points.values) == 7


@pytest.mark.parametrize("size", [1, 3])
def test_nearest_is_the_first_of_the_nearest(size):
    rows, centroids = (torch.from_numpy(a) for a in problem(200, size, 9))
    centroids[6] = centroids[2]
    found = nearest(rows, centroids)
    expected = (rows[:, None] - centroids).square().sum(2).argmin(1)
    assert torch.equal(found, expected)
    assert 2 in found
    assert 6 not in found


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("function", [moved, softened])
def test_gradients_of_a_step(function, size, distance):
    rows, centroids = (t.requires_grad_() for t in tensors(*problem(size=size)))
    kmeans = kmeans_of(distance)
    assert torch.autograd.gradcheck(
        lambda w, c: function(kmeans, Points.of(w), w, c), (rows, centroids)
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradients_at_a_centroid_are_finite(distance):
    rows, centroids = (t.requires_grad_() for t in tensors(*problem()))
    with torch.no_grad():
        rows[:2] = centroids[0]
    kmeans = kmeans_of(distance)
    found = moved(kmeans, Points.of(rows), rows, centroids)
    softened(kmeans, Points.of(rows), rows, found).square().sum().backward()
    assert bool(torch.isfinite(rows.grad).all())
    assert bool(torch.isfinite(centroids.grad).all())


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("size", [1, 3])
def test_the_jacobian_is_that_of_an_iteration(size, distance):
    rows, centroids = tensors(*problem(size=size))
    kmeans, points = kmeans_of(distance), Points(rows)
    expected = torch.autograd.functional.jacobian(
        lambda c: moved(kmeans, points, rows, c), centroids
    )
    found = kmeans.jacobian(points, centroids, kmeans.moved(points, centroids))
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-12)


@pytest.mark.parametrize("direct_size", [0, 256])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("size", [1, 2])
def test_implicit_is_the_gradient_through_the_fixed_point(size, distance, direct_size, monkeypatch):
    monkeypatch.setattr(soft_gradients, "DIRECT_SIZE", direct_size)
    rows, start = problem(size=size)
    pull = np.random.default_rng(1).normal(size=rows.shape)
    fixed = reference.fixed_point(rows, start, TAU, distance)
    (centroids,) = tensors(fixed)
    weight = tensors(rows)[0].requires_grad_()
    kmeans, points = kmeans_of(distance), Points.of(weight)
    found = at_fixed_point(kmeans, points, weight, centroids)
    np.testing.assert_allclose(found.detach(), fixed, rtol=0, atol=1e-13)
    (softened(kmeans, points, weight, found) * torch.from_numpy(pull)).sum().backward()
    expected = reference.gradient(rows, fixed, TAU, pull, distance=distance)
    np.testing.assert_allclose(weight.grad, expected, rtol=0, atol=1e-7)
    # What "jfb" takes for it is far from that.
    jfb = reference.gradient(rows, fixed, TAU, pull, distance=distance, backward="jfb")
    assert np.abs(jfb - expected).max() > 0.01


def test_implicit_is_what_differences_of_fixed_points_say():
    rows, start = problem(12, 1, 3)
    pull = np.random.default_rng(1).normal(size=rows.shape)

    def loss(now):
        fixed = reference.fixed_point(now, start, TAU)
        return np.array((pull * reference.softened(now, fixed, TAU)).sum())

    weight = tensors(rows)[0].requires_grad_()
    (fixed,) = tensors(reference.fixed_point(rows, start, TAU))
    kmeans, points = kmeans_of(), Points.of(weight)
    found = at_fixed_point(kmeans, points, weight, fixed)
    (softened(kmeans, points, weight, found) * torch.from_numpy(pull)).sum().backward()
    expected = reference.jacobian(loss, rows, step=1e-5)[0].reshape(rows.shape)
    np.testing.assert_allclose(weight.grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("function", [moved, at_fixed_point])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_equal_halves_are_those_of_single_numbers(dtype, function):
    generator = torch.Generator().manual_seed(0)
    halves = torch.randn(500, 1, generator=generator).to(dtype)
    halves = torch.cat([halves, halves[:100]])
    pull = torch.randn(600, 1, generator=generator).to(dtype)
    centroids = torch.tensor([[-1.0], [0.1], [0.9]])
    kmeans = kmeans_of(tau=0.3, dtype=torch.float32)
    found = []
    for rows in (halves.clone(), halves.float()):
        rows.requires_grad_()
        after = function(kmeans, Points.of(rows), rows, centroids)
        soft = softened(kmeans, Points.of(rows), rows, after)
        assert soft.dtype == rows.dtype
        (soft * pull.to(rows.dtype)).sum().backward()
        found.append((after.detach(), soft.detach().float(), rows.grad.float()))
    (after, soft, gradient), expected = found
    unit = torch.finfo(dtype).eps
    np.testing.assert_allclose(after, expected[0], rtol=2e-6)
    np.testing.assert_allclose(soft, expected[1], rtol=unit, atol=1e-6)
    # Rounded twice: by way of the soft row, and of the centroid.
    np.testing.assert_allclose(gradient, expected[2], rtol=2 * unit, atol=20 * unit)


def test_a_weight_that_was_changed_before_the_backward_pass_is_noticed():
    rows, centroids = tensors(*problem())
    weight = rows.clone().requires_grad_()
    found = moved(kmeans_of(), Points.of(weight), weight, centroids)
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


def test_a_linear_system_that_is_not_solved_is_told_of(monkeypatch):
    monkeypatch.setattr(soft_gradients, "DIRECT_SIZE", 0)
    monkeypatch.setattr(soft_gradients, "SOLVER_MAX_ITER", 1)
    rows, centroids = tensors(*problem(size=3, n_codes=8))
    weight = rows.requires_grad_()
    found = at_fixed_point(kmeans_of(tau=1.5), Points.of(weight), weight, centroids)
    with pytest.warns(RuntimeWarning, match="residual above 0.1 .* after 1 iterations"):
        found[0, 0].backward()
    assert bool(torch.isfinite(weight.grad).all())


# ------------------------------------------------------------------ linear systems


@pytest.mark.parametrize("radius", [0.5, 3.0])
def test_gmres_solves_what_powers_may_not(radius):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(12, 12))
    matrix *= radius / np.abs(np.linalg.eigvals(matrix)).max()
    system = torch.from_numpy(np.eye(12) - matrix)
    right = torch.from_numpy(rng.normal(size=12))
    found, residual = solved(lambda u: system @ u, right, right, tol=1e-12, max_iter=50)
    np.testing.assert_allclose(found, np.linalg.solve(system, right), rtol=1e-9)
    assert residual < 1e-11


def test_gmres_never_gets_worse():
    rng = np.random.default_rng(0)
    system = torch.from_numpy(np.eye(30) + 0.5 * rng.normal(size=(30, 30)))
    right = torch.from_numpy(rng.normal(size=30))
    residuals = []
    for max_iter in range(1, 31):
        found, residual = solved(lambda u: system @ u, right, right, tol=0.0, max_iter=max_iter)
        actual = float((right - system @ found).norm() / right.norm())
        np.testing.assert_allclose(residual, actual, rtol=1e-6, atol=1e-12)
        residuals.append(residual)
    first = float((right - system @ right).norm() / right.norm())
    assert all(b <= a * (1 + 1e-9) for a, b in zip([first, *residuals], residuals, strict=False))
    assert residuals[-1] < 1e-9


def test_gmres_of_nothing_and_of_what_cannot_be_solved():
    zero = torch.zeros(3)
    assert torch.equal(solved(lambda u: u, zero, zero, tol=0.0, max_iter=3)[0], zero)
    right = torch.tensor([1.0, 1.0, 0.0])
    found, residual = solved(
        lambda u: u * torch.tensor([2.0, 0.0, 0.0]), right, zero, tol=0.0, max_iter=9
    )
    np.testing.assert_allclose(found[0], 0.5)
    np.testing.assert_allclose(residual, 0.5**0.5, rtol=1e-6)
    found, residual = solved(lambda u: u * float("nan"), right, right, tol=0.0, max_iter=3)
    assert torch.equal(found, right)
    assert not residual <= 1.0
