"""The kinds of matrices that files hold: by codebooks, and by uniform levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from numpy.typing import NDArray

from pgkmeans_sk.codes import matrix_layout, matrix_values
from pgkmeans_sk.codes.level_layout import LevelLayout, check_level_values
from pgkmeans_sk.codes.level_matrix import LevelMatrix
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_layout import MatrixLayout
from pgkmeans_sk.codes.tensor_dtypes import dtype_name

StoredMatrix: TypeAlias = CompressedMatrix | LevelMatrix

StoredLayout: TypeAlias = MatrixLayout | LevelLayout
"""Their sizes and dtypes, known before they are made."""


def layout_of(matrix: StoredMatrix) -> StoredLayout:
    """The layout of a matrix; ValueError if its sizes or dtypes are none that a file can say."""
    if isinstance(matrix, LevelMatrix):
        return matrix.layout
    return matrix_layout.layout_of(matrix)


def parts_of(matrix: StoredMatrix) -> dict[str, NDArray[Any]]:
    """The arrays that a matrix is stored as, by name."""
    return matrix.parts() if isinstance(matrix, LevelMatrix) else matrix_layout.parts_of(matrix)


def matrix_of(
    layout: StoredLayout, parts: Mapping[str, NDArray[Any]], relative_error: float, entropy: float
) -> StoredMatrix:
    """The matrix that was stored as ``parts``, which have the dtypes and shapes of the layout."""
    if isinstance(layout, MatrixLayout):
        return matrix_layout.matrix_of(layout, parts, relative_error, entropy)
    return LevelMatrix(
        layout=layout,
        packed=parts["codes"],
        packed_widths=parts.get("widths"),
        ranges=parts["ranges"],
        relative_error=relative_error,
        entropy=entropy,
    )


def check_values(layout: StoredLayout, parts: Mapping[str, NDArray[Any]]) -> None:
    """Raise a ValueError unless the arrays are those of the layout, and can be decoded."""
    if isinstance(layout, MatrixLayout):
        matrix_values.check_values(layout, parts)
        return
    found = {name: (dtype_name(array.dtype), array.shape) for name, array in parts.items()}
    matrix_values.check_parts(layout, found)
    check_level_values(layout, parts)
