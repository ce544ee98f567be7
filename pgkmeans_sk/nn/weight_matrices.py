"""Weights of a model as jobs: alone, with what a calibration knows, or in groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.feedback import compress_with_feedback
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.devices import host_matrix
from pgkmeans_sk.nn.drift_sums import DriftedInputs
from pgkmeans_sk.nn.layers import matrix_of
from pgkmeans_sk.nn.moments import RowCounts, SecondMoment
from pgkmeans_sk.nn.selection import FoundTensor, Target
from pgkmeans_sk.quiet import no_convergence_warnings
from pgkmeans_sk.weight_jobs import GroupJob, WeightJob


def weight_job(
    target: Target, calibration: Calibration | None, random_state: int | None
) -> WeightJob:
    """The job of one weight."""
    found, name = target.found, target.found.name
    rows = rows_of(found, target.axis)
    moment = _second_moment(target, calibration)
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
        zero_row=zero_padding_row(found),
    )


def group_job(group: list[Target], random_state: int | None) -> GroupJob:
    """The job of several weights with one codebook."""
    settings = group[0].settings
    return GroupJob(
        title=f"group {settings.group!r}",
        rows={target.found.name: rows_of(target.found, target.axis) for target in group},
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
