"""Compressed models as files: one safetensors file, the same format as the command line's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from typing import TypeVar

import torch
from torch import nn

from pgkmeans_sk.codes.storage import open_tensors, save_tensors
from pgkmeans_sk.nn.codebook_weight import GRADIENTS
from pgkmeans_sk.nn.loading import Application, Preparation, left_on_meta, listed
from pgkmeans_sk.nn.records import records_of
from pgkmeans_sk.nn.slots import find_matches, find_slots
from pgkmeans_sk.nn.state import METADATA, TIES
from pgkmeans_sk.validation import check_choice

Model = TypeVar("Model", bound=nn.Module)


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
    compressed, carried = records_of(model, path)
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

    What the file stores as codes becomes a parametrization (``CodebookWeight``, or ``LevelWeight``
    for the evenly spaced levels of ``diffq``), without ever being decoded; a model on the meta
    device never has its plain weights in memory. Afterwards the model is as ``compress_model``
    left the one that was saved.

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

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> model = torch.nn.Linear(64, 512)
    >>> report = nn.compress_model(model)
    >>> saved = nn.save(model, path)
    >>> again = nn.load(torch.nn.Linear(64, 512), path)
    >>> torch.equal(again.weight, model.weight)
    True
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
                f"{path}: got a file that does not go with the model: {listed(problems)}"
            )
        Application(slot.tensor for slot in missing).take(steps)
    if lacks or extras:
        warnings.warn(f"{path}: left out: {listed([*lacks, *extras])}", stacklevel=2)
    return model


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Got a {type(model).__name__}, but expected a torch.nn.Module.")
