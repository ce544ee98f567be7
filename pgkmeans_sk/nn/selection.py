"""Which tensors a model has, under which names, and how each of them is to be compressed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgkmeans_sk.codes.matrix_layout import MatrixLayout
from pgkmeans_sk.nn.layers import matrix_of, row_axis, type_names, weight_axes
from pgkmeans_sk.nn.stored_weight import StoredWeight
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.weight_plan import layout_for, layout_reason, reason_to_carry

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""What files call the dtypes of tensors."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tensor is: a name of a module and of a tensor in it."""

    module: nn.Module
    tensor_name: str
    name: str

    @property
    def parametrizations(self) -> nn.Module | None:
        """The ``ParametrizationList`` of the tensor, if it has one."""
        lists = self.module._modules.get("parametrizations")
        found = None if lists is None else lists._modules.get(self.tensor_name)
        return found

    @property
    def stored_weight(self) -> StoredWeight | None:
        """The parametrization of a tensor that is compressed already."""
        found = self.parametrizations
        first = None if found is None else found._modules.get("0")
        return first if isinstance(first, StoredWeight) else None


class Placed:
    """What has ``places``, a tuple of ``Place``: its names, and where it is."""

    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """The first name."""
        return self.places[0].name

    @property
    def aliases(self) -> tuple[str, ...]:
        """All other names."""
        return tuple(place.name for place in self.places[1:])

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        return (self.name, *self.aliases)

    def unique_places(self) -> tuple[Place, ...]:
        """One place for each module that has it, whatever the number of its names."""
        found = {(id(p.module), p.tensor_name): p for p in reversed(self.places)}
        return tuple(reversed(found.values()))


@dataclass(frozen=True, eq=False, kw_only=True)
class FoundTensor(Placed):
    """A tensor of a model's state, with all its places.

    Attributes
    ----------
    places : tuple of Place
        The first gives the name; others are tied to it, or names of the same module.
    tensor : Tensor
        The tensor itself: a parameter or buffer; of a parametrized one, the original parameter.
    """

    places: tuple[Place, ...]
    tensor: Tensor

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter, not a buffer."""
        return isinstance(self.tensor, nn.Parameter)


@dataclass(frozen=True, eq=False, kw_only=True)
class Target:
    """A tensor with what is to become of it.

    Attributes
    ----------
    found : FoundTensor
        The tensor.
    axis : int
        The axis that is the rows of its matrix.
    group_size : int or None
        Consecutive values of the tensor that are a column of its matrix; then ``axis`` is 0.
    settings : TensorSettings
        How it is to be compressed.
    layout : MatrixLayout or None
        What will be stored for it; None if it is left as it is.
    reason : str or None
        Why it is left as it is; None if it is not.
    """

    found: FoundTensor
    axis: int
    settings: TensorSettings
    layout: MatrixLayout | None
    reason: str | None
    group_size: int | None = None


def find_tensors(model: nn.Module) -> list[FoundTensor]:
    """All parameters and persistent buffers, by their names without parametrizations.

    Tensors that are one object, or one parametrization's, are found once, with several places.
    """
    groups: dict[int, list[Place]] = {}
    tensors: dict[int, Tensor] = {}
    for place, tensor in _all_places(model):
        groups.setdefault(id(tensor), []).append(place)
        tensors[id(tensor)] = tensor
    return [FoundTensor(places=tuple(p), tensor=tensors[key]) for key, p in groups.items()]


def find_targets(model: nn.Module, spec: Spec) -> list[Target]:
    """Every tensor of a model, with what the spec says of it.

    Raises
    ------
    ValueError
        If tied weights would be treated differently.
    """
    return [_target(found, spec) for found in find_tensors(model)]


def names_with_types(model: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    """All names of tensors with the classes of their modules, as rules are matched with them."""
    return [(place.name, type_names(place.module)) for place, _ in _all_places(model)]


def _all_places(model: nn.Module) -> Iterator[tuple[Place, Tensor]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" in prefix.split("."):
            continue
        dot = f"{prefix}." if prefix else ""
        lists = module._modules.get("parametrizations")
        if lists is not None:
            for name, parametrizations in lists._modules.items():
                original = getattr(parametrizations, "original", None)
                if isinstance(original, Tensor):
                    yield Place(module, name, dot + name), original
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield Place(module, name, dot + name), tensor


def _target(found: FoundTensor, spec: Spec) -> Target:
    first = found.places[0]
    settings = spec.settings_for(first.name, type_names(first.module))
    for place in found.places[1:]:
        other = spec.settings_for(place.name, type_names(place.module))
        if other != settings and first.name in _weights(found) and place.name in _weights(found):
            raise ValueError(
                f"Got different settings for {first.name!r} and {place.name!r}, but expected equal "
                "ones: they are one tensor (tied weights)."
            )
    axis = row_axis(first.module, first.tensor_name)
    reason = _reason(found, spec, settings)
    layout = None
    if reason is None:
        shape = found.tensor.shape
        n_bytes = found.tensor.nbytes
        matrix_shape = (shape[axis], found.tensor.numel() // shape[axis])
        layout = layout_for(matrix_shape, DTYPE_NAMES[found.tensor.dtype], settings)
        if settings.group is None:
            reason = layout_reason(layout, n_bytes)
    if reason is None and not _is_finite(matrix_of(found.tensor, axis)):
        reason = "holds NaN or infinity"
    return Target(
        found=found,
        axis=axis,
        settings=settings,
        layout=layout if reason is None else None,
        reason=reason,
    )


def _reason(found: FoundTensor, spec: Spec, settings: TensorSettings) -> str | None:
    """Why a tensor is left as it is, before sizes are looked at."""
    for place in found.places:
        parametrizations = place.parametrizations
        if place.stored_weight is not None:
            return "compressed already"
        if parametrizations is not None:
            kinds = [type(module).__name__ for module in parametrizations.children()]
            if not all(getattr(m, "is_noise", False) for m in parametrizations.children()):
                return f"parametrized by {', '.join(kinds)}"
    if not found.is_parameter:
        return "a buffer"
    dtype = DTYPE_NAMES.get(found.tensor.dtype, str(found.tensor.dtype))
    reason = reason_to_carry(tuple(found.tensor.shape), dtype, settings)
    if reason is not None:
        return reason
    is_named = any(
        spec.changes_for(place.name, type_names(place.module)).get("skip") is False
        for place in found.places
    )
    if not is_named and not _weights(found):
        return "not a weight of a known layer"
    if isinstance(found.places[0].module, nn.RNNBase):
        return "a recurrent layer, which reads its weights past any parametrization"
    return None


def _weights(found: FoundTensor) -> set[str]:
    """Names under which the tensor is a weight of a layer in the table."""
    return {p.name for p in found.places if p.tensor_name in weight_axes(p.module)}


def _is_finite(matrix: Tensor) -> bool:
    return matrix.is_meta or bool(torch.isfinite(matrix.detach()).all())
