"""The tables of docs/benchmarks.md, made anew from the results that they name.

A block of tables begins with the first title behind the block before it (a line in bold) and ends
with the line that names its result file. What stands between blocks is prose, and left alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import report
from benchmarks.sheets import as_whole

SOURCE = re.compile(r"^Source: `benchmarks/results/(?P<name>[\w.-]+\.json)`\.$", re.MULTILINE)
TITLE = re.compile(r"^\*\*.+\*\*$", re.MULTILINE)


def refreshed(text: str, results: Path = report.RESULTS) -> str:
    """The document with its tables as the results have them."""
    parts, end = [], 0
    for source in SOURCE.finditer(text):
        title = TITLE.search(text, end, source.start())
        if title is None:
            raise ValueError(f"Got no title before the tables of {source['name']}.")
        result = report.read(results / source["name"])
        tables = report.to_markdown(result, f"benchmarks/results/{source['name']}")
        parts += [text[end : title.start()], tables.rstrip("\n")]
        end = source.end()
    return "".join([*parts, text[end:]])


def all_rows(results: Path = report.RESULTS) -> set[str]:
    """Every row of every table that a committed result makes."""
    rows: set[str] = set()
    for path in results.glob("*.json"):
        if json.loads(path.read_text())["kind"] in report.SHEETS:  # others are no tables
            rows |= set(report.to_markdown(report.read(path), "").splitlines())
    return rows


def headline_rows(results: Path = report.RESULTS) -> list[str]:
    """The rows of the table in README.md: default fits, ours and scikit-learn's."""
    result = report.read(results / "speed.json")
    version = result["versions"]["scikit-learn"]
    names = {"pgkmeans-sk": "**PGKMeans**", "scikit-learn": f"scikit-learn {version}"}
    cases = {"blocks": "weights of a transformer in blocks of 8", "words": "its word embeddings"}
    rows = []
    for case, what in cases.items():
        for row in result["rows"]:
            if (row["case"], row["mode"]) != (case, "default fit") or row["library"] not in names:
                continue
            is_ours = row["library"] == "pgkmeans-sk"
            cells = (
                f"{as_whole(row['n'])} x {row['d']}, {what}" if is_ours else "",
                str(row["k"]) if is_ours else "",
                names[row["library"]],
                f"**{row['seconds']:.1f}**" if is_ours else f"{row['seconds']:.1f}",
                as_whole(round(row["sse"])),
                str(row["n_empty"]),
            )
            rows.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return rows
