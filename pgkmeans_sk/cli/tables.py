"""Reports of files as tables and sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from pgkmeans_sk.cli.console import console, grouped, print_line, shortened, size_text
from pgkmeans_sk.weight_report import UNKNOWN_REASON, FileReport, TensorReport

LEAST_NAME_WIDTH = 16
"""Columns of a tensor's name, however narrow the terminal."""

Column = tuple[str, Callable[[TensorReport], str]]


def _used_text(tensor: TensorReport) -> str:
    if tensor.codebooks_of is not None:
        return f"of {shortened(tensor.codebooks_of, LEAST_NAME_WIDTH)}"
    if not tensor.n_code_words:
        return "levels"
    return f"{tensor.n_code_words - (tensor.n_unused_words or 0)}/{tensor.n_code_words}"


SHAPE: Column = ("shape", lambda t: "x".join(map(str, t.shape)) or "scalar")
DTYPE: Column = ("dtype", lambda t: t.dtype)
SIZE: Column = ("size", lambda t: size_text(t.stored_bytes))
BITS: Column = ("bits/w", lambda t: f"{t.bits_per_weight:.3f}")
ERROR: Column = ("error", lambda t: f"{100 * (t.relative_error or 0.0):.2f} %")
USED: Column = ("used", _used_text)
SECONDS: Column = ("s", lambda t: "" if t.seconds is None else f"{t.seconds:.2f}")


def print_tensors(tensors: Sequence[TensorReport], columns: Sequence[Column]) -> None:
    """A line for each tensor, in the width of the terminal: long names lose their middle."""
    if not tensors:
        return
    rows = [[cell(tensor) for _, cell in columns] for tensor in tensors]
    widths = [
        max(len(title), *(len(row[i]) for row in rows)) for i, (title, _) in enumerate(columns)
    ]
    target = console()
    room = max(LEAST_NAME_WIDTH, target.width - sum(widths) - 2 * len(widths))
    names = [shortened(_name_of(tensor), room) for tensor in tensors]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("tensor", no_wrap=True, min_width=min(room, max(map(cell_len, names))))
    for title, _ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in zip(names, rows, strict=True):
        table.add_row(Text(name), *map(Text, row))
    target.print(table, highlight=False)
    target.print()


def print_totals(report: FileReport) -> None:
    """Sentences on the whole file."""
    sentences = []
    if report.compressed or not report.carried:
        sentences.append(f"{len(report.compressed)} tensors compressed.")
    if report.carried:
        reasons = Counter(tensor.carried_because for tensor in report.carried)
        reasons.pop(UNKNOWN_REASON, None)
        listed = ", ".join(f"{count} ({reason})" for reason, count in reasons.most_common())
        listed = f": {listed}" if listed else ""
        sentences.append(f"{len(report.carried)} carried bit for bit{listed}.")
    print_line(" ".join(sentences))
    print_line(
        f"{grouped(report.original_bytes)} bytes -> {grouped(report.n_bytes)} bytes: "
        f"{report.original_bytes / report.n_bytes:.1f} times smaller."
    )
    unused = f"; {grouped(report.n_unused_words)} code words unused"
    if any(tensor.n_unused_words is None for tensor in report.tensors):
        unused = ""  # a plan
    print_line(f"{report.bits_per_weight:.2f} bits per weight, all included{unused}.")


def _name_of(tensor: TensorReport) -> str:
    return " = ".join((tensor.name, *tensor.aliases))
