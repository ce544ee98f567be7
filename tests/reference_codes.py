"""Product quantization in plain loops: what the fast code has to agree with."""

import numpy as np


def slices(d, size):
    return [slice(j, min(j + size, d)) for j in range(0, d, size)]


def hadamard_matrix(width):
    matrix = np.ones((1, 1))
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(width)


def rotation_matrix(rotation):
    mixer = rotation.mixer.astype(float)
    width = len(rotation.signs) // len(mixer)
    return np.kron(mixer, hadamard_matrix(width)) * rotation.signs.astype(float)


def decode(decoder, codes):
    """Rows (n, d) in float64, code by code, as the docstring of Decoder says."""
    d, n_blocks = decoder.n_features, decoder.n_blocks
    rows = np.zeros((len(codes), d))
    for i in range(len(codes)):
        for j, columns in enumerate(slices(d, decoder.block_size)):
            width = columns.stop - columns.start
            for s in range(decoder.n_stages):
                book = decoder.codebooks[s, 0 if decoder.is_shared else j].astype(float)
                rows[i, columns] += book[codes[i, s * n_blocks + j], :width]
            if decoder.block_scales is not None:
                rows[i, columns] *= float(decoder.block_scales[j])
        if decoder.row_scales is not None:
            rows[i] *= float(decoder.row_scales[codes[i, -1]])
        if decoder.rotation is not None:
            rows[i] = rotation_matrix(decoder.rotation).T @ rows[i]
        if decoder.column_scales is not None:
            rows[i] *= decoder.column_scales.astype(float)
    return rows


def prepared(decoder, X):
    """Rows as the codebooks see them, in float64, and what their sizes are nearest to."""
    rows = X.astype(float)
    if decoder.column_scales is not None:
        rows = rows / decoder.column_scales.astype(float)
    sizes = np.sqrt((rows**2).mean(axis=1))
    scale_codes = None
    if decoder.row_scales is not None:
        scales = decoder.row_scales.astype(float)
        scale_codes = np.abs(sizes[:, None] - scales).argmin(axis=1)
        rows = rows / np.where(scales == 0, 1, scales)[scale_codes][:, None]
    if decoder.rotation is not None:
        rows = rows @ rotation_matrix(decoder.rotation).T
    if decoder.block_scales is not None:
        for j, columns in enumerate(slices(X.shape[1], decoder.block_size)):
            rows[:, columns] /= float(decoder.block_scales[j])
    return rows, scale_codes


def margins(decoder, X, codes, metric=None):
    """How much farther each chosen code word is than the nearest one, (n, n_block_codes).

    Squared distances in the metric; all 0 for codes that are the nearest, stage by stage.
    """
    rows, _ = prepared(decoder, X)
    found = np.zeros((len(X), decoder.n_block_codes))
    for s in range(decoder.n_stages):
        for j, columns in enumerate(slices(X.shape[1], decoder.block_size)):
            width = columns.stop - columns.start
            book = decoder.codebooks[s, 0 if decoder.is_shared else j, :, :width].astype(float)
            H = np.eye(width) if metric is None else np.asarray(metric)[:width, :width]
            column = s * decoder.n_blocks + j
            for i in range(len(X)):
                e = rows[i, columns] - book
                sq_dist = np.einsum("kt,tu,ku->k", e, H, e)
                found[i, column] = sq_dist[codes[i, column]] - sq_dist.min()
            rows[:, columns] -= book[codes[:, column]]
    return found


def nearest(X, queries, k):
    """Squared distances (q, k) and numbers of the nearest rows of X, by full search."""
    sq_dist = ((queries[:, None].astype(float) - X[None].astype(float)) ** 2).sum(axis=2)
    rows = np.argsort(sq_dist, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(sq_dist, rows, axis=1), rows
