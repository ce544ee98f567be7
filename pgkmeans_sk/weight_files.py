"""Compressing a file of weights to a file of codes and back, one tensor in memory at a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from pgkmeans_sk.codes.description import CarriedDescription, CompressedDescription
from pgkmeans_sk.codes.level_matrix import LevelMatrix
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_kinds import StoredMatrix
from pgkmeans_sk.codes.size import tensor_bytes
from pgkmeans_sk.codes.storage import CarriedTensor, StoredTensor, open_tensors, save_tensors
from pgkmeans_sk.codes.stored_file import StoredFile
from pgkmeans_sk.codes.tensor_dtypes import stored_bytes, to_bytes
from pgkmeans_sk.codes.tensor_file import TensorFile, naming
from pgkmeans_sk.codes.tensor_writer import TensorEntry, TensorSpec, header_bytes, write_tensors
from pgkmeans_sk.codes.usage import Usage, used_words
from pgkmeans_sk.spec import Spec
from pgkmeans_sk.validation import check_integer
from pgkmeans_sk.weight_plan import PlannedTensor, is_compressed, plan_tensors
from pgkmeans_sk.weight_report import UNKNOWN_REASON, FileReport, TensorReport

Progress = Callable[[str, int, int], None]
"""``(name, done, total)``: a tensor begins, so many bytes are done; at the end, the name is ""."""


def compress_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    spec: Any = None,
    *,
    random_state: int | None = 0,
    progress: Progress | None = None,
) -> FileReport:
    """Compress the weights of a safetensors file.

    Tensors of floats with 2 axes or more are compressed as matrices of ``shape[0]`` rows; all
    others, those that are too small, and those that the spec skips are carried bit for bit. Large
    tensors that are equal are stored once (tied weights).

    Parameters
    ----------
    source : str or PathLike
        A safetensors file.
    target : str or PathLike
        The file of codes (docs/storage_format.md). One that is there is replaced when all is done.
    spec : Spec, TensorSettings, dict or None
        How tensors are to be compressed; None means defaults for all.
    random_state : int or None, default=0
        For the ``ProductQuantizer`` of each tensor. With an int, the file has the same bytes each
        time, for any number of threads.
    progress : callable or None
        Is told what is being done: ``progress(name, done, total)``, in bytes of the source.

    Returns
    -------
    report : FileReport
        What became of each tensor.

    Raises
    ------
    ValueError
        If ``source`` is not a safetensors file, or one of codes already; if the codebooks of a
        tensor do not fit into their dtype. Nothing is written then.
    OSError
        If a file cannot be read or written.
    ImportError
        If the library safetensors is absent.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from pgkmeans_sk import compress_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> W = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    >>> save_file({"weight": W, "bias": W[0]}, folder / "model.safetensors")
    >>> report = compress_file(folder / "model.safetensors", folder / "small.safetensors")
    >>> [tensor.name for tensor in report.compressed], [tensor.name for tensor in report.carried]
    (['weight'], ['bias'])
    >>> report.n_bytes == (folder / "small.safetensors").stat().st_size
    True
    """
    begin = time.perf_counter()
    spec = Spec.of(spec)
    if random_state is not None:
        check_integer("random_state", random_state, 0)
    with TensorFile(source) as file:
        plan = plan_tensors(file, spec)
        clock = _Clock(progress, sum(t.n_bytes for t in plan.tensors if t.layout is not None))
        done: dict[str, TensorReport] = {}

        def compress(tensor: PlannedTensor) -> CompressedMatrix:
            with clock.timed(tensor.name, tensor.n_bytes) as timing:
                matrix = _compressed(file, tensor, random_state)
            facts = facts_of(matrix)
            done[tensor.name] = replace(tensor.report(), seconds=timing.seconds, **facts)
            return matrix

        compressed = {
            t.name: StoredTensor(
                shape=t.shape,
                dtype=t.dtype,
                matrix=partial(compress, t),
                layout=t.layout,
                aliases=t.aliases,
            )
            for t in plan.tensors
            if t.layout is not None
        }
        carried = {
            t.name: CarriedTensor(
                shape=t.shape, dtype=t.dtype, source=partial(file.raw, t.name), aliases=t.aliases
            )
            for t in plan.tensors
            if t.layout is None
        }
        save_tensors(target, compressed, carried, file.metadata)
        clock.finish()
    return FileReport(
        path=str(target),
        n_bytes=Path(target).stat().st_size,
        header_bytes=plan.predicted_bytes()[""],
        original_bytes=plan.original_bytes,
        tensors=tuple(done.get(t.name) or t.report() for t in plan.tensors),
        metadata=dict(plan.metadata),
        unused_rules=plan.unused_rules,
        seconds=time.perf_counter() - begin,
    )


def decompress_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    progress: Progress | None = None,
) -> FileReport:
    """Write the tensors of a file of codes as a plain safetensors file.

    It has the names, shapes, dtypes and metadata of the file that was compressed. Values are those
    of ``ProductQuantizer.inverse_transform``; BF16 is rounded from float32, to nearest even.

    Parameters
    ----------
    source : str or PathLike
        What ``compress_file`` wrote.
    target : str or PathLike
        The safetensors file. One that is there is replaced when all is done.
    progress : callable or None
        Is told what is being done: ``progress(name, done, total)``, in bytes of the target.

    Returns
    -------
    report : FileReport
        Of ``source``.

    Raises
    ------
    ValueError
        If it is no file of codes, of a newer version, or damaged.
    OSError
        If a file cannot be read or written.
    ImportError
        If the library safetensors is absent.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from pgkmeans_sk import compress_file, decompress_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> W = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    >>> save_file({"weight": W, "bias": W[0]}, folder / "model.safetensors")
    >>> report = compress_file(folder / "model.safetensors", folder / "small.safetensors")
    >>> report = decompress_file(folder / "small.safetensors", folder / "again.safetensors")
    >>> (folder / "again.safetensors").stat().st_size == report.original_bytes
    True
    """
    begin = time.perf_counter()
    with open_tensors(source) as file:
        done: dict[str, TensorReport] = {}
        usage = Usage()
        clock = _Clock(progress, sum(stored_bytes(s.dtype, s.shape) for s, _ in _plain(file)))

        def bytes_of(stored: str, n_bytes: int) -> memoryview:
            with clock.timed(stored, n_bytes) as timing:
                content = _decompressed(file, stored, usage)
            done[stored] = replace(_stored_report(file, stored), seconds=timing.seconds)
            return content

        entries = [
            TensorEntry(*spec, partial(bytes_of, stored, stored_bytes(spec.dtype, spec.shape)))
            for spec, stored in _plain(file)
        ]
        write_tensors(target, entries, file.metadata)
        clock.finish()
        tensors = [done[name] for name in _names(file)]
        return _stored_file_report(source, file, tensors, usage, time.perf_counter() - begin)


def describe_file(path: str | PathLike[str], *, progress: Progress | None = None) -> FileReport:
    """Say what is in a safetensors file, compressed or not; all of a compressed one is checked.

    Parameters
    ----------
    path : str or PathLike
        The file.
    progress : callable or None
        Is told what is being done: ``progress(name, done, total)``, in bytes of the file.

    Returns
    -------
    report : FileReport
        Tensors of a plain file count as carried.

    Raises
    ------
    ValueError
        If it is not a safetensors file; if it is one of codes, and of a newer version or damaged.
    OSError
        If it cannot be read.
    ImportError
        If the library safetensors is absent.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from pgkmeans_sk import describe_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> W = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    >>> save_file({"weight": W, "bias": W[0]}, folder / "model.safetensors")
    >>> report = describe_file(folder / "model.safetensors")
    >>> report.is_compressed, report.n_values
    (False, 32832)
    """
    with TensorFile(path) as plain:
        if not is_compressed(plain):
            return _plain_file_report(plain)
    with open_tensors(path) as file:
        clock = _Clock(progress, file.n_bytes)
        usage = Usage()
        tensors = [_stored_report(file, name) for name in _names(file)]
        for tensor in tensors:
            with clock.timed(tensor.name, tensor.stored_bytes):
                if tensor.name in file.compressed:
                    _counted_matrix(file, tensor.name, usage)
                else:
                    file.raw(tensor.name)  # compares its checksum
        clock.finish()
        return _stored_file_report(path, file, tensors, usage, None)


# ------------------------------------------------------------------ compressing


def _compressed(
    file: TensorFile, tensor: PlannedTensor, random_state: int | None
) -> CompressedMatrix:
    quantizer = tensor.settings.quantizer(random_state)
    rows = file.array(tensor.name).reshape(tensor.shape[0], -1)
    file.release()  # that was a copy
    with naming(f"{file.path}: tensor {tensor.name!r}"), warnings.catch_warnings():
        # Fewer distinct blocks than code words: the report counts the words that are not used.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return quantizer.compress(rows)


def facts_of(matrix: StoredMatrix) -> dict[str, Any]:
    """What a ``TensorReport`` says of a matrix beyond its shape."""
    found: dict[str, Any] = {"relative_error": matrix.relative_error, "entropy": matrix.entropy}
    if not isinstance(matrix, LevelMatrix):
        used = used_words(matrix)
        found |= {"n_code_words": used.size, "n_unused_words": int(used.size - used.sum())}
    return found


# ------------------------------------------------------------------ files of codes


def _names(file: StoredFile) -> dict[str, CompressedDescription | CarriedDescription]:
    """All that is stored, by its first name."""
    return {**file.compressed, **file.carried}


def _plain(file: StoredFile) -> Iterator[tuple[TensorSpec, str]]:
    """Each tensor of the file that was compressed, and the name under which it is stored now."""
    for stored, described in _names(file).items():
        for name in (stored, *described.aliases):
            yield TensorSpec(name, described.dtype, described.shape), stored


def _decompressed(file: StoredFile, name: str, usage: Usage) -> memoryview:
    """The bytes of a tensor as it was."""
    if name not in file.compressed:
        return file.raw(name)
    described = file.compressed[name]
    matrix = _counted_matrix(file, name, usage)
    return to_bytes(described.restore(matrix.decode()), described.dtype)


def _counted_matrix(file: StoredFile, name: str, usage: Usage) -> StoredMatrix:
    """A matrix, whose code words are now known to be in use."""
    matrix = file.matrix(name)
    usage.add(file.compressed[name].codebooks_of or name, matrix)
    return matrix


def _stored_report(file: StoredFile, name: str) -> TensorReport:
    described = _names(file)[name]
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


def _stored_file_report(
    path: str | PathLike[str],
    file: StoredFile,
    tensors: Sequence[TensorReport],
    usage: Usage,
    seconds: float | None,
) -> FileReport:
    plain_header = header_bytes([spec for spec, _ in _plain(file)], file.metadata)
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


def _plain_file_report(file: TensorFile) -> FileReport:
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


# ------------------------------------------------------------------ time


class _Clock:
    """Measures how long each tensor takes, and tells the caller how far the work is."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._done, self._total = 0, total

    @contextmanager
    def timed(self, name: str, n_bytes: int) -> Iterator[_Timing]:
        """The time that the block takes, for a tensor of so many bytes."""
        self._tell(name)
        timing = _Timing()
        begin = time.perf_counter()
        yield timing
        timing.seconds = time.perf_counter() - begin
        self._done += n_bytes

    def finish(self) -> None:
        """Tell that all is done."""
        self._done = self._total
        self._tell("")

    def _tell(self, name: str) -> None:
        if self._progress is not None:
            self._progress(name, self._done, self._total)


@dataclass
class _Timing:
    """Seconds of a block, known when it is over."""

    seconds: float = 0.0
