"""Ways to compress weights of a model, in place, behind one table.

Each arm leaves the same parametrization behind, codes with a codebook in float16, so that sizes,
training and storage are those of ``nn.compress_model`` for all of them. Arms of other k-means
procedures only find the code words; blocks are then encoded by exact search.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from benchmarks import empty_clusters
from benchmarks.baseline_ipq import DEFAULT_ITERATIONS
from benchmarks.data import Points, cut_into_blocks
from benchmarks.measure import judge
from pgkmeans_sk import ProductQuantizer, nn
from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.nn.calibration import Calibration
from pgkmeans_sk.nn.layers import row_axis
from pgkmeans_sk.nn.registration import register_matrix
from pgkmeans_sk.nn.selection import find_tensors
from pgkmeans_sk.nn.weight_matrices import rows_of

CODEBOOK_DTYPE = "float16"


@dataclass(frozen=True)
class Setting:
    """What all arms of a comparison are told of a weight."""

    block_size: int
    n_codes: int


@dataclass(frozen=True)
class Job:
    """Which weights are to be compressed; names are those of the model's plain tensors."""

    settings: Mapping[str, Setting]
    seed: int = 0
    calibration: Calibration | None = None  # of the same model, for the arms that want one


@dataclass(frozen=True)
class Small:
    """What became of one weight; None: the arm does not say."""

    n_values: int
    n_bytes: int  # codes, codebook and scales
    squares: float  # |W|^2
    sq_error: float  # |W - decoded|^2
    n_empty_first: int | None  # clusters without a block at the first assignment
    n_empty_last: int  # code words that no block of the result means
    n_passes: int | None  # assignments, or repairs, spent on nothing but empty clusters
    gave_up: bool
    seconds: float


class Compress(Protocol):
    """Compresses the weights that a job names, in place; a record of each by name."""

    def __call__(self, model: torch.nn.Module, job: Job) -> dict[str, Small]: ...


@dataclass(frozen=True)
class Arm:
    """One way to compress; with ``settings``, it is ``nn.compress_model`` with just these.

    ``rules`` are those of the spec, behind the ones that name the weights.
    """

    compress: Compress
    wants_calibration: bool = False
    settings: Mapping[str, Any] | None = None
    rules: Sequence[Mapping[str, Any]] = ()


def of_k_means(fit: empty_clusters.Arm) -> Arm:
    """An arm whose code words are the centres of a k-means of the study of empty clusters."""

    def compress(model: torch.nn.Module, job: Job) -> dict[str, Small]:
        found = {tensor.name: tensor for tensor in find_tensors(model)}
        done = {}
        for name, setting in job.settings.items():
            place = found[name].places[0]
            axis = row_axis(place.module, place.tensor_name)
            W = rows_of(found[name], axis)
            small, matrix = _clustered(W, fit, setting, job.seed)
            register_matrix(found[name], matrix, axis, gradient="mean")
            done[name] = small
        return done

    return Arm(compress)


def _clustered(
    W: Points, fit: empty_clusters.Arm, setting: Setting, seed: int
) -> tuple[Small, CompressedMatrix]:
    blocks = cut_into_blocks(W, setting.block_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = time.perf_counter()
        outcome = fit(blocks, setting.n_codes, DEFAULT_ITERATIONS, seed)
        matrix = with_code_words(W, outcome.centers)
        seconds = time.perf_counter() - begin
    n_empty_first = outcome.n_empty_first
    if n_empty_first is None and outcome.start is not None:
        n_empty_first = judge(blocks, outcome.start).n_empty
    squares = float(np.einsum("ij,ij->", W, W, dtype=np.float64))
    small = Small(
        n_values=W.size,
        n_bytes=matrix.nbytes,
        squares=squares,
        sq_error=squares * matrix.relative_error**2,
        n_empty_first=n_empty_first,
        n_empty_last=setting.n_codes - len(np.unique(matrix.codes())),
        n_passes=outcome.n_passes,
        gave_up=outcome.gave_up,
        seconds=seconds,
    )
    return small, matrix


def with_code_words(W: Points, words: np.ndarray) -> CompressedMatrix:
    """Encode a matrix with code words (n_codes, block_size) that all its blocks share."""
    decoder = Decoder(
        codebooks=words[np.newaxis, np.newaxis].astype(CODEBOOK_DTYPE),
        n_features=W.shape[1],
        dtype=W.dtype,
    )
    return ProductQuantizer.from_decoder(decoder).encode(W)


def of_model(
    wants_calibration: bool = False, rules: Sequence[Mapping[str, Any]] = (), **settings: Any
) -> Arm:
    """An arm that is ``nn.compress_model``, with some settings changed."""

    def compress(model: torch.nn.Module, job: Job) -> dict[str, Small]:
        calibration = job.calibration if wants_calibration else None
        if wants_calibration and calibration is None:
            raise ValueError("Got no calibration, but expected one for this arm.")
        squares = squares_of(model, job.settings)
        report = nn.compress_model(
            model, spec_of(job, settings, rules), importance=calibration, random_state=job.seed
        )
        return records_of(report, squares)

    return Arm(compress, wants_calibration, settings, rules)


def squares_of(model: torch.nn.Module, names: Collection[str]) -> dict[str, float]:
    """Return |W|^2 of some weights of a model."""
    return {
        found.name: float(found.tensor.detach().double().square().sum())
        for found in find_tensors(model)
        if found.name in names
    }


def records_of(report: nn.ModelReport, squares: Mapping[str, float]) -> dict[str, Small]:
    """Return what a report says of the weights whose |W|^2 was ``squares``."""
    return {
        tensor.name: Small(
            n_values=tensor.n_values,
            n_bytes=tensor.stored_bytes,
            squares=squares[tensor.name],
            sq_error=squares[tensor.name] * (tensor.relative_error or 0.0) ** 2,
            n_empty_first=None,
            n_empty_last=tensor.n_unused_words or 0,
            n_passes=None,
            gave_up=False,
            seconds=tensor.seconds or 0.0,
        )
        for tensor in report.compressed
        if tensor.name in squares
    }


def spec_of(
    job: Job, settings: Mapping[str, Any], more_rules: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The spec that compresses the weights of a job and no other."""
    rules = [
        {"match": name, "skip": False, **asdict(setting)} for name, setting in job.settings.items()
    ]
    rules += map(dict, more_rules)
    return {
        "defaults": {"skip": True, "codebook_dtype": CODEBOOK_DTYPE, **settings},
        "rules": rules,
    }


ARMS: dict[str, Arm] = {
    "iPQ baseline": of_k_means(empty_clusters.ARMS["iPQ baseline"]),
    "k-means++": of_k_means(empty_clusters.ARMS["k-means++ (left alone)"]),
    "scikit-learn": of_k_means(empty_clusters.ARMS["scikit-learn"]),
    "faiss": of_k_means(empty_clusters.ARMS["faiss"]),
    "PG": of_k_means(empty_clusters.ARMS[empty_clusters.PG]),
    "compress_model": of_model(),
    "compress_model + row scales": of_model(scale="row"),
    "compress_model + block scales": of_model(scale="block"),
    "compress_model + rotation": of_model(rotation="hadamard"),
    "compress_model + row scales + rotation": of_model(scale="row", rotation="hadamard"),
    "compress_model + importance": of_model(wants_calibration=True),
    "compress_model + column importance": of_model(wants_calibration=True, importance="column"),
    "compress_model + feedback": of_model(wants_calibration=True, feedback=True),
    "compress_model + feedback + scaled words": of_model(
        wants_calibration=True, feedback=True, rules=[{"type": "Embedding", "scale": "row"}]
    ),
}
"""Name -> arm. To add one, add a row; names have no commas, since the command line splits there."""


def warm_up(arm: str) -> None:
    """Pay for imports and compilation outside the clock."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    if not ARMS[arm].wants_calibration:
        ARMS[arm].compress(model, Job({"0.weight": Setting(8, 16)}))


def totals(small: Mapping[str, Small]) -> dict[str, Any]:
    """Sum up over the weights of a model."""
    records = list(small.values())
    n_values, n_bytes = (sum(getattr(r, key) for r in records) for key in ("n_values", "n_bytes"))
    error = np.sqrt(sum(r.sq_error for r in records) / sum(r.squares for r in records))
    return {
        "n_weights": len(records),
        "n_values": n_values,
        "n_bytes": n_bytes,
        "bits_per_weight": 8 * n_bytes / n_values,
        "relative_error": float(error),
        "n_empty_first": _sum([r.n_empty_first for r in records]),
        "n_empty_last": sum(r.n_empty_last for r in records),
        "n_passes": _sum([r.n_passes for r in records]),
        "n_gave_up": sum(r.gave_up for r in records),
        "seconds": sum(r.seconds for r in records),
    }


def _sum(counts: list[int | None]) -> int | None:
    """Sum of counts; None if one is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
