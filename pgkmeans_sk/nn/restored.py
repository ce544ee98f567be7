"""From the record of a file to the parametrization of a weight."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.stored_weight import StoredMatrix, StoredWeight


def restored_weight(
    matrix: StoredMatrix,
    shape: tuple[int, ...],
    axis: int,
    *,
    group_size: int | None = None,
    gradient: str,
) -> tuple[StoredWeight, NDArray[Any]]:
    """What a weight of ``shape`` is made of whose matrix along ``axis`` a file holds.

    A kind of record is added by a branch here.

    Parameters
    ----------
    matrix : StoredMatrix
        The record.
    shape : tuple of int
        Of the weight.
    axis : int
        The axis of the weight that is the rows of its matrix.
    group_size : int or None
        If given, the columns of the matrix are groups of values of the weight.
    gradient : {"mean", "sum"}
        As of ``CodebookWeight``.

    Returns
    -------
    weight : StoredWeight
        The parametrization.
    original : ndarray
        The values of its original, in the dtype in which they are stored.
    """
    weight = CodebookWeight.from_matrix(
        matrix, shape, axis, group_size=group_size, gradient=gradient
    )
    return weight, matrix.decoder.codebooks
