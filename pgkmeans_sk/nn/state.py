"""A model's state as files hold it: what is stored as codes, and what as it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pgkmeans_sk.codes.description import CarriedDescription, CompressedDescription
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_layout import layout_of
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.selection import DTYPE_NAMES, FoundTensor, Place, find_tensors, unique_places


@dataclass(frozen=True, eq=False, kw_only=True)
class CompressedState:
    """A compressed weight of a model.

    Weights that share a codebook are one ``FoundTensor`` by their parameter, and are told apart
    here: each has its own codes.
    """

    places: tuple[Place, ...]
    weight: CodebookWeight
    codebook: nn.Parameter

    @property
    def name(self) -> str:
        """The first name."""
        return self.places[0].name

    @property
    def aliases(self) -> tuple[str, ...]:
        """All other names."""
        return tuple(place.name for place in self.places[1:])

    def unique_places(self) -> tuple[Place, ...]:
        """One place for each module that has it, whatever the number of its names."""
        return unique_places(self.places)

    def matrix(self) -> CompressedMatrix:
        """Its codes and codebook as arrays."""
        return self.weight.to_matrix(self.codebook)

    def description(self) -> CompressedDescription:
        """What a file says of it."""
        return CompressedDescription(
            shape=self.weight.shape,
            dtype=DTYPE_NAMES[self.codebook.dtype],
            layout=layout_of(self.matrix()),
            axis=self.weight.axis,
            aliases=self.aliases,
        )


def compressed_state(model: nn.Module) -> list[CompressedState]:
    """All compressed weights, in the order of the model."""
    states = []
    for found in find_tensors(model):
        by_weight: dict[int, list[Place]] = {}
        for place in found.places:
            if place.codebook_weight is not None:
                by_weight.setdefault(id(place.codebook_weight), []).append(place)
        for places in by_weight.values():
            weight, codebook = places[0].codebook_weight, found.tensor
            assert weight is not None
            assert isinstance(codebook, nn.Parameter)
            states.append(CompressedState(places=tuple(places), weight=weight, codebook=codebook))
    return states


def carried_state(model: nn.Module) -> list[FoundTensor]:
    """All other parameters and persistent buffers, in the order of the model."""
    return [found for found in find_tensors(model) if found.places[0].codebook_weight is None]


def carried_description(found: FoundTensor) -> CarriedDescription:
    """What a file says of a tensor that it holds as it is.

    Raises
    ------
    ValueError
        If no file can hold its dtype.
    """
    dtype = found.tensor.dtype
    if dtype not in DTYPE_NAMES:
        raise ValueError(
            f"Got {found.name!r} of dtype {dtype}, but expected one of "
            f"{', '.join(map(str, DTYPE_NAMES))}."
        )
    return CarriedDescription(
        shape=tuple(found.tensor.shape), dtype=DTYPE_NAMES[dtype], aliases=found.aliases
    )
