"""compress_model: from a model's weights to codebooks and codes, in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from torch import nn

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.codebook_weight import GRADIENTS, CodebookWeight
from pgkmeans_sk.nn.model_report import ModelReport, report_on
from pgkmeans_sk.nn.presets import resolved_spec
from pgkmeans_sk.nn.registration import register_matrix
from pgkmeans_sk.nn.selection import Target, find_targets, names_with_types
from pgkmeans_sk.nn.weight_matrices import compressed_alone, compressed_together
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.validation import check_choice, check_integer

Progress = Callable[[str, int, int], None]
"""``(name, done, total)``: a tensor begins, so many values are done; at the end, the name is ""."""


def compress_model(
    model: nn.Module,
    spec: Spec | TensorSettings | Mapping[str, Any] | str | PathLike[str] | None = None,
    *,
    importance: Calibration | None = None,
    feedback: bool | None = None,
    gradient: str = "mean",
    random_state: int | None = 0,
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
        threads.
    progress : callable, default=None
        Is told what is being done: ``progress(name, done, total)``, in values of the weights.

    Returns
    -------
    report : ModelReport
        What became of each tensor: bytes before and after, exactly as ``save`` writes them, bits
        per weight, error, code words that are not used (0 unless there are fewer distinct blocks),
        seconds. Prints as a table.

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
    begin = time.perf_counter()
    spec = resolved_spec(spec, model, has_calibration=importance is not None)
    if feedback is not None:
        spec = spec.with_defaults(feedback=feedback)
    check_arguments(importance, gradient, random_state)
    targets = find_targets(model, spec)
    check_targets(targets, has_calibration=importance is not None)
    work = _Work(targets, importance, random_state, progress)
    matrices = work.run()

    seconds = work.seconds
    _register(targets, matrices, gradient)
    names = names_with_types(model)
    return report_on(
        model,
        reasons={name: t.reason for t in targets for name in t.found.names},
        seconds=seconds,
        unused_rules=tuple(map(str, spec.unused_rules(names))),
        total_seconds=time.perf_counter() - begin,
    )


@dataclass
class _Work:
    """Compressing one weight after the other, without touching the model."""

    targets: list[Target]
    calibration: Calibration | None
    random_state: int | None
    progress: Progress | None

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._done = 0
        self._total = sum(t.found.tensor.numel() for t in self.targets if t.layout is not None)

    def run(self) -> dict[str, CompressedMatrix]:
        """The matrix of each target that is compressed, by name."""
        matrices: dict[str, CompressedMatrix] = {}
        for group in _groups(self.targets):
            begin = time.perf_counter()
            self._tell(group[0].found.name)
            if group[0].settings.group is None:
                matrix = compressed_alone(group[0], self.calibration, self.random_state)
                found = {group[0].found.name: matrix}
            else:
                found = compressed_together(group, self.random_state)
            matrices.update(found)
            share = (time.perf_counter() - begin) / len(group)
            self.seconds.update(dict.fromkeys(found, share))
            self._done += sum(target.found.tensor.numel() for target in group)
        self._done = self._total
        self._tell("")
        return matrices

    def _tell(self, name: str) -> None:
        if self.progress is not None:
            self.progress(name, self._done, self._total)


def _groups(targets: Iterable[Target]) -> list[list[Target]]:
    """Targets that are compressed together, in the order of the model."""
    groups: dict[object, list[Target]] = {}
    for target in targets:
        if target.layout is not None:
            key = target.found.name if target.settings.group is None else (target.settings.group,)
            groups.setdefault(key, []).append(target)
    return list(groups.values())


def _register(
    targets: list[Target], matrices: Mapping[str, CompressedMatrix], gradient: str
) -> None:
    for group in _groups(targets):
        first = group[0].found.tensor
        weights: list[CodebookWeight] = []
        for target in group:
            matrix = matrices[target.found.name]
            codebook = first if weights else None
            assert codebook is None or isinstance(codebook, nn.Parameter)
            weights.append(
                register_matrix(
                    target.found, matrix, target.axis, gradient=gradient, codebook=codebook
                )
            )
        if len(weights) > 1:
            weights[0].share_codebook_with(weights[1:])


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
    for group in _groups(targets):
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
