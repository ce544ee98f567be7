"""Soft k-means for autograd: an iteration, its fixed point, and soft rows.

Each saves its inputs only, and computes the attention again in the backward pass.

References
----------
Cho et al. 2022, arXiv:2108.12659 (all iterations are differentiated); Jaffe et al. 2023, "IDKM:
Memory Efficient Neural Network Quantization via Implicit, Differentiable k-Means",
arXiv:2312.07759 (the fixed point is, and "jfb"); Fung et al. 2022, "JFB: Jacobian-Free
Backpropagation for Implicit Networks", arXiv:2103.12803.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pgkmeans_sk.nn.gmres import solved
from pgkmeans_sk.nn.soft_kmeans import Points, SoftKMeans

BACKWARDS = ("unrolled", "implicit", "jfb")

DIRECT_SIZE = 256
"""Up to so many numbers in all centroids their Jacobian is formed, in one pass over the rows."""

SOLVER_MAX_ITER = 16
"""Passes over the rows that "implicit" may take where the Jacobian is not formed."""

SOLVER_TOL = {torch.float32: 1e-3, torch.float64: 1e-10}
"""The residual that "implicit" is content with, relative to the gradient of the centroids."""

BAD_RESIDUAL = 0.1
"""From such a residual on there is a warning: gradients are far from those of a fixed point."""


def moved(settings: SoftKMeans, points: Points, rows: Tensor, centroids: Tensor) -> Tensor:
    """Centroids (K, b) after an iteration; gradients go to ``rows`` (m, b) and to ``centroids``.

    ``points`` are those of the rows.
    """
    apply: Any = _Moved.apply
    found: Tensor = apply(rows, centroids, points, settings, False)
    return found


def at_fixed_point(settings: SoftKMeans, points: Points, rows: Tensor, centroids: Tensor) -> Tensor:
    """The same for centroids that no iteration moves any more, as functions of the rows.

    If C = F(C, W), a gradient v with respect to C is one with respect to W by
    ``(dF/dW)^T u``, where ``u = v + (dF/dC)^T u``.
    """
    apply: Any = _Moved.apply
    found: Tensor = apply(rows, centroids.detach(), points, settings, True)
    return found


def softened(settings: SoftKMeans, points: Points, rows: Tensor, centroids: Tensor) -> Tensor:
    """Soft rows (m, b), in the dtype of ``rows``; gradients go to rows and centroids."""
    apply: Any = _Softened.apply
    found: Tensor = apply(rows, centroids, points, settings)
    return found


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Within the block, autocast does not round what is multiplied."""
    with torch.autocast(device.type, enabled=False):
        yield


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        centroids: Tensor,
        points: Points,
        settings: SoftKMeans,
        is_fixed: bool,
    ) -> Tensor:
        found, mass = settings.moved(points, centroids)
        # The rows, too, so that whoever changes them before the backward pass is told.
        ctx.save_for_backward(rows, centroids, found, mass)
        ctx.points, ctx.settings, ctx.is_fixed = points, settings, is_fixed
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, centroids, found, mass = ctx.saved_tensors
        points, settings = ctx.points, ctx.settings
        with full_precision(rows.device):
            if ctx.is_fixed:
                gradient = _implicit(settings, points, centroids, (found, mass), gradient)
            of_points, of_centroids = settings.moved_backward(
                points, centroids, (found, mass), gradient, for_points=ctx.needs_input_grad[0]
            )
            of_rows = None if of_points is None else points.spread(of_points).to(rows.dtype)
        return of_rows, of_centroids if ctx.needs_input_grad[1] else None, None, None, None


class _Softened(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, centroids: Tensor, points: Points, settings: SoftKMeans
    ) -> Tensor:
        ctx.save_for_backward(rows, centroids)
        ctx.points, ctx.settings = points, settings
        return points.spread(settings.softened(points, centroids).to(rows.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, centroids = ctx.saved_tensors
        points, settings = ctx.points, ctx.settings
        needs_rows = ctx.needs_input_grad[0]
        with full_precision(rows.device):
            if points.members is None:
                of_rows, of_centroids = settings.softened_backward(
                    points, centroids, gradient, for_points=needs_rows
                )
            else:
                of_rows, of_centroids = _of_equal_rows(
                    settings, points, centroids, gradient, needs_rows
                )
        return of_rows, of_centroids if ctx.needs_input_grad[1] else None, None, None


def _of_equal_rows(
    settings: SoftKMeans, points: Points, centroids: Tensor, gradient: Tensor, needs_rows: bool
) -> tuple[Tensor | None, Tensor]:
    """The same where rows of one value are one point, but each has a gradient of its own."""
    total = points.added_up(gradient)
    _, of_centroids = settings.softened_backward(points, centroids, total, for_points=False)
    if not needs_rows:
        return None, of_centroids
    # A soft row of one number has a slope, which gradients are multiplied by.
    ones = torch.ones_like(points.values)
    slopes, _ = settings.softened_backward(points, centroids, ones, for_points=True)
    assert slopes is not None
    return points.spread(slopes.to(gradient.dtype)) * gradient, of_centroids


def _implicit(
    settings: SoftKMeans,
    points: Points,
    centroids: Tensor,
    moved_to: tuple[Tensor, Tensor],
    gradient: Tensor,
) -> Tensor:
    """The solution u (K, b) of ``u = v + J^T u``, with v the gradient, J the Jacobian of F."""
    shape = gradient.shape
    is_direct = gradient.numel() <= DIRECT_SIZE
    if is_direct:
        turned = settings.jacobian(points, centroids, moved_to).T

        def residual(vector: Tensor) -> Tensor:
            return vector - turned @ vector

    else:

        def residual(vector: Tensor) -> Tensor:
            _, pulled = settings.moved_backward(
                points, centroids, moved_to, vector.view(shape), for_points=False
            )
            return vector - pulled.reshape(-1)

    start = gradient.reshape(-1)  # that is "jfb"
    max_iter = DIRECT_SIZE if is_direct else SOLVER_MAX_ITER
    found, left = solved(residual, start, start, tol=SOLVER_TOL[gradient.dtype], max_iter=max_iter)
    if not left <= BAD_RESIDUAL:
        warnings.warn(
            # The same text each time, so that it is shown once.
            f"Got a residual above {BAD_RESIDUAL} for the implicit gradient of DKM after "
            f"{max_iter} iterations, but expected less: gradients are between those of 'jfb' and "
            "'implicit'. A smaller tau may help, or backward='jfb', which takes less time.",
            RuntimeWarning,
            stacklevel=2,
        )
    return found.view(shape)
