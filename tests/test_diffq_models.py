"""Models with learned bits: their files, their size as a penalty, copies, compilers, training."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.codes.storage import open_tensors  # noqa: E402
from pgkmeans_sk.nn.diffq_weight import DiffQWeight  # noqa: E402
from pgkmeans_sk.nn.level_weight import LevelWeight  # noqa: E402
from pgkmeans_sk.nn.model_report import report_on  # noqa: E402
from pgkmeans_sk.nn.state import compressed_state  # noqa: E402
from tests.nn_models import Tied, everything, same_bytes, small_model  # noqa: E402
from tests.test_diffq import set_bits  # noqa: E402


class Net(torch.nn.Module):
    """An embedding, a convolution, a transposed one, a buffer, and a ragged last group."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(50, 6, padding_idx=0)
        self.conv = torch.nn.Conv1d(6, 5, 3, padding=1)
        self.norm = torch.nn.BatchNorm1d(5)
        self.back = torch.nn.ConvTranspose1d(5, 4, 3)
        self.out = torch.nn.Linear(4, 3)

    def forward(self, tokens):
        x = self.norm(self.conv(self.words(tokens).movedim(2, 1)))
        return self.out(self.back(torch.relu(x)).mean(2))


def learned(model):
    return [s.weight for s in compressed_state(model) if isinstance(s.weight, DiffQWeight)]


def with_bits(model, **options):
    """Learned bits, all over the range, and not whole."""
    nn.diffq(model, **options)
    rng = np.random.default_rng(0)
    for weight in learned(model):
        low, high = weight.min_bits + 0.01, weight.max_bits - 0.01
        set_bits(weight, rng.uniform(low, high, len(weight.logits)))
    return model


def loads_as(model, plain, path):
    """The file of a model, loaded: the same outputs, levels, and the same bytes again."""
    nn.save(model, path)
    loaded = nn.load(plain, path).eval()
    for state, other in zip(compressed_state(model), compressed_state(loaded), strict=True):
        assert isinstance(other.weight, LevelWeight)
        assert torch.equal(other.weight(other.original), state.weight.dense(state.original))
    assert same_bytes(loaded, path)
    return loaded


TOKENS = torch.tensor([[3, 7, 0, 49], [1, 2, 3, 3]])


# -------------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_saved_and_loaded(dtype, tmp_path):
    model = with_bits(Net().to(dtype)).eval()
    loaded = loads_as(model, Net().to(dtype), tmp_path / "file")
    with torch.no_grad():
        assert torch.equal(loaded.words(TOKENS), model.words(TOKENS))
        if dtype.itemsize > 2:
            assert torch.equal(loaded(TOKENS), model(TOKENS))


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_width(bits, tmp_path):
    """All groups at one width, and one group at another."""
    model = nn.diffq(small_model(), min_bits=1, max_bits=16)
    for weight in learned(model):
        set_bits(weight, min(max(bits, 1.01), 15.99))
        assert set(weight.widths().tolist()) == {bits}
    loads_as(model, small_model(), tmp_path / "file")
    for weight in learned(model):
        set_bits(weight, [9.4, *[min(max(bits, 1.01), 15.99)] * (len(weight.logits) - 1)])
    loads_as(model, small_model(), tmp_path / "file")
    with open_tensors(tmp_path / "file") as file:
        layout = file.compressed["1.weight"].layout
        assert dict(layout.widths) == ({bits: 504, 9: 8} if bits != 9 else {9: 512})


def test_the_file_loads_elsewhere(tmp_path):
    """Into a model with learned bits, on the meta device, of float64 by training on."""
    model = with_bits(Net()).eval()
    nn.save(model, tmp_path / "file")
    for target in (nn.diffq(Net()), Net().to("meta")):
        if any(p.is_meta for p in target.parameters()):
            loaded = nn.load(target, tmp_path / "file", device="cpu")
        else:
            loaded = nn.load(target, tmp_path / "file")
        assert torch.equal(loaded.eval()(TOKENS), model(TOKENS))
        assert not learned(loaded)


def test_loaded_ranges_are_trained(tmp_path):
    model = with_bits(small_model()).eval()
    loaded = loads_as(model, small_model(), tmp_path / "file")
    lists = loaded[1].parametrizations.weight
    assert lists.original.shape == (1, 2)
    codes, widths = lists[0].wide_codes(), lists[0].widths.numpy()
    loaded[1].weight.sum().backward()
    share = codes / np.repeat(2.0**widths - 1, 8).reshape(codes.shape)
    expected = torch.tensor([[(1 - share).sum(), share.sum()]])
    torch.testing.assert_close(lists.original.grad, expected.float())
    with torch.no_grad():
        lists.original.add_(torch.tensor([[-0.25, 0.5]]))
    before = loaded[1].weight.detach().clone()
    again = loads_as(loaded, small_model(), tmp_path / "file")
    assert torch.equal(again[1].weight, before)
    with torch.no_grad():
        lists.original.copy_(lists.original.flip(1))
    with pytest.raises(ValueError, match=r"'1.weight'.*a minimum above the maximum"):
        nn.save(loaded, tmp_path / "other")


def test_loaded_rows_are_looked_up(tmp_path):
    model = with_bits(small_model()).eval()
    loaded = loads_as(model, small_model(), tmp_path / "file")
    tokens = torch.tensor([[5, 0, 59]])
    decoded = []
    weight = loaded[0].parametrizations.weight[0]
    decode = weight.decode
    weight.decode = lambda original, rows=None: decoded.append(rows) or decode(original, rows)
    assert torch.equal(loaded[0](tokens), model[0].weight[tokens])
    assert [rows.tolist() for rows in decoded] == [[5, 0, 59]]


def test_baked_and_cached(tmp_path):
    model = with_bits(Net()).eval()
    expected = model(TOKENS)
    with nn.cached(model):
        assert learned(model)[0].is_cached
        assert torch.equal(model(TOKENS), expected)
    original = model.conv.parametrizations.weight.original
    nn.bake(model)
    assert not learned(model)
    assert model.conv.weight is original
    assert torch.equal(model(TOKENS), expected)
    assert sorted(model.state_dict()) == sorted(Net().state_dict())


def test_tied_weights(tmp_path):
    model = with_bits(Tied())
    loaded = loads_as(model.eval(), Tied(), tmp_path / "file")
    assert torch.equal(loaded(torch.arange(5)), model(torch.arange(5)))
    assert loaded.out.weight.data_ptr() != 0
    with open_tensors(tmp_path / "file") as file:
        assert file.compressed["words.weight"].aliases == ("out.weight",)


def test_state_dict(tmp_path):
    """Weights and logits, for training to go on, without any class in a pickle."""
    model = with_bits(Net())
    model(TOKENS)
    torch.save(model.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    other = nn.diffq(Net())
    other.load_state_dict(state)
    assert torch.equal(other.conv.weight, model.conv.weight)
    assert nn.diffq_bits(other) == nn.diffq_bits(model)
    loaded = loads_as(model, Net(), tmp_path / "file")
    torch.save(loaded.state_dict(), tmp_path / "state")
    again = nn.load(Net(), tmp_path / "file")
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))


def test_what_no_file_can_hold(tmp_path):
    model = with_bits(Net())
    with torch.no_grad():
        model.conv.parametrizations.weight.original[0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"file: tensor 'conv.weight': .*not finite"):
        nn.save(model, tmp_path / "file")
    with torch.no_grad():
        learned(model)[0].logits[0] = torch.nan
    with pytest.raises(ValueError, match=r"'words.weight'.*not finite"):
        nn.save(model, tmp_path / "file")


# -------------------------------------------------------------------- size


@pytest.mark.parametrize("make", [Net, Tied, small_model])
@pytest.mark.parametrize("group_size", [1, 8, 16, 10**6])
def test_the_penalty_is_the_size_of_the_file(make, group_size, tmp_path):
    model = with_bits(make(), group_size=group_size)
    nn.save(model, tmp_path / "file")
    size = (tmp_path / "file").stat().st_size / 2**20
    assert nn.penalty_mb(model, rounded=True).item() == size
    soft = nn.penalty_mb(model).item()
    bits = [(w.bits().double(), w.widths(), w.group_counts()) for w in learned(model)]
    off = sum(((b - w) * n).sum().item() for b, w, n in bits) / 8 / 2**20
    assert soft == pytest.approx(size + off, rel=1e-12)
    report = report_on(model)
    assert report.n_bytes == size * 2**20
    assert report.compressed[0].n_code_words == 0
    assert "bits per weight" in str(report)


def test_the_gradient_of_the_penalty():
    """Of each logit: its values, times the slope of its bits, in MB. The same when rounded."""
    gradients = []
    for rounded in (False, True):
        model = with_bits(Net())
        nn.penalty_mb(model, rounded=rounded).backward()
        gradients.append([w.logits.grad for w in learned(model)])
        for weight, found in zip(learned(model), gradients[-1], strict=True):
            share = torch.sigmoid(weight.logits.detach())
            slope = 13 * share * (1 - share) / 8 / 2**20
            torch.testing.assert_close(found, weight.group_counts() * slope)
            assert bool((found > 0).all())
        assert model.conv.parametrizations.weight.original.grad is None


def test_training_for_size_and_task(tmp_path):
    """Bits go down where they do no harm, and the file with them."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 20)
    labels = (inputs[:, :2].sum(1) > 0).long()  # of twenty inputs two count
    layers = torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)
    model = nn.diffq(torch.nn.Sequential(*layers))
    before = nn.penalty_mb(model).item()
    optimizer = torch.optim.Adam(nn.diffq_parameter_groups(model, logit_lr=0.05), lr=1e-2)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        (loss + 20 * nn.penalty_mb(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert (model(inputs).argmax(1) == labels).float().mean() > 0.97
    assert max(nn.diffq_bits(model).values()) < 4
    nn.save(model, tmp_path / "file")
    size = (tmp_path / "file").stat().st_size / 2**20
    assert size < 0.85 * before
    assert nn.penalty_mb(model).item() == pytest.approx(size, rel=0.01)


# -------------------------------------------------------------------- compilers and copies


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_compiled(noise):
    model = with_bits(Net(), noise=noise)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        model.train(training), compiled.train(training)
        for _ in range(2):
            expected, found = model(TOKENS), compiled(TOKENS)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        expected.square().sum().backward()
        found.square().sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5)
    assert int(learned(twin)[0].n_reads) == int(learned(model)[0].n_reads) == 2


def test_checkpointed_activations_see_the_same_draw():
    from torch.utils.checkpoint import checkpoint

    gradients = []
    for use in (False, True):
        torch.manual_seed(0)
        model = with_bits(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()))
        inputs = torch.linspace(-1, 1, 16).reshape(2, 8)
        out = checkpoint(model, inputs, use_reentrant=False) if use else model(inputs)
        out.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_copies_are_independent():
    model = with_bits(Net())
    before = everything(model)
    other = copy.deepcopy(model)
    nn.remove_diffq(other)
    assert everything(model) == before
    assert torch.equal(model.conv.parametrizations.weight.original, other.conv.weight)
