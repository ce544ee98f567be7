"""How the seconds of an iteration grow with the size of the problem: exponents and tables.

A row of a result of the kind "scaling" is one library at one size; the rows of a *series* differ in
one number only. An exponent is the slope of a straight line through log(seconds) over log(number):
1 means proportional. Small sizes cost overhead that does not grow, so a second exponent looks at
the larger half alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.sheets import Sheet, as_number, as_whole

Row = dict[str, Any]

# Series -> the column of a row that grows in it, in the order of the report.
GROWS = {"rows": "n", "clusters": "k", "features": "d", "threads": "threads"}
PICTURE = "scaling.png"


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Return the least-squares slope of log(seconds) over log(size); None below two sizes."""
    if len(set(sizes)) < 2:
        return None
    x, y = np.log(sizes), np.log(seconds)
    x = x - x.mean()
    return float(x @ y / (x @ x))


def larger_half(rows: Sequence[Row], column: str) -> list[Row]:
    """Return the rows of the larger sizes: half of them, rounded up, and at least two."""
    ordered = sorted(rows, key=lambda row: row[column])
    return ordered[-max(2, (len(ordered) + 1) // 2) :]


def exponents(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the exponents of each series and library, of all sizes and of the larger half."""
    found = []
    for series, library in dict.fromkeys((row["series"], row["library"]) for row in rows):
        column = GROWS[series]
        group = [row for row in rows if (row["series"], row["library"]) == (series, library)]
        both = (
            exponent([row[column] for row in part], [row["seconds_per_iteration"] for row in part])
            for part in (group, larger_half(group, column))
        )
        names = ("exponent", "exponent_larger_half")
        found.append({"series": series, "library": library, **dict(zip(names, both, strict=True))})
    return found


def libraries(rows: Sequence[Row]) -> list[str]:
    """Return the libraries of some rows, ours first as the harness runs it first."""
    return list(dict.fromkeys(row["library"] for row in rows))


def fixed_sizes(rows: Sequence[Row], series: str) -> str:
    """Say which numbers stay the same in a series."""
    row, grows = rows[0], GROWS[series]
    size = f"{'n' if grows == 'n' else as_whole(row['n'])} x {'d' if grows == 'd' else row['d']}"
    clusters = "" if grows == "k" else f", K={row['k']}"
    threads = "" if grows == "threads" else f", {row['threads']} threads"
    return f"{size}{clusters}{threads}"


def sheets(result: dict[str, Any]) -> list[Sheet]:
    """Make one table per series."""
    found = []
    for series in GROWS:
        rows = [row for row in result["rows"] if row["series"] == series]
        if rows:
            found.append(_series_sheet(series, rows, result["settings"], PICTURE * (not found)))
    return found


def _series_sheet(
    series: str, rows: Sequence[Row], settings: dict[str, Any], picture: str
) -> Sheet:
    column, names = GROWS[series], libraries(rows)
    cell = {(row["library"], row[column]): row for row in rows}
    with_memory = [name for name in names if any(
        row["peak_bytes"] is not None for row in rows if row["library"] == name
    )]  # fmt: skip
    table = []
    for size in sorted({row[column] for row in rows}):
        found = {name: cell.get((name, size)) for name in names}
        table.append(
            (
                as_whole(size),
                *(_milliseconds(found[name]) for name in names),
                *(_ratio(found[name]) for name in names[1:]),
                *(_bytes_per_row(found[name]) for name in with_memory),
            )
        )
    slopes = {entry["library"]: entry for entry in exponents(rows)}
    blank = [""] * (len(names) - 1 + len(with_memory))
    for words, key in (
        ("exponent", "exponent"),
        ("exponent, larger half", "exponent_larger_half"),
    ):
        table.append((words, *(as_number(slopes[name][key], 2) for name in names), *blank))
    columns = (
        column,
        *(f"{name} ms" for name in names),
        *(f"ours / {name}" for name in names[1:]),
        *(f"{name} bytes" for name in with_memory),
    )
    caption = (
        f"Synthetic: a Gaussian mixture. {settings['iterations']} Lloyd iterations from the same "
        "start; ms: milliseconds of the fit by its iterations."
    )
    if with_memory:
        caption += " Bytes: peak memory of the fit beyond the data, per row."
    title = f"{series} ({fixed_sizes(rows, series)}, synthetic)"
    return Sheet(title, columns, table, caption, picture=picture)


def _milliseconds(row: Row | None) -> str:
    return "-" if row is None else as_number(1000.0 * row["seconds_per_iteration"])


def _ratio(row: Row | None) -> str:
    return "-" if row is None else as_number(row["ours_over_theirs"])


def _bytes_per_row(row: Row | None) -> str:
    known = row is not None and row["peak_bytes"] is not None
    return as_number(row["peak_bytes"] / row["n"], 1) if known else "-"
