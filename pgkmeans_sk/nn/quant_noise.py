"""Quant-Noise: train a model so that it is used to being quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.nn.counter_noise import stream_key
from pgkmeans_sk.nn.layers import matrix_of
from pgkmeans_sk.nn.noise_kinds import n_bits_of, phi_of
from pgkmeans_sk.nn.noise_targets import NoiseTarget, noise_targets
from pgkmeans_sk.nn.noisy_rows import look_noisy_rows_up
from pgkmeans_sk.nn.noisy_weight import NoisyWeight
from pgkmeans_sk.nn.parametrized import check_module, places_of, remove_all
from pgkmeans_sk.nn.registration import register
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.validation import InvalidParameterError, check_integer, check_number

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def quant_noise(
    module: AnyModule,
    p: float = 0.1,
    kind: str = "proxy",
    *,
    block_size: int | None = None,
    n_codes: int | None = None,
    spec: Spec | TensorSettings | Mapping[str, Any] | None = None,
    seed: int = 0,
    refresh_every: int | None = None,
    scale_survivors: bool = True,
) -> AnyModule:
    """Quantize a random part of the weights at each read in training: Quant-Noise.

    In training mode, each read of a weight (each forward of its layer) draws a share ``p`` of its
    blocks, and replaces them by phi(block), what quantization would make of them, or a stand-in for
    it; the other blocks are exact. So the model learns to do with quantized weights, and yet most
    weights get true gradients. In evaluation mode there is no noise. Weights themselves are never
    written: noise is a ``torch.nn.utils.parametrize`` parametrization, and an optimiser that was
    made before goes on with the same parameters.

    Blocks are consecutive values of a row of the weight's matrix (an output of a linear layer, a
    filter of a convolution, a word of an embedding), as in ``compress_model``. A last block may be
    narrower. The gradient is passed straight through: the weight gets the gradient with respect to
    the noisy weight, unchanged, for all its blocks, whatever the kind.

    Parameters
    ----------
    module : Module
        A layer, or a model: then all weights of linear layers, embeddings, convolutions (transposed
        ones as well) and multi-head attention in it that the spec does not skip. Biases and others
        with one axis are left alone.
    p : float, default=0.1
        Share of the blocks that is replaced, 0 <= p < 1. The paper takes 0.05 to 0.2 for blocks and
        0.5 for "int8".
    kind : {"proxy", "pq", "mean", "int8", "int4", ...}, default="proxy"
        What a block becomes. "proxy": zero, with all others divided by ``1 - p``. "pq": its code
        word in a codebook of the weight, by ``ProductQuantizer``. "mean": the mean of all blocks of
        the weight. "intN", 2 <= N <= 16: rounded to N bits, evenly from the least to the greatest
        value; here each value is drawn on its own.
    block_size : int or None, default=None
        Values of a block. None: as the spec says, or 8.
    n_codes : int or None, default=None
        Code words for "pq". None: as the spec says, or 256. A weight with fewer blocks than that is
        left alone.
    spec : Spec, TensorSettings, dict or None, default=None
        As for ``compress_model``; of its settings, ``block_size``, ``skip`` and ``min_size`` are
        used here, and for "pq" ``n_codes``, ``max_iter``, ``rows_per_code`` and ``codebook_dtype``.
        Its rules win over the arguments above.
    seed : int, default=0
        With the names of the weights, all that noise depends on.
    refresh_every : int or None, default=None
        After so many reads of a weight in training its codebook for "pq" is found anew. None: only
        by ``refresh_codebooks``; once an epoch is enough.
    scale_survivors : bool, default=True
        Whether "proxy" divides blocks that are not replaced by ``1 - p``, so that the weight stays
        the same in the mean.

    Returns
    -------
    module : Module
        The same module.

    Raises
    ------
    ValueError, TypeError
        If an argument is none that is accepted, no weight is found, or one has noise or another
        parametrization already. Nothing was changed then.

    See Also
    --------
    remove_quant_noise : The opposite.
    set_noise_rate : Another ``p``, for schedules.
    refresh_codebooks : New codebooks, for "pq".

    Notes
    -----
    Noise is a function of the seed, the weight's name, and how often the weight was read in
    training mode. The generators of torch are neither used nor changed. The state is in the
    ``state_dict`` (``parametrizations.weight.0.key``, ``n_reads``, ``rate``, and codebooks), so
    that a run that goes on from a checkpoint sees the noise that it would have seen.

    *Reads.* Each read in training mode is a draw, ``layer.weight.shape`` too. A layer that is
    called twice in a forward sees different noise each time, unless
    ``torch.nn.utils.parametrize.cached()`` is around it. Layers that share a weight stay tied; they
    take turns in the draws of one stream. What is read in training mode is a copy: to set a weight,
    write to ``layer.parametrizations.weight.original``, or assign ``layer.weight = tensor``.

    *Embeddings* make only the rows noisy that they are asked for.

    *Checkpointed activations* (``torch.utils.checkpoint``): what is computed again within the
    backward pass sees the last draw again, so that gradients are exact if each weight is read once
    in a forward.

    *Compiled models.* ``torch.compile(fullgraph=True)`` works; another ``p`` needs no compilation
    anew. ``refresh_every`` does nothing there: use ``refresh_codebooks``.

    *DistributedDataParallel.* All replicas draw the same noise: that of the first, whose buffers
    they are given.

    *Names.* While there is noise, a weight's key in the ``state_dict`` is
    ``parametrizations.weight.original``, and it comes behind the bias in ``parameters()``: remove
    noise before a model is saved for others.

    The implementation that was published with the paper writes the noisy weight into the parameter,
    where blocks once dropped stay zero. Its gradient, too, goes to all blocks unchanged.

    References
    ----------
    Fan et al. 2020, "Training with Quantization Noise for Extreme Model Compression",
    arXiv:2004.07320. Its straight-through gradient: Bengio et al. 2013, arXiv:1308.3432.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> layer = torch.nn.Linear(64, 32)
    >>> weight = layer.weight
    >>> layer = nn.quant_noise(layer, p=0.1)
    >>> round(float((layer.weight == 0).float().mean()), 2)  # 25 of 256 blocks
    0.1
    >>> _ = layer.eval()
    >>> layer.weight is weight
    True
    >>> nn.remove_quant_noise(layer).weight is weight
    True
    """
    _check_arguments(module, p, kind, seed, refresh_every, scale_survivors)
    spec = _spec_of(spec, block_size, n_codes)
    targets = noise_targets(module, spec, kind)
    noises = [_noise_for(target, kind, seed, refresh_every, scale_survivors) for target in targets]
    for target, noise in zip(targets, noises, strict=True):
        noise.set_rate(p)
        for place in target.places:
            register(place.module, place.tensor_name, noise)
            look_noisy_rows_up(place.module)
    return module


def remove_quant_noise(module: AnyModule) -> AnyModule:
    """Remove the noise of ``quant_noise`` from all weights of a module.

    Modules are as before: the same parameters under the same names in the same order, of the same
    values but for what an optimiser did. A module without noise is left alone.

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
        If a weight has another parametrization on top of its noise. Nothing was changed then.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> layer = nn.quant_noise(torch.nn.Linear(16, 4), p=0.2)
    >>> list(nn.remove_quant_noise(layer).state_dict())
    ['weight', 'bias']
    """
    remove_all(NoisyWeight, module, "its noise")
    return module


def set_noise_rate(module: nn.Module, p: float) -> None:
    """Set the share of blocks that is replaced in all weights of a module that have noise.

    Parameters
    ----------
    module : Module
        A layer or a model.
    p : float
        As in ``quant_noise``; from the next read on.

    Raises
    ------
    ValueError, TypeError
        If ``p`` is not in [0, 1), or there is no noise in the module.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = nn.quant_noise(torch.nn.Sequential(torch.nn.Linear(16, 4)), p=0.0)
    >>> nn.set_noise_rate(model, 0.1)
    >>> nn.noise_rates(model)
    {'0.weight': 0.1}
    """
    check_module(module)
    _check_rate(p)
    places = list(places_of(NoisyWeight, module))
    if not places:
        raise ValueError("Got a module without noise, but expected one after quant_noise.")
    for _, noise in places:
        noise.set_rate(p)


def noise_rates(module: nn.Module) -> dict[str, float]:
    """The weights of a module that have noise, by name, with the share of blocks replaced.

    Parameters
    ----------
    module : Module
        A layer or a model.

    Returns
    -------
    rates : dict of str to float
        By the names that weights have without noise; tied weights under all their names.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.LayerNorm(4))
    >>> nn.noise_rates(nn.quant_noise(model, p=0.2, kind="int8"))
    {'0.weight': 0.2}
    """
    check_module(module)
    return {place.name: noise.p for place, noise in places_of(NoisyWeight, module, every_name=True)}


def refresh_codebooks(module: nn.Module) -> None:
    """Find the codebooks of noise of kind "pq" anew, for the weights as they are now.

    The same weights give the same codebooks. Other kinds of noise have none, and are left alone.

    Parameters
    ----------
    module : Module
        A layer or a model.

    Raises
    ------
    ValueError
        If a weight has values that are not finite; the message names it.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = nn.quant_noise(torch.nn.Linear(64, 64), p=0.1, kind="pq", n_codes=16)
    >>> nn.refresh_codebooks(model)  # after each epoch
    """
    check_module(module)
    done = set()
    for place, noise in places_of(NoisyWeight, module):
        parametrizations: Any = place.parametrizations
        if id(noise) not in done:
            done.add(id(noise))
            with naming(f"weight {place.name!r}"):
                noise.refresh(parametrizations.original)


# -------------------------------------------------------------------- arguments


def _check_arguments(
    module: Any, p: Any, kind: Any, seed: Any, refresh_every: Any, scale_survivors: Any
) -> None:
    check_module(module)
    _check_rate(p)
    n_bits_of(kind)
    check_integer("seed", seed, 0)
    if refresh_every is not None:
        check_integer("refresh_every", refresh_every, 1)
        if kind != "pq":
            raise ValueError(
                f"Got refresh_every={refresh_every} with kind={kind!r}, but expected None: only "
                "'pq' has codebooks."
            )
    if not isinstance(scale_survivors, bool):
        raise InvalidParameterError(
            f"Got scale_survivors={scale_survivors!r}, but expected true or false."
        )


def _check_rate(p: Any) -> None:
    check_number("p", p, 0.0)
    if p >= 1.0:
        raise InvalidParameterError(f"Got p={p!r}, but expected a share of blocks below 1.")


def _spec_of(spec: Any, block_size: int | None, n_codes: int | None) -> Spec:
    given = {"block_size": block_size, "n_codes": n_codes}
    changes = {name: value for name, value in given.items() if value is not None}
    return Spec.of(spec).with_defaults(**changes)


# -------------------------------------------------------------------- parametrizations


def _noise_for(
    target: NoiseTarget,
    kind: str,
    seed: int,
    refresh_every: int | None,
    scale_survivors: bool,
) -> NoisyWeight:
    matrix = matrix_of(target.parameter.detach(), target.axis)
    block_size = 1 if n_bits_of(kind) else min(target.settings.block_size, matrix.shape[1])
    key = stream_key(seed, target.name)
    with naming(f"weight {target.name!r}"):
        settings = replace(target.settings, block_size=block_size)
        phi = phi_of(kind, matrix, settings, random_state=key % 2**32)
    noise = NoisyWeight(
        phi,
        key=key,
        axis=target.axis,
        block_size=block_size,
        scales_survivors=scale_survivors and kind == "proxy",
        exact_row=target.padding_row,
        refresh_every=refresh_every,
    )
    return noise.to(target.parameter.device)
