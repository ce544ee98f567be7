"""The picture of all methods on one network: accuracy against bits per weight."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import methods, plotting

# Okabe and Ito's colours, as in plotting.py; markers tell the same in grey.
_STYLES = {
    "k-means of values": ("#0072B2", "o"),
    "linear": ("#D55E00", "s"),
    "blocks at once": ("#56B4E9", "v"),
    "iPQ": ("#009E73", "D"),
    "iPQ + Quant-Noise": ("#E69F00", "P"),
    "DKM": ("#CC79A7", "^"),
    "DiffQ": ("#000000", "X"),
}


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write one PNG; return its path."""
    plt = plotting.pyplot()
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, panel = plt.subplots(figsize=(9, 5.2), layout="constrained")
    plotting.plain_frame(panel)
    lines: dict[str, list[tuple[float, float]]] = {}
    for (method, _), rows in methods.by_setting(result).items():
        bits = mean(row["bits_per_weight"] for row in rows)
        accuracy = 100 * mean(row["accuracy"] for row in rows)
        lines.setdefault(method, []).append((bits, accuracy))
    for method, points in lines.items():
        if method == methods.FLOAT:
            level = points[0][1]
            panel.axhline(level, color="0.45", linewidth=1.2, linestyle=":")
            panel.annotate("float, 32 bits", (1.0, level), xycoords=("axes fraction", "data"),
                           ha="right", va="bottom", color="0.35", fontsize=9)  # fmt: skip
            continue
        color, marker = _STYLES[method]
        panel.plot(*zip(*sorted(points), strict=True), color=color, marker=marker, markersize=7,
                   linewidth=1.6, label=method)  # fmt: skip
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("bits per weight, codebooks included (log scale)")
    panel.set_ylabel("accuracy on held-out digits, %")
    panel.set_title("One network, all methods, the same training", loc="left", fontweight="bold")
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return [plotting.save(figure, folder / methods.PICTURE)]
