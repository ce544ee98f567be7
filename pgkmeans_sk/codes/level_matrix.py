"""LevelMatrix: values rounded to evenly spaced levels, as packed codes of one or many widths."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pgkmeans_sk.codes.entropy import entropy_bits
from pgkmeans_sk.codes.level_layout import LevelLayout, group_widths
from pgkmeans_sk.codes.packing import MAX_BITS, Codes, code_bits, pack, unpack
from pgkmeans_sk.codes.tensor_dtypes import NUMPY_NAMES, dtype_name, work_dtype
from pgkmeans_sk.validation import check_integer_between

__all__ = ["LevelMatrix"]


@dataclass(frozen=True, eq=False, kw_only=True)
class LevelMatrix:
    """A matrix whose values are rounded to evenly spaced levels between a minimum and a maximum.

    A code of b bits stands for::

        minimum + code * (maximum - minimum) / (2 ** b - 1)

    in float64 for a matrix of float64, else in float32. Values are counted row after row:
    ``layout.range_size`` consecutive ones have one minimum and maximum, and ``layout.group_size``
    of them one number of bits. Made by ``from_values`` or ``from_codes``.

    Attributes
    ----------
    layout : LevelLayout
        Sizes and dtypes of the arrays.
    packed : ndarray of shape (n_bytes,), uint8
        The codes: all those of the least width in the order of the values, then from the next
        whole byte on those of the next one, and so on.
    packed_widths : ndarray of shape (n_bytes,), uint8, or None
        Which of ``layout.widths`` each group has; None if all have the same.
    ranges : ndarray of shape (n_ranges, 2), floating
        Minimum and maximum of each range.
    relative_error : float
        ``|W - decode()| / |W|`` in the Frobenius norm, when it was made.
    entropy : float
        Shannon entropy of the codes, in bits per code, those of each width for themselves.

    Examples
    --------
    Four levels for two values and sixteen for the others:

    >>> import numpy as np
    >>> rows = np.array([[0.0, 1.0, 0.25], [0.52, 0.2, 0.95]], dtype=np.float32)
    >>> matrix = LevelMatrix.from_values(rows, [2, 4, 4], group_size=2)
    >>> matrix.codes()
    array([[ 0,  3,  4],
           [ 8,  3, 14]], dtype=uint8)
    >>> matrix.decode()[0].round(3)
    array([0.   , 1.   , 0.267], dtype=float32)
    >>> matrix.packed.nbytes, matrix.ranges.nbytes, matrix.packed_widths.nbytes
    (3, 8, 1)
    """

    layout: LevelLayout
    packed: NDArray[np.uint8]
    packed_widths: NDArray[np.uint8] | None
    ranges: NDArray[np.floating]
    relative_error: float
    entropy: float

    @classmethod
    def from_values(
        cls,
        values: NDArray[np.floating],
        widths: ArrayLike,
        *,
        ranges: NDArray[np.floating] | None = None,
        range_size: int | None = None,
        group_size: int | None = None,
        range_dtype: Any = None,
    ) -> LevelMatrix:
        """The matrix whose codes are nearest to ``values``.

        Parameters
        ----------
        values : ndarray of shape (n_rows, n_features), float16, float32 or float64
            Finite values.
        widths : int, or array-like of shape (n_groups,) of int
            Bits of all codes, or of those of each group: 1 to 16.
        ranges : ndarray of shape (n_ranges, 2), default=None
            Minima and maxima; values beyond them are clipped. None: those of the values.
        range_size, group_size : int, default=None
            Consecutive values with one range, or one width; None: all values.
        range_dtype : dtype, default=None
            Of the ranges, to which they are rounded; None: that of the values, or of ``ranges``.

        Raises
        ------
        ValueError
            If values are not finite in the dtype of the ranges, or sizes do not fit.
        """
        values = np.asarray(values)
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"Got values of shape {values.shape}, but expected a matrix.")
        flat = values.reshape(-1)
        range_size = flat.size if range_size is None else range_size
        group_size = flat.size if group_size is None else group_size
        if ranges is None:
            starts = np.arange(0, flat.size, range_size)
            least, greatest = (f.reduceat(flat, starts) for f in (np.minimum, np.maximum))
            ranges = np.stack([least, greatest], axis=1)
        with np.errstate(over="ignore"):
            ranges = np.ascontiguousarray(ranges, range_dtype)
        if not np.isfinite(ranges).all() or not np.isfinite(flat).all():
            raise ValueError(
                f"Got values that are not finite in {ranges.dtype}, but expected finite numbers."
            )
        wide = work_dtype(values.dtype)
        bits = _checked_widths(widths, -(-flat.size // group_size))
        least, step, top = _levels(ranges, bits, (range_size, group_size), flat.size, wide)
        codes = np.rint((flat.astype(wide) - least) / np.where(step > 0, step, 1))
        codes = np.clip(codes, 0, top).astype(np.uint8 if bits.max() <= 8 else np.uint16)
        made = cls.from_codes(
            codes.reshape(values.shape),
            bits,
            ranges,
            range_size=range_size,
            group_size=group_size,
            dtype=values.dtype,
        )
        return made.with_error_for(values)

    @classmethod
    def from_codes(
        cls,
        codes: Codes,
        widths: ArrayLike,
        ranges: NDArray[np.floating],
        *,
        range_size: int,
        group_size: int,
        dtype: Any,
        relative_error: float = 0.0,
    ) -> LevelMatrix:
        """The matrix of these ``codes`` (n_rows, n_features), packed, with their entropy.

        Parameters
        ----------
        codes : ndarray of shape (n_rows, n_features), uint8 or uint16
            Each below ``2 ** b`` for the b bits of its group.
        widths : int, or array-like of shape (n_groups,) of int
            Bits of all codes, or of those of each group.
        ranges : ndarray of shape (n_ranges, 2)
            Minima and maxima.
        range_size, group_size : int
            Consecutive values with one range, and with one width.
        dtype : dtype
            Of decoded rows.
        relative_error : float, default=0.0
            As of the class.

        Raises
        ------
        ValueError
            If a code does not fit into its bits, or sizes do not go together.
        """
        n_values = codes.size
        by_group = _checked_widths(widths, -(-n_values // group_size))
        distinct = np.unique(by_group)
        streams, counts, entropy = [], [], 0.0
        for bits in map(int, distinct):
            chosen = _of_width(codes.reshape(-1), by_group, bits, group_size)
            streams.append(pack(chosen, bits))
            counts.append((bits, chosen.size))
            entropy += float(entropy_bits(chosen, 2**bits)) * chosen.size / n_values
        numbers = np.searchsorted(distinct, by_group).astype(np.uint8)
        return cls(
            layout=LevelLayout(
                n_rows=len(codes),
                n_features=codes.shape[1],
                range_size=int(range_size),
                group_size=int(group_size),
                widths=tuple(counts),
                dtype=dtype_name(np.dtype(dtype)),
                range_dtype=dtype_name(ranges.dtype),
            ),
            packed=np.concatenate(streams),
            packed_widths=pack(numbers, code_bits(len(distinct))) if len(distinct) > 1 else None,
            ranges=ranges,
            relative_error=relative_error,
            entropy=entropy,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.layout.n_rows, self.layout.n_features

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the decoded matrix."""
        return np.dtype(NUMPY_NAMES[self.layout.dtype])

    @property
    def nbytes(self) -> int:
        """Bytes of codes, ranges and widths: all but the header of a file."""
        return int(sum(array.nbytes for array in self.parts().values()))

    @property
    def bits_per_weight(self) -> float:
        """``8 * nbytes`` over the number of values of the matrix."""
        return 8 * self.nbytes / self.layout.n_values

    def parts(self) -> dict[str, NDArray[Any]]:
        """The arrays that it is stored as, by name."""
        found = {"codes": self.packed, "ranges": self.ranges}
        if self.packed_widths is not None:
            found["widths"] = self.packed_widths
        return found

    def widths(self) -> NDArray[np.uint8]:
        """Bits of the codes of each group, (n_groups,)."""
        return group_widths(self.layout, self.packed_widths)

    def codes(self) -> Codes:
        """The codes (n_rows, n_features): uint8, or uint16 if a width is above 8."""
        layout = self.layout
        dtype = np.uint8 if layout.widths[-1][0] <= 8 else np.uint16
        if len(layout.widths) == 1:
            bits, count = layout.widths[0]
            only = unpack(self.packed, bits, count, total=count)
            return cast(Codes, only.reshape(self.shape))
        found = np.zeros((layout.n_groups, layout.group_size), dtype)
        widths = self.widths()
        for bits, count, start, stop in layout.streams():
            chosen = widths == bits
            stream = unpack(self.packed[start:stop], bits, count, total=count)
            n_places = int(np.count_nonzero(chosen)) * layout.group_size
            # The last group may have fewer values than places.
            found[chosen] = np.pad(stream, (0, n_places - count)).reshape(-1, layout.group_size)
        return cast(Codes, found.reshape(-1)[: layout.n_values].reshape(self.shape))

    def decode(self, rows: ArrayLike | None = None) -> NDArray[np.floating]:
        """The matrix, or some of its rows.

        Parameters
        ----------
        rows : array-like of int, default=None
            Numbers of rows, in any order; None means all.
        """
        layout = self.layout
        sizes = layout.range_size, layout.group_size
        wide = work_dtype(self.dtype)
        least, step, _ = _levels(self.ranges, self.widths(), sizes, layout.n_values, wide)
        values = self.codes().reshape(-1).astype(wide)
        values *= step
        values += least
        found = values.reshape(self.shape).astype(self.dtype, copy=False)
        return found if rows is None else found[np.asarray(rows)]

    def with_error_for(self, values: NDArray[np.floating]) -> LevelMatrix:
        """The same, with the ``relative_error`` that it has for ``values``."""
        lost = np.linalg.norm(values.astype(np.float64) - self.decode())
        total = np.linalg.norm(values.astype(np.float64))
        error = float(lost / total) if total else 0.0
        return LevelMatrix(**{**self.__dict__, "relative_error": error})

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file (docs/storage_format.md); needs the extra ``io``."""
        from pgkmeans_sk.codes.storage import save_matrix

        save_matrix(path, self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LevelMatrix:
        """Read a file that ``save`` wrote; needs the extra ``io``."""
        from pgkmeans_sk.codes.storage import load_matrix

        found = load_matrix(path)
        if not isinstance(found, cls):
            raise ValueError(f"{path}: got a {type(found).__name__}, but expected a LevelMatrix")
        return found

    def __repr__(self) -> str:
        """Say how large it is and how well it stands for the matrix."""
        rows, columns = self.shape
        return (
            f"LevelMatrix({rows} x {columns} {self.dtype}, {self.nbytes} bytes, "
            f"{self.bits_per_weight:.3g} bits per weight, "
            f"relative error {self.relative_error:.3g})"
        )


def _checked_widths(widths: ArrayLike, n_groups: int) -> NDArray[np.uint8]:
    """Bits of each group; raise unless there are so many."""
    found = np.asarray(widths)
    if found.ndim == 0:
        found = np.full(n_groups, found)
    if found.shape != (n_groups,) or found.dtype.kind not in "iu":
        raise ValueError(
            f"Got widths of shape {found.shape} and dtype {found.dtype}, but expected an integer, "
            f"or one for each of {n_groups} groups."
        )
    for extreme in (int(found.min()), int(found.max())):
        check_integer_between("widths", extreme, 1, MAX_BITS)
    return found.astype(np.uint8)


def _levels(
    ranges: NDArray[np.floating],
    widths: NDArray[np.uint8],
    sizes: tuple[int, int],
    n_values: int,
    dtype: np.dtype[Any],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Least level, step and number of steps for each value; single ones where all have the same."""
    range_size, group_size = sizes
    least, greatest = ranges.astype(dtype).T
    steps = (2 ** widths.astype(np.int64) - 1).astype(dtype)
    if len(widths) == 1 or (widths == widths[0]).all():
        steps = steps[:1]
    spread = _spread(greatest - least, range_size, n_values)
    top = _spread(steps, group_size, n_values)
    return _spread(least, range_size, n_values), spread / top, top


def _spread(numbers: NDArray[Any], size: int, n_values: int) -> NDArray[Any]:
    """Each number for ``size`` values; a single one for all."""
    return numbers if len(numbers) == 1 else np.repeat(numbers, size)[:n_values]


def _of_width(
    codes: NDArray[Any], widths: NDArray[np.uint8], bits: int, group_size: int
) -> NDArray[Any]:
    """The codes of all groups of a width, in order."""
    chosen = widths == bits
    if chosen.all():
        return codes
    whole = codes.size // group_size
    found: NDArray[Any] = codes[: whole * group_size].reshape(whole, group_size)
    found = found[chosen[:whole]].reshape(-1)
    if whole < len(widths) and chosen[-1]:
        found = np.concatenate([found, codes[whole * group_size :]])
    return found
