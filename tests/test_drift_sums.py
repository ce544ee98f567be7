"""What is told of a layer's inputs in a model that is compressed in part, against plain sums."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pgkmeans_sk.nn.drift_sums import DriftSums  # noqa: E402


def case(n=300, d=7, out=5, mean=0.0, dtype=torch.float64):
    rng = np.random.default_rng(0)
    W = rng.normal(size=(out, d))
    x = mean + rng.normal(size=(n, d))
    whole = x + rng.normal(size=(n, d)) / 3 + 0.2
    rest = rng.normal(size=(n, out)) + 0.5
    return W, *(torch.from_numpy(values).to(dtype) for values in (whole, x, rest))


def sums_of(whole, x, rest, size):
    sums = DriftSums(x.shape[1], x.device)
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        sums.add(whole[part], x[part], None if rest is None else rest[part])
    return sums


def expected(W, whole, x, rest, *, is_centered):
    whole, x = whole.double().numpy(), x.double().numpy()
    lack = (whole - x) @ W.T + (0.0 if rest is None else rest.double().numpy())
    m, lack_mean = x.mean(0) * is_centered, lack.mean(0) * is_centered
    H = (x - m).T @ (x - m) / len(x)
    return H, (lack - lack_mean).T @ (x - m) / len(x), m, lack_mean


@pytest.mark.parametrize("size", [300, 70, 1])
@pytest.mark.parametrize("is_centered", [True, False])
@pytest.mark.parametrize("has_rest", [True, False])
def test_it_is_the_plain_sum(size, is_centered, has_rest):
    W, whole, x, rest = case(mean=3.0)
    rest = rest if has_rest else None
    found = sums_of(whole, x, rest, size).inputs(W, is_centered=is_centered)
    wanted = expected(W, whole, x, rest, is_centered=is_centered)
    got = found.second_moment, found.drift, found.mean, found.mean_lack
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


def test_little_variation_around_a_large_mean_survives_in_float32():
    W, whole, x, rest = case(mean=3000.0, dtype=torch.float32)
    found = sums_of(whole, x, rest, 50).inputs(W, is_centered=True)
    H, drift, _, _ = expected(W, whole, x, rest, is_centered=True)
    np.testing.assert_allclose(found.second_moment, H, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.drift, drift, rtol=1e-3, atol=1e-3)
    assert np.linalg.eigvalsh(found.second_moment).min() > 0.0


def test_inputs_that_do_not_vary_keep_their_mean():
    W, whole, x, _ = case()
    same = torch.full_like(x, 2.0)
    found = sums_of(whole, same, None, 100).inputs(W, is_centered=True)
    np.testing.assert_allclose(found.second_moment, np.full((7, 7), 4.0))
    assert not found.mean.any()
    assert not found.mean_lack.any()


def test_nothing_added_is_none():
    W, whole, x, rest = case()
    sums = DriftSums(7, x.device)
    assert sums.inputs(W, is_centered=True) is None
    sums.add(whole[:0], x[:0], rest[:0])
    assert sums.inputs(W, is_centered=True) is None
