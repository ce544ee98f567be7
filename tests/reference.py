"""Slow and obvious NumPy forms of what the package computes, and data that is hard to get right.

Nothing here imports a kernel. Tests compare with these functions; in doubt, these are right.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

from pgkmeans_sk.results import Assignment, Cut, Nodes

EPS = float(np.finfo(np.float64).eps)


def as_float64(X: Any) -> NDArray[np.float64]:
    """The values of a dense or sparse matrix of any layout."""
    return np.array(X.toarray() if sparse.issparse(X) else X, dtype=np.float64)


def ones_if_none(sample_weight: Any, n_rows: int) -> NDArray[np.float64]:
    return np.ones(n_rows) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)


# ------------------------------------------------------------------ distances and labels


def sq_distances(X: Any, centers: Any) -> NDArray[np.float64]:
    """Squared distances (n, K) in float64, added up feature by feature in order."""
    X, centers = as_float64(X), as_float64(centers)
    total = np.zeros((len(X), len(centers)))
    for t in range(X.shape[1]):
        total += (X[:, t, np.newaxis] - centers[:, t]) ** 2
    return total


def labels(X: Any, centers: Any) -> NDArray[np.int64]:
    """The definition of a label: nearest centre; argmin gives ties to the lowest index."""
    return sq_distances(X, centers).argmin(axis=1)


def assignment(X: Any, centers: Any, sample_weight: Any = None) -> Assignment:
    """All that one pass tells, cluster by cluster; every label counts as changed."""
    n_clusters = len(centers)
    w = ones_if_none(sample_weight, X.shape[0])
    X, distances, nearest = as_float64(X), sq_distances(X, centers), labels(X, centers)
    centroids = np.full((n_clusters, X.shape[1]), np.nan)
    sizes, sq_errors = np.zeros((2, n_clusters))
    for j in range(n_clusters):
        own = (nearest == j) & (w > 0)
        sizes[j] = w[own].sum()
        sq_errors[j] = w[own] @ distances[own, j]
        if own.any():
            centroids[j] = weighted_moments(X[own], w[own])[0]
    return Assignment(centroids, sizes, sq_errors, len(X))


def utilities(X: Any, centers: Any, sample_weight: Any = None) -> NDArray[np.float64]:
    """What the rows of each centre would lose by going to their second nearest one."""
    w, distances, nearest = (
        ones_if_none(sample_weight, X.shape[0]),
        np.column_stack([sq_distances(X, centers), np.full(X.shape[0], np.inf)]),
        labels(X, centers),
    )
    two_least = np.sort(distances, axis=1)[:, :2]
    losses = np.where(w > 0, w, 0.0) * (two_least[:, 1] - two_least[:, 0])
    return np.array([losses[(nearest == j) & (w > 0)].sum() for j in range(len(centers))])


def tagged(values: Any, tags: Any, n_bits: int) -> NDArray[np.floating]:
    """Values whose lowest bits are replaced by numbers (Note [Tags] of kernels/sweep.py)."""
    values = np.ascontiguousarray(values)
    whole = values.view(np.int32 if values.dtype == np.float32 else np.int64)
    return ((whole & -(1 << n_bits)) | np.asarray(tags, dtype=whole.dtype)).view(values.dtype)


def blocked_sums(starts: Any, panels: Any, points: Any, sum_block: int = 32) -> Any:
    """``starts[j] + panels[j] . x`` (n, K) in the dtype of the points, block by block."""
    total = np.tile(starts, (len(points), 1))
    for first in range(0, points.shape[1], sum_block):
        block = total if first == 0 else np.zeros_like(total)
        for t in range(first, min(first + sum_block, points.shape[1])):
            block = block + points[:, t, np.newaxis] * panels[:, t]
        total = block if first == 0 else total + block
    return total


def sweep(starts: Any, panels: Any, points: Any) -> tuple[Any, Any, Any]:
    """Best, second best and index of the best, as kernels/sweep.py finds them."""
    values = tagged(blocked_sums(starts, panels, points), np.arange(len(panels)) % 4, 2)
    order = np.argsort(values, axis=1, kind="stable")
    largest = np.full((len(points), 1), np.finfo(values.dtype).max, dtype=values.dtype)
    best, second = np.hstack([np.take_along_axis(values, order, axis=1), largest])[:, :2].T
    return best, second, order[:, 0]


def tile_of(X: Any, which: Any, origin: Any, width: int) -> NDArray[np.floating]:
    """Rows minus the origin as columns (d, width); the last row fills the columns that are left."""
    lanes = np.minimum(np.arange(width), len(which) - 1)
    return (X[which[lanes]] - origin).T


def doubtful(
    best: Any, second: Any, norms: Any, share: Any, smallest: Any, largest: Any
) -> NDArray[np.bool_]:
    """Which points ``best`` and ``second`` do not settle, by the bound of kernels/tile.py."""
    with np.errstate(invalid="ignore"):
        margin = share * (norms + np.maximum(best + norms, 0)) + smallest
        return ~((second - best > margin) & (norms < largest))


def least_of_panel(starts: Any, panels: Any, points: Any, own: Any) -> tuple[Any, Any]:
    """Least value of 16 centres and its place, the row's own centre left out."""
    values = tagged(blocked_sums(starts, panels, points), np.arange(16), 4)
    for row, place in enumerate(own):
        if 0 <= place < 16:
            values[row, place] = np.finfo(values.dtype).max
    return values.min(axis=1), values.argmin(axis=1)


def row_scores(starts: Any, columns: Any, values: Any, indices: Any) -> NDArray[np.floating]:
    """``starts[j] + sum of values[k] * columns[indices[k], j]``, for columns (d, S)."""
    return blocked_sums(starts, columns[indices].T, values[np.newaxis])[0]


def errors_of_row(x: Any, center: Any, weight: float = 1.0) -> NDArray[np.float64]:
    """``w |x - c|^2`` in four sums side by side, as kernels/errors.py adds them up."""
    sums = np.zeros(4)
    whole = len(x) - len(x) % 4
    for t in range(len(x)):
        error = np.float64(x[t]) - center[t]
        sums[t % 4 if t < whole else 0] += weight * error * error
    return sums


def lower_and_compare(lower: Any, moves: Any, limit: int) -> tuple[NDArray[np.uint16], list[int]]:
    """Bounds less the moves, not below 0, and the numbers of those that are at most ``limit``."""
    lowered = np.maximum(lower.astype(np.int64) - moves, 0)
    return lowered.astype(np.uint16), np.flatnonzero(lowered <= limit).tolist()


# ------------------------------------------------------------------ codes


def decode(
    codes: Any, codebooks: Any, n_features: int, dtype: Any, scales: Any = None, factors: Any = None
) -> Any:
    """Rows (n, d) from stage-major codes, number by number in ``dtype``."""
    n_stages, n_books, _, block_size = codebooks.shape
    n_blocks = -(-n_features // block_size)
    books = codebooks.astype(dtype)
    rows = np.zeros((len(codes), n_features), dtype=dtype)
    for i, own in enumerate(codes):
        for t in range(n_features):
            j, within = divmod(t, block_size)
            book = j if n_books > 1 else 0
            total = books[0, book, own[j], within]
            for s in range(1, n_stages):
                total = total + books[s, book, own[s * n_blocks + j], within]
            scale = dtype(1) if scales is None else dtype(scales[j])
            rows[i, t] = total * scale * (dtype(1) if factors is None else dtype(factors[i]))
    return rows


def distance_tables(queries: Any, codebooks: Any, metric: str) -> Any:
    """Tables (q, n_stages * n_blocks, n_codes) in the dtype of the queries, feature by feature."""
    n_stages, n_books, n_codes, block_size = codebooks.shape
    books, n_blocks = codebooks.astype(queries.dtype), -(-queries.shape[1] // block_size)
    tables = np.zeros((len(queries), n_stages * n_blocks, n_codes), dtype=queries.dtype)
    for s in range(n_stages):
        for j in range(n_blocks):
            words = books[s, j if n_books > 1 else 0]
            block = queries[:, j * block_size : (j + 1) * block_size]
            for t in range(block.shape[1]):
                x, y = block[:, t, np.newaxis], words[:, t]
                tables[:, s * n_blocks + j] += x * y if metric == "inner_product" else (x - y) ** 2
    return tables


def lookup_scores(tables: Any, codes: Any, base: Any = None, factor: Any = None) -> Any:
    """Scores (q, n): numbers that codes name, added up in the order of the columns."""
    scores = np.zeros((len(tables), len(codes)), dtype=tables.dtype)
    for c in range(codes.shape[1]):
        scores += tables[:, c, codes[:, c]]
    if factor is not None:
        scores = factor.astype(tables.dtype) * scores
    return scores if base is None else base.astype(tables.dtype) + scores


def best_rows(scores: Any, k: int, largest: bool = False) -> tuple[Any, Any]:
    """The k best scores of each query and their rows; ties go to the lowest row number."""
    rows = np.argsort(-scores if largest else scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


# ------------------------------------------------------------------ sets of rows


def weighted_moments(X: Any, sample_weight: Any = None) -> tuple[NDArray[np.float64], float, float]:
    """Mean (d,), weight, and weighted sum of squared distances to the mean."""
    X, w = as_float64(X), ones_if_none(sample_weight, X.shape[0])
    mean = w @ (X - X[0]) / w.sum() + X[0]  # less rounding far from the origin
    return mean, float(w.sum()), float(w @ ((X - mean) ** 2).sum(axis=1))


def mean_variance(X: Any, sample_weight: Any = None) -> float:
    """Weighted variance of each column, averaged."""
    X = as_float64(X)
    _, weight, scatter = weighted_moments(X, sample_weight)
    return scatter / weight / X.shape[1]


def select_by_weight(keys: Any, w: Any, target: float) -> NDArray[np.bool_]:
    """Which keys go left: cut between two different keys so that the weight is nearest to target.

    Of two cuts equally near the one with less weight; nobody goes left if all keys are equal.
    """
    between = np.unique(keys)[:-1]
    weights = np.array([w[keys <= key].sum() for key in between])
    if not len(between):
        return np.zeros(len(keys), dtype=bool)
    return keys <= between[np.abs(weights - target).argmin()]


def best_threshold(keys: Any, w: Any) -> float:
    """The key up to which a left group should reach for the least squared error of two groups."""

    def squared_error(threshold: float) -> float:
        left = keys <= threshold
        groups = (keys[side, np.newaxis] for side in (left, ~left))
        return sum(
            weighted_moments(group, w[side])[2]
            for group, side in zip(groups, (left, ~left), strict=True)
        )

    return min(np.unique(keys)[:-1], key=squared_error)


def cut_keys(X: Any, sample_weight: Any, rule: str) -> NDArray[np.float64]:
    """The number that decides which side a row goes to."""
    X, w = as_float64(X), ones_if_none(sample_weight, X.shape[0])
    mean = weighted_moments(X, w)[0]
    farthest = ((X - mean) ** 2).sum(axis=1).argmax()
    if rule == "ball":
        return ((X - X[farthest]) ** 2).sum(axis=1)
    _, directions = np.linalg.eigh((w[:, np.newaxis] * (X - mean)).T @ (X - mean))
    keys = (X - mean) @ directions[:, -1]
    return keys if keys[farthest] > 0 else -keys


def cut(X: Any, sample_weight: Any, rule: str, fraction: float) -> NDArray[np.bool_]:
    """Which rows go left, (n,); ``fraction`` is a share of the weight, or -1 for the best cut."""
    w, keys = ones_if_none(sample_weight, X.shape[0]), cut_keys(X, sample_weight, rule)
    if fraction == -1:
        return keys <= best_threshold(keys, w)
    return select_by_weight(keys, w, fraction * w.sum())


def numbered(X: Any, sample_weight: Any = None) -> NDArray[np.float64]:
    """X with one more column that makes the rows of a node readable from its mean.

    Weight times value is 2^(i - 100) for row i, far below what could move a cut; a node's sum of
    them is a bit mask of its rows. Weights must be powers of two, rows at most 40.
    """
    assert X.shape[0] <= 40
    marks = 2.0 ** (np.arange(X.shape[0]) - 100) / ones_if_none(sample_weight, X.shape[0])
    return np.column_stack([as_float64(X), marks])


def row_sets(nodes: Nodes) -> list[set[int]]:
    """The rows of each node, if the engine holds ``numbered`` rows."""
    masks = np.rint(nodes.means[:, -1] * nodes.weights * 2.0**100).astype(np.int64)
    return [{i for i in range(40) if int(mask) >> i & 1} for mask in masks]


def assert_same_rows(parts: Iterator[Any] | list[Any], rows: Any) -> None:
    """The parts cover each of ``rows`` exactly once."""
    assert sorted(int(row) for part in parts for row in part) == sorted(int(row) for row in rows)


def assert_children_make_up(nodes: Nodes, cut: Cut, rtol: float = 1e-9) -> None:
    """Counts, weights, means and scatters of the children add up to those of the nodes."""
    left, right = cut.left[cut.possible], cut.right[cut.possible]
    whole = nodes[cut.possible]
    assert (left.counts > 0).all()
    assert (right.counts > 0).all()
    np.testing.assert_array_equal(left.counts + right.counts, whole.counts)
    np.testing.assert_allclose(left.weights + right.weights, whole.weights, rtol=rtol)
    sums = left.means * left.weights[:, np.newaxis] + right.means * right.weights[:, np.newaxis]
    scale = np.abs(whole.means).max(initial=1.0)
    np.testing.assert_allclose(sums / whole.weights[:, np.newaxis], whole.means, atol=rtol * scale)
    between = left.weights * right.weights / whole.weights
    between *= ((left.means - right.means) ** 2).sum(axis=1)
    np.testing.assert_allclose(left.scatters + right.scatters + between, whole.scatters, rtol=rtol)


# ------------------------------------------------------------------ one dimension


def line_errors(values: Any, sample_weight: Any = None) -> NDArray[np.float64]:
    """Squared error (m + 1, m + 1) of the sorted values i..j-1 as one cluster, at [i, j].

    Adding a value to a cluster costs w w' / (w + w') times its squared distance to the mean so far:
    no difference of like numbers, so every entry is right to some 1e-15 of itself.
    """
    x, w = np.asarray(values, dtype=np.float64), ones_if_none(sample_weight, len(values))
    errors = np.zeros((len(x) + 1, len(x) + 1))
    weight, centre, error = np.zeros((3, len(x)))  # of the clusters that begin at each i
    for j in range(len(x)):
        begun = slice(0, j + 1)
        share = w[j] / (weight[begun] + w[j])
        distance = (x[j] - x[begun]) - centre[begun]
        error[begun] += weight[begun] * share * distance**2
        centre[begun] += share * distance
        weight[begun] += w[j]
        errors[begun, j + 1] = error[begun]
    return errors


def line_optimum(errors: NDArray[np.float64], n_clusters: int) -> float:
    """Least error of ``n_clusters`` non-empty clusters, from ``line_errors``; O(K m^2)."""
    steps = np.where(np.tri(len(errors), dtype=bool), np.inf, errors)  # from i to j > i
    best = steps[0]
    for _ in range(n_clusters - 1):
        best = (best[:, np.newaxis] + steps).min(axis=0)
    return float(best[-1])


# ------------------------------------------------------------------ codes


def packed(codes: Any, n_bits: int) -> NDArray[np.uint8]:
    """The lowest bits of all codes one after the other, eight in a byte."""
    bits = (np.ravel(codes)[:, np.newaxis] >> np.arange(n_bits, dtype=np.uint8)) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little")


def unpacked(packed: NDArray[np.uint8], n_bits: int, count: int) -> NDArray[np.int64]:
    """The first ``count`` codes."""
    bits = np.unpackbits(packed, bitorder="little")[: count * n_bits].reshape(count, n_bits)
    return (bits.astype(np.int64) << np.arange(n_bits)).sum(axis=1)


def entropy_bits(codes: Any) -> float:
    """Shannon entropy of the frequencies, in bits per code."""
    shares = [count / len(codes) for count in Counter(codes).values()]
    return math.fsum(share * math.log2(1 / share) for share in shares)


# ------------------------------------------------------------------ Lloyd


def lloyd(X: Any, centers: Any, sample_weight: Any = None) -> Iterator[tuple[Any, Any, float]]:
    """Centres, labels and inertia of each step, without end; empty clusters keep their centre."""
    while True:
        step = assignment(X, centers, sample_weight)
        yield centers, labels(X, centers), step.inertia
        moved = np.where(np.isnan(step.centroids), centers, step.centroids)
        centers = moved.astype(centers.dtype)


# ------------------------------------------------------------------ size limits


def least_inertia_within(X: Any, centers: Any, smallest: float, largest: float) -> float:
    """Least inertia at which each cluster has ``smallest`` to ``largest`` rows: a linear program.

    Its corners are whole rows, as those of every flow between whole numbers.
    """
    costs = sq_distances(X, centers)
    n_rows, n_clusters = costs.shape
    each_row = sparse.kron(sparse.eye(n_rows), np.ones((1, n_clusters)))
    sizes = sparse.kron(np.ones((1, n_rows)), sparse.eye(n_clusters))
    bounds = np.repeat([min(largest, n_rows), -smallest], n_clusters)
    scale = costs.max() or 1.0
    found = linprog(
        costs.ravel() / scale,
        A_ub=sparse.vstack([sizes, -sizes]),
        b_ub=bounds,
        A_eq=each_row,
        b_eq=np.ones(n_rows),
        method="highs",
    )
    assert found.status == 0
    return float(found.fun * scale)


# ------------------------------------------------------------------ data


@dataclass(frozen=True)
class Problem:
    """Rows (n, d) and centres (K, d) of one dtype."""

    name: str
    X: NDArray[np.floating]
    centers: NDArray[np.floating]


def problems(dtype: Any) -> list[Problem]:
    """Rows and centres where a label is easily got wrong."""
    rng = np.random.default_rng(20230614)
    normal, integers = rng.standard_normal, rng.integers
    found = []

    def add(name: str, X: Any, centers: Any) -> None:
        X, centers = np.asarray(X, dtype=dtype), np.asarray(centers, dtype=dtype)
        found.append(Problem(f"{name}-{np.dtype(dtype).name}", X, centers))

    for n, d, k in ((300, 1, 7), (257, 3, 40), (200, 8, 16), (150, 33, 9), (90, 65, 5)):
        add(f"random n={n} d={d} K={k}", normal((n, d)), normal((k, d)))

    # Half of the rows lie exactly between centres, some centres are equal.
    add("ties on a grid", integers(0, 4, (300, 3)), integers(0, 4, (20, 3)))
    add("ties on a long grid", integers(0, 2, (100, 40)), integers(0, 2, (30, 40)))
    axes = np.concatenate([np.eye(5), -np.eye(5), np.eye(5)])
    add("rows on bisectors", np.concatenate([np.zeros((3, 5)), normal((60, 1)) * np.ones(5)]), axes)
    # Distances in float64 differ, by less than a float32 can tell.
    near = 0.1 + 1e-7 * normal((40, 6))
    add("centres close together", normal((200, 6)), near)

    blobs = normal((200, 4)) + np.where(np.arange(200) % 2, 1e4, 0.0)[:, np.newaxis]
    add("two blobs 1e4 apart", blobs, blobs[:30] + 0.1 * normal((30, 4)))
    add("offset 1e6", 1e6 + normal((200, 5)), 1e6 + normal((20, 5)))
    add("offset 1e7", 1e7 + normal((200, 5)), 1e7 + normal((20, 5)))  # a grid in float32
    add("norms 1e5", 1e5 * normal((200, 12)), 1e5 * normal((20, 12)))
    add("scale 1e-20", 1e-20 * normal((200, 4)), 1e-20 * normal((20, 4)))
    outlier = normal((200, 4))
    outlier[17] = 1e6
    add("outlier 1e6", outlier, outlier[:25] + 0.1 * normal((25, 4)))
    add("far centres", normal((200, 4)), np.concatenate([1e6 * normal((6, 4)), normal((6, 4))]))
    add("only far centres", normal((200, 4)), 1e6 + normal((6, 4)))

    few = normal((6, 3))
    add("duplicates", few[integers(0, 6, 200)], few[:4])
    add("more centres than distinct rows", few[integers(0, 6, 50)], few[integers(0, 6, 12)])
    add("all rows equal", np.tile(few[:1], (40, 1)), few[[0, 0, 1]])
    constant = normal((200, 5))
    constant[:, [0, 3]] = 3.7
    add("constant columns", constant, constant[:9])
    add("one row", normal((1, 4)), normal((3, 4)))
    add("one row, one feature, one centre", [[2.0]], [[-1.0]])
    add("K = 1", normal((100, 3)), normal((1, 3)))
    each = normal((30, 3))
    add("K = n", each, each[::-1])
    mostly_zero = normal((200, 30)) * (rng.random((200, 30)) < 0.1)
    mostly_zero[::9] = 0.0
    add("mostly zero", mostly_zero, mostly_zero[rng.choice(200, 12, replace=False)])
    # So wide that sparse kernels do without the zeros altogether; some rows have nothing else.
    wide = normal((60, 700)) * (rng.random((60, 700)) < 0.004)
    add("wide and mostly zero", wide, wide[[3, 9, 27]] + 0.01 * (wide[[4, 5, 6]] != 0))
    return found


def sample_weights(n_rows: int) -> dict[str, NDArray[np.float64] | None]:
    """The kinds of weights that an engine meets."""
    rng = np.random.default_rng(n_rows)
    some_zero = rng.integers(0, 3, n_rows).astype(np.float64)
    some_zero[0] = 1.0
    return {"none": None, "random": rng.uniform(0.1, 5.0, n_rows), "some zero": some_zero}


def _strided(X: Any, row_step: int, column_step: int) -> Any:
    wide = np.full((X.shape[0] * row_step, X.shape[1] * column_step), np.nan, dtype=X.dtype)
    wide[::row_step, ::column_step] = X
    return wide[::row_step, ::column_step]


def _read_only(X: Any) -> Any:
    X = X.copy()
    X.flags.writeable = False
    return X


def _memmap(X: Any) -> Any:
    with tempfile.TemporaryFile() as file:  # the mapping outlives the open file
        mapped = np.memmap(file, dtype=X.dtype, mode="w+", shape=X.shape)
    mapped[:] = X
    return mapped


def _unaligned(X: Any) -> Any:
    buffer = np.empty(X.nbytes + 1, dtype=np.uint8)[1:]
    unaligned = buffer.view(X.dtype).reshape(X.shape)
    unaligned[:] = X
    return unaligned


def csr(X: Any, container: Any = sparse.csr_matrix, index: Any = np.int32) -> Any:
    """X in CSR form; the constructor alone would choose the width of the indices."""
    stored = container(X)
    stored.indices, stored.indptr = stored.indices.astype(index), stored.indptr.astype(index)
    return stored


def _with_repeated_entries(X: Any) -> Any:
    once = sparse.csr_matrix(X)
    parts = np.repeat(once.data / 2, 2), np.repeat(once.indices, 2), once.indptr * 2
    return sparse.csr_matrix(parts, shape=X.shape)


def _unsorted(X: Any) -> Any:
    """Columns of each row in falling order."""
    backwards = sparse.csr_matrix(X[:, ::-1])
    columns = X.shape[1] - 1 - backwards.indices
    return sparse.csr_matrix((backwards.data, columns, backwards.indptr), shape=X.shape)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "strided rows": lambda X: _strided(X, 3, 1),
    "strided columns": lambda X: _strided(X, 1, 2),
    "reversed": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": _read_only,
    "memmap": _memmap,
    "unaligned": _unaligned,
    "csr_matrix int32": csr,
    "csr_array int64": lambda X: csr(X, sparse.csr_array, np.int64),
    "csr repeated entries": _with_repeated_entries,
    "csr unsorted": _unsorted,
}
"""Name -> a function that brings a dense matrix into another place with the same values."""
