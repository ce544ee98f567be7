"""What a compressed model costs in use: plain, decoded in each pass, and decoded once.

The same sentences of random tokens through all-MiniLM-L6-v2: a pass in evaluation mode, and a step
of training. Beside them the look-up of token embeddings alone, which decodes only the rows that it
is asked for, against decoding the whole table first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.clock import timed_fit
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_number, as_whole

if TYPE_CHECKING:  # torch is imported when it is needed
    from torch import Tensor, nn

Result = dict[str, Any]

PLAIN, COMPRESSED, CACHED, WHOLE_TABLE = (
    "plain",
    "compressed",
    "compressed, nn.cached",
    "compressed, whole table",
)
SHAPES = ((1, 16), (16, 32), (64, 64))
TASKS = ("forward", "training step", "embeddings")


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    block_size: int = 8
    n_codes: int = 256
    rounds: int = 5
    quick: bool = False


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    import torch

    from benchmarks import classifier
    from pgkmeans_sk import nn as compressing

    models = {PLAIN: classifier.load_encoder()}
    models[COMPRESSED] = deepcopy(models[PLAIN])
    report = compressing.compress_model(
        models[COMPRESSED], {"defaults": {"block_size": plan.block_size, "n_codes": plan.n_codes}}
    )
    models[CACHED] = deepcopy(models[COMPRESSED])
    rows = []
    for n, length in SHAPES[:1] if plan.quick else SHAPES:
        vocabulary = models[PLAIN].config.vocab_size
        tokens = torch.randint(vocabulary, (n, length), generator=torch.Generator().manual_seed(0))
        for task in TASKS:
            with (
                console.status(f"{task}, {n} x {length} tokens"),
                compressing.cached(models[CACHED]),
            ):
                seconds = _in_turn(_ways(task, models, tokens), plan.rounds)
            rows += [
                {
                    "task": task,
                    "n": n,
                    "length": length,
                    "way": way,
                    "seconds": median(spent),
                    "all_seconds": [round(one, 6) for one in spent],
                    "time_to_plain": median(
                        this / plain for this, plain in zip(spent, seconds[PLAIN], strict=True)
                    ),
                }
                for way, spent in seconds.items()
            ]
    return {
        "kind": "inference",
        "settings": {
            "block_size": plan.block_size,
            "n_codes": plan.n_codes,
            "rounds": plan.rounds,
            "original_bytes": report.original_bytes,
            "n_bytes": report.n_bytes,
        },
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }


def _ways(
    task: str, models: Mapping[str, nn.Module], tokens: Tensor
) -> dict[str, Callable[[], object]]:
    if task == "forward":
        return {way: lambda model=model: _forward(model, tokens) for way, model in models.items()}
    if task == "training step":
        return {way: lambda way=way: _step(models[way], tokens) for way in (PLAIN, COMPRESSED)}
    tables: dict[str, Any] = {
        way: model.get_submodule("embeddings.word_embeddings") for way, model in models.items()
    }
    ways: dict[str, Callable[[], object]] = {
        way: lambda table=table: _forward(table, tokens) for way, table in tables.items()
    }
    return ways | {WHOLE_TABLE: lambda: tables[COMPRESSED].weight.detach()[tokens]}


def _forward(model: nn.Module, tokens: Tensor) -> object:
    import torch

    with torch.inference_mode():
        return model(tokens)


def _step(model: nn.Module, tokens: Tensor) -> None:
    """Gradients of all parameters, as an optimiser would take them."""
    model.zero_grad(set_to_none=True)
    model(tokens).last_hidden_state.square().mean().backward()


def _in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    for work in ways.values():
        work()
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            seconds[way].append(timed_fit(work)[0])
    return seconds


def sheets(result: Result) -> list[Sheet]:
    """Make one table per task."""
    found = []
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["task"] == task]
        ways = list(dict.fromkeys(row["way"] for row in rows))
        table = []
        for n, length in dict.fromkeys((row["n"], row["length"]) for row in rows):
            by_way = {row["way"]: row for row in rows if (row["n"], row["length"]) == (n, length)}
            table.append(
                (
                    f"{as_whole(n)} x {as_whole(length)}",
                    *(as_number(1e3 * by_way[way]["seconds"], 2) for way in ways),
                    *(as_number(by_way[way]["time_to_plain"], 2) for way in ways if way != PLAIN),
                )
            )
        columns = (
            "sentences x tokens",
            *(f"{way} ms" for way in ways),
            *(f"{way} / plain" for way in ways if way != PLAIN),
        )
        settings = result["settings"]
        title = f"{task}, blocks of {settings['block_size']}, {settings['n_codes']} codes"
        found.append(Sheet(title, columns, table, _caption(settings)))
    return found


def _caption(settings: Mapping[str, Sequence[int]]) -> str:
    sizes = f"{settings['n_bytes']:,} bytes instead of {settings['original_bytes']:,}"
    return f"The compressed model is stored in {sizes}.".replace(",", " ")
