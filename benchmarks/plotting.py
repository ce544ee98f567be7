"""What the pictures of the results share: colours, markers, a plain frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Okabe and Ito's colours: told apart with every common colour blindness. A library has one colour,
# its variants differ in marker and dashes, so that a print in grey can be read as well.
_COLORS = {
    "pgkmeans-sk": "#0072B2",
    "scikit-learn-intelex": "#E69F00",
    "scikit-learn": "#D55E00",
    "faiss": "#009E73",
    "superkmeans": "#CC79A7",
    "fast-pytorch-kmeans": "#000000",
}
_FIRST, *_OTHERS = ((("o", "-")), ("s", "--"), ("^", ":"))
_VARIANTS = {"random": 1, "sampled": 1, "k-means++": 2, "SuperKmeans": 2, "hierarchical": 2}


def is_ours(library: str) -> bool:
    """Whether a line of a result is ours."""
    return library.startswith("pgkmeans-sk")


def style(library: str) -> dict[str, Any]:
    """Return matplotlib's properties of a line; ours is thicker and on top."""
    # The longest name first: one library's name begins with another's.
    owner = max((name for name in _COLORS if library.startswith(name)), key=len, default=None)
    variant = next((n for word, n in _VARIANTS.items() if library.endswith(word)), 0)
    marker, dashes = (_FIRST, *_OTHERS)[variant]
    main = is_ours(library) and variant == 0
    return {
        "color": _COLORS.get(owner or "", "0.4"),
        "marker": marker,
        "linestyle": dashes,
        "linewidth": 2.8 if main else 1.8 if is_ours(library) else 1.3,
        "markersize": 7 if main else 5,
        "markerfacecolor": _COLORS.get(owner or "", "0.4") if is_ours(library) else "white",
        "zorder": 5 if main else 4 if is_ours(library) else 3,
    }


def pyplot() -> Any:
    """Return matplotlib.pyplot, set up for files rather than windows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plain_frame(panel: Any) -> None:
    """Leave the axes that carry numbers, and a light grid."""
    panel.grid(which="major", color="0.87", linewidth=0.7, zorder=0)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def save(figure: Any, path: Path) -> Path:
    """Write a PNG that is sharp in print, and close the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    pyplot().close(figure)
    return path
