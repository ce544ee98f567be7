"""compress_model: from a model's weights to codebooks and codes, in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from torch import nn

from pgkmeans_sk.jobs import check_n_jobs
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.codebook_weight import GRADIENTS
from pgkmeans_sk.nn.model_report import ModelReport
from pgkmeans_sk.nn.presets import resolved_spec
from pgkmeans_sk.nn.selection import Target, find_targets
from pgkmeans_sk.nn.work import Work, groups_of
from pgkmeans_sk.progress import Progress
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.validation import check_choice, check_integer


def compress_model(
    model: nn.Module,
    spec: Spec | TensorSettings | Mapping[str, Any] | str | PathLike[str] | None = None,
    *,
    importance: Calibration | None = None,
    feedback: bool | None = None,
    gradient: str = "mean",
    random_state: int | None = 0,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> ModelReport:
    """Replace the weights of a model by codebooks and codes, in place.

    Each weight becomes a parametrization (``CodebookWeight``): the parameter holds the codebook,
    and the weight is looked up whenever it is read. So the model is used, trained and moved as
    before; ``save`` writes it as one small file, ``bake`` makes it a plain model again.

    Compressed are the weights of linear layers, embeddings and convolutions of any kind, and of
    multi-head attention; other parameters of two axes or more only if a rule of the spec says
    ``skip: false`` for them by name. Tied weights are compressed once and stay tied.

    Parameters
    ----------
    model : Module
        Any model. Quant-Noise on a weight that is compressed is removed first.
    spec : Spec, TensorSettings, dict, path of a YAML file, "auto", "ipq" or None
        How each tensor is to be compressed: defaults, and rules by name or type of module, of
        which the last wins. None: blocks of 8 values and 256 code words for all. "auto" is what
        keeps most of the model's quality at about 2 bits a weight (docs/model_compression.md), and
        needs ``importance``; "ipq" are the sizes of blocks of the paper.
    importance : Calibration, default=None
        What ``calibrate`` found: errors count as much as they change what layers put out.
    feedback : bool, default=None
        Whether codes and codebooks minimise the error of the layer's output, all blocks of a row
        together, rather than that of each block (``compress_with_feedback``); needs ``importance``,
        and takes longer. Weights of which the calibration has no full second moment, such as
        embeddings, are compressed as without. None: as the spec says.
    gradient : {"mean", "sum"}, default="mean"
        What the gradient of a code word is of those of its blocks.
    random_state : int or None, default=0
        For all random choices. With an int, results have the same bits each time, for any number of
        threads and workers.
    n_jobs : int or None, default=None
        How many weights are compressed at a time, by workers of joblib: processes, or those of the
        backend that ``joblib.parallel_config`` names. None is 1 unless that says more, -1 as many
        as there are processors. They share the processors: a single weight is compressed by several
        threads already, and workers pay where weights are many and small.
    progress : callable, default=None
        Is told what is being done: ``progress(name, done, total)``, in values of the weights. With
        several workers, the name is that of one of the weights that are being compressed.

    Returns
    -------
    report : ModelReport
        What became of each tensor: bytes before and after, exactly as ``save`` writes them, bits
        per weight, error, code words that are not used (0 unless there are fewer distinct blocks),
        seconds (of the worker). Prints as a table.

    Raises
    ------
    ValueError, TypeError
        If the spec, or a weight with the spec, is none that can be compressed. The model was not
        changed then.

    References
    ----------
    Fan et al. 2020, arXiv:2004.07320 (iPQ), where the codebook of a layer is shared by all blocks;
    Stock et al. 2019, arXiv:1907.05686.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 32), torch.nn.Linear(32, 64))
    >>> report = nn.compress_model(
    ...     model, {"defaults": {"n_codes": 32}, "rules": [{"type": "Embedding", "block_size": 4}]}
    ... )
    >>> [(tensor.name, tensor.stored_bytes) for tensor in report.compressed]
    [('0.weight', 756), ('1.weight', 672)]
    >>> model[1].parametrizations.weight.original.shape
    torch.Size([1, 1, 32, 8])
    """
    spec = resolved_spec(spec, model, has_calibration=importance is not None)
    if feedback is not None:
        spec = spec.with_defaults(feedback=feedback)
    check_arguments(importance, gradient, random_state)
    check_n_jobs(n_jobs)
    targets = find_targets(model, spec)
    check_targets(targets, has_calibration=importance is not None)
    work = Work(targets, importance, random_state, progress)
    work.compress_all(n_jobs)
    return work.registered(model, spec, gradient)


def check_arguments(importance: Any, gradient: Any, random_state: Any) -> None:
    """Raise unless these are arguments of ``compress_model``."""
    check_choice("gradient", gradient, GRADIENTS)
    if random_state is not None:
        check_integer("random_state", random_state, 0)
    if importance is not None and not isinstance(importance, Calibration):
        raise TypeError(
            f"Got importance of type {type(importance).__name__}, but expected what calibrate "
            "returns."
        )


def check_targets(targets: Iterable[Target], *, has_calibration: bool) -> None:
    """Raise if a tensor's settings ask for what there is not."""
    targets = list(targets)
    for target in targets:
        name, settings = target.found.name, target.settings
        if target.layout is None:
            continue
        if target.found.tensor.is_meta:
            raise ValueError(f"Got {name!r} on the meta device, but expected weights with values.")
        if settings.feedback and not has_calibration:
            raise ValueError(
                f"Got feedback=True for {name!r} without importance, but expected what calibrate "
                "returns: feedback is about the layer's inputs."
            )
        if settings.group is not None:
            for option in ("rotation", "scale", "feedback"):
                if getattr(settings, option):
                    raise ValueError(
                        f"Got {option}={getattr(settings, option)!r} for {name!r} of the group "
                        f"{settings.group!r}, but expected none: a shared codebook is for plain "
                        "blocks."
                    )
    for group in groups_of(targets):
        _check_group(group)


def _check_group(group: list[Target]) -> None:
    first = group[0]
    for target in group[1:]:
        for what, one, other in (
            ("settings", first.settings, target.settings),
            ("dtypes", first.found.tensor.dtype, target.found.tensor.dtype),
            ("devices", first.found.tensor.device, target.found.tensor.device),
        ):
            if one != other:
                raise ValueError(
                    f"Got different {what} for {first.found.name!r} and {target.found.name!r}, but "
                    f"expected equal ones in the group {first.settings.group!r}."
                )
    if first.settings.group is not None:
        _check_width(group)


def _check_width(group: list[Target]) -> None:
    """Raise if a weight of a group is narrower than the blocks that it shares with others."""
    for target in group:
        layout, settings = target.layout, target.settings
        if layout is not None and layout.n_features < settings.block_size:
            raise ValueError(
                f"Got {target.found.name!r} with {layout.n_features} columns in the group "
                f"{settings.group!r}, but expected at least block_size={settings.block_size}."
            )
