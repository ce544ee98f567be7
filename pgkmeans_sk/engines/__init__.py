"""Where the rows live, and who does the work on them.

The table below is the only place that knows which engines exist, and ``open_engine`` the only one
that decides what ``engine="auto"`` means.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

from pgkmeans_sk.array_kinds import is_dask, is_tensor
from pgkmeans_sk.engines.block_rows import BlockRows
from pgkmeans_sk.engines.protocol import Engine
from pgkmeans_sk.engines.row_source import RowBlocks

# name -> module and function that opens it; imported only when asked for
_ENGINES = {
    "numba": ("pgkmeans_sk.engines.numba_cpu", "open_numba_engine"),
    "torch": ("pgkmeans_sk.engines.torch_device", "open_torch_engine"),
}

ENGINE_NAMES = ("auto", *_ENGINES)
"""Accepted values of the parameter ``engine``."""


def open_engine(
    name: str, X: Any, sample_weight: Any, *, device: Any = None, directions: bool = False
) -> Engine:
    """Open an engine over validated rows.

    Parameters
    ----------
    name : str
        One of ``ENGINE_NAMES``. "auto" takes the engine that fits where the data is: "numba" for
        arrays and sparse matrices in host memory, "torch" for tensors, and where a ``device`` is
        named.
    X : ndarray, CSR matrix or torch tensor of shape (n_samples, n_features)
        The rows, in float32 or float64; a tensor may have floats of 16 bits. Never written.
    sample_weight : ndarray or tensor of shape (n_samples,), float64, or None for ones
        Weights >= 0. Never written.
    device : str, torch.device or None
        Where the engine "torch" works; None for where the tensor is, and for other rows a CUDA
        device, if there is one, or the CPU.
    directions : bool
        Whether the engine shall see the rows divided by their lengths.

    Returns
    -------
    Engine

    Raises
    ------
    ValueError
        If the engine cannot work on these rows or on this device.
    """
    if name == "auto":
        name = "torch" if is_tensor(X) or device is not None else "numba"
    module, function = _ENGINES[name]
    if name == "numba":
        if device is not None and str(device) != "cpu":
            raise ValueError(
                f"Got device={str(device)!r} with engine='numba', but expected None or 'cpu'."
            )
        if is_tensor(X):  # its memory is shared with the kernels, or brought to the host
            module, function = "pgkmeans_sk.engines.torch_host", "open_host_engine"
        options = {"directions": directions}
    else:
        options = {"directions": directions, "device": device}
    opener = cast(Callable[..., Engine], getattr(import_module(module), function))
    return opener(X, sample_weight, **options)


def open_problems(X: Any, sample_weight: Any, *, device: Any = None, place: Any = None) -> Any:
    """Problems over validated rows (B, n, d) for ``pipeline/together.py``, on a torch device."""
    module = import_module("pgkmeans_sk.engines.torch_problems")
    return module.open_problems(X, sample_weight, device, place)


def problems_together(X: Any, n_clusters: int, device: Any = None) -> int:
    """How many of the problems ``X`` (B, n, d) are worked on at once there; 0 if they cannot be."""
    module = import_module("pgkmeans_sk.engines.torch_problems")
    return int(module.problems_together(X, n_clusters, device))


def is_in_blocks(X: Any) -> bool:
    """Whether rows are in blocks elsewhere: ``RowBlocks``, or a collection of dask."""
    return isinstance(X, RowBlocks) or is_dask(X)


def block_rows(X: Any, sample_weight: Any) -> BlockRows:
    """Rows in blocks, looked at once: shape, dtype, and how to open an engine over them.

    Raises ``ValueError`` for the first block, in the order of the rows, that cannot be used.
    """
    kind = "stored_blocks" if isinstance(X, RowBlocks) else "dask_blocks"
    look = import_module(f"pgkmeans_sk.engines.{kind}").look_at_rows
    return cast(BlockRows, look(X, sample_weight))


def lazy_rows(X: Any) -> Any:
    """Rows of dask for ``predict`` and ``transform``, of which nothing is looked at yet."""
    return import_module("pgkmeans_sk.engines.dask_rows").LazyRows(X)
