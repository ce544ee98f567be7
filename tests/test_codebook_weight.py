"""CodebookWeight: a compressed layer is the layer with decoded weights, whatever is done to it."""

import copy

import numpy as np
import pytest

from pgkmeans_sk import ProductQuantizer

torch = pytest.importorskip("torch")

from torch.nn.utils import parametrize  # noqa: E402

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.layers import matrix_of, row_axis, tensor_of  # noqa: E402
from tests.nn_models import LAYERS, Tied, small_model  # noqa: E402

OPTIONS = {
    "plain": {},
    "per block": {"codebook": "per_block"},
    "stages": {"n_stages": 2},
    "rows": {"scale": "row"},
    "blocks": {"scale": "block"},
    "hadamard": {"rotation": "hadamard"},
    "opq": {"rotation": "opq"},
    "ragged": {"block_size": 5},
    "two bytes": {"n_codes": 300, "block_size": 2},
    "double": {"codebook_dtype": "float64"},
}


def spec(**settings):
    return {"defaults": {"block_size": 4, "n_codes": 8, **settings}}


def codebook_of(module, name="weight"):
    return module.parametrizations[name].original


def parametrization_of(module, name="weight"):
    return module.parametrizations[name][0]


@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_those_of_decoded_weights(kind):
    case = LAYERS[kind]
    torch.manual_seed(0)
    layer = case.layer().double()
    report = nn.compress_model(layer, spec(codebook_dtype="float64"), gradient="sum")
    assert case.weight in [t.name for t in report.compressed]
    plain = nn.bake(copy.deepcopy(layer))
    inputs = case.inputs()

    def run(model):
        output = model(*inputs)
        output = output[0] if isinstance(output, tuple) else output
        (
            output * torch.arange(output.numel(), dtype=output.dtype).reshape(output.shape)
        ).sum().backward()
        return output

    torch.testing.assert_close(run(layer), run(plain), rtol=1e-12, atol=1e-12)
    parametrization = parametrization_of(layer, case.weight)
    dense = matrix_of(getattr(plain, case.weight).grad, row_axis(plain, case.weight))
    codes = torch.from_numpy(parametrization.wide_codes().astype(np.int64))
    codebook = codebook_of(layer, case.weight)
    expected = torch.zeros_like(codebook)
    size = codebook.shape[-1]
    for j in range(codes.shape[1]):
        block = dense[:, j * size : (j + 1) * size]
        expected[0, 0, :, : block.shape[1]].index_add_(0, codes[:, j], block)
    torch.testing.assert_close(codebook.grad, expected, rtol=1e-12, atol=1e-12)
    if layer.__dict__["_parameters"].get("bias") is not None:
        torch.testing.assert_close(layer.bias.grad, plain.bias.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("option", OPTIONS)
def test_weights_are_what_the_matrix_decodes_to(option, dtype):
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40).to(dtype)
    nn.compress_model(layer, spec(**OPTIONS[option]))
    assert layer.weight.dtype == dtype
    assert layer.weight.shape == (40, 24)
    parametrization = parametrization_of(layer)
    matrix = parametrization.to_matrix(codebook_of(layer))
    decoded = torch.from_numpy(matrix.decode()).to(dtype)
    if "rotation" in OPTIONS[option]:  # sums in another order
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(layer.weight.detach(), decoded, rtol=tolerance, atol=tolerance)
    else:
        assert torch.equal(layer.weight.detach(), decoded)
    again = nn.CodebookWeight.from_matrix(matrix, (40, 24), 0)
    assert torch.equal(again(codebook_of(layer)), layer.weight)
    rows = torch.tensor([3, 39, 3, 0])
    some = parametrization.decode(codebook_of(layer), rows)
    torch.testing.assert_close(some, layer.weight[rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("option", OPTIONS)
def test_gradients_by_finite_differences(option):
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 64).double()
    settings = spec(**{**OPTIONS[option], "codebook_dtype": "float64"})
    nn.compress_model(layer, settings, gradient="sum")
    codebook = codebook_of(layer).detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda words: parametrization_of(layer)(words)[:3], codebook, fast_mode=True
    )


def test_the_mean_gradient_is_the_sum_over_the_number_of_blocks():
    torch.manual_seed(0)
    start = torch.nn.Linear(16, 40)
    gradients = {}
    for kind in ("mean", "sum"):
        layer = copy.deepcopy(start)
        nn.compress_model(layer, spec(), gradient=kind)
        layer.weight.square().sum().backward()
        gradients[kind] = codebook_of(layer).grad
        counts = parametrization_of(layer).counts
    assert counts.sum() == 40 * 4
    torch.testing.assert_close(gradients["mean"], gradients["sum"] / counts)


def test_a_code_word_of_many_digits_is_used_as_it_is_stored():
    layer = torch.nn.Linear(16, 40)
    nn.compress_model(layer, spec())
    with torch.no_grad():
        codebook_of(layer).add_(1e-5)
    parametrization = parametrization_of(layer)
    stored = parametrization.to_matrix(codebook_of(layer))
    assert stored.decoder.codebooks.dtype == np.float16
    assert torch.equal(layer.weight.detach(), torch.from_numpy(stored.decode()))
    layer.weight.sum().backward()
    torch.testing.assert_close(
        codebook_of(layer).grad, (parametrization.counts > 0).float().expand(1, 1, 8, 4)
    )


def test_a_codebook_beyond_its_stored_dtype_is_refused():
    layer = torch.nn.Linear(16, 40)
    nn.compress_model(layer, spec())
    with torch.no_grad():
        codebook_of(layer)[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match="not finite in float16"):
        parametrization_of(layer).to_matrix(codebook_of(layer))


@pytest.mark.parametrize("option", ["plain", "per block", "rows", "two bytes", "stages"])
def test_reassign(option):
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 40)
    weight = layer.weight.detach().clone()
    nn.compress_model(layer, spec(**OPTIONS[option]))
    codebook, parametrization = codebook_of(layer), parametrization_of(layer)
    before = parametrization.wide_codes().copy()
    parametrization.reassign(codebook, weight)
    np.testing.assert_array_equal(parametrization.wide_codes(), before)

    other = torch.randn(40, 24) / 5
    parametrization.reassign(codebook, other)
    decoder = parametrization.decoder(codebook)
    expected = ProductQuantizer.from_decoder(decoder).transform(other.numpy())
    np.testing.assert_array_equal(
        parametrization.wide_codes(), expected[:, : decoder.n_block_codes]
    )
    n_blocks = 40 * decoder.n_blocks * decoder.n_stages
    assert int(parametrization.counts.sum()) == n_blocks
    with pytest.raises(ValueError, match=r"shape \(24, 40\), but expected \(40, 24\)"):
        parametrization.reassign(codebook, other.T)
    with pytest.raises(ValueError, match="NaN"):
        parametrization.reassign(codebook, other * float("nan"))


def test_state_dict_both_ways():
    one, other = small_model(), small_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    for model in (one, other):
        nn.compress_model(model, spec())
    index = torch.randint(60, (4, 5))
    assert not torch.equal(one(index), other(index))
    state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    assert other.load_state_dict(state).missing_keys == []
    assert torch.equal(one(index), other(index))
    for first, second in zip(one.modules(), other.modules(), strict=True):
        if isinstance(first, nn.CodebookWeight):
            assert torch.equal(first.counts, second.counts)
    assert all("counts" not in name for name in state)


def test_copies_do_not_depend_on_one_another():
    model = small_model()
    nn.compress_model(model, spec())
    index = torch.randint(60, (4, 5))
    expected = model(index)
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    nn.bake(one)
    with torch.no_grad():
        codebook_of(other[1]).zero_()
    assert torch.equal(model(index), expected)
    assert torch.equal(one(index), expected)
    assert not torch.equal(other(index), expected)
    assert type(one[0]) is torch.nn.Embedding
    assert parametrize.is_parametrized(model[0])


def test_a_model_in_half_precision():
    model = small_model()
    nn.compress_model(model, spec(scale="row"))
    half = copy.deepcopy(model).to(torch.bfloat16)
    index = torch.randint(60, (4, 5))
    assert half(index).dtype == torch.bfloat16
    torch.testing.assert_close(half(index).float(), model(index), rtol=0.1, atol=0.1)
    half(index).sum().backward()
    assert codebook_of(half[1]).grad.dtype == torch.bfloat16


@pytest.mark.parametrize("option", ["plain", "hadamard", "rows"])
def test_autocast(option):
    model = small_model()
    nn.compress_model(model, spec(**OPTIONS[option]))
    index = torch.randint(60, (4, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model[1].weight, nn.bake(copy.deepcopy(model))[1].weight)
        output = model(index)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert codebook_of(model[1]).grad.dtype == torch.float32


@pytest.mark.parametrize("option", OPTIONS)
def test_compiled(option):
    torch.manual_seed(0)
    model = small_model()
    nn.compress_model(model, spec(**OPTIONS[option]))
    index = torch.randint(60, (4, 5))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(index), model(index))
    gradients = []
    for run in (compiled, model):
        model.zero_grad()
        run(index).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)
    torch.compiler.reset()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_an_optimizer_trains_the_codebook(set_to_none):
    model = small_model()
    nn.compress_model(model, spec())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    index = torch.randint(1, 60, (16, 5))
    codes = parametrization_of(model[1]).wide_codes().copy()
    losses = []
    for _ in range(20):
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = (model(index) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_array_equal(parametrization_of(model[1]).wide_codes(), codes)


def test_tied_weights_stay_tied():
    torch.manual_seed(0)
    model = Tied()
    parameter = model.words.weight
    report = nn.compress_model(model, spec(codebook_dtype="float64"))
    tied = report.compressed[0]
    assert (tied.name, tied.aliases) == ("words.weight", ("out.weight",))
    assert codebook_of(model.words) is codebook_of(model.out) is parameter
    assert parametrization_of(model.words) is parametrization_of(model.out)
    assert len(list(model.parameters())) == 3  # one codebook, another, a bias
    index = torch.randint(60, (4, 5))
    expected = model(index)
    model(index).sum().backward()
    assert parameter.grad.shape == (1, 1, 8, 4)
    copied = copy.deepcopy(model)
    assert codebook_of(copied.words) is codebook_of(copied.out)
    baked = nn.bake(model)
    assert baked.words.weight is baked.out.weight is parameter
    assert torch.equal(baked(index), expected)


def test_cached():
    model = small_model().eval()
    nn.compress_model(model, spec())
    index = torch.randint(60, (4, 5))
    expected = model(index)
    with nn.cached(model) as same:
        assert same is model
        assert model[1].weight is model[1].weight
        assert torch.equal(model(index), expected)
        model.train()
        assert model[1].weight is not model[1].weight
        model(index).sum().backward()
        model.eval()
    assert model[1].weight is not model[1].weight
    with pytest.raises(RuntimeError, match="on purpose"), nn.cached(model):
        raise RuntimeError("on purpose")
    assert not parametrization_of(model[1]).is_cached


def test_embeddings_decode_the_rows_of_their_tokens():
    torch.manual_seed(0)
    layer = torch.nn.Embedding(500, 16)
    nn.compress_model(layer, spec())
    decoded = []
    parametrization = parametrization_of(layer)
    original = parametrization.decode
    parametrization.decode = lambda words, rows=None: (
        decoded.append(None if rows is None else len(rows)) or original(words, rows)
    )
    layer(torch.randint(500, (3, 4)))
    layer(torch.randint(500, (60, 10)))
    assert decoded == [12, None]


@pytest.mark.parametrize("index", [-1, 500, -501])
@pytest.mark.parametrize("option", ["plain", "rows", "two bytes"])
def test_embeddings_refuse_rows_that_they_do_not_have(index, option):
    layer = torch.nn.Embedding(500, 16)
    nn.compress_model(layer, spec(**OPTIONS[option]))
    with pytest.raises(IndexError, match="out of range"):
        layer(torch.tensor([3, index]))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((6, 4), 0), ((6, 4), 1), ((4, 6, 3), 1), ((3, 4, 2, 5), 0), ((3, 4, 2, 5), 1)],
)
def test_matrices_of_tensors(shape, axis):
    tensor = torch.arange(np.prod(shape)).reshape(shape)
    matrix = matrix_of(tensor, axis)
    expected = np.moveaxis(tensor.numpy(), axis, 0).reshape(shape[axis], -1)
    np.testing.assert_array_equal(matrix.numpy(), expected)
    assert torch.equal(tensor_of(matrix, shape, axis), tensor)
    with pytest.raises(ValueError, match="Got a matrix of shape"):
        tensor_of(matrix[:-1], shape, axis)
