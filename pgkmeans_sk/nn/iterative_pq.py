"""IterativePQ: compress a group of layers, train, and go on to the next."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from typing import Any

from torch import nn

from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.compress import check_arguments, check_targets, compress_model
from pgkmeans_sk.nn.layer_groups import Groups, LayerGroup, layer_groups
from pgkmeans_sk.nn.model_report import ModelReport
from pgkmeans_sk.nn.presets import resolved_spec
from pgkmeans_sk.nn.selection import FoundTensor, Target, find_targets, find_tensors
from pgkmeans_sk.nn.stage import Stage
from pgkmeans_sk.nn.state import compressed_state
from pgkmeans_sk.nn.training_state import check_state, read_facts, read_state, write_state
from pgkmeans_sk.progress import Progress
from pgkmeans_sk.spec import Rule, Spec, TensorSettings


class IterativePQ:
    """Iterative product quantization: compress a model group by group, with training in between.

    Each step of the iteration compresses the next group of layers by ``compress_model`` and yields
    a ``Stage``; the body of the loop trains the model: the codebooks of all groups compressed so
    far, and all weights that are not compressed yet, which learn to make up for the error. Codes
    stay as they are. When the loop ends, everything is compressed and trained.

    Parameters
    ----------
    model : Module
        Any model; compressed in place. Weights that are compressed already count as done. Weights
        of later groups may have Quant-Noise; it is removed from a group when that is compressed.
    spec : Spec, TensorSettings, dict, path of a YAML file, "auto", "ipq" or None, default=None
        As of ``compress_model``. "ipq" are the sizes of blocks of the paper.
    groups : {"ipq", "input_to_output"}, list or dict, default="ipq"
        Which weights are compressed together, and in which order. "ipq": the linear layers of FFNs,
        then embeddings, then attention, as names and types tell, then all others (heads, poolers);
        a model with convolutions and without attention: "input_to_output", which is one layer after
        the other, in the order in which the model holds them. A list: an entry for each group; a
        glob or compiled regular expression for whole names of tensors, a class of modules, a
        ``Rule`` or dict (``match``, ``regex``, ``type``) without settings, or a list of such. A
        dict: the same, with names for the groups. A weight belongs to the first that fits; what
        none fits is a last group, "others".
    importance : Calibration or callable, default=None
        As of ``compress_model``. A callable ``model -> Calibration`` is called before each group
        anew, since inputs of layers change with what was compressed and trained before them.
    feedback : bool, default=None
        As of ``compress_model``.
    gradient : {"mean", "sum"}, default="mean"
        As of ``compress_model``.
    random_state : int or None, default=0
        As of ``compress_model``, for each group.
    checkpoint : str or PathLike, default=None
        A file in which the state of the model is stored at the beginning, and after each stage,
        once its training is done. If the file is there when the iteration begins, the model is
        brought into its state, whatever its weights, and the iteration goes on with the next group.
    progress : callable, default=None
        As of ``compress_model``, for each group.

    Attributes
    ----------
    model : Module
        The model.
    spec : Spec
        As it is for this model.
    groups : tuple of LayerGroup
        All groups, in order. ``len()`` is their number.

    Raises
    ------
    ValueError, TypeError
        If an argument is none that is accepted, a group has no weights, nothing is to be
        compressed, or weights cannot be compressed as the spec says. The model was not changed.

    See Also
    --------
    distillation_loss : Training without labels, against the model as it was.

    Notes
    -----
    *Starting again.* A run that was killed, at any point, is started again by the same program:
    the model is built and initialised as before, and given to ``IterativePQ`` with the same
    arguments. Groups whose training was finished are not done again, and the result has the same
    bits as that of a run that went through, if what the body of the loop does depends on nothing
    but the model and ``stage``: make the optimiser anew in each stage, and seed generators by
    ``stage.number``. The file is replaced as a whole, so it is always that of a finished stage. It
    is a safetensors file, larger than that of ``save``: weights are as training needs them. A file
    of a run with other groups or settings is refused.

    *Optimisers.* Parameters stay the same objects, but those of the group have another shape. Make
    the optimiser anew in each stage, with ``stage.parameters()`` or ``stage.parameter_groups()``;
    or call ``stage.reset_optimizer_state(optimizer)`` first.

    *An iteration that is left early* (by ``break`` or an exception) leaves the model as it is then.
    Iterating again goes on with the group after the last one that was compressed; with
    ``checkpoint``, with the one after the last whose training was finished.

    *Several processes* compress alike if their models are alike, and may write the same file.
    DistributedDataParallel remembers the shapes of parameters: wrap the model anew in each stage.

    References
    ----------
    Fan et al. 2020, "Training with Quantization Noise for Extreme Model Compression",
    arXiv:2004.07320, section 4.2; order of groups: the program published with it.
    Stock et al. 2019, "And the bit goes down", arXiv:1907.05686, section 3.3: layer by layer.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.ModuleDict(
    ...     {"embed": torch.nn.Embedding(200, 32), "fc1": torch.nn.Linear(32, 128)}
    ... )
    >>> def train(stage):
    ...     optimizer = torch.optim.SGD(stage.parameter_groups({"lr": 0.05}), lr=0.01)
    ...     for _ in range(2):
    ...         optimizer.zero_grad()
    ...         model["fc1"](model["embed"](torch.arange(200))).square().mean().backward()
    ...         optimizer.step()
    >>> for stage in nn.IterativePQ(model, {"defaults": {"n_codes": 16}}):
    ...     print(stage.number, stage.name, stage.tensors)
    ...     train(stage)
    1 ffn ('fc1.weight',)
    2 embeddings ('embed.weight',)
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec | TensorSettings | Mapping[str, Any] | str | PathLike[str] | None = None,
        *,
        groups: Groups = "ipq",
        importance: Calibration | Callable[[nn.Module], Calibration] | None = None,
        feedback: bool | None = None,
        gradient: str = "mean",
        random_state: int | None = 0,
        checkpoint: str | PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"Got a model of type {type(model).__name__}, but expected a torch.nn.Module."
            )
        known = None if callable(importance) else importance
        check_arguments(known, gradient, random_state)
        has_calibration = importance is not None
        # Once for all stages: "ipq" looks at weights, which codebooks are not.
        spec = resolved_spec(spec, model, has_calibration=has_calibration)
        if feedback is not None:
            spec = spec.with_defaults(feedback=feedback)
        targets = find_targets(model, spec)
        check_targets(targets, has_calibration=has_calibration)
        self.model = model
        self.spec = spec
        self.groups = layer_groups(targets, groups)
        if not self.groups and not compressed_state(model):
            raise ValueError("Got a model and a spec without any weight that would be compressed.")
        self._importance = importance
        self._gradient = gradient
        self._random_state = random_state
        self._progress = progress
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._facts = self._plan(targets)
        if self._checkpoint is not None:
            _check_place(self._checkpoint)
            check_state(model)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Stage]:
        remaining = self.remaining
        if self._checkpoint is not None and self._checkpoint.exists():
            read_state(self.model, self._checkpoint)
        else:
            self._store(0)
        for number, group in enumerate(self.groups, start=1):
            if group in remaining:
                yield self._compress(number, group)
                self._store(number)

    @property
    def remaining(self) -> tuple[LayerGroup, ...]:
        """The groups that an iteration would yield if it began now.

        Raises
        ------
        ValueError
            If the file given as ``checkpoint`` is not one of this run.
        OSError
            If it cannot be read.
        """
        if self._checkpoint is not None and self._checkpoint.exists():
            return self.groups[self._n_finished(self._checkpoint) :]
        done = {place.name for state in compressed_state(self.model) for place in state.places}
        return tuple(group for group in self.groups if not done.issuperset(group.tensors))

    def run(self, train: Callable[[nn.Module, Stage], object]) -> nn.Module:
        """Call ``train(model, stage)`` in each stage.

        Returns
        -------
        model : Module
            The same, compressed and trained.
        """
        if not callable(train):
            raise TypeError(f"Got train={train!r}, but expected a function of model and stage.")
        for stage in self:
            train(self.model, stage)
        return self.model

    def _compress(self, number: int, group: LayerGroup) -> Stage:
        found = [entry for entry in find_tensors(self.model) if entry.name in group.tensors]
        before = [entry.tensor for entry in found if isinstance(entry.tensor, nn.Parameter)]
        calibration = self._importance
        if callable(calibration):
            calibration = calibration(self.model)
        report = compress_model(
            self.model,
            self._spec_for(found),
            importance=calibration,
            gradient=self._gradient,
            random_state=self._random_state,
            progress=self._progress,
        )
        _check_all_compressed(report, group)
        kept = {id(parameter) for parameter in self.model.parameters()}
        return Stage(
            number=number,
            n_stages=len(self.groups),
            name=group.name,
            tensors=group.tensors,
            model=self.model,
            report=self._explained(report, number),
            codebooks=tuple(p for p in before if id(p) in kept),
            retired=tuple(p for p in before if id(p) not in kept),
        )

    def _spec_for(self, found: list[FoundTensor]) -> Spec:
        """The spec, with all but the tensors of a group left as they are."""
        names = {name for entry in found for name in entry.names}
        others = [e.name for e in find_tensors(self.model) if e.name not in names]
        if not others:  # a rule that nothing fits would be reported
            return self.spec
        escaped = "|".join(re.escape(name) for name in sorted(names))
        return self.spec.with_rules(Rule(regex=f"(?!(?:{escaped})$).*", settings={"skip": True}))

    def _explained(self, report: ModelReport, number: int) -> ModelReport:
        """The report, with what is to come as the reason why tensors are left as they are."""
        later = {
            name: f"in the group {group.name!r}, which is compressed later"
            for group in self.groups[number:]
            for name in group.tensors
        }
        tensors = tuple(
            replace(tensor, carried_because=later.get(tensor.name, tensor.carried_because))
            for tensor in report.tensors
        )
        return replace(report, tensors=tensors)

    # ---------------------------------------------------------------- starting again

    def _plan(self, targets: list[Target]) -> dict[str, Any]:
        """What has to be the same for a run to go on: groups, shapes and settings."""
        shapes = {t.found.name: (str(t.found.tensor.dtype), *t.found.tensor.shape) for t in targets}
        plan = {
            "groups": [
                {"name": group.name, "tensors": {name: shapes[name] for name in group.tensors}}
                for group in self.groups
            ],
            "spec": self.spec.to_dict(),
            "gradient": self._gradient,
            "random_state": None if self._random_state is None else int(self._random_state),
        }
        as_read: dict[str, Any] = json.loads(json.dumps(plan))
        return as_read

    def _store(self, n_finished: int) -> None:
        if self._checkpoint is not None:
            write_state(self.model, self._checkpoint, {**self._facts, "finished": n_finished})

    def _n_finished(self, checkpoint: Path) -> int:
        """How many stages the run had finished that a file is of."""
        facts = read_facts(checkpoint)
        for name, expected in self._facts.items():
            if facts.get(name) != expected:
                raise ValueError(
                    f"{checkpoint}: got a run with {name} {short(facts.get(name))}, but "
                    f"expected {short(expected)}: give the same arguments and a model as it was "
                    "then, or remove the file."
                )
        n_finished: int = facts["finished"]
        return n_finished


def _check_place(path: Path) -> None:
    """Raise unless a file could be written there: better now than after hours of training."""
    if path.is_dir():
        raise ValueError(f"Got checkpoint={str(path)!r}, a folder, but expected a file's name.")
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"Got checkpoint={str(path)!r}, but expected a file in a folder that exists."
        )


def _check_all_compressed(report: ModelReport, group: LayerGroup) -> None:
    for tensor in report.carried:
        if tensor.name in group.tensors:
            raise ValueError(
                f"Got {tensor.name!r} of the group {group.name!r}, which "
                f"{tensor.carried_because} now, but expected a weight that can be compressed."
            )
