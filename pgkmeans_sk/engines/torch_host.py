"""Tensors on the CPU: they share their memory with the Numba kernels, which do the work.

Plain PyTorch operations would need several passes over a matrix of rows times centres where the
kernels need none. So ``engine="torch"`` means them on the CPU, with tensors for results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.engines.torch_rows import as_user, check_rows_are_dense, reported_dtype, to_tensor
from pgkmeans_sk.kernels.directions import to_directions
from pgkmeans_sk.kernels.vectors import vector_bytes

_HOST = torch.device("cpu")


def open_host_engine(X: Any, sample_weight: Any, directions: bool = False) -> TorchHostEngine:
    """Open the engine over validated rows (see ``open_engine``)."""
    check_rows_are_dense(X)
    rows: Any = X
    if isinstance(X, torch.Tensor):
        rows = to_tensor(X).to(_HOST, reported_dtype(X.dtype)).numpy()
    if directions:
        rows = to_directions(rows)
    weights = None if sample_weight is None else to_tensor(sample_weight).to(_HOST).numpy()
    engine = TorchHostEngine(rows, weights, X)
    if directions:
        engine.user_data = engine.like_rows(rows)
    return engine


class TorchHostEngine(NumbaEngine):
    """The Numba engine over ``X``, with results as the rows ``user_data`` are."""

    def __init__(
        self, X: NDArray[Any], sample_weight: NDArray[np.float64] | None, user_data: Any
    ) -> None:
        super().__init__(X, sample_weight)
        self.user_data = user_data

    @property
    def name(self) -> str:
        return f"torch-cpu-{8 * vector_bytes()}bit"

    @property
    def labels(self) -> Any:
        return self.like_rows(self._labels.copy())

    def like_rows(self, values: NDArray[Any]) -> Any:
        return as_user(torch.from_numpy(values), self.user_data)

    def nearest(self, centers: NDArray[np.floating]) -> Any:
        return self.like_rows(super().nearest(centers))

    def _over(self, X: Any, sample_weight: NDArray[np.float64] | None) -> TorchHostEngine:
        return TorchHostEngine(X, sample_weight, self.like_rows(X))

    def distances(self, centers: NDArray[np.floating]) -> Any:
        return self.like_rows(super().distances(centers))
