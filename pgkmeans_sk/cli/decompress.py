"""``pgkmeans decompress``: a file of codes as a plain safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgkmeans_sk.cli.console import grouped, print_json, print_line, progress_bar
from pgkmeans_sk.cli.options import AsJson, Debug, Force, check_target
from pgkmeans_sk.weight_files import decompress_file


def decompress(
    source: Annotated[Path, typer.Argument(help="A file that compress wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    force: Force = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Decode a compressed file to a plain one: the original names, shapes and dtypes."""
    check_target(output, force, source)
    with progress_bar() as progress:
        report = decompress_file(source, output, progress=progress)
    if as_json:
        print_json({"output": str(output), **report.to_dict()})
        return
    print_line(
        f"{len(report.compressed)} tensors decoded. {len(report.carried)} carried bit for bit."
    )
    print_line(f"{grouped(report.n_bytes)} bytes -> {grouped(report.original_bytes)} bytes.")
    print_line(f"Written in {report.seconds:.1f} s: {output}")
