"""Records of what a file of codes holds: its tensors without their arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.matrix_layout import MatrixLayout, Parts, check_size
from pgkmeans_sk.codes.tensor_writer import TensorSpec, check_texts, is_text

ORIGINAL_DTYPES = ("F64", "F32", "F16", "BF16")
"""Of tensors before compression."""


@dataclass(frozen=True, kw_only=True)
class CompressedDescription:
    """A compressed tensor, without its arrays.

    The matrix has the sizes along ``axis`` as rows, and all others, flattened, as columns. With
    ``group_size`` it is another one: the tensor, flattened in C order, is cut into groups of so
    many consecutive values, and each group is a column. So codebooks of single columns are those
    of groups.

    Attributes
    ----------
    shape : tuple of int
        Of the tensor before compression; each size is at least 1.
    dtype : str
        Of the tensor before compression: "F64", "F32", "F16" or "BF16". Decoded rows are of
        ``layout.dtype``.
    axis : int
        The axis that became rows; 0 if there is ``group_size``.
    group_size : int or None
        Values of a group, and rows of the matrix; it divides the number of values.
    aliases : tuple of str
        Other names of the same tensor (tied weights).
    layout : MatrixLayout
        Sizes and dtypes of the arrays.
    relative_error, entropy : float
        As of ``CompressedMatrix``.
    checksums : mapping of str to int
        CRC-32 of each array that is stored for it.
    codebooks_of : str or None
        The name of the compressed tensor whose codebooks this one uses, too; None if it has its
        own.

    Raises
    ------
    ValueError
        If shape, dtype, axis or group_size do not go with the layout.
    """

    shape: tuple[int, ...]
    dtype: str
    layout: MatrixLayout
    axis: int = 0
    group_size: int | None = None
    aliases: tuple[str, ...] = ()
    relative_error: float = 0.0
    entropy: float = 0.0
    checksums: Mapping[str, int] = field(default_factory=dict)
    codebooks_of: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ORIGINAL_DTYPES:
            raise ValueError(
                f"got dtype={self.dtype!r}, but expected one of {', '.join(ORIGINAL_DTYPES)}"
            )
        matrix_shape = rows_and_columns(self.shape, self.axis, self.group_size)
        expected = self.layout.n_rows, self.layout.n_features
        if matrix_shape != expected:
            form = "axis", self.axis
            if self.group_size is not None:
                form = "group_size", self.group_size
            raise ValueError(
                f"got the shape {self.shape} with {form[0]}={form[1]}, but expected one of "
                f"{expected[0]} rows and {expected[1]} columns"
            )

    def parts(self) -> Parts:
        """Dtype and shape of each array that is stored for it, by name."""
        found = self.layout.parts()
        if self.codebooks_of is not None:
            del found["codebooks"]
        return found

    def restore(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Decoded rows (n_rows, n_features) in the shape of the tensor."""
        if self.group_size is not None:
            return rows.T.reshape(self.shape)
        others = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return np.moveaxis(rows.reshape(self.shape[self.axis], *others), 0, self.axis)


@dataclass(frozen=True, kw_only=True)
class CarriedDescription:
    """A tensor that is stored as it was.

    Attributes
    ----------
    shape : tuple of int
        Its shape.
    dtype : str
        Its dtype, any that safetensors has.
    aliases : tuple of str
        Other names of the same tensor.
    checksum : int
        CRC-32 of its bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    aliases: tuple[str, ...] = ()
    checksum: int = 0


@dataclass(frozen=True, kw_only=True)
class FileDescription:
    """All that a file holds, without its arrays.

    Attributes
    ----------
    compressed : mapping of str to CompressedDescription
        By name.
    carried : mapping of str to CarriedDescription
        By name.
    metadata : mapping of str to str
        What the original file said beside its tensors.

    Raises
    ------
    ValueError
        If two tensors have one name, or would be stored under one; a text is not Unicode; a tensor
        uses the codebooks of one that has none of its own, or others than it needs.
    """

    compressed: Mapping[str, CompressedDescription]
    carried: Mapping[str, CarriedDescription]
    metadata: Mapping[str, str]

    def __post_init__(self) -> None:
        names: list[str] = []
        for tensors in (self.compressed, self.carried):
            for name, tensor in tensors.items():
                names += (name, *tensor.aliases)
        _check_unique("two tensors of the name", names)
        for name in names:
            if not is_text(name):
                raise ValueError(f"got the name {name!r}, but expected Unicode")
        check_texts(self.metadata)
        for name, tensor in self.compressed.items():
            if tensor.codebooks_of is not None:
                self._check_shared(name, tensor, tensor.codebooks_of)
        _check_unique("two tensors to store as", (spec.name for spec in self.specs()))

    def specs(self) -> list[TensorSpec]:
        """The tensors of the safetensors file."""
        found = [
            TensorSpec(stored_name(name, part), dtype, shape)
            for name, tensor in self.compressed.items()
            for part, (dtype, shape) in tensor.parts().items()
        ]
        carried = self.carried.items()
        return found + [TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in carried]

    def _check_shared(self, name: str, tensor: CompressedDescription, owner: str) -> None:
        """Raise unless ``owner`` stores the codebooks that a tensor needs."""
        claim = f"tensor {name!r}: got codebooks_of={owner!r}"
        found = self.compressed.get(owner) if isinstance(owner, str) else None
        if found is None:
            raise ValueError(f"{claim}, but expected the name of a compressed tensor")
        if found.codebooks_of is not None:
            raise ValueError(
                f"{claim}, but expected a tensor with codebooks of its own, not those of "
                f"{found.codebooks_of!r}"
            )
        books, needed = (t.layout.parts()["codebooks"] for t in (found, tensor))
        if books != needed:
            raise ValueError(
                f"{claim}, which are {books[0]} of the shape {books[1]}, but expected {needed[0]} "
                f"of the shape {needed[1]}"
            )


def rows_and_columns(
    shape: tuple[int, ...], axis: int, group_size: int | None = None
) -> tuple[int, int]:
    """The shape of the matrix for a tensor; ValueError if it has none."""
    for size in shape:
        check_size("a size of the shape", size)
    if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < len(shape):
        raise ValueError(f"got axis={axis!r}, but expected one of the {len(shape)} axes of {shape}")
    if group_size is None:
        return shape[axis], prod(shape[:axis] + shape[axis + 1 :])
    check_size("group_size", group_size)
    if axis != 0:
        raise ValueError(f"got axis={axis} with group_size={group_size}, but expected 0")
    n_groups, rest = divmod(prod(shape), group_size)
    if rest:
        raise ValueError(
            f"got group_size={group_size}, but expected a divisor of the {prod(shape)} values of "
            f"the shape {shape}"
        )
    return group_size, n_groups


def stored_name(name: str, part: str) -> str:
    """What an array of a compressed tensor is called in the file."""
    return f"{name}.{part}"


def _check_unique(what: str, names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(f"got {what} {name!r}, but expected unique names")
        seen.add(name)
