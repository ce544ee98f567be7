"""Weights of a model as jobs: alone, with what a calibration knows, or in groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.feedback import compress_with_feedback
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.devices import clustered_matrix, host_matrix
from pgkmeans_sk.nn.drift_sums import DriftedInputs
from pgkmeans_sk.nn.layers import matrix_of
from pgkmeans_sk.nn.moments import RowCounts, SecondMoment
from pgkmeans_sk.nn.selection import FoundTensor, Target
from pgkmeans_sk.quiet import no_convergence_warnings
from pgkmeans_sk.weight_jobs import GroupJob, WeightJob


def weight_job(
    target: Target,
    calibration: Calibration | None,
    random_state: int | None,
    *,
    on_host: bool = False,
) -> WeightJob:
    """The job of one weight; ``on_host`` if it may be sent to another process."""
    found, name = target.found, target.found.name
    moment = _second_moment(target, calibration)
    zero_row = zero_padding_row(found)
    on_host = on_host or moment is not None or zero_row is not None
    rows = _rows_for_job(found, target.axis, on_host=on_host)
    weighting: dict[str, Any] = {}
    if moment is not None and calibration is not None:
        weighting = {"sample_weight": calibration.row_weights(name)}
    elif calibration is not None:
        weighting = _weighting(target, rows.shape[1], calibration)
    return WeightJob(
        name=name,
        title=f"weight {name!r}",
        rows=rows,
        settings=target.settings,
        random_state=random_state,
        weighting=weighting,
        second_moment=moment,
        zero_row=zero_row,
    )


def group_job(group: list[Target], random_state: int | None, *, on_host: bool = False) -> GroupJob:
    """The job of several weights with one codebook; ``on_host`` as in ``weight_job``."""
    settings = group[0].settings
    on_host = on_host or len({target.found.tensor.device for target in group}) > 1
    return GroupJob(
        title=f"group {settings.group!r}",
        rows={
            target.found.name: _rows_for_job(target.found, target.axis, on_host=on_host)
            for target in group
        },
        settings=settings,
        random_state=random_state,
    )


def compressed_with_drift(
    target: Target, inputs: DriftedInputs, random_state: int | None
) -> CompressedMatrix:
    """The matrix of one weight whose layer gets inputs that have drifted.

    Raises
    ------
    ValueError
        If the settings are none for error feedback, or the codebook does not fit into its dtype.
    """
    rows = rows_of(target.found, target.axis)
    with no_convergence_warnings():
        return compress_with_feedback(
            rows,
            inputs.second_moment,
            target.settings.quantizer(random_state),
            drift=inputs.drift,
            n_descents=2,
        )


def _rows_for_job(found: FoundTensor, axis: int, *, on_host: bool) -> NDArray[np.floating] | Tensor:
    return rows_of(found, axis) if on_host else clustered_matrix(matrix_of(found.tensor, axis))


def rows_of(found: FoundTensor, axis: int) -> NDArray[np.floating]:
    """A weight as a matrix in host memory."""
    return host_matrix(matrix_of(found.tensor, axis))


def _second_moment(target: Target, calibration: Calibration | None) -> NDArray[np.float64] | None:
    """The second moment of the inputs, if error feedback is asked for and possible."""
    if calibration is None or not target.settings.feedback:
        return None
    record = calibration.get(target.found.name)
    return record.full if isinstance(record, SecondMoment) else None


def _weighting(target: Target, n_features: int, calibration: Calibration) -> dict[str, Any]:
    """What ``ProductQuantizer.compress`` is told of the errors that count."""
    settings, name = target.settings, target.found.name
    record = calibration.get(name)
    if settings.importance is None or record is None:
        return {}
    known: dict[str, Any] = {}
    weights = calibration.row_weights(name)
    if weights is not None:
        known["sample_weight"] = weights
    if isinstance(record, SecondMoment) and settings.importance == "block":
        if settings.rotation is None:  # which mixes what the metric would be about
            block_size = min(settings.block_size, n_features)
            known["importance"] = calibration.block_metric(name, block_size)
    elif not isinstance(record, RowCounts):
        known["importance"] = calibration.column_importance(name)
    return known


def zero_padding_row(found: FoundTensor) -> int | None:
    """The number of an embedding's padding row, if it has one and that is zero."""
    for place in found.unique_places():  # an embedding may be tied to a layer that comes first
        module = place.module
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            row = module.padding_idx
            return None if bool(found.tensor.detach()[row].any()) else int(row)
    return None
