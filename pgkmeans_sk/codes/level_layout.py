"""LevelLayout: which arrays a matrix of uniform levels is stored as, known before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.matrix_layout import Parts, check_float, check_size
from pgkmeans_sk.codes.packing import MAX_BITS, code_bits, packed_bytes, unpack


@dataclass(frozen=True, kw_only=True)
class LevelLayout:
    """Sizes and dtypes of a ``LevelMatrix``: all but its values.

    Attributes
    ----------
    n_rows, n_features : int
        Shape of the matrix.
    range_size : int
        Consecutive values, row after row, that have one minimum and maximum; the last range may
        have fewer.
    group_size : int
        Consecutive values that have one width; the last group may have fewer.
    widths : tuple of (int, int)
        For each width that occurs, in ascending order: bits of a code, 1 to 16, and how many
        values have it.
    dtype : str
        Of decoded rows: "F64", "F32" or "F16".
    range_dtype : str
        Of minima and maxima.

    Raises
    ------
    ValueError
        If a number is out of range or does not go with the others.
    """

    n_rows: int
    n_features: int
    range_size: int
    group_size: int
    widths: tuple[tuple[int, int], ...]
    dtype: str = "F32"
    range_dtype: str = "F32"

    def __post_init__(self) -> None:
        for name in ("n_rows", "n_features", "range_size", "group_size"):
            check_size(name, getattr(self, name))
        for name in ("range_size", "group_size"):
            if getattr(self, name) > self.n_values:
                raise ValueError(
                    f"got {name}={getattr(self, name)}, but expected at most the "
                    f"{self.n_values} values of the matrix"
                )
        check_float("dtype", self.dtype)
        check_float("range_dtype", self.range_dtype)
        for bits, count in self.widths:
            check_size("the bits of a width", bits)
            check_size("the values of a width", count)
        widths = [bits for bits, _ in self.widths]
        if widths != sorted(set(widths)) or not widths or widths[-1] > MAX_BITS:
            raise ValueError(
                f"got widths of {widths} bits, but expected different ones from 1 to {MAX_BITS}, "
                "in ascending order"
            )
        total = sum(count for _, count in self.widths)
        if total != self.n_values or len(widths) > self.n_groups:
            raise ValueError(
                f"got widths {self.widths}, but expected those of {self.n_values} values in "
                f"{self.n_groups} groups"
            )

    @property
    def n_values(self) -> int:
        """Values of the matrix."""
        return self.n_rows * self.n_features

    @property
    def n_ranges(self) -> int:
        """Pairs of a minimum and a maximum."""
        return -(-self.n_values // self.range_size)

    @property
    def n_groups(self) -> int:
        """Groups of values with one width."""
        return -(-self.n_values // self.group_size)

    @property
    def width_bits(self) -> int:
        """Bits that say which of the widths a group has; 0 if there is one only."""
        return code_bits(len(self.widths)) if len(self.widths) > 1 else 0

    def streams(self) -> list[tuple[int, int, int, int]]:
        """For each width: bits, how many values, and where its codes begin and end in bytes."""
        found, start = [], 0
        for bits, count in self.widths:
            stop = start + packed_bytes(count, bits)
            found.append((bits, count, start, stop))
            start = stop
        return found

    def parts(self) -> Parts:
        """Dtype and shape of each stored array, by name."""
        found: Parts = {
            "codes": ("U8", (self.streams()[-1][3],)),
            "ranges": (self.range_dtype, (self.n_ranges, 2)),
        }
        if self.width_bits:
            found["widths"] = ("U8", (packed_bytes(self.n_groups, self.width_bits),))
        return found


def group_widths(layout: LevelLayout, packed: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Bits of each group (n_groups,), given the array "widths" if there is one."""
    if packed is None:
        return np.full(layout.n_groups, layout.widths[0][0], dtype=np.uint8)
    numbers = unpack(packed, layout.width_bits, layout.n_groups, total=layout.n_groups)
    return np.array([bits for bits, _ in layout.widths], dtype=np.uint8)[numbers]


def check_level_values(layout: LevelLayout, parts: Mapping[str, NDArray[Any]]) -> None:
    """Raise unless arrays of the right dtypes and shapes hold what can be decoded.

    Raises
    ------
    ValueError
        If bits behind the last code of a width are not 0, a group has none of the widths, widths
        are not those of as many values as the layout says; a range is not finite or has a minimum
        above its maximum. The message names the array.
    """
    for bits, count, start, stop in layout.streams():
        check_spare_bits("codes", parts["codes"][start:stop], count * bits)
    if layout.width_bits:
        _check_widths(layout, parts["widths"])
    wide = np.float64 if layout.dtype == "F64" else np.float32
    with np.errstate(all="ignore"):
        least, greatest = parts["ranges"].astype(wide).T
        is_right = np.isfinite(least) & np.isfinite(greatest - least) & (least <= greatest)
    if not is_right.all():
        worst = parts["ranges"][~is_right][0]
        raise ValueError(
            f"'ranges': got the range {worst[0]} to {worst[1]}, but expected finite numbers, the "
            "lesser one first"
        )


def check_spare_bits(name: str, packed: NDArray[np.uint8], n_bits: int) -> None:
    """The bits that fill the last byte are 0, so that a matrix has one file only."""
    if n_bits % 8 and packed[-1] >> (n_bits % 8):
        raise ValueError(f"{name!r}: got the last byte {packed[-1]}, but expected spare bits of 0")


def _check_widths(layout: LevelLayout, packed: NDArray[np.uint8]) -> None:
    check_spare_bits("widths", packed, layout.n_groups * layout.width_bits)
    numbers = unpack(packed, layout.width_bits, layout.n_groups, total=layout.n_groups)
    if numbers.max() >= len(layout.widths):
        raise ValueError(
            f"'widths': got the number {numbers.max()}, but expected one of {len(layout.widths)} "
            "widths"
        )
    n_missing = layout.n_groups * layout.group_size - layout.n_values
    for number, (bits, count) in enumerate(layout.widths):
        found = int(np.count_nonzero(numbers == number)) * layout.group_size
        found -= n_missing if numbers[-1] == number else 0
        if found != count:
            raise ValueError(
                f"'widths': got {found} values of {bits} bits, but expected {count} of them"
            )
