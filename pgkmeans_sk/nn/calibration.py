"""calibrate: what the weights of a model are used for, measured on examples in one pass."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pgkmeans_sk.nn.fisher import Fisher, Loss, fisher_of
from pgkmeans_sk.nn.input_statistics import Forward, MaskOf, input_statistics
from pgkmeans_sk.nn.moments import RowCounts, SecondMoment
from pgkmeans_sk.nn.untouched import untouched
from pgkmeans_sk.nn.weight_uses import chosen, uses_of
from pgkmeans_sk.validation import check_choice, check_integer

KINDS = ("moments", "fisher")
MAX_BYTES = 2**29
"""Of the second moment of one weight: 8192 columns."""

Record = SecondMoment | RowCounts | Fisher


class Calibration(Mapping[str, Record]):
    """What ``calibrate`` found: a record for each weight, by its name in the model's state.

    A tied weight has one record, and is found under any of its names; ``in``, ``len`` and iteration
    know the first one only.

    Attributes
    ----------
    n_batches : int
        Batches that were seen.
    notes : dict of str to str
        By name, what there is to know of a weight beyond its record: why it has none, or why the
        record does not hold all.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Linear(8, 4)
    >>> calibration = nn.calibrate(model, [torch.randn(100, 8)])
    >>> list(calibration), calibration.block_metric("weight", block_size=4).shape
    (['weight'], (4, 4))
    """

    def __init__(
        self,
        records: Mapping[str, Record],
        *,
        n_batches: int,
        notes: Mapping[str, str],
        first_names: Mapping[str, str],
    ) -> None:
        self.n_batches = n_batches
        self.notes = dict(notes)
        self._records = dict(records)
        self._first_names = dict(first_names)

    def __getitem__(self, name: str) -> Record:
        """The record of a weight."""
        first = self._first_names.get(name, name)
        if first in self._records:
            return self._records[first]
        if first in self.notes:
            raise KeyError(f"Got {name!r}, which has no record: {self.notes[first]}.")
        close = difflib.get_close_matches(str(name), self._records, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise KeyError(f"Got {name!r}, but expected one of {', '.join(self._records)}{hint}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def __repr__(self) -> str:
        return f"<Calibration of {len(self)} weights on {self.n_batches} batches>"

    def block_metric(self, name: str, block_size: int) -> NDArray[np.float64]:
        """The metric (b, b) in which errors of a block count as they change the layer's output.

        The average of the diagonal blocks of ``E[x x^T]`` over all whole blocks of columns, for
        ``importance`` of ``ProductQuantizer.fit``; b is ``block_size``, at most all columns.

        Raises
        ------
        KeyError
            If the weight has no record.
        ValueError
            If the record is no second moment, or does not hold enough of it.
        """
        record = self[name]
        if not isinstance(record, SecondMoment):
            raise ValueError(
                f"Got {name!r}, of which there are {type(record).__name__}, but expected a weight "
                "with a second moment."
            )
        return record.block_metric(block_size)

    def column_importance(self, name: str) -> NDArray[np.float64]:
        """What the squared error of each column counts, (in,): ``E[x**2]``, or by Fisher.

        Raises
        ------
        KeyError
            If the weight has no record.
        ValueError
            If the record knows nothing of columns.
        """
        record = self[name]
        if isinstance(record, RowCounts):
            raise ValueError(
                f"Got {name!r}, whose rows are looked up, but expected a weight with columns that "
                "count differently."
            )
        return record.columns if isinstance(record, Fisher) else record.diagonal

    def row_weights(self, name: str, exponent: float = 0.5) -> NDArray[np.float64] | None:
        """What the squared error of each row counts, (out,); None if all count the same.

        ``(1 + lookups) ** exponent`` for the rows of an embedding: by 1, each row counts by how
        often it is used in the batches; by less, rows that happen to be rare or absent in them
        count more. Or the mean squared gradient of each row, by Fisher, whatever the exponent.

        Raises
        ------
        KeyError
            If the weight has no record.
        """
        record = self[name]
        if isinstance(record, Fisher):
            return record.rows
        counts = record.counts if isinstance(record, RowCounts) else record.row_counts
        return None if counts is None else np.power(1.0 + counts, exponent, dtype=np.float64)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    kind: str = "moments",
    forward: Forward | None = None,
    loss: Loss | None = None,
    names: Iterable[str] | str | None = None,
    mask: MaskOf | None = None,
    max_bytes: int = MAX_BYTES,
) -> Calibration:
    r"""Measure on examples what the weights of a model are used for.

    The model is run once over the batches, in evaluation mode. If a layer has weights W (out, in)
    and inputs x, using Q instead of W changes its output by ``E|x (W - Q)^T|^2``, which is
    ``tr((W - Q) H (W - Q)^T)`` with ``H = E[x x^T]``. H is summed up batch by batch; inputs are not
    kept. Afterwards the model is as it was, also after an error: modes, hooks, gradients and their
    flags, and the state of torch's random numbers.

    Parameters
    ----------
    model : Module
        Any model. Known are linear layers (also ``Conv1D`` of transformers), embeddings,
        convolutions, transposed ones too, and the input projections of ``MultiheadAttention``.
    batches : iterable
        Examples, on the device of the model: tensors, tuples or lists of positional arguments, or
        mappings of keyword arguments. The order of a shuffled loader is undone afterwards, so that
        the next call has the same.
    kind : {"moments", "fisher"}, default="moments"
        What is measured.

        - "moments": a ``SecondMoment`` of the inputs of each weight; of embeddings, ``RowCounts``.
        - "fisher": a ``Fisher`` of each weight, the mean over the batches of the squared gradient
          of their loss. Batches of one example give the Fisher information of the examples; larger
          ones are quicker, and tell more of the mean gradient than of its variation.
    forward : callable, default=None
        ``forward(model, batch)`` runs the model; by default its arguments are the batch. Only for
        moments.
    loss : callable, default=None
        ``loss(model, batch)`` gives a tensor of one value. Only for, and needed by, Fisher.
    names : str or iterable of str, default=None
        Globs for the names of weights; others are not looked at. None: all.
    mask : callable, default=None
        ``mask(batch)`` gives a tensor (batch, tokens), 0 or False for padding, or None if all
        tokens of this batch count. By default ``batch["attention_mask"]``, if the batch is a
        mapping with one of two axes. It holds for inputs of shape (batch, tokens, ..., in), and
        for indices without the last axis; in other layers, such as convolutions and what comes
        after pooling, all inputs count. Only for moments.
    max_bytes : int, default=2**29
        Limit for the second moment of one weight, 8 ``in**2`` bytes. Of a larger one, only what is
        along the diagonal is kept; ``notes`` says so.

    Returns
    -------
    calibration : Calibration
        A record by name of the weight. ``notes`` has the weights without.

    Raises
    ------
    ValueError, TypeError
        If an argument is none that is accepted, there are no batches, inputs or gradients are not
        finite, or the mask fits nothing.

    References
    ----------
    Stock et al. 2019, "And the bit goes down", arXiv:1907.05686, section 3.2; Frantar et al. 2022,
    "GPTQ", arXiv:2210.17323, section 3; Kim et al. 2023, "SqueezeLLM", arXiv:2306.07629, section
    4.1.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 3, bias=False))
    >>> tokens = torch.tensor([[1, 2, 2], [2, 9, 0]])
    >>> calibration = nn.calibrate(model, [tokens], mask=lambda batch: batch != 0)
    >>> calibration["0.weight"].counts
    array([0, 1, 3, 0, 0, 0, 0, 0, 0, 1])
    >>> calibration["1.weight"].full.shape, calibration["1.weight"].n_rows
    ((4, 4), 5)
    >>> calibration.block_metric("1.weight", 2).shape
    (2, 2)
    """
    _check(model, batches, kind, forward, loss, mask, max_bytes)
    with untouched(model):
        all_uses = uses_of(model)
        uses = chosen(all_uses, names)
        notes: dict[str, str] = {}
        records: Mapping[str, Record]
        if loss is not None:
            records, n_batches = fisher_of(model, batches, loss, uses)
        else:
            records, notes, n_batches = input_statistics(
                model, batches, uses, forward, mask, max_bytes
            )
    if n_batches == 0:
        raise ValueError("Got no batches, but expected at least one.")
    missing = "its layer was never called" if loss is None else "the loss does not depend on it"
    firsts = dict.fromkeys(use.first_name for use in uses)
    _check_finite(records)
    return Calibration(
        {name: records[name] for name in firsts if name in records},
        n_batches=n_batches,
        notes={name: missing for name in firsts if name not in records} | notes,
        first_names={name: use.first_name for use in all_uses for name in use.names},
    )


def _check(
    model: Any, batches: Any, kind: Any, forward: Any, loss: Any, mask: Any, max_bytes: Any
) -> None:
    check_choice("kind", kind, KINDS)
    check_integer("max_bytes", max_bytes, 0)
    functions = {"forward": forward, "loss": loss, "mask": mask}
    check_run(model, batches, **functions)
    for name, value in functions.items():
        if value is not None and (name == "loss") != (kind == "fisher"):
            raise ValueError(f"Got {name} with kind={kind!r}, but expected it with the other kind.")
    if kind == "fisher" and loss is None:
        raise ValueError("Got kind='fisher' without loss, but expected loss(model, batch).")


def check_run(model: Any, batches: Any, **functions: Any) -> None:
    """Raise unless these are a model, an iterable of batches, and functions or None.

    Raises
    ------
    TypeError
        If one of them is anything else.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Got a model of type {type(model).__name__}, but expected a Module.")
    if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
        raise TypeError(
            f"Got batches of type {type(batches).__name__}, but expected an iterable of batches; a "
            "single one goes into a list."
        )
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise TypeError(f"Got {name}={value!r}, but expected a function.")


def _check_finite(records: Mapping[str, Record]) -> None:
    for name, record in records.items():
        if isinstance(record, RowCounts):
            continue
        values = record.diagonal if isinstance(record, SecondMoment) else record.rows
        if not np.isfinite(values).all():
            what = "an input" if isinstance(record, SecondMoment) else "a gradient"
            raise ValueError(
                f"Got batches with {what} of {name!r} that is not finite, but expected finite ones."
            )
