"""StoredFile: a file of codes, open for reading, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from types import MappingProxyType, TracebackType
from typing import Any
from weakref import WeakValueDictionary
from zlib import crc32

from numpy.typing import NDArray

from pgkmeans_sk.codes.description import CarriedDescription, CompressedDescription, stored_name
from pgkmeans_sk.codes.description_text import read_description
from pgkmeans_sk.codes.json_values import checksum_text
from pgkmeans_sk.codes.matrix_kinds import StoredMatrix, check_values, matrix_of
from pgkmeans_sk.codes.matrix_layout import MatrixLayout
from pgkmeans_sk.codes.tensor_dtypes import to_array, to_bytes
from pgkmeans_sk.codes.tensor_file import TensorFile, naming


class StoredFile:
    """A file of compressed and carried tensors, open for reading; a context manager.

    Opening reads and checks the header. Data is read, and its checksums compared, when it is asked
    for. A tensor is found by its name or by any of its aliases.

    Attributes
    ----------
    compressed : mapping of str to CompressedDescription
        Tensors that are stored as codes.
    carried : mapping of str to CarriedDescription
        Tensors that are stored as they were.
    metadata : mapping of str to str
        What the original file said beside its tensors.
    n_bytes : int
        Size of the file.
    path : Path
        The file; messages of errors begin with it.

    Raises
    ------
    ValueError
        If it is no such file, of a newer version, or damaged.
    OSError
        If it cannot be opened.
    ImportError
        If the library safetensors is absent.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._file = TensorFile(path)
        try:
            found = read_description(self._file)
        except BaseException:
            self.close()
            raise
        self.compressed: Mapping[str, CompressedDescription] = MappingProxyType(
            dict(found.compressed)
        )
        self.carried: Mapping[str, CarriedDescription] = MappingProxyType(dict(found.carried))
        self.metadata: Mapping[str, str] = MappingProxyType(dict(found.metadata))
        self.n_bytes = self._file.n_bytes
        self.path = self._file.path
        self._owners = {tensor.codebooks_of for tensor in found.compressed.values()}
        self._read_codebooks: WeakValueDictionary[str, NDArray[Any]] = WeakValueDictionary()
        self._names: dict[str, str] = {}
        for tensors in (found.compressed, found.carried):
            for name, tensor in tensors.items():
                self._names.update(dict.fromkeys((name, *tensor.aliases), name))

    def __enter__(self) -> StoredFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def matrix(self, name: str) -> StoredMatrix:
        """Read a compressed tensor.

        Tensors that share codebooks have one array of them, as long as any of it is kept.

        Raises
        ------
        ValueError
            If there is none of this name, or its arrays are damaged.
        """
        name = self._known(name, self.compressed, "compressed")
        described = self.compressed[name]
        arrays = {
            part: self._part(stored_name(name, part), checksum)
            for part, checksum in described.checksums.items()
            if part != "codebooks"
        }
        if isinstance(described.layout, MatrixLayout):
            arrays["codebooks"] = self._codebooks(described.codebooks_of or name)
        with naming(f"{self._file.path}: tensor {name!r}"):
            check_values(described.layout, arrays)
        return matrix_of(described.layout, arrays, described.relative_error, described.entropy)

    def raw(self, name: str) -> memoryview:
        """The bytes of a carried tensor, read-only and not copied.

        Raises
        ------
        ValueError
            If there is none of this name, or it is damaged.
        """
        name = self._known(name, self.carried, "carried")
        return self._checked(name, self.carried[name].checksum)

    def array(self, name: str) -> NDArray[Any]:
        """A tensor in its own shape: decoded, in the dtype of decoded rows, or as it was carried.

        Raises
        ------
        ValueError
            As ``matrix`` or ``raw`` do, or if it was carried in a dtype that NumPy does not have.
        """
        if self._names.get(name) in self.compressed:
            described = self.compressed[self._names[name]]
            return described.restore(self.matrix(name).decode())
        raw = self.raw(name)
        carried = self.carried[self._names[name]]
        with naming(f"{self._file.path}: tensor {name!r}"):
            return to_array(raw, carried.dtype, carried.shape)

    def original_bytes(self, name: str) -> memoryview:
        """The bytes of a tensor in its original shape and dtype: what a decompressed file holds.

        Raises
        ------
        ValueError
            As ``matrix`` or ``raw`` do.
        """
        if self._names.get(name) in self.compressed:
            return to_bytes(self.array(name), self.compressed[self._names[name]].dtype)
        return self.raw(name)

    def _known(self, name: str, tensors: Mapping[str, Any], kind: str) -> str:
        """The name under which a tensor is stored."""
        found = self._names.get(name)
        if found not in tensors or found is None:
            raise ValueError(
                f"{self._file.path}: got the name {name!r}, but expected that of a {kind} tensor; "
                f"there are {len(tensors)}: {', '.join(map(repr, list(tensors)[:5]))}"
            )
        return found

    def _codebooks(self, owner: str) -> NDArray[Any]:
        """The codebooks that are stored for a tensor, the same array while it is in use."""
        found = self._read_codebooks.get(owner)
        if found is None:
            checksum = self.compressed[owner].checksums["codebooks"]
            found = self._part(stored_name(owner, "codebooks"), checksum)
            if owner in self._owners:
                self._read_codebooks[owner] = found
        return found

    def _part(self, stored: str, checksum: int) -> NDArray[Any]:
        """A stored array, once its checksum is right."""
        raw = self._checked(stored, checksum)
        return to_array(raw, self._file.dtype(stored), self._file.shape(stored))

    def _checked(self, stored: str, checksum: int) -> memoryview:
        """The bytes of a stored tensor, once their checksum is right."""
        raw = self._file.raw(stored)
        found = crc32(raw)
        if found != checksum:
            raise ValueError(
                f"{self._file.path}: tensor {stored!r}: got the CRC-32 {checksum_text(found)}, "
                f"but expected {checksum_text(checksum)}: the file is damaged"
            )
        return raw
