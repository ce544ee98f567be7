"""Rows and centres in 16-bit integers: the quick look that settles most labels.

A product of 16-bit integers takes half the register that one of float32 takes, a quarter of
float64's; processors multiply and add them in pairs. So ``|c|^2 / 2 - x.c``, which says which
centre is nearest, is computed with rounded rows and centres first. Where the two best values are
farther apart than rounding can have moved them, the label is settled, and it is the one that
``nearest.py`` defines. The other rows, a few per cent where features are few, get the full look.

Layout
------
Rows, minus the origin, are multiples of a *row unit*, centres of a *centre unit*. Two features that
follow on one another make a *pair*, 32 bits. A tile holds L points: ``tile[p * L + l]`` is pair p
of point l. Centres come in quads: ``panels[(quad * n_pairs + p) * 4 + j]`` is pair p of centre j of
the quad, times -4. Values are multiples of 4 then, and the last two bits, in which accumulators
start with j, say at the end which of the four is the least (Note [Tags] of ``sweep.py``).

Note [Range]
~~~~~~~~~~~~
Nothing overflows if no row and no centre is longer than the *reach* R. With R / 32767 and R / 8191
as units, every number fits 16 bits, times 4; by Cauchy and Schwarz ``|x.c| <= R^2`` = 2^28 units,
for any number of features, and a value is at most 4 (1 + 1/2) 2^28 < 2^31. What is longer is left
out: such rows get the full look, and so does a row that such a centre may be nearest to.

Note [Integer error]
~~~~~~~~~~~~~~~~~~~~
With u the product of both units, a = sqrt(d) / 2 row units and b the longest rounding error of a
centre, the value of centre j, times u, is off by at most

    e_j + r(x),   e_j = a |c_j| + kappa |c_j|^2 / 2,   r(x) = b (|x| + a) + kappa |x|^2 / 2

where kappa is that of ``nearest.py``: it contains the rounding of the shift to the origin and that
of the definition of a distance. Accumulators start lower by e_j, so that a far centre cannot hide
behind the bound of a near one; then the first is the nearest for certain if

    second - first > 2 e_1 + 2 r(x)

and a little for what is rounded on the way (``MARGIN``).

``integer_values`` in ``tests/reference_integers.py`` is the same in NumPy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pgkmeans_sk.kernels.nearest import PackedCenters
from pgkmeans_sk.kernels.sweep import QUAD

ROW_LIMIT = 32767
"""The largest number of row units: what 16 bits hold."""
CENTER_LIMIT = 8191
"""The largest number of centre units: what 16 bits hold, over 4."""
REACH = 3.0
"""R, in units of a row's typical length. Longer ones make every rounding error larger; shorter
ones leave more rows out. Between 2.5 and 4, real weights and heavy tails lose least."""
ABSENT = 2**31 - 1
"""Where the accumulator of a centre that does not exist starts: it never wins."""
MARGIN = 512.0
"""Values: tags, starts that are rounded down, and what large numbers lose as float32."""
ROUNDING = 0.51
"""How far a number of units may be from what it stands for: a half, and the product's rounding."""
SAFE = {"f4": (1e-15, 1e15), "f8": (1e-120, 1e120)}
"""Reaches whose squares are far from where numbers of a dtype end."""


class IntegerCenters(NamedTuple):
    """Centres as the sweep over integers reads them; those beyond the reach are absent.

    ``float`` is the data's dtype. Errors are in *values*, u / 4, unless a name says otherwise.
    """

    panels: np.ndarray  # (n_quads * n_pairs * 4,) int32, pairs of int16
    starts: np.ndarray  # (n_quads * 4,) int32
    margins: np.ndarray  # (n_quads * 4,) float, 2 e_j and what rounding to floats may add
    per_unit: float  # 1 / row unit
    value: float  # what a value of 1 stands for
    reach_sq: float  # R^2
    error: float  # r(x) = error + error_per_length |x| + error_per_norm |x|^2
    error_per_length: float
    error_per_norm: float
    rounding: float  # of |x|^2, relative
    far: float  # the least length of a centre beyond the reach; inf if there is none


def integer_centers(centers: PackedCenters, row_length: float) -> IntegerCenters | None:
    """The same centres in integers, or None where numbers are too large or too small for that.

    ``row_length`` is the typical length of a row minus the origin.
    """
    rows, dtype, kappa = centers.rows, centers.origin.dtype, centers.kappa
    reach = REACH * row_length
    least, most = SAFE[dtype.str[1:]]
    if not least < reach < most or not kappa < np.inf:
        return None
    n_centers, n_features = rows.shape
    row_unit, center_unit = reach / ROW_LIMIT, reach / CENTER_LIMIT
    value = row_unit * center_unit / QUAD
    shifted = rows - centers.origin
    lengths = np.sqrt(np.einsum("jt,jt->j", shifted, shifted))
    is_near = lengths <= reach
    units = np.where(is_near[:, np.newaxis], np.rint(shifted / center_unit), 0.0)
    errors = np.where(is_near[:, np.newaxis], shifted - units * center_unit, 0.0)
    center_error = float(np.sqrt(np.einsum("jt,jt->j", errors, errors).max()))
    row_error = ROUNDING * np.sqrt(n_features) * row_unit

    room = -(-n_centers // QUAD) * QUAD, -(-n_features // 2) * 2
    margins, starts = np.zeros(room[0], dtype=dtype), np.full(room[0], ABSENT, dtype=np.int32)
    twice_errors = 2.0 * row_error * lengths + kappa * lengths**2
    margins[:n_centers] = twice_errors / value * (1.0 + 1e-6) + MARGIN
    lowered = np.floor((lengths**2 - twice_errors) / (2.0 * QUAD * value))
    tags = np.arange(n_centers) % QUAD
    starts[:n_centers] = np.where(is_near, QUAD * lowered + tags, ABSENT)

    padded = np.zeros(room, dtype=np.int16)
    padded[:n_centers, :n_features] = -QUAD * units
    panels = padded.reshape(room[0] // QUAD, QUAD, -1, 2).transpose(0, 2, 1, 3)
    rounding = (n_features + 16) * float(np.finfo(dtype).eps)
    return IntegerCenters(
        np.ascontiguousarray(panels).view(np.int32).ravel(), starts, margins, 1.0 / row_unit,
        value, reach * reach,
        (center_error * row_error + centers.smallest) / value,
        center_error * (1.0 + rounding) / value,
        kappa / 2.0 / value,
        rounding, float(lengths[~is_near].min(initial=np.inf)) * (1.0 - 1e-6),
    )  # fmt: skip


def typical_length(some_rows: Any, origin: np.ndarray) -> float:
    """The root mean square of the lengths of ``some_rows`` (m, d) minus the origin."""
    shifted = np.asarray(some_rows, dtype=np.float64) - origin
    with np.errstate(over="ignore"):  # infinite: ``integer_centers`` sees to that
        return float(np.sqrt(np.einsum("it,it->i", shifted, shifted).mean()))
