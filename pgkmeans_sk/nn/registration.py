"""Putting codebooks in the place of weights, and weights back in the place of codebooks."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.devices import words_on
from pgkmeans_sk.nn.row_lookup import look_rows_up
from pgkmeans_sk.nn.selection import FoundTensor


def register_matrix(
    found: FoundTensor,
    matrix: CompressedMatrix,
    axis: int,
    *,
    group_size: int | None = None,
    gradient: str,
    codebook: nn.Parameter | None = None,
) -> CodebookWeight:
    """Replace a weight, in all its places, by the codes and the codebook of a matrix.

    The parameter stays the same object, so that optimisers go on with it; its values become the
    codebook's. With ``codebook``, that parameter takes its place: one that is shared. With
    ``group_size``, columns of the matrix are groups of the weight.
    """
    shape = tuple(found.tensor.shape)
    weight = CodebookWeight.from_matrix(
        matrix, shape, axis, group_size=group_size, gradient=gradient
    )
    parameter = found.tensor
    if codebook is None:
        assert isinstance(parameter, nn.Parameter)
        codebook = parameter
        codebook.grad = None  # of another shape
        codebook.data = words_on(matrix.decoder.codebooks, parameter.device, parameter.dtype)
    register_weight(found, weight, codebook)
    return weight


def register_weight(found: FoundTensor, weight: CodebookWeight, codebook: nn.Parameter) -> None:
    """Let a weight, in all its places, be what ``weight`` makes of the parameter ``codebook``.

    Noise on the weight is removed.
    """
    places = found.unique_places()
    weight.train(places[0].module.training)
    weight.to(found.tensor.device)
    for place in places:
        if place.parametrizations is None:
            place.module._parameters[place.tensor_name] = codebook
        else:
            unregister(place.module, place.tensor_name, codebook)
        register(place.module, place.tensor_name, weight)
        look_rows_up(place.module)


def register(module: nn.Module, tensor_name: str, parametrization: nn.Module) -> None:
    """Parametrize a tensor of a module; its original stays what it is.

    Unlike ``register_parametrization`` this does not compute the tensor to look at it, and
    remembers the order of the module's parameters.
    """
    names = list(module._parameters)
    parametrize.register_parametrization(module, tensor_name, parametrization, unsafe=True)
    lists: Any = module.parametrizations
    if not hasattr(lists[tensor_name], "parameter_names"):
        lists[tensor_name].parameter_names = names


def unregister(module: nn.Module, tensor_name: str, parameter: nn.Parameter) -> None:
    """Make ``parameter`` the tensor of a module in the place of a parametrized one.

    The module has its class again, and its parameters are in the order in which they were.
    """
    lists: Any = module.parametrizations
    names = getattr(lists[tensor_name], "parameter_names", [])
    _own_class(module)
    parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=False)
    module._parameters[tensor_name] = parameter
    if tensor_name in names:
        for name in names[names.index(tensor_name) + 1 :]:
            if name in module._parameters:
                module._parameters[name] = module._parameters.pop(name)


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class that no copy of it has.

    ``copy.deepcopy`` lets copies share the class that ``register_parametrization`` made, and
    ``remove_parametrizations`` takes the tensor from the class: all copies would lose it.
    """
    shared = type(module)
    contents = {n: v for n, v in vars(shared).items() if n not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, contents)
