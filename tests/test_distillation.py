"""Distillation: the loss against a plain sum, and teachers that stay as they are."""

import numpy as np
import pytest
from scipy.special import softmax

torch = pytest.importorskip("torch")

from pgkmeans_sk import nn  # noqa: E402 - only if torch is there

GENERATOR = np.random.default_rng(0)
STUDENT, TEACHER = GENERATOR.normal(size=(2, 5, 3, 4)) * 3


def divergence(student, teacher, temperature):
    """KL(teacher || student) of each row, times the squared temperature."""
    p, q = softmax(teacher / temperature, axis=-1), softmax(student / temperature, axis=-1)
    return temperature**2 * (p * np.log(p / q)).sum(axis=-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_the_mean_divergence(temperature):
    expected = divergence(STUDENT, TEACHER, temperature).mean()
    student, teacher = torch.from_numpy(STUDENT), torch.from_numpy(TEACHER)
    found = nn.distillation_loss(student, teacher, temperature=temperature)
    np.testing.assert_allclose(float(found), expected, rtol=1e-12)


def test_only_what_the_mask_keeps_counts():
    kept = GENERATOR.random((5, 3)) < 0.5
    expected = divergence(STUDENT, TEACHER, 2.0)[kept].mean()
    student = torch.from_numpy(STUDENT).requires_grad_()
    teacher = torch.from_numpy(TEACHER).requires_grad_()
    loss = nn.distillation_loss(student, teacher, temperature=2.0, mask=torch.from_numpy(kept))
    np.testing.assert_allclose(float(loss.detach()), expected, rtol=1e-12)
    loss.backward()
    assert teacher.grad is None
    moved = student.grad.abs().sum(dim=-1).numpy() > 0
    np.testing.assert_array_equal(moved, kept)
    none = torch.zeros(5, 3, dtype=torch.bool)
    assert float(nn.distillation_loss(student, teacher, mask=none).detach()) == 0.0


def test_the_gradient_is_the_difference_of_distributions():
    student = torch.from_numpy(STUDENT[0]).requires_grad_()
    nn.distillation_loss(student, torch.from_numpy(TEACHER[0])).backward()
    expected = (softmax(STUDENT[0], axis=-1) - softmax(TEACHER[0], axis=-1)) / len(STUDENT[0])
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-10)


def test_half_precision_is_computed_in_float32():
    student, teacher = (torch.from_numpy(x).half() for x in (STUDENT, TEACHER))
    found = nn.distillation_loss(student, teacher)
    assert found.dtype == torch.float32
    assert torch.equal(found, nn.distillation_loss(student.float(), teacher.float()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_logits": torch.zeros(2, 4)}, r"shapes \(2, 3\) and \(2, 4\)"),
        ({"temperature": 0}, "temperature=0, but expected a finite number > 0"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask of shape \(3,\)"),
        ({"mask": torch.ones(2)}, r"and torch\.float32, but expected \(2,\) and torch\.bool"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"student_logits": torch.zeros(2, 3), "teacher_logits": torch.zeros(2, 3), **change}
    with pytest.raises(ValueError, match=message):
        nn.distillation_loss(given.pop("student_logits"), given.pop("teacher_logits"), **given)


def test_a_teacher_stays_as_the_model_was():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.Dropout(0.5), torch.nn.Linear(32, 16)
    )
    inputs = torch.ones(2, 16)
    model(inputs).sum().backward()
    expected = model.eval()(inputs)
    model.train()
    teacher = nn.teacher_of(model)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    assert model.training
    assert model[0].training

    for stage in nn.IterativePQ(model, {"defaults": {"n_codes": 4, "block_size": 4}}):
        optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = nn.distillation_loss(model(inputs), teacher(inputs))
            loss.backward()
            optimizer.step()
        assert torch.equal(teacher(inputs), expected)
        # Also a teacher that is compressed itself.
        again = nn.teacher_of(model)
        values = again(inputs)
        nn.bake(again)
        assert torch.equal(again(inputs), values)
        assert hasattr(model[0], "parametrizations")
