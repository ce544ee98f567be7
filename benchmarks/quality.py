"""Time to quality: what the points of the curves say, as numbers and as tables.

A point is a row of a result of the kind "curves": one library, one setting, its seconds and the SSE
of its centres. The question is never "who is faster" alone: it is how long each takes for an SSE
that the other reaches as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.sheets import Sheet, as_number, as_percent, as_seconds, as_sse, as_whole

Row = dict[str, Any]

ABOVE_BEST = (0.10, 0.05, 0.02, 0.01, 0.005, 0.002)
_ROUNDING = 1e-9  # relative; two fits to the same centres must count as equal


def least_seconds(rows: Sequence[Row], sse: float) -> Row | None:
    """Return the fastest of the points that reach this SSE or less; None if none does."""
    good_enough = [row for row in rows if row["sse"] <= sse * (1.0 + _ROUNDING)]
    return min(good_enough, key=lambda row: row["seconds"], default=None)


def paired_ratio(ours: Row, theirs: Row) -> float:
    """Return the median, over the rounds that both took part in, of our seconds by theirs."""
    pairs = zip(ours["all_seconds"], theirs["all_seconds"], strict=False)
    return median(our_seconds / their_seconds for our_seconds, their_seconds in pairs)


def front(rows: Sequence[Row]) -> list[Row]:
    """Return the points that no other one beats in both time and SSE, by rising seconds."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["seconds"], row["sse"])):
        if not kept or row["sse"] < kept[-1]["sse"]:
            kept.append(row)
    return kept


def rows_by_line(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group the points of a case by line, in the order of the result."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["library"], []).append(row)
    return groups


def rows_by_case(result: dict[str, Any]) -> dict[str, list[Row]]:
    """Group the points of a result by case, in the order of the result."""
    groups: dict[str, list[Row]] = {}
    for row in result["rows"]:
        groups.setdefault(row["case"], []).append(row)
    return groups


def case_title(row: Row) -> str:
    """Name a case and its size, and say so if it is synthetic."""
    flag = "synthetic, " if row["synthetic"] else ""
    return f"{row['case']} ({flag}{as_whole(row['n'])} x {row['d']}, K={row['k']})"


def picture_name(case: str) -> str:
    """Name the file of a case's picture."""
    return f"curves-{case}.png"


def sheets(result: dict[str, Any]) -> list[Sheet]:
    """Make two tables for each case: at the peers' defaults, and near the best SSE."""
    found = []
    for rows in rows_by_case(result).values():
        found += [_at_their_defaults(rows), _near_the_best(rows)]
    return found


def _at_their_defaults(rows: Sequence[Row]) -> Sheet:
    ours = [row for row in rows if row["ours"]]
    best = min(row["sse"] for row in rows)
    table = []
    for row in rows:
        if not row["is_default"]:
            continue
        match = least_seconds(ours, row["sse"])
        table.append(
            (
                row["library"],
                as_seconds(row["seconds"]),
                str(len(row["all_seconds"])),
                as_sse(row["sse"]),
                as_percent(row["sse"] / best - 1.0),
                as_whole(row["n_empty"]),
                "not reached" if match is None else as_seconds(match["seconds"]),
                "-" if match is None else as_number(paired_ratio(match, row)),
                "-" if match is None else f"{match['library']}, {match['setting']}",
            )
        )
    columns = (
        "library, default",
        "seconds",
        "runs",
        "SSE",
        "SSE to best",
        "empty",
        "our least seconds at that SSE",
        "ours / theirs",
        "our setting",
    )
    caption = (
        "Our least seconds: the fastest of our settings with an SSE at or below the row's; the "
        "ratio is the median over the rounds of both. Best: the least SSE of all points here."
    )
    title = f"{case_title(rows[0])}: ours at the SSE of each default"
    return Sheet(title, columns, table, caption, picture=picture_name(rows[0]["case"]))


def _near_the_best(rows: Sequence[Row]) -> Sheet:
    best = min(row["sse"] for row in rows)
    table = []
    for name, group in rows_by_line(rows).items():
        reached = [least_seconds(group, best * (1.0 + share)) for share in ABOVE_BEST]
        least = min(row["sse"] for row in group)
        table.append(
            (
                name,
                *("-" if row is None else as_seconds(row["seconds"]) for row in reached),
                as_percent(least / best - 1.0),
            )
        )
    columns = ("library", *(f"{share:.1%}" for share in ABOVE_BEST), "its best SSE to best")
    title = f"{case_title(rows[0])}: least seconds to an SSE within so much of the best"
    return Sheet(title, columns, table)
