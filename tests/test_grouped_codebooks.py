"""Weights whose groups of consecutive values have codebooks of their own, in PyTorch models."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.layers import matrix_of, tensor_of  # noqa: E402
from pgkmeans_sk.nn.registration import register_matrix  # noqa: E402
from pgkmeans_sk.nn.selection import find_tensors  # noqa: E402
from pgkmeans_sk.nn.state import compressed_state  # noqa: E402
from pgkmeans_sk.nn.training_state import read_state, write_state  # noqa: E402
from pgkmeans_sk.product_quantizer import ProductQuantizer  # noqa: E402
from tests.nn_models import same_bytes  # noqa: E402


def plain():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(10, 6), torch.nn.Conv1d(6, 4, 5))


def grouped(model, group_size=20):
    """Each weight as groups with 4 code words each."""
    for found in find_tensors(model):
        if found.tensor.ndim > 1:
            matrix = matrix_of(found.tensor.detach(), 0, group_size).double().numpy()
            quantizer = ProductQuantizer(1, 4, random_state=0)
            compressed = quantizer.compress(np.ascontiguousarray(matrix, np.float32))
            register_matrix(found, compressed, 0, group_size=group_size, gradient="mean")
    return model


def test_there_and_back():
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    matrix = matrix_of(tensor, 0, 6)
    assert matrix[:, 1].tolist() == [6, 7, 8, 9, 10, 11]
    assert torch.equal(tensor_of(matrix, tensor.shape, 0, 6), tensor)


def test_each_group_has_four_values():
    before, model = plain(), grouped(plain())
    for layer, other in zip(model, before, strict=True):
        assert layer.weight.shape == other.weight.shape
        groups = (found.weight.detach().reshape(-1, 20) for found in (layer, other))
        for group, exact in zip(*groups, strict=True):
            assert len(group.unique()) == 4
            assert (group - exact).norm() < 0.4 * (exact - exact.mean()).norm()
    tokens = torch.tensor([[3, 3, 9], [0, 1, 9]])
    assert torch.equal(model[0](tokens), model[0].weight[tokens])


def test_the_gradient_of_a_word_is_the_mean_of_its_values():
    model = grouped(plain())
    outer = torch.randn(4, 6, 5)
    (model[1].weight * outer).sum().backward()
    parametrization = model[1].parametrizations.weight
    codes = torch.from_numpy(parametrization[0].wide_codes().astype(int))
    for j, group in enumerate(outer.reshape(-1, 20)):
        for word in range(4):
            expected = group[codes[:, j] == word].mean()
            torch.testing.assert_close(parametrization.original.grad[0, j, word, 0], expected)


def test_saved_and_loaded(tmp_path):
    model, path = grouped(plain()), tmp_path / "file"
    nn.save(model, path)
    loaded = nn.load(plain(), path)
    for layer, other in zip(loaded, model, strict=True):
        assert torch.equal(layer.weight, other.weight)
    assert same_bytes(loaded, path)
    weights = [layer.weight.detach().clone() for layer in model]
    for layer, weight in zip(nn.bake(model), weights, strict=True):
        assert torch.equal(layer.weight, weight)
        assert layer.weight.is_contiguous()


def test_reassigned_and_copied():
    model = grouped(plain())
    other = copy.deepcopy(model)
    (state,) = [s for s in compressed_state(other) if s.name == "1.weight"]
    state.weight.reassign(state.original, torch.zeros(4, 6, 5))
    words = state.original.detach()[0, :, :, 0]
    expected = words.gather(1, words.abs().argmin(1, keepdim=True)).expand(-1, 20)
    assert torch.equal(other[1].weight, expected.reshape(4, 6, 5))
    assert not torch.equal(other[1].weight, model[1].weight)


def test_training_goes_on(tmp_path):
    model, path = grouped(plain()), tmp_path / "state"
    write_state(model, path, {})
    other = plain()
    read_state(other, path)
    assert torch.equal(other[1].weight, model[1].weight)
    assert other[1].parametrizations.weight[0].group_size == 20
