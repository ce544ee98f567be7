"""A model in the middle of its training, written and read to the last bit.

A file of ``save`` is for using a model: its codebooks are rounded to the dtype they are stored in.
Whoever goes on with training needs the numbers that the optimiser sees. Here, then, is the whole
``state_dict``, each tied tensor once, with what is needed to build the ``CodebookWeight`` of each
weight that is compressed already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgkmeans_sk.codes.strict_json import parse
from pgkmeans_sk.codes.tensor_file import TensorFile, naming
from pgkmeans_sk.codes.tensor_writer import TensorEntry, write_tensors
from pgkmeans_sk.nn.bake import bake
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.registration import register_weight
from pgkmeans_sk.nn.selection import DTYPE_NAMES, FoundTensor, find_tensors
from pgkmeans_sk.nn.state import CompressedState, compressed_state
from pgkmeans_sk.nn.tensor_bytes import bytes_of, tensor_of_bytes

FORMAT = "pgkmeans_sk training state"
VERSION = 1


def check_state(model: nn.Module) -> None:
    """Raise a ValueError, naming it, if the state of a model has what no file can hold."""
    for state in compressed_state(model):
        if not isinstance(state.weight, CodebookWeight):
            raise ValueError(
                f"Got {state.name!r} with a {type(state.weight).__name__}, but expected weights of "
                "compress_model or plain ones: its state cannot be stored."
            )
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.dtype not in DTYPE_NAMES:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"Got {name!r} of {kind} in the model's state, but expected tensors that a "
                "safetensors file can hold: its state cannot be stored."
            )


def write_state(model: nn.Module, path: str | PathLike[str], facts: Mapping[str, Any]) -> None:
    """Write the state of a model, with ``facts`` (JSON values) about it, all of it or nothing.

    Raises
    ------
    ValueError
        If the state has what no file can hold.
    OSError
        If the file cannot be written.
    """
    check_state(model)
    tensors, aliases = _distinct(model)
    content = {
        "version": VERSION,
        "facts": facts,
        "aliases": aliases,
        "compressed": _described(compressed_state(model)),
    }
    entries = [
        TensorEntry(name, DTYPE_NAMES[t.dtype], tuple(t.shape), partial(bytes_of, t))
        for name, t in tensors.items()
    ]
    write_tensors(path, entries, {FORMAT: json.dumps(content, sort_keys=True)})


def read_facts(path: str | PathLike[str]) -> dict[str, Any]:
    """What ``write_state`` was told of a model.

    Raises
    ------
    ValueError
        If it is not such a file.
    OSError
        If it cannot be read.
    """
    with TensorFile(path) as file, naming(path):
        facts: dict[str, Any] = _content(file)["facts"]
    return facts


def read_state(model: nn.Module, path: str | PathLike[str]) -> None:
    """Bring a model into the state that a file holds, in place.

    Parameters
    ----------
    model : Module
        Of the same structure as the one that was written, before anything was compressed. What is
        compressed nevertheless is baked first.
    path : str or PathLike
        A file of ``write_state``.

    Raises
    ------
    ValueError
        If it is not such a file, or one of another model. A part of the model may have been
        changed then.
    OSError
        If it cannot be read.
    """
    with TensorFile(path) as file, naming(path):
        content = _content(file)
        tensors = {name: _tensor(file, name) for name in file.names}
        tensors |= {alias: tensors[first] for alias, first in content["aliases"].items()}
        bake(model)
        _register(model, content["compressed"], tensors)
        for name, tensor in model.state_dict().items():
            if name in tensors and tensors[name].dtype != tensor.dtype:
                raise ValueError(
                    f"got {name!r} of dtype {tensors[name].dtype}, but expected {tensor.dtype}, as "
                    "the model has it"
                )
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:  # names what is missing and what is of another shape
            reason = " ".join(str(error).split())
            raise ValueError(f"not the state of this model as it was built: {reason}") from error


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a model's state, and the names of those that are one of them."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor
        else:
            aliases[name] = first
    return tensors, aliases


def _described(states: list[CompressedState]) -> list[dict[str, Any]]:
    codebooks: dict[int, int] = {}
    weights = [state.weight for state in states if isinstance(state.weight, CodebookWeight)]
    return [
        {
            "names": [state.name, *state.aliases],
            "codebook": codebooks.setdefault(id(state.original), len(codebooks)),
            "buffers": [name for name, _ in weight.named_buffers() if name != "counts"],
            "shape": list(weight.shape),
            "axis": weight.axis,
            **_grouping(weight),
            "n_features": weight.n_features,
            "stored_dtype": weight.stored_dtype.name,
            "gradient": weight.gradient,
            "relative_error": weight.relative_error,
        }
        for state, weight in zip(states, weights, strict=True)
    ]


def _grouping(weight: CodebookWeight) -> dict[str, int]:
    return {} if weight.group_size is None else {"group_size": weight.group_size}


def _register(
    model: nn.Module, described: list[dict[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    """Give the weights that the file holds as codes their parametrizations."""
    found = {entry.name: entry for entry in find_tensors(model)}
    for entry in described:
        name = entry["names"][0]
        if name not in found or list(found[name].names) != entry["names"]:
            raise ValueError(f"got codes for {entry['names']}, but expected weights of the model")
    members: dict[int, list[CodebookWeight]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for entry in described:
        target = found[entry["names"][0]]
        prefix = _prefix(target)
        values = tensors[f"{prefix}.original"]
        weight = _weight(entry, values, {n: tensors[f"{prefix}.0.{n}"] for n in entry["buffers"]})
        key = entry["codebook"]
        if key not in parameters:
            parameters[key] = _parameter(target, values)
        register_weight(target, weight, parameters[key])
        members.setdefault(key, []).append(weight)
    for weights in members.values():
        weights[0].share_codebook_with(weights[1:])


def _parameter(target: FoundTensor, values: Tensor) -> nn.Parameter:
    """The parameter of a weight, as the codebook; its values come with the rest of the state."""
    parameter = target.tensor
    assert isinstance(parameter, nn.Parameter)
    parameter.grad = None  # of another shape
    parameter.data = torch.empty_like(values, dtype=parameter.dtype, device=parameter.device)
    return parameter


def _weight(
    entry: Mapping[str, Any], codebook: Tensor, stored: Mapping[str, Tensor]
) -> CodebookWeight:
    names = ("scale_codes", "row_scales", "block_scales", "column_scales")
    rotation = ("rotation_mixer", "rotation_signs")
    buffers: dict[str, Tensor | None] = {"codes": stored["codes"]}
    buffers |= {name: stored.get(name) for name in (*names, *rotation)}
    buffers["counts"] = torch.zeros((*codebook.shape[:3], 1), dtype=torch.int32)
    return CodebookWeight(
        buffers,
        shape=tuple(entry["shape"]),
        axis=entry["axis"],
        group_size=entry.get("group_size"),
        n_features=entry["n_features"],
        stored_dtype=np.dtype(entry["stored_dtype"]),
        gradient=entry["gradient"],
        relative_error=entry["relative_error"],
    )


def _prefix(target: FoundTensor) -> str:
    """Under which names a compressed weight is found in a ``state_dict``."""
    place = target.places[0]
    module = place.name[: len(place.name) - len(place.tensor_name)]
    return f"{module}parametrizations.{place.tensor_name}"


def _content(file: TensorFile) -> dict[str, Any]:
    if FORMAT not in file.metadata:
        raise ValueError(f"got a file that is no {FORMAT}, but expected one")
    content: dict[str, Any] = parse(file.metadata[FORMAT])
    if content.get("version") != VERSION:
        raise ValueError(f"got version {content.get('version')!r}, but expected {VERSION}")
    for key, kind in (("facts", dict), ("aliases", dict), ("compressed", list)):
        if not isinstance(content.get(key), kind):
            raise ValueError(f"damaged: got {key} {content.get(key)!r}, but expected a {kind}")
    return content


def _tensor(file: TensorFile, name: str) -> Tensor:
    return tensor_of_bytes(file.raw(name), file.dtype(name), file.shape(name)).clone()
