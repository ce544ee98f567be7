"""nn.save and nn.load: what comes back is what was saved, and weights are never decoded for it."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.codes.storage import open_tensors  # noqa: E402
from pgkmeans_sk.weight_files import describe_file  # noqa: E402
from tests.nn_models import LAYERS, Tied, same_bytes, small_model, spec, state_bytes  # noqa: E402


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some file.safetensors"


def codebook_of(module, name="weight"):
    return module.parametrizations[name].original


# ------------------------------------------------------------------ there and back


@pytest.mark.parametrize("name", LAYERS)
def test_each_type_of_layer(name, path):
    torch.manual_seed(0)
    case = LAYERS[name]
    model = case.layer().double()
    report = nn.compress_model(model, spec())
    assert report.compressed
    nn.save(model, path)
    assert path.stat().st_size == report.n_bytes
    loaded = nn.load(case.layer().double(), path)
    assert type(loaded).__mro__[1] is type(model).__mro__[1]
    assert torch.equal(getattr(loaded, case.weight), getattr(model, case.weight))
    inputs = case.inputs()
    for found, expected in zip(
        tree_leaves(loaded(*inputs)), tree_leaves(model(*inputs)), strict=True
    ):
        assert torch.equal(found, expected)
    assert same_bytes(loaded, path)


VARIANTS = {
    "a codebook a block": {"codebook": "per_block"},
    "stages": {"n_stages": 2},
    "hadamard": {"rotation": "hadamard"},
    "opq": {"rotation": "opq"},
    "row scales": {"scale": "row"},
    "block scales": {"scale": "block"},
    "stored in single precision": {"codebook_dtype": "float32"},
    "as the model": {"codebook_dtype": None},
    "odd blocks": {"block_size": 5, "n_codes": 11},
    "all": {"codebook": "per_block", "n_stages": 2, "rotation": "hadamard", "scale": "row"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_each_setting(name, dtype, path):
    model = small_model(dtype)
    report = nn.compress_model(model, spec(**VARIANTS[name]))
    assert report.compressed
    nn.save(model, path)
    assert path.stat().st_size == report.n_bytes
    loaded = nn.load(small_model(dtype), path)
    assert state_bytes(loaded) == state_bytes(model)
    tokens = torch.randint(60, (3, 5))
    assert torch.equal(loaded(tokens), model(tokens))
    assert same_bytes(loaded, path)


def test_more_than_256_code_words(path):
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    nn.compress_model(model, spec(block_size=2, n_codes=300))
    nn.save(model, path)
    loaded = nn.load(torch.nn.Linear(64, 64), path)
    assert loaded.parametrizations.weight[0].codes.shape == (64, 32, 2)
    assert state_bytes(loaded) == state_bytes(model)
    assert same_bytes(loaded, path)


def test_names_are_those_of_the_plain_model(path):
    model = small_model()
    names = list(model.state_dict())
    nn.compress_model(model, spec())
    nn.save(model, path, metadata={"author": "me"})
    with open_tensors(path) as file:
        assert set(file.compressed) == {"0.weight", "1.weight", "3.weight"}
        assert {*file.compressed, *file.carried} == set(names)
        assert file.metadata == {"format": "pt", "author": "me", "pgkmeans_sk.ties": "parameters"}
        for name in file.compressed:
            module = model[int(name[0])]
            np.testing.assert_array_equal(file.array(name), module.weight.detach().numpy())


def test_training_goes_on(path):
    """Trained codebooks are saved; loading them keeps optimisers' parameters."""
    model = small_model()
    nn.compress_model(model, spec(), gradient="sum")
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    tokens = torch.randint(60, (3, 5))
    for _ in range(2):
        model(tokens).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    nn.save(model, path)
    other = small_model().eval()
    parameters = {id(p) for p in other.parameters()}
    nn.load(other, path, gradient="sum")
    assert {id(p) for p in other.parameters()} == parameters
    assert torch.equal(other(tokens), model(tokens))
    assert not other[1].parametrizations.weight[0].training
    assert other[1].parametrizations.weight[0].gradient == "sum"
    assert other[1].bias.requires_grad
    assert codebook_of(other[1]).requires_grad
    assert same_bytes(other, path)


class Odds(torch.nn.Module):
    """Tensors of all kinds."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 32)
        self.norm = torch.nn.BatchNorm1d(32)
        self.scale = torch.nn.Parameter(torch.tensor(2.5, dtype=torch.bfloat16))
        self.turned = torch.nn.Parameter(torch.randn(5, 3).T, requires_grad=False)
        self.none = torch.nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("mask", torch.rand(7) > 0.5)
        self.register_buffer("waves", torch.randn(3, 2, dtype=torch.complex64).conj())
        self.register_buffer("small", torch.randn(4).to(torch.float8_e4m3fn))
        self.register_buffer("gone", torch.randn(4), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("absent too", None)
        self.twin = self.norm


def test_tensors_of_all_kinds(path):
    torch.manual_seed(1)
    model = Odds()
    nn.compress_model(model, spec())
    nn.save(model, path)
    with open_tensors(path) as file:
        assert file.carried["norm.num_batches_tracked"].aliases == ("twin.num_batches_tracked",)
        assert "gone" not in file.carried
    loaded = Odds()
    gone = loaded.gone.clone()
    nn.load(loaded, path)
    assert state_bytes(loaded) == state_bytes(model)
    assert torch.equal(loaded.gone, gone)
    assert not loaded.turned.requires_grad
    assert loaded.turned.stride() == (1, 3)
    assert loaded.twin is loaded.norm
    assert same_bytes(loaded, path)


def test_a_model_that_is_not_compressed(path):
    model = small_model()
    nn.save(model, path)
    assert state_bytes(nn.load(small_model().requires_grad_(False), path)) == state_bytes(model)


# ------------------------------------------------------------------ ties and groups


def test_tied_weights(path):
    torch.manual_seed(0)
    model = Tied()
    nn.compress_model(model, spec())
    nn.save(model, path)
    with open_tensors(path) as file:
        assert file.compressed["words.weight"].aliases == ("out.weight",)
    untied = Tied()
    untied.out.weight = torch.nn.Parameter(untied.out.weight.detach().clone())
    tokens = torch.randint(60, (3, 5))
    for other in (Tied(), untied):
        nn.load(other, path)
        assert codebook_of(other.out) is codebook_of(other.words)
        assert other.out.parametrizations.weight[0] is other.words.parametrizations.weight[0]
        assert torch.equal(other(tokens), model(tokens))
        assert same_bytes(other, path)
    assert len(list(untied.parameters())) == 3


def test_tied_weights_that_are_not_compressed(path):
    torch.manual_seed(0)
    model = Tied()
    nn.save(model, path)
    untied = Tied()
    untied.out.weight = torch.nn.Parameter(untied.out.weight.detach().clone())
    nn.load(untied, path)
    assert untied.out.weight is untied.words.weight
    assert state_bytes(untied) == state_bytes(model)


def test_a_part_of_the_names_is_enough(path):
    """A file need not name all places of a tied weight, and may name places that are not there."""
    torch.manual_seed(0)
    model = Tied()
    nn.compress_model(model, spec())
    model.other = model.out
    nn.save(model, path)
    nn.load(Tied(), path)
    del model.other
    nn.save(model, path)
    other = Tied()
    other.other = other.out
    nn.load(other, path)
    assert codebook_of(other.other) is codebook_of(other.words)


def test_one_codebook_for_a_group(path):
    torch.manual_seed(0)

    def build():
        return torch.nn.Sequential(*[torch.nn.Linear(16, 24) for _ in range(4)])

    model = build()
    report = nn.compress_model(model, spec({"regex": "[012].weight", "group": "a"}))
    nn.save(model, path)
    assert path.stat().st_size == report.n_bytes
    assert [t.codebooks_of for t in report.compressed] == [None, "0.weight", "0.weight", None]
    assert [t.n_code_words for t in report.compressed] == [8, 0, 0, 8]
    assert [t.stored_bytes for t in report.compressed] == [
        t.stored_bytes for t in describe_file(path).compressed
    ]
    for other in (build(), model):
        nn.load(other, path)
        books = [codebook_of(layer) for layer in other]
        assert books[0] is books[1] is books[2]
        assert books[3] is not books[0]
        assert int(other[1].parametrizations.weight[0].counts.sum()) == 3 * 24 * 4
        assert torch.equal(other[2].weight, model[2].weight)
        assert same_bytes(other, path)

    # A group in the model, but none in the file: as many codebooks again as there are weights.
    alone = build()
    nn.compress_model(alone, spec())
    nn.save(alone, path)
    nn.load(model, path)
    assert len({id(codebook_of(layer)) for layer in model}) == 4
    assert state_bytes(model) == state_bytes(alone)
    assert same_bytes(model, path)


# ------------------------------------------------------------------ without the plain weights


class Largest(TorchDispatchMode):
    """The most bytes of a tensor that torch makes; those of ``known`` parameters are there."""

    def __init__(self, known):
        super().__init__()
        self.known = {parameter.data_ptr() for parameter in known}
        self.n_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            is_real = isinstance(tensor, torch.Tensor) and not tensor.is_meta
            if is_real and tensor.data_ptr() not in self.known:
                self.n_bytes = max(self.n_bytes, tensor.nbytes)
        return found


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_are_never_decoded(device, path):
    def build():
        return torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 256))

    torch.manual_seed(0)
    model = build()
    nn.compress_model(model, {"defaults": {"n_codes": 16}})
    nn.save(model, path)
    with torch.device(device):
        other, third = build(), build()
    with (
        mock.patch.object(nn.CodebookWeight, "decode", side_effect=AssertionError("decoded")),
        mock.patch.object(nn.CodebookWeight, "forward", side_effect=AssertionError("decoded")),
        Largest(other.parameters()) as largest,
    ):
        nn.load(other, path)
    assert largest.n_bytes == 512 * 256 // 8  # codes: a byte for 8 values, which take 32
    tracemalloc.start()
    nn.load(third, path)
    peak = tracemalloc.get_traced_memory()[1]  # of NumPy's arrays
    tracemalloc.stop()
    assert peak < 2 * 4 * 512 * 256 / 4
    assert not any(t.is_meta for t in (*other.parameters(), *other.buffers()))
    assert torch.equal(other(torch.ones(2, 256)), model(torch.ones(2, 256)))
    assert same_bytes(other, path)


def test_tied_weights_on_the_meta_device(path):
    torch.manual_seed(0)
    model = Tied()
    nn.compress_model(model, spec({"match": "mix.*", "skip": True}))
    nn.save(model, path)
    with torch.device("meta"):
        other = Tied()
        other.mix.requires_grad_(False)
    nn.load(other, path, device="cpu")
    assert codebook_of(other.out) is codebook_of(other.words)
    assert not other.mix.weight.requires_grad
    assert state_bytes(other) == state_bytes(model)
    assert same_bytes(other, path)
