"""Quant-Noise: what a read in training gives, and that the weight stays as it is."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402  (after the check for torch)
from torch.nn.utils import parametrize  # noqa: E402

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.layers import matrix_of, row_axis  # noqa: E402

KINDS = ("proxy", "pq", "mean", "int8", "int4", "int3")
BLOCK_KINDS = KINDS[:3]


def linear(n_in: int = 61, n_out: int = 50, dtype=torch.float64) -> "torch.nn.Linear":
    """A layer whose last blocks of 8 are narrower; its weights depend on its sizes only."""
    layer = torch.nn.Linear(n_in, n_out, dtype=dtype)
    values = np.random.default_rng(n_in + n_out).normal(scale=0.1, size=(n_out, n_in))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(values))
        layer.bias.zero_()
    return layer


def noisy(kind: str, p: float = 0.3, **options) -> "torch.nn.Linear":
    return nn.quant_noise(linear(), p, kind, n_codes=16, **options)


def noise_of(module, name: str = "weight"):
    return module.parametrizations[name][0]


def original_of(module, name: str = "weight"):
    return module.parametrizations[name].original


def whole_phi(kind: str, matrix: np.ndarray) -> np.ndarray:
    """What the paper's noise makes of every block of 8 (float64), one after the other."""
    expected = np.zeros_like(matrix)
    blocks = [slice(j, min(j + 8, matrix.shape[1])) for j in range(0, matrix.shape[1], 8)]
    if kind == "mean":
        mean = []
        for k in range(8):
            mean.append(np.mean([row[b][k] for row in matrix for b in blocks if k < len(row[b])]))
        for row in expected:
            for b in blocks:
                row[b] = mean[: len(row[b])]
    if kind.startswith("int"):
        n_steps = 2 ** int(kind[3:]) - 1
        step = (max(matrix.max(), 0) - min(matrix.min(), 0)) / n_steps
        zero_point = round(min(matrix.min(), 0) / step)
        for i, j in np.ndindex(matrix.shape):
            level = min(max(round(matrix[i, j] / step), zero_point), zero_point + n_steps)
            expected[i, j] = level * step
    return expected


# -------------------------------------------------------------------- values


@pytest.mark.parametrize("kind", ["proxy", "mean", "int8", "int4", "int3"])
def test_each_value_is_exact_or_phi(kind):
    layer = noisy(kind, scale_survivors=False)
    weight, used = original_of(layer).detach().numpy(), layer.weight.detach().numpy()
    phi = whole_phi(kind, weight)
    is_exact, is_phi = used == weight, np.isclose(used, phi, rtol=1e-13, atol=0)
    assert (is_exact | is_phi).all()
    assert not is_exact.all()
    assert not is_phi.all()
    if kind in BLOCK_KINDS:  # blocks are taken as wholes, the narrower ones too
        starts = np.arange(0, 61, 8)
        taken = np.add.reduceat(~is_exact, starts, axis=1)
        assert (np.isin(taken, [0, 8]) | ((taken == 5) & (starts == 56))).all()


def test_pq_gives_the_nearest_code_word():
    layer = noisy("pq")
    weight, used = original_of(layer).detach().numpy(), layer.weight.detach().numpy()
    words = noise_of(layer).phi.codebook.numpy()
    n_replaced = 0
    for row, row_used in zip(weight, used, strict=True):
        for j in range(0, 61, 8):
            block, block_used = row[j : j + 8], row_used[j : j + 8]
            if not np.array_equal(block, block_used):
                n_replaced += 1
                distances = ((words[:, : len(block)] - block) ** 2).sum(axis=1)
                (found,) = np.flatnonzero((words[:, : len(block)] == block_used).all(axis=1))
                assert distances[found] <= distances.min() * (1 + 1e-4)
    assert words.shape == (16, 8)
    assert 60 < n_replaced < 180  # of 400, p = 0.3


def test_proxy_scales_what_is_left():
    layer = noisy("proxy", p=0.2)
    weight, used = original_of(layer), layer.weight
    dropped = used == 0
    assert 0.1 < dropped.double().mean() < 0.3
    torch.testing.assert_close(used[~dropped], weight[~dropped] / 0.8, rtol=1e-9, atol=0)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["proxy", "int2"])
def test_share_of_blocks_is_p(kind, p):
    layer = nn.quant_noise(linear(512, 200), p, kind, scale_survivors=False)
    weight = original_of(layer)
    n_drawn = 5 * (weight.numel() if kind == "int2" else 64 * 200)
    n_taken = 0
    for _ in range(5):
        changed = layer.weight != weight
        n_taken += int((changed if kind == "int2" else changed.view(200, 64, 8)[..., 0]).sum())
    assert abs(n_taken - p * n_drawn) < 5 * np.sqrt(p * (1 - p) * n_drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_share_nothing_changes(kind):
    layer = noisy(kind, p=0.0)
    assert torch.equal(layer.weight, original_of(layer))


def test_one_value_for_all_and_zeros_are_rounded_to_themselves():
    for value in (0.0, 0.7, -0.7):
        layer = linear()
        with torch.no_grad():
            layer.weight.fill_(value)
        used = nn.quant_noise(layer, 0.5, "int4").weight
        torch.testing.assert_close(used, torch.full_like(used, value), rtol=1e-15, atol=0)


def test_rounding_has_no_more_levels_than_bits_allow():
    layer = linear()
    values = torch.tensor([-1.5, -0.6, 0.2, 1.5])  # steps of 1, and both ends round outward
    with torch.no_grad():
        layer.weight.copy_(values[torch.arange(50 * 61) % 4].view(50, 61))
    used = nn.quant_noise(layer, 0.5, "int2").weight
    assert used[used != original_of(layer)].unique().tolist() == [-2.0, -1.0, 0.0, 1.0]


LAYERS = {
    "Linear": lambda: torch.nn.Linear(21, 30),
    "Embedding": lambda: torch.nn.Embedding(30, 21),
    "EmbeddingBag": lambda: torch.nn.EmbeddingBag(30, 21),
    "Conv1d": lambda: torch.nn.Conv1d(4, 30, 5),
    "Conv2d, grouped": lambda: torch.nn.Conv2d(8, 30, 3, groups=2),
    "Conv3d": lambda: torch.nn.Conv3d(2, 30, (1, 3, 3)),
    "ConvTranspose1d": lambda: torch.nn.ConvTranspose1d(7, 30, 3),
    "ConvTranspose2d": lambda: torch.nn.ConvTranspose2d(5, 30, 3),
    "ConvTranspose3d": lambda: torch.nn.ConvTranspose3d(3, 30, (1, 3, 3)),
    "MultiheadAttention": lambda: torch.nn.MultiheadAttention(20, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_blocks_lie_in_rows_of_the_matrix(name):
    layer = nn.quant_noise(LAYERS[name](), 0.5)
    tensor = "in_proj_weight" if name == "MultiheadAttention" else "weight"
    used = matrix_of(getattr(layer, tensor), row_axis(layer, tensor))
    assert used.shape[0] in (30, 60)
    dropped = np.add.reduceat((used == 0).numpy(), np.arange(0, used.shape[1], 8), axis=1)
    widths = np.minimum(8, used.shape[1] - np.arange(0, used.shape[1], 8))
    assert np.isin(dropped[:, -1], [0, widths[-1]]).all()
    assert ((dropped == 0) | (dropped == widths)).all()
    assert 0.2 < (dropped > 0).mean() < 0.8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype(kind, dtype):
    layer = nn.quant_noise(linear(dtype=dtype), 0.5, kind, n_codes=16, scale_survivors=False)
    used = layer.weight
    assert used.dtype == dtype
    assert torch.isfinite(used).all()
    assert 0.2 < (used == original_of(layer)).double().mean() < 0.8


# -------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_the_noisy_weight(kind):
    layer = noisy(kind)
    inputs, targets = torch.ones(4, 61, dtype=torch.float64), torch.ones(4, 50, dtype=torch.float64)
    used = copy.deepcopy(layer).weight.detach().requires_grad_()  # a copy draws the same
    functional.mse_loss(functional.linear(inputs, used), targets).backward()
    functional.mse_loss(layer(inputs), targets).backward()
    assert torch.equal(original_of(layer).grad, used.grad)
    assert (used.grad != 0).all()  # so it reaches the blocks that were replaced


def test_frozen_weights_have_noise_and_no_gradient():
    layer = linear()
    layer.weight.requires_grad_(False)
    nn.quant_noise(layer, 0.3)
    assert not layer.weight.requires_grad
    assert (layer.weight == 0).any()
    layer(torch.ones(2, 61, dtype=torch.float64)).sum().backward()
    assert original_of(layer).grad is None


def test_what_is_read_may_be_changed_in_place():
    layer = nn.quant_noise(torch.nn.Embedding(300, 16), 0.3)
    looked_up = layer(torch.tensor([1, 2]))
    looked_up += 1.0
    (looked_up * 3.0).sum().backward()
    grad = original_of(layer).grad
    assert torch.equal(grad[1:3], torch.full((2, 16), 3.0))
    assert not grad[3:].any()


# -------------------------------------------------------------------- the weight is never written


@pytest.mark.parametrize("kind", KINDS)
def test_reads_leave_the_weight_as_it_is(kind):
    # An implementation that writes the noisy weight has 96 % zeros after 30 forwards at p = 0.1.
    layer = linear()
    before = layer.weight.detach().clone()
    nn.quant_noise(layer, 0.1, kind, n_codes=16)
    version = original_of(layer)._version
    for _ in range(30):
        layer(torch.ones(2, 61, dtype=torch.float64)).sum().backward()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.ones(2, 7, dtype=torch.float64))
    assert torch.equal(original_of(layer), before)
    assert original_of(layer)._version == version
    assert noise_of(layer).n_reads == 31


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_exact(kind):
    layer = linear()
    parameter = layer.weight
    inputs = torch.ones(2, 61, dtype=torch.float64)
    expected = layer(inputs)
    nn.quant_noise(layer, 0.5, kind, n_codes=16)
    assert not torch.equal(layer(inputs), expected)
    layer.eval()
    assert layer.weight is parameter
    assert torch.equal(layer(inputs), expected)
    assert noise_of(layer).n_reads == 1


def test_weights_can_be_set():
    layer = noisy("proxy", scale_survivors=False)
    layer.weight = torch.full_like(original_of(layer), 2.0)
    assert set(layer.weight.unique().tolist()) == {0.0, 2.0}


# -------------------------------------------------------------------- randomness


def test_noise_depends_on_seed_and_name_only():
    def read(seed: int, torch_seed: int) -> list["torch.Tensor"]:
        torch.manual_seed(torch_seed)
        layers = torch.nn.Sequential(linear(), linear())
        nn.quant_noise(layers, 0.3, seed=seed)
        return [layer.weight == 0 for layer in layers for _ in range(2)]

    first = read(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, read(0, 2), strict=True))
    pairs = [(first[0], first[1]), (first[0], first[2]), (first[0], read(1, 1)[0])]
    assert not any(torch.equal(a, b) for a, b in pairs)  # reads, names, and seeds


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_of_torch_is_left_alone(kind):
    layer = linear()
    state = torch.get_rng_state()
    nn.quant_noise(layer, 0.3, kind, n_codes=16)
    layer(torch.ones(2, 61, dtype=torch.float64)).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_goes_on_with_the_same_noise(kind):
    layer = noisy(kind)
    assert layer.weight is not None  # a draw
    twin = copy.deepcopy(layer)
    assert original_of(twin) is not original_of(layer)
    for _ in range(3):
        assert torch.equal(twin.weight, layer.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_its_state(kind):
    layer = noisy(kind, seed=3)
    assert layer.weight is not None
    with torch.no_grad():
        original_of(layer).mul_(1.5)  # codebooks are those of the state, not of the weight
    nn.set_noise_rate(layer, 0.25)
    state = copy.deepcopy(layer.state_dict())
    resumed = noisy(kind, p=0.1, seed=4)
    resumed.load_state_dict(state)
    assert nn.noise_rates(resumed) == {"weight": 0.25}
    for _ in range(3):
        assert torch.equal(resumed.weight, layer.weight)


# -------------------------------------------------------------------- schedules and codebooks


def test_rates_can_be_changed():
    model = nn.quant_noise(torch.nn.Sequential(linear(512, 40), linear(40, 512)), 0.0, "mean")
    nn.set_noise_rate(model, 0.6)
    assert nn.noise_rates(model) == {"0.weight": 0.6, "1.weight": 0.6}
    share = (model[0].weight != original_of(model[0])).double().mean()
    assert 0.5 < share < 0.7
    model.half()  # the rate is no number of the model's dtype
    assert nn.noise_rates(model) == {"0.weight": 0.6, "1.weight": 0.6}


def test_codebooks_follow_the_weight_when_they_are_refreshed():
    layer = noisy("pq", p=0.99)
    first = noise_of(layer).phi.codebook.clone()
    with torch.no_grad():
        original_of(layer).mul_(2.0)
    assert layer.weight is not None  # a read changes nothing
    assert torch.equal(noise_of(layer).phi.codebook, first)
    nn.refresh_codebooks(layer)
    torch.testing.assert_close(noise_of(layer).phi.codebook, 2 * first, rtol=2e-3, atol=1e-6)


def test_codebooks_are_refreshed_after_so_many_reads():
    layer = noisy("pq", refresh_every=3)
    first = noise_of(layer).phi.codebook.clone()
    with torch.no_grad():
        original_of(layer).mul_(2.0)
    is_first = []
    for _ in range(4):
        assert layer.weight is not None
        is_first.append(torch.equal(noise_of(layer).phi.codebook, first))
    assert is_first == [True, True, True, False]


def test_more_than_256_code_words():
    layer = nn.quant_noise(linear(64, 64), 0.9, "pq", block_size=2, n_codes=300)
    used = layer.weight.detach().view(-1, 2)
    words = noise_of(layer).phi.codebook
    replaced = used[(used != original_of(layer).view(-1, 2)).any(1)]
    assert noise_of(layer).phi.codes.dtype == torch.int32
    assert len(replaced) > 1500
    assert (torch.cdist(replaced, words).min(1).values == 0).all()
    assert len(replaced.unique(dim=0)) > 256


def test_no_codebook_is_no_error():
    nn.refresh_codebooks(nn.quant_noise(linear(), 0.1))
    nn.refresh_codebooks(linear())


# -------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_rows_looked_up_are_those_of_the_whole(kind, padding_idx):
    layer = torch.nn.Embedding(300, 21, padding_idx=padding_idx)
    with torch.no_grad():
        layer.weight[3] = 0.5  # of a trained model, padding need not be zero
    plain = copy.deepcopy(layer)
    nn.quant_noise(layer, 0.5, kind, n_codes=16)
    tokens = torch.tensor([[3, 5, 299], [5, 250, 3]])
    whole = copy.deepcopy(layer).weight
    looked_up = layer(tokens)
    assert torch.equal(looked_up, whole[tokens])
    if padding_idx is not None:
        assert torch.equal(whole[3], original_of(layer)[3])
    weights = torch.arange(21.0)
    (looked_up * weights).sum().backward()
    (plain(tokens) * weights).sum().backward()
    assert torch.equal(original_of(layer).grad, plain.weight.grad)


def test_autocast():
    layer = nn.quant_noise(linear(dtype=torch.float32), 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(torch.ones(2, 61))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert original_of(layer).grad.dtype == torch.float32


def test_cached_reads_are_one_draw():
    layer = nn.quant_noise(torch.nn.Embedding(300, 16), 0.3)
    tokens = torch.tensor([1, 2])
    with parametrize.cached():
        first, second = layer(tokens), layer(tokens)
    assert torch.equal(first, second)
    assert noise_of(layer).n_reads == 1
    assert not torch.equal(layer(tokens), first)
