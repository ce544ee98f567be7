"""compress_model with a calibration: which errors count, and blocks that make up for others."""

import copy

import numpy as np
import pytest

from pgkmeans_sk.feedback import compress_with_feedback
from pgkmeans_sk.spec import TensorSettings

torch = pytest.importorskip("torch")

from pgkmeans_sk import nn  # noqa: E402
from tests.nn_models import state_bytes  # noqa: E402

SETTINGS = {"block_size": 4, "n_codes": 16}


class Words(torch.nn.Module):
    """An embedding, and a layer whose inputs lie near few directions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(300, 32)
        self.out = torch.nn.Linear(32, 64)
        with torch.no_grad():
            directions = torch.randn(4, 32)
            self.words.weight.copy_(torch.randn(300, 4) @ directions + torch.randn(300, 32) / 10)

    def forward(self, index):
        return self.out(self.words(index))


@pytest.fixture(scope="module")
def model():
    return Words()


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    # Low numbers are frequent, and the last third never comes.
    return [torch.rand((20, 30), generator=generator).pow(3).mul(200).long() for _ in range(4)]


@pytest.fixture(scope="module")
def calibration(model, batches):
    return nn.calibrate(model, batches)


def quantizer():
    return TensorSettings(**SETTINGS).quantizer(0)


def compressed(model, calibration, *, words=False, **settings):
    """The model with its layer compressed, or its words."""
    rules = [{"match": "out.*" if words else "words.*", "skip": True}]
    small = copy.deepcopy(model)
    spec = {"defaults": {**SETTINGS, **settings}, "rules": rules}
    nn.compress_model(small, spec, importance=calibration)
    return small


def output_error(model, small, batches):
    return sum(float((model(b) - small(b)).detach().square().mean()) for b in batches)


def test_errors_of_outputs_fall(model, calibration, batches):
    errors = [
        output_error(model, compressed(model, calibration, **settings), batches)
        for settings in ({"importance": None}, {"importance": "block"}, {"feedback": True})
    ]
    assert errors[1] < errors[0]
    assert errors[2] < 0.3 * errors[1]


def test_feedback_is_that_of_the_function(model, calibration):
    small = compressed(model, calibration, feedback=True)
    moment = calibration["out.weight"].full
    matrix = compress_with_feedback(model.out.weight.detach().numpy(), moment, quantizer())
    np.testing.assert_array_equal(small.out.weight.detach().numpy(), matrix.decode())


@pytest.mark.parametrize("importance", ["block", "column", None])
def test_importance_is_that_of_the_quantizer(model, calibration, importance):
    small = compressed(model, calibration, importance=importance)
    known = {
        "block": calibration.block_metric("out.weight", 4),
        "column": calibration.column_importance("out.weight"),
        None: None,
    }
    weight = model.out.weight.detach().numpy()
    matrix = quantizer().compress(weight, importance=known[importance])
    np.testing.assert_array_equal(small.out.weight.detach().numpy(), matrix.decode())


@pytest.mark.parametrize("feedback", [True, False])
def test_rows_of_embeddings_count_by_how_often_they_are_looked_up(model, calibration, feedback):
    small = compressed(model, calibration, words=True, feedback=feedback)
    weights = calibration.row_weights("words.weight")
    assert weights[:10].mean() > 3 * weights[-100:].mean() == 3.0
    matrix = quantizer().compress(model.words.weight.detach().numpy(), sample_weight=weights)
    np.testing.assert_array_equal(small.words.weight.detach().numpy(), matrix.decode())


def test_by_fisher_information(model, batches):
    fisher = nn.calibrate(
        model, batches, kind="fisher", loss=lambda model, batch: model(batch).square().mean()
    )
    small = compressed(model, fisher)
    matrix = quantizer().compress(
        model.out.weight.detach().numpy(),
        sample_weight=fisher.row_weights("out.weight"),
        importance=fisher.column_importance("out.weight"),
    )
    np.testing.assert_array_equal(small.out.weight.detach().numpy(), matrix.decode())


def test_a_rotation_takes_no_metric_of_blocks(model, calibration):
    small = compressed(model, calibration, rotation="hadamard")
    other = compressed(model, None, rotation="hadamard")
    assert torch.equal(small.out.weight, other.out.weight)


def test_weights_without_a_record_are_compressed_as_without(model, batches):
    some = nn.calibrate(model, batches, names="words.*")
    small = compressed(model, some, feedback=True)
    assert torch.equal(small.out.weight, compressed(model, None).out.weight)


def test_auto():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(2000, 48), torch.nn.Linear(48, 256))
    known = nn.calibrate(model, [torch.randint(2000, (20, 50))])
    report = nn.compress_model(model, "auto", importance=known)
    assert [t.name for t in report.compressed] == ["0.weight", "1.weight"]
    parts = [model[i].parametrizations.weight for i in range(2)]
    assert [tuple(part.original.shape) for part in parts] == [(1, 1, 256, 6), (1, 1, 256, 3)]
    assert parts[0][0].row_scales is not None
    assert parts[1][0].column_scales is not None  # of feedback


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_stages": 2}, "weight 'out.weight': Got n_stages=2, but expected 1"),
        ({"codebook": "per_block"}, "weight 'out.weight': Got codebook='per_block'"),
        ({"group": "a"}, "feedback=True for 'out.weight' of the group 'a'"),
    ],
)
def test_what_feedback_cannot_have(model, calibration, settings, message):
    before = state_bytes(model)
    with pytest.raises(ValueError, match=message):
        compressed(model, calibration, feedback=True, **settings)
    assert state_bytes(model) == before
