"""Fine-tuning a classifier, and how often it is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.classifier import EVALUATION_BATCH, Batch, Classifier, Encoded, batches


@dataclass(frozen=True)
class Training:
    """How to fine-tune; the learning rate rises for a tenth of the steps and then falls to 0."""

    epochs: float = 2.0
    learning_rate: float = 5e-5
    batch_size: int = 32
    weight_decay: float = 0.01
    warm_up: float = 0.1  # share of the steps
    largest_gradient: float = 1.0  # norm


def factor(step: int, n_steps: int, warm_up: float) -> float:
    """Return the share of the learning rate in step 0, 1, ..., n_steps - 1."""
    n_rising = max(1, math.ceil(warm_up * n_steps))
    if step < n_rising:
        return (step + 1) / n_rising
    return (n_steps - step) / max(1, n_steps - n_rising)


def fine_tune(
    model: Classifier,
    examples: Sequence[Encoded],
    training: Training,
    seed: int,
    teacher: Classifier | None = None,
    each_step: Callable[[int, int], None] | None = None,
) -> None:
    """Train all parameters that want a gradient; ``epochs`` need not be whole.

    With a ``teacher`` the loss is half that of the labels, half the divergence from its scores.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(_groups(model, training.weight_decay), training.learning_rate)
    n_batches = math.ceil(len(examples) / training.batch_size)
    n_steps = max(1, round(training.epochs * n_batches))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factor(min(step, n_steps - 1), n_steps, training.warm_up)
    )
    order = np.random.default_rng(seed)
    step = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # of dropout
        model.train()
        while step < n_steps:
            for chosen in batches(examples, training.batch_size, order):
                if step == n_steps:
                    break
                loss = _loss(model, Batch.of(chosen, device), teacher)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), training.largest_gradient)
                optimizer.step()
                schedule.step()
                step += 1
                if each_step is not None:
                    each_step(step, n_steps)
    model.eval()


def _loss(model: Classifier, batch: Batch, teacher: Classifier | None) -> Tensor:
    scores = model(batch)
    loss = functional.cross_entropy(scores, batch.labels)
    if teacher is None:
        return loss
    with torch.no_grad():
        wanted = teacher(batch).log_softmax(dim=1)
    distilled = functional.kl_div(
        scores.log_softmax(dim=1), wanted, reduction="batchmean", log_target=True
    )
    return 0.5 * (loss + distilled)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with and without decay: biases and norms have none, nor have codebooks."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim != 2], "weight_decay": 0.0},
    ]


@torch.inference_mode()
def accuracy(model: Classifier, examples: Sequence[Encoded]) -> float:
    """Return the share of examples whose highest score is that of their label."""
    model.eval()
    device = next(model.parameters()).device
    n_right = 0
    for chosen in batches(examples, EVALUATION_BATCH):
        batch = Batch.of(chosen, device)
        n_right += int((model(batch).argmax(dim=1) == batch.labels).sum())
    return n_right / len(examples)
