"""nn.save and nn.load refuse by name, and leave models and files as they were."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.codes.storage import open_tensors  # noqa: E402
from pgkmeans_sk.codes.tensor_writer import TensorEntry, write_tensors  # noqa: E402
from tests.mutations import Parts  # noqa: E402
from tests.nn_models import Tied, everything, small_model, state_bytes  # noqa: E402
from tests.tensor_files import files, refused  # noqa: E402

SPEC = {"defaults": {"block_size": 4, "n_codes": 8}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some file"


def saved(path, model=None):
    """A compressed model and its file."""
    model = small_model() if model is None else model
    nn.compress_model(model, SPEC)
    nn.save(model, path)
    return model


def check_refused(model, path, message, **options):
    before = everything(model)
    with refused(message):
        nn.load(model, path, **options)
    assert everything(model) == before


# ------------------------------------------------------------------ loading


def test_all_differences_in_one_message(path):
    saved(path)
    other = torch.nn.Sequential(
        torch.nn.Embedding(60, 16, padding_idx=0),
        torch.nn.Linear(16, 32).half(),
        torch.nn.GELU(),
        torch.nn.Linear(32, 20),
        torch.nn.Linear(3, 2, bias=False),
    )
    content = bytearray(path.read_bytes())
    with open_tensors(path) as file:
        codes = bytes(file.matrix("0.weight").packed)
    content[content.index(codes)] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="some file: got a file that does not go with the"
    ) as error:
        nn.load(other, path)
    assert str(error.value).partition("the model: ")[2].split("; ") == [
        "'4.weight': got none in the file, but expected one",
        "tensor '0.weight.codes': got the CRC-32 "
        + str(error.value).partition("got the CRC-32 ")[2].split("; ")[0],
        "'1.weight': got the dtype F32, but expected F16",
        "'3.weight': got the shape (24, 32), but expected (20, 32)",
        "'1.bias': got the dtype F32, but expected F16",
        "'3.bias': got the shape (24,), but expected (20,)",
    ]
    check_refused(other, path, "'0.weight.codes'")
    check_refused(
        torch.nn.Linear(3, 2), path, "'weight': got none.*'0.weight': got one that the mo"
    )


def test_many_differences_are_counted(path):
    saved(path)
    other = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(50))
    with refused("and [0-9]+ more$") as error:
        nn.load(other, path)
    assert len(str(error.value)) < 3000


def test_what_is_no_file_of_codes(path):
    model = small_model()
    write_tensors(path, [TensorEntry("0.weight", "F32", (1,), np.zeros(1, "f4"))], {"format": "pt"})
    check_refused(model, path, "got a safetensors file with the format 'pt', but expected 'pgkm")
    path.write_bytes(b"")
    check_refused(model, path, "not a valid safetensors file")
    with pytest.raises(FileNotFoundError):
        nn.load(model, path.with_name("other"))


def test_one_tensor_that_the_file_has_twice(path):
    untied = Tied()
    untied.out.weight = torch.nn.Parameter(untied.out.weight.detach() + 1.0)
    saved(path, untied)
    message = "'out.weight': got other values than those of 'words.weight', but expected the same"
    check_refused(Tied(), path, message)
    untied = Tied()
    untied.out.weight = torch.nn.Parameter(untied.out.weight.detach().clone())
    nn.compress_model(untied, SPEC)
    untied.out.parametrizations.weight[0].codes.copy_(untied.words.parametrizations.weight[0].codes)
    nn.save(untied, path)
    tied = nn.load(Tied(), path)  # equal ones do no harm
    assert torch.equal(tied.out.weight, untied.words.weight)


def test_buffers_that_no_file_has(path):
    """Somebody has to give them values; silence would be found out much later."""

    class Positions(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(16, 32)
            self.register_buffer("positions", torch.arange(9), persistent=False)

    saved(path, Positions())
    with torch.device("meta"):
        other = Positions()
    check_refused(other, path, "'positions': got a tensor on the meta device that the file has no")
    other.positions = torch.arange(9)
    nn.load(other, path)
    assert not other.layer.bias.is_meta


def test_codebooks_beyond_the_model_s_dtype(path):
    layer = torch.nn.Linear(16, 32)
    with torch.no_grad():
        layer.weight[3] = 1e30
    nn.compress_model(layer, {"defaults": {**SPEC["defaults"], "codebook_dtype": None}})
    nn.save(layer, path)
    parts = Parts(path.read_bytes())
    description = parts.description()
    description["compressed"]["weight"]["dtype"] = "F16"
    path.write_bytes(parts.seal(json.dumps(description)).joined())
    half = torch.nn.Linear(16, 32)
    half.weight = torch.nn.Parameter(half.weight.half())
    check_refused(
        half, path, "'weight': got a codebook of F32 with values beyond F16, but expected"
    )


def stacked(model):
    nn.compress_model(model, SPEC)
    torch.nn.utils.parametrize.register_parametrization(model[1], "weight", torch.nn.Tanh())
    return model


def lazy(model):
    model[1] = torch.nn.LazyLinear(32)
    return model


def sparse(model):
    model[1].bias = torch.nn.Parameter(torch.zeros(32).to_sparse())
    return model


UNFIT = {
    "stacked": (stacked, "'1.weight': got Tanh on top of its first parametrization, but expected"),
    "lazy": (lazy, "'1.weight': got a parameter that has no shape yet"),
    "sparse": (sparse, "'1.bias': got a Parameter of torch.sparse_coo, but expected a tensor that"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_models_that_cannot_be_loaded_into(case, path):
    saved(path)
    change, message = UNFIT[case]
    model = change(small_model())
    before = [(name, id(p), type(p)) for name, p in model.named_parameters()]
    with refused(message):
        nn.load(model, path)
    assert [(name, id(p), type(p)) for name, p in model.named_parameters()] == before


def test_values_in_many_places_at_once(path):
    plain = small_model()
    plain.register_buffer("wide", torch.zeros(4))
    nn.save(plain, path)
    model = small_model()
    model.register_buffer("wide", torch.zeros(1).expand(4))
    check_refused(model, path, "'wide': got a tensor that has one value in many places")
    with torch.inference_mode():
        model = small_model()
        model.register_buffer("wide", torch.zeros(4))
    check_refused(model, path, "'0.weight': got a tensor made in inference mode")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gradient": "max"}, ValueError, "gradient='max'"),
        ({"model": 3}, TypeError, "Got a int, but expected a torch.nn.Module"),
    ],
)
def test_wrong_arguments(options, error, message, path):
    saved(path)
    with pytest.raises(error, match=message):
        nn.load(**{"model": small_model(), "path": path, **options})
    with pytest.raises(TypeError, match="Got a NoneType, but expected a torch"):
        nn.save(None, path)


def test_not_strict(path):
    model = saved(path)
    other = torch.nn.Sequential(*small_model()[:2], torch.nn.GELU(), torch.nn.Identity())
    other.append(torch.nn.Linear(2, 2))
    head = state_bytes(other[4])
    check_refused(other, path, "'4.weight': got none.*'3.weight': got one that the model does not")
    with pytest.warns(UserWarning, match="some file: left out: '4.weight': .*'3.bias'"):
        nn.load(other, path, strict=False)
    assert state_bytes(other[4]) == head
    assert state_bytes(other[1]) == state_bytes(model[1])
    wrong = torch.nn.Sequential(torch.nn.Embedding(60, 17))
    check_refused(wrong, path, r"model: '0.weight': got the shape \(60, 16\)", strict=False)
    with torch.device("meta"):
        other = torch.nn.Sequential(*other, torch.nn.Linear(2, 2))
    check_refused(other, path, "'5.weight': got a tensor on the meta device", strict=False)


def test_not_strict_with_a_codebook_that_stays_in_use(path):
    """One weight of a group is loaded, the others go on with the codebook that they had."""
    torch.manual_seed(0)
    group = torch.nn.Sequential(*[torch.nn.Linear(16, 24, bias=False) for _ in range(3)])
    nn.compress_model(group, {"defaults": {**SPEC["defaults"], "group": "a"}})
    others = [group[1].weight.detach().clone(), group[2].weight.detach().clone()]
    torch.manual_seed(1)
    first = torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False))
    saved(path, first)
    with pytest.warns(UserWarning, match="left out: '1.weight'.*'2.weight'"):
        nn.load(group, path, strict=False)
    assert torch.equal(group[0].weight, first[0].weight)
    assert torch.equal(group[1].weight, others[0])
    assert torch.equal(group[2].weight, others[1])


# ------------------------------------------------------------------ saving


class Extra(torch.nn.Linear):
    def get_extra_state(self):
        return {"a": 1}


def meta(model):
    return model.to("meta")


def quantized(model):
    model.register_buffer("strange", torch.zeros(3, dtype=torch.complex128))
    return model


def not_finite(model):
    nn.compress_model(model, SPEC)
    with torch.no_grad():
        model[1].parametrizations.weight.original.fill_(float("inf"))
    return model


UNSAVED = {
    "extra state": (lambda m: m.append(Extra(2, 2)), "got '4._extra_state' in the model's state_d"),
    "meta": (meta, "tensor '0.weight': got a tensor without values on meta"),
    "compressed meta": (
        lambda m: nn.compress_model(m, SPEC) and meta(m),
        "tensor '0.weight': got a parameter on the meta device",
    ),
    "lazy": (lazy, "tensor '1.weight': got a tensor without values"),
    "sparse": (sparse, "tensor '1.bias': got a tensor of dtype torch.float32 and torch.sparse_coo"),
    "dtype": (quantized, "tensor 'strange': got a tensor of dtype torch.complex128"),
    "stacked": (stacked, "tensor '1.weight': got other parametrizations on top of its first"),
    "infinity": (not_finite, "tensor '1.weight': Got a codebook with values that are not finite"),
}


@pytest.mark.parametrize("case", UNSAVED)
def test_models_that_cannot_be_saved(case, path):
    path.write_bytes(b"old")
    change, message = UNSAVED[case]
    model = change(small_model())
    with refused(message):
        nn.save(model, path)
    assert files(path.parent) == {path.name: b"old"}
