"""The demonstration's plot: seconds and error per layer, ours beside scikit-learn's; file sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.demo_file import carried_bytes

if TYPE_CHECKING:
    from benchmarks.demo import Line
    from benchmarks.demo_file import Outcome

# Okabe and Ito's blue and vermilion: told apart with every common colour blindness, and the
# shapes differ as well for a print in grey.
OURS: dict[str, Any] = {"color": "#0072B2", "marker": "o", "s": 34, "zorder": 4}
THEIRS: dict[str, Any] = {
    "facecolors": "white",
    "edgecolors": "#D55E00",
    "linewidths": 1.6,
    "marker": "D",
    "s": 62,
    "zorder": 3,
}

PARTS = {"word embeddings": "#0072B2", "all other layers": "#56B4E9", "carried, header": "0.6"}
"""Of a file, with the colours of their bars."""


def draw(lines: Sequence[Line], outcome: Outcome, path: Path) -> None:
    """Write a PNG: two panels that share the layers as rows, and below them the sizes of files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    rows = np.arange(len(lines))
    height = 0.235 * len(lines)
    figure = plt.figure(figsize=(11, 4.1 + height), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1), height_ratios=(1.2 + height, 1.6))
    left = figure.add_subplot(grid[0, 0])
    right = figure.add_subplot(grid[0, 1], sharey=left)
    right.tick_params(labelleft=False)
    _draw_sizes(figure.add_subplot(grid[1, :]), outcome)
    for panel in (left, right):
        _shade_groups(panel, [line.name for line in lines])
        panel.grid(axis="x", color="0.85", linewidth=0.7, zorder=0)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)

    for row, line in zip(rows, lines, strict=True):
        if line.theirs is not None:
            pair = (line.ours.seconds, line.theirs.seconds)
            left.plot(pair, (row, row), color="0.55", linewidth=1.4, zorder=2)
    with_theirs = [row for row, line in zip(rows, lines, strict=True) if line.theirs is not None]
    for panel, value in (
        (left, lambda trial, line: trial.seconds),
        (right, lambda trial, line: np.sqrt(trial.sse) / line.norm),
    ):
        ours = [value(line.ours, line) for line in lines]
        theirs = [value(line.theirs, line) for line in lines if line.theirs is not None]
        panel.scatter(ours, rows, label="PGKMeans", **OURS)
        panel.scatter(theirs, with_theirs, label="scikit-learn KMeans", **THEIRS)

    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("seconds per fit (log scale; less is better)")
    left.set_title(_time_title(lines), loc="left", fontsize=11)
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_xlabel("relative error |W - Ŵ| / |W| (less is better; axis not from 0)")
    right.set_title("Relative error", loc="left", fontsize=11)
    left.set_yticks(rows, [line.name.replace("_", " ") for line in lines], fontsize=8.5)
    left.set_ylim(len(lines) - 0.4, -0.6)  # the first layer on top

    figure.suptitle(
        "Default fits of all-MiniLM-L6-v2's weight matrices: blocks of 8 weights, 256 clusters",
        x=0.01,
        ha="left",
        fontsize=13,
        fontweight="bold",
    )
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_sizes(panel: Any, outcome: Outcome) -> None:
    """One bar for the model as it was, one for the compressed file, each cut into its parts."""
    report = outcome.report
    carried = carried_bytes(report)
    for row, total in enumerate((report.original_bytes, report.n_bytes)):
        field = ("original_bytes", "stored_bytes")[row]
        words = sum(getattr(k, field) for k in outcome.kinds if k.name == "word embeddings")
        parts = (words, total - words - carried[row], carried[row])
        begin = 0.0
        for (part, color), n_bytes in zip(PARTS.items(), parts, strict=True):
            label = part if row == 0 else None
            panel.barh(row, n_bytes / 1e6, left=begin, color=color, label=label, height=0.62)
            begin += n_bytes / 1e6
        panel.annotate(
            f"{total / 1e6:.2f} MB", (begin, row), (5, 0), textcoords="offset points", va="center"
        )
    panel.set_yticks((0, 1), ("model, fp32", "compressed"), fontsize=8.5)
    panel.set_ylim(1.5, -0.5)
    panel.set_xlim(0, 1.12 * report.original_bytes / 1e6)
    panel.set_xlabel("MB of the file")
    panel.set_title(
        f"The whole model in one file: {report.original_bytes / report.n_bytes:.1f} times smaller",
        loc="left",
        fontsize=11,
    )
    panel.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.legend(loc="lower right", frameon=False, fontsize=8.5)


def _time_title(lines: Sequence[Line]) -> str:
    both = [(line.ours.seconds, line.theirs.seconds) for line in lines if line.theirs is not None]
    if not both:
        return "Time"
    ours, theirs = np.sum(both, axis=0)
    return f"Time: {ours:.1f} s against {theirs:.1f} s on the {len(both)} layers that both did"


def _shade_groups(panel: Any, names: Sequence[str]) -> None:
    """Put a light band behind every other encoder layer, so that rows are easy to follow."""
    groups = [name.split(".")[0] if name[0].isdigit() else "" for name in names]
    for row, group in enumerate(groups):
        if group and int(group) % 2 == 0:
            panel.axhspan(row - 0.5, row + 0.5, color="0.955", zorder=-1, linewidth=0)
