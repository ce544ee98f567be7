"""StoredWeight: what a parametrization offers so that files, reports and ``bake`` know it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_layout import MatrixLayout
from pgkmeans_sk.nn.layers import tensor_of

StoredMatrix: TypeAlias = CompressedMatrix
"""The records that files hold for a weight's matrix."""

StoredLayout: TypeAlias = MatrixLayout
"""Their sizes and dtypes, known before they are made."""


class StoredWeight(nn.Module, ABC):
    """A parametrization of a weight that files hold as a record of few bits.

    It is the first parametrization of its tensor. ``parametrizations.<name>.original``, here called
    the original, is a parameter in the dtype of the weight; what else the weight depends on are
    attributes and buffers of the parametrization. ``forward(original)`` is the weight as the model
    uses it. In evaluation mode that is the *stored weight*: what ``to_matrix(original)`` decodes
    to, bit for bit (bfloat16 rounded from float32). So ``save`` writes what the model is,
    ``load`` brings it back, ``bake`` and ``cached`` change no output.

    A subclass sets ``shape`` and ``axis``, and defines ``decode``, ``to_matrix`` and
    ``stored_layout``. None of these may write to the original.

    Attributes
    ----------
    shape : tuple of int
        Of the weight.
    axis : int
        The axis of the weight that is the rows of its matrix; 0 if there is ``group_size``.
    group_size : int or None
        If given, the columns of the matrix are groups of so many consecutive values of the
        flattened weight (``layers.matrix_of``).
    original_is_codebook : bool
        Whether the original holds code words (and several weights may share it), not the weight
        itself as it is trained.
    """

    shape: tuple[int, ...]
    axis: int
    group_size: int | None = None
    original_is_codebook: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._decoded: Tensor | None = None

    # ---------------------------------------------------------------- what subclasses define

    @abstractmethod
    def decode(self, original: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows (n, n_features) of the stored weight's matrix, in the dtype of ``original``.

        Parameters
        ----------
        original : Tensor
            The original.
        rows : integer tensor of shape (n,), default=None
            Numbers of rows, in any order; None means all. Negative ones are refused.
        """

    @abstractmethod
    def to_matrix(self, original: Tensor) -> StoredMatrix:
        """The weight's matrix as the record that a file holds.

        Raises
        ------
        ValueError
            If there are values that no file can hold.
        """

    @abstractmethod
    def stored_layout(self, original: Tensor) -> StoredLayout:
        """The layout of ``to_matrix(original)``, without the work of making that."""

    @property
    def n_unused(self) -> int | None:
        """Code words that no block means, where the record alone does not say it.

        A codebook that several weights share has words that only others use. None: as the record
        says.
        """
        return None

    # ---------------------------------------------------------------- what follows from it

    def dense(self, original: Tensor) -> Tensor:
        """The stored weight as a contiguous tensor that knows nothing of the original."""
        with torch.no_grad():
            matrix = self.decode(original)
            return tensor_of(matrix, self.shape, self.axis, self.group_size).contiguous()

    @property
    def is_cached(self) -> bool:
        """Whether ``forward`` has nothing to decode: then it returns ``cached_weight``."""
        return self._decoded is not None and not self.training

    @property
    def cached_weight(self) -> Tensor | None:
        """The stored weight, if it is kept and may be used now."""
        return self._decoded if self.is_cached else None

    def keep_decoded(self, original: Tensor) -> None:
        """Decode for all reads in evaluation mode, until ``forget_decoded``."""
        self._decoded = self.dense(original)

    def forget_decoded(self) -> None:
        """Decode each time again."""
        self._decoded = None
