"""A model's state as files hold it: what is stored as codes, and what as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from pgkmeans_sk.codes.description import CarriedDescription, CompressedDescription
from pgkmeans_sk.nn.selection import DTYPE_NAMES, FoundTensor, Place, Placed, find_tensors
from pgkmeans_sk.nn.stored_weight import StoredLayout, StoredMatrix, StoredWeight

TIES = "pgkmeans_sk.ties"
"""A key of a file's metadata: what names of one tensor mean, if not only that they are equal."""

METADATA = {"format": "pt", TIES: "parameters"}
"""Of the files that ``save`` writes. Other libraries ask for the first."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CompressedState(Placed):
    """A compressed weight of a model.

    Weights that share a codebook are one ``FoundTensor`` by their parameter, and are told apart
    here: each has its own codes. The first of them stores the codebook.
    """

    places: tuple[Place, ...]
    weight: StoredWeight
    original: nn.Parameter
    codebooks_of: str | None = None

    def matrix(self) -> StoredMatrix:
        """The record of its matrix, as a file holds it."""
        return self.weight.to_matrix(self.original)

    def layout(self) -> StoredLayout:
        """Sizes and dtypes of the record's arrays, without making them."""
        return self.weight.stored_layout(self.original)

    def description(self) -> CompressedDescription:
        """What a file says of it."""
        return CompressedDescription(
            shape=self.weight.shape,
            dtype=DTYPE_NAMES[self.original.dtype],
            layout=self.layout(),
            axis=self.weight.axis,
            group_size=self.weight.group_size,
            aliases=self.aliases,
            codebooks_of=self.codebooks_of,
        )


def compressed_state(model: nn.Module) -> list[CompressedState]:
    """All compressed weights, in the order of the model."""
    states: list[CompressedState] = []
    for found in find_tensors(model):
        by_weight: dict[int, list[Place]] = {}
        for place in found.places:
            if place.stored_weight is not None:
                by_weight.setdefault(id(place.stored_weight), []).append(place)
        first = None
        for places in by_weight.values():
            weight, original = places[0].stored_weight, found.tensor
            assert weight is not None
            assert isinstance(original, nn.Parameter)
            state = CompressedState(
                places=tuple(places), weight=weight, original=original, codebooks_of=first
            )
            states.append(state)
            if weight.original_is_codebook:
                first = first or state.name
    return states


def carried_state(model: nn.Module) -> list[FoundTensor]:
    """All other parameters and persistent buffers.

    Those of parametrizations that are not of this package have the names that they have in the
    model's ``state_dict``, and come last.
    """
    places: dict[int, list[Place]] = {}
    tensors: dict[int, Tensor] = {}
    for place, tensor in _carried_places(model):
        places.setdefault(id(tensor), []).append(place)
        tensors[id(tensor)] = tensor
    return [FoundTensor(places=tuple(p), tensor=tensors[key]) for key, p in places.items()]


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


def unknown_state(model: nn.Module) -> list[str]:
    """Keys of a model's ``state_dict`` that are neither compressed nor carried."""
    known = {name for found in carried_state(model) for name in found.names}
    ours = tuple(
        f"{place.name.removesuffix(place.tensor_name)}parametrizations.{place.tensor_name}."
        for found in find_tensors(model)
        for place in found.places
        if place.parametrizations is not None and not is_foreign(place)
    )
    keys = model.state_dict(keep_vars=True)
    return [key for key in keys if key not in known and not key.startswith(ours)]


def is_foreign(place: Place) -> bool:
    """Whether a tensor is parametrized by something that is not of this package."""
    parametrizations = place.parametrizations
    if parametrizations is None or place.stored_weight is not None:
        return False
    return not all(getattr(part, "is_noise", False) for part in parametrizations.children())


def _carried_places(model: nn.Module) -> Iterator[tuple[Place, Tensor]]:
    for found in find_tensors(model):
        for place in found.places:
            if place.stored_weight is None and not is_foreign(place):
                yield place, found.tensor
    for prefix, module in model.named_modules(remove_duplicate=False):
        lists = module._modules.get("parametrizations")
        if lists is None or "parametrizations" in prefix.split("."):
            continue
        dot = f"{prefix}." if prefix else ""
        for name, parametrizations in lists._modules.items():
            if parametrizations is not None and is_foreign(Place(module, name, dot + name)):
                yield from _tensors_in(parametrizations, f"{dot}parametrizations.{name}")


def _tensors_in(module: nn.Module, prefix: str) -> Iterator[tuple[Place, Tensor]]:
    for inner, part in module.named_modules(prefix=prefix, remove_duplicate=False):
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and name not in part._non_persistent_buffers_set:
                yield Place(part, name, f"{inner}.{name}"), tensor
