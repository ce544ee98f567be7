"""LayerReportDisplay: what each layer of a model takes and has lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from pgkmeans_sk.displays.canvas import BLUE, GREY, VERMILION, new_axes, plain_frame, shortened
from pgkmeans_sk.validation import check_choice
from pgkmeans_sk.weight_report import FileReport

NAME_WIDTH = 40
ORDERS = ("model", "bytes", "error")


class LayerReportDisplay:
    """Bytes before and after, and the relative error, for each compressed tensor of a report.

    Parameters
    ----------
    report : FileReport or ModelReport
        What ``nn.compress_model``, ``nn.compress_in_sequence``, ``compress_file`` or
        ``describe_file`` returned.

    Attributes
    ----------
    report : FileReport
        As given.
    ax_ : list of two matplotlib Axes
        The axes that were drawn on: of bytes, and of errors.
    figure_ : matplotlib Figure
        Their figure.
    before_, after_ : matplotlib PathCollection
        Marks of the bytes of each tensor.
    errors_ : matplotlib BarContainer
        Relative errors, ``|W - decoded| / |W|``.

    See Also
    --------
    RateDistortionDisplay : Several reports, a point each.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> from pgkmeans_sk.displays import LayerReportDisplay
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64))
    >>> display = LayerReportDisplay.from_report(nn.compress_model(model))
    >>> display.names
    ['0.weight', '1.weight']
    """

    def __init__(self, report: FileReport) -> None:
        if not report.compressed:
            raise ValueError(
                f"Got a report of {report.path or 'a plan'} without compressed tensors, but "
                "expected at least one."
            )
        self.report = report
        self.names = [tensor.name for tensor in report.compressed]

    @classmethod
    def from_report(
        cls, report: FileReport, *, ax: Sequence[Any] | None = None, **kwargs: Any
    ) -> Self:
        """Draw a report.

        Parameters
        ----------
        report : FileReport or ModelReport
            With compressed tensors.
        ax : sequence of two matplotlib Axes or None, default=None
            Where to draw; None makes a new figure, as high as there are tensors.
        **kwargs : dict
            Further arguments of ``plot``.

        Returns
        -------
        display : LayerReportDisplay
            Drawn.

        Raises
        ------
        ValueError
            If nothing was compressed.
        """
        return cls(report).plot(ax, **kwargs)

    def plot(self, ax: Sequence[Any] | None = None, *, order: str = "model", **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : sequence of two matplotlib Axes or None, default=None
            Where to draw; None makes a new figure, as high as there are tensors.
        order : {"model", "bytes", "error"}, default="model"
            Which tensor is on top: the first of the model, the largest as it is stored, or the one
            with the largest error.
        **kwargs : dict
            Properties of the bars of errors.

        Returns
        -------
        display : LayerReportDisplay
            Itself.
        """
        check_choice("order", order, ORDERS)
        tensors = list(self.report.compressed)
        if order == "bytes":
            tensors.sort(key=lambda tensor: -tensor.stored_bytes)
        elif order == "error":
            tensors.sort(key=lambda tensor: -(tensor.relative_error or 0.0))
        self.names = [tensor.name for tensor in tensors]
        height = 1.3 + 0.2 * len(tensors)
        self.ax_ = list(new_axes(2, (8.0, max(2.4, height))) if ax is None else ax)
        if len(self.ax_) != 2:
            raise ValueError(f"Got {len(self.ax_)} axes, but expected two.")
        sizes, errors = self.ax_
        self.figure_ = sizes.figure
        for panel in self.ax_:
            plain_frame(panel)
        places = range(len(tensors))
        before = [tensor.original_bytes for tensor in tensors]
        after = [tensor.stored_bytes for tensor in tensors]
        sizes.hlines(places, after, before, color="0.75", linewidth=1.5, zorder=1)
        self.before_ = sizes.scatter(before, places, color=GREY, marker="|", s=60, label="before")
        self.after_ = sizes.scatter(after, places, color=BLUE, s=28, label="after", zorder=3)
        sizes.set_xscale("log")
        sizes.set_xlabel("bytes (log scale)")
        sizes.set_yticks(places, [shortened(name, NAME_WIDTH) for name in self.names])
        sizes.set_ylim(len(tensors) - 0.5, -0.5)
        sizes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        self.errors_ = errors.barh(
            places,
            [tensor.relative_error or 0.0 for tensor in tensors],
            **{"color": VERMILION, "height": 0.7, **kwargs},
        )
        errors.set_ylim(len(tensors) - 0.5, -0.5)
        errors.set_xlim(left=0)
        errors.tick_params(axis="y", length=0)
        errors.set_xlabel("relative error")
        ratio = self.report.original_bytes / self.report.n_bytes
        errors.set_title(
            f"{ratio:.1f} times smaller, {self.report.bits_per_weight:.2f} bits a weight",
            loc="right",
            fontsize="medium",
        )
        return self
