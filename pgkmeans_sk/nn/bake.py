"""From codebooks back to plain weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from pgkmeans_sk.nn.registration import unregister
from pgkmeans_sk.nn.state import compressed_state

Model = TypeVar("Model", bound=nn.Module)


def bake(model: Model) -> Model:
    """Replace codes and codebooks by the weights that they stand for, in place.

    Afterwards the model is a plain one again: the same classes, names and tied weights, and
    parameters that are the same objects; only the values are those of the code words. Gradients
    of codebooks are dropped. Whatever else is parametrized stays so.

    Parameters
    ----------
    model : Module
        With weights compressed by ``compress_model`` or ``load``.

    Returns
    -------
    model : Module
        The same.

    Raises
    ------
    ValueError
        If a compressed weight has other parametrizations on top.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Linear(64, 64)
    >>> report = nn.compress_model(model, {"defaults": {"n_codes": 16}})
    >>> weight = model.weight
    >>> bool((nn.bake(model).weight == weight).all())
    True
    >>> sorted(model.state_dict())
    ['bias', 'weight']
    """
    states = compressed_state(model)
    for state in states:
        for place in state.places:
            parametrizations = place.parametrizations
            if parametrizations is not None and len(parametrizations._modules) > 1:
                raise ValueError(
                    f"Got {place.name!r} with other parametrizations on top of its codebook, but "
                    "expected them to be removed first."
                )
    with torch.no_grad():
        values = [state.weight.dense(state.original) for state in states]
    baked: set[int] = set()
    for state, value in zip(states, values, strict=True):
        parameter = state.original
        if id(parameter) in baked:  # a codebook that several weights shared is one of them now
            parameter = nn.Parameter(value, parameter.requires_grad)
        baked.add(id(parameter))
        for place in state.unique_places():
            unregister(place.module, place.tensor_name, parameter)
        parameter.grad = None
        parameter.data = value
    return model
