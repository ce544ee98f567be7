"""Where the weights of a model are used: in which layers, and under which name each counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate

from torch import Tensor, nn

from pgkmeans_sk.nn.layers import weight_axes
from pgkmeans_sk.nn.selection import find_tensors


@dataclass(frozen=True, eq=False, kw_only=True)
class Use:
    """A weight in one of the layers that use it.

    Attributes
    ----------
    module, tensor_name
        The layer and the name of the weight in it.
    axis : int
        Of the tensor, that becomes the rows of the matrix.
    names : tuple of str
        In the model; several if the layer has several.
    first_name : str
        Of the same tensor, wherever it is: that of its record.
    original : Tensor
        The tensor, or that which it is computed from.
    """

    module: nn.Module
    tensor_name: str
    axis: int
    names: tuple[str, ...]
    first_name: str
    original: Tensor


def uses_of(model: nn.Module) -> list[Use]:
    """All uses of weights by layers of known types."""
    uses = []
    for found in find_tensors(model):
        for place in found.unique_places():
            axis = weight_axes(place.module).get(place.tensor_name)
            if axis is not None:
                same = (place.module, place.tensor_name)
                uses.append(
                    Use(
                        module=place.module,
                        tensor_name=place.tensor_name,
                        axis=axis,
                        names=tuple(
                            p.name for p in found.places if (p.module, p.tensor_name) == same
                        ),
                        first_name=found.name,
                        original=found.tensor,
                    )
                )
    return uses


def chosen(uses: Sequence[Use], names: Iterable[str] | str | None) -> list[Use]:
    """Uses of the tensors that fit one of the globs ``names``, under any of their names.

    Raises
    ------
    ValueError
        If there are none at all, or one of ``names`` fits none.
    """
    if not uses:
        raise ValueError(
            "Got a model without any layer whose input is known, but expected some, such as Linear."
        )
    if names is None:
        return list(uses)
    firsts = set()
    for glob in [names] if isinstance(names, str) else names:
        fits = re.compile(translate(glob)).fullmatch
        found = {use.first_name for use in uses if any(map(fits, (*use.names, use.first_name)))}
        if not found:
            known = ", ".join(name for use in uses for name in use.names)
            raise ValueError(
                f"Got names with {glob!r}, which fits no weight, but expected globs for some of "
                f"{known}."
            )
        firsts |= found
    return [use for use in uses if use.first_name in firsts]
