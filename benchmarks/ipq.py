"""iPQ of a fine-tuned classifier: groups of weights, one after the other, trained in between.

Fan et al. 2020, arXiv:2004.07320: feed-forward layers first, then embeddings, then attention. After
each group is compressed, its code words and all weights that are not compressed yet are trained.
Training is the same for all arms, which only differ in how they compress a group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from torch import nn

from benchmarks.weight_arms import (
    Arm,
    Job,
    Setting,
    Small,
    records_of,
    spec_of,
    squares_of,
    totals,
)
from pgkmeans_sk.nn import Calibration, IterativePQ

GROUPS = {
    "feed-forward": ("*.intermediate.dense.weight", "*layer.[0-9].output.dense.weight"),
    "embeddings": ("*.word_embeddings.weight",),
    "attention": ("*.attention.self.*.weight", "*.attention.output.dense.weight"),
}
"""Groups of weights in the order in which they are compressed, by globs of their names."""


@dataclass(frozen=True)
class Sizes:
    """The setting of each group."""

    feed_forward: Setting
    embeddings: Setting
    attention: Setting

    def of(self, group: str) -> Setting:
        """Return the setting of a group."""
        setting: Setting = getattr(self, group.replace("-", "_"))
        return setting


SIZES = {
    "blocks of 4": Sizes(Setting(4, 256), Setting(4, 256), Setting(4, 256)),
    "paper": Sizes(Setting(8, 256), Setting(8, 256), Setting(4, 256)),
    "3072 codes": Sizes(Setting(8, 3072), Setting(8, 3072), Setting(4, 256)),
}
"""Named sizes: all blocks of 4; the paper's; and large codebooks, where clusters get empty."""


def names_of(model: nn.Module, group: str) -> list[str]:
    """Return the names of the weights of a group, as they are before anything is compressed."""
    names = [name.replace(".parametrizations.weight.original", ".weight")
             for name, _ in model.named_parameters()]  # fmt: skip
    return [name for name in names if any(fnmatch(name, glob) for glob in GROUPS[group])]


Records = dict[str, Small]
Calibrate = Callable[[nn.Module], Calibration]


def stages(
    model: nn.Module, arm: Arm, sizes: Sizes, seed: int, calibrate: Calibrate
) -> Iterator[tuple[str, Records]]:
    """Compress a model group by group, in place; whoever iterates trains it in between.

    Yields each group with what became of its weights. Arms of ``nn.compress_model`` are run by
    ``nn.IterativePQ``, the others do the same by hand.
    """
    names = {group: names_of(model, group) for group in GROUPS}
    if arm.settings is None:
        for group, weights in names.items():
            calibration = calibrate(model) if arm.wants_calibration else None
            job = Job(dict.fromkeys(weights, sizes.of(group)), seed, calibration)
            yield group, dict(arm.compress(model, job))
        return
    settings = {name: sizes.of(group) for group, weights in names.items() for name in weights}
    iterative = IterativePQ(
        model,
        spec_of(Job(settings), arm.settings, arm.rules),
        groups=names,
        importance=calibrate if arm.wants_calibration else None,
        random_state=seed,
    )
    groups = iter(iterative)
    for _ in iterative.groups:
        squares = squares_of(model, settings)  # as training left the weights
        stage = next(groups)
        yield stage.name, records_of(stage.report, {name: squares[name] for name in stage.tensors})


def compressed_and_trained(
    model: nn.Module,
    arm: Arm,
    sizes: Sizes,
    seed: int,
    *,
    calibrate: Calibrate,
    train: Callable[[nn.Module, int], None],
    judge: Callable[[nn.Module], float],
) -> dict[str, Any]:
    """Run all stages; return what each came to, and the sizes and counts of all weights."""
    found: list[dict[str, Any]] = []
    small: Records = {}
    begin = time.perf_counter()
    for number, (group, records) in enumerate(stages(model, arm, sizes, seed, calibrate)):
        small.update(records)
        before = judge(model)
        trained_from = time.perf_counter()
        train(model, number)
        training_seconds = time.perf_counter() - trained_from
        found.append(
            {
                "group": group,
                "accuracy_before": before,
                "accuracy": judge(model),
                "training_seconds": training_seconds,
                **totals(records),
            }
        )
    counts = totals(small)
    return {
        "accuracy": found[-1]["accuracy"],
        "stages": found,
        **counts,
        "ratio": 4 * counts["n_values"] / counts["n_bytes"],
        "training_seconds": sum(stage["training_seconds"] for stage in found),
        "all_seconds": time.perf_counter() - begin,
    }
