"""compress_in_sequence: layer after layer, each for the inputs that it will get."""

import copy
import threading

import numpy as np
import pytest

from pgkmeans_sk.feedback import compress_with_feedback
from pgkmeans_sk.spec import TensorSettings

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from pgkmeans_sk import nn  # noqa: E402
from tests.nn_models import state_bytes  # noqa: E402

SETTINGS = {"block_size": 4, "n_codes": 16}
SPEC = {"defaults": SETTINGS}
WIDTH = 16


class Net(torch.nn.Module):
    """Words, a block with a residual sum and a norm behind it, and a head."""

    def __init__(self, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(200, WIDTH)
        self.up = torch.nn.Linear(WIDTH, 48, bias=bias)
        self.down = torch.nn.Linear(48, WIDTH, bias=bias)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.head = torch.nn.Linear(WIDTH, 32, bias=bias)
        with torch.no_grad():  # inputs near a few directions, away from zero
            directions = torch.randn(5, WIDTH)
            noise = torch.randn(200, WIDTH) / 5
            self.words.weight.copy_(torch.randn(200, 5) @ directions + noise + 0.5)

    def forward(self, index, mask=None):
        x = self.words(index)
        x = self.norm(self.down(F.gelu(self.up(x))) + x)
        return self.head(x)


def net(**options):
    return Net(**options).double()


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(200, (20, 12), generator=generator) for _ in range(3)]


def in_sequence(model, batches, spec=SPEC, **options):
    report = nn.compress_in_sequence(model, batches, spec, **options)
    return model, report


# ------------------------------------------------------------------ what it is, step by step


def step_by_step(model, batches, *, residual=True, biases=True):
    """The same for ``Net``, written down for this one model; returns matrices and biases."""
    index = torch.cat([batch.reshape(-1) for batch in batches])
    whole, small = model, copy.deepcopy(model)
    quantizer = TensorSettings(**SETTINGS).quantizer(0)
    plain = quantizer.compress(whole.words.weight.detach().numpy(), sample_weight=np.sqrt(
        1.0 + np.bincount(index, minlength=200)))  # fmt: skip
    small.words.weight.data = torch.from_numpy(plain.decode())
    found = {"words.weight": plain}

    def fit(name, inputs, compressed, rest=0.0):
        layer, copied = getattr(whole, name), getattr(small, name)
        W = layer.weight.detach().numpy()
        x, gap = compressed.numpy(), (inputs - compressed).numpy() @ W.T + rest
        m = x.mean(0) if biases else np.zeros(x.shape[1])
        lack = gap.mean(0) if biases else np.zeros(len(W))
        H = (x - m).T @ (x - m) / len(x)
        drift = (gap - lack).T @ (x - m) / len(x)
        matrix = compress_with_feedback(W, H, quantizer, drift=drift, n_descents=2)
        found[f"{name}.weight"] = matrix
        copied.weight.data = torch.from_numpy(matrix.decode())
        if biases:
            change = lack + (W - matrix.decode()) @ m
            copied.bias.data = layer.bias.data + torch.from_numpy(change)

    with torch.no_grad():
        x, y = whole.words(index), small.words(index)
        fit("up", x, y)
        h, g = F.gelu(whole.up(x)), F.gelu(small.up(y))
        fit("down", h, g, (x - y).numpy() if residual else 0.0)
        x, y = whole.norm(whole.down(h) + x), small.norm(small.down(g) + y)
        fit("head", x, y)
    return found, small


@pytest.mark.parametrize("biases", [True, False])
def test_it_is_the_same_as_step_by_step(batches, biases):
    expected, reference = step_by_step(net(), batches, biases=biases)
    model, _ = in_sequence(net(), batches, correct_biases=biases)
    for name, matrix in expected.items():
        layer = getattr(model, name.removesuffix(".weight"))
        assert torch.equal(layer.weight, torch.from_numpy(matrix.decode())), name
    for name in ("up", "down", "head"):
        bias, wanted = getattr(model, name).bias, getattr(reference, name).bias
        torch.testing.assert_close(bias, wanted, rtol=1e-9, atol=1e-12)
    changed = not torch.equal(model.up.bias, net().up.bias)
    assert changed == biases


def test_without_the_residual_it_would_be_another(batches):
    with_it, _ = step_by_step(net(), batches)
    without, _ = step_by_step(net(), batches, residual=False)
    assert (with_it["down.weight"].decode() != without["down.weight"].decode()).any()


def test_layers_without_a_bias(batches):
    expected, _ = step_by_step(net(bias=False), batches, biases=False)
    model, _ = in_sequence(net(bias=False), batches)
    assert torch.equal(model.head.weight, torch.from_numpy(expected["head.weight"].decode()))


def output_error(model, batches, original):
    model.eval()
    with torch.no_grad():
        lost = sum(float((model(b) - original(b)).square().sum()) for b in batches)
        return lost / sum(float(original(b).square().sum()) for b in batches)


def test_it_keeps_more_of_the_outputs_than_layers_on_their_own(batches):
    generator = torch.Generator().manual_seed(5)
    others = [torch.randint(200, (20, 12), generator=generator) for _ in range(3)]
    alone, sequence = net(), net()
    calibration = nn.calibrate(alone, batches)
    nn.compress_model(alone, SPEC, importance=calibration, feedback=True)
    nn.compress_in_sequence(sequence, batches, SPEC)
    errors = [output_error(model, others, net()) for model in (alone, sequence)]
    assert errors[1] < 0.8 * errors[0]


# ------------------------------------------------------------------ batches and masks


def test_how_sentences_are_cut_into_batches_changes_nothing(batches):
    one, _ = in_sequence(net(), [torch.cat(batches)])
    many, _ = in_sequence(net(), [row[None] for row in torch.cat(batches)])
    assert torch.equal(one.head.weight, many.head.weight)


def test_padding_is_left_out(batches):
    padded = []
    for batch in batches:
        mask = torch.ones(20, 15, dtype=torch.int64)
        mask[:, 12:] = 0
        padded.append({"index": F.pad(batch, (0, 3), value=7), "mask": mask})
    expected, _ = in_sequence(net(), batches)
    model, _ = in_sequence(net(), padded, mask=lambda batch: batch["mask"])
    assert torch.equal(model.head.weight, expected.head.weight)
    assert torch.equal(model.words.weight, expected.words.weight)


def test_a_mask_that_fits_nothing_is_refused(batches):
    model = net()
    before = state_bytes(model)
    with pytest.raises(ValueError, match=r"Got a mask of shape \(3, 3\), but expected"):
        in_sequence(model, batches, mask=lambda _: torch.ones(3, 3))
    assert state_bytes(model) == before


def test_it_is_the_same_each_time(batches):
    runs = [in_sequence(net().float(), batches)[0] for _ in range(2)]
    assert state_bytes(runs[0]) == state_bytes(runs[1])


def test_a_generator_of_batches_and_a_forward_of_ones_own(batches):
    expected, _ = in_sequence(net(), batches)
    model, _ = in_sequence(
        net(), (("text", b) for b in batches), forward=lambda model, batch: model(batch[1])
    )
    assert state_bytes(model) == state_bytes(expected)


def test_a_forward_in_inference_mode(batches):
    def forward(model, batch):
        with torch.inference_mode():
            return model(batch)

    expected, _ = in_sequence(net(), batches)
    model, _ = in_sequence(net(), batches, forward=forward)
    assert state_bytes(model) == state_bytes(expected)


# ------------------------------------------------------------------ models of all kinds


def test_layers_in_front_of_a_norm_with_a_sum_behind_them():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(WIDTH)
            self.up, self.down = torch.nn.Linear(WIDTH, 48), torch.nn.Linear(48, WIDTH)

        def forward(self, x):
            return x + self.down(F.gelu(self.up(self.norm(x))))

    torch.manual_seed(0)
    model = torch.nn.Sequential(Block(), Block(), torch.nn.LayerNorm(WIDTH)).double()
    original = copy.deepcopy(model)
    mixed = torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, WIDTH, dtype=torch.float64)
    batches = [mixed[:200], mixed[200:]]
    alone = copy.deepcopy(model)
    nn.compress_model(alone, SPEC, importance=nn.calibrate(alone, batches), feedback=True)
    _, report = in_sequence(model, batches)
    assert len(report.compressed) == 4
    assert output_error(model, batches, original) < output_error(alone, batches, original)


def test_convolutions():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, stride=2)
    ).double()
    original = copy.deepcopy(model)
    images = [torch.randn(6, 4, 8, 8, dtype=torch.float64) for _ in range(2)]
    alone = copy.deepcopy(model)
    nn.compress_model(alone, SPEC, importance=nn.calibrate(alone, images), feedback=True)
    _, report = in_sequence(model, images)
    assert len(report.compressed) == 2
    assert output_error(model, images, original) < output_error(alone, images, original)


class Shared(torch.nn.Module):
    """One layer called twice, one that shares its weight, one never called, one grouped."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.tied, self.other, self.unused, self.last = (
            torch.nn.Linear(WIDTH, WIDTH) for _ in range(5)
        )
        self.other.weight = self.tied.weight

    def forward(self, x):
        return self.last(self.other(self.tied(self.twice(self.twice(x)))))


def test_what_cannot_be_in_sequence_is_as_compress_model_does_it():
    x = [torch.randn(300, WIDTH)]
    spec = {"defaults": SETTINGS, "rules": [{"match": "last.*", "feedback": False}]}
    expected, model = Shared(), Shared()
    nn.compress_model(expected, spec, importance=nn.calibrate(expected, x), feedback=True)
    _, report = in_sequence(model, x, spec)
    assert len(report.compressed) == 4
    for layer in ("twice", "tied", "unused", "last"):
        assert torch.equal(getattr(model, layer).weight, getattr(expected, layer).weight), layer
    assert model.other.weight is not None
    assert torch.equal(model.other.weight, model.tied.weight)


def test_weights_of_a_group_share_a_codebook():
    x = [torch.randn(300, WIDTH)]
    rule = {"regex": "(unused|last).*", "group": "both", "feedback": False}
    spec = {"defaults": SETTINGS, "rules": [rule]}
    model, _ = in_sequence(Shared(), x, spec)
    books = [getattr(model, n).parametrizations.weight.original for n in ("unused", "last")]
    assert books[0] is books[1]


def test_a_bias_that_layers_share_stays():
    x = [torch.randn(300, WIDTH)]
    model = Shared()
    model.last.bias = model.tied.bias
    before = model.last.bias.detach().clone()
    in_sequence(model, x)
    assert torch.equal(model.last.bias, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats(batches, dtype):
    model, report = in_sequence(net().to(dtype), batches)
    assert len(report.compressed) == 4
    assert model.head.weight.dtype == dtype
    wanted = output_error(in_sequence(net(), batches)[0], batches, net())
    assert output_error(model.double(), batches, net()) < 1.5 * wanted


def test_it_is_saved_and_loaded_as_any_other(batches, tmp_path):
    model, report = in_sequence(net(), batches)
    nn.save(model, tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size == report.n_bytes
    again = nn.load(net(), tmp_path / "small.safetensors").eval()
    assert torch.equal(again(batches[0]), model.eval()(batches[0]))


# ------------------------------------------------------------------ what is refused, and errors


class Moody(Net):
    """Takes a way of its own for some batches."""

    def forward(self, index):
        if int(index[0, 0]) == 150:
            return self.up(self.words(index))
        if int(index[0, 0]) == 151:
            return self.head(self.words(index))
        if int(index[0, 0]) == 152:
            raise OSError("no such sentence")
        return super().forward(index)


@pytest.mark.parametrize(
    ("first", "error", "message"),
    [
        (150, ValueError, "Got batch 2, in which the model comes to its end where the first batch"),
        (151, ValueError, "Got batch 2, in which the model comes to 'head.weight' where the first"),
        (152, OSError, "no such sentence"),
    ],
)
def test_errors_leave_the_model_as_it_was(batches, first, error, message):
    model = Moody().double().train()
    before, n_threads = state_bytes(model), threading.active_count()
    odd = batches[0].clone()
    odd[0, 0] = first
    with pytest.raises(error, match=message):
        in_sequence(model, [*batches[:2], odd])
    assert state_bytes(model) == before
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert threading.active_count() == n_threads
    assert torch.is_grad_enabled()


def test_nothing_else_is_changed(batches):
    model = net().train()
    parameters, n_threads = dict(model.named_parameters()), threading.active_count()
    random = torch.get_rng_state()
    in_sequence(model, batches)
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    assert threading.active_count() == n_threads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training
    assert model.norm.training
    assert all(p.requires_grad for p in model.parameters())
    assert model.up.bias is parameters["up.bias"]
    (model(batches[0])).sum().backward()  # nothing of the passes hangs on to it


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        ([], {}, ValueError, "Got no batches"),
        (torch.zeros(2), {}, TypeError, "Got batches of type Tensor"),
        ([torch.full((2, 3), 3)], {"forward": 3}, TypeError, "Got forward=3, but expected a func"),
        ([torch.full((2, 3), 3)], {"mask": 3}, TypeError, "Got mask=3, but expected a function"),
        ([torch.full((2, 3), 3)], {"correct_biases": "no"}, TypeError, "Got correct_biases='no'"),
        ([torch.full((2, 3), 3)], {"gradient": "max"}, ValueError, "Got gradient='max'"),
        ([torch.full((2, 3), 3)], {"spec": "best"}, ValueError, "Got spec='best'"),
    ],
)
def test_arguments_that_are_none(batches, options, error, message):
    model = Net()
    before = state_bytes(model)
    with pytest.raises(error, match=message):
        nn.compress_in_sequence(model, batches, **{"spec": SPEC, **options})
    assert state_bytes(model) == before


def test_inputs_that_are_not_finite(batches):
    class Broken(Net):
        def forward(self, index):
            return self.head(self.up(self.words(index))[..., :WIDTH] * float("nan"))

    model = Broken().double()
    before = state_bytes(model)
    with pytest.raises(ValueError, match=r"an input of 'head.weight' that is not finite"):
        in_sequence(model, batches)
    assert state_bytes(model) == before


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_layer_whose_inputs_never_vary(value):
    class Flat(Net):
        def forward(self, index):
            return self.head(torch.full_like(self.up(self.words(index))[..., :WIDTH], value))

    model = Flat().double()
    weight = model.head.weight.detach().numpy().copy()
    in_sequence(model, [torch.tensor([[5, 6, 7]])])
    assert torch.isfinite(model.head.weight).all()
    expected = TensorSettings(**SETTINGS).quantizer(0).compress(weight).decode()
    # Without anything to learn from, as without examples.
    assert np.array_equal(model.head.weight.detach().numpy(), expected) == (value == 0.0)


def test_progress_names_each_weight_once(batches):
    told = []
    in_sequence(net(), batches, progress=lambda *now: told.append(now))
    total = 200 * WIDTH + 2 * 48 * WIDTH + 32 * WIDTH
    assert [name for name, _, _ in told] == [
        "words.weight", "up.weight", "down.weight", "head.weight", "",
    ]  # fmt: skip
    assert told[-1] == ("", total, total)


def test_a_model_with_nothing_in_sequence(batches):
    model, report = in_sequence(torch.nn.Sequential(torch.nn.Embedding(200, WIDTH)), batches)
    assert [tensor.name for tensor in report.compressed] == ["0.weight"]
    assert model(batches[0]).shape == (20, 12, WIDTH)
