"""Small models for tests of ``pgkmeans_sk.nn``."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pgkmeans_sk import nn as pgk_nn


class Case(NamedTuple):
    """A layer, what it is called with, and its weight."""

    layer: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    weight: str = "weight"


def floats(*shape):
    return lambda: (torch.randn(*shape, dtype=torch.float64),)


def tokens(n, *shape):
    return lambda: (torch.randint(n, shape),)


LAYERS = {
    "linear": Case(lambda: nn.Linear(20, 24), floats(5, 20)),
    "embedding": Case(lambda: nn.Embedding(40, 12), tokens(40, 3, 5)),
    "padded embedding": Case(lambda: nn.Embedding(40, 12, padding_idx=7), tokens(12, 3, 5)),
    "embedding by frequency": Case(
        lambda: nn.Embedding(40, 12, scale_grad_by_freq=True), tokens(12, 3, 5)
    ),
    "embedding of many tokens": Case(lambda: nn.Embedding(40, 12), tokens(40, 9, 5)),
    "embedding bag": Case(lambda: nn.EmbeddingBag(40, 12), tokens(40, 3, 5)),
    "conv1d": Case(lambda: nn.Conv1d(6, 20, 3, padding=1), floats(2, 6, 9)),
    "conv2d": Case(lambda: nn.Conv2d(6, 20, (3, 2), stride=2), floats(2, 6, 9, 8)),
    "grouped conv2d": Case(lambda: nn.Conv2d(6, 24, 3, groups=3), floats(2, 6, 9, 8)),
    "circular conv2d": Case(
        lambda: nn.Conv2d(6, 20, 3, padding=1, padding_mode="circular"), floats(2, 6, 9, 8)
    ),
    "conv3d": Case(lambda: nn.Conv3d(3, 20, 2), floats(2, 3, 4, 5, 3)),
    "transposed conv1d": Case(lambda: nn.ConvTranspose1d(6, 20, 3), floats(2, 6, 9)),
    "transposed conv2d": Case(lambda: nn.ConvTranspose2d(6, 20, 3, stride=2), floats(2, 6, 5, 4)),
    "grouped transposed conv2d": Case(
        lambda: nn.ConvTranspose2d(6, 30, 3, groups=2), floats(2, 6, 5, 4)
    ),
    "transposed conv3d": Case(lambda: nn.ConvTranspose3d(4, 12, 2), floats(2, 4, 3, 3, 3)),
    "attention": Case(
        lambda: nn.MultiheadAttention(16, 4, batch_first=True),
        lambda: (torch.randn(2, 5, 16, dtype=torch.float64),) * 3,
        "in_proj_weight",
    ),
}
"""Every type of layer that is compressed, each with 240 weights or more."""


def small_model(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Embedding(60, 16, padding_idx=0), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 24)
    return nn.Sequential(*layers).to(dtype)


class Tied(nn.Module):
    """A language model whose last layer has the weight of its embedding."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(60, 16)
        self.mix = nn.Linear(16, 16)
        self.out = nn.Linear(16, 60, bias=False)
        self.out.weight = self.words.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(self.words(index))))


def state_bytes(model):
    """Everything of a model's state, to compare bit for bit."""
    return {
        name: (
            str(t.dtype),
            tuple(t.shape),
            t.detach()
            .cpu()
            .resolve_conj()
            .reshape(-1)
            .contiguous()
            .view(torch.uint8)
            .numpy()
            .tobytes(),
        )
        for name, t in model.state_dict().items()
    }


def everything(model):
    """All of a model that must not change: values, objects, classes, flags."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return (
        state_bytes(model) if not any(t.is_meta for _, t in tensors) else None,
        [(name, id(t), t.requires_grad, t.device, id(t.grad)) for name, t in tensors],
        [(name, id(m), type(m), m.training, set(m.__dict__)) for name, m in model.named_modules()],
    )


def spec(*rules, **settings):
    """Small blocks and few code words."""
    return {"defaults": {"block_size": 4, "n_codes": 8, **settings}, "rules": rules}


def same_bytes(model, path):
    """Whether a model is saved as the file that it was loaded from."""
    again = path.with_name("again")
    pgk_nn.save(model, again)
    return again.read_bytes() == path.read_bytes()
