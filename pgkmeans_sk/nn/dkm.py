"""dkm: weights trained by differentiable k-means, and taken back from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import sqrt
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import nn

from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.nn.compress import check_arguments, check_targets
from pgkmeans_sk.nn.devices import words_on
from pgkmeans_sk.nn.dkm_weight import DISTANCES, DKMSettings, DKMWeight
from pgkmeans_sk.nn.dtypes import work_dtype
from pgkmeans_sk.nn.layers import matrix_of
from pgkmeans_sk.nn.model_report import ModelReport, report_on
from pgkmeans_sk.nn.parametrized import check_module, remove_all
from pgkmeans_sk.nn.presets import resolved_spec
from pgkmeans_sk.nn.registration import register
from pgkmeans_sk.nn.selection import Target, find_targets, names_with_types
from pgkmeans_sk.nn.soft_gradients import BACKWARDS
from pgkmeans_sk.nn.soft_kmeans import nearest
from pgkmeans_sk.nn.weight_matrices import weight_job, zero_padding_row
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

TAU_FACTOR = 0.5
"""Of tau="auto": times the mean squared distance of blocks from their centroids at the start, over
the root of their size.

Centroids merge when tau is beyond about 4 times the squared error of a single value, whatever the
size of blocks: relative to the distance of whole blocks, large ones can bear less."""


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
    """Let the weights of a model be trained by differentiable k-means (DKM), in place.

    Each weight becomes a parametrization (``DKMWeight``). In training mode a block of the weight is
    not one centroid but the mean of all of them, weighted by its attention to each; attention and
    centroids are functions of the weight, so that the weight is trained towards values that lose
    little when they are quantized, and towards centroids that serve the task. In evaluation mode
    each block is its nearest centroid: exactly what ``save`` writes, as codes. ``bake`` makes a
    plain model of it, ``remove_dkm`` takes DKM away and leaves the weight as it was trained.

    The parameter stays the same object and dense, so an optimiser that was made before goes on with
    it, and it is never written here.

    Parameters
    ----------
    model : Module
        A layer or a model, trained already: then all weights that ``compress_model`` would take.
    bits : int, default=4
        Bits of a code, 1 to 16: there are ``2**bits`` centroids. A weight takes
        ``bits / block_size`` bits: papers write "4/8" for half a bit.
    block_size : int, default=1
        Values of a block: consecutive ones of a row of the weight's matrix. What is left of a row
        is a narrower block, which is assigned by the first values of centroids, and moves none.
    tau : float or "auto", default="auto"
        The temperature of attention: a number is absolute, for all weights, in units of the squared
        distance (or of the distance). "auto": for each weight, half the mean squared distance of
        its blocks from their centroids at the start, over the root of ``block_size`` (or the root
        of all that). It stays the same while the weight is trained.
    max_iter : int, default=5
        Iterations of a read at most, 1 or more.
    tol : float, default=1e-4
        They end when centroids move by no more than that, relative to their spread.
    backward : {"unrolled", "implicit", "jfb"}, default="unrolled"
        How gradients get from the centroids to the weight.

        - "unrolled": through all iterations of the read (DKM).
        - "implicit": through the fixed point that they lead to (IDKM). It is exact if they do get
          there, which takes more than 5 iterations at first; but each read begins where the last
          one ended.
        - "jfb": through the last iteration only: the cheapest.
    distance : {"squared", "euclidean"}, default="squared"
        What attention is the softmax of: the negative squared distance, or distance, over ``tau``.
    spec : Spec, TensorSettings, dict, path of a YAML file, "ipq" or None, default=None
        Which weights are taken, by rules; of their settings, ``skip``, ``min_size``,
        ``block_size``, ``n_codes`` and ``codebook_dtype`` are used here, and ``max_iter`` and
        ``rows_per_code`` for the start. Rules win over the arguments above, defaults for
        ``block_size`` and ``n_codes`` do not.
    random_state : int or None, default=0
        Of the k-means that the start is from; for ``block_size=1`` it is the optimum, whatever the
        number. Nothing else is random.

    Returns
    -------
    report : ModelReport
        What the model would be if it was saved now: bytes, errors, and why tensors were left as
        they are. Prints as a table.

    Raises
    ------
    ValueError, TypeError
        If an argument is none that is accepted, there is no weight, or one has Quant-Noise. The
        model was not changed then.

    Warns
    -----
    RuntimeWarning
        In a backward pass with "implicit", if the linear system for the gradient is not nearly
        solved after 16 passes over the weight: what was found is used, which is nearer to the
        solution than "jfb".

    See Also
    --------
    remove_dkm : The opposite.
    compress_model : Codes without training, or before it.

    Notes
    -----
    *Memory.* Attention is computed for a tile of blocks at a time, and once more in the backward
    pass: what a read needs is a few copies of the weight, not ``max_iter`` times blocks times
    centroids, for all three kinds of ``backward``. Of weights in 16 bits with ``block_size=1``
    equal values are one, so that there are 65 536 at most; results are the same.

    *Temperature.* Far above the squared error, centroids merge, and what is trained has little to
    do with what is stored. Far below it attention is hard, and a weight is trained by its
    centroid only: then this is little more than fine-tuning of a codebook. On a small network for
    digits "auto" was within 0.3 points of the best of many factors, from 1 to 8 values in a block;
    8 times as much lost 2 points and more.

    *The implicit gradient.* If C = F(C, W) is the fixed point of an iteration, and v a gradient
    with respect to C, that with respect to W is ``(dF/dW)^T u`` with ``u = v + (dF/dC)^T u``. Up to
    256 numbers in all centroids dF/dC is formed in one pass, else it is only applied; either way u
    is found by minimal residuals (GMRES), to a relative residual of 1e-3, or 1e-10 in float64.
    Taking u = v is "jfb".

    *Reads.* Each read in training mode moves the centroids that the ``state_dict`` carries
    (``parametrizations.weight.0.centroids``), ``layer.weight.shape`` too. Layers that share a
    weight stay tied and take turns; ``torch.nn.utils.parametrize.cached()`` is for reading once.
    Checkpointed activations are right if each weight is read once in a forward.

    *Evaluation mode* assigns blocks anew at each read; ``cached`` keeps them. There is no gradient
    for weights then.

    *Compiled models.* ``torch.compile`` works, but breaks the graph at each iteration, where it is
    asked whether centroids rest.

    *Padding.* A padding row of zeros of an embedding stays one.

    References
    ----------
    Cho et al. 2022, "DKM: Differentiable K-Means Clustering Layer for Neural Network Compression",
    arXiv:2108.12659. Cho et al. 2023, "eDKM", arXiv:2309.00964. Jaffe et al. 2023, "IDKM",
    arXiv:2312.07759.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
    >>> report = nn.dkm(model, bits=2, backward="jfb")
    >>> [(tensor.name, tensor.stored_bytes) for tensor in report.compressed]  # 2 bits and 4 values
    [('0.weight', 520), ('1.weight', 72)]
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> loss = model(torch.ones(5, 64)).square().mean()
    >>> loss.backward()
    >>> optimizer.step()
    >>> len(model[0].weight.unique()) > 4  # soft in training
    True
    >>> len(model.eval()[0].weight.unique())
    4
    """
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
    """Take differentiable k-means from all weights of a module that ``dkm`` gave it to.

    Weights are the parameters themselves again, dense, as they were trained; for those that are
    stored, see ``bake``. A module without DKM is left alone.

    Parameters
    ----------
    module : Module
        A layer or a model.

    Returns
    -------
    module : Module
        The same module.

    Raises
    ------
    ValueError
        If a weight has another parametrization on top. Nothing was changed then.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> layer = torch.nn.Linear(16, 64)
    >>> weight = layer.weight
    >>> report = nn.dkm(layer, bits=2)
    >>> nn.remove_dkm(layer).weight is weight
    True
    """
    remove_all(DKMWeight, module, "DKM")
    return module


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
    matrix = weight_job(target, None, random_state)()[target.found.name]
    words = matrix.decoder.codebooks[0, 0]
    wide = work_dtype(parameter.dtype)
    centroids = words_on(words, parameter.device, wide)
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
            zero_row=zero_padding_row(target.found),
        )


def _fitting_tau(rows: torch.Tensor, centroids: torch.Tensor, settings: DKMSettings) -> float:
    """What ``tau="auto"`` means for a weight's matrix and the centroids of the start."""
    size = centroids.shape[1]
    blocks = rows[:, : rows.shape[1] // size * size].reshape(-1, size)
    errors = blocks - centroids[nearest(blocks, centroids)]
    sq_error = float(errors.square().sum(1).mean(dtype=torch.float64))
    if sq_error == 0.0:  # every block is a centroid: far less than between centroids will do
        sq_error = 1e-6 * float(centroids.square().sum(1).mean()) or 1.0
    tau = TAU_FACTOR * sq_error / sqrt(size)
    return tau if settings.distance == "squared" else sqrt(tau)
