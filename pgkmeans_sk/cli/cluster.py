"""``pgkmeans cluster``: k-means on the rows of a file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from pgkmeans_sk.cli import options
from pgkmeans_sk.cli.console import console, grouped, print_json, print_line, spinner
from pgkmeans_sk.cli.read_rows import read_rows
from pgkmeans_sk.cli.write_clusters import (
    OF_CENTERS,
    OF_LABELS,
    check_kind,
    write_centers,
    write_clusters,
)
from pgkmeans_sk.kmeans import PGKMeans


def cluster(
    data: Annotated[
        Path, typer.Argument(help="A .npy, .csv, .tsv or .parquet file; others with --dtype.")
    ],
    n_clusters: Annotated[int, typer.Option("-k", "--clusters", help="Number of clusters.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Labels and centres (.npz), or labels (.npy, .csv)."),
    ] = None,
    centers: Annotated[Path | None, typer.Option(help="Centres (.npy, .csv).")] = None,
    init: options.Init = "partition",
    n_init: options.Starts = None,
    max_iter: options.MaxIter = 300,
    tol: options.Tol = 1e-4,
    algorithm: options.Algorithm = "auto",
    metric: options.Metric = "euclidean",
    refine: options.Refine = 0,
    size_min: options.SizeMin = None,
    size_max: options.SizeMax = None,
    random_state: options.Seed = 0,
    select: options.Select = None,
    header: options.Header = None,
    dtype: options.RawDtype = None,
    columns: options.RawColumns = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Cluster the rows of a file by k-means; no cluster ends up empty."""
    for path, kinds in ((output, OF_LABELS), (centers, OF_CENTERS)):
        if path is not None:
            check_kind(path, kinds)
            options.check_target(path, force, data)
    with spinner(f"Reading {data}"):
        rows = read_rows(data, dtype=dtype, columns=columns, select=select or (), header=header)
    kmeans = PGKMeans(
        n_clusters,
        init=init,
        n_init="auto" if n_init is None else n_init,
        max_iter=max_iter,
        tol=tol,
        random_state=random_state,
        algorithm=algorithm,
        metric=metric,
        refine=refine,
        size_min=size_min,
        size_max=size_max,
    )
    facts = _fit(kmeans, rows)
    for path, write in ((output, write_clusters), (centers, write_centers)):
        if path is not None:
            write(path, kmeans)
    written = [str(path) for path in (output, centers) if path is not None]
    if as_json:
        print_json({"data": str(data), **facts, "written": written})
        return
    _print_facts(facts)
    for name in written:
        print_line(f"Written: {name}")


def _fit(kmeans: PGKMeans, rows: Any) -> dict[str, Any]:
    """Fit, and say what came out."""
    begin = time.perf_counter()
    with spinner(f"{grouped(len(rows))} x {rows.shape[1]}") as tell, _told(tell):
        kmeans.set_params(verbose=1).fit(rows)
    sizes = np.bincount(kmeans.labels_, minlength=kmeans.n_clusters)
    return {
        "n_rows": len(rows),
        "n_columns": rows.shape[1],
        "dtype": str(rows.dtype),
        "n_clusters": kmeans.n_clusters,
        "n_empty": int((sizes == 0).sum()),
        "inertia": float(kmeans.inertia_),
        "n_iter": int(kmeans.n_iter_),
        "start": kmeans.start_,
        "seconds": time.perf_counter() - begin,
        "sizes": sizes.tolist(),
    }


@contextmanager
def _told(tell: Callable[[str], None]) -> Iterator[None]:
    """What the fit says of its progress goes to ``tell`` instead of the terminal."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(record.getMessage())

    logger, handler = logging.getLogger("pgkmeans_sk"), Handler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _print_facts(facts: dict[str, Any]) -> None:
    sizes = np.array(facts["sizes"])
    lines = {
        "rows": f"{grouped(facts['n_rows'])} x {facts['n_columns']}, {facts['dtype']}",
        "clusters": f"{grouped(facts['n_clusters'])}, of them {facts['n_empty']} empty",
        "rows in each": f"{sizes.min()} to {sizes.max()}, median {np.median(sizes):g}",
        "inertia": f"{facts['inertia']:.6g}",
        "iterations": str(facts["n_iter"]),
        "seconds": f"{facts['seconds']:.2f}",
    }
    table = Table.grid(padding=(0, 3, 0, 0))
    for title, text in lines.items():
        table.add_row(title, text)
    console().print(table, highlight=False)
