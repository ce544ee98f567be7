"""Compressing a file of weights to a file of codes and back, without all of it in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.storage import CarriedTensor, StoredTensor, open_tensors, save_tensors
from pgkmeans_sk.codes.tensor_dtypes import stored_bytes
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.codes.tensor_writer import TensorEntry, write_tensors
from pgkmeans_sk.codes.usage import Usage
from pgkmeans_sk.jobs import Done, Job, check_n_jobs, done_jobs
from pgkmeans_sk.progress import Clock, Progress
from pgkmeans_sk.spec import Spec
from pgkmeans_sk.validation import check_integer
from pgkmeans_sk.weight_contents import (
    counted_matrix,
    decompressed,
    facts_of,
    names_of,
    plain_file_report,
    plain_tensors,
    stored_file_report,
    stored_report,
)
from pgkmeans_sk.weight_jobs import Matrices, WeightJob, seeds_of_jobs
from pgkmeans_sk.weight_plan import PlannedTensor, is_compressed, plan_tensors
from pgkmeans_sk.weight_report import FileReport, TensorReport


def compress_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    spec: Any = None,
    *,
    random_state: int | None = 0,
    n_jobs: int | None = None,
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
        time, for any number of threads and workers.
    n_jobs : int or None, default=None
        How many tensors are compressed at a time, by workers of joblib, as of
        ``nn.compress_model``. Their codes wait in memory until it is their turn in the file.
    progress : callable or None
        Is told what is being done: ``progress(name, done, total)``, in bytes of the source. With
        several workers, the name is that of one of the tensors that are being compressed.

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
    check_n_jobs(n_jobs)
    with TensorFile(source) as file:
        plan = plan_tensors(file, spec)
        planned = {tensor.name: tensor for tensor in plan.tensors if tensor.layout is not None}
        carried = {
            t.name: CarriedTensor(
                shape=t.shape, dtype=t.dtype, source=partial(file.raw, t.name), aliases=t.aliases
            )
            for t in plan.tensors
            if t.layout is None
        }
        clock = Clock(progress, sum(tensor.n_bytes for tensor in planned.values()))
        jobs = _jobs(file, planned.values(), random_state)
        with closing(done_jobs(jobs, n_jobs, clock.tell)) as all_done:
            results = _Results(planned, all_done)
            compressed = {name: _to_store(t, results) for name, t in planned.items()}
            save_tensors(target, compressed, carried, file.metadata)
        clock.finish()
    return FileReport(
        path=str(target),
        n_bytes=Path(target).stat().st_size,
        header_bytes=plan.predicted_bytes()[""],
        original_bytes=plan.original_bytes,
        tensors=tuple(results.reports.get(t.name) or t.report() for t in plan.tensors),
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
        clock = Clock(progress, sum(stored_bytes(s.dtype, s.shape) for s, _ in plain_tensors(file)))

        def bytes_of(stored: str, n_bytes: int) -> memoryview:
            with clock.timed(stored, n_bytes) as timing:
                content = decompressed(file, stored, usage)
            done[stored] = replace(stored_report(file, stored), seconds=timing.seconds)
            return content

        entries = [
            TensorEntry(*spec, partial(bytes_of, stored, stored_bytes(spec.dtype, spec.shape)))
            for spec, stored in plain_tensors(file)
        ]
        write_tensors(target, entries, file.metadata)
        clock.finish()
        tensors = [done[name] for name in names_of(file)]
        return stored_file_report(source, file, tensors, usage, time.perf_counter() - begin)


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
            return plain_file_report(plain)
    with open_tensors(path) as file:
        clock = Clock(progress, file.n_bytes)
        usage = Usage()
        tensors = [stored_report(file, name) for name in names_of(file)]
        for tensor in tensors:
            with clock.timed(tensor.name, tensor.stored_bytes):
                if tensor.name in file.compressed:
                    counted_matrix(file, tensor.name, usage)
                else:
                    file.raw(tensor.name)  # compares its checksum
        clock.finish()
        return stored_file_report(path, file, tensors, usage, None)


# ------------------------------------------------------------------ compressing


def _jobs(
    file: TensorFile, planned: Iterable[PlannedTensor], random_state: int | None
) -> list[Job[Matrices]]:
    """Compressing each of the planned tensors."""
    tensors = list(planned)
    seeds = seeds_of_jobs(random_state, len(tensors))
    return [
        Job(tensor.name, tensor.n_bytes, partial(_job, file, tensor, seed))
        for tensor, seed in zip(tensors, seeds, strict=True)
    ]


def _job(file: TensorFile, tensor: PlannedTensor, random_state: int) -> WeightJob:
    rows = file.array(tensor.name).reshape(tensor.shape[0], -1)
    file.release()  # that was a copy
    return WeightJob(
        name=tensor.name,
        title=f"{file.path}: tensor {tensor.name!r}",
        rows=rows,
        settings=tensor.settings,
        random_state=random_state,
    )


class _Results:
    """Matrices, asked for in the order of the file, whatever the order in which they are done."""

    def __init__(
        self, planned: Mapping[str, PlannedTensor], all_done: Iterator[Done[Matrices]]
    ) -> None:
        self.reports: dict[str, TensorReport] = {}
        self._planned, self._all_done = planned, all_done
        self._waiting: Matrices = {}

    def pop(self, name: str) -> CompressedMatrix:
        """A matrix, once it is done; it is kept no longer."""
        while name not in self._waiting:
            done = next(self._all_done)
            matrix = done.result[done.name]
            self._waiting[done.name] = matrix
            report = self._planned[done.name].report()
            self.reports[done.name] = replace(report, seconds=done.seconds, **facts_of(matrix))
        return self._waiting.pop(name)


def _to_store(tensor: PlannedTensor, results: _Results) -> StoredTensor:
    return StoredTensor(
        shape=tensor.shape,
        dtype=tensor.dtype,
        matrix=partial(results.pop, tensor.name),
        layout=tensor.layout,
        aliases=tensor.aliases,
    )
