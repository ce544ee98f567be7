"""Whether passes on a device go through a kernel of Triton: found out by the clock, for each kind.

Kernels and plain operations give the same result, to the last bit, so that nothing but time hangs
on the choice. Passes of a kind go on without a kernel until they have taken about as long as
compiling it does; then the two take turns until both have been timed; the quicker one stays. A
kernel that cannot be compiled or run there is given up, with one warning.

Times are those between two events in the stream, read when they are known: the device is not
waited for.
"""

from __future__ import annotations

import warnings
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from pgkmeans_sk.engines.coarse_choice import first_was_quicker

PATIENCE = 1.0
"""So many seconds of passes go by before a kernel is compiled for them."""
TURNS = 4
"""Passes of each way that are timed. The first one does not count: the kernel is compiled then."""

Result = TypeVar("Result")


class Kind(NamedTuple):
    """Passes of one kind are alike in which way is the quicker one."""

    work: str
    device: torch.device
    dtype: torch.dtype
    n_features: int
    n_clusters: int  # bits of the number
    n_rows: int

    @property
    def kernel(self) -> tuple[Any, ...]:
        """What a kernel is compiled for."""
        return self[:4]


def kind_of(work: str, X: torch.Tensor, n_clusters: int) -> Kind:
    """The kind of some ``work`` on rows (n, d) and so many clusters."""
    n_rows, d = X.shape
    return Kind(work, X.device, X.dtype, d, n_clusters.bit_length(), n_rows.bit_length())


class Lap:
    """The time that passes on a device from here to ``end``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks = [self._mark()]

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return perf_counter()
        cuda: Any = torch.cuda
        event = cuda.Event(enable_timing=True)
        event.record(cuda.current_stream(self._device))
        return event

    def end(self) -> None:
        """Set the second mark."""
        self._marks.append(self._mark())

    def seconds(self) -> float | None:
        """The time, or None if the device has not come to the second mark yet."""
        begin, end = self._marks
        if self._device.type != "cuda":
            return float(end - begin)
        return float(begin.elapsed_time(end)) / 1000 if end.query() else None


def _last_turns() -> deque[float]:
    return deque(maxlen=TURNS)


@dataclass
class _Trial:
    """Times of the last passes of one kind: by operations, and by a kernel."""

    under_way: list[tuple[bool, Lap]] = field(default_factory=list)
    operations: deque[float] = field(default_factory=_last_turns)
    kernels: deque[float] = field(default_factory=_last_turns)
    was_kernel: bool = True  # whose turn the last one was

    def read(self) -> float:
        """Take note of the times that are known by now; returns the sum of those of operations."""
        waiting, found = [], 0.0
        for is_kernel, lap in self.under_way:
            seconds = lap.seconds()
            if seconds is None:
                waiting.append((is_kernel, lap))
            elif is_kernel:
                self.kernels.append(seconds)
            else:
                self.operations.append(seconds)
                found += seconds
        self.under_way = waiting
        return found

    def verdict(self) -> bool | None:
        """Whether the kernel is quicker; None if too few times are known."""
        if len(self.kernels) < TURNS or len(self.operations) < TURNS:
            return None
        pairs = zip(self.kernels, self.operations, strict=True)
        return first_was_quicker(np.array([seconds for both in pairs for seconds in both]))


_trials: dict[Kind, _Trial] = defaultdict(_Trial)
_is_quicker: dict[Kind, bool] = {}
"""What trials said of kernels."""
_waited: dict[tuple[Any, ...], float] = defaultdict(float)
"""Seconds of passes that a kernel could have done, too."""
_given_up: set[torch.device] = set()


def has_kernels(device: torch.device) -> bool:
    """Whether kernels of Triton may be tried on a device."""
    return device.type == "cuda" and device not in _given_up and find_spec("triton") is not None


def launching_on(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, kernels are launched on a device: Triton takes the current one, wherever rows are."""
    if device.type != "cuda":
        return nullcontext()
    found: AbstractContextManager[Any] = torch.cuda.device(device)
    return found


def by_quicker(
    kind: Kind, by_operations: Callable[[], Result], by_kernel: Callable[[], Result]
) -> Result:
    """The result of that way which is the quicker one for passes of a kind, or whose turn it is."""
    if not has_kernels(kind.device):
        return by_operations()
    if kind not in _is_quicker:
        return _timed(kind, by_operations, by_kernel)
    return _tried(kind, by_operations, by_kernel) if _is_quicker[kind] else by_operations()


def _timed(
    kind: Kind, by_operations: Callable[[], Result], by_kernel: Callable[[], Result]
) -> Result:
    """The result, with a note of what it took; and the decision, once enough is known."""
    trial = _trials[kind]
    _waited[kind.kernel] += trial.read()
    found = trial.verdict()
    if found is not None:
        _is_quicker[kind] = found
        _trials.pop(kind, None)
        return by_quicker(kind, by_operations, by_kernel)
    is_kernel = _waited[kind.kernel] >= PATIENCE and not trial.was_kernel
    trial.was_kernel = is_kernel
    lap = Lap(kind.device)
    result = _tried(kind, by_operations, by_kernel) if is_kernel else by_operations()
    lap.end()
    trial.under_way.append((is_kernel, lap))
    return result


def _tried(
    kind: Kind, by_operations: Callable[[], Result], by_kernel: Callable[[], Result]
) -> Result:
    """The result by the kernel; by operations where it cannot be used, from now on."""
    try:
        return by_kernel()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler or a driver has to say
        _given_up.add(kind.device)
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"Triton cannot be used on {kind.device} (for the {kind.work}: {words}). PyTorch's "
            "operations do the work, with the same results.",
            RuntimeWarning,
            stacklevel=2,
        )
        return by_operations()
