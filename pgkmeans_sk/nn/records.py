"""A model as records of tensors to be stored."""

from __future__ import annotations

from functools import partial
from os import PathLike

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pgkmeans_sk.codes.storage import CarriedTensor, StoredTensor
from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.nn.selection import DTYPE_NAMES, FoundTensor
from pgkmeans_sk.nn.state import (
    CompressedState,
    carried_description,
    carried_state,
    compressed_state,
    unknown_state,
)
from pgkmeans_sk.nn.stored_weight import StoredMatrix
from pgkmeans_sk.nn.tensor_bytes import bytes_of


def records_of(
    model: nn.Module, path: str | PathLike[str]
) -> tuple[dict[str, StoredTensor], dict[str, CarriedTensor]]:
    """All tensors of a model's state: weights that are compressed, and others.

    Raises
    ------
    ValueError
        If there is a state that no file can hold; the message begins with ``path``.
    """
    with naming(path):
        unknown = unknown_state(model)
        if unknown:
            raise ValueError(
                f"got {unknown[0]!r} in the model's state_dict, but expected only parameters and "
                "buffers of its modules, since a file holds nothing else"
            )
        compressed = {state.name: _stored(state, path) for state in compressed_state(model)}
        carried = {found.name: _carried(found) for found in carried_state(model)}
    return compressed, carried


def _stored(state: CompressedState, path: str | PathLike[str]) -> StoredTensor:
    with naming(f"tensor {state.name!r}"):
        for place in state.places:
            parametrizations = place.parametrizations
            if parametrizations is not None and len(list(parametrizations.children())) > 1:
                raise ValueError(
                    "got other parametrizations on top of its first, but expected them to be "
                    "removed first"
                )
        if state.original.is_meta:
            raise ValueError("got a parameter on the meta device, but expected one with values")
        described = state.description()
    return StoredTensor(
        shape=described.shape,
        dtype=described.dtype,
        matrix=partial(_matrix, state, path),
        layout=described.layout,
        axis=described.axis,
        group_size=described.group_size,
        aliases=described.aliases,
        codebooks_of=described.codebooks_of,
    )


def _matrix(state: CompressedState, path: str | PathLike[str]) -> StoredMatrix:
    with naming(f"{path}: tensor {state.name!r}"):
        return state.matrix()


def _carried(found: FoundTensor) -> CarriedTensor:
    tensor = found.tensor
    with naming(f"tensor {found.name!r}"):
        if is_lazy(tensor) or tensor.is_meta:
            raise ValueError(
                f"got a tensor without values on {tensor.device}, but expected one with values"
            )
        if tensor.layout != torch.strided or tensor.dtype not in DTYPE_NAMES:
            raise ValueError(
                f"got a tensor of dtype {tensor.dtype} and {tensor.layout}, but expected a dense "
                f"one of dtype {', '.join(map(str, DTYPE_NAMES))}"
            )
    described = carried_description(found)
    return CarriedTensor(
        shape=described.shape,
        dtype=described.dtype,
        source=partial(bytes_of, tensor),
        aliases=described.aliases,
    )
