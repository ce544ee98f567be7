"""DiffQ: noise in training, levels in evaluation, gradients for weights and bits."""

import copy
import math
from contextlib import nullcontext

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils import parametrize  # noqa: E402

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.diffq_weight import DiffQWeight  # noqa: E402
from tests.nn_models import LAYERS, Tied, everything, small_model, state_bytes  # noqa: E402
from tests.reference_levels import quantize  # noqa: E402


def linear(n_in=10, n_out=3, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    return nn.diffq(torch.nn.Linear(n_in, n_out, dtype=dtype), **options)


def parts(layer, name="weight"):
    lists = layer.parametrizations[name]
    return lists.original, lists[0]


def set_bits(weight, bits):
    share = (torch.as_tensor(bits, dtype=torch.float64) - weight.min_bits) / (
        weight.max_bits - weight.min_bits
    )
    with torch.no_grad():
        weight.logits.copy_(torch.log(share / (1 - share)))


# -------------------------------------------------------------------- bits


def test_bits_by_hand():
    """30 values in 4 groups of 8, the last of 6."""
    _, weight = parts(linear())
    assert weight.logits.shape == (4,)
    torch.testing.assert_close(weight.bits(), torch.full((4,), 8.0))
    with torch.no_grad():
        weight.logits.copy_(torch.tensor([0.0, math.log(3), -30.0, 30.0]))
    torch.testing.assert_close(weight.bits(), torch.tensor([8.5, 11.75, 2.0, 15.0]))
    assert weight.widths().tolist() == [8, 12, 2, 15]
    assert weight.group_counts().tolist() == [8, 8, 8, 6]


def test_mean_bits_of_each_weight():
    model = nn.diffq(Tied())
    weight = parts(model.words)[1]
    set_bits(weight, [4.2] * 60 + [7.7] * 60)
    bits = nn.diffq_bits(model)
    assert bits == {"words.weight": 6.0, "mix.weight": 8.0, "out.weight": 6.0}


# -------------------------------------------------------------------- training


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_noise_is_as_large_as_the_rounding_error(noise):
    layer = linear(512, 400, noise=noise, init_bits=3.3)
    original, weight = parts(layer)
    drawn = (layer.weight - original).detach().double()
    step = (original.max() - original.min()).item() / (2 ** weight.bits()[0].item() - 1)
    eps = (drawn / step).numpy().ravel()
    n = eps.size
    assert abs(eps.mean()) < 4 * 0.5 / math.sqrt(n)
    if noise == "uniform":
        assert np.abs(eps).max() < 0.5001
        assert eps.var() == pytest.approx(1 / 12, rel=0.02)
    else:
        assert eps.std() == pytest.approx(0.5, rel=0.01)
        assert np.mean(np.abs(eps) < 0.5) == pytest.approx(0.6827, abs=0.01)
        assert 1.8 < np.abs(eps).max() < 3.5
    assert abs(np.corrcoef(eps[:-1], eps[1:])[0, 1]) < 4 / math.sqrt(n)


def test_each_group_has_noise_of_its_bits():
    layer = linear(64, 256)
    original, weight = parts(layer)
    bits = torch.linspace(2.5, 14.5, len(weight.logits))
    set_bits(weight, bits)
    drawn = (layer.weight - original).detach().reshape(-1, 8).double()
    steps = (original.max() - original.min()).detach().double() / (2.0 ** bits.double() - 1)
    # float32 knows no smaller differences
    largest = 0.5 * steps[:, None] + 2e-8
    assert bool((drawn.abs() <= largest).all())
    assert bool((drawn[:512].abs().amax(1) > 0.2 * steps[:512]).all())


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_gradients(noise):
    """That of the weight is the output's; that of a logit has the formula that calculus gives."""
    layer = linear(dtype=torch.float64, noise=noise)
    original, weight = parts(layer)
    set_bits(weight, [3.0, 5.0, 7.0, 2.5])
    outer = torch.randn(3, 10, dtype=torch.float64)
    used = layer.weight
    eps = (used - original).detach()
    (used * outer).sum().backward()
    torch.testing.assert_close(original.grad, outer)
    bits, share = weight.bits().detach(), torch.sigmoid(weight.logits).detach()
    # eps * step, with d step / d bits = -step * ln 2 * 2^b / (2^b - 1)
    slope = -math.log(2) * 2**bits / (2**bits - 1) * 13 * share * (1 - share)
    by_value = (eps * outer).reshape(-1)
    groups = [by_value[8 * g : 8 * g + 8].sum() for g in range(4)]
    torch.testing.assert_close(weight.logits.grad, torch.stack(groups) * slope)


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_gradcheck(noise):
    """With a weight whose extremes do not move, and the same draw each time."""
    layer = linear(6, 2, torch.float64, noise=noise, group_size=5, init_bits=4)
    original, weight = parts(layer)

    def used(logits):
        weight.n_reads.zero_()
        bound = {"logits": logits}
        return torch.func.functional_call(weight, bound, (original.detach(),))

    assert torch.autograd.gradcheck(used, (weight.logits.detach().requires_grad_(),))


def test_draws_differ_and_come_again():
    first, second, other = linear(), linear(), linear(**{"seed": 0}, n_out=3)
    other = nn.diffq(nn.remove_diffq(other), seed=1)
    torch_state = torch.get_rng_state()
    draws = [first.weight.detach(), first.weight.detach()]
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.equal(second.weight, draws[0])
    assert not torch.equal(other.weight, draws[0])
    resumed = linear()
    resumed.load_state_dict(second.state_dict())
    assert torch.equal(resumed.weight, draws[1])
    copied = copy.deepcopy(first)
    assert torch.equal(copied.weight, first.weight)


def test_weights_are_never_written():
    layer = linear()
    before = parts(layer)[0].detach().clone()
    for _ in range(3):
        layer(torch.ones(2, 10))
        layer.eval()(torch.ones(2, 10))
        layer.train()
    assert torch.equal(parts(layer)[0], before)


# -------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_levels_against_the_reference(dtype):
    layer = linear(dtype=dtype).eval()
    original, weight = parts(layer)
    assert weight.logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    bits = [2.3, 15.0 - 1e-6, 5.6, 3.2]
    set_bits(weight, bits)
    values = original.detach().to(torch.float64).numpy()
    wide = np.float64 if dtype == torch.float64 else np.float32
    ranges = [(values.min(), values.max())]
    codes, decoded = quantize(values.astype(wide), [2, 15, 6, 3], ranges, 30, 8, wide)
    expected = torch.from_numpy(decoded).to(dtype)
    assert torch.equal(layer.weight, expected)
    matrix = weight.to_matrix(original)
    np.testing.assert_array_equal(matrix.codes(), codes)
    assert torch.equal(torch.from_numpy(matrix.decode()).to(dtype), expected)
    assert matrix.layout == weight.stored_layout(original)
    lost = (expected.double() - original.double()).norm() / original.double().norm()
    assert matrix.relative_error == pytest.approx(lost.item(), rel=1e-3)


def test_gradients_in_evaluation_mode_pass_straight_through():
    layer = linear().eval()
    outer = torch.randn(3, 10)
    (layer.weight * outer).sum().backward()
    assert torch.equal(parts(layer)[0].grad, outer)


def test_a_constant_weight():
    layer = torch.nn.Linear(10, 3)
    torch.nn.init.constant_(layer.weight, 0.3)
    nn.diffq(layer)
    assert bool((layer.weight == torch.tensor(0.3)).all())
    layer.weight.sum().backward()
    assert bool(torch.isfinite(parts(layer)[1].logits.grad).all())
    assert bool((layer.eval().weight == torch.tensor(0.3)).all())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_layers(name, training):
    """Outputs and gradients are those of a plain layer with the weight as it is used."""
    case = LAYERS[name]
    torch.manual_seed(0)
    layer, plain = case.layer().double(), case.layer().double().train(training)
    plain.load_state_dict(layer.state_dict())
    inputs = case.inputs()
    nn.diffq(layer, init_bits=3, spec={"rules": [{"match": "out_proj*", "skip": True}]})
    layer.train(training)
    twin = copy.deepcopy(layer)
    # Attention reads its weight more than once.
    with parametrize.cached() if name == "attention" else nullcontext():
        found = layer(*inputs)
    weight = getattr(twin, case.weight).detach()  # the first draw, as in that forward
    with torch.no_grad():
        getattr(plain, case.weight).copy_(weight)
    expected = plain(*inputs)
    found, expected = (x[0] if isinstance(x, tuple) else x for x in (found, expected))
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    original, learned = parts(layer, case.weight)
    torch.testing.assert_close(original.grad, getattr(plain, case.weight).grad)
    assert (learned.logits.grad is not None) == training


# -------------------------------------------------------------------- on and off


def test_removed_as_if_it_had_never_been():
    model, plain = small_model(), small_model()
    before = everything(model)
    nn.remove_diffq(nn.diffq(model))
    assert everything(model) == before
    assert state_bytes(model) == state_bytes(plain)
    assert everything(nn.remove_diffq(model)) == before


def test_tied_weights_have_one_set_of_bits():
    model = nn.diffq(Tied())
    assert parts(model.words)[1] is parts(model.out)[1]
    assert len(list(model.parameters())) == 3 + 2
    model(torch.arange(5)).sum().backward()
    assert int(parts(model.words)[1].n_reads) == 2
    nn.remove_diffq(model)
    assert model.words.weight is model.out.weight


def test_a_part_of_the_model():
    model = nn.diffq(small_model(), spec={"rules": [{"type": "Embedding", "skip": True}]})
    assert list(nn.diffq_bits(model)) == ["1.weight", "3.weight"]
    lists = model[1].parametrizations.weight
    assert isinstance(lists[0], DiffQWeight)
    assert lists[0].sizes == (512, 8)


def test_groups_of_the_optimiser():
    model = nn.diffq(small_model())
    groups = nn.diffq_parameter_groups(model, logit_lr=0.02, weight_decay=0.3)
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    weights, logits = optimizer.param_groups
    assert [tuple(p.shape) for p in logits["params"]] == [(120,), (64,), (96,)]
    assert len(weights["params"]) == 5
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 0.3)
    assert (logits["lr"], logits["weight_decay"]) == (0.02, 0.0)
    default = torch.optim.AdamW(nn.diffq_parameter_groups(model), lr=0.1, weight_decay=0.7)
    assert [group["weight_decay"] for group in default.param_groups] == [0.7, 0.0]
    assert default.param_groups[1]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 0}, "group_size=0"),
        ({"min_bits": 0}, "min_bits=0"),
        ({"min_bits": 8, "max_bits": 8}, "max_bits=8"),
        ({"max_bits": 17}, "max_bits=17"),
        ({"init_bits": 2}, "init_bits=2, but expected more than min_bits=2"),
        ({"init_bits": 15}, "init_bits=15"),
        ({"noise": "normal"}, "noise='normal'"),
        ({"seed": -1}, "seed=-1"),
        ({"spec": {"defaults": {"skip": True}}}, "without weights"),
    ],
)
def test_arguments_that_are_refused(options, message):
    model = small_model()
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        nn.diffq(model, **options)
    assert everything(model) == before


def test_models_that_are_refused():
    model = small_model()
    with torch.no_grad():
        model[3].weight[2, 3] = float("nan")
    before = everything(model)
    with pytest.raises(ValueError, match=r"'3.weight' with NaN or infinity"):
        nn.diffq(model)
    assert everything(model) == before
    with pytest.raises(ValueError, match="parametrized by DiffQWeight"):
        nn.diffq(nn.diffq(small_model()))
    with pytest.raises(TypeError, match="of type list"):
        nn.diffq([model])
    for function in (nn.diffq_parameter_groups, nn.penalty_mb):
        with pytest.raises(ValueError, match="without learned bits"):
            function(small_model())
    stacked = linear()
    parametrize.register_parametrization(stacked, "weight", torch.nn.Identity())
    with pytest.raises(ValueError, match=r"'weight' with Identity on top of its learned bits"):
        nn.remove_diffq(stacked)
