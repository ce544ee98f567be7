"""compress_in_sequence: each layer makes up for what the layers before it have lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from glob import escape
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.feedback import output_shift
from pgkmeans_sk.nn.calibration import Calibration, calibrate, check_run
from pgkmeans_sk.nn.call_order import CalledLayer, called_once
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.compress import check_arguments, check_targets
from pgkmeans_sk.nn.devices import words_on
from pgkmeans_sk.nn.drift_sums import DriftedInputs, DriftSums
from pgkmeans_sk.nn.input_statistics import (
    Forward,
    MaskOf,
    given_mask,
    run_batch,
    unfitting_mask,
)
from pgkmeans_sk.nn.layer_inputs import RowMask
from pgkmeans_sk.nn.layers import type_names
from pgkmeans_sk.nn.lockstep import Lane, Lockstep
from pgkmeans_sk.nn.model_report import ModelReport
from pgkmeans_sk.nn.presets import resolved_spec
from pgkmeans_sk.nn.selection import FoundTensor, Target, find_targets, find_tensors
from pgkmeans_sk.nn.untouched import untouched
from pgkmeans_sk.nn.weight_matrices import compressed_with_drift, rows_of
from pgkmeans_sk.nn.weight_uses import uses_of
from pgkmeans_sk.nn.work import Work, groups_of
from pgkmeans_sk.progress import Progress
from pgkmeans_sk.spec import Spec, TensorSettings

LINEAR = ("Linear", "Conv1D")
CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")
MAX_COLUMNS = 8192
"""Of a weight that is compressed in sequence: three matrices of 8 columns**2 bytes are kept."""


def compress_in_sequence(
    model: nn.Module,
    batches: Iterable[Any],
    spec: Spec | TensorSettings | Mapping[str, Any] | str | PathLike[str] | None = "auto",
    *,
    forward: Forward | None = None,
    mask: MaskOf | None = None,
    correct_biases: bool = True,
    gradient: str = "mean",
    random_state: int | None = 0,
    progress: Progress | None = None,
) -> ModelReport:
    r"""Replace the weights of a model by codebooks and codes, in place, layer after layer.

    As ``calibrate`` and ``compress_model`` with ``feedback=True``, but each layer is compressed for
    the inputs that it gets once all layers before it are compressed, and makes up for what those
    have lost. This keeps more of a model's quality at the same size, and takes about as long.

    The model and a copy, which is compressed on the way, go through the batches side by side, from
    layer to layer. Compressed in this way are the weights of linear layers and convolutions that
    are called once in a pass. All others (embeddings, weights that several layers share, weights
    with ``feedback: false`` or a ``group`` in the spec, layers that are not called) are compressed
    first, as ``compress_model`` does.

    Parameters
    ----------
    model : Module
        Any model, whose layers are called in the same order for all batches.
    batches : iterable
        As of ``calibrate``; some thousand tokens are enough. All of them are held, with the states
        of the model on each at one layer, and each waits in a thread of its own: some tens of
        batches rather than thousands.
    spec : Spec, TensorSettings, dict, path of a YAML file, "auto", "ipq" or None
        As of ``compress_model``, with ``feedback: true`` as the default.
    forward : callable, default=None
        ``forward(model, batch)`` runs the model; by default its arguments are the batch.
    mask : callable, default=None
        ``mask(batch)`` gives a tensor (batch, tokens), 0 or False for padding; as of ``calibrate``.
    correct_biases : bool, default=True
        Whether biases of these layers are changed as well, so that their mean outputs are right.
    gradient, random_state, progress
        As of ``compress_model``.

    Returns
    -------
    report : ModelReport
        What became of each tensor.

    Raises
    ------
    ValueError, TypeError
        If an argument is none that is accepted, there are no batches, or they call layers in
        different orders. The model was not changed then.

    See Also
    --------
    compress_model : Without running the model, or with what ``calibrate`` found.

    Notes
    -----
    A layer with weights W and inputs x, where the uncompressed model has x + d, gets the Q of least
    ``E|W (x + d) + r - Q x|^2`` (``compress_with_feedback``). Behind a sum of its output and an
    earlier state, r is how much that state has lost; see ``call_order``.

    References
    ----------
    Frantar et al. 2022, "GPTQ", arXiv:2210.17323, which goes from layer to layer on inputs of the
    compressed model, but with the outputs of W; Li et al. 2025, "GPTAQ", arXiv:2504.02692, for the
    outputs of the uncompressed model (our reading). Making up for the residual is of this package.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(
    ...     torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)
    ... )
    >>> batches = [torch.randn(200, 32) for _ in range(3)]
    >>> report = nn.compress_in_sequence(model, batches, {"defaults": {"n_codes": 16}})
    >>> [tensor.name for tensor in report.compressed]
    ['0.weight', '2.weight']
    """
    spec = resolved_spec(spec, model, has_calibration=True).with_defaults(feedback=True)
    check_arguments(None, gradient, random_state)
    check_run(model, batches, forward=forward, mask=mask)
    if not isinstance(correct_biases, bool):
        raise TypeError(f"Got correct_biases={correct_biases!r}, but expected True or False.")
    targets = find_targets(model, spec)
    check_targets(targets, has_calibration=True)
    kept = list(batches)
    if not kept:
        raise ValueError("Got no batches, but expected at least one.")
    run = run_batch if forward is None else forward
    with untouched(model):
        layers = _layers(model, targets, lambda: run(model, kept[0]))
        others = [g for g in groups_of(targets) if g[0].found.name not in layers]
        calibration = _calibration(model, kept, others, forward, mask)
        work = Work(targets, calibration, random_state, progress)
        sequence = _Sequence(model, layers, work, correct_biases=correct_biases)
        for group in others:
            sequence.install(work.compress(group))
        given = [given_mask(batch, mask) for batch in kept]
        sequence.run(kept, run, given)
    report = work.registered(model, spec, gradient)
    with torch.no_grad():
        for bias, change in sequence.bias_changes:
            bias += torch.from_numpy(change).to(bias.device, bias.dtype)
    return report


class _Sequence:
    """The layers of a model, one after the other, and the copy that they are compressed in.

    Parameters
    ----------
    model : Module
        Not changed.
    layers : mapping of str to (Target, CalledLayer)
        By name of the weight, in the order in which the model calls them.
    work : Work
        Where matrices go.
    correct_biases : bool
        Whether biases may change.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, tuple[Target, CalledLayer]],
        work: Work,
        *,
        correct_biases: bool,
    ) -> None:
        self.model, self.layers, self.work = model, layers, work
        self.copy = deepcopy(model)
        self.bias_changes: list[tuple[Tensor, np.ndarray[Any, np.dtype[np.float64]]]] = []
        self._in_copy = {found.name: found for found in find_tensors(self.copy)}
        self._axes = {target.found.name: target.axis for target in work.targets}
        self._changing_biases = _own_biases(model) if correct_biases else set()

    def install(self, matrices: Mapping[str, CompressedMatrix]) -> None:
        """Give weights of the copy the values that they are compressed to."""
        for name, matrix in matrices.items():
            tensor = self._in_copy[name].tensor
            weight = CodebookWeight.from_matrix(matrix, tuple(tensor.shape), self._axes[name])
            words = words_on(matrix.decoder.codebooks, tensor.device, tensor.dtype)
            tensor.data.copy_(weight.to(tensor.device).dense(words))

    def run(self, batches: Sequence[Any], forward: Forward, given: Sequence[Tensor | None]) -> None:
        """Compress all layers; ``given`` are the masks (batch, tokens) of the batches.

        Raises
        ------
        ValueError
            If there are masks, but they fit the input of no layer; or see ``Lockstep``.
        """
        if not self.layers:
            return
        masks = [RowMask(mask) for mask in given]
        targets = [target for target, _ in self.layers.values()]
        called = [layer for _, layer in self.layers.values()]
        modules = dict(zip(self.model.modules(), self.copy.modules(), strict=True))
        twins = [
            CalledLayer(modules[layer.module], layer.norm and modules[layer.norm])
            for layer in called
        ]
        lanes = (
            Lane(self.model, called, batches, forward, is_changing=False),
            Lane(self.copy, twins, batches, forward, is_changing=True),
        )
        with untouched(self.copy):
            Lockstep(*lanes, masks, list(self.layers)).run(
                lambda number, sums: self._compress(targets[number], sums)
            )
        unfitting = next((mask for mask in given if mask is not None), None)
        if unfitting is not None and not any(mask.fitted for mask in masks):
            raise unfitting_mask(unfitting)

    def _compress(self, target: Target, sums: DriftSums | None) -> None:
        found = target.found
        place = found.places[0]
        bias = place.module._parameters.get("bias")
        is_centered = bias is not None and id(bias) in self._changing_biases
        rows = rows_of(found, target.axis).astype(np.float64)
        inputs = None if sums is None else sums.inputs(rows, is_centered=is_centered)
        if inputs is not None:
            _check_finite(inputs, found)
        if inputs is None or not inputs.second_moment.any():  # masked all, or all zero
            self.install(self.work.compress([target]))
            return

        def compressed() -> dict[str, CompressedMatrix]:
            with naming(f"weight {found.name!r}"):
                matrix = compressed_with_drift(target, inputs, self.work.random_state)
            return {found.name: matrix}

        matrices = self.work.take([target], compressed)
        self.install(matrices)
        if bias is not None and is_centered:
            change = inputs.mean_lack + output_shift(matrices[found.name], rows, inputs.mean)
            self.bias_changes.append((bias, change))
            copied = self._in_copy[found.name].places[0].module._parameters["bias"]
            assert copied is not None
            copied.data += torch.from_numpy(change).to(copied.device, copied.dtype)


def _layers(
    model: nn.Module, targets: Iterable[Target], run: Callable[[], object]
) -> dict[str, tuple[Target, CalledLayer]]:
    """The layers that are compressed in sequence, in the order in which ``run()`` calls them."""
    possible = {target.found.places[0].module: target for target in targets if _is_possible(target)}
    found = {}
    for layer in called_once(model, possible.keys(), run):
        target = possible[layer.module]
        is_linear = any(name in LINEAR for name in type_names(layer.module))
        norm = layer.norm if is_linear else None  # of others, sums stand along other axes
        found[target.found.name] = target, CalledLayer(layer.module, norm)
    return found


def _is_possible(target: Target) -> bool:
    """Whether a weight is one that can be compressed in sequence, if its layer is called once."""
    settings = target.settings
    if target.layout is None or not settings.feedback or settings.group is not None:
        return False
    place = target.found.places[0]
    is_alone = len(target.found.unique_places()) == 1 and place.tensor_name == "weight"
    if not is_alone or target.layout.n_features > MAX_COLUMNS:
        return False
    names = type_names(place.module)
    if any(name in CONVOLUTIONS for name in names):
        return getattr(place.module, "groups", 1) == 1
    return any(name in LINEAR for name in names)


def _calibration(
    model: nn.Module,
    batches: Sequence[Any],
    groups: Iterable[list[Target]],
    forward: Forward | None,
    mask: MaskOf | None,
) -> Calibration | None:
    """What weights that are not compressed in sequence are used for, as far as it counts."""
    names = [
        escape(target.found.name)
        for group in groups
        for target in group
        if target.settings.importance is not None or target.settings.feedback
        if target.found.name in _known_weights(model)
    ]
    if not names:
        return None
    return calibrate(model, batches, forward=forward, mask=mask, names=names)


def _known_weights(model: nn.Module) -> set[str]:
    return {use.first_name for use in uses_of(model)}


def _own_biases(model: nn.Module) -> set[int]:
    """Ids of the biases that one layer alone has, as plain parameters."""
    return {
        id(found.tensor)
        for found in find_tensors(model)
        if found.is_parameter
        and len(found.unique_places()) == 1
        and found.places[0].tensor_name == "bias"
        and found.places[0].parametrizations is None
    }


def _check_finite(inputs: DriftedInputs, found: FoundTensor) -> None:
    for values in (inputs.second_moment, inputs.drift, inputs.mean, inputs.mean_lack):
        if not np.isfinite(values).all():
            raise ValueError(
                f"Got batches with an input of {found.name!r} that is not finite, but expected "
                "finite ones."
            )
