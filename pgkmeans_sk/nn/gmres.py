"""Linear systems that are known only by what they do to vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def solved(
    operator: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    *,
    tol: float,
    max_iter: int,
) -> tuple[Tensor, float]:
    """Solve ``operator(u) = right`` by minimal residuals (GMRES, without restarts).

    Unlike the plain iteration ``u <- u + right - operator(u)``, damped or not, it needs no operator
    whose powers vanish, and no residual is larger than the one before.

    Parameters
    ----------
    operator : callable
        Linear; from a vector (n,) to another.
    right : tensor of shape (n,)
        The right-hand side.
    start : tensor of shape (n,)
        Where to begin.
    tol : float
        It ends when the norm of the residual is at most ``tol`` times that of ``right``.
    max_iter : int
        How often ``operator`` is applied at most, beside once for the start.

    Returns
    -------
    solution : tensor of shape (n,)
        The best that was found.
    residual : float
        The norm of its residual over that of ``right``; 0 if ``right`` is zero.

    References
    ----------
    Saad and Schultz 1986, "GMRES: A generalized minimal residual algorithm for solving
    nonsymmetric linear systems", doi:10.1137/0907058.
    """
    residual = right - operator(start)
    # A GPU is waited for whenever the host looks at a number: once a step.
    size, first = torch.stack([right.norm(), residual.norm()]).tolist()
    if size == 0.0:
        return torch.zeros_like(right), 0.0
    if not np.isfinite(first) or first <= tol * size:
        return start, first / size
    max_iter = min(max_iter, len(right))
    basis = right.new_empty(max_iter + 1, len(right))
    basis[0] = residual / first
    unit = 10 * torch.finfo(right.dtype).eps
    products = np.zeros((max_iter + 1, max_iter))
    target = np.zeros(max_iter + 1)
    target[0] = first
    for k in range(max_iter):
        vector, found = _orthogonal(operator(basis[k]), basis[: k + 1])
        *column, length = found.tolist()
        products[: k + 2, k] = column
        if not np.isfinite(column).all():
            return start, first / size
        system = products[: k + 2, : k + 1]
        weights, *_ = np.linalg.lstsq(system, target[: k + 2], rcond=unit)
        left = float(np.linalg.norm(system @ weights - target[: k + 2]))
        # A vector of rounding errors: there is no direction left that could help.
        if left <= tol * size or k + 1 == max_iter or products[k + 1, k] <= unit * length:
            break
        basis[k + 1] = vector / products[k + 1, k]
    parts = torch.as_tensor(weights, dtype=right.dtype, device=right.device)
    return start + parts @ basis[: len(parts)], left / size


def _orthogonal(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The part of a vector (n,) that is orthogonal to an orthonormal basis (k, n).

    Also, as one tensor: its products with the basis, the length of that part, and its own. Taken
    off twice, it is as orthogonal as it can be (Giraud et al. 2005, doi:10.1007/s00211-005-0615-4),
    and all products are taken at once.
    """
    length = vector.norm()
    products = basis @ vector
    rest = vector - products @ basis
    again = basis @ rest
    rest = rest - again @ basis
    return rest, torch.cat([products + again, rest.norm()[None], length[None]])
