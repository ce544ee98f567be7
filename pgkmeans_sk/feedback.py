"""Compressing a weight matrix for the least error of its layer's output, and that error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils import check_random_state
from threadpoolctl import threadpool_limits

from pgkmeans_sk import validation
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.product_quantizer import ProductQuantizer
from pgkmeans_sk.quantization.feedback import (
    Effort,
    compressed_matrix,
    damped,
    drifted,
    fit_with_feedback,
)
from pgkmeans_sk.quantizer_parameters import check_enough_blocks, check_parameters, settings_of
from pgkmeans_sk.validation import InvalidParameterError, check_integer, check_number

__all__ = ["compress_with_feedback", "output_shift", "relative_output_error"]

SMALLEST_DAMPING = 1e-9
"""Without any, a second moment of low rank would have no Cholesky factor."""
TOLERANCE = 1e-6
"""What a second moment may be off a symmetric, positive semi-definite one, relatively."""


def compress_with_feedback(
    weight: ArrayLike,
    second_moment: ArrayLike,
    quantizer: ProductQuantizer | None = None,
    *,
    drift: ArrayLike | None = None,
    row_weights: ArrayLike | None = None,
    damping: float = 0.03,
    n_sweeps: int = 1,
    n_descents: int = 3,
) -> CompressedMatrix:
    """Compress the weights of a linear layer so that its outputs change least.

    Codes and code words minimise ``tr((W - Q) H (W - Q)^T)``, the mean squared change of the
    outputs for inputs of second moment H, where plain product quantization minimises
    ``tr((W - Q) (W - Q)^T)``: a block of a row makes up for the errors of the others. The result is
    of the same kind and size, and decodes as fast; it carries one number more for each column.

    Parameters
    ----------
    weight : array-like of shape (out, in)
        W, in float16, float32 or float64. Never written.
    second_moment : array-like of shape (in, in)
        ``H = E[x x^T]`` over inputs x of the layer; symmetric, positive semi-definite, not zero.
    quantizer : ProductQuantizer or None
        How the matrix is to be compressed; not changed. It must have ``codebook="shared"`` and
        ``n_stages=1``; scales and rotations are possible. All blocks are looked at, whatever
        ``rows_per_code`` says. None: ``ProductQuantizer(8, 256,
        codebook="shared", codebook_dtype="float16", random_state=0)``.
    drift : array-like of shape (out, in), default=None
        ``E[(y - W x) x^T]``, where y is what the layer should give for x: W times the inputs of the
        uncompressed model, x being those of one whose earlier layers are compressed already. Then
        ``E|y - Q x|^2`` is minimised, and the layer makes up for errors of earlier ones. None means
        that y is W x. With means taken off x and y, it is for a bias that is set anew
        (``output_shift``).
    row_weights : array-like of shape (out,), default=None
        What the squared error of each output counts; >= 0, not all zero. None means ones.
    damping : float, default=0.03
        Added to the diagonal of H, as a share of the mean of the diagonal: for inputs that the
        sample did not have. It holds Q near W in directions that hardly any input has.
    n_sweeps : int, default=1
        Sweeps over the columns that hand errors on; further ones begin with better code words.
    n_descents : int, default=3
        Rounds of refinement, each of least squares for the code words and coordinate descent on the
        codes. With 0, the result is that of GPTVQ's sweep.

    Returns
    -------
    matrix : CompressedMatrix
        With ``column_scales`` in its decoder. Each code word is in use. ``relative_error`` is that
        of the weights, which is larger than without H. The same for any number of threads.

    Raises
    ------
    ValueError
        If an argument is not as described.

    See Also
    --------
    relative_output_error : What is minimised, of any compressed matrix.

    Notes
    -----
    BLAS is limited to one thread meanwhile, in the whole process; the work is divided among threads
    here, so that sums are always made in the same order.

    References
    ----------
    Sweep: Frantar et al. 2022, "GPTQ", arXiv:2210.17323, section 3, and for words of several values
    van Baalen et al. 2024, "GPTVQ", arXiv:2402.15319, section 3. Least squares and descent: as in
    Babenko and Lempitsky 2014, "Additive quantization", section 3, in the metric H. A target that
    makes up for earlier layers: Li et al. 2025, "GPTAQ", arXiv:2504.02692 (our reading).

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.feedback import compress_with_feedback, relative_output_error
    >>> rng = np.random.default_rng(0)
    >>> W = rng.normal(size=(64, 32)).astype(np.float32)
    >>> x = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 32))  # inputs of the layer
    >>> H = x.T @ x / len(x)
    >>> pq = ProductQuantizer(4, 16, codebook="shared", random_state=0)
    >>> plain, better = pq.compress(W), compress_with_feedback(W, H, pq)
    >>> relative_output_error(better, W, H) < 0.2 * relative_output_error(plain, W, H)
    True
    """
    if quantizer is None:
        quantizer = ProductQuantizer(
            8, 256, codebook="shared", codebook_dtype="float16", random_state=0
        )
    quantizer = _checked_quantizer(quantizer)
    check_number("damping", damping, 0.0)
    check_integer("n_sweeps", n_sweeps, 1)
    check_integer("n_descents", n_descents, 0)
    is_half = getattr(weight, "dtype", None) == np.float16
    rows = validation.check_rows(quantizer, weight, reset=True, accept_sparse=False)
    metric = _checked_moment(second_moment, rows.shape[1])
    drift = None if drift is None else _checked_drift(drift, rows.shape)
    weights = None
    if row_weights is not None:
        weights = validation.check_weights(row_weights, rows)
    n_rows, n_features = rows.shape
    output_dtype = np.dtype(np.float16) if is_half else rows.dtype
    settings = settings_of(quantizer, n_features, output_dtype)
    check_enough_blocks(n_rows, n_features, settings)
    rng = check_random_state(quantizer.random_state)
    effort = Effort(n_sweeps=int(n_sweeps), n_descents=int(n_descents))
    with threadpool_limits(limits=1, user_api="blas"):
        metric = damped(metric, max(float(damping), SMALLEST_DAMPING))
        target = rows if drift is None else drifted(rows, drift, metric)
        decoder, codes = fit_with_feedback(target, metric, weights, settings, effort, rng)
    return compressed_matrix(decoder, codes, rows)


def relative_output_error(
    matrix: CompressedMatrix, weight: ArrayLike, second_moment: ArrayLike
) -> float:
    """How much the outputs of a layer change: ``tr((W - Q) H (W - Q)^T) / tr(W H W^T)``.

    Parameters
    ----------
    matrix : CompressedMatrix
        Q, made by whatever means.
    weight : array-like of shape (out, in)
        W.
    second_moment : array-like of shape (in, in)
        ``H = E[x x^T]``.

    Returns
    -------
    error : float
        Mean squared change of the outputs, relative to their mean square; 0 if both are 0, infinite
        if only the latter is.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.feedback import relative_output_error
    >>> W = np.random.default_rng(0).normal(size=(64, 32))
    >>> small = ProductQuantizer(4, 16, codebook="shared", random_state=0).compress(W)
    >>> error = relative_output_error(small, W, np.eye(32))
    >>> bool(np.isclose(error, small.relative_error**2))
    True
    """
    rows = _checked_weight(weight, matrix.shape)
    moment = _checked_moment(second_moment, matrix.shape[1])
    lost = _output_square(rows - matrix.decode(), moment)
    whole = _output_square(rows, moment)
    return lost / whole if whole else (0.0 if not lost else float("inf"))


def output_shift(
    matrix: CompressedMatrix, weight: ArrayLike, mean: ArrayLike
) -> NDArray[np.float64]:
    """What the outputs of a layer lack on average, ``(W - Q) E[x]``: to be added to its bias.

    Parameters
    ----------
    matrix : CompressedMatrix
        Q.
    weight : array-like of shape (out, in)
        W.
    mean : array-like of shape (in,)
        ``E[x]`` over inputs of the layer.

    Returns
    -------
    shift : ndarray of shape (out,), float64
        Change of the bias that makes the mean output what it was.

    References
    ----------
    Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
    arXiv:1906.04721, section 4.2.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.feedback import output_shift
    >>> W = np.random.default_rng(0).normal(size=(64, 32))
    >>> small = ProductQuantizer(4, 16, codebook="shared", random_state=0).compress(W)
    >>> output_shift(small, W, np.ones(32)).shape
    (64,)
    """
    rows = _checked_weight(weight, matrix.shape)
    average = np.asarray(mean, dtype=np.float64)
    if average.shape != matrix.shape[1:] or not np.isfinite(average).all():
        raise ValueError(
            f"Got mean of shape {average.shape}, but expected {matrix.shape[1:]}, finite."
        )
    return np.asarray((rows - matrix.decode()) @ average)


def _checked_quantizer(quantizer: ProductQuantizer) -> ProductQuantizer:
    """A copy of the quantizer, unfitted; raise if error feedback cannot have it."""
    if not isinstance(quantizer, ProductQuantizer):
        raise TypeError(
            f"Got a quantizer of type {type(quantizer).__name__}, but expected a ProductQuantizer."
        )
    check_parameters(quantizer)
    for name, expected in (("codebook", "shared"), ("n_stages", 1)):
        if getattr(quantizer, name) != expected:
            raise InvalidParameterError(
                f"Got {name}={getattr(quantizer, name)!r}, but expected {expected!r} for error "
                "feedback."
            )
    copy: ProductQuantizer = clone(quantizer)
    return copy


def _checked_weight(weight: Any, shape: tuple[int, int]) -> NDArray[np.float64]:
    """W in float64; raise unless it has the shape of the compressed matrix."""
    rows = np.asarray(weight, dtype=np.float64)
    if rows.shape != shape or not np.isfinite(rows).all():
        raise ValueError(f"Got weight of shape {rows.shape}, but expected {shape}, finite.")
    return rows


def _checked_drift(drift: Any, shape: tuple[int, int]) -> NDArray[np.float64]:
    """The drift in float64; raise unless it is one for a matrix of this shape."""
    values = np.asarray(drift, dtype=np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"Got drift of shape {values.shape}, but expected {shape}, finite.")
    return values


def _checked_moment(second_moment: Any, n_features: int) -> NDArray[np.float64]:
    """H in float64, exactly symmetric; raise if it is no second moment of ``n_features`` inputs."""
    moment = np.asarray(second_moment, dtype=np.float64)
    expected = n_features, n_features
    if moment.shape != expected:
        raise ValueError(
            f"Got second_moment of shape {moment.shape}, but expected {expected}: a row and a "
            "column for each column of weight."
        )
    if not np.isfinite(moment).all():
        raise ValueError("Got second_moment with values that are not finite, but expected numbers.")
    largest = float(np.abs(moment).max())
    if largest == 0.0 or float(np.abs(moment - moment.T).max()) > TOLERANCE * largest:
        raise ValueError(
            "Got second_moment that is zero or not symmetric, but expected E[x x^T] of inputs x."
        )
    moment = (moment + moment.T) / 2.0
    try:
        # Much faster than eigenvalues.
        np.linalg.cholesky(moment + TOLERANCE * largest * n_features * np.eye(n_features))
    except np.linalg.LinAlgError:
        raise ValueError(
            "Got second_moment with negative eigenvalues, but expected E[x x^T] of inputs x."
        ) from None
    return moment


def _output_square(rows: NDArray[np.float64], moment: NDArray[np.float64]) -> float:
    return float(np.einsum("ij,ij->", rows @ moment, rows))
