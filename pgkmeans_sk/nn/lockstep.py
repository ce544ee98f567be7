"""A model and a copy of it that is being compressed, run side by side from layer to layer.

All batches go through both models at once and wait at each layer, until its weight in the copy is
compressed; then all go on. So each model is run once, whatever it is made of, and the inputs of a
layer are those of a model whose earlier layers are compressed. What is kept is what the paused
calls keep: the states of all batches at one depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgkmeans_sk.nn.call_order import CalledLayer
from pgkmeans_sk.nn.drift_sums import DriftSums
from pgkmeans_sk.nn.input_statistics import Forward
from pgkmeans_sk.nn.layer_inputs import Reader, RowMask, Vectors, reader_of
from pgkmeans_sk.nn.paused_run import PausedRun


@dataclass(frozen=True)
class Stop:
    """A call that waits at a layer.

    Attributes
    ----------
    number : int
        Of the layer.
    args, kwargs
        What the layer is called with.
    residual : Tensor or None
        What is added to the output, if that is known.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    residual: Tensor | None


class Lane:
    """A model with the calls of all batches, each of which stops at every layer.

    Parameters
    ----------
    model : Module
        In evaluation mode.
    layers : sequence of CalledLayer
        Where calls stop.
    batches : sequence
        One call for each.
    forward : callable
        ``forward(model, batch)`` makes the call.
    is_changing : bool
        Whether layers get other weights while calls wait at them.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[CalledLayer],
        batches: Sequence[Any],
        forward: Forward,
        *,
        is_changing: bool,
    ) -> None:
        self.layers = layers
        self._is_changing = is_changing
        self._numbers = {layer.module: number for number, layer in enumerate(layers)}
        self._running: PausedRun[Stop] | None = None
        # Of a layer whose output is still to be added to something: its call, and the output.
        self._open: dict[PausedRun[Stop], tuple[nn.Module, Any, Any, Tensor]] = {}

        def call(run: PausedRun[Stop], batch: Any) -> None:
            with torch.no_grad():
                forward(model, batch)

        self.runs: list[PausedRun[Stop]] = [
            PausedRun(lambda run, batch=batch: call(run, batch))  # type: ignore[misc]
            for batch in batches
        ]

    def resume(self, index: int) -> Stop | None:
        """Let the call of a batch go on to its next layer; None at its end."""
        self._running = self.runs[index]
        try:
            return self._running.resume()
        finally:
            self._running = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on all layers, and the end of all calls."""
        with ExitStack() as stack:
            for layer in self.layers:
                if layer.norm is None:
                    hook = layer.module.register_forward_pre_hook(self._before, with_kwargs=True)
                    stack.callback(hook.remove)
                else:
                    after = layer.module.register_forward_hook(self._after, with_kwargs=True)
                    stack.callback(after.remove)
                    norm = layer.norm.register_forward_pre_hook(self._before_norm, with_kwargs=True)
                    stack.callback(norm.remove)
            for run in self.runs:
                stack.enter_context(run)
            yield

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._running is not None
        self._running.pause(Stop(self._numbers[module], args, kwargs, None))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        assert self._running is not None
        # A copy: the sum may be made in place.
        self._open[self._running] = (module, args, kwargs, output.clone())

    def _before_norm(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Stop where the sum of a layer's output and an earlier state is known."""
        run = self._running
        assert run is not None
        if run not in self._open:  # a norm that is called more than once
            return
        module, layer_args, layer_kwargs, output = self._open.pop(run)
        total = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        run.pause(Stop(self._numbers[module], layer_args, layer_kwargs, total - output))
        if self._is_changing:
            # As if the layer had had its new weight from the beginning, wherever the sum is used.
            total += module.forward(*layer_args, **layer_kwargs) - output


class Lockstep:
    """Both models, from layer to layer.

    Parameters
    ----------
    original, compressed : Lane
        The same layers and batches of the model and of its copy.
    masks : sequence of RowMask
        Of the batches.
    names : sequence of str
        What the layers' weights are called in messages.
    """

    def __init__(
        self, original: Lane, compressed: Lane, masks: Sequence[RowMask], names: Sequence[str]
    ) -> None:
        self.original, self.compressed = original, compressed
        self._masks, self._names = masks, names

    def run(self, at_layer: Callable[[int, DriftSums | None], None]) -> None:
        """Go through all layers; ``at_layer`` compresses each, with the sums over its inputs.

        Raises
        ------
        ValueError
            If batches do not call the layers in the same order.
        """
        with torch.no_grad(), self.original.watching(), self.compressed.watching():
            for number in range(len(self._names)):
                at_layer(number, self._sums(number))
            # Nothing is compressed behind the last layer: the calls need not go to their end.

    def _sums(self, number: int) -> DriftSums | None:
        sums: DriftSums | None = None
        for index, mask in enumerate(self._masks):
            stops = [lane.resume(index) for lane in (self.original, self.compressed)]
            for stop in stops:
                if stop is None or stop.number != number:
                    got = "its end" if stop is None else repr(self._names[stop.number])
                    raise ValueError(
                        f"Got batch {index}, in which the model comes to {got} where the first "
                        f"batch comes to {self._names[number]!r}, but expected the same order of "
                        "layers for all batches; calibrate and compress_model need none."
                    )
            original, compressed = stops
            assert original is not None
            assert compressed is not None
            module = self.compressed.layers[number].module
            sums = _added(sums, module, original, compressed, mask)
        return sums


def _added(
    sums: DriftSums | None, module: nn.Module, original: Stop, compressed: Stop, mask: RowMask
) -> DriftSums | None:
    """``sums``, begun if there are none yet, with what one batch brings both models."""
    reader = reader_of(module)
    assert reader is not None
    rest = None
    if original.residual is not None and compressed.residual is not None:
        difference = (original.residual - compressed.residual).double()
        rest = mask.apply(difference, difference.ndim - 1)
    seen = (_vectors(reader, module, stop, mask) for stop in (original, compressed))
    for whole, small in zip(*seen, strict=True):
        if sums is None:
            sums = DriftSums(small.shape[1], small.device)
        sums.add(whole, small, rest)
    return sums


def _vectors(reader: Reader, module: nn.Module, stop: Stop, mask: RowMask) -> Iterator[Tensor]:
    """Inputs (n, in), some at a time."""
    for seen in reader(module, stop.args, stop.kwargs, mask):
        assert isinstance(seen, Vectors)
        yield seen.values[:, 0]
