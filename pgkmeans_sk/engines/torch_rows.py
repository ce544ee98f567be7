"""The rows of the torch engine as tensors, and the way there and back.

Results of length n live where the user's rows live: NumPy arrays for NumPy rows, tensors on the
same device for tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from pgkmeans_sk.engines.torch_labels import sq_distances
from pgkmeans_sk.engines.torch_memory import block_rows, blocks

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ORIGIN_ROWS = 256
"""Rows whose median is taken as a point near them all."""


class _WritableView:
    """A NumPy array whose memory PyTorch may share: it warns of arrays that are read-only."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array  # keeps the memory alive
        interface = dict(array.__array_interface__)
        interface["data"] = interface["data"][0], False
        self.__array_interface__ = interface


def shared_tensor(array: NDArray[Any]) -> torch.Tensor:
    """A tensor on the CPU over the memory of ``array``; a copy only where strides ask for one.

    Nobody may write to it: the array may be read-only.
    """
    sizes = np.abs(array.strides)
    is_regular = array.flags.aligned and all(
        stride >= 0 and size % array.itemsize == 0
        for stride, size in zip(array.strides, sizes, strict=True)
    )
    if not is_regular or not array.dtype.isnative:
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    if array.flags.writeable:
        return torch.from_numpy(array)
    return torch.from_numpy(np.asarray(_WritableView(array)))


def device_of(device: Any, X: Any) -> torch.device:
    """Where the work is done.

    ``device`` is None for where ``X`` is, if it is a tensor; for anything else a CUDA device, if
    there is one, or the CPU.
    """
    if device is not None:
        found = torch.device(device)
    elif isinstance(X, torch.Tensor):
        found = X.device
    else:
        found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if found.type == "cuda" and found.index is None and torch.cuda.is_available():
        found = torch.device("cuda", torch.cuda.current_device())
    return found


def check_device(device: Any, X: Any) -> torch.device:
    """``device_of``, or a ValueError where it cannot do the work."""
    try:
        found = device_of(device, X)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"Got device={device!r}, but expected the name of a PyTorch device, such as 'cuda'."
        ) from error
    if found.type == "cuda" and (
        not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()
    ):
        raise ValueError(
            f"Got device={str(found)!r}, but expected one that PyTorch can use here: it finds "
            f"{torch.cuda.device_count() if torch.cuda.is_available() else 0} CUDA devices."
        )
    if not computes_in_float64(found):
        raise ValueError(
            f"Got device={str(found)!r}, but expected a device with float64, which decides near "
            "ties and adds up: 'cpu' or 'cuda'."
        )
    return found


def computes_in_float64(device: torch.device) -> bool:
    """Whether a device, which exists, has float64."""
    if device.type in ("cpu", "cuda"):
        return True
    if device.type == "mps":
        return False
    # Other accelerators are tried, not refused: all that is needed are plain operations.
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, NotImplementedError, TypeError, AssertionError):
        return False
    return True


def work_place(device: Any, X: Any) -> torch.device:
    """Where rows are worked on: ``check_device``; or on the host, if they are where no float64 is.

    A ``device`` that is named has to be where they are, or one that can do the work.
    """
    is_there = device is None or (
        isinstance(X, torch.Tensor) and str(device).split(":")[0] == X.device.type
    )
    if isinstance(X, torch.Tensor) and is_there and not computes_in_float64(X.device):
        return torch.device("cpu")
    return check_device(device, X)


def exact_place(device: torch.device) -> torch.device:
    """Where numbers in float64 are kept for rows on a device: there, or on the host."""
    return device if computes_in_float64(device) else torch.device("cpu")


def can_work_on(device: torch.device) -> bool:
    """Whether a device that tensors are on computes in float64."""
    try:
        check_device(device, None)
    except ValueError:
        return False
    return True


def check_rows_are_dense(X: Any) -> None:
    """Raise for sparse matrices and tensors."""
    if sparse.issparse(X) or (isinstance(X, torch.Tensor) and X.layout != torch.strided):
        raise ValueError(
            "Got sparse rows with engine='torch', but expected dense ones; engine='numba' takes "
            "SciPy's CSR matrices."
        )


def to_tensor(X: Any) -> torch.Tensor:
    """Validated rows or weights as a tensor where they are."""
    return X.detach() if isinstance(X, torch.Tensor) else shared_tensor(np.asarray(X))


def as_user(values: torch.Tensor, like: Any) -> Any:
    """A new tensor in the kind of the user's rows ``like``, and where they are."""
    if isinstance(like, torch.Tensor):
        return values.to(like.device)
    return values.cpu().numpy()


def reported_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of centres: that of the data, but float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The same of NumPy."""
    return np.dtype(np.float64 if dtype == torch.float64 else np.float32)


def origin_of(some_rows: torch.Tensor) -> torch.Tensor:
    """A point (d,) near the bulk of the rows; only rounding depends on it, labels do not."""
    some_rows = some_rows.to(reported_dtype(some_rows.dtype))
    # Not median(): where PyTorch is told to be deterministic, that is refused on CUDA.
    return some_rows.sort(dim=0).values[(len(some_rows) - 1) // 2]


def to_directions(X: torch.Tensor) -> torch.Tensor:
    """Rows of ``X`` (n, d) divided by their lengths, in a copy; rows of zeros stay zero.

    A row's result depends on its values alone: its length is the root of squares that are added in
    the order of the features, relative to its largest value.
    """
    scaled = torch.empty(X.shape, dtype=reported_dtype(X.dtype), device=X.device)
    zero = torch.zeros((), dtype=torch.float64, device=X.device)
    for start, stop in blocks(len(X), block_rows(X.device, 40 * X.shape[1])):
        rows = X[start:stop].to(torch.float64)
        largest = rows.abs().amax(dim=1)
        lengths = largest * sq_distances(rows / largest[:, None], zero).sqrt()
        scaled[start:stop] = rows / torch.where(largest > 0.0, lengths, 1.0)[:, None]
    return scaled
