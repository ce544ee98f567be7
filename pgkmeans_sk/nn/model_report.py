"""ModelReport: what became of a model's tensors, as a table, a data frame or plain types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pgkmeans_sk.codes.description import CarriedDescription, CompressedDescription
from pgkmeans_sk.codes.size import file_bytes, tensor_bytes
from pgkmeans_sk.codes.tensor_dtypes import stored_bytes
from pgkmeans_sk.codes.tensor_writer import TensorSpec, header_bytes
from pgkmeans_sk.nn.state import (
    METADATA,
    CompressedState,
    carried_description,
    carried_state,
    compressed_state,
)
from pgkmeans_sk.weight_contents import facts_of
from pgkmeans_sk.weight_report import FileReport, TensorReport

NAME_WIDTH = 44
"""Columns of a name in the table."""


@dataclass(frozen=True, kw_only=True)
class ModelReport(FileReport):
    """All tensors of a model, as ``save`` would write them.

    Attributes
    ----------
    path : str
        The class of the model.
    n_bytes : int
        Size of the file that ``save`` writes, exactly, if it is given no more metadata.
    original_bytes : int
        Size of a safetensors file of the plain tensors.
    tensors, seconds and all others
        As of ``FileReport``.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Linear(512, 64))
    >>> report = nn.compress_model(model)
    >>> [tensor.name for tensor in report.compressed]
    ['0.weight', '1.weight']
    >>> print(str(report).splitlines()[0].split())
    ['tensor', 'shape', 'bytes', 'bits/w', 'error', 'unused', 's']
    """

    def to_frame(self) -> Any:
        """The tensors as a pandas ``DataFrame``, a row each, by name.

        Raises
        ------
        ImportError
            If pandas is absent.
        """
        import pandas as pd

        return pd.DataFrame([tensor.to_dict() for tensor in self.tensors]).set_index("name")

    def __rich__(self) -> Any:
        """The table, for ``rich.print``."""
        from rich import box
        from rich.table import Table

        table = Table(title=self.path, caption=self._summary(), box=box.SIMPLE_HEAD)
        head, *rows = self._cells()
        table.add_column(head[0], overflow="ellipsis")
        for title in head[1:]:
            table.add_column(title, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        return table

    def __str__(self) -> str:
        """The table as plain text."""
        cells = [[_shortened(row[0]), *row[1:]] for row in self._cells()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in cells
        ]
        return "\n".join([*lines, "", self._summary()])

    def _cells(self) -> list[list[str]]:
        rows = [["tensor", "shape", "bytes", "bits/w", "error", "unused", "s"]]
        for tensor in self.compressed:
            rows.append(
                [
                    " = ".join((tensor.name, *tensor.aliases)),
                    "x".join(map(str, tensor.shape)),
                    str(tensor.stored_bytes),
                    f"{tensor.bits_per_weight:.3f}",
                    f"{100 * (tensor.relative_error or 0.0):.2f} %",
                    str(tensor.n_unused_words),
                    "" if tensor.seconds is None else f"{tensor.seconds:.2f}",
                ]
            )
        return rows

    def _summary(self) -> str:
        ratio = self.original_bytes / self.n_bytes
        return (
            f"{len(self.compressed)} tensors compressed, {len(self.carried)} left as they are: "
            f"{self.original_bytes} bytes -> {self.n_bytes} bytes ({ratio:.1f} times smaller), "
            f"{self.bits_per_weight:.2f} bits per weight in all."
        )


def report_on(
    model: nn.Module,
    *,
    reasons: Mapping[str, str | None] | None = None,
    seconds: Mapping[str, float] | None = None,
    unused_rules: tuple[str, ...] = (),
    total_seconds: float | None = None,
) -> ModelReport:
    """The report on a model as it is now.

    Parameters
    ----------
    model : Module
        Any, compressed or not.
    reasons : mapping of str to str, default=None
        Why tensors were left as they are, by name.
    seconds : mapping of str to float, default=None
        How long tensors took, by name.
    unused_rules, total_seconds
        As of ``FileReport``.
    """
    reasons, seconds = reasons or {}, seconds or {}
    states = compressed_state(model)
    carried = {found.name: carried_description(found) for found in carried_state(model)}
    compressed = {state.name: state.description() for state in states}
    sizes = file_bytes(compressed, carried, METADATA)
    tensors = [_report_of(state, seconds.get(state.name)) for state in states]
    for name, described in carried.items():
        n_bytes = stored_bytes(described.dtype, described.shape)
        tensors.append(
            TensorReport(
                name=name,
                aliases=described.aliases,
                shape=described.shape,
                dtype=described.dtype,
                original_bytes=n_bytes * (1 + len(described.aliases)),
                stored_bytes=n_bytes,
                carried_because=reasons.get(name) or "not compressed",
            )
        )
    described_all: dict[str, CompressedDescription | CarriedDescription]
    described_all = {**compressed, **carried}
    plain = [
        TensorSpec(name, described.dtype, described.shape)
        for first, described in described_all.items()
        for name in (first, *described.aliases)
    ]
    return ModelReport(
        path=type(model).__name__,
        n_bytes=sum(sizes.values()),
        header_bytes=sizes[""],
        original_bytes=header_bytes(plain, METADATA) + sum(t.original_bytes for t in tensors),
        tensors=tuple(tensors),
        unused_rules=unused_rules,
        seconds=total_seconds,
    )


def _report_of(state: CompressedState, seconds: float | None) -> TensorReport:
    described = state.description()
    facts = facts_of(state.matrix())
    if state.weight.n_unused is not None:
        facts["n_unused_words"] = state.weight.n_unused
    if state.codebooks_of is not None:  # words count where they are stored
        facts["n_code_words"] = facts["n_unused_words"] = 0
    n_bytes = stored_bytes(described.dtype, described.shape)
    return TensorReport(
        name=state.name,
        aliases=state.aliases,
        shape=described.shape,
        dtype=described.dtype,
        original_bytes=n_bytes * (1 + len(state.aliases)),
        stored_bytes=tensor_bytes(described),
        seconds=seconds,
        codebooks_of=state.codebooks_of,
        **facts,
    )


def _shortened(text: str) -> str:
    """At most ``NAME_WIDTH`` characters, cut in the middle: names differ at both ends."""
    if len(text) <= NAME_WIDTH:
        return text
    half = (NAME_WIDTH - 1) // 2
    return f"{text[: NAME_WIDTH - 1 - half]}…{text[-half:]}"
