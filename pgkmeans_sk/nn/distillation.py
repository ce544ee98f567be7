"""Distillation: train a compressed model to put out what the uncompressed one does."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgkmeans_sk.validation import check_number

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def teacher_of(model: AnyModule) -> AnyModule:
    """A copy of a model as it is now, in evaluation mode and without gradients.

    Parameters
    ----------
    model : Module
        Any; it is left as it is.

    Returns
    -------
    teacher : Module
        A deep copy.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Dropout(0.5))
    >>> teacher = nn.teacher_of(model)  # before anything is compressed
    >>> teacher.training, any(p.requires_grad for p in teacher.parameters())
    (False, False)
    """
    teacher = copy.deepcopy(model)
    for parameter in teacher.parameters():
        parameter.grad = None
    return teacher.eval().requires_grad_(False)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The divergence of the student's distribution from the teacher's, averaged over examples.

    ``T**2 * KL(softmax(teacher / T) || softmax(student / T))``: no labels are needed. Add it to
    another loss with any weight, or use it alone, as in the paper. By the factor ``T**2`` gradients
    are about as large at any temperature.

    Parameters
    ----------
    student_logits : tensor of shape (..., n_classes)
        With gradient. Half precision is computed in float32.
    teacher_logits : tensor of shape (..., n_classes)
        Of the teacher for the same examples; no gradient goes there.
    temperature : float, default=1.0
        T; larger ones give more weight to the classes that the teacher thinks unlikely.
    mask : bool tensor of shape (...), default=None
        The examples, or tokens, that count.

    Returns
    -------
    loss : tensor of shape ()
        0 if both are the same, or no example counts.

    Raises
    ------
    ValueError
        If shapes differ, or the temperature is not positive.

    References
    ----------
    Stock et al. 2019, "And the bit goes down", arXiv:1907.05686, section 3.3 (temperature 1);
    Hinton et al. 2015, arXiv:1503.02531, for the temperature.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> float(nn.distillation_loss(logits, logits, temperature=2.0))
    0.0
    >>> round(float(nn.distillation_loss(torch.zeros(1, 2), logits)), 4)
    0.3278
    """
    check_number("temperature", temperature, 0.0, strictly=True)
    if student_logits.shape != teacher_logits.shape or student_logits.ndim == 0:
        raise ValueError(
            f"Got logits of shapes {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}, but expected the same (..., n_classes)."
        )
    if mask is not None and (mask.shape != student_logits.shape[:-1] or mask.dtype != torch.bool):
        raise ValueError(
            f"Got a mask of shape {tuple(mask.shape)} and {mask.dtype}, but expected "
            f"{tuple(student_logits.shape[:-1])} and {torch.bool}."
        )
    teacher = torch.log_softmax(_wide(teacher_logits.detach()) / temperature, dim=-1)
    student = torch.log_softmax(_wide(student_logits) / temperature, dim=-1)
    each = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
    if mask is None:
        return temperature**2 * each.mean()
    total = torch.where(mask, each, 0.0).sum()
    return temperature**2 * total / mask.sum().clamp(min=1)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
