"""Compressing the weights of a model without touching it, and then all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.jobs import Job, done_jobs, n_workers_for
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.model_report import ModelReport, report_on
from pgkmeans_sk.nn.registration import register_matrix
from pgkmeans_sk.nn.selection import Target, names_with_types
from pgkmeans_sk.nn.weight_matrices import group_job, weight_job
from pgkmeans_sk.progress import Clock, Progress
from pgkmeans_sk.spec import Spec
from pgkmeans_sk.weight_jobs import GroupJob, Matrices, WeightJob, seeds_of_jobs


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
        sizes = (t.found.tensor.numel() for t in self.targets if t.layout is not None)
        self._clock = Clock(self.progress, sum(sizes))

    def compress_all(self, n_jobs: int | None) -> None:
        """Compress every weight, by ``n_jobs`` workers."""
        groups = {group[0].found.name: group for group in groups_of(self.targets)}
        seeds = seeds_of_jobs(self.random_state, len(groups))
        is_sent = n_workers_for(len(groups), n_jobs) > 1
        jobs = [
            Job(name, _size(group), partial(self._job, group, seed, on_host=is_sent))
            for (name, group), seed in zip(groups.items(), seeds, strict=True)
        ]
        with closing(done_jobs(jobs, n_jobs, self._clock.tell)) as all_done:
            for done in all_done:
                self._keep(groups[done.name], done.result, done.seconds)

    def compress(self, group: list[Target]) -> Matrices:
        """Compress one weight, or several that share a codebook."""
        return self.take(group, lambda: self._job(group, self.random_state)())

    def take(self, group: list[Target], compressed: Callable[[], Matrices]) -> Matrices:
        """Keep what ``compressed()`` makes of weights, and how long it takes."""
        with self._clock.timed(group[0].found.name, _size(group)) as timing:
            found = compressed()
        self._keep(group, found, timing.seconds)
        return found

    def registered(self, model: nn.Module, spec: Spec, gradient: str) -> ModelReport:
        """Replace the weights in the model, and report on all of it."""
        self._clock.finish()
        register_matrices(self.targets, self.matrices, gradient)
        return report_on(
            model,
            reasons={name: t.reason for t in self.targets for name in t.found.names},
            seconds=self.seconds,
            unused_rules=tuple(map(str, spec.unused_rules(names_with_types(model)))),
            total_seconds=time.perf_counter() - self._begin,
        )

    def _job(
        self, group: list[Target], random_state: int | None, *, on_host: bool = False
    ) -> WeightJob | GroupJob:
        if group[0].settings.group is not None:
            return group_job(group, random_state, on_host=on_host)
        return weight_job(group[0], self.calibration, random_state, on_host=on_host)

    def _keep(self, group: list[Target], found: Matrices, seconds: float) -> None:
        self.matrices.update(found)
        self.seconds.update(dict.fromkeys(found, seconds / len(group)))


def _size(group: list[Target]) -> int:
    return sum(target.found.tensor.numel() for target in group)


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
