"""What the commands can be told, option by option, and checks of the files they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from pgkmeans_sk.spec import TensorSettings

# ------------------------------------------------------------------ of all commands

AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead of a table.")
]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", "-f", help="Overwrite files that are there.")
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]
Seed: TypeAlias = Annotated[
    int, typer.Option("--random-state", min=0, help="For all random choices.")
]

# ------------------------------------------------------------------ of compress

Jobs: TypeAlias = Annotated[
    int | None,
    typer.Option("--jobs", "-j", help="Tensors compressed at a time; -1: a processor each."),
]

DEFAULTS = TensorSettings()


def _setting(flag: str, about: str, default: Any) -> Any:
    # The true default is None, "not given": a value of --config is only replaced if asked for.
    return typer.Option(flag, help=f"{about} [default: {default}]", show_default=False)


BlockSize: TypeAlias = Annotated[
    int | None, _setting("--block-size", "Weights that share a code.", DEFAULTS.block_size)
]
Codes: TypeAlias = Annotated[
    int | None, _setting("--codes", "Code words of a codebook.", DEFAULTS.n_codes)
]
Codebook: TypeAlias = Annotated[
    str | None, _setting("--codebook", "shared or per_block.", DEFAULTS.codebook)
]
Stages: TypeAlias = Annotated[
    int | None, _setting("--stages", "Codes that are added up.", DEFAULTS.n_stages)
]
Steps: TypeAlias = Annotated[
    int | None, _setting("--max-iter", "Most steps of k-means.", DEFAULTS.max_iter)
]
RotationName: TypeAlias = Annotated[
    str | None, _setting("--rotation", "none, hadamard or opq.", "none")
]
ScaleName: TypeAlias = Annotated[str | None, _setting("--scale", "none, row or block.", "none")]
CodebookDtype: TypeAlias = Annotated[
    str | None,
    _setting("--codebook-dtype", "float16, float32 or float64.", DEFAULTS.codebook_dtype),
]
MinSize: TypeAlias = Annotated[
    int | None, _setting("--min-size", "Smaller tensors are carried.", DEFAULTS.min_size)
]
Match: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Compress only tensors of such names; repeatable."),
]
Skip: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Carry tensors of such names; repeatable."),
]
Config: TypeAlias = Annotated[
    Path | None, typer.Option(help="A YAML file of settings and rules by name.")
]
DryRun: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="Say what the result would be, to the byte, and stop.")
]

# ------------------------------------------------------------------ of cluster

Init: TypeAlias = Annotated[
    str, typer.Option(help="The start: partition, k-means++, random and others.")
]
Starts: TypeAlias = Annotated[
    int | None, typer.Option("--n-init", help="Starts to try.", show_default="as init needs")
]
MaxIter: TypeAlias = Annotated[int, typer.Option(help="Most iterations of a start.")]
Tol: TypeAlias = Annotated[float, typer.Option(help="When a fit has converged.")]
Algorithm: TypeAlias = Annotated[str, typer.Option(help="auto (with momentum) or lloyd.")]
Metric: TypeAlias = Annotated[str, typer.Option(help="euclidean or cosine.")]
Refine: TypeAlias = Annotated[int, typer.Option(help="Rounds of moving centres afterwards.")]
SizeMin: TypeAlias = Annotated[float | None, typer.Option(help="Fewest rows of a cluster.")]
SizeMax: TypeAlias = Annotated[float | None, typer.Option(help="Most rows of a cluster.")]
Select: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A column of a table to take; repeatable."),
]
Header: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        help="Whether text begins with names.",
        show_default="unless it begins with numbers",
    ),
]
RawDtype: TypeAlias = Annotated[
    str | None, typer.Option("--dtype", help="Of a file of bare numbers, such as float32.")
]
RawColumns: TypeAlias = Annotated[
    int | None, typer.Option("--columns", help="Of a file of bare numbers.")
]

# ------------------------------------------------------------------ checks


def check_target(target: Path, force: bool, source: Path) -> None:
    """Raise unless a file may be written here; before any work.

    Raises
    ------
    ValueError
        If there is one already and ``force`` is not set, it is the source itself, or there is no
        such folder.
    """
    if target.is_dir():
        raise ValueError(f"{target}: got a folder, but expected the name of a file.")
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target}: got the source as target, but expected another file.")
    if target.exists() and not force:
        raise ValueError(f"{target}: there is such a file already; --force overwrites it.")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"{target}: got a folder that is not there, but expected one that is.")
