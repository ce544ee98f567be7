"""Writing safetensors files whose tensors need not be in memory together.

The library's own writer takes all tensors at once. What it would write is validated by it
nevertheless, before it takes the place of an older file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from pgkmeans_sk.codes.atomic import replaced
from pgkmeans_sk.codes.tensor_dtypes import ITEM_BITS, stored_bytes
from pgkmeans_sk.codes.tensor_file import LARGEST_SIZE, METADATA, library, naming, validate

LARGEST_HEADER = 100_000_000
"""Bytes of a header that the library is willing to read."""

Buffer: TypeAlias = Any
"""Bytes, a memoryview, an array: anything with the buffer protocol, contiguous in C order."""

Source: TypeAlias = Buffer | Callable[[], Buffer]
"""The bytes of a tensor, or a function that gives them when it is their turn."""


class TensorSpec(NamedTuple):
    """What a header says of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class TensorEntry(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Source


def write_tensors(
    path: str | PathLike[str], entries: Iterable[TensorEntry], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, all of it or nothing.

    Parameters
    ----------
    path : str or PathLike
        The file; one that is there is replaced when all has been written.
    entries : iterable of (name, dtype, shape, source)
        Tensors in any order. Their sources are asked in the order of the file: wide items first.
    metadata : mapping of str to str
        What the header says beside its tensors.

    Raises
    ------
    ValueError
        If names are not unique, a dtype is not in the format, a source gives other than the bytes
        that its dtype and shape need.
    OSError
        If the file cannot be written.
    ImportError
        If the library safetensors is absent.
    """
    sources = {}
    specs = []
    for name, dtype, shape, source in entries:
        sources[name] = source
        specs.append(TensorSpec(name, dtype, tuple(shape)))
    with open_writer(path, specs, metadata) as writer:
        for spec in _in_order(specs):
            source = sources[spec.name]
            writer.write(spec.name, source() if callable(source) else source)


@contextmanager
def open_writer(
    path: str | PathLike[str], specs: Sequence[TensorSpec], metadata: Mapping[str, str]
) -> Iterator[TensorWriter]:
    """A writer to which each tensor is to be given once, in any order.

    All of ``specs`` is checked before anything is written; the file appears when the block ends.

    Raises
    ------
    ValueError, OSError, ImportError
        As ``write_tensors`` does; also if a tensor was not given.
    """
    library()  # whoever could not read the file should learn it before the work
    with naming(path):
        header(specs, metadata)
    with replaced(path) as file:
        writer = TensorWriter(path, file, specs, metadata)
        yield writer
        with naming(path):
            writer.finish()
            validate(Path(file.name))


class TensorWriter:
    """Puts tensors where the header will say they are; made by ``open_writer``.

    Attributes
    ----------
    metadata : mapping of str to str
        May be replaced until the file is finished, by one that takes as many bytes: checksums of
        what is written are known only afterwards, but stand in front of it.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        file: BinaryIO,
        specs: Sequence[TensorSpec],
        metadata: Mapping[str, str],
    ) -> None:
        self.metadata = metadata
        self.path = path
        self._file = file
        self._specs = specs
        self._start = header_bytes(specs, metadata)
        self._places = {
            spec.name: (self._start + begin, end - begin) for spec, begin, end in _laid_out(specs)
        }
        self._missing = dict.fromkeys(self._places)

    def write(self, name: str, data: Buffer) -> None:
        """Write the bytes of one tensor."""
        start, n_bytes = self._places[name]
        view = memoryview(data)
        if view.nbytes != n_bytes or not view.c_contiguous:
            raise ValueError(
                f"{self.path}: tensor {name!r}: got {view.nbytes} bytes, but expected {n_bytes}, "
                "contiguous in C order"
            )
        self._file.seek(start)
        self._file.write(view)
        self._missing.pop(name, None)

    def finish(self) -> None:
        """Write the header."""
        if self._missing:
            raise ValueError(
                f"got no bytes for tensor {next(iter(self._missing))!r}, but expected them"
            )
        text = header(self._specs, self.metadata)
        if len(text) != self._start:
            raise ValueError(f"got a header of {len(text)} bytes, but expected {self._start}")
        self._file.seek(0)
        self._file.write(text)
        self._file.flush()


def header_bytes(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> int:
    """Bytes of a file before the first tensor: its first 8 and the padded header."""
    return len(header(specs, metadata))


def header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """All that comes before the first tensor.

    Raises
    ------
    ValueError
        If names are not unique, a dtype or shape is not in the format, a text is not Unicode, or
        the header is longer than readers accept.
    """
    _check_names(specs)
    check_texts(metadata)
    content: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for spec, begin, end in _laid_out(specs):
        content[spec.name] = {
            "dtype": spec.dtype,
            "shape": [int(size) for size in spec.shape],
            "data_offsets": [begin, end],
        }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > LARGEST_HEADER:
        raise ValueError(
            f"got a header of {len(text)} bytes, but expected at most {LARGEST_HEADER}"
        )
    return len(text).to_bytes(8, "little") + text


def _check_names(specs: Sequence[TensorSpec]) -> None:
    seen = {METADATA}
    for spec in specs:
        if spec.name in seen:
            raise ValueError(f"got a second tensor {spec.name!r}, but expected unique names")
        seen.add(spec.name)
        if not is_text(spec.name):
            raise ValueError(f"got a tensor with the name {spec.name!r}, but expected Unicode")


def check_texts(metadata: Mapping[str, str]) -> None:
    """Raise unless keys and values are strings that a header can hold."""
    for key, value in metadata.items():
        if not is_text(key) or not is_text(value):
            raise ValueError(
                f"got metadata {short(key)}: {short(value)}, but expected two Unicode strings"
            )


def is_text(value: object) -> bool:
    """Whether it is a string that UTF-8 can say: one without lone surrogates."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _in_order(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Wider items first, so that all are aligned to their own width; then by name."""
    for spec in specs:
        with naming(f"tensor {spec.name!r}"):
            if any(not 0 <= size <= LARGEST_SIZE for size in spec.shape):
                raise ValueError(f"got the shape {spec.shape}, but expected sizes >= 0")
            stored_bytes(spec.dtype, spec.shape)
    return sorted(specs, key=lambda spec: (-ITEM_BITS[spec.dtype], spec.name))


def _laid_out(specs: Sequence[TensorSpec]) -> Iterator[tuple[TensorSpec, int, int]]:
    """Tensors in the order of the file, with the bytes after the header where each begins, ends."""
    ordered = _in_order(specs)
    ends = accumulate((stored_bytes(spec.dtype, spec.shape) for spec in ordered), initial=0)
    begin = next(ends)
    for spec, end in zip(ordered, ends, strict=True):
        yield spec, begin, end
        begin = end
