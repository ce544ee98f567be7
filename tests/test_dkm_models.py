"""Models with nn.dkm: as they are stored in evaluation, copied, tied, resumed, taken back."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils import parametrize  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.layers import matrix_of, row_axis  # noqa: E402
from pgkmeans_sk.nn.soft_gradients import BACKWARDS  # noqa: E402
from tests.dkm_layers import layer_of, original_of, weight_of  # noqa: E402
from tests.nn_models import LAYERS, Tied, everything, small_model, state_bytes  # noqa: E402


def trained(model, *inputs, steps=3, rate=1e-2):
    """Steps of Adam towards outputs of 1."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (model(*inputs) - 1).square().mean().backward()
        optimizer.step()
    return model


# ------------------------------------------------------------------ evaluation mode and files


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer(kind, tmp_path):
    case = LAYERS[kind]
    torch.manual_seed(0)
    layer = case.layer().double()
    axis = row_axis(layer, case.weight)
    parameter = getattr(layer, case.weight)
    report = nn.dkm(layer, bits=2, block_size=2)
    assert case.weight in [tensor.name for tensor in report.compressed]
    inputs = case.inputs()
    output = layer(*inputs)
    output = output[0] if isinstance(output, tuple) else output
    output.square().sum().backward()
    assert original_of(layer, case.weight) is parameter
    assert bool(torch.isfinite(parameter.grad).all())
    assert bool(parameter.grad.any())
    layer.eval()
    hard = matrix_of(getattr(layer, case.weight), axis)
    expected = weight_of(layer, case.weight).to_matrix(parameter).decode()
    np.testing.assert_array_equal(hard.detach().numpy(), expected)
    nn.save(layer, tmp_path / "file")
    other = nn.load(case.layer().double(), tmp_path / "file").eval()
    assert torch.equal(getattr(other, case.weight), getattr(layer, case.weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"block_size": 3}, {"bits": 9}])
def test_what_is_used_is_what_is_stored(settings, dtype, tmp_path):
    layer = layer_of(480, 20, dtype, **settings)
    layer.weight.float().square().sum().backward()
    with torch.no_grad():
        original_of(layer).sub_(0.1 * original_of(layer).grad)
    layer.eval()
    used = layer.weight
    assert used.dtype == dtype
    nn.save(layer, tmp_path / "file")
    loaded = nn.load(torch.nn.Linear(20, 480, dtype=dtype), tmp_path / "file").eval()
    assert isinstance(weight_of(loaded), nn.CodebookWeight)
    assert torch.equal(loaded.weight, used)
    with nn.cached(layer):
        assert torch.equal(layer.weight, used)
    nn.save(loaded, tmp_path / "again")
    parameter = original_of(layer)
    baked = nn.bake(layer)
    assert baked.weight is parameter
    assert torch.equal(baked.weight, used)
    assert type(baked) is torch.nn.Linear


def test_stored_words_are_in_the_dtype_of_the_spec(tmp_path):
    for dtype in ("float16", "float32"):
        layer = layer_of(dtype=torch.float32, spec={"defaults": {"codebook_dtype": dtype}}).eval()
        assert weight_of(layer).stored_dtype == dtype
        words = layer.weight.unique()
        assert torch.equal(words, words.half().float()) == (dtype == "float16")


def test_the_report_is_that_of_the_file(tmp_path):
    model = small_model()
    report = nn.dkm(model, bits=3)
    nn.save(model, tmp_path / "file")
    assert report.n_bytes == (tmp_path / "file").stat().st_size
    assert [tensor.name for tensor in report.compressed] == ["0.weight", "1.weight", "3.weight"]
    for tensor in report.compressed:
        assert tensor.n_unused_words == 0
        assert 0.0 < tensor.relative_error < 0.3
        assert tensor.bits_per_weight <= 3.25


def test_centroids_that_no_file_can_hold_are_refused(tmp_path):
    layer = layer_of()
    weight_of(layer).centroids[0] = 1e6
    with pytest.raises(ValueError, match=r"'weight'.*centroids that are not finite in float16"):
        nn.save(layer, tmp_path / "file")


def test_padding_stays_zero(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Embedding(40, 12, padding_idx=7)
    nn.dkm(layer, bits=2, block_size=3)
    trained(layer, torch.arange(40))
    assert not original_of(layer)[7].any()
    for mode in (True, False):
        weight = layer.train(mode).weight
        assert not weight[7].any()
        assert int(weight.any(1).sum()) > 30
    nn.save(layer, tmp_path / "file")
    other = nn.load(torch.nn.Embedding(40, 12, padding_idx=7), tmp_path / "file")
    assert torch.equal(other.weight, layer.weight)


# ------------------------------------------------------------------ as other parametrizations


def test_weights_are_never_written():
    model = small_model()
    before = [parameter.clone() for parameter in model.parameters()]
    parameters = dict(model.named_parameters())
    nn.dkm(model, bits=2)
    tokens = torch.arange(60)
    model(tokens).sum().backward()
    model.eval()(tokens)
    nn.remove_dkm(model)
    assert dict(model.named_parameters()) == parameters  # the same objects in the same order
    assert list(dict(model.named_parameters())) == list(parameters)
    for parameter, expected in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, expected)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    nn.remove_dkm(model)


def test_tied_weights_stay_tied(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    report = nn.dkm(model, bits=3)
    assert [t.aliases for t in report.compressed] == [("out.weight",), ()]
    assert weight_of(model.words) is weight_of(model.out)
    trained(model, torch.arange(60))
    model.eval()
    nn.save(model, tmp_path / "file")
    other = nn.load(Tied(), tmp_path / "file").eval()
    assert torch.equal(other(torch.arange(60)), model(torch.arange(60)))
    assert nn.bake(model).words.weight is model.out.weight


@pytest.mark.parametrize("backward", BACKWARDS)
def test_a_run_that_goes_on_from_a_checkpoint(backward):
    tokens = torch.arange(60)
    whole = small_model()
    nn.dkm(whole, bits=2, backward=backward)
    optimizer = torch.optim.SGD(whole.parameters(), 0.1)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(tokens).square().sum().backward()
        optimizer.step()

    step(whole, optimizer)
    saved = copy.deepcopy(whole.state_dict())
    step(whole, optimizer)
    other = small_model()
    with torch.no_grad():
        other[1].weight.mul_(7)  # another start, with another tau
    nn.dkm(other, bits=2, backward=backward)
    other.load_state_dict(saved)
    step(other, torch.optim.SGD(other.parameters(), 0.1))
    assert state_bytes(other) == state_bytes(whole)


def test_copies_are_apart():
    layer = layer_of()
    other = copy.deepcopy(layer)
    trained(other, torch.ones(3, 20, dtype=torch.float64))
    expected = layer_of()
    assert torch.equal(weight_of(layer).centroids, weight_of(expected).centroids)
    assert torch.equal(layer.weight, expected.weight)
    nn.remove_dkm(other)
    assert isinstance(weight_of(layer), nn.DKMWeight)


def test_nothing_is_random():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    models = [trained(layer_of(block_size=2), torch.ones(3, 20).double()) for _ in range(2)]
    assert state_bytes(models[0]) == state_bytes(models[1])
    torch.manual_seed(1)
    layer = torch.nn.Linear(8, 32)
    after = torch.get_rng_state()
    nn.dkm(layer, bits=2, random_state=3)
    _ = layer.weight
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(after, state)


def test_autocast_does_not_reach_the_clustering():
    layer, inputs = layer_of(dtype=torch.float32, block_size=4), torch.ones(3, 20)
    plain = copy.deepcopy(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = layer.weight
        assert layer(inputs).dtype == torch.bfloat16
        weight.sum().backward()
    assert torch.equal(weight, plain.weight)
    plain(inputs)
    _ = plain.weight
    assert weight.dtype == torch.float32
    assert bool(torch.isfinite(original_of(layer).grad).all())


def test_a_model_cast_to_halves_keeps_its_temperature():
    layer = layer_of(dtype=torch.float32, tau=3e-7)
    trained(layer.bfloat16(), torch.ones(3, 20, dtype=torch.bfloat16))
    assert weight_of(layer).tau == 3e-7
    assert layer.weight.dtype == torch.bfloat16
    assert bool(torch.isfinite(layer.weight).all())


def test_activations_that_are_computed_again():
    inputs = torch.ones(3, 20, dtype=torch.float64, requires_grad=True)
    plain, again = layer_of(tol=0.0), layer_of(tol=0.0)
    plain(inputs).square().sum().backward()
    checkpoint(again, inputs, use_reentrant=False).square().sum().backward()
    assert torch.equal(original_of(plain).grad, original_of(again).grad)
    assert torch.equal(weight_of(plain).centroids, weight_of(again).centroids)


def test_an_assigned_weight_is_the_original():
    layer = layer_of()
    value = torch.randn(24, 20, dtype=torch.float64)
    layer.weight = value
    assert torch.equal(original_of(layer), value)


def test_a_file_is_loaded_into_a_model_with_dkm(tmp_path):
    model = small_model()
    nn.compress_model(model, {"defaults": {"n_codes": 16, "block_size": 4}})
    nn.save(model, tmp_path / "file")
    other = small_model()
    nn.dkm(other, bits=2)
    nn.load(other, tmp_path / "file")
    assert state_bytes(other) == state_bytes(model)


def test_compressing_leaves_it_as_it_is():
    model = small_model()
    nn.dkm(model, bits=2, spec={"rules": [{"match": "3.*", "skip": True}]})
    nn.compress_model(model, {"defaults": {"n_codes": 16}})
    assert isinstance(weight_of(model[1]), nn.DKMWeight)
    assert isinstance(weight_of(model[3]), nn.CodebookWeight)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 0}, "bits=0, but expected an int from 1 to 16"),
        ({"bits": 2.0}, "bits=2.0"),
        ({"block_size": 0}, "block_size=0"),
        ({"tau": 0.0}, "tau=0.0, but expected a finite number > 0"),
        ({"tau": "hot"}, "tau='hot', but expected 'auto' or a number > 0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"tol": -1.0}, "tol=-1.0"),
        ({"backward": "forward"}, "backward='forward'"),
        ({"distance": "cosine"}, "distance='cosine'"),
        ({"random_state": -1}, "random_state=-1"),
        ({"spec": {"defaults": {"n_stages": 2}}}, "n_stages=2 for '0.weight', but expected 1"),
        ({"spec": {"defaults": {"rotation": "opq"}}}, "rotation='opq'"),
        ({"spec": {"rules": [{"match": "1.*", "scale": "row"}]}}, "scale='row' for '1.weight'"),
        ({"spec": {"defaults": {"codebook": "per_block"}}}, "codebook='per_block'"),
        ({"spec": {"defaults": {"group": "one"}}}, "group='one'"),
        ({"spec": {"defaults": {"feedback": True}}}, "feedback=True"),
        ({"spec": {"defaults": {"skip": True}}}, "Sequential without weights .*0.weight: "),
    ],
)
def test_bad_arguments(options, message):
    model = small_model()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        nn.dkm(model, **options)
    assert everything(model) == before


def test_models_that_are_none():
    with pytest.raises(TypeError, match="module of type int"):
        nn.dkm(3)
    with pytest.raises(TypeError, match="module of type int"):
        nn.remove_dkm(3)
    with pytest.raises(ValueError, match="ReLU without weights"):
        nn.dkm(torch.nn.ReLU())


def test_other_parametrizations():
    model = small_model()
    nn.quant_noise(model, 0.1)
    with pytest.raises(ValueError, match=r"'0.weight' with Quant-Noise.*remove_quant_noise"):
        nn.dkm(model, bits=2)
    nn.remove_quant_noise(model)
    nn.dkm(model, bits=2)
    with pytest.raises(ValueError, match=r"0\.weight: compressed already"):
        nn.dkm(model, bits=2)
    with pytest.raises(ValueError, match="parametrized by DKMWeight"):
        nn.quant_noise(model, 0.1)
    parametrize.register_parametrization(model[1], "weight", torch.nn.Tanh())
    with pytest.raises(ValueError, match=r"'1.weight' with Tanh on top"):
        nn.remove_dkm(model)
    with pytest.raises(ValueError, match=r"'0\.weight' with a DKMWeight"):
        nn.IterativePQ(model, {"defaults": {"n_codes": 16}}, checkpoint="file")
