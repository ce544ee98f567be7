"""The picture of a time-to-quality result: for each case, SSE above the best against seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plotting, quality

_LINEAR_BELOW = 0.1  # per cent above the best; the axis is logarithmic beyond, and 0 is on it


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write one PNG per case; return their paths."""
    return [
        _draw_case(rows, folder / quality.picture_name(case))
        for case, rows in quality.rows_by_case(result).items()
    ]


def _draw_case(rows: Sequence[quality.Row], path: Path) -> Path:
    plt = plotting.pyplot()
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, panel = plt.subplots(figsize=(10, 5.6), layout="constrained")
    plotting.plain_frame(panel)
    best = min(row["sse"] for row in rows)
    for name, group in quality.rows_by_line(rows).items():
        _draw_line(panel, name, group, best)

    panel.set_xscale("log")
    panel.set_yscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.5)
    # Room for the large marks at both ends.
    worst = 100.0 * (max(row["sse"] for row in rows) / best - 1.0)
    top = 1.4 * max(worst, _LINEAR_BELOW)
    panel.set_ylim(-0.2 * _LINEAR_BELOW, top)
    # A per cent more is what one looks for, so the axis is labelled in plain numbers.
    ticks = [0.0, *(tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if tick <= top)]
    panel.set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.set_xlabel("seconds of one fit (log scale); large mark: the library's default")
    panel.set_ylabel("SSE above the best found here")
    panel.set_title(
        f"Time to quality: {quality.case_title(rows[0])}", loc="left", fontweight="bold"
    )
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return plotting.save(figure, path)


def _draw_line(panel: Any, name: str, rows: Sequence[quality.Row], best: float) -> None:
    """Draw the points that none of the line's own beats, connected; the others faintly."""
    style = plotting.style(name)

    def above(points: Sequence[quality.Row]) -> np.ndarray:
        return 100.0 * (np.array([row["sse"] for row in points]) / best - 1.0)

    kept = quality.front(rows)
    panel.plot([row["seconds"] for row in kept], above(kept), label=name, **style)
    others = [row for row in rows if row not in kept]
    faint = style | {"linestyle": "", "alpha": 0.3, "zorder": 2, "markersize": 3.5}
    panel.plot([row["seconds"] for row in others], above(others), **faint)
    defaults = [row for row in rows if row["is_default"]]
    large = style | {"linestyle": "", "markersize": style["markersize"] + 4.5}
    large |= {"markeredgewidth": 1.8}
    panel.plot([row["seconds"] for row in defaults], above(defaults), **large)
