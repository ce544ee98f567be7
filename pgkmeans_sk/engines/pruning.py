"""Bounds that an engine keeps between two assignments, for as long as they pay.

Whether a pass is pruned changes its time and nothing else (``kernels/pruned.py``), so the choice
may depend on the clock: the first passes over new centres look at all of them and are timed; then
bounds are kept. When a pruned pass takes longer than that, bounds rest for some passes, twice as
many each time.

Values of long rows are found in integers (``kernels/integer_panels.py``), where the processor is
made for that: a pass that has all bounds to find then takes less than half the time of one without
any, so that bounds are kept from the first pass on. Where integers leave many rows in doubt, they
are done without.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config

from pgkmeans_sk.engines.center_order import order_centers
from pgkmeans_sk.engines.patience import Patience
from pgkmeans_sk.kernels.bounds import CHUNK, LARGEST, GroupBounds
from pgkmeans_sk.kernels.pruned import assign_pruned
from pgkmeans_sk.kernels.vectors import PANEL_WIDTH, has_products_of_pairs
from pgkmeans_sk.results import FloatArray

FEWEST_CENTERS = 48
"""Fewer fill so few panels that looking at all of them is as fast."""
FEWEST_GROUPS = 4
"""Fewer leave little to leave out."""
LEAST_WORK = 1_000_000_000
"""Multiplications in a pass, about 10 ms. With fewer, a whole fit saves less than compiling the
kernel costs a first fit."""
SMALL_BYTES = 3 * 2**24
"""What bounds may take in any case: 48 MiB."""
LARGEST_SPAN = 12.0
"""The largest bound, in units of the typical distance of a row to its centre."""
BLOCK_BYTES = 2**15
LONG_ROWS = 64
"""Features from which on finding all bounds takes no longer than a pass without any; for short rows
it takes twice as long."""
WARM_UP = 8
"""Passes over short rows before bounds are tried: until then centres move far. Else one."""
QUICK_WARM_UP = 24
QUICK_FEWEST_CENTERS = 1024
"""The same, and the fewest centres, where passes without bounds are quick (``coarse_look.py``)."""
MOST_IN_DOUBT = 0.1
"""The largest share of rows that integers may leave to the exact look."""
FIRST_REST = 4
"""Passes without bounds after the first one that did not pay."""

patience = Patience(assign_pruned)
"""When the kernel is worth the time to compile it."""


def longest_move(centers: NDArray[np.floating], earlier: FloatArray) -> float:
    """How far any of ``centers`` (K, d) is from where it was, at most."""
    errors = centers - earlier
    return float(np.sqrt(np.einsum("jt,jt->j", errors, errors).max())) * (1.0 + 1e-6)


class Pruning:
    """Bounds over ``n_rows`` rows, and the choice whether to use them.

    Parameters
    ----------
    n_rows, n_features : int
        Shape of the rows.
    n_bytes : int
        Size of the rows. Bounds take at most so many bytes, and half of scikit-learn's
        ``working_memory``; or 48 MiB, if that is more.
    """

    def __init__(self, n_rows: int, n_features: int, n_bytes: int) -> None:
        self._n_rows, self._n_features = n_rows, n_features
        allowed = min(n_bytes, int(get_config()["working_memory"] * 2**19))
        self._budget = max(SMALL_BYTES, allowed)
        self._centers: FloatArray | None = None
        self.order: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._lower: NDArray[np.uint16] | None = None
        self._dense_seconds = np.inf
        self._n_dense, self._rest, self._next_rest = 0, 0, FIRST_REST
        self._is_fresh = False
        self._are_integers_vague = False
        block = BLOCK_BYTES // (4 * n_features)
        self.block_size = int(np.clip(block, 64, 256))

    def _n_group_panels(self, n_panels: int) -> int:
        """Panels in a group: 1, or more where bounds for each would take too much memory."""
        most_groups = self._budget // (2 * self._n_rows) // CHUNK * CHUNK
        return -(-n_panels // most_groups) if most_groups else n_panels

    def is_for(self, centers: NDArray[np.floating], is_quick: bool = False) -> bool:
        """Whether bounds could pay for so many centres and rows.

        ``is_quick`` tells that passes over short rows are quick without them.
        """
        n_centers = len(centers)
        n_panels = -(-n_centers // PANEL_WIDTH)
        fewest = QUICK_FEWEST_CENTERS if is_quick and self._is_short else FEWEST_CENTERS
        return (
            n_centers >= fewest
            and self._n_rows * centers.size >= LEAST_WORK
            and -(-n_panels // self._n_group_panels(n_panels)) >= FEWEST_GROUPS
        )

    @property
    def _is_short(self) -> bool:
        return self._n_features < LONG_ROWS

    @property
    def takes_integers(self) -> bool:
        """Whether values are to be found in integers."""
        return not (self._is_short or self._are_integers_vague) and has_products_of_pairs()

    @property
    def has_bounds(self) -> bool:
        """Whether earlier passes have left bounds that hold."""
        return self._lower is not None

    def bounds_for(
        self, centers: NDArray[np.floating], typical_distance: float, is_quick: bool = False
    ) -> GroupBounds | None:
        """Bounds that hold for ``centers``, or None where a pass had better look at all.

        ``typical_distance`` of a row to its centre tells the scale of new bounds.
        """
        if self._rest:
            self._rest -= 1
            self._lower = None
            return None
        if self._centers is None or self._centers.shape != centers.shape:
            self._lower, self._centers, self._n_dense = None, None, 0
        if self._lower is None:
            if self._n_dense < self._warm_up(is_quick) or not 0.0 < typical_distance < np.inf:
                return None
            self._begin(centers, typical_distance)
        return self._moved_to(centers)

    def _warm_up(self, is_quick: bool) -> int:
        """Passes over new centres before bounds are tried."""
        if self._is_short:
            return QUICK_WARM_UP if is_quick else WARM_UP
        return 0 if self.takes_integers else 1

    def forget(self) -> None:
        """Labels were set by others: what is known of the rows no longer holds."""
        self._lower = None

    def _begin(self, centers: NDArray[np.floating], typical_distance: float) -> None:
        """Set up bounds that know nothing yet, in units that suit ``typical_distance``."""
        n_panels = -(-len(centers) // PANEL_WIDTH)
        self._group_panels = self._n_group_panels(n_panels)
        self._n_groups = -(-n_panels // self._group_panels)
        self._width = -(-self._n_groups // CHUNK) * CHUNK
        self._per_unit = LARGEST / (LARGEST_SPAN * typical_distance)
        self.order = order_centers(centers)
        self._position = np.empty(len(centers), dtype=np.int32)
        self._position[self.order] = np.arange(len(centers), dtype=np.int32)
        self._lower = np.zeros(self._n_rows * self._width, dtype=np.uint16)
        self._is_fresh = True
        smallest = float(np.finfo(centers.dtype).tiny)
        self._tiny = 2.0 * self._n_features * smallest

    def _moved_to(self, centers: NDArray[np.floating]) -> GroupBounds:
        """The bounds, to be lowered by how far each group has moved since the last pass."""
        assert self._lower is not None
        before = centers if self._centers is None else self._centers
        errors = centers.astype(np.float64) - before
        moves = np.zeros(self._width * self._group_panels * PANEL_WIDTH)
        moves[: len(centers)] = np.sqrt(np.einsum("ij,ij->i", errors, errors))[self.order]
        longest = moves.reshape(self._width, -1).max(axis=1)
        units = np.ceil(np.minimum(longest * self._per_unit * (1.0 + 1e-12), LARGEST))
        return GroupBounds(
            self._lower,
            units.astype(np.uint16),
            self._position,
            self._n_groups,
            self._group_panels,
            self._per_unit,
            self._tiny,
        )

    def timed(
        self, centers: NDArray[np.floating], is_pruned: bool, work: Callable[[], int]
    ) -> None:
        """Run ``work``, a pass over ``centers``, and learn from how long it takes.

        ``work`` returns how many rows integers have left to the exact look.
        """
        # Until it is done, bounds are half old and half new.
        lower, self._lower, self._centers = self._lower, None, None
        begin = perf_counter()
        n_left = work()
        seconds = perf_counter() - begin
        self._lower, self._centers = lower, np.array(centers, dtype=np.float64)
        if n_left > MOST_IN_DOUBT * self._n_rows:
            self._are_integers_vague = True
            self._lower, self._centers, self._n_dense = None, None, 0
        elif not is_pruned:
            self._dense_seconds = seconds
            self._n_dense += 1
        elif self._is_fresh:  # all bounds were to be found: that tells nothing of the next pass
            self._is_fresh = False
        elif seconds > self._dense_seconds:
            self._rest, self._next_rest = self._next_rest, 2 * self._next_rest
            self._lower = None
