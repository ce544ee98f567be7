"""Saving compressed matrices and tensors, and opening what was saved (docs/storage_format.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Protocol
from zlib import crc32

from pgkmeans_sk.codes.description import (
    CarriedDescription,
    CompressedDescription,
    FileDescription,
    stored_name,
)
from pgkmeans_sk.codes.description_text import CONTENT_FORMAT, FORMAT, to_metadata
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_layout import MatrixLayout, layout_of, parts_of
from pgkmeans_sk.codes.matrix_values import check_values
from pgkmeans_sk.codes.stored_file import StoredFile
from pgkmeans_sk.codes.tensor_dtypes import to_bytes
from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.codes.tensor_writer import Buffer, Source, TensorEntry, open_writer

MATRIX = "matrix"
"""The name of a matrix that has a file of its own."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredTensor:
    """A tensor to be stored as codes.

    Attributes
    ----------
    shape : tuple of int
        Of the tensor; the matrix has the sizes along ``axis`` as rows, and all others, flattened,
        as columns, or its groups as columns (``CompressedDescription``).
    dtype : str
        Of the tensor: "F64", "F32", "F16" or "BF16".
    matrix : CompressedMatrix or callable
        The matrix, or a function without arguments that makes it when it is its turn: then
        only one is in memory at a time.
    layout : MatrixLayout or None
        What the function will make; needed for a function only.
    axis : int
        The axis that became rows; 0 if there is ``group_size``.
    group_size : int or None
        Values of a group.
    aliases : tuple of str
        Other names of the same tensor.
    codebooks_of : str or None
        The name of another of the tensors: its codebooks are stored for this one, too, so they must
        be equal, bit for bit. It must store its own.
    """

    shape: tuple[int, ...]
    dtype: str
    matrix: CompressedMatrix | Callable[[], CompressedMatrix]
    layout: MatrixLayout | None = None
    axis: int = 0
    group_size: int | None = None
    aliases: tuple[str, ...] = ()
    codebooks_of: str | None = None

    def description(self) -> CompressedDescription:
        """What is known before the matrix is made.

        Raises
        ------
        ValueError
            If the parts of the record do not go together.
        """
        layout = self.layout
        if isinstance(self.matrix, CompressedMatrix):
            layout = layout_of(self.matrix)
        elif layout is None:
            raise ValueError("got a function for the matrix, but expected its layout as well")
        return CompressedDescription(
            shape=tuple(self.shape),
            dtype=self.dtype,
            layout=layout,
            axis=self.axis,
            group_size=self.group_size,
            aliases=tuple(self.aliases),
            codebooks_of=self.codebooks_of,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class CarriedTensor:
    """A tensor to be stored as it is.

    Attributes
    ----------
    shape : tuple of int
        Its shape.
    dtype : str
        Its dtype, any that safetensors has.
    source : bytes-like or callable
        Its bytes, little-endian, or a function that gives them when it is their turn.
    aliases : tuple of str
        Other names of the same tensor.
    """

    shape: tuple[int, ...]
    dtype: str
    source: Source
    aliases: tuple[str, ...] = ()

    def description(self) -> CarriedDescription:
        """What is known without its bytes."""
        return CarriedDescription(
            shape=tuple(self.shape), dtype=self.dtype, aliases=tuple(self.aliases)
        )


def save_matrix(path: str | PathLike[str], matrix: CompressedMatrix) -> None:
    """Write one matrix, all of it or nothing.

    Parameters
    ----------
    path : str or PathLike
        The file; one that is there is replaced.
    matrix : CompressedMatrix
        What to write.

    Raises
    ------
    ValueError
        If the matrix is one that could not be loaded: a code beyond ``n_codes``, NaN in a codebook.
    OSError
        If the file cannot be written.
    ImportError
        If the library safetensors is absent.
    """
    with naming(path):
        dtype = layout_of(matrix).dtype
    save_tensors(path, {MATRIX: StoredTensor(shape=matrix.shape, dtype=dtype, matrix=matrix)})


def load_matrix(path: str | PathLike[str]) -> CompressedMatrix:
    """Read what ``save_matrix`` wrote.

    Raises
    ------
    ValueError
        If it is no such file, of a newer version, or damaged.
    OSError
        If it cannot be opened.
    ImportError
        If the library safetensors is absent.
    """
    with open_tensors(path) as file:
        return file.matrix(MATRIX)


def open_tensors(path: str | PathLike[str]) -> StoredFile:
    """Open what ``save_tensors`` wrote; reads the header only. See ``StoredFile``."""
    return StoredFile(path)


def save_tensors(
    path: str | PathLike[str],
    compressed: Mapping[str, StoredTensor],
    carried: Mapping[str, CarriedTensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write many tensors, all of them or nothing.

    Functions among the matrices and sources are called one after another, in the order given, and
    what they return is written before the next is called.

    Parameters
    ----------
    path : str or PathLike
        The file; one that is there is replaced.
    compressed : mapping of str to StoredTensor
        Tensors to store as codes.
    carried : mapping of str to CarriedTensor, default=None
        Tensors to store as they are.
    metadata : mapping of str to str, default=None
        What the original file said beside its tensors.

    Raises
    ------
    ValueError
        Before anything is written, if names clash or a tensor's record does not go together; later
        if a function returns other than was announced, a matrix is one that could not be loaded, or
        has other codebooks than the tensor that is to store them.
    OSError
        If the file cannot be written.
    ImportError
        If the library safetensors is absent.
    """
    carried = carried or {}
    with naming(path):
        description = _described(compressed, carried, metadata or {})
        specs, header = description.specs(), to_metadata(description)
    with open_writer(path, specs, header) as writer:
        written = _write_all(writer, description, compressed, carried)
        with naming(path):
            writer.metadata = to_metadata(written)


def collect_tensors(
    compressed: Mapping[str, StoredTensor],
    carried: Mapping[str, CarriedTensor] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> tuple[list[TensorEntry], dict[str, str]]:
    """What ``save_tensors`` writes, for another library that writes safetensors files.

    Such a library may put its own "format" into the metadata; that it holds codes is said under
    another key as well.

    Parameters
    ----------
    compressed, carried, metadata
        As of ``save_tensors``.

    Returns
    -------
    entries : list of TensorEntry
        The tensors of the file, all in memory.
    metadata : dict of str to str
        The metadata of the file.

    Raises
    ------
    ValueError
        As ``save_tensors``.
    """
    carried = carried or {}
    description = _described(compressed, carried, metadata or {})
    collector = _Collector()
    written = _write_all(collector, description, compressed, carried)
    entries = [TensorEntry(*spec, collector.written[spec.name]) for spec in description.specs()]
    return entries, {**to_metadata(written), CONTENT_FORMAT: FORMAT}


class _Receiver(Protocol):
    """Takes the bytes of one tensor after the other."""

    path: str | PathLike[str]

    def write(self, name: str, data: Buffer) -> None: ...


class _Collector:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.path: str | PathLike[str] = "the file"
        self.written: dict[str, Buffer] = {}

    def write(self, name: str, data: Buffer) -> None:
        """Keep the bytes of one tensor."""
        self.written[name] = data


def _write_all(
    receiver: _Receiver,
    description: FileDescription,
    compressed: Mapping[str, StoredTensor],
    carried: Mapping[str, CarriedTensor],
) -> FileDescription:
    """Write all tensors; returns the description with what is known only now."""
    shared = _SharedCodebooks(description.compressed)
    done = {
        name: _write_matrix(receiver, name, description.compressed[name], tensor, shared)
        for name, tensor in compressed.items()
    }
    kept = {
        name: replace(description.carried[name], checksum=_write(receiver, name, tensor.source))
        for name, tensor in carried.items()
    }
    return replace(description, compressed=done, carried=kept)


def _described(
    compressed: Mapping[str, StoredTensor],
    carried: Mapping[str, CarriedTensor],
    metadata: Mapping[str, str],
) -> FileDescription:
    coded = {}
    for name, tensor in compressed.items():
        with naming(f"tensor {name!r}"):
            coded[name] = tensor.description()
    plain = {name: tensor.description() for name, tensor in carried.items()}
    return FileDescription(compressed=coded, carried=plain, metadata=metadata)


class _SharedCodebooks:
    """The codebooks that several tensors use, as the first of them to be written has them."""

    def __init__(self, described: Mapping[str, CompressedDescription]) -> None:
        self._owners = {t.codebooks_of for t in described.values() if t.codebooks_of is not None}
        self._first: dict[str, tuple[str, memoryview]] = {}

    def check(self, name: str, described: CompressedDescription, matrix: CompressedMatrix) -> None:
        """Raise unless a matrix has the codebooks of those that it shares them with."""
        owner = described.codebooks_of or name
        if owner not in self._owners:
            return
        # Copied, since whoever made it may use the memory for the next.
        books = to_bytes(matrix.decoder.codebooks.copy(), described.layout.codebook_dtype)
        other, expected = self._first.setdefault(owner, (name, books))
        if books != expected:
            raise ValueError(
                f"got other codebooks than tensor {other!r}, but expected the same in all tensors "
                f"that use those of {owner!r}"
            )


def _write_matrix(
    writer: _Receiver,
    name: str,
    described: CompressedDescription,
    tensor: StoredTensor,
    shared: _SharedCodebooks,
) -> CompressedDescription:
    """Write one matrix; returns its description with what is known only now."""
    made = tensor.matrix
    matrix = made if isinstance(made, CompressedMatrix) else made()
    arrays = parts_of(matrix)
    with naming(f"{writer.path}: tensor {name!r}"):
        layout = layout_of(matrix)
        if layout != described.layout:
            raise ValueError(f"got a matrix of {layout}, but expected {described.layout}")
        check_values(layout, arrays)
        shared.check(name, described, matrix)
    checksums = {
        part: _write(writer, stored_name(name, part), to_bytes(arrays[part], dtype))
        for part, (dtype, _) in described.parts().items()
    }
    return replace(
        described,
        relative_error=float(matrix.relative_error),
        entropy=float(matrix.entropy),
        checksums=checksums,
    )


def _write(writer: _Receiver, stored: str, source: Source) -> int:
    """Write one stored tensor; returns its CRC-32."""
    data = source() if callable(source) else source
    writer.write(stored, data)
    return crc32(data)
