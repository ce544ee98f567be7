"""compress_model: what is compressed, how, and that nothing else changes."""

import copy

import numpy as np
import pytest

from pgkmeans_sk import ProductQuantizer, Spec
from pgkmeans_sk.spec import TensorSettings

torch = pytest.importorskip("torch")

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.presets import ipq_spec  # noqa: E402
from tests.nn_models import Tied, small_model, state_bytes  # noqa: E402


def spec(*rules, **settings):
    return {"defaults": {"block_size": 4, "n_codes": 8, **settings}, "rules": list(rules)}


def compressed_names(report):
    return [name for tensor in report.compressed for name in (tensor.name, *tensor.aliases)]


def codebook_of(module, name="weight"):
    return module.parametrizations[name].original


def test_codes_are_those_of_the_quantizer():
    model = small_model()
    weight = model[1].weight.detach().numpy().copy()
    nn.compress_model(model, spec())
    quantizer = TensorSettings(block_size=4, n_codes=8).quantizer(0)
    matrix = quantizer.compress(weight)
    np.testing.assert_array_equal(model[1].parametrizations.weight[0].wide_codes(), matrix.codes())
    np.testing.assert_array_equal(model[1].weight.detach().numpy(), matrix.decode())


def test_parameters_stay_the_same_objects():
    model = small_model()
    parameters = dict(model.named_parameters())
    before = state_bytes(model)
    nn.compress_model(model, spec())
    assert codebook_of(model[1]) is parameters["1.weight"]
    assert model[1].bias is parameters["1.bias"]
    after = state_bytes(model)
    assert after["1.bias"] == before["1.bias"]
    assert type(nn.bake(model)[1]) is torch.nn.Linear
    assert dict(model.named_parameters()) == parameters
    assert list(state_bytes(model)) == list(before)


def test_settings_by_name_and_type():
    model = torch.nn.ModuleDict(
        {
            "words": torch.nn.Embedding(60, 16),
            "first": torch.nn.Linear(16, 32),
            "second": torch.nn.Linear(32, 32),
            "image": torch.nn.Conv2d(8, 16, 3),
            "norm": torch.nn.LayerNorm(32),
        }
    )
    report = nn.compress_model(
        model,
        spec(
            {"type": "Conv2d", "block_size": 9},
            {"type": "Linear", "match": "sec*", "n_codes": 4},
            {"regex": "words.*", "skip": True},
        ),
    )
    assert compressed_names(report) == ["first.weight", "second.weight", "image.weight"]
    shapes = [tuple(codebook_of(model[n]).shape) for n in ("first", "second", "image")]
    assert shapes == [(1, 1, 8, 4), (1, 1, 4, 4), (1, 1, 8, 9)]
    reasons = {tensor.name: tensor.carried_because for tensor in report.carried}
    assert reasons["words.weight"] == "skipped by the spec"
    assert reasons["norm.weight"] == "fewer than 2 axes"
    assert report.unused_rules == ()


def test_rules_that_fit_nothing_are_reported():
    report = nn.compress_model(
        small_model(), spec({"type": "Conv2d", "block_size": 9}, {"match": "x*", "n_codes": 4})
    )
    assert report.unused_rules == ("type 'Conv2d'", "match 'x*'")


class Unknown(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(40, 3, 8))
        self.register_buffer("steps", torch.zeros(40, 8))
        self.cell = torch.nn.LSTM(8, 16)


def test_other_tensors_are_compressed_when_they_are_named():
    model = Unknown()
    assert nn.compress_model(model, spec()).compressed == ()
    rules = {"match": "*", "skip": False}
    report = nn.compress_model(model, spec(rules))
    assert compressed_names(report) == ["table"]
    assert model.table.shape == (40, 3, 8)
    reasons = {tensor.name: tensor.carried_because for tensor in report.carried}
    assert reasons["steps"] == "a buffer"
    assert "recurrent" in reasons["cell.weight_ih_l0"]


def test_what_is_too_small_or_not_finite_is_left():
    model = torch.nn.ModuleList(
        [torch.nn.Linear(8, 3), torch.nn.Linear(4, 8).half(), torch.nn.Linear(16, 32)]
    )
    with torch.no_grad():
        model[2].weight[3, 4] = float("inf")
    before = state_bytes(model)
    report = nn.compress_model(model, spec())
    reasons = [tensor.carried_because for tensor in report.carried if "weight" in tensor.name]
    assert reasons == [
        "fewer blocks than n_codes=8",
        "codes would take more bytes",
        "holds NaN or infinity",
    ]
    assert state_bytes(model) == before


def test_one_codebook_for_a_group():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(18, 24) for _ in range(4)])
    plain = [layer.weight.detach().numpy().copy() for layer in model]
    report = nn.compress_model(model, spec({"regex": "[012].weight", "group": "middle"}))
    books = [codebook_of(layer) for layer in model]
    assert books[0] is books[1] is books[2]
    assert books[3] is not books[0]
    assert len(list(model.parameters())) == 2 + 4
    blocks = np.concatenate([weight[:, :16].reshape(-1, 4) for weight in plain[:3]])
    quantizer = TensorSettings(block_size=4, n_codes=8).quantizer(0).fit(blocks)
    np.testing.assert_array_equal(books[0].detach().numpy(), quantizer.codebooks_)
    for layer, weight in zip(model[:3], plain, strict=False):
        parametrization = layer.parametrizations.weight[0]
        decoder = parametrization.decoder(books[0])
        expected = ProductQuantizer.from_decoder(decoder).transform(weight)
        np.testing.assert_array_equal(parametrization.wide_codes(), expected)
        assert int(parametrization.counts.sum()) == 3 * 24 * 5
    assert report.n_unused_words == 0

    copied = copy.deepcopy(model)
    assert codebook_of(copied[0]) is codebook_of(copied[2])
    copied[0].parametrizations.weight[0].reassign(books[0], torch.zeros(24, 18))
    assert int(copied[1].parametrizations.weight[0].counts.sum()) == 3 * 24 * 5
    assert not torch.equal(
        copied[1].parametrizations.weight[0].counts, model[1].parametrizations.weight[0].counts
    )
    expected = [layer.weight.detach() for layer in model]
    baked = nn.bake(model)
    assert len({id(layer.weight) for layer in baked}) == 4
    for layer, weight in zip(baked, expected, strict=True):
        assert torch.equal(layer.weight, weight)


def test_a_padding_row_of_zeros_stays_one():
    for settings in ({}, {"codebook": "per_block"}, {"n_stages": 2}, {"scale": "row"}):
        model = small_model()
        report = nn.compress_model(model, spec(**settings))
        assert not model[0].weight[0].any()
        lost = torch.linalg.norm(model[0].weight - small_model()[0].weight)
        relative = lost / torch.linalg.norm(small_model()[0].weight)
        assert report.compressed[0].relative_error == pytest.approx(relative.item(), rel=1e-5)
        assert model[0].weight[1:].any(dim=1).all()
        assert model[0].padding_idx == 0
        assert model[0].parametrizations.weight[0].n_unused == 0
        model(torch.zeros(2, 3, dtype=torch.int64)).sum().backward()
        assert not codebook_of(model[0]).grad.any()


def test_padding_of_an_embedding_that_is_tied_to_a_layer_before_it():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.out = torch.nn.Linear(16, 60, bias=False)
            self.words = torch.nn.Embedding(60, 16, padding_idx=3)
            self.out.weight = self.words.weight

    torch.manual_seed(0)
    model = Tied()
    nn.compress_model(model, spec())
    assert not model.words.weight[3].any()
    assert torch.equal(model.out.weight, model.words.weight)


def test_a_padding_row_of_numbers_is_compressed_like_others():
    model = small_model()
    with torch.no_grad():
        model[0].weight[0] = 1.0
    weight = model[0].weight.detach().numpy().copy()
    nn.compress_model(model, spec())
    matrix = TensorSettings(block_size=4, n_codes=8).quantizer(0).compress(weight)
    np.testing.assert_array_equal(model[0].weight.detach().numpy(), matrix.decode())


def test_ties_are_found_and_kept():
    model = Tied()
    with pytest.raises(ValueError, match=r"'words.weight' and 'out.weight', but expected equal"):
        nn.compress_model(model, spec({"match": "out.*", "n_codes": 4}))
    report = nn.compress_model(model, spec())
    assert compressed_names(report)[:2] == ["words.weight", "out.weight"]
    assert report.compressed[0].original_bytes == 2 * 60 * 16 * 4


def test_a_module_with_two_names():
    shared = torch.nn.Linear(16, 32)
    model = torch.nn.ModuleDict({"one": shared, "other": shared})
    report = nn.compress_model(model, spec())
    assert compressed_names(report) == ["one.weight", "other.weight"]
    assert model["one"].weight.shape == (32, 16)


def test_what_is_compressed_stays_so():
    model = small_model()
    nn.compress_model(model, spec({"match": "0.*", "skip": True}))
    before = state_bytes(model)
    report = nn.compress_model(model, spec(n_codes=4))
    assert [t.name for t in report.compressed] == ["0.weight", "1.weight", "3.weight"]
    after = state_bytes(model)
    kept = [name for name in before if name.startswith(("1.", "3."))]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert codebook_of(model[0]).shape[2] == 4


def test_foreign_parametrizations_are_left_alone():
    model = small_model()
    torch.nn.utils.parametrizations.weight_norm(model[1])
    report = nn.compress_model(model, spec())
    assert compressed_names(report) == ["0.weight", "3.weight"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spec": {"default": {}}}, ValueError, "the key 'default' in a spec"),
        ({"spec": spec({"match": "*", "blocksize": 2})}, ValueError, "did you mean 'block_size'"),
        ({"spec": "best"}, ValueError, "spec='best', but expected the path of a YAML file"),
        ({"spec": "auto"}, ValueError, "without importance"),
        ({"spec": 3}, TypeError, "a spec of type int"),
        ({"gradient": "median"}, ValueError, "gradient='median'"),
        ({"random_state": -1}, ValueError, "random_state=-1"),
        ({"importance": {}}, TypeError, "importance of type dict"),
        ({"feedback": True}, ValueError, "feedback=True for '0.weight' without importance"),
        (
            {"spec": spec(group="a", scale="row")},
            ValueError,
            "scale='row' for '0.weight' of the gr",
        ),
        (
            {"spec": spec({"match": "3*", "n_codes": 16}, group="a")},
            ValueError,
            "different settings for '0.weight' and '3.weight', but expected equal ones in the gr",
        ),
        ({"spec": spec(group="a", block_size=32)}, ValueError, "'0.weight' with 16 columns"),
    ],
)
def test_errors_leave_the_model_as_it_was(arguments, error, message):
    model = small_model()
    before = state_bytes(model)
    arguments = {"spec": spec(), **arguments}
    with pytest.raises(error, match=message):
        nn.compress_model(model, **arguments)
    assert state_bytes(model) == before
    assert not any(hasattr(module, "parametrizations") for module in model.modules())


def test_a_codebook_that_its_dtype_cannot_hold():
    model = small_model()
    with torch.no_grad():
        model[3].weight.mul_(1e9)
    before = state_bytes(model)
    with pytest.raises(ValueError, match=r"weight '3.weight': .*codebook_dtype='float16'"):
        nn.compress_model(model, spec())
    assert state_bytes(model) == before


def test_weights_without_values():
    with torch.device("meta"):
        model = torch.nn.Linear(64, 64)
    with pytest.raises(ValueError, match="'weight' on the meta device"):
        nn.compress_model(model, spec())


def test_from_yaml(tmp_path):
    pytest.importorskip("yaml")
    path = tmp_path / "spec.yaml"
    path.write_text("defaults: {n_codes: 8, block_size: 4}\nrules:\n- {type: Linear, n_codes: 4}\n")
    one, other = small_model(), small_model()
    nn.compress_model(one, path)
    nn.compress_model(other, spec({"type": "Linear", "n_codes": 4}))
    assert state_bytes(one) == state_bytes(other)


def test_the_same_bits_each_time():
    states = []
    for _ in range(2):
        model = small_model()
        nn.compress_model(model, Spec.of(spec()), random_state=3)
        states.append(state_bytes(model))
    assert states[0] == states[1]


def test_blocks_of_ipq():
    model = torch.nn.ModuleDict(
        {
            "self_attention": torch.nn.Linear(16, 16),
            "fc": torch.nn.Linear(16, 16),
            "conv": torch.nn.Conv2d(8, 16, 3),
            "point": torch.nn.Conv2d(8, 16, 1),
            "back": torch.nn.ConvTranspose2d(8, 16, 3),
        }
    )
    found = ipq_spec(model)
    sizes = {name: found.settings_for(f"{name}.weight").block_size for name in model}
    assert sizes == {"self_attention": 4, "fc": 8, "conv": 9, "point": 4, "back": 8}
    for name in (
        "encoder.layer.0.attention.self.query.weight",
        "transformer.h.3.attn.c_attn.weight",
        "decoder.layers.1.self_attn.k_proj.weight",
        "encoder.layer.0.crossattention.self.query.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
    ):
        assert found.settings_for(name).block_size == 4, name
    assert ipq_spec(nn.quant_noise(model, p=0.1)) == found
    assert nn.compress_model(model, "ipq").carried


def test_report():
    told = []
    report = nn.compress_model(
        small_model(), spec(), progress=lambda *told_of: told.append(told_of)
    )
    n_values = 60 * 16 + 16 * 32 + 32 * 24
    assert told[0] == ("0.weight", 0, n_values)
    assert told[-1] == ("", n_values, n_values)
    first = report.compressed[0]
    # 3 bits for each of 60 * 4 codes, and 8 words of 4 half-precision numbers
    assert first.stored_bytes == 60 * 4 * 3 // 8 + 8 * 4 * 2
    assert first.original_bytes == 60 * 16 * 4
    assert first.bits_per_weight == 8 * first.stored_bytes / (60 * 16)
    assert first.seconds > 0
    assert report.n_unused_words == 0
    text = str(report)
    assert "0.weight" in text
    assert f"{report.original_bytes} bytes -> {report.n_bytes} bytes" in text
    assert report.to_dict()["tensors"][0]["name"] == "0.weight"


def test_report_as_a_data_frame():
    pytest.importorskip("pandas")
    frame = nn.compress_model(small_model(), spec()).to_frame()
    assert frame.loc["0.weight", "stored_bytes"] == 154
    assert frame.loc["1.bias", "carried_because"] == "fewer than 2 axes"


def test_report_as_a_table(capsys):
    rich = pytest.importorskip("rich")
    rich.print(nn.compress_model(small_model(), spec()))
    assert "0.weight" in capsys.readouterr().out
