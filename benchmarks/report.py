"""Results (JSON) into tables: on the terminal by rich, in ``docs`` as Markdown, from one model.

A table is made once, as rows of strings with a caption, and then only drawn in two ways; so what
``docs`` shows is what the terminal shows, and both name the machine and the versions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import (
    diffq,
    distributed,
    dkm,
    finetune,
    gpu,
    growth,
    inference,
    jobs,
    line,
    methods,
    options,
    packing,
    quality,
    quantizers,
    scalar,
    search,
    sentences,
    small,
    stored,
)
from benchmarks.sheets import (
    Sheet,
    as_mebibytes,
    as_number,
    as_percent,
    as_seconds,
    as_sse,
    as_whole,
)

Result = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


def read(path: Path) -> Result:
    """Read a result file."""
    result: Result = json.loads(path.read_text())
    if result.get("kind") not in SHEETS:
        raise ValueError(
            f"{path}: got kind {result.get('kind')!r}, but expected one of {', '.join(SHEETS)}."
        )
    return result


def write(result: Result, path: Path) -> Path:
    """Write a result file; a bare file name lands among the committed results."""
    if path.parent == Path():
        path = RESULTS / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _skips(result: Result) -> str:
    """Name everything that was left out, with the reason; one sentence per reason."""
    left_out: dict[tuple[str, str], list[str]] = {}
    for skip in result.get("skipped", ()):
        what = ", ".join(f"{value}" for key, value in skip.items() if key not in ("reason", "mode"))
        names = left_out.setdefault((what, skip["reason"]), [])
        if "mode" in skip:
            names.append(skip["mode"])
    return " ".join(
        f"Skipped: {what}" + (f" ({', '.join(modes)})" if modes else "") + f": {reason}."
        for (what, reason), modes in left_out.items()
    )


def _where(result: Result) -> str:
    where = result["machine"]
    versions = ", ".join(
        f"{name} {number}"
        for name, number in result["versions"].items()
        if number != "not installed"
    )
    return (
        f"{where['cpu']}, {where['cores']} cores, {where['date'][:10]}, "
        f"Python {where['python']}; {versions}."
    )


def _footnotes(result: Result) -> list[str]:
    """Return what belongs below all tables of a result, a paragraph each."""
    # A speed result's notes are about single libraries and stand below the tables that show them.
    notes = [] if result["kind"] == "speed" else list(result.get("notes", {}).values())
    return [note for note in (*notes, _skips(result), _where(result)) if note]


def _speed_sheets(result: Result) -> list[Sheet]:
    sheets = []
    rows = result["rows"]
    for case, mode in dict.fromkeys((row["case"], row["mode"]) for row in rows):
        group = [row for row in rows if (row["case"], row["mode"]) == (case, mode)]
        ours = group[0]  # the harness yields ours first
        size = f"{as_whole(ours['n'])} x {ours['d']}, K={ours['k']}"
        flags = "synthetic, " if ours["synthetic"] else ""
        iterations = result["settings"]["same_start_iterations"]
        heading = f"same start, {iterations} iterations" if mode == "same start" else mode
        table = [
            (
                row["library"] + ("" if mode != "same start" or row["shared_start"] else " *"),
                as_seconds(row["seconds"]),
                f"{as_seconds(row['seconds_min'])} - {as_seconds(row['seconds_max'])}",
                str(len(row["all_seconds"])),
                "1" if row is ours else as_number(row["ours_over_theirs"]),
                as_sse(row["sse"]),
                as_percent(row["sse"] / ours["sse"] - 1.0),
                as_whole(row["n_empty"]),
                as_whole(row["n_iter"]),
                as_mebibytes(row["peak_bytes"]),
            )
            for row in group
        ]
        star = any(row[0].endswith(" *") for row in table)
        notes = "; ".join(
            f"{name}: {note}"
            for name, note in result["notes"].items()
            if name in {row["library"] for row in group}
        )
        sheets.append(
            Sheet(
                f"{case} ({flags}{size}): {heading}",
                (
                    "library",
                    "seconds",
                    "min - max",
                    "runs",
                    "ours / theirs",
                    "SSE",
                    "SSE to ours",
                    "empty",
                    "iterations",
                    "peak MiB beyond X",
                ),
                table,
                ("* Starts from its own centres. " if star else "")
                + (f"{notes}." if notes else ""),
            )
        )
    return sheets


def _cold_sheets(result: Result) -> list[Sheet]:
    columns = ("library", "cache", "import s", "first fit s", "import + first fit s", "2nd fit s")
    keys = (
        "import_seconds",
        "first_fit_seconds",
        "import_and_first_fit_seconds",
        "second_fit_seconds",
    )
    rows = [
        (row["library"], row["state"], *(as_seconds(row[key]) for key in keys))
        for row in result["rows"]
    ]
    return [Sheet("First fit of a small table in a fresh process", columns, rows, n_text=2)]


def _empty_cluster_sheets(result: Result) -> list[Sheet]:
    settings = result["settings"]
    columns = (
        "arm",
        "empty at first assignment",
        "empty at the end",
        "most in one fit",
        "passes",
        "gave up",
        "SSE to PG, mean",
        "worst",
        "seconds",
    )
    sheets = []
    for K in dict.fromkeys(total["k"] for total in result["totals"]):
        group = [total for total in result["totals"] if total["k"] == K]
        rows = [
            (
                total["arm"],
                as_whole(total["n_empty_first"]),
                as_whole(total["n_empty_last"]),
                as_whole(total["most_empty_last"]),
                as_whole(total["n_passes"]),
                as_whole(total["n_gave_up"]),
                as_percent(total["sse_over_pg_mean"]),
                as_percent(total["sse_over_pg_worst"]),
                as_seconds(total["seconds"]),
            )
            for total in group
        ]
        n_fits = max(total["n_fits"] for total in group)
        title = f"K = {K}: sums over {n_fits} fits, {settings['iterations']} iterations each"
        sheets.append(Sheet(title, columns, rows))
    return sheets


SHEETS: dict[str, Callable[[Result], list[Sheet]]] = {
    "speed": _speed_sheets,
    "small": small.sheets,
    "cold": _cold_sheets,
    "empty-clusters": _empty_cluster_sheets,
    "curves": quality.sheets,
    "scaling": growth.sheets,
    "gpu": gpu.sheets,
    "line": line.sheets,
    "dkm": dkm.sheets,
    "diffq": diffq.sheets,
    "packing": packing.sheets,
    "search": search.sheets,
    "quantizers": quantizers.sheets,
    "options": options.sheets,
    "sentences": sentences.sheets,
    "finetune": finetune.sheets,
    "scalar": scalar.sheets,
    "inference": inference.sheets,
    "jobs": jobs.sheets,
    "methods": methods.sheets,
    "stored": stored.sheets,
    "distributed": distributed.sheets,
}


def show(result: Result, console: Console) -> None:
    """Print a result on the terminal."""
    for sheet in SHEETS[result["kind"]](result):
        console.print(drawn(sheet))
    for paragraph in _footnotes(result):
        console.print(paragraph, style="dim", highlight=False)


def drawn(sheet: Sheet) -> Table:
    """Draw a sheet as a rich table."""
    table = Table(title=sheet.title, caption=sheet.caption or None, title_justify="left")
    for index, column in enumerate(sheet.columns):
        table.add_column(column, justify="left" if index < sheet.n_text else "right")
    for row in sheet.rows:
        table.add_row(*row)
    return table


def to_markdown(result: Result, source: str) -> str:
    """Return a result as Markdown tables that name the JSON file they come from."""
    parts = []
    for sheet in SHEETS[result["kind"]](result):
        rule = ["---" if index < sheet.n_text else "---:" for index in range(len(sheet.columns))]
        lines = [f"**{sheet.title}**", ""]
        lines += [f"![{sheet.title}](images/{sheet.picture})", ""] if sheet.picture else []
        lines += [f"| {' | '.join(row)} |" for row in (sheet.columns, rule, *sheet.rows)]
        if sheet.caption:  # a star in front would make it an item of a list
            lines += ["", re.sub(r"^\* ", r"\\* ", sheet.caption)]
        parts.append("\n".join(lines))
    parts += [*_footnotes(result), f"Source: `{source}`."]
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class _Comparable:
    """What identifies a row of one kind of result, and what of it is compared."""

    keys: Sequence[str]
    clock: str = "seconds"
    empties: str | None = None  # None: the rows have no such count
    has_sse: bool = True
    has_ratio: bool = False


_COMPARABLE = {
    "speed": _Comparable(("case", "n", "mode", "library"), empties="n_empty", has_ratio=True),
    "small": _Comparable(("case", "mode", "n", "d", "k"), has_ratio=True),
    "cold": _Comparable(("library", "state"), "import_and_first_fit_seconds", has_sse=False),
    "empty-clusters": _Comparable(("layer", "k", "arm", "seed"), empties="n_empty_last"),
    "curves": _Comparable(("case", "n", "library", "setting"), empties="n_empty"),
    "scaling": _Comparable(
        ("series", "library", "n", "d", "k", "threads"), "seconds_per_iteration", has_sse=False
    ),
    "options": _Comparable(("matrix", "codebook", "option"), has_sse=False),
    "sentences": _Comparable(
        ("subset", "block_size", "n_codes", "arm", "seed"), empties="n_empty_last", has_sse=False
    ),
    "finetune": _Comparable(
        ("task", "sizes", "noise", "arm", "seed"),
        "all_seconds",
        empties="n_empty_last",
        has_sse=False,
    ),
    "scalar": _Comparable(("scheme", "granularity", "bits"), has_sse=False),
    "gpu": _Comparable(("case", "n", "mode", "library"), empties="n_empty", has_ratio=True),
    "line": _Comparable(("data", "n", "k", "library")),
    "diffq": _Comparable(("arm", "setting", "seed"), has_sse=False),
    "inference": _Comparable(("task", "n", "length", "way"), has_sse=False),
    "jobs": _Comparable(("model", "way"), has_sse=False),
    "methods": _Comparable(("method", "size", "seed"), clock="accuracy", has_sse=False),
    "dkm": _Comparable(("part", "size", "way", "dtype", "seed"), has_sse=False),
    "stored": _Comparable(("way", "n", "d", "k"), has_sse=False),
    "distributed": _Comparable(("part", "n"), has_sse=False),
    "packing": _Comparable(("task", "n_bits", "n", "library"), has_sse=False),
    "search": _Comparable(
        ("case", "n", "bits", "task", "queries", "library"), has_sse=False, has_ratio=True
    ),
    "quantizers": _Comparable(("case", "n", "library", "step"), has_sse=False, has_ratio=True),
}


def compare(before: Result, after: Result) -> Sheet:
    """Put two results of one kind side by side, row by row; rows of only one of them are named."""
    kind = before["kind"]
    if kind != after["kind"]:
        raise ValueError(f"Got results of kinds {kind!r} and {after['kind']!r}, but expected one.")
    how = _COMPARABLE[kind]
    old = {tuple(row[key] for key in how.keys): row for row in before["rows"]}
    new = {tuple(row[key] for key in how.keys): row for row in after["rows"]}
    table = []
    for key in [key for key in old if key in new]:
        a, b = old[key], new[key]
        first, second = a[how.clock], b[how.clock]
        numbers = [as_seconds(first), as_seconds(second), f"{second / first:.2f}"]
        numbers += [as_percent(b["sse"] / a["sse"] - 1.0)] if how.has_sse else []
        numbers += [f"{a[how.empties]} -> {b[how.empties]}"] if how.empties else []
        if how.has_ratio:  # the paired ratio is the figure that survives a change of machine
            numbers += [as_number(a["ours_over_theirs"]), as_number(b["ours_over_theirs"])]
        table.append((*map(str, key), *numbers))
    columns = [*how.keys, "A s", "B s", "B / A"]
    columns += ["SSE, B to A"] if how.has_sse else []
    columns += ["empty"] if how.empties else []
    columns += ["ours / theirs A", "ours / theirs B"] if how.has_ratio else []
    remarks = [
        f"Only in {name}: {'; '.join(' '.join(map(str, key)) for key in mine if key not in other)}."
        for name, mine, other in (("A", old, new), ("B", new, old))
        if any(key not in other for key in mine)
    ]
    remarks += [
        f"Settings differ: {name} is {value} in A, {after['settings'].get(name)} in B."
        for name, value in before["settings"].items()
        if value != after["settings"].get(name)
    ]
    remarks += [f"{name}: {_where(result)}" for name, result in (("A", before), ("B", after))]
    return Sheet(f"{kind}: A against B", columns, table, " ".join(remarks), len(how.keys))
