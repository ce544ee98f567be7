"""Parametrizations of one kind in a model: where they are, and how they are taken off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

from pgkmeans_sk.nn.registration import unregister
from pgkmeans_sk.nn.selection import Place, find_tensors

Kind = TypeVar("Kind", bound=nn.Module)


def check_module(module: Any) -> None:
    """Raise unless it is a module.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"Got a module of type {type(module).__name__}, but expected a torch.nn.Module."
        )


def places_of(
    kind: type[Kind], module: nn.Module, *, every_name: bool = False
) -> Iterator[tuple[Place, Kind]]:
    """Where weights have this kind of parametrization.

    Once for each module that has such a weight, or under every name.
    """
    for found in find_tensors(module):
        for place in found.places if every_name else found.unique_places():
            parametrizations = place.parametrizations
            first = None if parametrizations is None else parametrizations._modules.get("0")
            if isinstance(first, kind):
                yield place, first


def remove_all(kind: type[nn.Module], module: nn.Module, called: str) -> None:
    """Take this kind of parametrization off all weights, which are their originals then.

    Modules are as before: the same parameters under the same names in the same order.

    Parameters
    ----------
    kind : type
        Of the parametrization.
    module : Module
        A layer or a model.
    called : str
        The parametrization in messages: what another one is on top of.

    Raises
    ------
    TypeError
        If it is no module.
    ValueError
        If a weight has another parametrization on top. Nothing was changed then.
    """
    check_module(module)
    places = [place for place, _ in places_of(kind, module)]
    for place in places:
        parametrizations = place.parametrizations
        assert parametrizations is not None
        others = [type(other).__name__ for other in list(parametrizations.children())[1:]]
        if others:
            raise ValueError(
                f"Got {place.name!r} with {', '.join(others)} on top of {called}, but expected no "
                "other parametrization: remove that first."
            )
    # In opposite order of registration, so that each module's order of parameters comes back.
    for place in reversed(places):
        lists: Any = place.parametrizations
        unregister(place.module, place.tensor_name, lists.original)
