"""The picture of a scaling result: four panels, one per series, both axes logarithmic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import growth, plotting

_AXIS = {
    "rows": "rows n",
    "clusters": "clusters K",
    "features": "features d",
    "threads": "threads",
}

_LINE_HEIGHT = 10.0  # points


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write the PNG; return its path as a list, as every picture of a result does."""
    plt = plotting.pyplot()
    figure, panels = plt.subplots(2, 2, figsize=(10, 7.2), layout="constrained")
    slopes = {
        (entry["series"], entry["library"]): entry["exponent"]
        for entry in growth.exponents(result["rows"])
    }
    for panel, series in zip(panels.flat, growth.GROWS, strict=True):
        rows = [row for row in result["rows"] if row["series"] == series]
        if rows:
            _draw_series(panel, series, rows, slopes)
        else:
            panel.set_axis_off()
    figure.suptitle(
        "Seconds per Lloyd iteration on Gaussian mixtures (synthetic)",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    names = growth.libraries(result["rows"])
    handles = [plt.Line2D([], [], label=name, **plotting.style(name)) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return [plotting.save(figure, folder / growth.PICTURE)]


def _draw_series(
    panel: Any,
    series: str,
    rows: list[growth.Row],
    slopes: dict[tuple[str, str], float | None],
) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    plotting.plain_frame(panel)
    column = growth.GROWS[series]
    for name in growth.libraries(rows):
        group = sorted((row for row in rows if row["library"] == name), key=lambda row: row[column])
        x = [row[column] for row in group]
        y = [row["seconds_per_iteration"] for row in group]
        panel.plot(x, y, **plotting.style(name))
    panel.set_xscale("log")
    panel.set_yscale("log")
    sizes = sorted({row[column] for row in rows})
    panel.set_xticks(sizes, [_short(size) for size in sizes], fontsize=8.5)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.margins(x=0.12)
    _write_slopes(panel, {name: slopes[series, name] for name in growth.libraries(rows)})
    panel.set_xlabel(f"{_AXIS[series]} (number at the end: exponent)")
    panel.set_ylabel("seconds / iteration")
    panel.set_title(growth.fixed_sizes(rows, series), loc="left", fontsize=10)


def _write_slopes(panel: Any, slopes: dict[str, float | None]) -> None:
    """Write each line's exponent beside its last point; close ones one above the other."""
    ends = [(line.get_ydata()[-1], line.get_xdata()[-1]) for line in panel.lines]
    below = -np.inf
    for (y, x), (name, slope) in sorted(zip(ends, slopes.items(), strict=True)):
        points = panel.transData.transform((x, y))[1] * 72.0 / panel.figure.dpi
        written = max(points, below + _LINE_HEIGHT)
        below = written
        panel.annotate(
            "" if slope is None else f"{slope:.2f}",
            (x, y),
            xytext=(7, written - points),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=plotting.style(name)["color"],
        )


def _short(size: int) -> str:
    if size >= 10_000 and size % 1_000 == 0:
        return f"{size // 1_000_000} M" if size % 1_000_000 == 0 else f"{size // 1_000} k"
    return str(size)
