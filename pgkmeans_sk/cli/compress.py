"""``pgkmeans compress``: a safetensors file as a file of codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pgkmeans_sk.cli import options
from pgkmeans_sk.cli.console import print_json, print_line, progress_bar
from pgkmeans_sk.cli.errors import say
from pgkmeans_sk.cli.tables import (
    BITS,
    ERROR,
    SECONDS,
    SHAPE,
    SIZE,
    USED,
    print_tensors,
    print_totals,
)
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.spec import Rule, Spec
from pgkmeans_sk.spec_yaml import read_spec
from pgkmeans_sk.weight_files import compress_file
from pgkmeans_sk.weight_plan import plan_file
from pgkmeans_sk.weight_report import FileReport


def compress(
    source: Annotated[Path, typer.Argument(help="A safetensors file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The compressed file to write.")
    ] = None,
    block_size: options.BlockSize = None,
    n_codes: options.Codes = None,
    codebook: options.Codebook = None,
    n_stages: options.Stages = None,
    max_iter: options.Steps = None,
    rotation: options.RotationName = None,
    scale: options.ScaleName = None,
    codebook_dtype: options.CodebookDtype = None,
    min_size: options.MinSize = None,
    match: options.Match = None,
    skip: options.Skip = None,
    config: options.Config = None,
    random_state: options.Seed = 0,
    jobs: options.Jobs = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Compress the weights of a model: product quantization with one codebook a tensor.

    Tensors of floats with 2 axes or more are compressed; all others are carried bit for bit.
    Options change the defaults of --config; its rules win over them, --match and --skip over all.
    """
    if output is not None:
        options.check_target(output, force, source)
    elif not dry_run:
        raise typer.BadParameter("expected --output / -o, or --dry-run.")
    settings = {
        "block_size": block_size,
        "n_codes": n_codes,
        "codebook": codebook,
        "n_stages": n_stages,
        "max_iter": max_iter,
        "rotation": rotation,
        "scale": scale,
        "codebook_dtype": codebook_dtype,
        "min_size": min_size,
    }
    written = Spec() if config is None else read_spec(config)
    spec = _changed(written, settings, match or [], skip or [])
    _check_globs(source, [*(match or []), *(skip or [])])
    if dry_run:
        report = plan_file(source, spec).report(output or "")
    else:
        with progress_bar() as progress:
            report = compress_file(
                source,
                str(output),
                spec,
                random_state=random_state,
                n_jobs=jobs,
                progress=progress,
            )
    for rule in map(str, written.rules):
        if rule in report.unused_rules:
            say(f"Warning: no tensor fits the rule {rule} of {config}.")
    if as_json:
        print_json({"source": str(source), "dry_run": dry_run, **report.to_dict()})
    else:
        _print_report(report, dry_run)


def _print_report(report: FileReport, dry_run: bool) -> None:
    columns = (SHAPE, SIZE, BITS) if dry_run else (SHAPE, BITS, ERROR, USED, SECONDS)
    print_tensors(report.compressed, columns)
    print_totals(report)
    if not dry_run:
        print_line(f"Written in {report.seconds:.1f} s: {report.path}")


def _changed(spec: Spec, settings: dict[str, Any], match: list[str], skip: list[str]) -> Spec:
    """The spec of the file with the options that were given."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name in ("rotation", "scale"):
        if given.get(name) == "none":
            given[name] = None
    spec = spec.with_defaults(**given)
    if match:
        spec = spec.only(match)
    return spec.with_rules(*(Rule(match=glob, settings={"skip": True}) for glob in skip))


def _check_globs(source: Path, globs: list[str]) -> None:
    """Raise if one fits no tensor: it would be a slip, and the work would be for nothing."""
    with TensorFile(source) as file:
        for glob in globs:
            if not any(map(Rule(match=glob).fits, file.names)):
                raise ValueError(
                    f"Got the pattern {glob!r}, but expected one that fits a tensor of {source}, "
                    f"such as {file.names[0] if file.names else 'none: it has no tensors'}."
                )
