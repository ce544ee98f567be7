"""The demonstration: compress every weight matrix of a real transformer, beside scikit-learn.

Each 2-D weight of all-MiniLM-L6-v2 is cut into blocks of 8 weights, and the blocks of a layer are
clustered into 256 codes; a layer is then one byte per block plus a small codebook. Both libraries
do the same job with their own defaults, and one neutral judge says what their centres are worth.
Then the whole model becomes one compressed file, which is decoded again and checked.

Run it with ``make demo`` or ``python -m benchmarks.demo``; it stays under two minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning

from benchmarks import data
from benchmarks.measure import judge
from benchmarks.warm_up import compile_for_long_fits

N_CLUSTERS = 256  # one byte per code

# scikit-learn's default fit of the word embeddings (1.46 M blocks) takes minutes on two cores.
LARGE = 500_000

MOST_NAMES = 5
"""Layers that are named where something was left out."""


@dataclass(frozen=True)
class Trial:
    """One library on one layer."""

    seconds: float
    n_iter: int
    n_empty: int
    sse: float


@dataclass(frozen=True)
class Line:
    """One row of the table: a layer, ours, and scikit-learn's where it was measured."""

    name: str
    n_blocks: int
    norm: float  # |W|, so that relative error = sqrt(sse) / norm
    ours: Trial
    theirs: Trial | None


def _ours(X: data.Points) -> Any:
    from pgkmeans_sk import PGKMeans

    return PGKMeans(N_CLUSTERS, random_state=0).fit(X)


def _scikit_learn(X: data.Points) -> Any:
    from sklearn.cluster import KMeans

    return KMeans(N_CLUSTERS, random_state=0).fit(X)


def _try(fit: Callable[[data.Points], Any], X: data.Points) -> Trial:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = time.perf_counter()
        model = fit(X)
        seconds = time.perf_counter() - begin
    verdict = judge(X, model.cluster_centers_)
    return Trial(seconds, model.n_iter_, verdict.n_empty, verdict.sse)


def measure(
    layers: Sequence[data.Layer], budget: float, with_large: bool, console: Console
) -> list[Line]:
    """Fit every layer with both libraries, scikit-learn until its budget of seconds is spent."""
    lines: list[Line] = []
    spent = 0.0
    columns = (TextColumn("{task.description:<42}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("compiling", total=sum(len(layer.blocks) for layer in layers))
        # Compiling is paid once per machine, not per layer; the warm-up keeps it out of the table.
        compile_for_long_fits(layers[0].blocks.dtype)
        for fit in (_ours, _scikit_learn):
            _try(fit, layers[0].blocks[: 8 * N_CLUSTERS])
        for layer in layers:
            X = layer.blocks
            progress.update(task, description=f"{layer.name}: PGKMeans")
            ours = _try(_ours, X)
            theirs = None
            if spent < budget and (with_large or len(X) < LARGE):
                progress.update(task, description=f"{layer.name}: scikit-learn")
                theirs = _try(_scikit_learn, X)
                spent += theirs.seconds
            norm = float(np.linalg.norm(X.astype(np.float64)))
            lines.append(Line(layer.name, len(X), norm, ours, theirs))
            progress.advance(task, len(X))
    return lines


def _error(lines: Sequence[Line], pick: Callable[[Line], Trial | None]) -> float:
    """Return |W - W_hat| / |W| over all the given layers together."""
    trials = [pick(line) for line in lines]
    lost = sum(trial.sse for trial in trials if trial is not None)
    return float(np.sqrt(lost / sum(line.norm**2 for line in lines)))


def _pair(ours: str, theirs: str | None) -> str:
    width = len(ours)
    return f"{ours} / {'-'.rjust(width) if theirs is None else theirs.rjust(width)}"


def _cells(line: Line) -> tuple[str, ...]:
    ours, theirs = line.ours, line.theirs
    return (
        line.name,
        f"{line.n_blocks:,}".replace(",", " "),
        _pair(str(ours.n_empty), str(theirs.n_empty) if theirs else None),
        _pair(str(ours.n_iter), str(theirs.n_iter) if theirs else None),
        _pair(f"{ours.seconds:.2f}", f"{theirs.seconds:.2f}" if theirs else None),
        f"{theirs.seconds / ours.seconds:.1f}x" if theirs else "-",
        _pair(
            f"{100 * np.sqrt(ours.sse) / line.norm:.2f}",
            f"{100 * np.sqrt(theirs.sse) / line.norm:.2f}" if theirs else None,
        ),
    )


def _totals(lines: Sequence[Line]) -> tuple[str, ...]:
    """Sum up the layers that both libraries did."""
    ours = [line.ours for line in lines]
    theirs = [line.theirs for line in lines if line.theirs is not None]
    our_seconds = sum(trial.seconds for trial in ours)
    their_seconds = sum(trial.seconds for trial in theirs)
    return (
        f"both, {len(lines)} layers",
        f"{sum(line.n_blocks for line in lines):,}".replace(",", " "),
        _pair(*(str(sum(trial.n_empty for trial in arm)) for arm in (ours, theirs))),
        _pair(*(str(sum(trial.n_iter for trial in arm)) for arm in (ours, theirs))),
        _pair(f"{our_seconds:.2f}", f"{their_seconds:.2f}"),
        f"{their_seconds / our_seconds:.1f}x",
        _pair(
            f"{100 * _error(lines, lambda line: line.ours):.2f}",
            f"{100 * _error(lines, lambda line: line.theirs):.2f}",
        ),
    )


def table_of(lines: Sequence[Line], too_small: Sequence[data.Layer]) -> Table:
    """Draw the table with its totals and a caption that says what was compared with what."""
    from sklearn import __version__ as sklearn_version

    alone = [line for line in lines if line.theirs is None]
    both = [line for line in lines if line.theirs is not None]
    caption = [
        f"Blocks of {data.BLOCK_SIZE} weights, {N_CLUSTERS} clusters per layer. Both sides are "
        "default fits with random_state=0, PGKMeans before the stroke, after it "
        f"sklearn.cluster.KMeans {sklearn_version} (k-means++, up to 300 iterations)."
    ]
    if alone:
        names = ", ".join(line.name for line in alone)
        if len(alone) > MOST_NAMES:
            names = f"{alone[0].name} and {len(alone) - 1} others"
        caption.append(f"scikit-learn was left out, to stay under two minutes, on {names}.")
    if too_small:
        names = ", ".join(f"{layer.name} ({len(layer.blocks)} blocks)" for layer in too_small)
        caption.append(f"Kept as it is, too small for {N_CLUSTERS} clusters: {names}.")
    table = Table(
        title="all-MiniLM-L6-v2, each weight matrix as one byte per 8 weights",
        caption=" ".join(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # narrow enough for a terminal of 90 columns
    )
    table.add_column("layer", no_wrap=True)
    for name in ("points", "empty", "iterations", "seconds", "faster", "rel. error, %"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*_cells(line), end_section=line is lines[-1])
    if both:
        table.add_row(*_totals(both), style="bold")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder")
    parser.add_argument("--budget", type=float, default=35.0, metavar="SECONDS",
                        help="scikit-learn's share of the two minutes")  # fmt: skip
    parser.add_argument("--all", action="store_true",
                        help="run scikit-learn on the word embeddings too (minutes)")  # fmt: skip
    parser.add_argument("--layers", type=int, help="only this many layers, for a quick look")
    arguments = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 110)

    begin = time.perf_counter()
    try:
        layers = data.layers()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    too_small = [layer for layer in layers if len(layer.blocks) < N_CLUSTERS]
    large_enough = [layer for layer in layers if len(layer.blocks) >= N_CLUSTERS]
    lines = measure(large_enough[: arguments.layers], arguments.budget, arguments.all, console)
    console.print(table_of(lines, too_small))

    from benchmarks import demo_file
    from benchmarks.demo_plot import draw

    arguments.output.mkdir(parents=True, exist_ok=True)
    outcome = demo_file.compress_model(arguments.output, console)
    console.print(demo_file.table_of(outcome))
    console.print(demo_file.sentences(outcome), highlight=False)
    path = arguments.output / "demo.png"
    draw(lines, outcome, path)
    console.print(f"Plot: {path}. {time.perf_counter() - begin:.0f} s in all.", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
