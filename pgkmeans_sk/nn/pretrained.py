"""Models that another library builds, loads and saves, and whose codes are left to this one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgkmeans_sk.codes.description import stored_name
from pgkmeans_sk.codes.matrix_layout import matrix_of
from pgkmeans_sk.codes.matrix_values import check_values
from pgkmeans_sk.codes.storage import collect_tensors, open_tensors
from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.loading import Application, Preparation, left_on_meta, listed
from pgkmeans_sk.nn.records import records_of
from pgkmeans_sk.nn.slots import Match, described_tensors, find_matches, find_slots
from pgkmeans_sk.nn.state import METADATA, CompressedState, compressed_state
from pgkmeans_sk.nn.tensor_bytes import tensor_of_bytes


def packed_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of the file that ``save`` writes.

    Raises
    ------
    ValueError
        As ``save``.
    """
    entries, metadata = collect_tensors(*records_of(model, type(model).__name__), METADATA)
    tensors = {}
    for name, dtype, shape, source in entries:
        raw: Any = source
        tensors[name] = tensor_of_bytes(memoryview(raw), dtype, shape).clone()
    return tensors, metadata


class WeightsToCome:
    """Weights that a file has as codes, while another library loads all else into a model.

    Until ``fill``, they are missing in the model's ``state_dict``: so they remain on the meta
    device, if that is where the model is.

    Parameters
    ----------
    model : Module
        The model, which may be on the meta device.
    path : str or PathLike
        The file.
    prefix : str, default=""
        What the names of one of them may begin with, "bert." say, and those of the other not.
    gradient : {"mean", "sum"}, default="mean"
        As of ``load``.

    Attributes
    ----------
    stored_names : list of str
        The arrays in the file that they are made of.

    Raises
    ------
    ValueError, OSError, ImportError
        As ``load``, if the file is none of codes.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | PathLike[str],
        *,
        prefix: str = "",
        gradient: str = "mean",
    ) -> None:
        self._model, self._path, self._gradient = model, path, gradient
        with open_tensors(path) as file:
            slots = find_slots(model)
            names = {place.name for slot in slots for place in slot.places}
            self._names = {
                name: _renamed(name, prefix, names)
                for first, tensor in described_tensors(file)
                for name in (first, *tensor.aliases)
            }
            matches = self._matches(find_matches(slots, file, self._renamed)[0], file.compressed)
            self.stored_names = [
                stored_name(name, part)
                for match in matches
                for name in match.stored
                if name in file.compressed
                for part in file.compressed[name].parts()
            ]
            hidden = {
                place.name
                for match in matches
                if any(name in file.compressed for name in match.stored)
                for slot in match.slots
                for place in slot.places
            }
        root: Any = model
        self._hook = root.register_state_dict_post_hook(_Hidden(hidden))

    def fill(self) -> None:
        """Put codes into the model, and make weights one that were one.

        Raises
        ------
        ValueError
            If the file is damaged, or its shapes are not those of the model; or if anything is left
            on the meta device.
        """
        self._hook.remove()
        model = self._model
        with open_tensors(self._path) as file:
            slots = find_slots(model)
            preparation = Preparation(
                file=file, device=_device(model), gradient=self._gradient, casts=True
            )
            matches = find_matches(slots, file, self._renamed)[0]
            steps = preparation.steps(self._matches(matches, file.compressed))
            problems = preparation.problems or [
                f"{name!r}: got a tensor on the meta device, but expected one with values"
                for name in left_on_meta(model, steps)
            ]
            if problems:
                raise ValueError(
                    f"{self._path}: got a file that does not go with the model: {listed(problems)}"
                )
            filled = {id(slot.tensor) for step in steps for slot in step.slots}
            Application(s.tensor for s in slots if id(s.tensor) not in filled).take(steps)

    def _renamed(self, name: str) -> str:
        return self._names[name]

    def _matches(self, matches: Iterable[Match], compressed: Any) -> list[Match]:
        """Those that are not left to the other library: compressed weights, and ties."""
        return [m for m in matches if len(m.slots) > 1 or any(n in compressed for n in m.stored)]


def accept_packed_state(model: nn.Module) -> None:
    """Let ``load_state_dict`` of a compressed model take what ``packed_state`` gives, too.

    Whoever goes on with training loads the file that was written for ``from_pretrained``.
    """
    root: Any = model
    root.register_load_state_dict_pre_hook(_unpack)


class _Hidden:
    """A hook that takes names out of a ``state_dict``."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def __call__(
        self, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any
    ) -> None:
        for name in self.names:
            state_dict.pop(prefix + name, None)


def _renamed(name: str, prefix: str, names: set[str]) -> str:
    """The name of a tensor in a model that has a part more, or less, around it."""
    if name in names:
        return name
    without = name.removeprefix(prefix)
    return without if without in names else prefix + name


def _device(model: nn.Module) -> torch.device:
    """Where a model is, as far as it has values."""
    devices = (t.device for t in (*model.parameters(), *model.buffers()) if not t.is_meta)
    return next(devices, torch.device("cpu"))


def _unpack(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """Replace packed arrays by what a compressed model's own ``state_dict`` would have."""
    found: dict[str, Tensor] = {}
    used: list[str] = []
    for state in compressed_state(module):
        weight = state.weight
        is_stored = prefix + stored_name(state.name, "codes") in state_dict
        if is_stored and isinstance(weight, CodebookWeight):
            with naming(f"tensor {state.name!r}"):
                found.update(_own_state(state, weight, state_dict, prefix, used))
    for name in used:
        state_dict.pop(name, None)
    state_dict.update(found)


def _own_state(
    state: CompressedState,
    own: CodebookWeight,
    state_dict: dict[str, Any],
    prefix: str,
    used: list[str],
) -> dict[str, Tensor]:
    layout = own.stored_layout(state.original)
    parts: dict[str, NDArray[Any]] = {}
    for part in layout.parts():
        owner = state.codebooks_of or state.name if part == "codebooks" else state.name
        key = prefix + stored_name(owner, part)
        if key in state_dict:
            parts[part] = np.ascontiguousarray(state_dict[key].detach().cpu().numpy())
            used.append(key)
    check_values(layout, parts)
    matrix = matrix_of(layout, parts, own.relative_error, 0.0)
    weight = CodebookWeight.from_matrix(matrix, own.shape, own.axis, group_size=own.group_size)
    values = {f"0.{name}": tensor for name, tensor in weight.state_dict().items()}
    values["original"] = torch.from_numpy(matrix.decoder.codebooks.astype(np.float64))
    return {
        f"{prefix}{place.name.removesuffix(place.tensor_name)}parametrizations."
        f"{place.tensor_name}.{name}": tensor
        for place in state.places
        for name, tensor in values.items()
    }


def stored_patterns(names: Iterable[str]) -> set[str]:
    """Regular expressions that match these names, and no others."""
    return {f"^(.*\\.)?{re.escape(name)}$" for name in names}
