"""DKM in float64 NumPy, each step as it is written down, for comparison."""

import numpy as np


def attention(rows, centroids, tau, distance="squared"):
    """Softmax over centroids of minus the distance over tau: (m, K)."""
    distances = ((rows[:, None] - centroids[None]) ** 2).sum(2)
    if distance == "euclidean":
        distances = np.sqrt(distances)
    logits = -distances / tau
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def moved(rows, centroids, tau, distance="squared"):
    """Centroids after an iteration: means of all rows, weighted by attention."""
    shares = attention(rows, centroids, tau, distance)
    return (shares.T @ rows) / shares.sum(0)[:, None]


def fixed_point(rows, centroids, tau, distance="squared", max_iter=10_000):
    """Centroids that no iteration moves any more."""
    for _ in range(max_iter):
        new = moved(rows, centroids, tau, distance)
        if np.abs(new - centroids).max() <= 1e-15 * np.abs(new).max():
            break
        centroids = new
    return centroids


def softened(rows, centroids, tau, distance="squared"):
    """What rows are in training."""
    return attention(rows, centroids, tau, distance) @ centroids


def jacobian(function, at, step=1e-6):
    """Derivatives by central differences: of all outputs (a row each) by all inputs (a column)."""
    columns = []
    for number in range(at.size):
        shift = np.zeros(at.size)
        shift[number] = step
        shift = shift.reshape(at.shape)
        columns.append((function(at + shift) - function(at - shift)).ravel() / (2 * step))
    return np.stack(columns, 1)


def gradient(rows, centroids, tau, pull, *, distance="squared", backward="implicit"):
    """The gradient (m, b) of ``(pull * soft rows).sum()`` at centroids that are a fixed point.

    With backward="jfb", centroids depend on rows by the last iteration only.
    """

    def by(rows_now, centroids_now):
        return (pull * softened(rows_now, centroids_now, tau, distance)).sum()

    size = centroids.size
    of_centroids = jacobian(lambda c: np.array(by(rows, c)), centroids)[0]
    inner = jacobian(lambda c: moved(rows, c, tau, distance), centroids)
    outer = jacobian(lambda w: moved(w, centroids, tau, distance), rows)
    if backward == "implicit":
        of_centroids = np.linalg.solve(np.eye(size) - inner.T, of_centroids)
    direct = jacobian(lambda w: np.array(by(w, centroids)), rows)[0]
    return (direct + of_centroids @ outer).reshape(rows.shape)
