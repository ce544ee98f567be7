"""``pgkmeans info``: what is in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgkmeans_sk.cli.console import grouped, print_json, print_line, progress_bar
from pgkmeans_sk.cli.options import AsJson, Debug
from pgkmeans_sk.cli.tables import (
    BITS,
    DTYPE,
    ERROR,
    SHAPE,
    SIZE,
    USED,
    print_tensors,
    print_totals,
)
from pgkmeans_sk.weight_files import describe_file


def info(
    file: Annotated[Path, typer.Argument(help="A safetensors file, compressed or not.")],
    all_tensors: Annotated[
        bool, typer.Option("--all", help="Show the tensors that were carried, too.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what is in a file: tensors, sizes, errors, and how many code words are in use.

    A compressed file is read and checked to its last byte.
    """
    with progress_bar() as progress:
        report = describe_file(file, progress=progress)
    if as_json:
        print_json(report.to_dict())
    elif not report.is_compressed:
        print_tensors(report.tensors, (SHAPE, DTYPE, SIZE))
        print_line(
            f"{len(report.tensors)} tensors, {grouped(report.n_values)} values, "
            f"{grouped(report.n_bytes)} bytes; not a compressed file."
        )
    else:
        print_tensors(report.compressed, (SHAPE, BITS, ERROR, USED))
        if all_tensors:
            print_tensors(report.carried, (SHAPE, DTYPE, SIZE))
        print_totals(report)
