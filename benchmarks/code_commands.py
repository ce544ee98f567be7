"""The commands that measure codes, and models made of them."""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks import (
    diffq,
    dkm,
    finetune,
    glue,
    inference,
    jobs,
    methods,
    options,
    packing,
    quantizers,
    report,
    scalar,
    search,
    sentences,
)
from benchmarks.command_options import (
    Command,
    Parser,
    Save,
    add_choice,
    add_limits,
    add_no_memory,
    add_rows,
    names_in,
    numbers,
    plan_of,
    reals,
)


def _add_quantizers(parser: Parser) -> None:
    add_choice(parser, "--cases", list(quantizers.CASES))
    add_choice(parser, "--libraries", [peer.name for peer in quantizers.PEERS])
    add_limits(parser, 3, 60.0, "do not repeat a peer that trains longer than this")
    add_rows(parser)


def _add_options(parser: Parser) -> None:
    add_choice(parser, "--matrices", list(options.MATRICES))


def _add_sentences(parser: Parser) -> None:
    add_choice(parser, "--arms", list(sentences.ARMS))
    add_choice(parser, "--specs", list(sentences.SPECS))
    add_choice(parser, "--ways", sentences.WAYS)
    parser.add_argument("--block-sizes", type=numbers, default=list(sentences.Plan.block_sizes))
    parser.add_argument("--k", dest="n_codes", type=numbers, default=list(sentences.Plan.n_codes))
    add_choice(parser, "--subsets", sentences.SUBSETS)
    parser.add_argument("--seeds", type=numbers, default=list(sentences.Plan.seeds))
    parser.add_argument("--calibration", dest="n_calibration", type=int,
                        default=sentences.Plan.n_calibration, metavar="SENTENCES")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="two matrices, few sentences")
    parser.add_argument("--finished", action="store_true",
                        help="show what is finished, and run nothing")  # fmt: skip
    glue.add_option(parser)


def _run_sentences(arguments: argparse.Namespace, console: Console, save: Save) -> report.Result:
    glue.take_option(arguments)
    return sentences.run(plan_of(sentences.Plan, arguments), console)


def _add_finetune(parser: Parser) -> None:
    plan = finetune.Plan
    add_choice(parser, "--tasks", finetune.TASKS)
    add_choice(parser, "--arms", sentences.ARMS, finetune.ARMS)
    add_choice(parser, "--sizes", finetune.SIZES, plan.sizes)
    parser.add_argument("--noise", type=reals, default=list(plan.noise), help="rates, 0: none")
    parser.add_argument("--noise-kind", default=plan.noise_kind)
    parser.add_argument("--noise-sizes", choices=finetune.SIZES, default=plan.noise_sizes,
                        help="blocks and code words of the noise")  # fmt: skip
    parser.add_argument("--seeds", type=numbers, default=list(plan.seeds))
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
    return finetune.run(plan_of(finetune.Plan, arguments), console)


def _add_scalar(parser: Parser) -> None:
    plan = scalar.Plan
    add_choice(parser, "--parts", scalar.PARTS, plan.parts)
    parser.add_argument("--peer-bits", type=numbers, default=list(plan.peer_bits))
    parser.add_argument("--restart-bits", type=numbers, default=list(plan.restart_bits),
                        help="of the peers that restart: minutes for each")  # fmt: skip
    parser.add_argument("--row-bits", type=numbers, default=list(plan.row_bits))
    parser.add_argument("--bits", type=numbers, default=list(plan.bits))
    add_choice(parser, "--schemes", scalar.SCHEMES)
    add_choice(parser, "--granularities", scalar.GRANULARITIES)
    parser.add_argument("--training-bits", type=numbers, default=list(plan.training_bits))
    parser.add_argument("--training-epochs", type=float, default=plan.training_epochs)
    parser.add_argument("--training-rate", type=float, default=plan.training_rate,
                        help="learning rate of the codebooks")  # fmt: skip
    parser.add_argument("--seeds", type=numbers, default=list(plan.seeds))
    parser.add_argument("--quick", action="store_true", help="two matrices, few sentences")
    parser.add_argument("--finished", action="store_true",
                        help="show what is finished, and run nothing")  # fmt: skip
    glue.add_option(parser)


def _run_scalar(arguments: argparse.Namespace, console: Console, save: Save) -> report.Result:
    glue.take_option(arguments)
    return scalar.run(plan_of(scalar.Plan, arguments), console)


def _add_inference(parser: Parser) -> None:
    parser.add_argument("--block-size", type=int, default=inference.Plan.block_size)
    parser.add_argument("--k", dest="n_codes", type=int, default=inference.Plan.n_codes)
    parser.add_argument("--quick", action="store_true", help="one sentence only")
    add_limits(parser, inference.Plan.rounds)


def _add_methods(parser: Parser) -> None:
    add_choice(parser, "--methods", list(methods.METHODS))
    parser.add_argument("--seeds", type=numbers, default=list(methods.Plan.seeds))
    parser.add_argument("--epochs", type=int, default=methods.Plan.epochs)
    parser.add_argument("--epochs-after", type=int, default=methods.Plan.epochs_after)
    parser.add_argument("--quick", action="store_true", help="one size of each")


def _add_dkm(parser: Parser) -> None:
    add_choice(parser, "--parts", dkm.PARTS)
    parser.add_argument("--sizes", type=names_in, default=list(dkm.SIZES),
                        help='comma-separated: "bits of a code/values of a block"')  # fmt: skip
    add_choice(parser, "--ways", dkm.WAYS)
    add_choice(parser, "--dtypes", dkm.DTYPES)
    parser.add_argument("--weights", dest="n_weights", type=int, default=dkm.Plan.n_weights)
    parser.add_argument("--iterations", type=int, default=dkm.Plan.iterations)
    parser.add_argument("--seeds", type=numbers, default=list(dkm.Plan.seeds))
    parser.add_argument("--epochs", type=int, default=dkm.Plan.epochs)
    parser.add_argument("--quick", action="store_true", help="few weights: does it run at all?")
    add_limits(parser, dkm.Plan.rounds)
    add_no_memory(parser)


def _add_diffq(parser: Parser) -> None:
    plan = diffq.Plan
    add_choice(parser, "--arms", diffq.ARMS)
    parser.add_argument("--penalties", type=reals, default=list(plan.penalties),
                        help="comma-separated: what a MB adds to the loss")  # fmt: skip
    parser.add_argument("--bits", type=numbers, default=list(plan.bits), help="of fixed widths")
    parser.add_argument("--group-size", type=int, default=plan.group_size)
    parser.add_argument("--noise", choices=("uniform", "gaussian"), default=plan.noise)
    parser.add_argument("--seeds", type=numbers, default=list(plan.seeds))
    parser.add_argument("--epochs", type=int, default=plan.epochs)
    parser.add_argument("--logit-rate", type=float, default=plan.logit_rate,
                        help="learning rate of bits")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="two epochs: does it run at all?")


def _add_packing(parser: Parser) -> None:
    parser.add_argument("--widths", type=numbers, default=list(packing.WIDTHS))
    parser.add_argument("--codes", dest="n_codes", type=int, default=packing.N_CODES)
    parser.add_argument("--row-length", type=int, default=packing.ROW_LENGTH)
    add_limits(parser, 5)


def _add_search(parser: Parser) -> None:
    add_choice(parser, "--cases", list(search.N_BLOCKS))
    parser.add_argument("--bits", type=numbers, default=list(search.Plan.bits),
                        help="of a code; all but the first for the first case only")  # fmt: skip
    parser.add_argument("--queries", dest="n_queries", type=numbers,
                        default=list(search.Plan.n_queries))  # fmt: skip
    parser.add_argument("--k", type=int, default=search.Plan.k, help="rows sought for a query")
    add_limits(parser, search.Plan.rounds)
    add_rows(parser)


def _add_jobs(parser: Parser) -> None:
    add_choice(parser, "--models", jobs.MODELS)
    parser.add_argument("--k", dest="n_codes", type=int, default=jobs.Plan.n_codes)
    parser.add_argument("--layers", dest="n_small", type=int, default=jobs.Plan.n_small)
    add_limits(parser, jobs.Plan.rounds)


CODES = {
    "quantizers": Command(
        "product quantization: train, encode, decode",
        _add_quantizers,
        lambda arguments, console, save: quantizers.run(
            plan_of(quantizers.Plan, arguments), console
        ),
    ),
    "options": Command(
        "what rotation, scales and stages gain",
        _add_options,
        lambda arguments, console, save: options.run(arguments.matrices, console),
    ),
    "search": Command(
        "codes: nearest rows by look-up tables, decoding",
        _add_search,
        lambda arguments, console, save: search.run(plan_of(search.Plan, arguments), console),
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
        lambda arguments, console, save: diffq.run(plan_of(diffq.Plan, arguments), console),
    ),
    "inference": Command(
        "what a compressed model costs in use",
        _add_inference,
        lambda arguments, console, save: inference.run(plan_of(inference.Plan, arguments), console),
    ),
    "methods": Command(
        "all ways to make a network small, with the same training",
        _add_methods,
        lambda arguments, console, save: methods.run(plan_of(methods.Plan, arguments), console),
    ),
    "dkm": Command(
        "differentiable k-means: time and memory of a step, digits",
        _add_dkm,
        lambda arguments, console, save: dkm.run(plan_of(dkm.Plan, arguments), console),
    ),
    "jobs": Command(
        "weights of a model by several workers",
        _add_jobs,
        lambda arguments, console, save: jobs.run(plan_of(jobs.Plan, arguments), console),
    ),
    "packing": Command(
        "GB/s of packing and unpacking codes",
        _add_packing,
        lambda arguments, console, save: packing.run(plan_of(packing.Plan, arguments), console),
    ),
}
