"""What all displays share: axes, colours, a plain frame. The only file that imports matplotlib."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's colours: told apart with every common colour blindness. What has a colour has a
# marker or a pattern of its own as well, so that a print in grey can be read.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK = COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)
GREY = "0.45"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

SIZE = (6.4, 4.0)
"""Inches of a figure: readable at the width of a column in print."""


def axes_of(ax: Any, figsize: tuple[float, float] = SIZE) -> Any:
    """``ax``, or the axes of a new figure if it is None."""
    return ax if ax is not None else new_axes(1, figsize)[0]


def new_axes(n_columns: int, figsize: tuple[float, float] = SIZE) -> list[Any]:
    """Axes side by side in a new figure; rows of them share what is on the vertical axis."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Pictures need matplotlib, which is not installed: pip install pgkmeans_sk[plot]"
        ) from error
    _, axes = plt.subplots(
        1, n_columns, figsize=figsize, layout="constrained", sharey=True, squeeze=False
    )
    return list(axes[0])


def plain_frame(ax: Any) -> None:
    """Leave the two axes that carry numbers, and a light grid behind what is drawn."""
    ax.grid(which="major", color="0.87", linewidth=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def series_style(number: int) -> dict[str, Any]:
    """Colour and marker of one of several lines."""
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def whole_numbers(axis: Any) -> None:
    """Ticks of an axis at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def shortened(name: str, width: int) -> str:
    """At most ``width`` characters, cut in the middle: names of weights differ at both ends."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - (width - 1 - head) :]}"
