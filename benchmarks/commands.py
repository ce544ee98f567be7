"""The commands that measure something: what they can be told, and what they run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from rich.console import Console

from benchmarks import (
    cold,
    curves,
    data,
    diffq,
    distributed,
    dkm,
    efforts,
    empty_clusters,
    finetune,
    glue,
    gpu,
    growth,
    inference,
    jobs,
    line,
    methods,
    options,
    packing,
    quantizers,
    report,
    scalar,
    scaling,
    search,
    sentences,
    small,
    speed,
    stored,
)
from benchmarks.baseline_ipq import DEFAULT_ITERATIONS
from benchmarks.gpu_peers import TENSOR_PEERS
from benchmarks.peers import PEERS

P = TypeVar("P")
Parser = argparse.ArgumentParser
Save = Callable[[report.Result], None]
"""Keeps an unfinished result: long runs leave behind what they have, should they be cut off."""


@dataclass(frozen=True)
class Command:
    """One command: its line in the manual, its options, and the benchmark behind it."""

    about: str
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace, Console, Save], report.Result]


def names_in(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def one_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return an argparse type: a comma-separated list of some of ``known``, "all" or "none"."""

    def parse(text: str) -> list[str]:
        if text == "none":
            return []
        names = list(known) if text == "all" else names_in(text)
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"got {', '.join(unknown) or 'nothing'}, but expected some of: {', '.join(known)}"
            )
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(part) for part in names_in(text)]


def _reals(text: str) -> list[float]:
    return [float(part) for part in names_in(text)]


def _plan(kind: type[P], arguments: argparse.Namespace) -> P:
    """The plan of a benchmark: options have the names of its fields."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: getattr(arguments, name) for name in known})


def _add_choice(
    parser: Parser, option: str, known: Sequence[str], default: Sequence[str] = (), **more: Any
) -> None:
    """An option that takes some of the known names; by default all."""
    parser.add_argument(option, type=one_of(known), default=list(default or known),
                        help=f"comma-separated: {', '.join(known)}", **more)  # fmt: skip


def _add_limits(
    parser: Parser, rounds: int, long_run: float | None = None, about: str = ""
) -> None:
    """Options that bound how long a run takes."""
    parser.add_argument("--rounds", type=int, default=rounds)
    if long_run is not None:
        parser.add_argument("--long-run", type=float, default=long_run, metavar="SECONDS",
                            help=about)  # fmt: skip


def _add_rows(parser: Parser) -> None:
    parser.add_argument("--rows", dest="max_rows", type=int,
                        help="use at most this many rows of each case")  # fmt: skip


def _add_no_memory(parser: Parser) -> None:
    parser.add_argument("--no-memory", dest="with_memory", action="store_false",
                        help="skip the peak-memory children")  # fmt: skip


# ------------------------------------------------------------------ k-means


def _add_speed(parser: Parser) -> None:
    _add_choice(parser, "--cases", list(data.CASES))
    _add_choice(parser, "--modes", speed.MODES)
    _add_choice(parser, "--libraries", list(PEERS))
    parser.add_argument("--seed", type=int, default=0)
    _add_limits(parser, 3, 60.0, "do not repeat a peer that takes longer than this")
    _add_rows(parser)
    _add_no_memory(parser)


def _add_small(parser: Parser) -> None:
    for name in ("n_rows", "n_features", "n_clusters"):
        parser.add_argument("--" + name.replace("_", "-"), type=_numbers,
                            default=list(getattr(small.Plan, name)))  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)


def _add_cold(parser: Parser) -> None:
    parser.add_argument("--repeats", type=int, default=3)


def _add_study(parser: Parser) -> None:
    parser.add_argument("--layers", type=names_in, help='comma-separated names, or "all"; default: '
                        f"{', '.join(empty_clusters.DEFAULT_LAYERS)}")  # fmt: skip
    parser.add_argument("--k", type=_numbers, default=list(empty_clusters.DEFAULT_K))
    _add_choice(parser, "--arms", list(empty_clusters.ARMS))
    parser.add_argument("--iterations", type=int, default=DEFAULT_ITERATIONS)
    parser.add_argument("--seeds", type=_numbers, default=[0])


def _run_study(arguments: argparse.Namespace, console: Console, save: Save) -> report.Result:
    return empty_clusters.run(
        console,
        layer_names=arguments.layers,
        n_clusters=arguments.k,
        arms=arguments.arms,
        iterations=arguments.iterations,
        seeds=arguments.seeds,
    )


def _add_curves(parser: Parser) -> None:
    _add_choice(parser, "--cases", list(data.CASES))
    _add_choice(parser, "--libraries", list(efforts.LINES), dest="lines")
    parser.add_argument("--iterations", type=_numbers, default=list(efforts.ITERATIONS))
    parser.add_argument("--seed", type=int, default=0)
    _add_limits(parser, 3, 120.0, "give no greater effort to a line that took longer than this, "
                "and do not repeat the long run")  # fmt: skip
    _add_rows(parser)
    glue.add_option(parser)


def _run_curves(arguments: argparse.Namespace, console: Console, save: Save) -> report.Result:
    glue.take_option(arguments)
    arguments.iterations.sort()
    return curves.run(_plan(curves.Plan, arguments), console, save)


def _add_scaling(parser: Parser) -> None:
    _add_choice(parser, "--series", list(growth.GROWS))
    _add_choice(parser, "--libraries", scaling.LIBRARIES, scaling.DEFAULT_LIBRARIES)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rows", dest="max_rows", type=int,
                        help="leave out sizes with more rows than this")  # fmt: skip
    _add_limits(parser, 3, 120.0, "give no larger size to a library that took longer")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    _add_no_memory(parser)


def _add_gpu(parser: Parser) -> None:
    _add_choice(parser, "--cases", list(data.CASES), gpu.Plan.cases)
    _add_choice(parser, "--modes", gpu.MODES)
    _add_choice(parser, "--libraries", list(TENSOR_PEERS))
    parser.add_argument("--batches", type=names_in, default=(), metavar="SIZES",
                        help="problems x rows x features x clusters, comma-separated; default: "
                        "by the device")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--device", default="", help="default: a CUDA device, if there is one")
    parser.add_argument("--seed", type=int, default=0)
    _add_limits(parser, 3, 60.0, "do not repeat a library that takes longer than this")
    _add_rows(parser)


def _add_line(parser: Parser) -> None:
    parser.add_argument("--sizes", type=_numbers, default=list(line.SIZES))
    parser.add_argument("--k", dest="n_clusters", type=_numbers, default=list(line.N_CLUSTERS))
    _add_limits(parser, 3, 300.0, "do not try a peer on more that took longer for less")


# ------------------------------------------------------------------ product quantization


def _add_quantizers(parser: Parser) -> None:
    _add_choice(parser, "--cases", list(quantizers.CASES))
    _add_choice(parser, "--libraries", [peer.name for peer in quantizers.PEERS])
    _add_limits(parser, 3, 60.0, "do not repeat a peer that trains longer than this")
    _add_rows(parser)


def _add_options(parser: Parser) -> None:
    _add_choice(parser, "--matrices", list(options.MATRICES))


def _add_sentences(parser: Parser) -> None:
    _add_choice(parser, "--arms", list(sentences.ARMS))
    _add_choice(parser, "--specs", list(sentences.SPECS))
    _add_choice(parser, "--ways", sentences.WAYS)
    parser.add_argument("--block-sizes", type=_numbers, default=list(sentences.Plan.block_sizes))
    parser.add_argument("--k", dest="n_codes", type=_numbers, default=list(sentences.Plan.n_codes))
    _add_choice(parser, "--subsets", sentences.SUBSETS)
    parser.add_argument("--seeds", type=_numbers, default=list(sentences.Plan.seeds))
    parser.add_argument("--calibration", dest="n_calibration", type=int,
                        default=sentences.Plan.n_calibration, metavar="SENTENCES")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="two matrices, few sentences")
    parser.add_argument("--finished", action="store_true",
                        help="show what is finished, and run nothing")  # fmt: skip
    glue.add_option(parser)


def _run_sentences(arguments: argparse.Namespace, console: Console, save: Save) -> report.Result:
    glue.take_option(arguments)
    return sentences.run(_plan(sentences.Plan, arguments), console)


def _add_finetune(parser: Parser) -> None:
    plan = finetune.Plan
    _add_choice(parser, "--tasks", finetune.TASKS)
    _add_choice(parser, "--arms", sentences.ARMS, finetune.ARMS)
    _add_choice(parser, "--sizes", finetune.SIZES, plan.sizes)
    parser.add_argument("--noise", type=_reals, default=list(plan.noise), help="rates, 0: none")
    parser.add_argument("--noise-kind", default=plan.noise_kind)
    parser.add_argument("--noise-sizes", choices=finetune.SIZES, default=plan.noise_sizes,
                        help="blocks and code words of the noise")  # fmt: skip
    parser.add_argument("--seeds", type=_numbers, default=list(plan.seeds))
    parser.add_argument("--stage-epochs", type=float, default=plan.stage_epochs)
    parser.add_argument("--stage-rate", type=float, default=plan.stage_rate,
                        help="learning rate behind each group")  # fmt: skip
    parser.add_argument("--distil", action="store_true", help="learn from the uncompressed model")
    parser.add_argument("--calibration", dest="n_calibration", type=int,
                        default=plan.n_calibration, metavar="SENTENCES")  # fmt: skip
    parser.add_argument("--device", default=plan.device, help="of torch")
    parser.add_argument("--quick", action="store_true", help="few sentences: does it run at all?")
    glue.add_option(parser)


def _run_finetune(arguments: argparse.Namespace, console: Console, save: Save) -> report.Result:
    glue.take_option(arguments)
    return finetune.run(_plan(finetune.Plan, arguments), console)


def _add_scalar(parser: Parser) -> None:
    plan = scalar.Plan
    _add_choice(parser, "--parts", scalar.PARTS, plan.parts)
    parser.add_argument("--peer-bits", type=_numbers, default=list(plan.peer_bits))
    parser.add_argument("--restart-bits", type=_numbers, default=list(plan.restart_bits),
                        help="of the peers that restart: minutes for each")  # fmt: skip
    parser.add_argument("--row-bits", type=_numbers, default=list(plan.row_bits))
    parser.add_argument("--bits", type=_numbers, default=list(plan.bits))
    _add_choice(parser, "--schemes", scalar.SCHEMES)
    _add_choice(parser, "--granularities", scalar.GRANULARITIES)
    parser.add_argument("--training-bits", type=_numbers, default=list(plan.training_bits))
    parser.add_argument("--training-epochs", type=float, default=plan.training_epochs)
    parser.add_argument("--training-rate", type=float, default=plan.training_rate,
                        help="learning rate of the codebooks")  # fmt: skip
    parser.add_argument("--seeds", type=_numbers, default=list(plan.seeds))
    parser.add_argument("--quick", action="store_true", help="two matrices, few sentences")
    parser.add_argument("--finished", action="store_true",
                        help="show what is finished, and run nothing")  # fmt: skip
    glue.add_option(parser)


def _run_scalar(arguments: argparse.Namespace, console: Console, save: Save) -> report.Result:
    glue.take_option(arguments)
    return scalar.run(_plan(scalar.Plan, arguments), console)


def _add_inference(parser: Parser) -> None:
    parser.add_argument("--block-size", type=int, default=inference.Plan.block_size)
    parser.add_argument("--k", dest="n_codes", type=int, default=inference.Plan.n_codes)
    parser.add_argument("--quick", action="store_true", help="one sentence only")
    _add_limits(parser, inference.Plan.rounds)


def _add_methods(parser: Parser) -> None:
    _add_choice(parser, "--methods", list(methods.METHODS))
    parser.add_argument("--seeds", type=_numbers, default=list(methods.Plan.seeds))
    parser.add_argument("--epochs", type=int, default=methods.Plan.epochs)
    parser.add_argument("--epochs-after", type=int, default=methods.Plan.epochs_after)
    parser.add_argument("--quick", action="store_true", help="one size of each")


def _add_dkm(parser: Parser) -> None:
    _add_choice(parser, "--parts", dkm.PARTS)
    parser.add_argument("--sizes", type=names_in, default=list(dkm.SIZES),
                        help='comma-separated: "bits of a code/values of a block"')  # fmt: skip
    _add_choice(parser, "--ways", dkm.WAYS)
    _add_choice(parser, "--dtypes", dkm.DTYPES)
    parser.add_argument("--weights", dest="n_weights", type=int, default=dkm.Plan.n_weights)
    parser.add_argument("--iterations", type=int, default=dkm.Plan.iterations)
    parser.add_argument("--seeds", type=_numbers, default=list(dkm.Plan.seeds))
    parser.add_argument("--epochs", type=int, default=dkm.Plan.epochs)
    parser.add_argument("--quick", action="store_true", help="few weights: does it run at all?")
    _add_limits(parser, dkm.Plan.rounds)
    _add_no_memory(parser)


def _add_diffq(parser: Parser) -> None:
    plan = diffq.Plan
    _add_choice(parser, "--arms", diffq.ARMS)
    parser.add_argument("--penalties", type=_reals, default=list(plan.penalties),
                        help="comma-separated: what a MB adds to the loss")  # fmt: skip
    parser.add_argument("--bits", type=_numbers, default=list(plan.bits), help="of fixed widths")
    parser.add_argument("--group-size", type=int, default=plan.group_size)
    parser.add_argument("--noise", choices=("uniform", "gaussian"), default=plan.noise)
    parser.add_argument("--seeds", type=_numbers, default=list(plan.seeds))
    parser.add_argument("--epochs", type=int, default=plan.epochs)
    parser.add_argument("--logit-rate", type=float, default=plan.logit_rate,
                        help="learning rate of bits")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="two epochs: does it run at all?")


def _add_packing(parser: Parser) -> None:
    parser.add_argument("--widths", type=_numbers, default=list(packing.WIDTHS))
    parser.add_argument("--codes", dest="n_codes", type=int, default=packing.N_CODES)
    parser.add_argument("--row-length", type=int, default=packing.ROW_LENGTH)
    _add_limits(parser, 5)


def _add_search(parser: Parser) -> None:
    _add_choice(parser, "--cases", list(search.N_BLOCKS))
    parser.add_argument("--bits", type=_numbers, default=list(search.Plan.bits),
                        help="of a code; all but the first for the first case only")  # fmt: skip
    parser.add_argument("--queries", dest="n_queries", type=_numbers,
                        default=list(search.Plan.n_queries))  # fmt: skip
    parser.add_argument("--k", type=int, default=search.Plan.k, help="rows sought for a query")
    _add_limits(parser, search.Plan.rounds)
    _add_rows(parser)


def _add_jobs(parser: Parser) -> None:
    _add_choice(parser, "--models", jobs.MODELS)
    parser.add_argument("--k", dest="n_codes", type=int, default=jobs.Plan.n_codes)
    parser.add_argument("--layers", dest="n_small", type=int, default=jobs.Plan.n_small)
    _add_limits(parser, jobs.Plan.rounds)


def _add_fields(parser: Parser, plan: Any) -> None:
    """An option for each number of a plan."""
    for field in fields(plan):
        kind = str if isinstance(field.default, str) else int
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=field.default)


MEASURING = {
    "speed": Command(
        "time, SSE, empty clusters, memory against the peers",
        _add_speed,
        lambda arguments, console, save: speed.run(_plan(speed.Plan, arguments), console),
    ),
    "small": Command(
        "small tables against scikit-learn's KMeans",
        _add_small,
        lambda arguments, console, save: small.run(_plan(small.Plan, arguments), console),
    ),
    "cold": Command(
        "first fit in a fresh process, cold and warm cache",
        _add_cold,
        lambda arguments, console, save: cold.run(console, arguments.repeats),
    ),
    "empty-clusters": Command("the empty-cluster study on the real model", _add_study, _run_study),
    "curves": Command("time to quality: SSE against seconds", _add_curves, _run_curves),
    "scaling": Command(
        "seconds per iteration by n, K, d and threads",
        _add_scaling,
        lambda arguments, console, save: scaling.run(_plan(scaling.Plan, arguments), console, save),
    ),
    "gpu": Command(
        "tensors, on a GPU if there is one: ours, other libraries, the floor",
        _add_gpu,
        lambda arguments, console, save: gpu.run(_plan(gpu.Plan, arguments), console),
    ),
    "line": Command(
        "one dimension: the exact optimum",
        _add_line,
        lambda arguments, console, save: line.run(_plan(line.Plan, arguments), console),
    ),
    "quantizers": Command(
        "product quantization: train, encode, decode",
        _add_quantizers,
        lambda arguments, console, save: quantizers.run(_plan(quantizers.Plan, arguments), console),
    ),
    "options": Command(
        "what rotation, scales and stages gain",
        _add_options,
        lambda arguments, console, save: options.run(arguments.matrices, console),
    ),
    "search": Command(
        "codes: nearest rows by look-up tables, decoding",
        _add_search,
        lambda arguments, console, save: search.run(_plan(search.Plan, arguments), console),
    ),
    "sentences": Command(
        "a compressed model without training: STS-B", _add_sentences, _run_sentences
    ),
    "finetune": Command("iPQ with training: SST-2 and RTE", _add_finetune, _run_finetune),
    "scalar": Command(
        "scalar quantization: k-means against equal steps, 1 to 8 bits", _add_scalar, _run_scalar
    ),
    "diffq": Command(
        "learned bits against fixed ones: accuracy and size, digits",
        _add_diffq,
        lambda arguments, console, save: diffq.run(_plan(diffq.Plan, arguments), console),
    ),
    "inference": Command(
        "what a compressed model costs in use",
        _add_inference,
        lambda arguments, console, save: inference.run(_plan(inference.Plan, arguments), console),
    ),
    "methods": Command(
        "all ways to make a network small, with the same training",
        _add_methods,
        lambda arguments, console, save: methods.run(_plan(methods.Plan, arguments), console),
    ),
    "dkm": Command(
        "differentiable k-means: time and memory of a step, digits",
        _add_dkm,
        lambda arguments, console, save: dkm.run(_plan(dkm.Plan, arguments), console),
    ),
    "stored": Command(
        "rows on disk: time and peak of memory",
        lambda parser: _add_fields(parser, stored.Plan),
        lambda arguments, console, save: stored.run(_plan(stored.Plan, arguments), console),
    ),
    "distributed": Command(
        "a dask array on two processes: time, bytes, killed workers",
        lambda parser: _add_fields(parser, distributed.Plan),
        lambda arguments, console, save: distributed.run(
            _plan(distributed.Plan, arguments), console
        ),
    ),
    "jobs": Command(
        "weights of a model by several workers",
        _add_jobs,
        lambda arguments, console, save: jobs.run(_plan(jobs.Plan, arguments), console),
    ),
    "packing": Command(
        "GB/s of packing and unpacking codes",
        _add_packing,
        lambda arguments, console, save: packing.run(_plan(packing.Plan, arguments), console),
    ),
}
"""Name on the command line -> command. To add a benchmark, add a row here and in ``report.py``."""
