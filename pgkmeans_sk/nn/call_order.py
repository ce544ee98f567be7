"""In which order a model calls its layers, and what is added to what they put out.

Note [Residual sums]
~~~~~~~~~~~~~~~~~~~~
Where a layer's output y is added to an earlier state r, and the sum s = y + r goes into a norm, an
error in r can be made up for by y. Such a sum is found by looking: the next module that is called
is a norm, its input has the shape of y, and what it has beyond y is a tensor that a module took in
or put out before. This fits norms behind the sum (post-norm, as in BERT) and in front of the next
layer (pre-norm, as in GPT) alike. Whatever is not found is simply not made up for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pgkmeans_sk.nn.layers import type_names

PASSED_THROUGH = ("Dropout", "Identity")
"""Modules that, in evaluation mode, put out what they take in."""
SAME = 1e-3
"""What two tensors that should be equal may differ by, relative to the largest value."""


@dataclass(frozen=True)
class CalledLayer:
    """A layer that a model calls.

    Attributes
    ----------
    module : Module
        The layer.
    norm : Module or None
        The norm that takes in the sum of its output and an earlier state, see Note [Residual sums].
    """

    module: nn.Module
    norm: nn.Module | None = None


def called_once(
    model: nn.Module, layers: Collection[nn.Module], run: Callable[[], object]
) -> list[CalledLayer]:
    """Those of ``layers`` that ``run()`` calls exactly once, in the order of the calls."""
    watch = _Watch(frozenset(layers))
    with watch.watching(model), torch.no_grad():
        run()
    return [
        CalledLayer(layer, watch.norms.get(layer))
        for layer, count in watch.n_calls.items()
        if count == 1
    ]


@dataclass
class _Watch:
    """What hooks on all modules of a model have seen."""

    layers: Collection[nn.Module]
    n_calls: dict[nn.Module, int] = field(default_factory=dict)
    norms: dict[nn.Module, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._states: dict[int, Tensor] = {}  # kept alive, so that an id means one tensor
        self._last: tuple[nn.Module, Tensor] | None = None  # a layer and what it put out

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for module in model.modules():
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)
                after = module.register_forward_hook(self._after)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        is_container = next(module.children(), None) is not None
        if self._last is not None and not is_container and not _is(module, PASSED_THROUGH):
            layer, output = self._last
            if is_norm(module) and inputs and self._is_residual(inputs[0], output):
                self.norms[layer] = module
            self._last = None
        self._remember(inputs)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module in self.layers:
            self.n_calls[module] = self.n_calls.get(module, 0) + 1
            if isinstance(output, Tensor):
                # A copy: the sum may be made in place.
                self._last = module, output.clone()
        if isinstance(output, Tensor) and not _is(module, PASSED_THROUGH):
            self._remember([output])

    def _remember(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_floating_point():
                self._states[id(tensor)] = tensor

    def _is_residual(self, total: Tensor, output: Tensor) -> bool:
        if total.shape != output.shape or total.dtype != output.dtype:
            return False
        rest = total - output
        return any(
            state.shape == rest.shape and _are_same(state, rest) for state in self._states.values()
        )


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by the name of its class: each library has its own."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _is(module: nn.Module, names: Collection[str]) -> bool:
    return any(name in names for name in type_names(module))


def _are_same(one: Tensor, other: Tensor) -> bool:
    largest = float(other.abs().max()) if other.numel() else 0.0
    return largest > 0.0 and float((one - other).abs().max()) <= SAME * largest
