"""calibrate leaves a model as it was, refuses what it cannot use, and knows Fisher information."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pgkmeans_sk import nn  # noqa: E402


def model_with_everything():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(9, 4),
        torch.nn.Linear(4, 6),
        torch.nn.BatchNorm1d(5),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(6, 3),
    )
    model[2].eval()  # frozen, as is often done
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones(3, 6)
    model[1].register_forward_pre_hook(lambda module, args: None)
    return model


def tokens(n, seed=0):
    return torch.randint(9, (n, 5), generator=torch.Generator().manual_seed(seed))


def loss(model, batch):
    return model(batch).square().mean()


KINDS = [{}, {"kind": "fisher", "loss": loss}]


def state(model):
    return {
        "values": {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "hooks": [list(m._forward_pre_hooks) + list(m._forward_hooks) for m in model.modules()],
        "keywords": [list(m._forward_pre_hooks_with_kwargs) for m in model.modules()],
        "random": torch.get_rng_state().tolist(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "with gradients": torch.is_grad_enabled(),
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_as_it_was(kind):
    model = model_with_everything()
    grad = model[4].weight.grad
    before = state(model)

    def batches():
        assert not any(module.training for module in model.modules())
        for seed in range(3):
            torch.rand(3)  # a loader that shuffles
            yield tokens(2, seed)

    nn.calibrate(model, batches(), **kind)
    assert state(model) == before
    assert model[4].weight.grad is grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["batches", "layer", "after"])
def test_the_model_is_left_as_it_was_after_an_error(kind, where):
    model = model_with_everything()

    def fail(*_):
        raise RuntimeError("no more")

    def batches():
        yield tokens(2)
        if where == "batches":
            fail()
        yield tokens(2)

    if where == "layer":
        model[3].register_forward_hook(fail)
    before = state(model)
    options = dict(kind)
    if where == "after" and kind:
        options["loss"] = lambda model, batch: fail(loss(model, batch))
    elif where == "after":
        options["forward"] = lambda model, batch: fail(model(batch))
    with pytest.raises(RuntimeError, match="no more"):
        nn.calibrate(model, batches(), **options)
    assert state(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_eval_that_do_more_are_not_called(kind):
    class Adapter(torch.nn.Linear):
        def train(self, mode=True):
            raise AssertionError("writes into the weight")

    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), Adapter(4, 3))
    assert len(nn.calibrate(model, [tokens(2)], **kind)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_under_inference_mode_and_no_grad(kind):
    model = model_with_everything()
    batches = [tokens(2)]  # not of inference mode: nothing made in it can be differentiated
    expected = nn.calibrate(model, batches, **kind)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = nn.calibrate(model, batches, **kind)
        np.testing.assert_array_equal(
            found.column_importance("4.weight"), expected.column_importance("4.weight")
        )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None, []), {}, TypeError, "Got a model of type NoneType, but expected a Module"),
        ((None, torch.zeros(3, 2)), {}, TypeError, "batches of type Tensor.*goes into a list"),
        ((None, {"x": 1}), {}, TypeError, "Got batches of type dict"),
        ((None, 3), {}, TypeError, "Got batches of type int"),
        ((None, []), {}, ValueError, "Got no batches, but expected at least one"),
        ((None, []), {"kind": "hessian"}, ValueError, "Got kind='hessian', but expected one of"),
        ((None, []), {"kind": "fisher"}, ValueError, "Got kind='fisher' without loss"),
        ((None, []), {"loss": loss}, ValueError, "Got loss with kind='moments', but expected it"),
        ((None, []), {"mask": 3}, TypeError, "Got mask=3, but expected a function"),
        ((None, []), {"max_bytes": -1}, ValueError, "Got max_bytes=-1, but expected an int >= 0"),
        (
            (None, []),
            {"kind": "fisher", "loss": loss, "mask": loss},
            ValueError,
            "Got mask with kind='fisher', but expected it with the other kind",
        ),
    ],
)
def test_arguments_that_are_refused(arguments, options, error, message):
    model, batches = arguments
    if "model of" not in message:
        model = torch.nn.Linear(2, 2)
    with pytest.raises(error, match=message):
        nn.calibrate(model, batches, **options)


def test_a_model_without_known_layers():
    with pytest.raises(ValueError, match="Got a model without any layer whose input is known"):
        nn.calibrate(torch.nn.LayerNorm(3), [torch.zeros(2, 3)])


def test_what_is_not_finite_is_named():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[0].bias[1] = float("nan")
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"with an input of '1.weight' that is not finite"):
        nn.calibrate(model, [x])
    with pytest.raises(ValueError, match=r"with a gradient of '0.weight' that is not finite"):
        nn.calibrate(model, [x], kind="fisher", loss=loss)


# ------------------------------------------------------------------ Fisher


def squared_gradients(model, batches, parameter):
    """The mean over the batches, by a loop."""
    total = 0.0
    for batch in batches:
        (gradient,) = torch.autograd.grad(loss(model, batch), [parameter])
        total = total + gradient.double().square()
    return (total / len(batches)).numpy()


@pytest.mark.parametrize("sparse", [False, True])
def test_fisher(sparse):
    model = model_with_everything().double()
    model[0] = torch.nn.Embedding(9, 4, sparse=sparse, dtype=torch.float64)
    model.unused = torch.nn.Module()
    model.unused.layer = torch.nn.Linear(2, 2)
    batches = [tokens(n, seed) for seed, n in enumerate((2, 3, 1))]
    model.forward = lambda x: model[4](model[2](model[1](model[0](x))))
    calibration = nn.calibrate(model, batches, kind="fisher", loss=loss)
    model.eval()
    assert list(calibration) == ["0.weight", "1.weight", "4.weight"]
    for i in (1, 4):
        expected = squared_gradients(model, batches, model[i].weight)
        record = calibration[f"{i}.weight"]
        np.testing.assert_allclose(record.rows, expected.mean(1), rtol=1e-12)
        np.testing.assert_allclose(record.columns, expected.mean(0), rtol=1e-12)
        assert record.n_batches == calibration.n_batches == 3
    dense = torch.nn.Embedding.from_pretrained(model[0].weight.detach(), freeze=False)
    model[0] = dense
    expected = squared_gradients(model, batches, dense.weight)
    np.testing.assert_allclose(calibration["0.weight"].rows, expected.mean(1), rtol=1e-12)
    assert calibration.row_weights("4.weight") is calibration["4.weight"].rows
    assert calibration.column_importance("4.weight") is calibration["4.weight"].columns
    assert calibration.notes == {"unused.layer.weight": "the loss does not depend on it"}
    with pytest.raises(ValueError, match=r"Got '4.weight', of which there are Fisher"):
        calibration.block_metric("4.weight", 2)


def test_fisher_of_tied_and_transposed_weights():
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Unflatten(1, (2, 2)),
        torch.nn.ConvTranspose1d(2, 3, 2),
    ).double()  # fmt: skip
    model[1].weight = model[0].weight
    batches = [torch.randn(3, 4, dtype=torch.float64) for _ in range(2)]
    calibration = nn.calibrate(model, batches, kind="fisher", loss=loss)
    expected = squared_gradients(model, batches, model[0].weight)
    np.testing.assert_allclose(calibration["1.weight"].rows, expected.mean(1), rtol=1e-12)
    expected = squared_gradients(model, batches, model[3].weight)
    np.testing.assert_allclose(calibration["3.weight"].rows, expected.mean((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(calibration["3.weight"].columns, expected.mean(1).ravel())


def test_compressed_models_are_calibrated_as_what_they_decode_to():
    model = torch.nn.Sequential(torch.nn.Embedding(40, 8), torch.nn.Linear(8, 40)).double()
    nn.compress_model(model, {"defaults": {"n_codes": 8, "block_size": 2}})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = torch.nn.Sequential(torch.nn.Embedding(40, 8), torch.nn.Linear(8, 40)).double()
    with torch.no_grad():
        for i in (0, 1):
            plain[i].weight.copy_(model[i].weight)
        plain[1].bias.copy_(model[1].bias)
    for kind in KINDS:
        found, expected = (nn.calibrate(m, [tokens(8)], **kind) for m in (model, plain))
        assert list(found) == list(expected) == ["0.weight", "1.weight"]
        np.testing.assert_allclose(
            found.row_weights("0.weight"), expected.row_weights("0.weight"), rtol=1e-12
        )
        np.testing.assert_allclose(
            found.column_importance("1.weight"), expected.column_importance("1.weight"), rtol=1e-10
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda model, batch: model(batch), r"Got \(2, 5, 3\) from loss.*expected a single value"),
        (lambda model, batch: 1.0, r"Got float from loss\(model, batch\)"),
        (lambda model, batch: torch.zeros(()), "Got a loss that depends on none of the weights"),
    ],
)
def test_losses_that_are_none(value, message):
    with pytest.raises(ValueError, match=message):
        nn.calibrate(model_with_everything(), [tokens(2)], kind="fisher", loss=value)
