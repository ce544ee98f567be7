"""DiffQ: groups of a weight's values learn how many bits they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from pgkmeans_sk.codes.packing import MAX_BITS
from pgkmeans_sk.nn.counter_noise import stream_key
from pgkmeans_sk.nn.diffq_weight import NOISES, DiffQWeight
from pgkmeans_sk.nn.dtypes import work_dtype
from pgkmeans_sk.nn.noise_targets import NoiseTarget, noise_targets
from pgkmeans_sk.nn.noisy_rows import look_noisy_rows_up
from pgkmeans_sk.nn.parametrized import check_module, places_of, remove_all
from pgkmeans_sk.nn.registration import register
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.validation import (
    InvalidParameterError,
    check_choice,
    check_integer,
    check_integer_between,
    check_number,
)

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def diffq(
    module: AnyModule,
    *,
    group_size: int = 8,
    min_bits: int = 2,
    max_bits: int = 15,
    init_bits: float = 8,
    noise: str = "uniform",
    spec: Spec | TensorSettings | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> AnyModule:
    """Let the weights of a model learn how many bits they need: DiffQ.

    Consecutive values of a weight form groups, and each group has a number of bits that is learned
    together with the weight::

        bits = min_bits + sigmoid(logit) * (max_bits - min_bits)

    In training mode, each read of the weight adds noise as large as the rounding error of so many
    bits: ``step * eps``, with ``step = (max - min) / (2 ** bits - 1)`` over the whole weight. That
    can be differentiated: the weight gets the gradient unchanged, and bits that do harm when they
    are few get a gradient upwards. ``penalty_mb``, added to the loss, pulls them down. In
    evaluation mode bits are whole numbers and values are rounded to one of ``2 ** bits`` evenly
    spaced levels, and that is what ``save`` writes, packed without gaps at any width.

    Weights themselves are never written: this is a ``torch.nn.utils.parametrize`` parametrization,
    and an optimiser that was made before goes on with the same weights. Logits are new parameters:
    make the optimiser with ``diffq_parameter_groups``.

    Parameters
    ----------
    module : Module
        A layer, or a model: then all weights of linear layers, embeddings, convolutions and
        multi-head attention in it that the spec does not skip.
    group_size : int, default=8
        Values of a group; 8 or 16 in the paper. Groups go across the rows of the weight's matrix;
        the last one of a weight may have fewer values.
    min_bits, max_bits : int, default=2, 15
        Least and greatest bits, 1 to 16.
    init_bits : float, default=8
        Of all groups at first, between these two.
    noise : {"uniform", "gaussian"}, default="uniform"
        Distribution of ``eps``: uniform in [-1/2, 1/2], or normal with a standard deviation of 1/2.
    spec : Spec, TensorSettings, dict or None, default=None
        As for ``compress_model``; of its settings, ``skip`` and ``min_size`` are used.
    seed : int, default=0
        With the names of the weights and the number of reads, all that noise depends on.

    Returns
    -------
    module : Module
        The same module.

    Raises
    ------
    ValueError, TypeError
        If an argument is none that is accepted, no weight is found, or one has another
        parametrization already or values that are not finite. Nothing was changed then.

    See Also
    --------
    penalty_mb : The size of the file, for the loss.
    diffq_parameter_groups : Weights and logits for an optimiser.
    diffq_bits : How many bits there are now.
    bake : The rounded weights as plain ones. ``remove_diffq`` : the weights as they are trained.

    Notes
    -----
    *Side information* is a range for each weight and a number for each group that says which of the
    widths in use it has: for groups of 8, half a bit a weight with 9 to 16 different widths, and
    nothing with one.

    *Noise* is a function of the seed, the weight's name, and how often the weight was read in
    training mode; torch's generators are neither used nor changed. It goes on from a
    ``state_dict``. Each read in training mode is a draw. Layers that share a weight take turns in
    the draws of one stream. What ``torch.utils.checkpoint`` computes again sees the last draw.

    *Embeddings* compute only the rows they are asked for. A row for padding is rounded like all
    others, so that its zeros become the nearest level.

    *Loading.* A file that ``save`` wrote is loaded as levels that do not change any more
    (``LevelWeight``); the ``state_dict`` keeps weights and logits, to go on with training.

    References
    ----------
    Défossez, Adi and Synnaeve 2021, "Differentiable Model Compression via Pseudo Quantization
    Noise", arXiv:2104.09987.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = nn.diffq(torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8)))
    >>> optimizer = torch.optim.AdamW(nn.diffq_parameter_groups(model), lr=1e-3)
    >>> loss = model(torch.ones(4, 64)).square().mean() + 0.1 * nn.penalty_mb(model)
    >>> loss.backward()
    >>> optimizer.step()
    >>> nn.diffq_bits(model)
    {'0.weight': 8.0, '1.weight': 8.0}
    """
    _check_arguments(module, group_size, min_bits, max_bits, init_bits, noise, seed)
    targets = noise_targets(module, Spec.of(spec), "diffq")
    for target in targets:
        _check_values(target)
    for target in targets:
        shape = tuple(target.parameter.shape)
        weight = DiffQWeight(
            shape,
            target.axis,
            group_size=min(int(group_size), target.parameter.numel()),
            min_bits=int(min_bits),
            max_bits=int(max_bits),
            init_bits=float(init_bits),
            noise=noise,
            key=stream_key(seed, target.name),
            dtype=work_dtype(target.parameter.dtype),
        ).to(target.parameter.device)
        weight.train(target.places[0].module.training)
        for place in target.places:
            register(place.module, place.tensor_name, weight)
            look_noisy_rows_up(place.module)
    return module


def remove_diffq(module: AnyModule) -> AnyModule:
    """Remove learned bits from all weights of a module; the weights stay as they are trained.

    Modules are as before ``diffq``: the same parameters under the same names in the same order.
    ``bake`` is what leaves the rounded weights. A module without learned bits is left alone.

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
    >>> layer = nn.diffq(torch.nn.Linear(16, 4))
    >>> list(nn.remove_diffq(layer).state_dict())
    ['weight', 'bias']
    """
    remove_all(DiffQWeight, module, "its learned bits")
    return module


def diffq_bits(module: nn.Module) -> dict[str, float]:
    """The bits that a value of each weight has in the mean, rounded as they are stored.

    Parameters
    ----------
    module : Module
        After ``diffq``.

    Returns
    -------
    bits : dict of str to float
        By the names that weights have without parametrizations; tied ones under all their names.
        Without side information.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> nn.diffq_bits(nn.diffq(torch.nn.Linear(16, 4), init_bits=5.6))
    {'weight': 6.0}
    """
    check_module(module)
    found = {}
    for place, weight in places_of(DiffQWeight, module, every_name=True):
        counts = weight.group_counts()
        found[place.name] = float((weight.widths() * counts).sum() / counts.sum())
    return found


def diffq_parameter_groups(
    module: nn.Module, *, logit_lr: float = 1e-3, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Parameters in two groups for an optimiser: all weights, and the logits of bits.

    Parameters
    ----------
    module : Module
        After ``diffq``.
    logit_lr : float, default=1e-3
        Learning rate of logits: that of the paper, for Adam. They have no weight decay.
    weight_decay : float, default=None
        Of all other parameters. None: that of the optimiser.

    Returns
    -------
    groups : list of two dicts
        For ``torch.optim.AdamW(groups, lr=...)`` and others.

    Raises
    ------
    ValueError
        If no weight has learned bits, or a number is out of range.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = nn.diffq(torch.nn.Linear(16, 4))
    >>> optimizer = torch.optim.AdamW(nn.diffq_parameter_groups(model), lr=1e-4)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.0001, 0.001]
    """
    check_module(module)
    check_number("logit_lr", logit_lr, 0.0)
    if weight_decay is not None:
        check_number("weight_decay", weight_decay, 0.0)
    logits = {id(weight.logits): weight.logits for _, weight in places_of(DiffQWeight, module)}
    if not logits:
        raise ValueError("Got a module without learned bits, but expected one after diffq.")
    others: dict[str, Any] = {"params": [p for p in module.parameters() if id(p) not in logits]}
    if weight_decay is not None:
        others["weight_decay"] = weight_decay
    return [others, {"params": list(logits.values()), "lr": logit_lr, "weight_decay": 0.0}]


# -------------------------------------------------------------------- arguments


def _check_arguments(
    module: Any,
    group_size: Any,
    min_bits: Any,
    max_bits: Any,
    init_bits: Any,
    noise: Any,
    seed: Any,
) -> None:
    check_module(module)
    check_integer("group_size", group_size, 1)
    check_integer_between("min_bits", min_bits, 1, MAX_BITS - 1)
    check_integer_between("max_bits", max_bits, int(min_bits) + 1, MAX_BITS)
    check_number("init_bits", init_bits, 0.0)
    if not min_bits < init_bits < max_bits:
        raise InvalidParameterError(
            f"Got init_bits={init_bits!r}, but expected more than min_bits={min_bits} and less "
            f"than max_bits={max_bits}."
        )
    check_choice("noise", noise, NOISES)
    check_integer("seed", seed, 0)


def _check_values(target: NoiseTarget) -> None:
    weight = target.parameter.detach()
    if not weight.is_meta and not bool(torch.isfinite(weight).all()):
        raise ValueError(f"Got {target.name!r} with NaN or infinity, but expected finite values.")
