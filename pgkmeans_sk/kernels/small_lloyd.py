"""Lloyd's iteration on few rows, in one go, plain or with momentum.

On a small table an iteration takes some microseconds, and telling Python of it takes ten times as
long. So the loop of ``pipeline/lloyd.py`` is here once more, for dense rows in memory, around the
same kernel (``linked.py``). The result has the same bits, which ``tests/test_small_lloyd.py`` holds
against the pipeline.

Only what is common is here: where a step leaves a cluster without rows that would have to be
filled, the kernel gives up, and the pipeline begins anew.
"""

from __future__ import annotations

import numpy as np

from pgkmeans_sk.kernels.compile import kernel, part
from pgkmeans_sk.kernels.small_slots import assign_slot, copy_numbers, rests, sum_of_many


@part
def sum_of_squared_moves(
    centers,  # IN (K, d) float64
    means,  # IN (K, d) float64
    squares,  # WORK (K * d,) float64
):
    """How far the means are from the centres: squares, added up as NumPy adds them up."""
    n_clusters, n_features = centers.shape
    for j in range(n_clusters):
        for t in range(n_features):
            move = means[j, t] - centers[j, t]
            squares[j * n_features + t] = move * move
    return sum_of_many(squares)


@part
def go_beyond(
    centers, means,  # IN (K, d) float64
    previous,  # INOUT (K, d) float64, the means before; then those of now
    relaxation,  # IN float64, length of a step, where 1 ends at the means
    share,  # IN float64, of the means' last move; NaN where there was none
    target,  # OUT (K, d) float64
):  # fmt: skip
    """Where a step with momentum goes (``_Momentum`` in ``pipeline/lloyd.py``)."""
    for j in range(centers.shape[0]):
        for t in range(centers.shape[1]):
            mean = means[j, t]
            place = mean
            if share == share:
                place = centers[j, t] + relaxation * (mean - centers[j, t])
                place += share * (mean - previous[j, t])
                place = place if place == place else mean  # infinity minus infinity
            previous[j, t] = mean
            target[j, t] = place


@kernel
def lloyd_small(
    points,  # IN DensePoints
    weights,  # IN (n,) or (1,) float64
    weight_step,  # IN 1, or 0 when one weight serves all rows
    slots,  # INOUT Slots, two; the first one holds the state to begin from
    previous,  # WORK (K, d) float64
    squares,  # WORK (K * d,) float64
    inertias,  # WORK (w + 1,) float64, of the last w iterations, over which progress is averaged
    frame,  # IN PackedCenters: origin, panels of zeros, order of the centres, error bounds
    no_bounds,  # IN (0,) float
    eps,  # IN float64, of the data's dtype
    assign,  # IN address of nearest.assign_dense
    max_iter,  # IN
    threshold,  # IN float64; no more iterations if the squared moves add up to no more
    accelerate,  # IN bool, whether with momentum
    relaxation,  # IN as in go_beyond
    stall_share,  # IN float64, of the inertia; with momentum no more iterations that gain no more
):  # fmt: skip
    """Iterate; returns the slot of the last state, the iterations, and whether it converged.

    The slot is -1 where the pipeline has to do it. Where a cluster of the first state is empty, it
    always has to.
    """
    padding = frame.starts[0]  # no centres yet
    window = inertias.size - 1
    state, trial = 0, 1
    labels_belong, plain_next, converged = True, not accelerate, False
    step, has_previous = 1.0, False
    inertias[0] = slots.inertias[state]
    n_iter = 0
    while n_iter < max_iter and not converged:
        n_iter += 1
        centers, means, target = slots.centers[state], slots.means[state], slots.centers[trial]
        converged = sum_of_squared_moves(centers, means, squares) <= threshold
        if accelerate and n_iter > window:
            before, now = inertias[n_iter % inertias.size], inertias[(n_iter - 1) % inertias.size]
            converged = converged or (before - now) / window <= stall_share * now
        plain = plain_next or converged or n_iter == max_iter
        plain_next = not accelerate
        if plain:
            copy_numbers(means, target)
        else:
            following = (1.0 + np.sqrt(1.0 + 4.0 * (step * step))) / 2.0
            share = (step - 1.0) / following if has_previous else np.nan
            go_beyond(centers, means, previous, relaxation, share, target)
            step, has_previous = following, True
        copy_numbers(slots.labels[state], slots.labels[trial])
        all_own = assign_slot(
            points, weights, weight_step, assign, frame, padding, no_bounds, slots, trial
        )
        if plain and not all_own:
            return -1, n_iter, False
        repeats = labels_belong and slots.changed[trial] == 0
        if all_own and slots.inertias[trial] < slots.inertias[state]:
            state, trial = trial, state
            labels_belong = True
            plain_next = plain_next or repeats
            converged = converged or (plain and repeats and rests(slots, state, eps))
        else:
            labels_belong = False
            step, has_previous = 1.0, False
            plain_next = True
            converged = converged or plain
        inertias[n_iter % inertias.size] = slots.inertias[state]
    return state, n_iter, converged
