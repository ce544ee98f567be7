"""The state of a model in training, written and read to the last bit."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch.nn import Embedding, Linear, Module, Sequential  # noqa: E402 - only if torch is there

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.codes.tensor_file import TensorFile  # noqa: E402
from pgkmeans_sk.nn.state import compressed_state  # noqa: E402
from pgkmeans_sk.nn.training_state import read_facts, read_state, write_state  # noqa: E402
from pgkmeans_sk.spec import Spec  # noqa: E402

SPEC = {"defaults": {"n_codes": 8, "block_size": 4}}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads of torch that wait for each other take ten times as long for models as small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bits(model):
    flat = {name: value.contiguous().reshape(-1) for name, value in model.state_dict().items()}
    return {name: (value.dtype, value.view(torch.uint8).tolist()) for name, value in flat.items()}


class Kinds(Module):
    """Weights of all kinds, tied ones as well."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embed = Embedding(64, 48, padding_idx=0)
        self.layers = Sequential(Linear(48, 48), Linear(48, 48), Linear(48, 48))
        self.conv = torch.nn.ConvTranspose1d(48, 16, 3)
        self.out = Linear(48, 64, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("count", torch.tensor(3))
        self.to(dtype)

    def forward(self, tokens):
        found = self.layers(self.embed(tokens))
        return self.out(found).square().mean() + self.conv(found.mT).square().mean()


def kinds(dtype, seed=0):
    torch.manual_seed(seed)
    return Kinds(dtype)


VARIANTS = {
    "plain": {},
    "wide codes": {"n_codes": 260, "block_size": 1, "codebook_dtype": None},
    "books": {"codebook": "per_block", "n_codes": 4},
    "residual, scaled": {"n_stages": 2, "scale": "row", "n_codes": 4},
    "rotated": {"rotation": "hadamard", "n_codes": 4},
}
WHERE = {"regex": r"layers\.[12].weight", "group": "shared"}


def spec_of(variant):
    base = {"n_codes": 8, "block_size": 4, **VARIANTS[variant]}
    rules = [WHERE] if variant == "plain" else []
    return {"defaults": base, "rules": [*rules, {"match": "layers.0.*", "skip": True}]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_is_read_to_the_last_bit(variant, dtype, tmp_path):
    model, other = kinds(dtype), kinds(dtype, seed=1)
    nn.compress_model(model, spec_of(variant))
    assert len(compressed_state(model)) == 4
    for parameter in model.parameters():  # as training leaves them: not what their codes store
        parameter.data += torch.rand_like(parameter) * 1e-3
    write_state(model, tmp_path / "file", {"a": 1})
    assert read_facts(tmp_path / "file") == {"a": 1}
    parameters = list(other.parameters())
    read_state(other, tmp_path / "file")
    assert bits(other) == bits(model)
    assert (
        other.out.parametrizations.weight.original is other.embed.parametrizations.weight.original
    )
    assert {id(p) for p in other.parameters()} <= {id(p) for p in parameters}
    assert len(list(other.parameters())) == len(parameters) - (variant == "plain")

    tokens = torch.arange(64).reshape(4, 16)
    for each in (model, other):
        each.zero_grad()
        each(tokens).backward()
    for parameter, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)
    for state, expected in zip(compressed_state(other), compressed_state(model), strict=True):
        assert torch.equal(state.weight.counts, expected.weight.counts)
        assert state.description() == expected.description()
        assert state.weight.relative_error == expected.weight.relative_error
    write_state(other, tmp_path / "again", {"a": 1})
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()


def test_a_state_in_which_less_is_compressed_takes_codebooks_back(tmp_path):
    model, other = kinds(torch.float32), kinds(torch.float32, seed=1)
    nn.compress_model(model, Spec.of(SPEC).only(["conv.*"]))
    write_state(model, tmp_path / "file", {})
    nn.compress_model(other, Spec.of(SPEC).only(["embed.*", "out.*", "conv.*"]))
    read_state(other, tmp_path / "file")
    assert bits(other) == bits(model)
    assert other.out.weight is other.embed.weight


def test_a_stored_stage_holds_tied_weights_once(tmp_path):
    write_state(kinds(torch.float32), tmp_path / "file", {})
    with TensorFile(tmp_path / "file") as file:
        assert "embed.weight" in file
        assert "out.weight" not in file


def test_a_state_that_no_file_can_hold_is_refused_before_any_work(tmp_path):
    model = kinds(torch.float32)
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"'phase' of torch\.complex128 in the model's state"):
        nn.IterativePQ(model, SPEC, checkpoint=tmp_path / "file")
    nn.IterativePQ(model, SPEC)
