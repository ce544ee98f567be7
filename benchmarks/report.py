"""Results (JSON) into tables: on the terminal by rich, in ``docs`` as Markdown, from one model.

A table is made once, as rows of strings with a caption, and then only drawn in two ways; so what
``docs`` shows is what the terminal shows, and both name the machine and the versions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Result = dict[str, Any]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sheet:
    """A table, not yet drawn. Columns after the first ``n_text`` are numbers (right-aligned)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    n_text: int = 1


def read(path: Path) -> Result:
    """Read a result file."""
    result: Result = json.loads(path.read_text())
    if result.get("kind") not in _SHEETS:
        raise ValueError(
            f"{path}: got kind {result.get('kind')!r}, but expected one of {', '.join(_SHEETS)}."
        )
    return result


def write(result: Result, path: Path) -> Path:
    """Write a result file; a bare file name lands among the committed results."""
    if path.parent == Path():
        path = RESULTS / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 10**-digits):
        return f"{value:.{digits + 1}e}"
    return f"{value:.{digits}f}"


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _sse(value: float) -> str:
    return f"{value:.6g}" if value < 1e6 else f"{value:.5e}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f} %"


def _whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}".replace(",", " ")


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.1f}"


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
    return [line for line in (*notes, _skips(result), _where(result)) if line]


def _speed_sheets(result: Result) -> list[Sheet]:
    sheets = []
    rows = result["rows"]
    for case, mode in dict.fromkeys((row["case"], row["mode"]) for row in rows):
        group = [row for row in rows if (row["case"], row["mode"]) == (case, mode)]
        ours = group[0]  # the harness yields ours first
        size = f"{_whole(ours['n'])} x {ours['d']}, K={ours['k']}"
        flags = "synthetic, " if ours["synthetic"] else ""
        iterations = result["settings"]["same_start_iterations"]
        heading = f"same start, {iterations} iterations" if mode == "same start" else mode
        table = [
            (
                row["library"] + ("" if mode != "same start" or row["shared_start"] else " *"),
                _seconds(row["seconds"]),
                f"{_seconds(row['seconds_min'])} - {_seconds(row['seconds_max'])}",
                str(len(row["all_seconds"])),
                "1" if row is ours else _number(row["ours_over_theirs"]),
                _sse(row["sse"]),
                _percent(row["sse"] / ours["sse"] - 1.0),
                _whole(row["n_empty"]),
                _whole(row["n_iter"]),
                _mebibytes(row["peak_bytes"]),
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
        (row["library"], row["state"], *(_seconds(row[key]) for key in keys))
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
                _whole(total["n_empty_first"]),
                _whole(total["n_empty_last"]),
                _whole(total["most_empty_last"]),
                _whole(total["n_passes"]),
                _whole(total["n_gave_up"]),
                _percent(total["sse_over_pg_mean"]),
                _percent(total["sse_over_pg_worst"]),
                _seconds(total["seconds"]),
            )
            for total in group
        ]
        n_fits = max(total["n_fits"] for total in group)
        title = f"K = {K}: sums over {n_fits} fits, {settings['iterations']} iterations each"
        sheets.append(Sheet(title, columns, rows))
    return sheets


_SHEETS: dict[str, Callable[[Result], list[Sheet]]] = {
    "speed": _speed_sheets,
    "cold": _cold_sheets,
    "empty-clusters": _empty_cluster_sheets,
}


def show(result: Result, console: Console) -> None:
    """Print a result on the terminal."""
    for sheet in _SHEETS[result["kind"]](result):
        console.print(drawn(sheet))
    for line in _footnotes(result):
        console.print(line, style="dim", highlight=False)


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
    for sheet in _SHEETS[result["kind"]](result):
        rule = ["---" if index < sheet.n_text else "---:" for index in range(len(sheet.columns))]
        lines = [f"**{sheet.title}**", ""]
        lines += [f"| {' | '.join(row)} |" for row in (sheet.columns, rule, *sheet.rows)]
        if sheet.caption:
            lines += ["", sheet.caption]
        parts.append("\n".join(lines))
    parts += [*_footnotes(result), f"Source: `{source}`."]
    return "\n\n".join(parts) + "\n"


_KEYS = {
    "speed": ("case", "n", "mode", "library"),
    "cold": ("library", "state"),
    "empty-clusters": ("layer", "k", "arm", "seed"),
}


def compare(before: Result, after: Result) -> Sheet:
    """Put two results of one kind side by side, row by row; rows of only one of them are named."""
    kind = before["kind"]
    if kind != after["kind"]:
        raise ValueError(f"Got results of kinds {kind!r} and {after['kind']!r}, but expected one.")
    keys = _KEYS[kind]
    clock = "import_and_first_fit_seconds" if kind == "cold" else "seconds"
    empties = "n_empty" if kind == "speed" else "n_empty_last"
    old = {tuple(row[key] for key in keys): row for row in before["rows"]}
    new = {tuple(row[key] for key in keys): row for row in after["rows"]}
    table = []
    for key in [key for key in old if key in new]:
        a, b = old[key], new[key]
        numbers = [_seconds(a[clock]), _seconds(b[clock]), f"{b[clock] / a[clock]:.2f}"]
        if kind != "cold":
            numbers += [_percent(b["sse"] / a["sse"] - 1.0), f"{a[empties]} -> {b[empties]}"]
        if kind == "speed":  # the paired ratio is the figure that survives a change of machine
            numbers += [_number(a["ours_over_theirs"]), _number(b["ours_over_theirs"])]
        table.append((*map(str, key), *numbers))
    columns = [*keys, "A s", "B s", "B / A"]
    columns += [] if kind == "cold" else ["SSE, B to A", "empty"]
    columns += ["ours / theirs A", "ours / theirs B"] if kind == "speed" else []
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
    return Sheet(f"{kind}: A against B", columns, table, " ".join(remarks), len(keys))
