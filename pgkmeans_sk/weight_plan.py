"""What is to become of each tensor of a file, and the exact size of the result, before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from os import PathLike
from typing import Any

import numpy as np

from pgkmeans_sk.codes.description import (
    ORIGINAL_DTYPES,
    CarriedDescription,
    CompressedDescription,
)
from pgkmeans_sk.codes.description_text import claims_codes
from pgkmeans_sk.codes.matrix_layout import MatrixLayout
from pgkmeans_sk.codes.size import file_bytes, matrix_bytes
from pgkmeans_sk.codes.tensor_dtypes import ITEM_BITS, to_array
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.weight_report import FileReport, TensorReport

LEAST_TIED_BYTES = 4096
"""Of equal tensors that count as one: two small biases of zeros are equal by chance."""

BYTES_AT_ONCE = 2**22
"""That are looked at together, so that a plan needs no memory for whole tensors."""


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """What is to become of a tensor.

    Attributes
    ----------
    name, aliases, shape, dtype
        As of ``TensorReport``.
    n_bytes : int
        Of the tensor as it is.
    settings : TensorSettings
        How it is to be compressed.
    layout : MatrixLayout or None
        Sizes and dtypes of what is stored for it; None if it is carried.
    carried_because : str or None
        Why it is carried; None if it is not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    settings: TensorSettings
    layout: MatrixLayout | None
    carried_because: str | None
    aliases: tuple[str, ...] = ()

    def report(self) -> TensorReport:
        """What can be said of it before it is compressed."""
        layout = self.layout
        n_words = 0 if layout is None else layout.n_stages * layout.n_books * layout.n_codes
        return TensorReport(
            name=self.name,
            aliases=self.aliases,
            shape=self.shape,
            dtype=self.dtype,
            original_bytes=self.n_bytes * (1 + len(self.aliases)),
            stored_bytes=self.n_bytes if layout is None else sum(matrix_bytes(layout).values()),
            relative_error=0.0 if layout is None else None,
            n_code_words=n_words,
            n_unused_words=0 if layout is None else None,
            carried_because=self.carried_because,
        )


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """What is to become of the tensors of a file.

    Attributes
    ----------
    tensors : tuple of PlannedTensor
        In the order of their data.
    metadata : mapping of str to str
        What the file says beside its tensors.
    original_bytes : int
        Size of the file.
    unused_rules : tuple of str
        Rules of the spec that fit no tensor.
    """

    tensors: tuple[PlannedTensor, ...]
    metadata: Mapping[str, str]
    original_bytes: int
    unused_rules: tuple[str, ...]

    def compressed_descriptions(self) -> dict[str, CompressedDescription]:
        """Tensors to compress, as far as they are known."""
        return {
            t.name: CompressedDescription(
                shape=t.shape, dtype=t.dtype, layout=t.layout, aliases=t.aliases
            )
            for t in self.tensors
            if t.layout is not None
        }

    def carried_descriptions(self) -> dict[str, CarriedDescription]:
        """Tensors to carry, as far as they are known."""
        return {
            t.name: CarriedDescription(shape=t.shape, dtype=t.dtype, aliases=t.aliases)
            for t in self.tensors
            if t.layout is None
        }

    def predicted_bytes(self) -> dict[str, int]:
        """Bytes of the compressed file, exactly: by stored array, the header as ""."""
        return file_bytes(
            self.compressed_descriptions(), self.carried_descriptions(), self.metadata
        )

    def report(self, path: str | PathLike[str]) -> FileReport:
        """A report without errors and seconds, as if the file was at ``path`` already."""
        sizes = self.predicted_bytes()
        return FileReport(
            path=str(path),
            n_bytes=sum(sizes.values()),
            header_bytes=sizes[""],
            original_bytes=self.original_bytes,
            tensors=tuple(tensor.report() for tensor in self.tensors),
            metadata=dict(self.metadata),
            unused_rules=self.unused_rules,
        )


def plan_file(source: str | PathLike[str], spec: Any = None) -> FilePlan:
    """Say what ``compress_file`` would do, without doing it.

    Parameters
    ----------
    source : str or PathLike
        A safetensors file.
    spec : Spec, TensorSettings, dict or None
        How tensors are to be compressed.

    Returns
    -------
    plan : FilePlan
        Knows the size of the result to the byte.

    Raises
    ------
    ValueError
        If it is no safetensors file, or one of codes already.
    OSError
        If it cannot be read.
    """
    with TensorFile(source) as file:
        return plan_tensors(file, Spec.of(spec))


def plan_tensors(file: TensorFile, spec: Spec) -> FilePlan:
    """The plan for an open file."""
    check_not_compressed(file)
    single = [_planned(file, name, spec.settings_for(name)) for name in file.names]
    return FilePlan(
        tensors=tuple(_with_ties(file, single)),
        metadata=file.metadata,
        original_bytes=file.n_bytes,
        unused_rules=tuple(map(str, spec.unused_rules(file.names))),
    )


def is_compressed(file: TensorFile) -> bool:
    """Whether it claims to be a file of codes."""
    return claims_codes(file.metadata)


def check_not_compressed(file: TensorFile) -> None:
    """Raise if it is a file of codes."""
    if is_compressed(file):
        raise ValueError(f"{file.path}: got a file of codes, but expected one of plain tensors.")


def layout_for(shape: tuple[int, int], dtype: str, settings: TensorSettings) -> MatrixLayout:
    """What will be stored for a matrix of this shape, of a tensor of this dtype."""
    n_rows, n_features = shape
    block_size = min(settings.block_size, n_features)
    decoded = "F32" if dtype == "BF16" else dtype
    names = {None: decoded, "float16": "F16", "float32": "F32", "float64": "F64"}
    book = names[settings.codebook_dtype]
    mixer = None
    if settings.rotation is not None:
        # A Hadamard matrix takes the powers of two in the width, and the mixer what is left.
        powers = n_features & -n_features if settings.rotation == "hadamard" else 1
        mixer = n_features // powers
    return MatrixLayout(
        n_rows=n_rows,
        n_features=n_features,
        block_size=block_size,
        n_codes=settings.n_codes,
        n_books=1 if settings.codebook == "shared" else -(-n_features // block_size),
        n_stages=settings.n_stages,
        dtype=decoded,
        codebook_dtype=book,
        row_scale_dtype=book if settings.scale == "row" else None,
        block_scale_dtype=book if settings.scale == "block" else None,
        mixer_size=mixer,
        mixer_dtype=None if mixer is None else book,
    )


def _planned(file: TensorFile, name: str, settings: TensorSettings) -> PlannedTensor:
    shape, dtype = file.shape(name), file.dtype(name)
    n_bytes = file.raw(name).nbytes
    layout = None
    _check_for_files(name, settings)
    reason = reason_to_carry(shape, dtype, settings)
    if reason is None:
        layout = layout_for((shape[0], prod(shape[1:])), dtype, settings)
        reason = layout_reason(layout, n_bytes)
    if reason is None and not _is_finite(file, name):
        reason = "holds NaN or infinity"
    return PlannedTensor(
        name=name,
        shape=shape,
        dtype=dtype,
        n_bytes=n_bytes,
        settings=settings,
        layout=layout if reason is None else None,
        carried_because=reason,
    )


def _check_for_files(name: str, settings: TensorSettings) -> None:
    """Raise if a setting is none that the weights alone are enough for."""
    for option in ("feedback", "group"):
        if getattr(settings, option):
            raise ValueError(
                f"Got {option}={getattr(settings, option)!r} for {name!r} of a file, but expected "
                "it for a model only (nn.compress_model)."
            )


def reason_to_carry(shape: tuple[int, ...], dtype: str, settings: TensorSettings) -> str | None:
    """Why a tensor is left as it is, as far as its shape and dtype tell; None if it is not."""
    if settings.skip:
        return "skipped by the spec"
    if dtype not in ORIGINAL_DTYPES:
        return f"dtype {dtype}"
    if len(shape) < 2:
        return "fewer than 2 axes"
    if not prod(shape):
        return "no values"
    if prod(shape) < settings.min_size:
        return f"fewer than min_size={settings.min_size} values"
    return None


def layout_reason(layout: MatrixLayout, n_bytes: int) -> str | None:
    """Why a tensor of ``n_bytes`` is left as it is, as far as the layout tells."""
    n_blocks = layout.n_rows
    if layout.n_books == 1:
        n_blocks *= layout.n_features // layout.block_size
    if n_blocks < layout.n_codes:
        return f"fewer blocks than n_codes={layout.n_codes}"
    if sum(matrix_bytes(layout).values()) >= n_bytes:
        return "codes would take more bytes"
    return None


def _is_finite(file: TensorFile, name: str) -> bool:
    dtype = file.dtype(name)
    for piece in _pieces(file, name):
        values = to_array(piece, dtype, (8 * piece.nbytes // ITEM_BITS[dtype],))
        if not np.isfinite(values).all():
            return False
    return True


def _pieces(file: TensorFile, name: str) -> Iterator[memoryview]:
    """The bytes of a tensor, some at a time; whoever takes them all leaves none in memory."""
    raw = file.raw(name)
    for start in range(0, raw.nbytes, BYTES_AT_ONCE):
        yield raw[start : start + BYTES_AT_ONCE]
    file.release()


def _with_ties(file: TensorFile, tensors: list[PlannedTensor]) -> Iterator[PlannedTensor]:
    """Tensors with their equals, if treated equally, as aliases; the first gives the name."""
    alike: dict[Any, list[str]] = {}
    for tensor in tensors:
        alike.setdefault(_looks(tensor), []).append(tensor.name)
    groups: dict[Any, list[str]] = {}
    keys = {}
    for tensor in tensors:
        key: Any = tensor.name
        if len(alike[_looks(tensor)]) > 1 and tensor.n_bytes >= LEAST_TIED_BYTES:
            key = _looks(tensor), _digest(file, tensor.name)
        keys[tensor.name] = key
        groups.setdefault(key, []).append(tensor.name)
    for tensor in tensors:
        first, *others = groups[keys[tensor.name]]
        if tensor.name == first:
            yield replace(tensor, aliases=tuple(others))


def _looks(tensor: PlannedTensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.settings


def _digest(file: TensorFile, name: str) -> bytes:
    digest = hashlib.sha256()
    for piece in _pieces(file, name):
        digest.update(piece)
    return digest.digest()
