"""LevelWeight: a weight of evenly spaced levels, computed from trainable ranges and fixed codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgkmeans_sk.codes.level_layout import LevelLayout
from pgkmeans_sk.codes.level_matrix import LevelMatrix
from pgkmeans_sk.codes.tensor_dtypes import dtype_name
from pgkmeans_sk.nn.dtypes import numpy_dtype, work_dtype
from pgkmeans_sk.nn.layers import tensor_of
from pgkmeans_sk.nn.levels import Sizes, level_layout, levels_of
from pgkmeans_sk.nn.stored_weight import StoredWeight


class LevelWeight(StoredWeight):
    """The parametrization of a weight whose values are levels between a minimum and a maximum.

    ``load`` registers it for what files hold as a ``LevelMatrix``: then
    ``parametrizations.<name>.original`` of a module is the ranges, of shape (n_ranges, 2), minima
    and maxima, which optimisers train as any other parameter. The weight is decoded each time it is
    read; codes do not change.

    Made by ``from_matrix``.

    Attributes
    ----------
    shape : tuple of int
        Of the weight.
    axis : int
        The axis of the weight that is the rows of its matrix.
    codes : uint8 tensor of shape (n_rows, n_features) or (n_rows, n_features, 2)
        The level of each value; if there may be more than 256, the two bytes of its number, the
        lower one first.
    widths : uint8 tensor of shape (n_groups,)
        Bits of the codes of each group.
    sizes : Sizes
        How many values have one range, and one width.
    stored_dtype : numpy dtype
        Of the ranges in files. Ranges of wider numbers are rounded to it before they are used, with
        the gradient passed straight through.
    relative_error : float
        As of ``LevelMatrix``.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> model = nn.diffq(torch.nn.Linear(64, 32)).eval()
    >>> saved = nn.save(model, path)
    >>> again = nn.load(torch.nn.Linear(64, 32), path)
    >>> type(again.parametrizations.weight[0]).__name__, torch.equal(again.weight, model.weight)
    ('LevelWeight', True)
    """

    codes: Tensor
    widths: Tensor

    def __init__(
        self,
        codes: Tensor,
        widths: Tensor,
        *,
        shape: tuple[int, ...],
        axis: int,
        sizes: Sizes,
        stored_dtype: np.dtype[Any],
        relative_error: float,
    ) -> None:
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("widths", widths)
        self.shape = shape
        self.axis = axis
        self.sizes = sizes
        self.stored_dtype = stored_dtype
        self.relative_error = relative_error

    @classmethod
    def from_matrix(cls, matrix: LevelMatrix, shape: tuple[int, ...], axis: int) -> LevelWeight:
        """A parametrization of a weight of ``shape`` whose matrix along ``axis`` is ``matrix``."""
        codes = np.ascontiguousarray(matrix.codes())
        if codes.dtype != np.uint8:
            codes = codes.astype("<u2").view(np.uint8).reshape(*codes.shape, 2)
        return cls(
            torch.from_numpy(codes),
            torch.from_numpy(matrix.widths()),
            shape=tuple(shape),
            axis=axis,
            sizes=Sizes(matrix.layout.range_size, matrix.layout.group_size),
            stored_dtype=matrix.ranges.dtype,
            relative_error=matrix.relative_error,
        )

    def forward(self, ranges: Tensor) -> Tensor:
        """The weight, in the dtype of ``ranges``."""
        cached = self.cached_weight
        if cached is not None:
            return cached
        return tensor_of(self.decode(ranges), self.shape, self.axis)

    def decode(self, original: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows (n, n_features) of the weight's matrix: all, or those of numbers ``rows`` (n,).

        The same arithmetic as ``LevelMatrix``'s.
        """
        # Unlike codes[rows], this refuses negative numbers, as an embedding does.
        codes = self.codes if rows is None else self.codes.index_select(0, rows)
        if codes.ndim == 3:
            low, high = codes.to(torch.int32).unbind(2)
            codes = low + 256 * high
        wide = work_dtype(original.dtype)
        ranges = _rounded(original, self.stored_dtype).to(wide)
        least, step, _ = levels_of(ranges, self.widths, self.sizes, tuple(self.codes.shape), rows)
        return (codes.to(wide) * step + least).to(original.dtype)

    def wide_codes(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The codes as an array (n_rows, n_features), uint8 or uint16."""
        codes = self.codes.detach().cpu().contiguous().numpy()
        return codes if codes.ndim == 2 else codes.view("<u2")[..., 0].astype(np.uint16)

    def to_matrix(self, original: Tensor) -> LevelMatrix:
        """The weight's matrix as packed codes with ranges and widths.

        Raises
        ------
        ValueError
            If a range is not finite in its stored dtype, or has a minimum above its maximum.
        """
        wide = original.detach().cpu().to(work_dtype(original.dtype)).numpy()
        with np.errstate(over="ignore"):
            ranges = np.ascontiguousarray(wide.astype(self.stored_dtype))
        if not np.isfinite(ranges).all() or (ranges[:, 0] > ranges[:, 1]).any():
            raise ValueError(
                f"Got ranges that are not finite in {self.stored_dtype}, or with a minimum above "
                "the maximum, but expected ranges that levels can lie in."
            )
        return LevelMatrix.from_codes(
            self.wide_codes(),
            self.widths.cpu().numpy(),
            ranges,
            range_size=self.sizes.range_size,
            group_size=self.sizes.group_size,
            dtype=numpy_dtype(original.dtype),
            relative_error=self.relative_error,
        )

    def stored_layout(self, original: Tensor) -> LevelLayout:
        """Sizes and dtypes of ``to_matrix(original)``, without packing codes."""
        return level_layout(
            (self.codes.shape[0], self.codes.shape[1]),
            self.widths,
            self.sizes,
            dtype=dtype_name(numpy_dtype(original.dtype)),
            range_dtype=dtype_name(self.stored_dtype),
        )

    def extra_repr(self) -> str:
        """What it makes, for printed modules."""
        bits = sorted(set(self.widths.tolist())) if not self.widths.is_meta else "unknown"
        return f"shape={self.shape}, group_size={self.sizes.group_size}, bits={bits}"


def _rounded(ranges: Tensor, stored: np.dtype[Any]) -> Tensor:
    """The ranges rounded as they are stored, with their gradient."""
    dtype = getattr(torch, stored.name)
    if ranges.dtype.itemsize <= dtype.itemsize:
        return ranges
    value = ranges.detach().to(dtype).to(ranges.dtype)
    return value + (ranges - ranges.detach())
