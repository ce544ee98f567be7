"""scalar_quantize: each weight becomes a code for one of a few values, in place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os import PathLike
from typing import Any

from torch import nn

from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.compress import check_arguments, check_targets
from pgkmeans_sk.nn.model_report import ModelReport
from pgkmeans_sk.nn.presets import resolved_spec
from pgkmeans_sk.nn.scalar_matrices import scalar_matrix
from pgkmeans_sk.nn.scalar_targets import GRANULARITIES, scalar_spec, scalar_targets
from pgkmeans_sk.nn.selection import Target
from pgkmeans_sk.nn.work import Work, groups_of
from pgkmeans_sk.progress import Progress
from pgkmeans_sk.quantization.scalar import SCHEMES
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.validation import InvalidParameterError, check_choice, check_integer
from pgkmeans_sk.weight_jobs import Matrices

MOST_BITS = 8


def scalar_quantize(
    model: nn.Module,
    bits: int = 4,
    *,
    scheme: str = "kmeans",
    granularity: str = "tensor",
    group_size: int = 128,
    spec: Spec | TensorSettings | Mapping[str, Any] | str | PathLike[str] | None = None,
    importance: Calibration | None = None,
    gradient: str = "mean",
    progress: Progress | None = None,
) -> ModelReport:
    """Replace each weight of a model by a code of ``bits`` bits for one of ``2**bits`` values.

    As after ``compress_model``, each weight tensor is a parametrization (``CodebookWeight``): the
    parameter holds the codebook, which can be trained (the gradient of a value is the mean of those
    of its weights), ``save`` writes codes packed at ``bits`` bits, ``bake`` makes a plain model.
    The same weights of the same layers are taken; tied ones once.

    Parameters
    ----------
    model : Module
        Any model. Quant-Noise on a weight that is quantized is removed first.
    bits : int, default=4
        Bits of a code, 1 to 8.
    scheme : {"kmeans", "linear", "linear-minmax"}, default="kmeans"
        Which values a codebook has.

        - "kmeans": those of the least squared error that any codebook reaches: the global optimum
          of k-means in one dimension.
        - "linear": the range from the least to the greatest weight is cut into ``2**bits`` bins of
          equal width, and a value is the mean of the weights in its bin (or its middle, if there
          are none), as in the paper.
        - "linear-minmax": values at equal distances, from the least weight to the greatest.

        At the start only: training moves the values of all three freely.
    granularity : {"tensor", "row", "group"}, default="tensor"
        Which weights share a codebook: those of a tensor, of a row (an output of a linear layer, a
        filter of a convolution, a word of an embedding), or ``group_size`` that lie together in a
        row. Codebooks count: ``2**bits`` values in float16 for each, so that a row of 384 weights
        takes 4.67 bits for each of them with ``bits=4``, and a group of 128 takes 6.
    group_size : int, default=128
        Weights of a group; the length of a row must be a multiple of it. A row is what lies
        together: of layers that store their weights transposed (``Conv1D`` of transformers,
        ``ConvTranspose2d``), it belongs to an input.
    spec : Spec, TensorSettings, dict, path of a YAML file, "ipq" or None, default=None
        Which tensors are quantized: of its settings, ``skip``, ``min_size`` and ``codebook_dtype``
        are used, ``importance``, and ``n_codes`` of rules, a power of two, in the place of
        ``2**bits``. Those of blocks are not; those that ask for stages, rotations, scales,
        feedback or groups that share a codebook are refused.
    importance : Calibration, default=None
        What ``calibrate`` found: errors of a weight count as much as its input does, and those of
        embeddings by how often a row is looked up. For "kmeans" only.
    gradient : {"mean", "sum"}, default="mean"
        What the gradient of a value is of those of its weights.
    progress : callable, default=None
        Is told what is being done: ``progress(name, done, total)``, in values of the weights.

    Returns
    -------
    report : ModelReport
        As of ``compress_model``: bytes exactly as ``save`` writes them, errors, values of codebooks
        that no weight has. Prints as a table.

    Raises
    ------
    ValueError, TypeError
        If an argument is none that is accepted, rows are no whole number of groups or do not lie
        together (transposed convolutions by "row"), or a codebook does not fit into its dtype. The
        model was not changed then.

    See Also
    --------
    compress_model : Codes for blocks of weights, for less than a bit or two each.

    Notes
    -----
    Nothing is random. Codebooks are stored in float16, as the spec's ``codebook_dtype`` says, and
    each weight has the code of the nearest value as stored ("linear": of its bin). A tensor with no
    more than ``2**bits`` different weights is so reproduced to within float16.

    A padding row of zeros stays one.

    References
    ----------
    Zhao et al. 2020, "An Investigation on Different Underlying Quantization Schemes for Pre-trained
    Language Models", arXiv:2010.07109, sections 3.1 and 3.2; it finds k-means by k-means++ and
    three rounds of Lloyd's iteration.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 32), torch.nn.Linear(32, 64))
    >>> report = nn.scalar_quantize(model, bits=3)
    >>> [(tensor.name, tensor.stored_bytes) for tensor in report.compressed]  # 3 bits and 8 values
    [('0.weight', 1216), ('1.weight', 784)]
    >>> len(model[1].weight.unique())
    8

    One codebook for each row:

    >>> layer = torch.nn.Linear(256, 4)
    >>> report = nn.scalar_quantize(layer, bits=2, granularity="row")
    >>> [len(row.unique()) for row in layer.weight]
    [4, 4, 4, 4]
    """
    _check(model, bits, scheme, granularity, group_size, importance)
    check_arguments(importance, gradient, None)
    resolved = scalar_spec(resolved_spec(spec, model, has_calibration=True), int(bits))
    targets = scalar_targets(model, resolved, granularity, int(group_size))
    check_targets(targets, has_calibration=importance is not None)
    work = Work(targets, importance, None, progress)
    for group in groups_of(targets):
        work.take(group, partial(_matrices, group, scheme, importance))
    return work.registered(model, resolved, gradient)


def _matrices(group: list[Target], scheme: str, importance: Calibration | None) -> Matrices:
    return {target.found.name: scalar_matrix(target, scheme, importance) for target in group}


def _check(
    model: Any, bits: Any, scheme: Any, granularity: Any, group_size: Any, importance: Any
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Got a model of type {type(model).__name__}, but expected a Module.")
    check_integer("bits", bits, 1)
    if bits > MOST_BITS:
        raise InvalidParameterError(f"Got bits={bits}, but expected an int from 1 to {MOST_BITS}.")
    check_choice("scheme", scheme, SCHEMES)
    check_choice("granularity", granularity, GRANULARITIES)
    check_integer("group_size", group_size, 1)
    if importance is not None and scheme != "kmeans":
        raise ValueError(
            f"Got importance with scheme={scheme!r}, but expected scheme='kmeans': the others do "
            "not look at errors."
        )
