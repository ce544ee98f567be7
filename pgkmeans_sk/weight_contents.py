"""What is in files of weights, compressed or not: their tensors, and reports on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from pgkmeans_sk.codes.description import CarriedDescription, CompressedDescription
from pgkmeans_sk.codes.level_matrix import LevelMatrix
from pgkmeans_sk.codes.matrix_kinds import StoredMatrix
from pgkmeans_sk.codes.size import tensor_bytes
from pgkmeans_sk.codes.stored_file import StoredFile
from pgkmeans_sk.codes.tensor_dtypes import stored_bytes, to_bytes
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.codes.tensor_writer import TensorSpec, header_bytes
from pgkmeans_sk.codes.usage import Usage, used_words
from pgkmeans_sk.weight_report import UNKNOWN_REASON, FileReport, TensorReport


def facts_of(matrix: StoredMatrix) -> dict[str, Any]:
    """What a ``TensorReport`` says of a matrix beyond its shape."""
    found: dict[str, Any] = {"relative_error": matrix.relative_error, "entropy": matrix.entropy}
    if not isinstance(matrix, LevelMatrix):
        used = used_words(matrix)
        found |= {"n_code_words": used.size, "n_unused_words": int(used.size - used.sum())}
    return found


def names_of(file: StoredFile) -> dict[str, CompressedDescription | CarriedDescription]:
    """All that is stored, by its first name."""
    return {**file.compressed, **file.carried}


def plain_tensors(file: StoredFile) -> Iterator[tuple[TensorSpec, str]]:
    """Each tensor of the file that was compressed, and the name under which it is stored now."""
    for stored, described in names_of(file).items():
        for name in (stored, *described.aliases):
            yield TensorSpec(name, described.dtype, described.shape), stored


def decompressed(file: StoredFile, name: str, usage: Usage) -> memoryview:
    """The bytes of a tensor as it was."""
    if name not in file.compressed:
        return file.raw(name)
    described = file.compressed[name]
    matrix = counted_matrix(file, name, usage)
    return to_bytes(described.restore(matrix.decode()), described.dtype)


def counted_matrix(file: StoredFile, name: str, usage: Usage) -> StoredMatrix:
    """A matrix, whose code words are now known to be in use."""
    matrix = file.matrix(name)
    usage.add(file.compressed[name].codebooks_of or name, matrix)
    return matrix


def stored_report(file: StoredFile, name: str) -> TensorReport:
    """What is known of a stored tensor without reading it."""
    described = names_of(file)[name]
    n_bytes = stored_bytes(described.dtype, described.shape)
    facts: dict[str, Any] = {"stored_bytes": n_bytes, "carried_because": UNKNOWN_REASON}
    if isinstance(described, CompressedDescription):
        facts = {
            "stored_bytes": tensor_bytes(described),
            "relative_error": described.relative_error,
            "entropy": described.entropy,
            "codebooks_of": described.codebooks_of,
        }
    return TensorReport(
        name=name,
        aliases=described.aliases,
        shape=described.shape,
        dtype=described.dtype,
        original_bytes=n_bytes * (1 + len(described.aliases)),
        **facts,
    )


def stored_file_report(
    path: str | PathLike[str],
    file: StoredFile,
    tensors: Sequence[TensorReport],
    usage: Usage,
    seconds: float | None,
) -> FileReport:
    """On a file of codes; ``usage`` has seen all of its matrices."""
    plain_header = header_bytes([spec for spec, _ in plain_tensors(file)], file.metadata)
    return FileReport(
        path=str(path),
        n_bytes=file.n_bytes,
        header_bytes=file.n_bytes - sum(tensor.stored_bytes for tensor in tensors),
        original_bytes=plain_header + sum(tensor.original_bytes for tensor in tensors),
        tensors=tuple(_with_words(tensor, usage) for tensor in tensors),
        metadata=dict(file.metadata),
        seconds=seconds,
    )


def _with_words(report: TensorReport, usage: Usage) -> TensorReport:
    """Code words count where they are stored."""
    if report.carried_because is not None or report.codebooks_of is not None:
        return report
    n_words, n_unused = usage.counts(report.name)
    return replace(report, n_code_words=n_words, n_unused_words=n_unused)


def plain_file_report(file: TensorFile) -> FileReport:
    """On a file that holds no codes."""
    tensors = tuple(
        TensorReport(
            name=name,
            aliases=(),
            shape=file.shape(name),
            dtype=file.dtype(name),
            original_bytes=file.raw(name).nbytes,
            stored_bytes=file.raw(name).nbytes,
            carried_because="not a compressed file",
        )
        for name in file.names
    )
    return FileReport(
        path=str(file.path),
        n_bytes=file.n_bytes,
        header_bytes=file.n_bytes - sum(tensor.stored_bytes for tensor in tensors),
        original_bytes=file.n_bytes,
        tensors=tensors,
        metadata=dict(file.metadata),
        is_compressed=False,
    )
