"""nn.dkm: soft in training, as it is stored in evaluation, and a parametrization like others."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pgkmeans_sk import PGKMeans, nn  # noqa: E402
from pgkmeans_sk.nn.dkm import TAU_FACTOR  # noqa: E402
from pgkmeans_sk.nn.soft_gradients import BACKWARDS  # noqa: E402
from tests import reference_dkm as reference  # noqa: E402
from tests.dkm_layers import layer_of, original_of, weight_of  # noqa: E402


def blocks_of(layer):
    """The original's whole blocks, in float64."""
    size = weight_of(layer).block_size
    rows = original_of(layer).detach().double()
    return rows[:, : rows.shape[1] // size * size].reshape(-1, size).numpy()


# ------------------------------------------------------------------ training mode


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_a_read_is_soft_k_means_from_where_the_last_one_ended(distance, block_size, backward):
    options = {"block_size": block_size, "distance": distance, "backward": backward}
    layer = layer_of(bits=3, max_iter=4, tol=0.0, **options)
    weight = weight_of(layer)
    centroids, blocks = weight.centroids.numpy().copy(), blocks_of(layer)
    for _ in range(2):
        for _ in range(4):
            centroids = reference.moved(blocks, centroids, weight.tau, distance)
        soft = reference.softened(blocks, centroids, weight.tau, distance)
        np.testing.assert_allclose(layer.weight.detach(), soft.reshape(24, 20), atol=1e-12)
        np.testing.assert_allclose(weight.centroids, centroids, atol=1e-12)


def test_the_gradient_of_unrolled_is_that_of_all_iterations():
    layer = layer_of(max_iter=3, tol=0.0)
    weight, original = weight_of(layer), original_of(layer)
    pull = torch.randn_like(original)
    rows = original.detach().reshape(-1, 1).requires_grad_()
    centroids = weight.centroids.clone()
    for _ in range(3):
        shares = torch.softmax(-(rows - centroids.T).square() / weight.tau, 1)
        centroids = (shares.T @ rows) / shares.sum(0)[:, None]
    soft = torch.softmax(-(rows - centroids.T).square() / weight.tau, 1) @ centroids
    (soft.reshape(24, 20) * pull).sum().backward()
    (layer.weight * pull).sum().backward()
    torch.testing.assert_close(original.grad, rows.grad.reshape(24, 20), rtol=0, atol=1e-12)


@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("backward", ["implicit", "jfb"])
def test_gradients_at_the_fixed_point(backward, block_size):
    options = {"max_iter": 5000, "tol": 1e-15, "backward": backward}
    layer = layer_of(6, 8, block_size=block_size, **options)
    weight, pull = weight_of(layer), torch.randn(6, 8, dtype=torch.float64)
    (layer.weight * pull).sum().backward()
    expected = reference.gradient(
        blocks_of(layer),
        weight.centroids.numpy(),
        weight.tau,
        pull.reshape(-1, block_size).numpy(),
        backward=backward,
    )
    found = original_of(layer).grad.reshape(-1, block_size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_iterations_end_when_centroids_rest():
    layer = layer_of(max_iter=1000, tol=1e-3)
    weight = weight_of(layer)
    _ = layer.weight
    before = weight.centroids.clone()
    layer.weight.sum().backward()  # one iteration: they rest already
    first = reference.moved(blocks_of(layer), before.numpy(), weight.tau)
    np.testing.assert_allclose(weight.centroids, first, atol=1e-14)


def test_what_is_left_of_a_row_takes_the_first_values_and_moves_nothing():
    layer = layer_of(n_columns=11, block_size=4, max_iter=1)
    weight = weight_of(layer)
    start, rest = weight.centroids.numpy().copy(), original_of(layer).detach()[:, 8:].numpy()
    used = layer.weight.detach().numpy()
    moved = reference.moved(blocks_of(layer), start, weight.tau)
    np.testing.assert_allclose(weight.centroids, moved, atol=1e-14)
    np.testing.assert_allclose(used[:, 8:], reference.softened(rest, moved[:, :3], weight.tau))
    distances = ((rest[:, None] - weight._words(torch.float64).numpy()[:, :3]) ** 2).sum(2)
    np.testing.assert_array_equal(weight.codes(original_of(layer))[:, 2], distances.argmin(1))
    assert torch.autograd.gradcheck(
        lambda w: parametrized_anew(layer)(w), original_of(layer).detach()[:4].requires_grad_()
    )


def parametrized_anew(layer):
    """Its parametrization with the centroids that it has now, for four rows, unrolled."""
    weight = copy.deepcopy(weight_of(layer))
    weight.shape = (4, *weight.shape[1:])
    return weight


# ------------------------------------------------------------------ the start


def test_single_values_start_from_the_optimum():
    layer = layer_of(bits=3)
    values = original_of(layer).detach().numpy().ravel()
    words = weight_of(layer).centroids.numpy()[:, 0]
    error = ((values[:, None] - words) ** 2).min(1).sum()
    best = PGKMeans(8).fit(values[:, None]).inertia_
    assert best <= error <= best * (1 + 1e-4)  # its centroids are rounded to float16


@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_tau_is_relative_to_the_error_of_the_start(distance):
    layer = layer_of(block_size=4, distance=distance)
    weight = weight_of(layer)
    distances = ((blocks_of(layer)[:, None] - weight.centroids.numpy()) ** 2).sum(2)
    tau = TAU_FACTOR * distances.min(1).mean() / 2  # the root of 4
    np.testing.assert_allclose(weight.tau, tau if distance == "squared" else tau**0.5)
    assert weight_of(layer_of(tau=2e-5)).tau == 2e-5


def test_a_weight_of_few_values_has_a_tau():
    layer = torch.nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.copy_((torch.arange(64.0).reshape(8, 8) % 4) / 4)
    nn.dkm(layer, bits=2)
    torch.testing.assert_close(layer.weight, original_of(layer), rtol=0, atol=1e-5)
    nn.dkm(zeros := torch.nn.Linear(8, 8).requires_grad_(False), bits=2)
    assert weight_of(zeros).tau > 0
