"""scalar_quantize: codes of single values for a tensor, a row or a group."""

import copy
import itertools
import operator

import numpy as np
import pytest

from pgkmeans_sk import Spec
from pgkmeans_sk.quantization.scalar import SCHEMES, scalar_codes

torch = pytest.importorskip("torch")

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.scalar_targets import turned_axis  # noqa: E402
from tests.nn_models import LAYERS, Tied, everything, same_bytes, small_model  # noqa: E402

FLOAT32 = {"defaults": {"codebook_dtype": "float32"}}
WITHOUT_ROWS = {name for name in LAYERS if "transposed" in name}
"""Layers whose rows do not lie together."""


def codebook_of(module, name="weight"):
    return module.parametrizations[name].original


def lines_of(weight, granularity, group_size):
    """What shares a codebook, a row each."""
    size = {"tensor": weight.numel(), "row": weight[0].numel(), "group": group_size}[granularity]
    return weight.reshape(-1, size)


# ------------------------------------------------------------------ codebooks


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
def test_weights_are_those_of_the_codes(granularity, scheme):
    model = small_model()
    weight = model[1].weight.detach().clone()
    report = nn.scalar_quantize(
        model, 2, scheme=scheme, granularity=granularity, group_size=8, spec=FLOAT32
    )
    lines = lines_of(weight, granularity, 8).numpy()
    words, codes = scalar_codes(lines, 2, scheme, dtype=np.float32)
    expected = np.take_along_axis(words, codes.astype(int), axis=1).reshape(weight.shape)
    np.testing.assert_array_equal(model[1].weight.detach().numpy(), expected)
    tensor = next(t for t in report.compressed if t.name == "1.weight")
    n_books = {"tensor": 1, "row": 32, "group": 64}[granularity]
    assert tuple(codebook_of(model[1]).shape) == (1, n_books, 4, 1)
    assert tensor.stored_bytes == weight.numel() * 2 // 8 + n_books * 4 * 4
    error = np.linalg.norm(weight.numpy() - expected) / np.linalg.norm(weight.numpy())
    assert tensor.relative_error == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer(kind, granularity, tmp_path):
    case = LAYERS[kind]
    torch.manual_seed(0)
    layer = case.layer().double()
    inputs = case.inputs()
    # Kernels of convolutions, and rows of the others, are groups.
    group_size = int(getattr(layer, case.weight)[0].numel())
    if granularity == "row" and kind in WITHOUT_ROWS:
        before = everything(layer)
        with pytest.raises(ValueError, match=r"'weight', the weight of a ConvTranspose\dd, whose"):
            nn.scalar_quantize(layer, 1, granularity="row")
        assert everything(layer) == before
        return
    plain = copy.deepcopy(layer)
    weight = getattr(layer, case.weight).detach().clone()
    report = nn.scalar_quantize(layer, 1, granularity=granularity, group_size=group_size)
    found = getattr(layer, case.weight).detach()
    assert found.dtype == torch.float64
    lines = lines_of(found, granularity, group_size)
    for line, original in zip(lines, lines_of(weight, granularity, group_size), strict=True):
        words = line.unique()
        assert len(words) == 2 or not original.any()  # the padding row
        if "padded" not in kind:
            assert ((original > words.mean()) == (line == words[-1])).all()
    # The model is the same as a plain one with these weights: called, saved and loaded, and baked.
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(operator.attrgetter(name)(layer))
    expected = layer(*inputs)[0]
    torch.testing.assert_close(plain(*inputs)[0], expected, rtol=1e-12, atol=1e-12)
    nn.save(layer, tmp_path / "file")
    assert (tmp_path / "file").stat().st_size == report.n_bytes
    fresh = nn.load(case.layer().double(), tmp_path / "file")
    assert torch.equal(fresh(*inputs)[0], expected)
    assert same_bytes(fresh, tmp_path / "file")
    with nn.cached(layer.eval()):
        torch.testing.assert_close(layer(*inputs)[0], expected, rtol=1e-12, atol=1e-12)
    assert type(nn.bake(layer)) is type(plain)
    assert torch.equal(getattr(layer, case.weight), found)


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [((3, 4), 0, 1), ((3, 4), 1, 0), ((3, 4, 1, 1), 0, 1), ((4, 3, 1), 1, 0), ((3, 1, 5), 0, 2),
     ((3, 1, 1), 0, 1), ((3, 4, 2), 0, None), ((4, 3, 2), 1, None)],
)  # fmt: skip
def test_turned_axis(shape, axis, expected):
    assert turned_axis(shape, axis) == expected


def test_transposed_layers_of_one_value_have_rows():
    layer = torch.nn.ConvTranspose2d(6, 20, 1)
    nn.scalar_quantize(layer, 1, granularity="row")
    assert [len(layer.weight[:, i].unique()) for i in range(20)] == [2] * 20
    assert len(layer.weight[0].unique()) > 2


def test_error_falls_with_bits_and_finer_codebooks():
    errors = {}
    for granularity in ("tensor", "row", "group"):
        for bits in range(1, 9):
            layer = copy.deepcopy(small_model()[3])
            report = nn.scalar_quantize(layer, bits, granularity=granularity, group_size=16)
            if report.compressed:
                errors[granularity, bits] = report.compressed[0].relative_error
    tensor = [errors["tensor", bits] for bits in range(1, 9)]
    assert all(a > b for a, b in itertools.pairwise(tensor))
    assert tensor[7] < 0.02
    assert errors["group", 2] < errors["row", 2] < errors["tensor", 2]
    # 32 values of a row, 16 of a group: more words would be more bytes than values are.
    assert max(bits for kind, bits in errors if kind == "row") == 5
    assert max(bits for kind, bits in errors if kind == "group") == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
def test_dtypes_of_models(granularity, dtype, tmp_path):
    model = small_model(dtype)
    nn.scalar_quantize(model, 2, granularity=granularity, group_size=8)
    assert model[1].weight.dtype == dtype
    nn.save(model, tmp_path / "file")
    fresh = nn.load(small_model(dtype), tmp_path / "file")
    assert torch.equal(fresh[1].weight, model[1].weight)


def test_few_values_are_kept_exactly():
    layer = torch.nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-0.5, 0.0, 0.25, 2.0])[torch.randint(4, (16, 16))])
    weight = layer.weight.detach().clone()
    report = nn.scalar_quantize(layer, 3)
    assert torch.equal(layer.weight, weight)
    assert report.compressed[0].relative_error == 0.0
    assert report.compressed[0].n_unused_words == 4


# ------------------------------------------------------------------ as compress_model does it


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
def test_padding_stays_zero(granularity, scheme):
    torch.manual_seed(0)
    layer = torch.nn.Embedding(30, 8, padding_idx=4)
    nn.scalar_quantize(layer, 1, scheme=scheme, granularity=granularity, group_size=4)
    assert (layer.weight[4] == 0).all()
    assert (layer(torch.tensor([4, 4])) == 0).all()


def test_tied_weights_stay_tied():
    model = Tied()
    report = nn.scalar_quantize(model, 2, granularity="row")
    assert [(t.name, t.aliases) for t in report.compressed] == [
        ("words.weight", ("out.weight",)),
        ("mix.weight", ()),
    ]
    assert codebook_of(model.out) is codebook_of(model.words)
    assert torch.equal(model.out.weight, model.words.weight)


def test_noise_is_removed_and_parameters_stay():
    model = small_model()
    weight = model[1].weight
    nn.quant_noise(model, 0.5)
    nn.scalar_quantize(model, 2)
    assert nn.noise_rates(model) == {}
    assert codebook_of(model[1]) is weight
    assert nn.bake(model)[1].weight is weight


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
def test_gradient_is_the_mean_of_the_members(granularity):
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 6, bias=False).double()
    nn.scalar_quantize(layer, 2, granularity=granularity, group_size=8)
    weight = layer.weight.detach().clone().requires_grad_()
    x = torch.randn(5, 16, dtype=torch.float64)
    (x @ weight.T).square().sum().backward()
    layer(x).square().sum().backward()
    values = lines_of(weight.detach(), granularity, 8)
    gradients = lines_of(weight.grad, granularity, 8)
    words = codebook_of(layer)
    for line, gradient, book, found in zip(
        values, gradients, words[0, ..., 0], words.grad[0, ..., 0], strict=True
    ):
        for word, mean in zip(book.half().double(), found, strict=True):
            torch.testing.assert_close(mean, gradient[line == word].mean())


@pytest.mark.parametrize("granularity", ["row", "group"])
def test_embeddings_look_up_only_the_rows_of_their_tokens(granularity, monkeypatch):
    torch.manual_seed(0)
    layer = torch.nn.Embedding(50, 12, padding_idx=3)
    nn.scalar_quantize(layer, 1, granularity=granularity, group_size=6)
    tokens = torch.tensor([[3, 7, 7], [49, 0, 3]])
    codebook, factors = codebook_of(layer), torch.randn(2, 3, 12)
    expected = torch.nn.functional.embedding(tokens, layer.weight, padding_idx=3)
    (expected * factors).sum().backward()
    gradient, codebook.grad = codebook.grad, None
    weight = layer.parametrizations.weight[0]
    monkeypatch.setattr(weight, "decode", None)  # nothing decodes all of it
    found = layer(tokens)
    (found * factors).sum().backward()
    assert torch.equal(found, expected)
    torch.testing.assert_close(codebook.grad, gradient)
    for wrong in (-1, 50):
        with pytest.raises((IndexError, RuntimeError)):
            layer(torch.tensor([wrong]))


def test_training_moves_words_and_saves_them(tmp_path):
    model = small_model()
    nn.scalar_quantize(model, 2, granularity="row")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model[1].weight.detach().clone()
    model(torch.arange(20)).square().mean().backward()
    optimizer.step()
    after = model[1].weight.detach()
    assert not torch.equal(after, before)
    assert all(len(row.unique()) <= 4 for row in after)
    nn.save(model, tmp_path / "file")
    assert torch.equal(nn.load(small_model(), tmp_path / "file")[1].weight, after)


def test_reassign():
    model = small_model()
    weight = model[1].weight.detach().clone()
    nn.scalar_quantize(model, 2, granularity="group", group_size=8)
    before = model[1].weight.detach().clone()
    codebook = codebook_of(model[1])
    model[1].parametrizations.weight[0].reassign(codebook, weight)  # nearest already
    assert torch.equal(model[1].weight, before)
    model[1].parametrizations.weight[0].reassign(codebook, weight.flip(1))
    assert not torch.equal(model[1].weight, before)


def test_importance_moves_words_to_what_counts():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(40, 16), torch.nn.Linear(16, 32))
    scales = torch.logspace(-2, 2, 16)
    calibration = nn.calibrate(model[1:], [torch.randn(200, 16) * scales])
    x = torch.randn(500, 16) * scales
    for granularity, gain in (("tensor", 1.0), ("row", 0.5)):
        errors = []
        for importance in (None, calibration):
            layer = copy.deepcopy(model[1:])
            exact = layer(x)
            nn.scalar_quantize(layer, 2, granularity=granularity, importance=importance)
            errors.append((layer(x) - exact).square().mean().item())
        assert errors[1] < gain * errors[0]
    counted = nn.calibrate(model[:1], [torch.tensor([3] * 10_000)])
    error = []
    for importance in (None, counted):
        words = copy.deepcopy(model[:1])
        nn.scalar_quantize(words, 1, importance=importance)
        error.append((words[0].weight - model[0].weight)[3].norm().item())
    assert error[1] < error[0]


def test_progress():
    told = []
    nn.scalar_quantize(small_model(), 2, progress=lambda *news: told.append(news))
    total = 60 * 16 + 16 * 32 + 32 * 24
    assert told == [
        ("0.weight", 0, total), ("1.weight", 960, total), ("3.weight", 1472, total),
        ("", total, total),
    ]  # fmt: skip


# ------------------------------------------------------------------ specs


def test_rules_select_and_set_bits():
    model = small_model()
    spec = {
        "rules": [
            {"type": "Embedding", "skip": True},
            {"match": "3.*", "n_codes": 16, "block_size": 4},
            {"match": "no such", "skip": True},
        ]
    }
    report = nn.scalar_quantize(model, 2, spec=spec)
    shapes = {t.name: tuple(codebook_of(model[int(t.name[0])]).shape) for t in report.compressed}
    assert shapes == {"1.weight": (1, 1, 4, 1), "3.weight": (1, 1, 16, 1)}
    assert report.unused_rules == ("match 'no such'",)
    assert report.carried[0].carried_because == "skipped by the spec"


def test_the_same_spec_as_for_blocks():
    assert len(nn.scalar_quantize(small_model(), 2, spec="ipq").compressed) == 3
    spec = Spec.from_dict({"defaults": {"min_size": 600, "n_codes": 4, "block_size": 8}})
    assert len(nn.scalar_quantize(small_model(), 2, spec=spec).compressed) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bits": 0}, ValueError, "Got bits=0"),
        ({"bits": 9}, ValueError, "Got bits=9, but expected an int from 1 to 8"),
        ({"bits": 2.0}, (ValueError, TypeError), r"Got bits=2\.0"),
        ({"scheme": "uniform"}, ValueError, "Got scheme='uniform'"),
        ({"granularity": "column"}, ValueError, "Got granularity='column'"),
        ({"group_size": 0}, ValueError, "Got group_size=0"),
        ({"granularity": "group", "group_size": 12}, ValueError,
         "Got group_size=12 for '0.weight', whose rows have 16 values, but expected a divisor"),
        ({"gradient": "max"}, ValueError, "Got gradient='max'"),
        ({"importance": 3}, TypeError, "Got importance of type int"),
        ({"spec": "auto"}, ValueError, "Got feedback=True in the defaults of the spec"),
        ({"spec": {"rules": [{"match": "1.*", "rotation": "hadamard"}]}}, ValueError,
         r"Got rotation='hadamard' in the rule for match '1\.\*' of the spec, but expected None"),
        ({"spec": {"defaults": {"n_codes": 8}}}, ValueError, "Got n_codes=8 in the defaults"),
        ({"spec": {"rules": [{"match": "*", "n_codes": 12}]}}, ValueError,
         "Got n_codes=12 in the rule for match '[*]' of the spec, but expected a power of two"),
    ],
)  # fmt: skip
def test_errors_come_before_anything_changes(arguments, error, message):
    model = small_model()
    before = everything(model)
    with pytest.raises(error, match=message):
        nn.scalar_quantize(model, **arguments)
    assert everything(model) == before


def test_a_codebook_beyond_float16_changes_nothing():
    model = small_model()
    with torch.no_grad():
        model[3].weight[0, 0] = 1e6
    before = everything(model)
    with pytest.raises(ValueError, match=r"weight '3\.weight': Got codebook_dtype='float16'"):
        nn.scalar_quantize(model, 2)
    assert everything(model) == before
    nn.scalar_quantize(model, 2, spec=FLOAT32)


def test_other_errors():
    with pytest.raises(TypeError, match="Got a model of type dict, but expected a Module"):
        nn.scalar_quantize({})
    with torch.device("meta"):
        meta = torch.nn.Linear(64, 64)
    with pytest.raises(ValueError, match="Got 'weight' on the meta device"):
        nn.scalar_quantize(meta)
    model = small_model()
    calibration = nn.calibrate(model, [torch.arange(5)])
    with pytest.raises(ValueError, match="Got importance with scheme='linear'"):
        nn.scalar_quantize(model, scheme="linear", importance=calibration)
