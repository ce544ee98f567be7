"""Compressing the weights of a model one after the other, without touching it, and then all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.model_report import ModelReport, report_on
from pgkmeans_sk.nn.registration import register_matrix
from pgkmeans_sk.nn.selection import Target, names_with_types
from pgkmeans_sk.nn.weight_matrices import compressed_alone, compressed_together
from pgkmeans_sk.spec import Spec

Progress = Callable[[str, int, int], None]
"""``(name, done, total)``: a tensor begins, so many values are done; at the end, the name is ""."""

Matrices = dict[str, CompressedMatrix]


@dataclass
class Work:
    """The matrices of weights by name, and the seconds that each took."""

    targets: list[Target]
    calibration: Calibration | None
    random_state: int | None
    progress: Progress | None
    matrices: Matrices = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begin = time.perf_counter()
        self._done = 0
        self._total = sum(t.found.tensor.numel() for t in self.targets if t.layout is not None)

    def compress(self, group: list[Target]) -> Matrices:
        """Compress one weight, or several that share a codebook."""
        return self.take(group, lambda: self._compressed(group))

    def take(self, group: list[Target], compressed: Callable[[], Matrices]) -> Matrices:
        """Keep what ``compressed()`` makes of weights, and how long it takes."""
        begin = time.perf_counter()
        self._tell(group[0].found.name)
        found = compressed()
        self.matrices.update(found)
        share = (time.perf_counter() - begin) / len(group)
        self.seconds.update(dict.fromkeys(found, share))
        self._done += sum(target.found.tensor.numel() for target in group)
        return found

    def registered(self, model: nn.Module, spec: Spec, gradient: str) -> ModelReport:
        """Replace the weights in the model, and report on all of it."""
        self._done = self._total
        self._tell("")
        register_matrices(self.targets, self.matrices, gradient)
        return report_on(
            model,
            reasons={name: t.reason for t in self.targets for name in t.found.names},
            seconds=self.seconds,
            unused_rules=tuple(map(str, spec.unused_rules(names_with_types(model)))),
            total_seconds=time.perf_counter() - self._begin,
        )

    def _compressed(self, group: list[Target]) -> Matrices:
        if group[0].settings.group is not None:
            return compressed_together(group, self.random_state)
        matrix = compressed_alone(group[0], self.calibration, self.random_state)
        return {group[0].found.name: matrix}

    def _tell(self, name: str) -> None:
        if self.progress is not None:
            self.progress(name, self._done, self._total)


def groups_of(targets: Iterable[Target]) -> list[list[Target]]:
    """Targets that are compressed together, in the order of the model."""
    groups: dict[object, list[Target]] = {}
    for target in targets:
        if target.layout is not None:
            key = target.found.name if target.settings.group is None else (target.settings.group,)
            groups.setdefault(key, []).append(target)
    return list(groups.values())


def register_matrices(
    targets: list[Target], matrices: Mapping[str, CompressedMatrix], gradient: str
) -> None:
    """Put codes and codebooks in the place of the weights."""
    for group in groups_of(targets):
        first = group[0].found.tensor
        weights: list[CodebookWeight] = []
        for target in group:
            matrix = matrices[target.found.name]
            codebook = first if weights else None
            assert codebook is None or isinstance(codebook, nn.Parameter)
            weights.append(
                register_matrix(
                    target.found,
                    matrix,
                    target.axis,
                    group_size=target.group_size,
                    gradient=gradient,
                    codebook=codebook,
                )
            )
        if len(weights) > 1:
            weights[0].share_codebook_with(weights[1:])
