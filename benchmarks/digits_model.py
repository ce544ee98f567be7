"""A small network for the digits of scikit-learn: trained in seconds, then clustered."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

N_TEST = 600
WIDTH = 128
BATCH = 64
RATE = 3e-3
RATE_AFTER = 1e-3


@cache
def _tables() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 64) and labels (n,), for training and for testing."""
    import torch
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    images = torch.tensor(found.data / 16.0, dtype=torch.float32)
    labels = torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:N_TEST], order[N_TEST:]
    return images[train], labels[train], images[test], labels[test]


def network(seed: int) -> nn.Module:
    """Three linear layers, not yet trained."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(64, WIDTH),
            torch.nn.ReLU(),
            torch.nn.Linear(WIDTH, WIDTH),
            torch.nn.ReLU(),
            torch.nn.Linear(WIDTH, 10),
        )


def accuracy(model: nn.Module) -> float:
    """The share of test images that are named rightly, in evaluation mode."""
    import torch

    _, _, images, labels = _tables()
    with torch.inference_mode():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


def train(
    model: nn.Module,
    epochs: int,
    rate: float,
    seed: int,
    *,
    parameters: Iterable[Any] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
) -> None:
    """Adam on the cross-entropy, with a learning rate that falls to zero as a cosine.

    ``parameters`` are what the optimiser is given, if not all; ``penalty(model)`` is added to the
    loss.
    """
    import torch

    images, labels, _, _ = _tables()
    generator = torch.Generator().manual_seed(seed)
    chosen = model.parameters() if parameters is None else parameters
    optimizer = torch.optim.Adam(chosen, rate)
    n_steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
            if penalty is not None:
                loss = loss + penalty(model)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def trained(seed: int, epochs: int) -> tuple[nn.Module, float]:
    """A network in full precision, and its accuracy."""
    model = network(seed)
    train(model, epochs, RATE, seed)
    return model, accuracy(model)


def after_dkm(
    model: nn.Module, bits: int, block_size: int, backward: str, seed: int, epochs: int
) -> dict[str, Any]:
    """What becomes of a copy of a trained network: as codes at once, and trained with DKM."""
    from pgkmeans_sk import nn

    plain_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
    model = copy.deepcopy(model)
    report = nn.dkm(model, bits, block_size, backward=backward)
    codes = accuracy(model)
    begin = time.perf_counter()
    train(model, epochs, RATE_AFTER, seed + 1000)
    return {
        "seconds": time.perf_counter() - begin,
        "codes": codes,
        "accuracy": accuracy(model),
        "n_bytes": report.n_bytes,
        "float_bytes": plain_bytes,
        "tensors": [tensor.name for tensor in report.compressed],
    }
