"""Reading safetensors files one tensor at a time; knows nothing of quantization."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, cast

from numpy.typing import NDArray

from pgkmeans_sk.codes.strict_json import parse
from pgkmeans_sk.codes.tensor_dtypes import to_array

METADATA = "__metadata__"
"""The one name in a header that is not a tensor's."""

LARGEST_SIZE = 2**63 - 1
"""Of one axis: what NumPy can count to."""


@contextmanager
def naming(path: str | PathLike[str]) -> Iterator[None]:
    """Begin the message of each ValueError with the name of the file that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def validate(path: Path) -> None:
    """Have the header of a file checked by the safetensors library.

    Raises
    ------
    ValueError
        If it is not a valid safetensors file.
    ImportError
        If the library is absent.
    """
    safetensors = library()
    try:
        with safetensors.safe_open(path, framework="np"):
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a valid safetensors file: {error}") from error


def library() -> Any:
    """The module safetensors; an ImportError that says how to install it."""
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            "Reading and writing files of codes needs the library safetensors: "
            "pip install pgkmeans_sk[io]"
        ) from error
    return safetensors


class TensorFile:
    """A safetensors file, open for reading; a context manager.

    Opening reads the header only. The data is mapped into memory, so that the operating system
    loads what is used; nobody may shorten the file in place meanwhile.

    Parameters
    ----------
    path : str or PathLike
        The file.

    Attributes
    ----------
    path : Path
        The file.
    names : tuple of str
        Tensors in the order of their data.
    metadata : mapping of str to str
        What the header says beside its tensors.
    n_bytes : int
        Size of the file.

    Raises
    ------
    ValueError
        If it is not a valid safetensors file, or its header holds a key twice.
    OSError
        If it cannot be opened.
    ImportError
        If the library safetensors is absent.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._map: memoryview | None = None
        with naming(self.path):
            if self.path.exists() and not self.path.is_file() and not self.path.is_dir():
                raise ValueError("not a regular file")  # opening a pipe would wait for its writer
            with self.path.open("rb") as file:
                validate(self.path)
                # The map stays when the file is closed, and goes with the last view of it.
                self._map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self.n_bytes = self._map.nbytes
            self._start = 8 + int.from_bytes(self._map[:8], "little")
            self.metadata, self._places = _read_header(bytes(self._map[8 : self._start]))
        self.names = tuple(self._places)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. What ``raw`` gave remains readable as long as it is kept."""
        self._map = None

    def __contains__(self, name: object) -> bool:
        """Whether there is such a tensor."""
        return name in self._places

    def dtype(self, name: str) -> str:
        """What the format calls the dtype of a tensor: "F32", "BF16", "U8" and so on."""
        return self._place(name).dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._place(name).shape

    def raw(self, name: str) -> memoryview:
        """The bytes of a tensor, read-only, of any dtype, and not copied.

        Raises
        ------
        ValueError
            If there is no such tensor, or the file is closed.
        """
        place = self._place(name)
        if self._map is None:
            raise ValueError(f"{self.path}: got a closed file, but expected an open one")
        return self._map[self._start + place.begin : self._start + place.end]

    def array(self, name: str) -> NDArray[Any]:
        """A tensor as a new array: floats and integers as they are, BF16 exactly as float32.

        Raises
        ------
        ValueError
            As ``raw`` does, or if NumPy has no such dtype.
        """
        raw = self.raw(name)
        with naming(f"{self.path}: tensor {name!r}"):
            return to_array(raw, self.dtype(name), self.shape(name))

    def release(self) -> None:
        """Let what was read so far leave the memory of the process; it is read again if needed.

        Pages of the file count as memory of the process from the moment they are looked at. Who
        goes through a large file from tensor to tensor would seem to hold all of it in the end.
        """
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            cast(mmap.mmap, self._map.obj).madvise(mmap.MADV_DONTNEED)

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise ValueError(
                f"{self.path}: got the name {name!r}, but expected that of a tensor in the file"
            )
        return self._places[name]


class _Place(NamedTuple):
    """Where a tensor lies: ``begin`` and ``end`` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _read_header(text: bytes) -> tuple[Mapping[str, str], dict[str, _Place]]:
    """Metadata, and tensors in the order of their data. The library has been content with it."""
    header = parse(text)
    metadata = MappingProxyType(header.pop(METADATA, None) or {})
    places = {name: _read_place(name, entry) for name, entry in header.items()}
    return metadata, dict(sorted(places.items(), key=lambda item: item[1].begin))


def _read_place(name: str, entry: Any) -> _Place:
    # The library takes a list in place of an object; no writer gives that, so we need not.
    if not isinstance(entry, dict):
        raise ValueError(f"tensor {name!r}: got {entry!r}, but expected a JSON object")
    shape = tuple(entry["shape"])
    if any(size > LARGEST_SIZE for size in shape):
        raise ValueError(
            f"tensor {name!r}: got the shape {shape}, but expected sizes of at most {LARGEST_SIZE}"
        )
    return _Place(entry["dtype"], shape, *entry["data_offsets"])
