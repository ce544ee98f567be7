"""How the inputs of a layer have drifted since earlier layers were compressed, added up.

The layer of the uncompressed model takes in x + d, that of the compressed one x. What it should
give for x is ``W (x + d) + r``, where r is how much more the uncompressed model has to add to the
output afterwards (0 if nothing is known of that). So W x lacks ``W d + r``.

Note [A point nearby]
~~~~~~~~~~~~~~~~~~~~~
What varies little around a large mean would be lost in the rounding of the products, once the mean
is taken off. So sums are of ``x - c`` from the beginning, where c is the mean of the first rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgkmeans_sk.nn.moments import ROWS_AT_ONCE, MomentSums

Doubles = NDArray[np.float64]

LEAST_VARIANCE = 1e-10
"""Of inputs, relative to their squared mean: less is what rounding to float32 makes."""


@dataclass(frozen=True, kw_only=True)
class DriftedInputs:
    """What ``compress_with_feedback`` is told of a layer in a model that is compressed in part.

    Attributes
    ----------
    second_moment : ndarray of shape (in, in)
        ``E[x x^T]``; with means taken off, if those are in ``mean``.
    drift : ndarray of shape (out, in)
        ``E[(W d + r) x^T]``, likewise.
    mean : ndarray of shape (in,)
        ``E[x]``, zeros if it was not taken off.
    mean_lack : ndarray of shape (out,)
        ``E[W d + r]``, likewise.
    """

    second_moment: Doubles
    drift: Doubles
    mean: Doubles
    mean_lack: Doubles

    def varies(self) -> bool:
        """Whether there is more than rounding errors around the mean."""
        variance = float(np.einsum("jj->", self.second_moment))
        return variance > LEAST_VARIANCE * float(self.mean @ self.mean)

    def around_zero(self) -> DriftedInputs:
        """The same of inputs and outputs with their means."""
        return DriftedInputs(
            second_moment=self.second_moment + np.outer(self.mean, self.mean),
            drift=self.drift + np.outer(self.mean_lack, self.mean),
            mean=np.zeros_like(self.mean),
            mean_lack=np.zeros_like(self.mean_lack),
        )


class DriftSums:
    """Sums over the inputs of one layer in both models.

    Parameters
    ----------
    n_columns : int
        Length of an input.
    device : torch.device
        Where the sums are.
    """

    def __init__(self, n_columns: int, device: torch.device) -> None:
        self._squares = MomentSums(n_columns, 1, 8 * n_columns**2, device)
        self._drift = _CrossSums(n_columns, n_columns, device)
        self._rest: _CrossSums | None = None
        self._near: Tensor | None = None  # see Note [A point nearby]

    def add(self, inputs: Tensor, compressed: Tensor, rest: Tensor | None) -> None:
        """Add rows: inputs of both models (n, in) and, where it is known, r (n, out)."""
        if not len(compressed):
            return
        if self._near is None:
            self._near = compressed.mean(0)
        # Of a model on several devices, an earlier state may come from another one.
        inputs = inputs.to(compressed.device)
        shifted = compressed - self._near
        self._squares.add(shifted[:, None], slice(None))
        self._drift.add(inputs - compressed, shifted)
        if rest is not None:
            if self._rest is None:
                self._rest = _CrossSums(rest.shape[1], compressed.shape[1], compressed.device)
            self._rest.add(rest.to(compressed.device, compressed.dtype), shifted)

    def inputs(self, weight: Doubles, *, is_centered: bool) -> DriftedInputs | None:
        """Averages for a layer of ``weight`` (out, in); None if nothing was added.

        Means stay on inputs that hardly vary: there would be nothing left.
        """
        record = self._squares.record(1)
        if record is None or self._near is None:
            return None
        assert record.full is not None
        drift, mean_drift = self._drift.averages(record.n_rows)
        lack, mean_lack = weight @ drift, weight @ mean_drift
        if self._rest is not None:
            rest, mean_rest = self._rest.averages(record.n_rows)
            lack, mean_lack = lack + rest, mean_lack + mean_rest
        near, off = self._near.double().cpu().numpy(), record.mean
        centered = DriftedInputs(
            second_moment=record.full - np.outer(off, off),
            drift=lack - np.outer(mean_lack, off),
            mean=near + off,
            mean_lack=mean_lack,
        )
        return centered if is_centered and centered.varies() else centered.around_zero()


class _CrossSums:
    """``E[a x^T]`` and ``E[a]``, as precise as Note [Precision of sums] of moments says."""

    def __init__(self, n_rows: int, n_columns: int, device: torch.device) -> None:
        self._products = torch.zeros(n_rows, n_columns, dtype=torch.float64, device=device)
        self._sums = torch.zeros(n_rows, dtype=torch.float64, device=device)

    def add(self, left: Tensor, right: Tensor) -> None:
        chunks = torch.split(left, ROWS_AT_ONCE), torch.split(right, ROWS_AT_ONCE)
        for a, x in zip(*chunks, strict=True):
            self._products += a.mT @ x
            self._sums += a.sum(0)

    def averages(self, count: int) -> tuple[Doubles, Doubles]:
        products, sums = self._products.cpu().numpy(), self._sums.cpu().numpy()
        return products / count, sums / count
