"""nn.load onto models that are compressed, noisy or parametrized already; what is left alone."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.codes.storage import open_tensors  # noqa: E402
from pgkmeans_sk.codes.tensor_file import TensorFile  # noqa: E402
from pgkmeans_sk.weight_files import decompress_file  # noqa: E402
from tests.nn_models import Tied, same_bytes, small_model, spec, state_bytes  # noqa: E402


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some file.safetensors"


def test_onto_a_model_that_is_compressed_otherwise(path):
    torch.manual_seed(0)
    model = small_model()
    nn.compress_model(model, spec({"match": "3.*", "skip": True}))
    nn.save(model, path)
    other = small_model()
    nn.compress_model(other, spec({"match": "1.*", "skip": True}, n_stages=2, codebook="per_block"))
    parameters = [id(p) for p in other.parameters()]
    nn.load(other, path)
    assert type(other[3]) is torch.nn.Linear
    assert sorted(id(p) for p in other.parameters()) == sorted(parameters)
    assert state_bytes(other) == state_bytes(model)
    assert same_bytes(other, path)
    assert same_bytes(nn.load(other, path), path)


def test_onto_a_model_with_noise(path):
    """It goes where there are codes now, and stays where there are none."""
    torch.manual_seed(0)
    model = small_model()
    nn.compress_model(model, spec({"match": "3.*", "skip": True}))
    nn.save(model, path)
    other = nn.quant_noise(small_model(), 0.2)
    parameters = {id(p) for p in other.parameters()}
    nn.load(other, path)
    assert nn.noise_rates(other) == {"3.weight": 0.2}
    assert {id(p) for p in other.parameters()} == parameters
    tokens = torch.randint(60, (3, 5))
    assert torch.equal(other.eval()(tokens), model(tokens))
    assert same_bytes(other, path)
    assert state_bytes(nn.remove_quant_noise(other)) == state_bytes(model)

    with torch.device("meta"):
        fresh = small_model()
    fresh[3] = nn.quant_noise(torch.nn.Linear(32, 24), 0.1)
    nn.load(fresh, path)
    assert same_bytes(fresh, path)


def test_a_copy_of_a_model_stays_as_it_is(path):
    model = small_model()
    nn.compress_model(model, spec())
    copied = copy.deepcopy(model)
    before = state_bytes(copied)
    plain = small_model()
    nn.save(plain, path)
    nn.load(model, path)
    assert state_bytes(model) == state_bytes(plain)
    assert state_bytes(copied) == before
    assert copied[1].weight.shape == (32, 16)


def test_other_parametrizations_stay_and_keep_their_names(path):
    def build():
        layer = torch.nn.Linear(16, 32)
        torch.nn.utils.parametrizations.orthogonal(layer)
        normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(32, 32))
        return torch.nn.Sequential(layer, normed, torch.nn.Linear(32, 32))

    torch.manual_seed(0)
    model = build()
    report = nn.compress_model(model, spec())
    assert [tensor.name for tensor in report.compressed] == ["2.weight"]
    nn.save(model, path)
    assert path.stat().st_size == report.n_bytes
    with open_tensors(path) as file:
        assert "1.parametrizations.weight.original0" in file.carried
        assert "0.parametrizations.weight.0.base" in file.carried
        assert "0.weight" not in file.carried
    loaded = nn.load(build(), path)
    assert state_bytes(loaded) == state_bytes(model)
    assert torch.equal(loaded(torch.ones(2, 16)), model(torch.ones(2, 16)))
    assert same_bytes(loaded, path)


def test_decompressed_files_are_those_of_plain_models(path, tmp_path):
    """The way from a trained model to a plain file, without torch."""
    torch.manual_seed(0)
    model = Tied()
    nn.compress_model(model, spec(scale="row"))
    nn.save(model, path)
    decompress_file(path, tmp_path / "plain")
    state = nn.bake(model).state_dict()
    with TensorFile(tmp_path / "plain") as file:
        assert set(file.names) == set(state)
        for name, tensor in state.items():
            np.testing.assert_allclose(file.array(name), tensor.numpy(), rtol=1e-6)
