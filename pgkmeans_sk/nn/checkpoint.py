"""Compressed models as files: one safetensors file, the same format as the command line's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.storage import CarriedTensor, StoredTensor, open_tensors, save_tensors
from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.nn.codebook_weight import GRADIENTS
from pgkmeans_sk.nn.loading import Application, Preparation, left_on_meta
from pgkmeans_sk.nn.selection import DTYPE_NAMES, FoundTensor
from pgkmeans_sk.nn.slots import find_matches, find_slots
from pgkmeans_sk.nn.state import (
    METADATA,
    TIES,
    CompressedState,
    carried_description,
    carried_state,
    compressed_state,
    unknown_state,
)
from pgkmeans_sk.nn.tensor_bytes import bytes_of
from pgkmeans_sk.validation import check_choice

Model = TypeVar("Model", bound=nn.Module)

LARGEST_LIST = 20
"""Problems that one message names; of more it says how many there are."""


def save(
    model: nn.Module, path: str | PathLike[str], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model as one file: compressed weights as codes, all else bit for bit.

    The file is a safetensors file (docs/storage_format.md) of ``ModelReport.n_bytes`` bytes.
    Tensors have the names of the plain model; tied ones are stored once, with all their names.
    ``load`` brings them back; ``pgkmeans info`` and ``pgkmeans decompress`` take the file, too.
    What is saved again after loading has the same bytes.

    Noise (``quant_noise``) is not part of it, nor are buffers that are not persistent. Codebooks
    that are trained in more digits than they are stored in are rounded, as they are wherever they
    are used.

    Parameters
    ----------
    model : Module
        Any model, compressed or not.
    path : str or PathLike
        The file. One that is there is replaced when all has been written.
    metadata : mapping of str to str, default=None
        Texts to be kept beside the tensors.

    Raises
    ------
    ValueError
        If the model has a state that is not tensors with values, or of dtypes that files do not
        know; a compressed weight has another parametrization on top, or a codebook numbers that its
        dtype cannot hold. The file is as it was then.
    OSError
        If the file cannot be written.
    ImportError
        If the library safetensors is absent.

    See Also
    --------
    load : The opposite.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 32), torch.nn.Linear(32, 64))
    >>> report = nn.compress_model(model, {"defaults": {"n_codes": 32}})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "small.safetensors"
    ...     nn.save(model, path)
    ...     size = path.stat().st_size
    ...     again = torch.nn.Sequential(torch.nn.Embedding(100, 32), torch.nn.Linear(32, 64))
    ...     again = nn.load(again, path)
    >>> size == report.n_bytes
    True
    >>> bool((again[1].weight == model[1].weight).all())
    True
    """
    _check_model(model)
    with naming(path):
        unknown = unknown_state(model)
        if unknown:
            raise ValueError(
                f"got {unknown[0]!r} in the model's state_dict, but expected only parameters and "
                "buffers of its modules, since a file holds nothing else"
            )
        compressed = {state.name: _stored(state, path) for state in compressed_state(model)}
        carried = {found.name: _carried(found) for found in carried_state(model)}
    save_tensors(path, compressed, carried, {**METADATA, **(metadata or {}), TIES: METADATA[TIES]})


def load(
    model: Model,
    path: str | PathLike[str],
    *,
    device: torch.device | str = "cpu",
    gradient: str = "mean",
    strict: bool = True,
) -> Model:
    """Load a file of codes into a model, in place: weights stay compressed.

    What the file stores as codes becomes a parametrization (``CodebookWeight``), without ever being
    decoded; a model on the meta device never has its plain weights in memory. Afterwards the model
    is as ``compress_model`` left the one that was saved.

    All is read and checked before the first change. After any error the model is as it was.

    Parameters
    ----------
    model : Module
        A model with the shapes and dtypes of the one that was saved: freshly built, on the meta
        device or not, compressed or with Quant-Noise already. Parameters remain the same objects,
        but for those on the meta device and those that become tied.
    path : str or PathLike
        What ``save`` or ``pgkmeans compress`` wrote.
    device : device, default="cpu"
        For tensors that are on the meta device; others stay where they are.
    gradient : {"mean", "sum"}, default="mean"
        What the gradient of a code word is of those of its blocks.
    strict : bool, default=True
        Whether the file must have all tensors of the model and no others. If not, tensors of the
        model without a counterpart keep their values, and a warning names what was left out.

    Returns
    -------
    model : Module
        The same.

    Raises
    ------
    ValueError
        If the file is no file of codes, of a newer version, or damaged; if names, shapes or dtypes
        are not those of the model, or a tensor would remain on the meta device (a buffer that is
        not persistent is in no file: give it values first). One message names all tensors that
        something is wrong with.
    OSError
        If the file cannot be read.
    ImportError
        If the library safetensors is absent.

    Warns
    -----
    UserWarning
        If, with ``strict=False``, anything was left out.

    See Also
    --------
    save : The opposite, with an example.
    bake : From a compressed model to a plain one.

    Notes
    -----
    *Tied weights.* What is one parameter in the model stays one, whatever its names in the file. A
    file that ``save`` wrote makes one parameter of tensors that were one, also where the model has
    several. One that ``pgkmeans compress`` wrote does not: there it is known only that their values
    were equal.

    *Weights that cannot be codes.* The command line compresses all tensors of two axes. Those of
    recurrent layers, buffers, and tensors of parametrizations that are not of this package are
    decoded when they are loaded.

    *Precision.* Codebooks have the dtype of the model, as ``compress_model`` makes them; those of a
    model in bfloat16 are rounded to it.
    """
    _check_model(model)
    check_choice("gradient", gradient, GRADIENTS)
    with open_tensors(path) as file:
        slots = find_slots(model)
        matches, missing, unexpected = find_matches(slots, file)
        preparation = Preparation(file=file, device=torch.device(device), gradient=gradient)
        steps = preparation.steps(matches)
        problems = preparation.problems
        lacks = [f"{slot.name!r}: got none in the file, but expected one" for slot in missing]
        extras = [f"{name!r}: got one that the model does not have" for name in unexpected]
        if strict:
            problems = [*lacks, *extras, *problems]
        if not problems:
            problems = [
                f"{name!r}: got a tensor on the meta device that the file has no values for, but "
                "expected one with values"
                for name in left_on_meta(model, steps)
            ]
        if problems:
            raise ValueError(
                f"{path}: got a file that does not go with the model: {_listed(problems)}"
            )
        Application(slot.tensor for slot in missing).take(steps)
    if lacks or extras:
        warnings.warn(f"{path}: left out: {_listed([*lacks, *extras])}", stacklevel=2)
    return model


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Got a {type(model).__name__}, but expected a torch.nn.Module.")


def _listed(problems: Sequence[str]) -> str:
    """Problems side by side; the first of them, if there are many."""
    rest = len(problems) - LARGEST_LIST
    more = [f"and {rest} more"] if rest > 0 else []
    return "; ".join([*problems[:LARGEST_LIST], *more])


def _stored(state: CompressedState, path: str | PathLike[str]) -> StoredTensor:
    with naming(f"tensor {state.name!r}"):
        for place in state.places:
            parametrizations = place.parametrizations
            if parametrizations is not None and len(list(parametrizations.children())) > 1:
                raise ValueError(
                    "got other parametrizations on top of its codebook, but expected them to be "
                    "removed first"
                )
        if state.codebook.is_meta:
            raise ValueError("got a codebook on the meta device, but expected one with values")
        described = state.description()
    return StoredTensor(
        shape=described.shape,
        dtype=described.dtype,
        matrix=partial(_matrix, state, path),
        layout=described.layout,
        axis=described.axis,
        aliases=described.aliases,
        codebooks_of=described.codebooks_of,
    )


def _matrix(state: CompressedState, path: str | PathLike[str]) -> CompressedMatrix:
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
