"""The cheapest way to cut a line of atoms: k-means in one dimension, solved exactly.

The error C(i, j) of atoms i..j-1 as one cluster obeys C(a, c) + C(b, d) <= C(a, d) + C(b, c) for
a <= b <= c <= d (Monge). Two things follow.

*The best predecessor of a node never moves left.* With a price ``penalty`` on each cluster,

    f(e) = min over d < e of  f(d) + C(d, e) + penalty,

a queue of predecessors, each best on one stretch of nodes, finds all f in O(n log n) for any number
of clusters (Hirschberg & Larmore 1987). No table over K exists, and memory is O(n).

*The least error is convex in the number of clusters.* So for each K some penalty has a cheapest
path of K clusters, and that path is the best of all clusterings into K: another with less error
would be a cheaper path (Lagrange; Groenlund et al., arXiv:1701.07204). The search for that penalty
is in ``engines/line_optimum.py``.

C comes from prefix sums in double-double arithmetic (pairs of float64 with 106 bits together), so
that clusters may be 10^14 times narrower than the data and still be measured right.
"""

from __future__ import annotations

from pgkmeans_sk.kernels.compile import kernel

SPLITTER = 134217729.0  # 2^27 + 1 (Dekker 1971)


@kernel
def add_pairs(high, low, other_high, other_low):
    """Sum of two double-doubles (Knuth's exact sum, then the rest, then again)."""
    total = high + other_high
    part = total - high
    rest = ((high - (total - part)) + (other_high - part)) + (low + other_low)
    normal = total + rest
    return normal, rest - (normal - total)


@kernel
def two_product(a, b):
    """``a * b`` as a rounded product and its error (Dekker)."""
    product = a * b
    t = SPLITTER * a
    a_high = t - (t - a)
    a_low = a - a_high
    t = SPLITTER * b
    b_high = t - (t - b)
    b_low = b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


@kernel
def sum_prefixes(
    weights,  # IN (n,) float64
    means,  # IN (n,) float64
    prefixes,  # OUT (n + 1, 6) float64: weight, moment, second moment before each node, as pairs
):
    """Prefix sums of w, w y and w y^2."""
    weight = weight_low = moment = moment_low = square = square_low = 0.0
    for i in range(weights.size + 1):
        prefixes[i, 0], prefixes[i, 1] = weight, weight_low
        prefixes[i, 2], prefixes[i, 3] = moment, moment_low
        prefixes[i, 4], prefixes[i, 5] = square, square_low
        if i < weights.size:
            first, first_low = two_product(weights[i], means[i])
            second, second_low = two_product(first, means[i])
            second_low += first_low * means[i]
            weight, weight_low = add_pairs(weight, weight_low, weights[i], 0.0)
            moment, moment_low = add_pairs(moment, moment_low, first, first_low)
            square, square_low = add_pairs(square, square_low, second, second_low)


@kernel
def cluster_error(
    weights, means, prefixes,
    i, j,  # IN nodes, i < j
):  # fmt: skip
    """Weighted squared error of atoms i..j-1 about their common mean."""
    if j - i <= 2:  # of one or two atoms, as the formula is right to the last bits
        distance = means[j - 1] - means[i]
        return weights[i] * (weights[j - 1] / (weights[i] + weights[j - 1])) * distance * distance
    weight, weight_low = add_pairs(prefixes[j, 0], prefixes[j, 1], -prefixes[i, 0], -prefixes[i, 1])
    moment, moment_low = add_pairs(prefixes[j, 2], prefixes[j, 3], -prefixes[i, 2], -prefixes[i, 3])
    square, square_low = add_pairs(prefixes[j, 4], prefixes[j, 5], -prefixes[i, 4], -prefixes[i, 5])
    # With c the mean as a float64: sum w (y - c)^2 = square - c moment - c (moment - c weight);
    # what c was rounded by adds W (c - mean)^2, far below the last bit of the pairs.
    c = moment / weight
    product, product_low = two_product(c, moment)
    shift, shift_low = two_product(c, weight)
    rest = (moment - shift) + ((moment_low - shift_low) - c * weight_low)
    error = (square - product) + (((square_low - product_low) - c * moment_low) - c * rest)
    return max(error, 0.0)


@kernel
def find_paths(
    weights, means, prefixes,
    charges,  # IN (n + 1,) float64, taken off for passing a node
    penalty,  # IN float64 >= 0
    errors,  # OUT (n + 1,) float64, of the cheapest path to each node, penalties not included
    counts,  # OUT (n + 1,) int64, its number of clusters
    previous,  # OUT (n + 1,) int64, the node before
    begins,  # WORK (n + 1,) int64
    candidates,  # WORK (n + 1,) int64; OUT the nodes of the path to n, counts[n] + 1 of them
):  # fmt: skip
    """Cheapest paths from node 0 to all nodes; returns how many comparisons it took.

    candidates[head..tail] rise; each is the best predecessor from its ``begins`` to the next one's.
    """
    n = means.size
    errors[0] = 0.0
    counts[0] = previous[0] = candidates[0] = begins[0] = 0
    head = tail = n_comparisons = 0
    for e in range(1, n + 1):
        while head < tail and begins[head + 1] <= e:
            head += 1
        d = candidates[head]
        errors[e] = errors[d] + cluster_error(weights, means, prefixes, d, e) - charges[e]
        counts[e] = counts[d] + 1
        previous[e] = d
        # From which node on is e a better predecessor than the last candidate? Not at ``worse``,
        # certainly at ``better``; the answer is near, so steps double before they are halved.
        worse, better, step = max(e, begins[tail] - 1), n + 1, 1
        while better - worse > 1:
            node = min(worse + step, n) if better > n else (worse + better) // 2
            step *= 2
            n_comparisons += 1
            # Errors and numbers of clusters are compared apart: at equal numbers, however large the
            # penalty, nothing is rounded away.
            rival = candidates[tail]
            difference = 0.0
            for d in (rival, e):  # a loop, lest the error be compiled into this place twice
                difference = (
                    errors[d] + cluster_error(weights, means, prefixes, d, node) - difference
                )
            if difference + penalty * (counts[e] - counts[rival]) >= 0.0:
                worse = node
            elif tail > head and node == begins[tail]:
                tail -= 1  # better on all of its stretch: on to the one before
                worse, step = max(e, begins[tail] - 1), 1
            else:
                better = node
        if better <= n:
            tail += 1
            candidates[tail], begins[tail] = e, better
    node = n
    for k in range(counts[n], -1, -1):
        candidates[k] = node
        node = previous[node]
    return n_comparisons
