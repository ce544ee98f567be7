"""The optimum of k-means on many short lines: a dynamic program for each, in float64.

``exact_1d.py`` looks for a penalty, in double-double arithmetic: right for any line, and for
millions of values. For some hundred values, a table over all numbers of clusters is an order of
magnitude faster. With C(d, e) the squared error of values d..e-1 as one cluster,

    f_k(e) = min over d < e of  f_(k-1)(d) + C(d, e),

and C is Monge, from which two bounds on the best d follow (Yao 1980):

    d_(k-1)(e) <= d_k(e),    d_k(e) <= d_k(e + 1).

Ends e are taken at coarse steps first, then between them: O(K n log n) in all, and by the first
bound O(n^2) if that is less. float64 is not enough for every line, so each is told what rounding
may have done to it, at most.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel
from pgkmeans_sk.kernels.exact_1d import add_pairs, two_product
from pgkmeans_sk.kernels.line_atoms import collapse

EPSILON = 2.220446049250313e-16


@kernel
def fill_prefixes(
    values,  # IN (m,) float64, of a line
    weights,  # IN (m,) float64
    prefixes,  # OUT (3, >= m + 1) float64: of w, w y and w y^2 before each position
):
    """Prefix sums, right to the last bit: added up as double-doubles."""
    weight = weight_low = moment = moment_low = square = square_low = 0.0
    for i in range(values.size + 1):
        prefixes[0, i], prefixes[1, i], prefixes[2, i] = weight, moment, square
        if i < values.size:
            first, first_low = two_product(weights[i], values[i])
            second, second_low = two_product(first, values[i])
            second_low += first_low * values[i]
            weight, weight_low = add_pairs(weight, weight_low, weights[i], 0.0)
            moment, moment_low = add_pairs(moment, moment_low, first, first_low)
            square, square_low = add_pairs(square, square_low, second, second_low)


@kernel
def best_cut(
    gains,  # IN float64, f_(k-1)(d) less the second moment before d
    prefixes,
    first, last,  # IN where the cut may be
    e,  # IN the end
):  # fmt: skip
    """The cut d with the least ``f_(k-1)(d) + C(d, e)``, and that less the second moment to e."""
    weight, moment = prefixes[0, e], prefixes[1, e]
    best = first
    least = np.inf
    for d in range(first, last + 1):
        part = moment - prefixes[1, d]
        cost = gains[d] - part * part / (weight - prefixes[0, d])
        if cost < least:
            least = cost
            best = d
    return best, least


@kernel
def fill_cuts(
    prefixes,
    n_values,  # IN m
    n_clusters,  # IN K, 1 < K < m
    gains,  # WORK (m + 1,) float64
    next_gains,  # WORK (m + 1,) float64
    cuts,  # OUT (K + 1, >= m + 1) int32: where cluster k of the best k clusters up to e begins
):  # fmt: skip
    """The table of best cuts: rows 2..K, at all ends that leave a value for each other cluster."""
    for e in range(1, n_values - n_clusters + 2):
        gains[e] = -prefixes[1, e] * prefixes[1, e] / prefixes[0, e]
        cuts[1, e] = 0
    for k in range(2, n_clusters + 1):
        high = n_values - n_clusters + k
        low = k if k < n_clusters else high
        # Both ends, then what is in the middle between ends that are known.
        last = high - 1
        first = max(k - 1, np.int64(cuts[k - 1, last]))
        cuts[k, high], next_gains[high] = best_cut(gains, prefixes, first, last, high)
        if low < high:
            cuts[k, low], next_gains[low] = best_cut(gains, prefixes, low - 1, low - 1, low)
        step = 1
        while 2 * step < high - low:
            step *= 2
        while step >= 1:
            for e in range(low + step, high, 2 * step):
                first = max(np.int64(cuts[k, e - step]), np.int64(cuts[k - 1, e]))
                last = min(np.int64(cuts[k, min(e + step, high)]), e - 1)
                # Rounding may have swapped them where several cuts are equally good.
                last = max(first, last)
                cuts[k, e], next_gains[e] = best_cut(gains, prefixes, first, last, e)
            step //= 2
        gains, next_gains = next_gains, gains


@kernel
def rounding_of(
    values,  # IN (m,) float64
    weights,
    prefixes,
    centers,  # IN (K,) float64
):
    """What rounding may have added to the least squared error, at most.

    Each of K clusters takes differences of prefixes, which are right to half a unit in the last
    place of the largest: of the second moment, and of the first one, which counts twice the centre.
    """
    m, n_clusters = values.size, centers.size
    largest = distance = 0.0
    for i in range(m + 1):
        largest = max(largest, abs(prefixes[1, i]))
    for j in range(n_clusters):
        distance += abs(centers[j])
    square = prefixes[2, m]
    bound = n_clusters * 1.5 * square + 2.0 * distance * largest + 4.0 * square
    return 2.0 * EPSILON * bound


@kernel
def fill_centers(values, weights, cuts, centers):
    """The means of the best clusters; returns their squared error."""
    e = values.size
    error = 0.0
    for k in range(centers.size, 0, -1):
        begin = cuts[k, e]
        weight = moment = 0.0
        for i in range(begin, e):
            weight += weights[i]
            moment += weights[i] * (values[i] - values[begin])
        center = values[begin] + moment / weight
        for i in range(begin, e):
            error += weights[i] * (values[i] - center) ** 2
        centers[k - 1] = center
        e = begin
    return error


@kernel
def find_words(
    rows,  # INOUT (p, n) floating, each sorted; the distinct values come to the front
    weights,  # IN (p, n) or (1, 1) float64 > 0
    tolerance,  # IN float64, what rounding may add to the squared error, relative to it
    words,  # OUT (p, K) float64, K > 1, rising; of fewer distinct values, copies of the last
    is_found,  # OUT (p,) bool, False where the tolerance was not kept
    begin, end,  # IN rows
):  # fmt: skip
    """The centres of the optimum of each line."""
    n, n_words = rows.shape[1], words.shape[1]
    step = 0 if weights.size == 1 else 1
    totals = np.empty(n)
    values = np.empty(n)
    gains, next_gains = np.empty(n + 1), np.empty(n + 1)
    prefixes = np.empty((3, n + 1))
    cuts = np.empty((n_words + 1, n + 1), np.int32)
    for p in range(begin, end):
        row = rows[p]
        m = collapse(row, weights[p * step], step, totals)
        is_found[p] = True
        if m <= n_words:
            for j in range(n_words):
                words[p, j] = row[min(j, m - 1)]
            continue
        # Differences to a value in the middle are exact where the values are close to each other.
        origin = np.float64(row[m // 2])
        for i in range(m):
            values[i] = row[i] - origin
        line, w = values[:m], totals[:m]
        fill_prefixes(line, w, prefixes)
        fill_cuts(prefixes, m, n_words, gains, next_gains, cuts)
        error = fill_centers(line, w, cuts, words[p])
        is_found[p] = rounding_of(line, w, prefixes, words[p]) <= tolerance * error
        for j in range(n_words):
            words[p, j] += origin
