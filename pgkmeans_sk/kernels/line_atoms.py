"""Values on a line, merged into atoms: the coarse pictures that kernels/exact_1d.py works on.

Positions 0..m lie between the m sorted distinct values; a cut at p parts values 0..p-1 from the
rest. An *atom* is a run of neighbouring values, known by its weight and mean. The places between n
atoms, both ends included, are *nodes* 0..n. A cut may lie inside of an atom, where no node is; what
that can be worth is what ``charge_atoms`` finds, and it is all that a coarse picture gets wrong.

Values are looked at as ``(value - origin) * scale``, in float64: the caller's scale, a power of
two, brings them into [-1, 1], so that squares of any data exist.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel


@kernel
def collapse(
    values,  # INOUT (n,) sorted; the distinct values at first places afterwards
    weights,  # IN (n,) or (1,) float64, > 0
    weight_step,  # IN 1, or 0 when one weight serves all values
    totals,  # OUT (n,) float64, weight of each distinct value
):
    """Merge equal values; returns how many are left."""
    last = 0
    totals[0] = weights[0]
    for i in range(1, values.size):
        if values[i] != values[last]:
            last += 1
            values[last] = values[i]
            totals[last] = 0.0
        totals[last] += weights[i * weight_step]
    return last + 1


@kernel
def cut_into_bins(
    values,  # IN (m,) sorted, distinct
    weights,  # IN (m,) float64
    scale,  # IN float64
    windows,  # IN (q, 2) int64, first and last position of each, rising, apart, in 1..m-1
    limit,  # IN float64, how coarse a bin may be
    edges,  # OUT (capacity,) int64, positions that bound the atoms
    solid,  # OUT (capacity,) bool, whether no cut may lie inside of an atom
):
    """Bins inside the windows, one solid atom for each stretch between; returns how many, or -1.

    A bin grows while weight * width * span stays below the limit; the span reaches to the values
    on both sides, so bins are thin beside gaps. For a density p, bins are p^(-1/3) wide: as the
    clusters of an optimum are (Panter & Dite 1951), so that each is seen equally well. -1 says that
    the capacity does not suffice.
    """
    edges[0] = 0
    n = 0
    for q in range(windows.shape[0]):
        low, high = windows[q, 0], windows[q, 1]
        if n + 3 >= edges.size:
            return -1
        if low > edges[n]:
            solid[n] = True
            n += 1
            edges[n] = low
        weight = 0.0
        start = low
        for i in range(low, high):
            weight += weights[i]
            if i > start:
                width = np.float64(values[i]) - values[start]
                span = np.float64(values[i + 1]) - values[start - 1]
                if weight * (width * scale) * (span * scale) > limit:
                    if n + 3 >= edges.size:
                        return -1
                    solid[n] = False
                    n += 1
                    edges[n] = i
                    start = i
                    weight = weights[i]
        if high > low:
            solid[n] = False
            n += 1
            edges[n] = high
    if edges[n] < values.size:
        solid[n] = True
        n += 1
        edges[n] = values.size
    return n


@kernel
def measure_atoms(
    values, weights,
    origin, scale,  # IN float64
    edges,  # IN (n + 1,) int64
    solid,  # IN (n,) bool
    first_atom, last_atom,  # IN which atoms to measure
    atom_weights,  # OUT (n,) float64
    means,  # OUT (n,) float64
    scatters,  # OUT (n,) float64, weighted sum of squared distances to the mean
    deviations,  # OUT (n,) float64, half the weighted sum of distances to the mean; 0 if solid
):  # fmt: skip
    """Moments of the atoms ``first_atom:last_atom``, about a value of their own."""
    for a in range(first_atom, last_atom):
        anchor = np.float64(values[edges[a]])
        weight = moment = 0.0
        for i in range(edges[a], edges[a + 1]):
            weight += weights[i]
            moment += weights[i] * (values[i] - anchor)
        centre = moment / weight
        scatter = deviation = 0.0
        for i in range(edges[a], edges[a + 1]):
            distance = ((values[i] - anchor) - centre) * scale
            scatter += weights[i] * distance * distance
            deviation += weights[i] * abs(distance)
        atom_weights[a] = weight
        means[a] = (anchor - origin) * scale + centre * scale
        scatters[a] = scatter
        deviations[a] = 0.0 if solid[a] else 0.5 * deviation


@kernel
def charge_atoms(
    values,
    origin, scale,
    edges,
    atom_weights, deviations,
    upper,  # IN float64, squared error of some clustering
    charges,  # OUT (n,) float64
):  # fmt: skip
    """By how much the squared error may lie below that of the atoms, for a cut in each atom.

    Note [Charges]: let centres c_1 < c_2 < ... be those of an optimum. The squared error of x,
    min_j (x - c_j)^2, is x^2 plus a concave function with a kink in each middle t between
    neighbours, where its slope falls by 2 g, g = c_(j+1) - c_j. So the values of an atom cost its
    scatter plus what its mean costs, less the Jensen gap of the kinks inside. A kink takes off

        2 g (sum w max(x - t, 0) - W max(y - t, 0)) <= 2 g sum w max(x - y, 0) = 2 g H,

    y the atom's mean, W its weight, H its ``deviations``.

    g is bounded by what a wide gap costs. All values within s of t are at least g / 4 from their
    centre if g >= 4 s; if they weigh N, their error N g^2 / 16 is at most that of any clustering,
    ``upper``. Hence g <= 4 max(s, sqrt(upper / N)), for any s; two pointers look for a good one.
    """
    n = atom_weights.size
    first, last = 0, 0  # atoms first:last are looked at
    weight = 0.0
    for a in range(n):
        low = (np.float64(values[edges[a]]) - origin) * scale
        high = (np.float64(values[edges[a + 1] - 1]) - origin) * scale
        while last < n:  # to the right as long as that tells more, at least to a
            reach = (np.float64(values[edges[last + 1] - 1]) - origin) * scale - low
            if last > a and weight * reach * reach > upper:
                break
            weight += atom_weights[last]
            last += 1
        right = (np.float64(values[edges[last] - 1]) - origin) * scale - low
        while True:  # and without the leftmost atoms that are too far to tell anything
            left = high - (np.float64(values[edges[first]]) - origin) * scale
            rest = weight - atom_weights[first]
            if first == a or left < right or rest * left * left < upper:
                break
            weight = rest
            first += 1
        reach = max(left, right)
        charges[a] = 0.0
        if deviations[a] > 0.0:
            charges[a] = 8.0 * max(reach, np.sqrt(upper / weight)) * deviations[a]
