"""Where text goes: tables to standard output, progress and errors to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

NAME_WIDTH = 36
"""Columns of a name beside a progress bar."""


def console() -> Console:
    """Standard output, made anew for each use: tests and pipes replace it."""
    return Console(file=sys.stdout)


def error_console() -> Console:
    """Standard error."""
    return Console(file=sys.stderr, stderr=True)


def print_line(text: str) -> None:
    """Print a sentence, wrapped at the width of the terminal; text in brackets stays as it is."""
    console().print(printable(text), markup=False, highlight=False)


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object, as plain as any program may read it."""
    sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def printable(text: str) -> str:
    """The text with control characters written out: names in files may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str, width: int) -> str:
    """At most ``width`` columns of the text, cut in the middle: names differ at both ends."""
    text = printable(text)
    if cell_len(text) <= width:
        return text
    begin, end = 0, len(text)
    while begin < end:  # the longer end first, from what is kept
        if cell_len(text[:begin]) <= cell_len(text[end:]):
            begin, grown = begin + 1, (begin, end)
        else:
            end, grown = end - 1, (begin, end)
        if cell_len(text[:begin]) + 1 + cell_len(text[end:]) > width:
            begin, end = grown
            break
    return f"{text[:begin]}\N{HORIZONTAL ELLIPSIS}{text[end:]}"


def grouped(number: int) -> str:
    """A whole number in groups of three digits."""
    return f"{number:,}".replace(",", " ")


def size_text(n_bytes: int) -> str:
    """Bytes in the largest unit that fits: powers of 1000, as disks and file managers count."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return (
        f"{n_bytes} B"
        if unit == "B"
        else f"{size:.3g} {unit}"
        if size < 100
        else f"{size:.0f} {unit}"
    )


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A function that moves a bar, for ``compress_file`` and others; None unless at a terminal."""
    target = error_console()
    if not target.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=target, transient=True) as progress:
        task = progress.add_task(" " * NAME_WIDTH, total=None)

        def tell(name: str, done: int, total: int) -> None:
            text = _without_markup(f"{shortened(name, NAME_WIDTH):<{NAME_WIDTH}}")
            progress.update(task, description=text, completed=done, total=total)

        yield tell


@contextmanager
def spinner(text: str) -> Iterator[Callable[[str], None]]:
    """A line that moves while the block runs, and a function that changes it; at terminals only."""
    target = error_console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=target, transient=True, disable=not target.is_terminal
    ) as progress:
        task = progress.add_task(_without_markup(text), total=None)
        yield lambda message: progress.update(task, description=_without_markup(message))


def _without_markup(text: str) -> str:
    """Text that may hold a name: a rich markup tag in it would be obeyed."""
    return printable(text).replace("[", r"\[")
