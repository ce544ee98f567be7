"""Error feedback in plain loops: what the fast code has to agree with."""

import numpy as np

from tests.reference_codes import slices


def decoded(codes, words, d):
    """Rows (n, d), block by block."""
    size = words.shape[1]
    rows = np.zeros((len(codes), d))
    for i, row in enumerate(codes):
        for p, some in enumerate(slices(d, size)):
            rows[i, some] = words[row[p], : some.stop - some.start]
    return rows


def objective(rows, metric, weights, codes, words):
    """``sum_i v_i (w_i - q_i) H (w_i - q_i)``, as it is defined."""
    errors = rows - decoded(codes, words, rows.shape[1])
    return sum(v * (e @ metric @ e) for v, e in zip(weights, errors, strict=True))


def sweep(rows, metric, words):
    """Codes and targets of GPTVQ's sweep, with the Cholesky factor of the inverse as published."""
    d, size = rows.shape[1], words.shape[1]
    upper = np.linalg.cholesky(np.linalg.inv(metric)).T
    targets = rows.copy()
    codes = np.zeros((len(rows), -(-d // size)), dtype=int)
    for i in range(len(rows)):
        for p, some in enumerate(slices(d, size)):
            book = words[:, : some.stop - some.start]
            inverse = np.linalg.inv(upper[some, some])
            scaled = (targets[i, some] - book) @ inverse
            codes[i, p] = (scaled**2).sum(axis=1).argmin()
            targets[i, some.stop :] -= scaled[codes[i, p]] @ upper[some, some.stop :]
    return codes, targets


def design(codes, metric, n_codes, size):
    """The matrix that turns the words' values into rows times a square root of the metric."""
    d = len(metric)
    root = np.linalg.cholesky(metric)
    blocks = []
    for row in codes:
        of_row = np.zeros((d, n_codes * size))
        for p, some in enumerate(slices(d, size)):
            for t in range(some.stop - some.start):
                of_row[some.start + t, row[p] * size + t] = 1.0
        blocks.append(root.T @ of_row)
    return np.concatenate(blocks)
