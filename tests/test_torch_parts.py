"""The parts of the torch engine, against loops: sums, cuts, draws, products of few bits."""

import numpy as np
import pytest
from sklearn.cluster import kmeans_plusplus

from tests import reference

torch = pytest.importorskip("torch")

from pgkmeans_sk.engines import torch_sums  # noqa: E402
from pgkmeans_sk.engines.torch_cuts import (  # noqa: E402
    cut_by_weight,
    cut_where_errors_fall,
    whole_weights,
)
from pgkmeans_sk.engines.torch_draws import Lottery, draw_kmeans_plusplus  # noqa: E402
from pgkmeans_sk.engines.torch_labels import (  # noqa: E402
    BFLOAT16_PARTS,
    TF32_PARTS,
    Products,
)
from pgkmeans_sk.engines.torch_memory import blocks, sum_rows  # noqa: E402
from pgkmeans_sk.engines.torch_rows import shared_tensor  # noqa: E402
from pgkmeans_sk.engines.torch_source import ResidentRows  # noqa: E402

# ------------------------------------------------------------------ sums


@pytest.mark.parametrize("piece", [1, 3, 128])
@pytest.mark.parametrize("counts", [[5], [0, 4, 0, 0, 7, 1, 0], [0, 0, 3], [200, 1, 300], [1] * 9])
def test_sums_of_runs(monkeypatch, piece, counts):
    monkeypatch.setattr(torch_sums, "PIECE", piece)
    values = torch.from_numpy(np.random.default_rng(0).integers(-9, 9, (sum(counts), 3)) / 4)
    ends = torch.tensor(np.cumsum(counts))
    expected = [values[end - n : end].sum(dim=0) for n, end in zip(counts, ends, strict=True)]
    found = torch_sums.sums_of_runs(values, ends)  # quarters: every order gives the same
    np.testing.assert_array_equal(found, torch.stack(expected))


def test_ends_of_runs():
    ids = torch.tensor([1, 1, 3, 3, 3])
    np.testing.assert_array_equal(torch_sums.ends_of_runs(ids, 5), [0, 2, 2, 5, 5])


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 31])
def test_equal_rows_have_equal_sums_wherever_they_stand(width):
    row = torch.from_numpy(np.random.default_rng(width).standard_normal(width))
    sums = torch_sums.row_sums(row.repeat(1000, 1))
    assert len(sums.unique()) == 1
    assert float(torch_sums.row_sums(row[None])[0]) == float(sums[0])
    np.testing.assert_allclose(sums[0], row.sum(), rtol=1e-12)


def test_blocks_of_sums_follow_the_shape_alone():
    assert list(blocks(7, 3)) == [(0, 3), (3, 6), (6, 7)]
    assert sum_rows(8) == 2**18
    assert sum_rows(10**9) == 1


# ------------------------------------------------------------------ cuts


def nodes_of_test(weighting):
    """Keys with ties, nodes of several sizes, one of equal keys; weights are small quarters."""
    rng = np.random.default_rng(4)
    counts = np.array([1, 2, 40, 7, 25, 300])
    keys = rng.integers(-6, 7, counts.sum()) / 2
    keys[43:50] = 1.25
    weights = None if weighting == "none" else rng.integers(1, 9, len(keys)) / 4
    return counts, keys, weights


def whole_of(weights, node):
    if weights is None:
        return None
    heaviest = np.full(int(node.max()) + 1, weights.sum())
    return whole_weights(torch.from_numpy(weights), heaviest, node)


@pytest.mark.parametrize("weighting", ["none", "quarters"])
def test_cut_by_weight(weighting):
    counts, keys, weights = nodes_of_test(weighting)
    fractions = np.array([0.5, 0.5, 0.3, 0.5, 0.9, 0.01])
    ends = np.cumsum(counts)
    node = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    whole = whole_of(weights, node)
    found = cut_by_weight(
        torch.from_numpy(keys), node, whole, torch.from_numpy(ends), torch.from_numpy(fractions)
    ).numpy()
    for p, end in enumerate(ends):
        own = keys[end - counts[p] : end]
        w = np.ones(len(own)) if weights is None else weights[end - counts[p] : end]
        expected = reference.select_by_weight(own, w, fractions[p] * w.sum())
        if expected.any():
            np.testing.assert_array_equal(own <= found[p], expected)
        else:
            assert (own <= found[p]).all()  # nothing to tell them apart


@pytest.mark.parametrize("weighting", ["none", "quarters"])
def test_cut_where_errors_fall(weighting):
    counts, keys, weights = nodes_of_test(weighting)
    node = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    whole = whole_of(weights, node)
    found = cut_where_errors_fall(torch.from_numpy(keys), node, whole, len(counts)).numpy()
    for p, end in enumerate(np.cumsum(counts)):
        own = keys[end - counts[p] : end]
        w = np.ones(len(own)) if weights is None else weights[end - counts[p] : end]
        # Keys are multiples of a half: each has a bin of its own.
        expected = own.max() if len(set(own)) == 1 else reference.best_threshold(own, w)
        assert found[p] == expected


def test_whole_weights_keep_small_ones():
    weights = torch.tensor([1.0, 2.0**-40, 3.0, 0.0], dtype=torch.float64)
    whole = whole_weights(weights, np.array([4.0]), torch.zeros(4, dtype=torch.int64))
    assert int(whole[2]) == 3 * int(whole[0])
    assert int(whole[0]) == 2**40 * int(whole[1])
    assert int(whole[3]) == 0
    assert 2**57 < int(whole.sum()) < 2**62


# ------------------------------------------------------------------ draws


def test_lottery_finds_places_in_the_running_sum():
    rng = np.random.default_rng(3)
    chances = rng.integers(0, 3, 5000).astype(np.float64)
    lottery = Lottery(torch.from_numpy(chances))
    assert lottery.total == chances.sum()
    places = np.append(rng.uniform(0, lottery.total, 300), [0.0, lottery.total])
    expected = np.searchsorted(np.cumsum(chances), places, side="right")
    expected[-1] = len(chances) - 1  # nothing lies beyond the last
    np.testing.assert_array_equal(lottery.at(places), expected)


@pytest.mark.parametrize("weighting", ["none", "random", "some zero"])
def test_kmeans_plusplus_draws_what_scikit_learn_draws(weighting):
    X = np.random.default_rng(1).standard_normal((500, 3))
    w = reference.sample_weights(500)[weighting]
    for seed in range(5):
        _, expected = kmeans_plusplus(X, 12, sample_weight=w, random_state=seed)
        found = draw_kmeans_plusplus(
            ResidentRows(torch.from_numpy(X)),
            None if w is None else torch.from_numpy(w),
            12,
            np.random.RandomState(seed),
        )
        np.testing.assert_array_equal(found, expected)


def test_kmeans_plusplus_on_fewer_distinct_rows():
    X = torch.tensor([[1.0], [1.0], [4.0], [4.0]])
    drawn = draw_kmeans_plusplus(ResidentRows(X), None, 4, np.random.RandomState(0))
    assert set(X[drawn].ravel().tolist()) == {1.0, 4.0}


# ------------------------------------------------------------------ products of few bits


@pytest.mark.parametrize(("pairs", "n_bits"), [(TF32_PARTS, 11), (BFLOAT16_PARTS, 8)])
def test_parts_of_few_bits_multiply_to_float32(pairs, n_bits):
    rng = np.random.default_rng(8)
    scales = 10.0 ** rng.uniform(-6, 6, (2, 400, 1))
    first, second = torch.from_numpy((rng.standard_normal((2, 400, 5)) * scales).astype(np.float32))
    products = Products(pairs, n_bits)
    left, right = products.side_by_side(first, 0), products.side_by_side(second, 1)
    for side in (left, right):  # nothing is lost in a format with so few bits
        bits = side.view(torch.int32)
        assert int((bits & ((1 << (24 - n_bits)) - 1)).abs().max()) == 0
    found = (left.double() * right.double()).sum(dim=1)
    exact = (first.double() * second.double()).sum(dim=1)
    norms = (first.double().square() + second.double().square()).sum(dim=1)
    assert float(((found - exact).abs() / norms).max()) < 2 * np.finfo(np.float32).eps


# ------------------------------------------------------------------ memory shared with NumPy


@pytest.mark.parametrize("layout", ["C", "Fortran", "strided rows", "strided columns", "memmap"])
def test_tensors_share_the_memory_of_arrays(layout):
    X = reference.LAYOUTS[layout](np.arange(12.0).reshape(4, 3))
    tensor = shared_tensor(X)
    assert tensor.data_ptr() == X.ctypes.data
    np.testing.assert_array_equal(tensor, X)


@pytest.mark.parametrize("layout", ["reversed", "unaligned", "read-only"])
def test_tensors_of_arrays_that_torch_does_not_take(layout):
    X = reference.LAYOUTS[layout](np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(shared_tensor(X), X)
    np.testing.assert_array_equal(shared_tensor(X.astype(">f8")), X)
    is_copy = shared_tensor(X).data_ptr() != X.ctypes.data
    assert is_copy == (layout != "read-only")  # PyTorch would warn, of what is never written
