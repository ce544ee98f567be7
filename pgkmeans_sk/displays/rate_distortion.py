"""RateDistortionDisplay: bits per weight against relative error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import clone

from pgkmeans_sk.displays.canvas import axes_of, plain_frame, series_style
from pgkmeans_sk.product_quantizer import ProductQuantizer
from pgkmeans_sk.weight_report import FileReport

Curve = Sequence[tuple[float, float]]


class RateDistortionDisplay:
    """What compression loses for the bits it takes: lower left is better.

    Parameters
    ----------
    curves : mapping of str to sequence of (float, float)
        By name: bits per weight, all included, and relative error ``|W - decoded| / |W|``.

    Attributes
    ----------
    curves : dict of str to list of (float, float)
        As given, each in the order of its bits.
    ax_ : matplotlib Axes
        The axes that were drawn on.
    figure_ : matplotlib Figure
        Their figure.
    lines_ : list of matplotlib Line2D
        One for each curve.

    See Also
    --------
    LayerReportDisplay : The layers of one report.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.displays import RateDistortionDisplay
    >>> W = np.random.default_rng(0).normal(size=(1000, 32)).astype(np.float32)
    >>> settings = [{"block_size": b, "n_codes": k} for b in (2, 4) for k in (16, 64)]
    >>> display = RateDistortionDisplay.from_estimator(ProductQuantizer(), W, settings=settings)
    >>> list(display.curves)
    ['block_size=2', 'block_size=4']
    """

    def __init__(self, curves: Mapping[str, Curve]) -> None:
        if not curves or not all(len(points) for points in curves.values()):
            raise ValueError("Got no points, but expected one or more for each curve.")
        self.curves = {name: sorted(map(tuple, points)) for name, points in curves.items()}

    @classmethod
    def from_estimator(
        cls,
        estimator: ProductQuantizer,
        X: Any,
        *,
        settings: Iterable[Mapping[str, Any]],
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Compress a matrix with clones of a quantizer in several settings.

        Settings that differ in ``n_codes`` alone are one curve.

        Parameters
        ----------
        estimator : ProductQuantizer
            Fitted or not; it is not changed.
        X : array-like of shape (n_samples, n_features)
            The matrix.
        settings : iterable of dict
            Parameters that are changed, for instance a ``sklearn.model_selection.ParameterGrid``.
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Further arguments of ``plot``.

        Returns
        -------
        display : RateDistortionDisplay
            Drawn.

        Raises
        ------
        ValueError
            If a setting is none of the quantizer's parameters, or not accepted by it.
        """
        trials = [
            (dict(changes), clone(estimator).set_params(**changes)) for changes in settings
        ]  # all of them first: what is wrong is said before any work
        curves: dict[str, list[tuple[float, float]]] = {}
        for changes, quantizer in trials:
            shown = [f"{name}={value!r}" for name, value in changes.items() if name != "n_codes"]
            matrix = quantizer.compress(X)
            points = curves.setdefault(", ".join(shown) or type(estimator).__name__, [])
            points.append((matrix.bits_per_weight, matrix.relative_error))
        return cls(curves).plot(ax, **kwargs)

    @classmethod
    def from_reports(
        cls,
        reports: Mapping[str, FileReport | Sequence[FileReport]] | Sequence[FileReport],
        *,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw what reports of compressed models or files say.

        Bits are those of the compressed tensors, codebooks included. The error of a report is the
        root of the mean of its tensors' squared relative errors, each counted by its values.

        Parameters
        ----------
        reports : mapping of str to report or list of reports, or list of reports
            What ``nn.compress_model``, ``compress_file`` or others returned; a curve for each name.
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        **kwargs : dict
            Further arguments of ``plot``.

        Returns
        -------
        display : RateDistortionDisplay
            Drawn.

        Raises
        ------
        ValueError
            If a report has no compressed tensors, or was only planned.
        """
        named = reports if isinstance(reports, Mapping) else {"": reports}
        curves = {
            name: [_point_of(r) for r in ([some] if isinstance(some, FileReport) else some)]
            for name, some in named.items()
        }
        return cls(curves).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, log: bool = True, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Where to draw; None makes a new figure.
        log : bool, default=True
            Whether errors are drawn on a logarithmic scale.
        **kwargs : dict
            Properties of the lines (matplotlib ``Line2D``).

        Returns
        -------
        display : RateDistortionDisplay
            Itself.
        """
        self.ax_ = ax = axes_of(ax)
        self.figure_ = ax.figure
        plain_frame(ax)
        self.lines_ = []
        for number, (name, points) in enumerate(self.curves.items()):
            style = {**series_style(number), "markersize": 6, "label": name, **kwargs}
            self.lines_ += ax.plot(*zip(*points, strict=True), **style)
        # An error of 0 has no place on a logarithmic scale.
        if log and all(error > 0 for points in self.curves.values() for _, error in points):
            _log_scale(ax.yaxis)
        ax.set_xlabel("bits per weight, all included")
        ax.set_ylabel("relative error")
        ax.set_title("Error by size", loc="left")
        if any(self.curves):
            ax.legend(frameon=False)
        return self


def _point_of(report: FileReport) -> tuple[float, float]:
    tensors = [tensor for tensor in report.compressed if tensor.n_values]
    errors = [tensor.relative_error for tensor in tensors]
    if not tensors or None in errors:
        raise ValueError(
            f"Got a report of {report.path or 'a plan'} without errors, but expected one of "
            "tensors that were compressed."
        )
    counts = [tensor.n_values for tensor in tensors]
    bits = 8 * sum(tensor.stored_bytes for tensor in tensors) / sum(counts)
    squares = np.square(np.array(errors, dtype=np.float64))
    return bits, float(np.sqrt(np.average(squares, weights=counts)))


def _log_scale(axis: Any) -> None:
    """A logarithmic scale with ticks as plain numbers: 0.2, 0.5, not powers of 10."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=30))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
