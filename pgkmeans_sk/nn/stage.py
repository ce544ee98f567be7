"""A stage of iPQ: a group of layers has been compressed, and training is to make up for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pgkmeans_sk.nn.model_report import ModelReport
from pgkmeans_sk.nn.state import compressed_state


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """What ``IterativePQ`` yields: a group of weights has just been compressed.

    Attributes
    ----------
    number : int
        From 1 to ``n_stages``; the same after a run was started again.
    n_stages : int
        Of the whole run.
    name : str
        Of the group.
    tensors : tuple of str
        The weights of the group.
    model : Module
        The model, as it is now.
    report : ModelReport
        On all tensors of the model; ``seconds`` are those of this stage.
    codebooks : tuple of Parameter
        Of the group. They are the parameters that held its weights before, but for those that gave
        way to a codebook that several weights share.
    retired : tuple of Parameter
        Those that gave way.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    >>> spec = {"defaults": {"n_codes": 16}}
    >>> for stage in nn.IterativePQ(model, spec, groups=["0.*", "1.*"]):
    ...     optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)  # and train
    ...     print([tensor.name for tensor in stage.report.compressed])
    ['0.weight']
    ['0.weight', '1.weight']
    """

    number: int
    n_stages: int
    name: str
    tensors: tuple[str, ...]
    model: nn.Module
    report: ModelReport
    codebooks: tuple[nn.Parameter, ...]
    retired: tuple[nn.Parameter, ...]

    @property
    def is_last(self) -> bool:
        """Whether everything is compressed now."""
        return self.number == self.n_stages

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained now: codebooks, and what is not compressed (yet).

        Codebooks are those of this and of earlier groups. Parameters that do not require gradients
        are left out.
        """
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def parameter_groups(
        self,
        codebooks: Mapping[str, Any] | None = None,
        others: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """``parameters()`` in groups for an optimiser, with options of their own.

        Parameters
        ----------
        codebooks : mapping, default=None
            Options for the codebooks of this and earlier groups, as ``{"lr": 0.05}``.
        others : mapping, default=None
            Options for all other parameters.

        Returns
        -------
        groups : list of dict
            Codebooks first. A group without parameters is left out.

        Notes
        -----
        A code word's gradient is the mean over its blocks (``gradient="mean"``), and so about as
        small as that of a single weight: codebooks can take a larger learning rate. The program of
        Stock et al. 2019 trains those of a layer with SGD, momentum 0.9, at 0.05, and in the end
        those of all layers at 0.01. For optimisers that divide by the size of gradients, as Adam,
        one rate may do for both.
        """
        states = compressed_state(self.model)
        ids = {id(state.original) for state in states if state.weight.original_is_codebook}
        groups = []
        for is_codebook, options in ((True, codebooks), (False, others)):
            members = [p for p in self.parameters() if (id(p) in ids) == is_codebook]
            if members:
                groups.append({**(options or {}), "params": members})
        return groups

    def reset_optimizer_state(self, optimizer: Optimizer) -> None:
        """Let an optimiser that was made before this stage go on with it.

        What it remembers of the group's parameters (momentum, second moments) is about weights
        of another shape, and is dropped; parameters that are not of the model any more are taken
        out. All else goes on as it was.

        Parameters
        ----------
        optimizer : Optimizer
            Of any kind that keeps its memory by parameter, as those of torch do.
        """
        for parameter in (*self.codebooks, *self.retired):
            optimizer.state.pop(parameter, None)
        retired = {id(parameter) for parameter in self.retired}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in retired]
