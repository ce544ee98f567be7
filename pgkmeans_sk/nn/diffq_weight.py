"""DiffQWeight: a weight whose groups of values learn how many bits they need."""

from __future__ import annotations

from math import log, prod, sqrt

import numpy as np
import torch
from torch import Tensor, nn

from pgkmeans_sk.codes.level_layout import LevelLayout
from pgkmeans_sk.codes.level_matrix import LevelMatrix
from pgkmeans_sk.codes.tensor_dtypes import dtype_name
from pgkmeans_sk.nn.counter_noise import WORD_BITS, random_words, random_words_at
from pgkmeans_sk.nn.dtypes import numpy_dtype, work_dtype
from pgkmeans_sk.nn.layers import matrix_of, tensor_of
from pgkmeans_sk.nn.levels import (
    Sizes,
    level_layout,
    levels_of,
    per_value,
    value_numbers,
)
from pgkmeans_sk.nn.stored_weight import StoredWeight

NOISES = ("uniform", "gaussian")

LARGEST_UNIT = 1.0 - 2.0**-24
"""The greatest float32 below 1, of which the inverse error function is finite."""


class DiffQWeight(StoredWeight):
    """The parametrization of a weight with differentiable quantization; registered by ``diffq``.

    Groups are ``group_size`` consecutive values of the weight's matrix, row after row; the last one
    may have fewer. In training mode the weight gets noise as large as the rounding error of so many
    bits as its group has. In evaluation mode it is rounded: what ``save`` writes.

    Parameters
    ----------
    shape : tuple of int
        Of the weight.
    axis : int
        The axis of the weight that is the rows of its matrix.
    group_size : int
        Values of a group, at most those of the weight.
    min_bits, max_bits : int
        Least and greatest number of bits.
    init_bits : float
        Of all groups at first, between those two.
    noise : {"uniform", "gaussian"}
        Its distribution.
    key : int
        Of the random stream.
    dtype : dtype
        Of the logits.

    Attributes
    ----------
    logits : Parameter of shape (n_groups,)
        ``bits = min_bits + sigmoid(logits) * (max_bits - min_bits)``.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = nn.diffq(torch.nn.Linear(64, 32))
    >>> (learned,) = model.parametrizations.weight
    >>> type(learned).__name__, tuple(model.weight.shape)
    ('DiffQWeight', (32, 64))
    """

    logits: nn.Parameter
    key: Tensor
    n_reads: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        axis: int,
        *,
        group_size: int,
        min_bits: int,
        max_bits: int,
        init_bits: float,
        noise: str,
        key: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.axis = axis
        self.sizes = Sizes(prod(shape), group_size)
        self.min_bits = min_bits
        self.max_bits = max_bits
        self.noise = noise
        share = (init_bits - min_bits) / (max_bits - min_bits)
        n_groups = -(-prod(shape) // group_size)
        self.logits = nn.Parameter(torch.full((n_groups,), log(share / (1 - share)), dtype=dtype))
        self.register_buffer("key", torch.tensor(key, dtype=torch.int64))
        self.register_buffer("n_reads", torch.tensor(0, dtype=torch.int64))

    # ---------------------------------------------------------------- bits

    def bits(self) -> Tensor:
        """How many bits each group has, (n_groups,), with gradients."""
        logits = self.logits.to(work_dtype(self.logits.dtype))
        return self.min_bits + torch.sigmoid(logits) * (self.max_bits - self.min_bits)

    def widths(self) -> Tensor:
        """The same as whole numbers, int64: what is stored."""
        return self.bits().detach().round().to(torch.int64)

    def group_counts(self) -> Tensor:
        """Values of each group, (n_groups,), int64."""
        counts = torch.full_like(self.logits, self.sizes.group_size, dtype=torch.int64)
        counts[-1] -= len(counts) * self.sizes.group_size - prod(self.shape)
        return counts

    # ---------------------------------------------------------------- the weight

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is used."""
        cached = self.cached_weight
        if cached is not None:
            return cached
        exact = matrix_of(weight, self.axis)
        used = self._used(exact.detach(), exact)
        return tensor_of(used, weight.shape, self.axis)

    def rows(self, weight: Tensor, numbers: Tensor, exact: Tensor) -> Tensor:
        """Some rows of what ``forward`` returns, without the others; a read.

        Parameters
        ----------
        weight : tensor of shape (n_rows, n_columns)
            The original; rows are those of its first axis.
        numbers : integer tensor of shape (n,)
            Which rows; a row may come several times.
        exact : tensor of shape (n, n_columns)
            These rows of the original, which get the gradient.

        Returns
        -------
        rows : tensor of shape (n, n_columns)
            Noisy or rounded.
        """
        return self._used(weight.detach(), exact, numbers)

    def decode(self, original: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows (n, n_features) of the rounded weight's matrix: all, or those of numbers ``rows``.

        The same arithmetic as ``LevelMatrix``'s.
        """
        matrix = matrix_of(original.detach(), self.axis)
        # Unlike matrix[rows], this refuses negative numbers, as an embedding does.
        exact = matrix if rows is None else matrix.index_select(0, rows)
        return self._rounded(matrix, exact, rows)[1]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What the original becomes when the weight is set: the same."""
        return weight

    def _used(self, matrix: Tensor, exact: Tensor, rows: Tensor | None = None) -> Tensor:
        if not self.training:
            rounded = self._rounded(matrix, exact.detach(), rows)[1]
            # Plus zero, which alone has a gradient.
            return rounded + (exact - exact.detach()) if torch.is_grad_enabled() else rounded
        # Checkpointed activations are computed again within the backward pass, and gradients
        # are right only if they come out as before: the last draw is repeated there.
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self.n_reads.add_(1)
        wide = work_dtype(exact.dtype)
        least, greatest = torch.aminmax(matrix)
        step = (greatest.to(wide) - least.to(wide)) / (torch.exp2(self.bits().to(wide)) - 1)
        steps = per_value(step, self.sizes.group_size, tuple(matrix.shape), rows)
        noise = self._drawn(tuple(matrix.shape), rows).to(wide)
        return exact + (steps * noise).to(exact.dtype)

    def _drawn(self, shape: tuple[int, ...], rows: Tensor | None) -> Tensor:
        """The noise of this read, in steps: uniform in [-1/2, 1/2], or normal with half of that."""
        n_rows, n_columns = shape
        n_reads = self.n_reads
        if torch.compiler.is_compiling():
            # Compiled backward passes draw again instead of keeping the noise, from buffers as
            # they are by then: counted once too often. What a sum made, they keep.
            n_reads = n_reads.reshape(1).cumsum(0).reshape(())
        if rows is None:
            words = random_words(self.key, n_reads, n_rows * n_columns).view(shape)
        else:
            numbers = value_numbers(rows, n_columns)
            words = random_words_at(self.key, n_reads, numbers)
        unit: Tensor = words.to(torch.float32) * float(2.0 ** (1 - WORD_BITS))  # in [-1, 1]
        if self.noise == "uniform":
            return 0.5 * unit
        # For z of the standard normal distribution, P(|z| < t) = erf(t / sqrt(2)).
        normal: Tensor = torch.erfinv(unit.clamp(-LARGEST_UNIT, LARGEST_UNIT))
        return normal * (0.5 * sqrt(2.0))

    def _rounded(self, matrix: Tensor, exact: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes of rows ``exact``, as whole floats, and the values that they stand for."""
        wide = work_dtype(exact.dtype)
        ranges = torch.stack(torch.aminmax(matrix)).unsqueeze(0).to(wide)
        shape = tuple(matrix.shape)
        least, step, top = levels_of(ranges, self.widths(), self.sizes, shape, rows)
        divisor = torch.where(step > 0, step, torch.ones_like(step))
        codes = torch.round((exact.to(wide) - least) / divisor)
        codes = torch.minimum(codes.clamp(min=0), top)
        return codes, (codes * step + least).to(exact.dtype)

    # ---------------------------------------------------------------- other forms

    def to_matrix(self, original: Tensor) -> LevelMatrix:
        """The rounded weight's matrix as packed codes with a range and widths.

        Raises
        ------
        ValueError
            If the weight or a logit is not finite.
        """
        matrix = matrix_of(original.detach(), self.axis)
        self._check_finite(matrix)
        with torch.no_grad():
            codes, decoded = self._rounded(matrix, matrix, None)
            lost = torch.linalg.vector_norm(matrix - decoded, dtype=torch.float64)
            total = torch.linalg.vector_norm(matrix, dtype=torch.float64)
            extremes = torch.stack(torch.aminmax(matrix)).unsqueeze(0)
            ranges = extremes.to(work_dtype(matrix.dtype)).cpu().numpy()
        levels = codes.cpu().numpy()
        return LevelMatrix.from_codes(
            levels.astype(np.uint8) if int(levels.max()) < 256 else levels.astype(np.uint16),
            self.widths().cpu().numpy(),
            ranges.astype(numpy_dtype(original.dtype)),
            range_size=self.sizes.range_size,
            group_size=self.sizes.group_size,
            dtype=numpy_dtype(original.dtype),
            relative_error=float(lost / total) if total else 0.0,
        )

    def stored_layout(self, original: Tensor) -> LevelLayout:
        """Sizes and dtypes of ``to_matrix(original)``, without making it."""
        self._check_finite(self.logits)
        n_rows = self.shape[self.axis]
        dtype = dtype_name(numpy_dtype(original.dtype))
        return level_layout(
            (n_rows, prod(self.shape) // n_rows),
            self.widths(),
            self.sizes,
            dtype=dtype,
            range_dtype=dtype,
        )

    def _check_finite(self, values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise ValueError("Got values that are not finite, but expected finite numbers.")

    def extra_repr(self) -> str:
        """Settings, for printed modules."""
        return (
            f"shape={self.shape}, group_size={self.sizes.group_size}, min_bits={self.min_bits}, "
            f"max_bits={self.max_bits}, noise={self.noise!r}"
        )
