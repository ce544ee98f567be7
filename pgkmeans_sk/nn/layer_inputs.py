"""What the weights of a layer are multiplied by, from the arguments that the layer is called with.

For each type of layer a function gives, for each weight, the vectors x for which the layer computes
``x @ matrix.T``, where ``matrix`` is the weight as ``layers.matrix_of`` sees it; or, for an
embedding, the rows that are looked up.

Note [Rows that count]: a mask of shape (batch, tokens) says which tokens count. It is applied to a
layer whose vectors stand in an array of shape (batch, tokens, ..., in); of an embedding, to indices
of shape (batch, tokens, ...). Any other layer is taken to work on something else than tokens, such
as one vector for each text, and all of its vectors count; so do those of convolutions, which have
the channels in the second place. Nor are arrays of shape (batch * tokens, in) masked: if they came
from (tokens, batch, in), the wrong ones would be left out, and nobody would know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgkmeans_sk.nn.layers import type_names

PATCH_BYTES = 2**25
"""Of the patches of a convolution that exist at once."""

Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]


@dataclass(frozen=True)
class Vectors:
    """Vectors that a weight is multiplied by, some of all that there are in a call.

    Attributes
    ----------
    tensor_name : str
        The weight's name in its module.
    values : Tensor of shape (n, h, in), float32 or float64
        n vectors for each of h groups of rows of the matrix; h is 1 if all have the same.
    n_groups : int
        Groups of rows that may have different vectors.
    groups : slice
        Groups that these vectors are for.
    column_groups : int
        Groups of columns that belong to different outputs, so that products between them are none
        of the layer's.
    """

    tensor_name: str
    values: Tensor
    n_groups: int = 1
    groups: slice = field(default_factory=lambda: slice(None))
    column_groups: int = 1


@dataclass(frozen=True)
class Lookups:
    """Rows of an embedding that are looked up: ``indices``, integers of shape (n,)."""

    tensor_name: str
    indices: Tensor
    n_rows: int


class RowMask:
    """Leaves out rows that do not count, see Note [Rows that count].

    Parameters
    ----------
    mask : Tensor of shape (batch, tokens) or None
        False or 0 for tokens that do not count. None: all count.

    Attributes
    ----------
    fitted : bool
        Whether it has fitted the input of any layer.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self._mask = None if mask is None else mask.detach().bool()
        self._rows: dict[torch.device, tuple[Tensor, ...]] = {}
        self.fitted = False

    def apply(self, values: Tensor, n_axes: int) -> Tensor:
        """``values``, with the first ``n_axes`` axes flattened, without what does not count."""
        if self._mask is not None and n_axes >= 2 and values.shape[:2] == self._mask.shape:
            self.fitted = True
            values, n_axes = values[self._rows_on(values.device, self._mask)], n_axes - 1
        return values.reshape(-1, *values.shape[n_axes:])

    def _rows_on(self, device: torch.device, mask: Tensor) -> tuple[Tensor, ...]:
        """Where the mask is true, found once for all layers: a GPU waits for the count of them."""
        if device not in self._rows:
            self._rows[device] = mask.to(device).nonzero(as_tuple=True)
        return self._rows[device]


def _first(args: Arguments, kwargs: Keywords) -> Tensor:
    """The input of a layer, whatever its argument is called."""
    value: Tensor = args[0] if args else kwargs.get("input", next(iter(kwargs.values())))
    return value.detach()


def _precise(values: Tensor) -> Tensor:
    """``values`` in a precision in which products may be summed."""
    if not values.is_floating_point():
        raise TypeError(f"Got an input of {values.dtype}, but expected real floats.")
    # By a setting of torch, products of float32 may be those of shorter floats.
    is_exact = torch.get_float32_matmul_precision() == "highest"
    is_double = values.dtype == torch.float64 or not is_exact
    return values.to(torch.float64 if is_double else torch.float32)


def _rows(values: Tensor, mask: RowMask) -> Tensor:
    """Vectors (n, 1, in) that stand along the last axis."""
    return _precise(mask.apply(values, values.ndim - 1))[:, None]


def _linear(_: nn.Module, args: Arguments, kwargs: Keywords, mask: RowMask) -> Iterator[Vectors]:
    yield Vectors("weight", _rows(_first(args, kwargs), mask))


def _attention(
    module: nn.Module, args: Arguments, kwargs: Keywords, mask: RowMask
) -> Iterator[Vectors]:
    names = ("query", "key", "value")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    # Who attends to himself has one and the same tensor thrice, and its products are taken once.
    runs: list[tuple[Tensor, int, int]] = []
    for i, name in enumerate(names):
        if runs and given[name] is runs[-1][0]:
            runs[-1] = (given[name], runs[-1][1], i + 1)
        else:
            runs.append((given[name], i, i + 1))
    for tensor, start, stop in runs:
        values = tensor.detach()
        is_swapped = values.ndim == 3 and not module.batch_first
        rows = _rows(values.transpose(0, 1) if is_swapped else values, mask)
        if getattr(module, "_qkv_same_embed_dim", True):
            yield Vectors("in_proj_weight", rows, 3, slice(start, stop))
        else:
            for name in names[start:stop]:
                yield Vectors(f"{name[0]}_proj_weight", rows)


def _embedding(
    module: nn.Module, args: Arguments, kwargs: Keywords, mask: RowMask
) -> Iterator[Lookups]:
    indices = _first(args, kwargs)
    indices = mask.apply(indices, indices.ndim)
    if isinstance(module, nn.EmbeddingBag) and module.padding_idx is not None:
        indices = indices[indices != module.padding_idx]  # not part of the bag
    yield Lookups("weight", indices, int(module.num_embeddings))  # type: ignore[arg-type]


# ------------------------------------------------------------------ convolutions


def patches(
    values: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    flipped: bool = False,
) -> Iterator[Tensor]:
    """What each output of a convolution sees of its input, a limited number of bytes at a time.

    Parameters
    ----------
    values : Tensor of shape (batch, channels, *sizes)
        With the padding.
    kernel, stride, dilation : sequence of int
        One for each of the sizes.
    groups : int, default=1
        Of channels, each with its own patch.
    flipped : bool, default=False
        Whether the positions of the kernel are counted backwards.

    Yields
    ------
    Tensor of shape (n, groups, channels / groups * prod(kernel))
        Of n positions; in the order of the images and the positions.
    """
    n_axes = len(kernel)
    view = values
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        view = view.unfold(2 + axis, spread * (size - 1) + 1, step)[..., ::spread]
    view = view.movedim(1, 1 + n_axes)  # batch, positions, channels, kernel
    length = values.shape[1] * prod(kernel)
    allowed = max(1, PATCH_BYTES // (values.element_size() * length))
    line, image = prod(view.shape[2 : 1 + n_axes]), prod(view.shape[1 : 1 + n_axes])
    if image == 0:
        return
    n_images, n_lines = max(1, allowed // image), max(1, min(allowed, image) // line)
    for images in torch.split(view, n_images):
        for part in torch.split(images, n_lines if n_images == 1 else view.shape[1], dim=1):
            # Only now, as both make a copy of what is a view so far.
            part = part.flip(*range(-n_axes, 0)) if flipped else part
            yield part.reshape(-1, groups, length // groups)


def _images(module: Any, args: Arguments, kwargs: Keywords) -> Tensor:
    """The input of a convolution as (batch, channels, *sizes), also where it is a single image."""
    values = _precise(_first(args, kwargs))
    return values if values.ndim == len(module.kernel_size) + 2 else values[None]


def _convolution(module: Any, args: Arguments, kwargs: Keywords, _: RowMask) -> Iterator[Vectors]:
    pads: list[int] = []
    for axis, (size, spread) in enumerate(zip(module.kernel_size, module.dilation, strict=True)):
        if module.padding == "same":
            total = spread * (size - 1)
            pads = [total // 2, total - total // 2, *pads]  # F.pad begins with the last axis
        elif module.padding != "valid":
            pads = [module.padding[axis], module.padding[axis], *pads]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    values = _images(module, args, kwargs)
    if any(pads):
        values = F.pad(values, pads, mode=mode)
    for part in patches(values, module.kernel_size, module.stride, module.dilation, module.groups):
        yield Vectors("weight", part, module.groups)


def _transposed_convolution(
    module: Any, args: Arguments, kwargs: Keywords, _: RowMask
) -> Iterator[Vectors]:
    """A convolution with step 1 and the kernel backwards, of the input with zeros in between."""
    values = _images(module, args, kwargs)
    given = args[1] if len(args) > 1 else kwargs.get("output_size")
    sizes = None if given is None else list(given)[-len(module.kernel_size) :]
    stretched = [
        (size - 1) * step + 1 for size, step in zip(values.shape[2:], module.stride, strict=True)
    ]
    apart = values.new_zeros(*values.shape[:2], *stretched)
    steps = tuple(slice(None, None, step) for step in module.stride)
    apart[(slice(None), slice(None), *steps)] = values
    pads: list[int] = []
    for axis, size in enumerate(stretched):
        before = module.dilation[axis] * (module.kernel_size[axis] - 1) - module.padding[axis]
        after = before + module.output_padding[axis]
        if sizes is not None:
            length = size + before - module.padding[axis]
            after = before + sizes[axis] - length
        pads = [before, after, *pads]
    ones = (1,) * len(stretched)
    padded = F.pad(apart, pads)  # negative numbers cut off
    for part in patches(padded, module.kernel_size, ones, module.dilation, flipped=True):
        yield Vectors("weight", part, column_groups=module.groups)


Reader = Callable[[Any, Arguments, Keywords, RowMask], Iterator[Vectors | Lookups]]

READERS: dict[str, Reader] = {
    "Linear": _linear,
    "Conv1D": _linear,  # of transformers
    "Embedding": _embedding,
    "EmbeddingBag": _embedding,
    "Conv1d": _convolution,
    "Conv2d": _convolution,
    "Conv3d": _convolution,
    "ConvTranspose1d": _transposed_convolution,
    "ConvTranspose2d": _transposed_convolution,
    "ConvTranspose3d": _transposed_convolution,
    "MultiheadAttention": _attention,
}
"""By type of module; derived classes are found by their base."""


def reader_of(module: nn.Module) -> Reader | None:
    """The function for a module's type; None if it is none that is known."""
    return next((READERS[name] for name in type_names(module) if name in READERS), None)
