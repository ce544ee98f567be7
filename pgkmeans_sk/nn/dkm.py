"""dkm: weights trained by differentiable k-means, and taken back from it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import nn

from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.nn.compress import check_arguments, check_targets
from pgkmeans_sk.nn.dkm_weight import DISTANCES, DKMSettings, DKMWeight
from pgkmeans_sk.nn.layers import matrix_of
from pgkmeans_sk.nn.levels import work_dtype
from pgkmeans_sk.nn.model_report import ModelReport, report_on
from pgkmeans_sk.nn.presets import resolved_spec
from pgkmeans_sk.nn.registration import register, unregister
from pgkmeans_sk.nn.selection import Place, Target, find_targets, find_tensors, names_with_types
from pgkmeans_sk.nn.soft_gradients import BACKWARDS
from pgkmeans_sk.nn.soft_kmeans import nearest
from pgkmeans_sk.nn.weight_matrices import compressed_alone
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.validation import (
    InvalidParameterError,
    check_choice,
    check_integer,
    check_integer_between,
    check_number,
)

AnyModule = TypeVar("AnyModule", bound=nn.Module)

MOST_BITS = 16

TAU_FACTOR = 1.0
"""Of tau="auto": times the mean squared distance of blocks from their centroids at the start."""


def dkm(
    model: nn.Module,
    bits: int = 4,
    block_size: int = 1,
    *,
    tau: float | str = "auto",
    max_iter: int = 5,
    tol: float = 1e-4,
    backward: str = "unrolled",
    distance: str = "squared",
    spec: Spec | TensorSettings | Mapping[str, Any] | str | PathLike[str] | None = None,
    random_state: int | None = 0,
) -> ModelReport:
    """Train the weights of a model by differentiable k-means (DKM), in place."""
    begin = time.perf_counter()
    settings = _checked(model, bits, block_size, tau, max_iter, tol, backward, distance)
    check_arguments(None, "mean", random_state)
    resolved = resolved_spec(spec, model, has_calibration=False)
    resolved = resolved.with_defaults(block_size=int(block_size), n_codes=2 ** int(bits))
    targets = find_targets(model, resolved)
    chosen = [target for target in targets if target.layout is not None]
    _check_chosen(model, targets, chosen)
    weights: dict[str, DKMWeight] = {}
    seconds: dict[str, float] = {}
    for target in chosen:
        start = time.perf_counter()
        weights[target.found.name] = _weight_for(target, tau, settings, random_state)
        seconds[target.found.name] = time.perf_counter() - start
    for target in chosen:
        weight = weights[target.found.name]
        weight.train(target.found.places[0].module.training)
        for place in target.found.unique_places():
            register(place.module, place.tensor_name, weight)
    names = names_with_types(model)
    return report_on(
        model,
        reasons={name: t.reason for t in targets for name in t.found.names},
        seconds=seconds,
        unused_rules=tuple(map(str, resolved.unused_rules(names))),
        total_seconds=time.perf_counter() - begin,
    )


def remove_dkm(module: AnyModule) -> AnyModule:
    """Take differentiable k-means from all weights of a module that ``dkm`` gave it to."""
    check_module(module)
    places = list(_places(module))
    for place in places:
        parametrizations: Any = place.parametrizations
        others = [type(other).__name__ for other in list(parametrizations.children())[1:]]
        if others:
            raise ValueError(
                f"Got {place.name!r} with {', '.join(others)} on top of DKM, but expected no other "
                "parametrization: remove that first."
            )
    # In opposite order of registration, so that each module's order of parameters comes back.
    for place in reversed(places):
        lists: Any = place.parametrizations
        unregister(place.module, place.tensor_name, lists.original)
    return module


def check_module(module: Any) -> None:
    """Raise unless it is a module."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"Got a module of type {type(module).__name__}, but expected a torch.nn.Module."
        )


# -------------------------------------------------------------------- arguments


def _checked(
    model: Any,
    bits: Any,
    block_size: Any,
    tau: Any,
    max_iter: Any,
    tol: Any,
    backward: Any,
    distance: Any,
) -> DKMSettings:
    check_module(model)
    check_integer_between("bits", bits, 1, MOST_BITS)
    check_integer("block_size", block_size, 1)
    if isinstance(tau, str):
        if tau != "auto":
            raise InvalidParameterError(f"Got tau={tau!r}, but expected 'auto' or a number > 0.")
    else:
        check_number("tau", tau, 0.0, strictly=True)
    check_integer("max_iter", max_iter, 1)
    check_number("tol", tol, 0.0)
    check_choice("backward", backward, BACKWARDS)
    check_choice("distance", distance, DISTANCES)
    return DKMSettings(max_iter=int(max_iter), tol=float(tol), backward=backward, distance=distance)


def _check_chosen(model: nn.Module, targets: list[Target], chosen: list[Target]) -> None:
    if not chosen:
        reasons = "; ".join(f"{t.found.name}: {t.reason}" for t in targets)
        raise ValueError(
            f"Got a {type(model).__name__} without weights that could be clustered, but expected a "
            f"layer, or a model with some{f' ({reasons})' if reasons else ''}."
        )
    check_targets(targets, has_calibration=False)
    for target in chosen:
        name, settings = target.found.name, target.settings
        for place in target.found.places:
            if place.parametrizations is not None:
                raise ValueError(
                    f"Got {place.name!r} with Quant-Noise, but expected a plain weight: "
                    "remove_quant_noise first."
                )
        for option, plain in (
            ("codebook", "shared"),
            ("n_stages", 1),
            ("rotation", None),
            ("scale", None),
            ("group", None),
        ):
            if getattr(settings, option) != plain:
                raise ValueError(
                    f"Got {option}={getattr(settings, option)!r} for {name!r}, but expected "
                    f"{plain!r}: DKM is about plain blocks with one codebook for each weight."
                )


# -------------------------------------------------------------------- parametrizations


def _weight_for(
    target: Target, tau: float | str, settings: DKMSettings, random_state: int | None
) -> DKMWeight:
    parameter, axis = target.found.tensor, target.axis
    matrix = compressed_alone(target, None, random_state)
    words = matrix.decoder.codebooks[0, 0]
    wide = work_dtype(parameter.dtype)
    centroids = torch.from_numpy(words.astype("float64")).to(parameter.device, wide)
    with naming(f"weight {target.found.name!r}"):
        if tau == "auto":
            tau = _fitting_tau(matrix_of(parameter.detach(), axis).to(wide), centroids, settings)
        return DKMWeight(
            centroids,
            shape=tuple(parameter.shape),
            axis=axis,
            tau=float(tau),
            settings=settings,
            stored_dtype=words.dtype,
            zero_row=_zero_row(target),
        )


def _fitting_tau(rows: torch.Tensor, centroids: torch.Tensor, settings: DKMSettings) -> float:
    """What ``tau="auto"`` means for a weight's matrix and the centroids of the start."""
    size = centroids.shape[1]
    blocks = rows[:, : rows.shape[1] // size * size].reshape(-1, size)
    errors = blocks - centroids[nearest(blocks, centroids)]
    sq_error = float(errors.square().sum(1).mean(dtype=torch.float64))
    if sq_error == 0.0:  # every block is a centroid: far less than between centroids will do
        sq_error = 1e-6 * float(centroids.square().sum(1).mean()) or 1.0
    tau = TAU_FACTOR * sq_error
    return tau if settings.distance == "squared" else tau**0.5


def _zero_row(target: Target) -> int | None:
    """The row of an embedding that stands for padding, if it is zero."""
    for place in target.found.places:
        if isinstance(place.module, nn.Embedding | nn.EmbeddingBag):
            row = place.module.padding_idx
            if row is not None and not bool(target.found.tensor.detach()[row].any()):
                return int(row)
    return None


def _places(module: nn.Module) -> Iterator[Place]:
    """Where there is DKM, once for each module that has the weight."""
    for found in find_tensors(module):
        for place in found.unique_places():
            if isinstance(place.stored_weight, DKMWeight):
                yield place
