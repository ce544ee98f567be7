"""Loading a file into a model in two steps: one that may fail, and one that changes the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pgkmeans_sk.codes.description import CarriedDescription, CompressedDescription
from pgkmeans_sk.codes.matrix_kinds import StoredMatrix, layout_of, parts_of
from pgkmeans_sk.codes.stored_file import StoredFile
from pgkmeans_sk.codes.tensor_dtypes import dtype_name, to_bytes
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.devices import words_on
from pgkmeans_sk.nn.registration import register, unregister
from pgkmeans_sk.nn.restored import restored_weight
from pgkmeans_sk.nn.row_lookup import look_rows_up
from pgkmeans_sk.nn.selection import Place
from pgkmeans_sk.nn.slots import Match, Slot
from pgkmeans_sk.nn.state import METADATA, TIES
from pgkmeans_sk.nn.stored_weight import StoredWeight
from pgkmeans_sk.nn.tensor_bytes import tensor_of_bytes

Described: TypeAlias = CompressedDescription | CarriedDescription


@dataclass(frozen=True, eq=False, kw_only=True)
class PlainStep:
    """Values for slots that become, or are, one tensor."""

    slots: tuple[Slot, ...]
    values: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class CodesStep:
    """A record for slots that become, or are, one compressed weight.

    ``values`` are those of its original. Steps of one ``group`` share a codebook.
    """

    slots: tuple[Slot, ...]
    weight: StoredWeight
    values: Tensor
    group: Any


Step: TypeAlias = PlainStep | CodesStep

LARGEST_LIST = 20
"""Problems that one message names; of more it says how many there are."""


# ------------------------------------------------------------------ what may fail


@dataclass(eq=False, kw_only=True)
class Preparation:
    """Reads what goes into slots, and collects all that is wrong with it.

    Attributes
    ----------
    file : StoredFile
        Where it is read.
    device : device
        For tensors that are on the meta device now.
    gradient : {"mean", "sum"}
        As of ``CodebookWeight``.
    casts : bool
        Whether values may be rounded to the dtype of the model.
    problems : list of str
        What is wrong: each begins with the name of a tensor.
    """

    file: StoredFile
    device: torch.device
    gradient: str
    casts: bool = False
    problems: list[str] = field(default_factory=list)

    def steps(self, matches: Iterable[Match]) -> list[Step]:
        """What is to be done, of those matches that nothing is wrong with."""
        return [step for match in matches for step in self._steps_of(match)]

    def _steps_of(self, match: Match) -> Iterator[Step]:
        described = {name: _described(self.file, name) for name in match.stored}
        found = [problem for slot in match.slots if (problem := slot.problem()) is not None]
        if not found:
            for name, tensor in described.items():
                found += _misfits(name, tensor, match.slots, self.casts)
        self.problems += found
        contents = {name: self._content(name) for name in match.stored}  # whatever else is wrong
        if found or None in contents.values():
            return
        first, *others = match.stored
        for other in others:
            if _bits(contents[other]) != _bits(contents[first]):
                self.problems.append(
                    f"{other!r}: got other values than those of {first!r}, but expected the same: "
                    "they are one tensor in the model (tied weights)"
                )
                return
        for number, slots in enumerate(self._ties(match.slots)):
            step = self._step(first, contents[first], slots, number)
            if step is not None:
                yield step

    def _content(self, name: str) -> StoredMatrix | memoryview | None:
        """What the file has under a name; None if it is damaged."""
        try:
            if name in self.file.compressed:
                return self.file.matrix(name)
            return self.file.raw(name)
        except ValueError as error:
            self.problems.append(str(error).removeprefix(f"{self.file.path}: "))
            return None

    def _ties(self, slots: Sequence[Slot]) -> list[tuple[Slot, ...]]:
        """Slots that are to be one tensor, together."""
        can_be_one = len({(self._device(s), s.is_parameter) for s in slots}) == 1
        # Other writers give equal tensors all their names, even those that are equal by chance.
        if can_be_one and self.file.metadata.get(TIES) == METADATA[TIES]:
            return [tuple(slots)]
        return [(slot,) for slot in slots]

    def _step(
        self,
        name: str,
        content: StoredMatrix | memoryview | None,
        slots: tuple[Slot, ...],
        number: int,
    ) -> Step | None:
        device, first = self._device(slots[0]), slots[0]
        described = _described(self.file, name)
        if isinstance(content, StoredMatrix) and isinstance(described, CompressedDescription):
            if all(slot.can_be_compressed for slot in slots):
                group = described.codebooks_of or name, number, first.dtype, device
                return self._codes_step(name, described, content, slots, group)
            content = to_bytes(described.restore(content.decode()), described.dtype)
        assert isinstance(content, memoryview)
        values = tensor_of_bytes(content, described.dtype, described.shape)
        if first.tensor.is_meta or first.weight is not None:
            # In the place of what is there.
            values = values.to(device, first.tensor.dtype, copy=True)
        return PlainStep(slots=slots, values=values)

    def _codes_step(
        self,
        name: str,
        described: CompressedDescription,
        matrix: StoredMatrix,
        slots: tuple[Slot, ...],
        group: tuple[Any, ...],
    ) -> CodesStep | None:
        device, dtype = self._device(slots[0]), slots[0].tensor.dtype
        weight, stored = restored_weight(
            matrix,
            described.shape,
            described.axis,
            group_size=described.group_size,
            gradient=self.gradient,
        )
        values = words_on(stored, device, dtype)
        if not bool(torch.isfinite(values).all()):
            self.problems.append(
                f"{name!r}: got numbers of {dtype_name(stored.dtype)} beyond "
                f"{slots[0].dtype}, but expected those that the model's dtype can hold"
            )
            return None
        return CodesStep(slots=slots, weight=weight.to(device), values=values, group=group)

    def _device(self, slot: Slot) -> torch.device:
        return self.device if slot.tensor.is_meta else slot.tensor.device


def listed(problems: Sequence[str]) -> str:
    """Problems side by side; the first of them, if there are many."""
    rest = len(problems) - LARGEST_LIST
    more = [f"and {rest} more"] if rest > 0 else []
    return "; ".join([*problems[:LARGEST_LIST], *more])


def left_on_meta(model: nn.Module, steps: Iterable[Step]) -> list[str]:
    """Names of tensors that would be on the meta device still, after these steps."""
    filled: set[int] = set()
    gone: set[int] = set()
    for step in steps:
        for slot in step.slots:
            filled.add(id(slot.tensor))
            for place in slot.places:
                lists = place.parametrizations
                if lists is not None and (slot.weight is not None or isinstance(step, CodesStep)):
                    gone.update(id(part) for part in lists.modules())
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if id(module) not in gone
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and tensor.is_meta and id(tensor) not in filled
    ]


def _described(file: StoredFile, name: str) -> Described:
    return file.compressed[name] if name in file.compressed else file.carried[name]


def _misfits(name: str, described: Described, slots: Iterable[Slot], casts: bool) -> Iterator[str]:
    """What a file says of a tensor, and a model otherwise."""
    for slot in slots:
        also = "" if slot.name == name else f" (for {slot.name!r} of the model)"
        if described.shape != slot.shape:
            yield f"{name!r}: got the shape {described.shape}, but expected {slot.shape}{also}"
        if described.dtype != slot.dtype and not casts:
            yield f"{name!r}: got the dtype {described.dtype}, but expected {slot.dtype}{also}"


def _bits(content: StoredMatrix | memoryview | None) -> Any:
    """What two contents are compared by."""
    if not isinstance(content, StoredMatrix):
        return content
    arrays = {name: (a.dtype, a.shape, a.tobytes()) for name, a in parts_of(content).items()}
    return layout_of(content), arrays


# ------------------------------------------------------------------ what changes the model


class Application:
    """Takes steps; all that could be wrong with them was found before.

    Parameters
    ----------
    untouched : iterable of Tensor
        Of slots that stay as they are: a codebook of theirs is not to become another.
    """

    def __init__(self, untouched: Iterable[Tensor]) -> None:
        self._used = {id(tensor) for tensor in untouched}
        self._codebooks: dict[Any, nn.Parameter] = {}
        self._weights: dict[Any, list[CodebookWeight]] = {}

    def take(self, steps: Iterable[Step]) -> None:
        """Take all steps, in order."""
        with torch.no_grad():
            for step in steps:
                if isinstance(step, CodesStep):
                    self._put_codes(step)
                else:
                    self._put_values(step)
        for weights in self._weights.values():
            if len(weights) > 1:
                weights[0].share_codebook_with(weights[1:])

    def _put_values(self, step: PlainStep) -> None:
        first, *others = step.slots
        tensor = first.tensor
        if tensor.is_meta or first.weight is not None:
            if isinstance(tensor, nn.Parameter):
                tensor = self._parameter(tensor, step.values)
            else:
                tensor = step.values
            _put(first, tensor)
        else:
            tensor.copy_(step.values)
        for slot in others:
            _put(slot, tensor)

    def _put_codes(self, step: CodesStep) -> None:
        original = step.slots[0].tensor
        assert isinstance(original, nn.Parameter)
        codebook = self._codebooks.get(step.group)
        if codebook is None:
            codebook = self._codebooks[step.group] = self._parameter(original, step.values)
        step.weight.train(step.slots[0].places[0].module.training)
        for slot in step.slots:
            _put(slot, codebook, removes_noise=True)
            for place in slot.unique_places():
                register(place.module, place.tensor_name, step.weight)
                look_rows_up(place.module)
        if isinstance(step.weight, CodebookWeight):
            self._weights.setdefault(step.group, []).append(step.weight)

    def _parameter(self, parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
        """The parameter with other values, or another one if it cannot have them."""
        if parameter.is_meta or id(parameter) in self._used:
            return nn.Parameter(values, parameter.requires_grad)
        self._used.add(id(parameter))
        if parameter.shape != values.shape:
            parameter.grad = None
        parameter.data = values
        return parameter


def _put(slot: Slot, tensor: Tensor, *, removes_noise: bool = False) -> None:
    """Make ``tensor`` that of a slot, in all its places, which are compressed no more."""
    for place in slot.unique_places():
        if place.parametrizations is not None and (slot.weight is not None or removes_noise):
            assert isinstance(tensor, nn.Parameter)
            unregister(place.module, place.tensor_name, tensor)
        holder, name = _holder(place)
        setattr(holder, name, tensor)


def _holder(place: Place) -> tuple[nn.Module, str]:
    """The module that has the tensor itself, and what it calls it."""
    lists = place.parametrizations
    return (place.module, place.tensor_name) if lists is None else (lists, "original")
