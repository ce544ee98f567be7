"""IterativePQ: one group after the other, with training in between."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch.nn import (  # noqa: E402 - only if torch is there
    BatchNorm2d,
    Conv2d,
    Embedding,
    Flatten,
    LayerNorm,
    Linear,
    Module,
    ReLU,
    Sequential,
    TransformerEncoderLayer,
)
from torch.nn.functional import cross_entropy  # noqa: E402

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.state import compressed_state  # noqa: E402
from pgkmeans_sk.spec import Spec  # noqa: E402

SPEC = {"defaults": {"n_codes": 8, "block_size": 4}}
TOKENS = torch.arange(48).reshape(8, 6) % 40


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads of torch that wait for each other take ten times as long for models as small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tiny(Module):
    """Token ids (n, length) to logits (n, 3)."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.embed = Embedding(40, 16)
        self.layer = TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.norm = LayerNorm(16)
        self.head = Linear(16, 3)
        self.to(dtype)

    def forward(self, tokens):
        return self.head(self.norm(self.layer(self.embed(tokens)).mean(dim=1)))


def tiny(dtype=torch.float32):
    torch.manual_seed(0)
    return Tiny(dtype)


def convolutional():
    torch.manual_seed(0)
    return Sequential(
        Conv2d(2, 8, 3), BatchNorm2d(8), ReLU(), Conv2d(8, 8, 3, groups=2), Flatten(), Linear(32, 3)
    )


def mlp():
    torch.manual_seed(0)
    return Sequential(Linear(12, 24), ReLU(), Linear(24, 24), ReLU(), Linear(24, 3))


IMAGES = torch.linspace(-1, 1, 8 * 2 * 6 * 6).reshape(8, 2, 6, 6)
VECTORS = torch.linspace(-2, 2, 8 * 12).reshape(8, 12).sin()
MODELS = {
    "transformer": (tiny, TOKENS, "ipq"),
    "convolutions": (convolutional, IMAGES, "ipq"),
    "mlp": (mlp, VECTORS, "input_to_output"),
}
LABELS = torch.arange(8) % 3


def train(model, stage, inputs=TOKENS, n_steps=3):
    optimizer = torch.optim.SGD(stage.parameter_groups({"lr": 0.05}), lr=0.02, momentum=0.9)
    model.train()
    for _ in range(n_steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), LABELS).backward()
        optimizer.step()


def compressed_names(model):
    return {state.name for state in compressed_state(model)}


@pytest.mark.parametrize("kind", MODELS)
def test_groups_are_compressed_in_their_order_until_all_is(kind):
    make, inputs, groups = MODELS[kind]
    model, whole = make(), make()
    iterative = nn.IterativePQ(model, SPEC, groups=groups)
    done = set()
    for number, stage in enumerate(iterative, start=1):
        assert (stage.number, stage.n_stages, stage.is_last) == (
            number,
            len(iterative),
            number == len(iterative),
        )
        assert stage.name == iterative.groups[number - 1].name
        assert stage.tensors == iterative.groups[number - 1].tensors
        done |= set(stage.tensors)
        assert compressed_names(model) == done == {t.name for t in stage.report.compressed}
        train(model, stage, inputs)
    assert number == len(iterative) > 1
    nn.compress_model(whole, SPEC)
    assert compressed_names(whole) == done

    model.eval()
    outputs = model(inputs)
    assert torch.equal(nn.bake(copy.deepcopy(model))(inputs), outputs)


@pytest.mark.parametrize("kind", MODELS)
def test_without_training_it_is_compressing_at_once(kind):
    make, _, groups = MODELS[kind]
    model, whole = make(), make()
    nn.IterativePQ(model, SPEC, groups=groups, random_state=3).run(lambda model, stage: None)
    nn.compress_model(whole, SPEC, random_state=3)
    assert_same_state(model, whole)


def assert_same_state(model, other):
    state, expected = model.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    for name in state:
        assert torch.equal(state[name], expected[name]), name


def test_training_moves_codebooks_and_weights_that_are_left_and_no_codes():
    model = tiny()
    before = {}
    for stage in nn.IterativePQ(model, SPEC):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train(model, stage)
        for name, value in model.state_dict().items():
            is_trained = not name.endswith((".codes", ".counts"))
            assert torch.equal(value, before[name]) != is_trained, name
    assert any(name.endswith(".codes") for name in before)


def test_gradients_of_code_words_are_means_or_sums():
    model, other = tiny(torch.float64), tiny(torch.float64)
    (stage, *_), (other_stage, *_) = (
        list(nn.IterativePQ(m, SPEC, gradient=g)) for m, g in ((model, "mean"), (other, "sum"))
    )
    for each in (model, other):
        cross_entropy(each(TOKENS), LABELS).backward()
    for mean, total in zip(stage.codebooks, other_stage.codebooks, strict=True):
        (state,) = (s for s in compressed_state(model) if s.original is mean)
        assert float(total.grad.abs().max()) > 0
        torch.testing.assert_close(mean.grad * state.weight.counts.clamp(min=1), total.grad)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor"])
def test_an_optimizer_goes_on_with_what_it_knows_of_other_weights(name):
    model = tiny()
    kinds = {"SGD": {"momentum": 0.9}, "AdamW": {}, "Adafactor": {}}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3, **kinds[name])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    known = set(optimizer.state)
    for stage in nn.IterativePQ(model, SPEC):
        kept = {
            p: s for p, s in optimizer.state.items() if all(p is not c for c in stage.codebooks)
        }
        stage.reset_optimizer_state(optimizer)
        assert set(optimizer.state) == set(kept)
        assert len(stage.codebooks) == len(stage.tensors)
        assert known == set(kept) | set(stage.codebooks)
        assert all(optimizer.state[p] is kept[p] for p in kept)
        optimizer.zero_grad()
        cross_entropy(model(TOKENS), LABELS).backward()
        optimizer.step()  # with an old momentum the shapes would not fit
        assert set(optimizer.state) == known


def test_parameters_that_gave_way_to_a_shared_codebook_leave_the_optimizer():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    spec = {**SPEC, "rules": [{"match": "[02].weight", "group": "both"}]}
    first, second = model[0].weight, model[2].weight
    stages = iter(nn.IterativePQ(model, spec, groups={"both": "[02].*"}))
    stage = next(stages)
    assert stage.codebooks == (first,)
    assert stage.retired == (second,)
    stage.reset_optimizer_state(optimizer)
    left = optimizer.param_groups[0]["params"]
    assert {id(p) for p in left} == {id(p) for p in model.parameters()}
    assert next(stages).tensors == ("4.weight",)
    assert list(stages) == []


def test_codebooks_and_others_can_have_options_of_their_own():
    model = tiny()
    model.norm.requires_grad_(False)
    for stage in nn.IterativePQ(model, SPEC):
        books, others = stage.parameter_groups({"lr": 0.05}, {"lr": 0.01, "weight_decay": 0.1})
        assert books.keys() == {"params", "lr"}
        assert (books["lr"], others["lr"], others["weight_decay"]) == (0.05, 0.01, 0.1)
        ids = {id(state.original) for state in compressed_state(model)}
        assert {id(p) for p in books["params"]} == ids
        together = [id(p) for p in (*books["params"], *others["params"])]
        assert sorted(together) == sorted(id(p) for p in stage.parameters())
        assert not any(p is q for p in stage.parameters() for q in model.norm.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in ids)
    (only,) = stage.parameter_groups()
    assert {id(p) for p in only["params"]} == ids


def test_a_calibration_can_be_made_anew_for_each_group():
    seen = []

    def calibrated(model):
        seen.append((model, compressed_names(model)))
        return nn.calibrate(model, [TOKENS])

    model, other, fixed, plain = tiny(), tiny(), tiny(), tiny()
    iterative = nn.IterativePQ(model, SPEC, importance=calibrated)
    assert seen == []
    groups = [stage.tensors for stage in iterative]
    done = [{name for names in groups[:i] for name in names} for i in range(len(groups))]
    assert [names for _, names in seen] == done
    assert all(each is model for each, _ in seen)

    for names in groups:
        nn.compress_model(
            other, Spec.of(SPEC).only(names), importance=nn.calibrate(other, [TOKENS])
        )
    assert_same_state(model, other)
    known = nn.calibrate(fixed, [TOKENS])
    nn.IterativePQ(fixed, SPEC, importance=known).run(lambda model, stage: None)
    nn.compress_model(plain, SPEC)
    for name in ("embed", "head"):  # counted by tokens, and by inputs that have changed since
        weights = [getattr(each, name).weight for each in (model, fixed, plain)]
        assert not torch.equal(weights[0], weights[2])
        assert torch.equal(weights[0], weights[1]) == (name == "embed")


def test_what_is_compressed_already_counts_as_done():
    model = tiny()
    nn.compress_model(model, Spec.of(SPEC).only(["*linear*"]))
    iterative = nn.IterativePQ(model, SPEC)
    assert [group.name for group in iterative.groups] == ["embeddings", "attention", "others"]
    for _ in iterative:
        break
    assert [group.name for group in iterative.remaining] == ["attention", "others"]
    assert [stage.number for stage in iterative] == [2, 3]
    assert list(iterative) == []
    assert list(nn.IterativePQ(model, SPEC)) == []


def test_noise_stays_until_the_turn_of_its_group():
    model = nn.quant_noise(tiny(), p=0.2, block_size=4)
    all_names = set(nn.noise_rates(model))
    plain = tiny()
    done = set()
    for stage in nn.IterativePQ(model, SPEC):
        done |= set(stage.tensors)
        assert set(nn.noise_rates(model)) == all_names - done
        if "embed.weight" not in done:
            assert not torch.equal(model.embed.weight, plain.embed.weight)
            model.eval()
            assert torch.equal(model.embed.weight, plain.embed.weight)
            model.train()
    assert done == all_names
    nn.compress_model(plain, SPEC)
    for name, value in nn.bake(model).state_dict().items():
        assert torch.equal(value, nn.bake(plain).state_dict()[name])


def test_feedback_is_that_of_compress_model():
    model, whole = tiny(), tiny()
    for each in (model, whole):
        each.eval()
    known = nn.calibrate(whole, [TOKENS])
    nn.IterativePQ(model, SPEC, importance=known, feedback=True).run(lambda model, stage: None)
    nn.compress_model(whole, SPEC, importance=known, feedback=True)
    assert_same_state(model, whole)


def test_reports_say_what_is_to_come_and_name_rules_that_fit_nothing():
    spec = {**SPEC, "rules": [{"match": "head.*", "skip": True}, {"match": "typo", "skip": True}]}
    reports = [stage.report for stage in nn.IterativePQ(tiny(), spec)]
    reasons = [{t.name: t.carried_because for t in report.carried} for report in reports]
    later = "in the group 'attention', which is compressed later"
    assert reasons[0]["layer.self_attn.in_proj_weight"] == later
    assert "layer.self_attn.in_proj_weight" not in reasons[-1]
    assert {report.unused_rules for report in reports} == {("match 'typo'",)}


def test_the_spec_is_that_of_the_model_as_it_was():
    model = Sequential(Conv2d(16, 64, 3), Conv2d(64, 64, 1), Conv2d(64, 16, 3))
    sizes = {}
    for _ in nn.IterativePQ(model, "ipq"):  # which looks at kernels, of which none is left at last
        sizes = {s.name: s.original.shape[3] for s in compressed_state(model)}
    assert sizes == {"0.weight": 9, "1.weight": 4, "2.weight": 9}


def test_a_weight_that_training_ruined_is_named():
    model = tiny()
    stages = iter(nn.IterativePQ(model, SPEC))
    next(stages)
    model.embed.weight.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"'embed\.weight' of the group 'embeddings', which holds"):
        next(stages)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": 3}, TypeError, "model of type int"),
        ({"spec": {"defaults": {"n_code": 4}}}, ValueError, "did you mean 'n_codes'"),
        ({"spec": "pq"}, ValueError, "spec='pq'"),
        ({"spec": "auto"}, ValueError, 'spec="auto" without importance'),
        ({"spec": {"defaults": {"skip": True}}}, ValueError, "without any weight"),
        ({"groups": "fnn"}, ValueError, "groups='fnn'"),
        ({"groups": ["*.fc7.*"]}, ValueError, r"the group '\*\.fc7\.\*'"),
        ({"importance": 3}, TypeError, "importance of type int"),
        ({"feedback": True}, ValueError, "feedback=True for 'embed.weight' without importance"),
        ({"gradient": "median"}, ValueError, "gradient='median'"),
        ({"random_state": -1}, ValueError, "random_state=-1"),
        ({"checkpoint": "no/such/folder/file"}, ValueError, "a folder that exists"),
        ({"checkpoint": "."}, ValueError, "a folder, but expected a file's name"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error, message):
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = {"model": model, "spec": SPEC, **options}
    with pytest.raises(error, match=message):
        nn.IterativePQ(given.pop("model"), given.pop("spec"), **given)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


def test_a_function_that_is_none_is_refused_before_any_work():
    model = tiny()
    with pytest.raises(TypeError, match="train=None"):
        nn.IterativePQ(model, SPEC).run(None)
    assert compressed_names(model) == set()
