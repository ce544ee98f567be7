"""A table that is not drawn yet, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sheet:
    """A table, not yet drawn. Columns after the first ``n_text`` are numbers (right-aligned)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    n_text: int = 1
    picture: str = ""  # file name of a picture that belongs above the table, in docs/images


def as_number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 10**-digits):
        return f"{value:.{digits + 1}e}"
    return f"{value:.{digits}f}"


def as_seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def as_sse(value: float) -> str:
    return f"{value:.6g}" if value < 1e6 else f"{value:.5e}"


def as_percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f} %"


def as_whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}".replace(",", " ")


def as_mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.1f}"
