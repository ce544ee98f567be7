"""The program: its commands, and the options that stand before them."""

from __future__ import annotations

from typing import Annotated

import typer

from pgkmeans_sk import __version__
from pgkmeans_sk.cli.cluster import cluster
from pgkmeans_sk.cli.compress import compress
from pgkmeans_sk.cli.decompress import decompress
from pgkmeans_sk.cli.errors import guarded
from pgkmeans_sk.cli.info import info

app = typer.Typer(
    name="pgkmeans",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    # What goes wrong is said in one line (errors.py); --debug shows Python's own traceback.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (cluster, compress, decompress, info):
    app.command(no_args_is_help=True)(guarded(command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pgkmeans {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Cluster rows, and compress the weights of models, without empty clusters."""
