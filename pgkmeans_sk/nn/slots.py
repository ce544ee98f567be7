"""The tensors of a model that a file may fill, and which of them go with which of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pgkmeans_sk.codes.description import CarriedDescription, CompressedDescription
from pgkmeans_sk.codes.stored_file import StoredFile
from pgkmeans_sk.nn.selection import DTYPE_NAMES, Place, Placed
from pgkmeans_sk.nn.state import carried_state, compressed_state
from pgkmeans_sk.nn.stored_weight import StoredWeight


@dataclass(frozen=True, eq=False, kw_only=True)
class Slot(Placed):
    """A tensor of a model, with all its places.

    Attributes
    ----------
    places : tuple of Place
        Where it is; the first gives the name.
    tensor : Tensor
        The parameter or buffer; of a compressed weight, its original.
    weight : StoredWeight or None
        The parametrization of a compressed weight.
    """

    places: tuple[Place, ...]
    tensor: Tensor
    weight: StoredWeight | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor that a file has for it."""
        return tuple(self.tensor.shape) if self.weight is None else self.weight.shape

    @property
    def dtype(self) -> str:
        """Its dtype as files name it."""
        return DTYPE_NAMES.get(self.tensor.dtype, str(self.tensor.dtype))

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter, not a buffer."""
        return isinstance(self.tensor, nn.Parameter)

    @property
    def can_be_compressed(self) -> bool:
        """Whether a codebook can take its place.

        Recurrent layers read their weights past any parametrization, buffers are not trained, and
        what belongs to another parametrization is left to it.
        """
        kinds = nn.RNNBase, nn.utils.parametrize.ParametrizationList
        return self.is_parameter and not any(isinstance(p.module, kinds) for p in self.places)

    def problem(self) -> str | None:
        """Why nothing can be loaded there; None if it can."""
        tensor = self.tensor
        expected = "but expected a tensor that can be written to"
        if is_lazy(tensor):
            return f"{self.name!r}: got a parameter that has no shape yet, {expected}"
        if tensor.layout != torch.strided or tensor.is_quantized or _is_of_own_class(tensor):
            return f"{self.name!r}: got a {type(tensor).__name__} of {tensor.layout}, {expected}"
        if any(n > 1 and not step for n, step in zip(tensor.shape, tensor.stride(), strict=True)):
            return f"{self.name!r}: got a tensor that has one value in many places, {expected}"
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            return f"{self.name!r}: got a tensor made in inference mode, {expected}"
        for place in self.places:
            lists = place.parametrizations
            if lists is not None and len(list(lists.children())) > 1:
                kinds = ", ".join(type(part).__name__ for part in list(lists.children())[1:])
                return (
                    f"{place.name!r}: got {kinds} on top of its first parametrization, but "
                    "expected no other: remove it first"
                )
        return None


@dataclass(frozen=True, eq=False, kw_only=True)
class Match:
    """Tensors of a file and of a model that have names in common, directly or in a row of ties.

    Attributes
    ----------
    stored : tuple of str
        Names of tensors in the file: several are one tensor in the model.
    slots : tuple of Slot
        Of the model: several are one tensor in the file.
    """

    stored: tuple[str, ...]
    slots: tuple[Slot, ...]


def find_slots(model: nn.Module) -> list[Slot]:
    """All tensors of a model's state."""
    compressed = [
        Slot(places=state.places, tensor=state.original, weight=state.weight)
        for state in compressed_state(model)
    ]
    return compressed + [
        Slot(places=found.places, tensor=found.tensor) for found in carried_state(model)
    ]


def find_matches(
    slots: Sequence[Slot], file: StoredFile, rename: Callable[[str], str] = str
) -> tuple[list[Match], list[Slot], list[str]]:
    """Which slots go with which tensors of a file, slots without one, and names without a slot.

    Matches are in the order of the file. It is enough if a tensor has one of its names in common
    with a slot: who stores tied weights may leave out all names but one. ``rename`` gives names of
    the file as the model has them.
    """
    by_name = {place.name: number for number, slot in enumerate(slots) for place in slot.places}
    parents = list(range(len(slots)))

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    first: dict[str, int] = {}
    unexpected = []
    for stored, described in described_tensors(file):
        names = [rename(name) for name in (stored, *described.aliases)]
        numbers = [by_name[name] for name in names if name in by_name]
        if not numbers:
            unexpected.append(stored)
            continue
        first[stored] = numbers[0]
        for number in numbers[1:]:
            parents[root(number)] = root(numbers[0])
    members: dict[int, list[str]] = {}
    for stored, number in first.items():
        members.setdefault(root(number), []).append(stored)
    together: dict[int, list[Slot]] = {}
    for number, slot in enumerate(slots):
        together.setdefault(root(number), []).append(slot)
    matches = [
        Match(stored=tuple(stored), slots=tuple(together.pop(number)))
        for number, stored in members.items()
    ]
    return matches, [slot for rest in together.values() for slot in rest], unexpected


def described_tensors(
    file: StoredFile,
) -> Iterator[tuple[str, CompressedDescription | CarriedDescription]]:
    """All tensors of a file, by their first names."""
    yield from file.compressed.items()
    yield from file.carried.items()


def _is_of_own_class(tensor: Tensor) -> bool:
    """Whether it is more than numbers: a tensor that is spread over devices, say."""
    return type(tensor.data) is not Tensor
