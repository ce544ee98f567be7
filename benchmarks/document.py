"""The tables of docs/benchmarks.md, made anew from the results that they name.

A block of tables begins with the first title behind the block before it (a line in bold) and ends
with the line that names its result file. What stands between blocks is prose, and left alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.report import Result
from benchmarks.sheets import as_number, as_seconds, as_whole

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
    """The rows of the table in README.md: ours beside the library that people use for it."""
    speed, line, quantizers, search = (
        report.read(results / f"{name}.json") for name in ("speed", "line", "quantizers", "search")
    )

    def row(what: str, other: str, ours: Result, theirs: Result, quality: str) -> str:
        ratio = f"**{as_number(theirs['ours_over_theirs'])}**"
        seconds = as_seconds(ours["seconds"]), as_seconds(theirs["seconds"])
        return f"| {' | '.join((what, other, *seconds, ratio, quality))} |"

    rows = []
    for case, what in (("blocks", "weights in blocks of 8"), ("words", "word embeddings")):
        ours, theirs = (
            _one(speed, case=case, mode="default fit", library=library)
            for library in ("pgkmeans-sk", "scikit-learn")
        )
        what = f"k-means, {what}, {as_whole(ours['n'])} x {ours['d']}, K = {ours['k']}"
        quality = f"inertia {as_whole(round(ours['sse']))} to {as_whole(round(theirs['sse']))}"
        rows.append(row(what, "scikit-learn", ours, theirs, quality))
    ours, theirs = (
        _one(line, n=10_000_000, k=16, library=library)
        for library in ("PGKMeans", "faiss.kmeans1d")
    )
    what = f"k-means on a line, {as_whole(ours['n'])} x 1, K = {ours['k']}"
    rows.append(row(what, "faiss.kmeans1d", ours, theirs, "both the optimum"))
    for step, what in (("train", "training"), ("encode", "encoding")):
        ours, theirs = (
            _one(quantizers, case="words", step=step, library=library)
            for library in ("ProductQuantizer", "faiss")
        )
        errors = as_number(ours["relative_error"], 4), as_number(theirs["relative_error"], 4)
        what = f"product quantization, {what}, {as_whole(ours['n'])} x {ours['d']}"
        rows.append(row(what, "faiss", ours, theirs, "error {} to {}".format(*errors)))
    ours, theirs = (
        _one(search, case="words", bits=8, queries=1000, library=library)
        for library in ("pgkmeans-sk", "faiss")
    )
    what = f"search for {as_whole(ours['queries'])} queries in its codes"
    rows.append(row(what, "faiss", ours, theirs, "the same rows"))
    return rows


def _one(result: Result, **wanted: Any) -> Result:
    """The only row with these values."""
    (found,) = (
        row for row in result["rows"] if all(row[name] == value for name, value in wanted.items())
    )
    return dict(found)
