"""Exact bytes of compressed matrices and of files, from shapes and settings alone."""

from __future__ import annotations

from collections.abc import Mapping

from pgkmeans_sk.codes.description import (
    CarriedDescription,
    CompressedDescription,
    FileDescription,
)
from pgkmeans_sk.codes.description_text import to_metadata
from pgkmeans_sk.codes.matrix_kinds import StoredLayout
from pgkmeans_sk.codes.matrix_layout import MatrixLayout, check_size
from pgkmeans_sk.codes.tensor_dtypes import stored_bytes
from pgkmeans_sk.codes.tensor_writer import header_bytes
from pgkmeans_sk.validation import check_choice


def planned_layout(
    shape: tuple[int, int],
    *,
    block_size: int = 8,
    n_codes: int = 256,
    codebook: str = "per_block",
    n_stages: int = 1,
    rotation: str | None = None,
    scale: str | None = None,
    has_column_scales: bool = False,
    dtype: str = "F32",
    codebook_dtype: str | None = None,
) -> MatrixLayout:
    """The layout of the matrix that a ``ProductQuantizer`` with these parameters will make.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the matrix.
    block_size, n_codes, codebook, n_stages, rotation, scale
        As of ``ProductQuantizer``.
    has_column_scales : bool, default=False
        Whether ``fit`` is given an importance for each column.
    dtype : str, default="F32"
        Of decoded rows, as safetensors call it: "F64", "F32" or "F16".
    codebook_dtype : str, default=None
        Of codebooks, scales and rotation; None means ``dtype``.

    Raises
    ------
    ValueError
        If a parameter is none that a matrix can have.
    """
    n_rows, n_features = shape
    check_choice("codebook", codebook, ("per_block", "shared"))
    for name, value, choices in (
        ("rotation", rotation, ("hadamard", "opq")),
        ("scale", scale, ("row", "block")),
    ):
        if value is not None:
            check_choice(name, value, choices)
    check_size("n_features", n_features)
    check_size("block_size", block_size)
    stored = codebook_dtype or dtype
    block_size = min(block_size, n_features)
    mixer_size = None
    if rotation is not None:
        # A Hadamard matrix does what is a power of two, and the mixer the odd rest.
        mixer_size = n_features if rotation == "opq" else n_features // (n_features & -n_features)
    return MatrixLayout(
        n_rows=n_rows,
        n_features=n_features,
        block_size=block_size,
        n_codes=n_codes,
        n_books=1 if codebook == "shared" else -(-n_features // block_size),
        n_stages=n_stages,
        dtype=dtype,
        codebook_dtype=stored,
        row_scale_dtype=stored if scale == "row" else None,
        block_scale_dtype=stored if scale == "block" else None,
        column_scale_dtype=stored if has_column_scales else None,
        mixer_size=mixer_size,
        mixer_dtype=None if mixer_size is None else stored,
    )


def matrix_bytes(layout: StoredLayout) -> dict[str, int]:
    """Bytes of each array of a matrix, by name; their sum is its ``nbytes``."""
    return {name: stored_bytes(dtype, shape) for name, (dtype, shape) in layout.parts().items()}


def tensor_bytes(tensor: CompressedDescription) -> int:
    """Bytes that a file holds for a tensor: codebooks count where they are stored."""
    return sum(stored_bytes(dtype, shape) for dtype, shape in tensor.parts().values())


def bits_per_weight(layout: StoredLayout) -> float:
    """Bits of all arrays of a matrix over the number of its values."""
    return 8 * sum(matrix_bytes(layout).values()) / (layout.n_rows * layout.n_features)


def file_bytes(
    compressed: Mapping[str, CompressedDescription],
    carried: Mapping[str, CarriedDescription] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """Bytes of the file that ``save_tensors`` writes: of its header, and of each stored tensor.

    Parameters
    ----------
    compressed : mapping of str to CompressedDescription
        Tensors to store as codes; errors, entropies and checksums may be left at their defaults,
        since they take the same bytes whatever they are.
    carried : mapping of str to CarriedDescription, default=None
        Tensors to store as they are.
    metadata : mapping of str to str, default=None
        What the original file says beside its tensors.

    Returns
    -------
    dict of str to int
        By the name in the file ("a.weight.codes"), the header as "". The sum is the file's size.

    Raises
    ------
    ValueError
        As ``save_tensors`` does before it writes.
    """
    description = FileDescription(
        compressed=compressed, carried=carried or {}, metadata=metadata or {}
    )
    specs = description.specs()
    header = header_bytes(specs, to_metadata(description))
    return {"": header, **{s.name: stored_bytes(s.dtype, s.shape) for s in specs}}
