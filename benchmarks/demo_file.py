"""The demonstration's second part: the whole model as one compressed file, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import data
from pgkmeans_sk.codes.storage import open_tensors
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.spec import TensorSettings
from pgkmeans_sk.weight_files import compress_file, decompress_file
from pgkmeans_sk.weight_plan import plan_file
from pgkmeans_sk.weight_report import FileReport

SETTINGS = TensorSettings(block_size=data.BLOCK_SIZE, n_codes=256)


@dataclass(frozen=True)
class Kind:
    """Layers of one kind, before and after; seconds are those of compressing."""

    name: str
    n_layers: int
    n_values: int
    original_bytes: int
    stored_bytes: int
    relative_error: float
    n_unused: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """The compressed file, and what was found out about it."""

    report: FileReport
    kinds: Sequence[Kind]
    restore_seconds: float
    predicted_bytes: int
    n_refitted: int


def compress_model(folder: Path, console: Console) -> Outcome:
    """Compress the model to ``folder/minilm.safetensors``, decode it again, and check both.

    Raises ``RuntimeError`` if the size is not the predicted one, a tensor was not carried bit for
    bit, or a decoded one is not what ``ProductQuantizer`` makes of it.
    """
    source = data.model_file()
    small, restored = folder / "minilm.safetensors", folder / "minilm-decoded.safetensors"
    columns = (TextColumn("{task.description:<42}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("the whole model")

        def tell(name: str, done: int, total: int) -> None:
            progress.update(task, description=name[-42:], completed=done, total=total)

        predicted = sum(plan_file(source, SETTINGS).predicted_bytes().values())
        report = compress_file(source, small, SETTINGS, progress=tell)
        back = decompress_file(small, restored, progress=tell)
    if small.stat().st_size != predicted:
        raise RuntimeError(f"{small} has {small.stat().st_size} bytes, but {predicted} expected.")
    with TensorFile(source) as before, TensorFile(restored) as after:
        _check_carried(before, after, report)
        n_refitted = _check_decoded(before, after, small, report)
        kinds = tuple(_kinds(before, after, report))
    return Outcome(report, kinds, back.seconds or 0.0, predicted, n_refitted)


def _check_carried(before: TensorFile, after: TensorFile, report: FileReport) -> None:
    for tensor in report.carried:
        if before.raw(tensor.name) != after.raw(tensor.name):
            raise RuntimeError(f"{tensor.name} was not carried bit for bit.")


def _check_decoded(before: TensorFile, after: TensorFile, small: Path, report: FileReport) -> int:
    """Compare with quantizers fitted anew, for a layer of each kind but the largest."""
    examples = {data.kind_of(t.name.removesuffix(".weight")): t for t in report.compressed}
    examples.pop("word embeddings", None)
    with open_tensors(small) as file:
        for tensor in examples.values():
            weight = before.array(tensor.name)
            quantizer = SETTINGS.quantizer().fit(weight)
            codes = quantizer.transform(weight)
            exact = quantizer.inverse_transform(codes)
            same_codes = np.array_equal(codes, file.matrix(tensor.name).codes())
            if not same_codes or not np.array_equal(exact, after.array(tensor.name)):
                raise RuntimeError(f"{tensor.name} is not what the quantizer makes of it.")
    return len(examples)


def _kinds(before: TensorFile, after: TensorFile, report: FileReport) -> Iterable[Kind]:
    groups: dict[str, list] = {}
    for tensor in report.compressed:
        groups.setdefault(data.kind_of(tensor.name.removesuffix(".weight")), []).append(tensor)
    for name, tensors in groups.items():
        lost = total = 0.0
        for tensor in tensors:
            weight = before.array(tensor.name).astype(np.float64)
            lost += np.square(weight - after.array(tensor.name)).sum()
            total += np.square(weight).sum()
        yield Kind(
            name=name,
            n_layers=len(tensors),
            n_values=sum(tensor.n_values for tensor in tensors),
            original_bytes=sum(tensor.original_bytes for tensor in tensors),
            stored_bytes=sum(tensor.stored_bytes for tensor in tensors),
            relative_error=float(np.sqrt(lost / total)),
            n_unused=sum(tensor.n_unused_words for tensor in tensors),
            seconds=sum(tensor.seconds for tensor in tensors),
        )


def table_of(outcome: Outcome) -> Table:
    """Sizes before and after, by kind of layer, and the whole file."""
    report = outcome.report
    table = Table(
        title="The whole model as one file",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layers", no_wrap=True)
    for name in ("before, MB", "after, MB", "bits/weight", "rel. error, %", "unused", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in outcome.kinds:
        table.add_row(
            f"{kind.n_layers} x {kind.name}",
            f"{kind.original_bytes / 1e6:.3f}",
            f"{kind.stored_bytes / 1e6:.3f}",
            f"{8 * kind.stored_bytes / kind.n_values:.3f}",
            f"{100 * kind.relative_error:.2f}",
            str(kind.n_unused),
            f"{kind.seconds:.2f}",
        )
    original, stored = carried_bytes(report)
    table.add_row(
        f"{len(report.carried)} carried, header",
        f"{original / 1e6:.3f}",
        f"{stored / 1e6:.3f}",
        end_section=True,
    )
    table.add_row(
        "file",
        f"{report.original_bytes / 1e6:.3f}",
        f"{report.n_bytes / 1e6:.3f}",
        f"{report.bits_per_weight:.3f}",
        "",
        str(report.n_unused_words),
        f"{report.seconds:.2f}",
        style="bold",
    )
    return table


def carried_bytes(report: FileReport) -> tuple[int, int]:
    """What is not codes, before and after: carried tensors and headers."""
    original = report.original_bytes - sum(t.original_bytes for t in report.compressed)
    return original, report.n_bytes - sum(t.stored_bytes for t in report.compressed)


def sentences(outcome: Outcome) -> str:
    """What was checked."""
    report = outcome.report
    ratio = report.original_bytes / report.n_bytes
    return (
        f"{report.path}: {report.original_bytes} bytes -> {report.n_bytes} bytes, "
        f"{ratio:.1f} times smaller; to the byte what was predicted before any work. "
        f"Decoded in {outcome.restore_seconds:.1f} s: {len(report.carried)} tensors are what they "
        f"were, bit for bit; {outcome.n_refitted} layers, one of each kind but the largest, were "
        "fitted anew and are what inverse_transform gives, bit for bit."
    )
