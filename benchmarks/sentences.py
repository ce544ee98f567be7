"""Sentence embeddings from a compressed model, without any training: STS-B by arm, block and K.

The Linear matrices of all-MiniLM-L6-v2, with or without its word embeddings, are compressed by
several arms (``weight_arms.py``). Per arm: rank correlation of cosine and human judgement on
STS-B's dev set (``sts.py``), bits per weight from exact bytes, error of the weights, empty
clusters, passes and seconds. What layers take in is learned from the first sentences of STS-B's
training set, for the arms that want to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.console import Console

from benchmarks import sts
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_seconds, as_whole
from benchmarks.units import Units

Result = dict[str, Any]

LINEAR, WITH_WORDS = SUBSETS = ("linear", "linear + words")
WORDS = "embeddings.word_embeddings.weight"
QUICK_PAIRS = 50
ARMS = (
    "iPQ baseline",
    "k-means++",
    "scikit-learn",
    "faiss",
    "PG",
    "compress_model",
    "compress_model + row scales",
    "compress_model + block scales",
    "compress_model + rotation",
    "compress_model + row scales + rotation",
    "compress_model + importance",
    "compress_model + column importance",
    "compress_model + feedback",
)
"""Arms of ``weight_arms.py``, which needs torch: the command line must not."""


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    arms: Sequence[str] = ARMS
    block_sizes: Sequence[int] = (8, 4)
    n_codes: Sequence[int] = (256, 1024, 3072)
    subsets: Sequence[str] = SUBSETS
    seeds: Sequence[int] = (0,)
    n_calibration: int = 1000  # sentences
    quick: bool = False


def run(plan: Plan, console: Console, units: Units | None = None) -> Result:
    """Run a plan, or what is left of it; return a JSON-ready dictionary."""
    study = Study(plan, console, units or Units("sentences-quick" if plan.quick else "sentences"))
    uncompressed = study.unit(
        "uncompressed", {}, lambda: {"spearman": study.spearman(study.encoder)}
    )
    rows = [
        row
        for block_size in plan.block_sizes
        for n_codes in plan.n_codes
        for seed in plan.seeds
        for arm in plan.arms
        for row in study.rows(arm, block_size, n_codes, seed)
    ]
    return {
        "kind": "sentences",
        "settings": {
            "n_pairs": len(study.pairs.scores),
            "n_calibration": plan.n_calibration,
            "uncompressed": uncompressed["spearman"],
        },
        "machine": machine(),
        "versions": package_versions(),
        "notes": NOTES,
        "rows": rows,
        "skipped": [],
    }


class Study:
    """The model and the sentences, loaded once they are needed; results that are kept."""

    def __init__(self, plan: Plan, console: Console, units: Units) -> None:
        self.plan, self.console, self.units = plan, console, units
        self.pairs = sts.load_pairs("dev", QUICK_PAIRS if plan.quick else None)

    @cached_property
    def encoder(self) -> Any:
        from benchmarks import classifier

        return classifier.load_encoder(with_pooler=True)

    @cached_property
    def tokenizer(self) -> Any:
        from benchmarks import classifier

        return classifier.load_tokenizer()

    @cached_property
    def calibration(self) -> Any:
        """What the weights take in, measured once; its seconds count for no arm."""
        from benchmarks import classifier

        pairs = sts.load_pairs("train")
        both = (text for pair in zip(pairs.left, pairs.right, strict=True) for text in pair)
        sentences = list(dict.fromkeys(both))[: self.plan.n_calibration]
        examples = classifier.encoded_sentences(sentences, self.tokenizer)
        return classifier.calibrated(self.encoder, examples)

    def names(self, subset: str) -> list[str]:
        """Return the names of the weights of a subset."""
        shapes = {name: tensor.ndim for name, tensor in self.encoder.state_dict().items()}
        linear = [name for name, n in shapes.items() if n == 2 and "embeddings" not in name]
        if self.plan.quick:
            linear = linear[:2]
        return linear if subset == LINEAR else [*linear, WORDS]

    def spearman(self, model: Any) -> float:
        """Return the correlation that a model reaches."""
        from benchmarks import classifier
        from pgkmeans_sk import nn

        with nn.cached(model):
            return sts.spearman(
                lambda sentences: classifier.embed(model, self.tokenizer, sentences), self.pairs
            )

    def unit(self, name: str, told: Mapping[str, Any], work: Callable[[], Any]) -> dict[str, Any]:
        """Return a unit's result; all are told how many sentences there are."""
        told = {**told, "n_pairs": len(self.pairs.scores)}
        with self.console.status(name):
            return self.units.run(name, told, work)["result"]

    def rows(self, arm: str, block_size: int, n_codes: int, seed: int) -> list[dict[str, Any]]:
        """Measure one arm; the larger subset goes on with the model of the smaller one."""
        from benchmarks.weight_arms import ARMS as compressing
        from benchmarks.weight_arms import Job, Setting, Small, totals, warm_up

        name = f"{arm}, {block_size} x {n_codes}, seed {seed}"
        small: dict[str, Small] = {}
        models: list[Any] = []

        def measure(subset: str) -> dict[str, Any]:
            if not models:
                warm_up(arm)
                models.append(deepcopy(self.encoder))
            missing = [weight for weight in self.names(subset) if weight not in small]
            setting = Setting(block_size, n_codes)
            calibration = self.calibration if compressing[arm].wants_calibration else None
            job = Job(dict.fromkeys(missing, setting), seed, calibration)
            small.update(compressing[arm].compress(models[0], job))
            return {"spearman": self.spearman(models[0]), **totals(small)}

        found = []
        for subset in self.plan.subsets:
            told = {"arm": arm, "block_size": block_size, "n_codes": n_codes, "seed": seed}
            told |= {"subset": subset}
            if compressing[arm].wants_calibration:
                told |= {"n_calibration": self.plan.n_calibration}
            result = self.unit(f"{name}, {subset}", told, lambda subset=subset: measure(subset))
            self.console.print(f"  {name}, {subset}: {result['spearman']:.4f}")
            found.append({**told, **result})
        return found


NOTES = {
    "arms": "k-means++ is NumPy's, its empty clusters left alone, scikit-learn is "
    "KMeans(n_init=1), PG is PGKMeans from the partition tree; these do 15 iterations. "
    "compress_model does 25 steps from random blocks.",
    "empty": "Empty clusters: at the first assignment, and code words that no block of the result "
    "means. Passes: assignments of all blocks (iPQ baseline), or repairs (PG), spent on nothing "
    "but empty clusters. -: the arm does not say.",
}


def sheets(result: Result) -> list[Sheet]:
    """Make one table per subset, block size and K."""
    columns = (
        "arm", "Spearman", "to uncompressed", "bits per weight", "rel. error",
        "empty at first", "empty at the end", "passes", "gave up", "seconds",
    )  # fmt: skip
    whole = result["settings"]["uncompressed"]
    found = []
    keys = ("subset", "block_size", "n_codes")
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in result["rows"]):
        rows = [row for row in result["rows"] if tuple(row[key] for key in keys) == group]
        subset, block_size, n_codes = group
        seeds = {row["seed"] for row in rows}
        table = [
            (
                row["arm"] + (f", seed {row['seed']}" if len(seeds) > 1 else ""),
                f"{row['spearman']:.4f}",
                f"{row['spearman'] - whole:+.4f}",
                f"{row['bits_per_weight']:.3f}",
                f"{row['relative_error']:.4f}",
                as_whole(row["n_empty_first"]),
                as_whole(row["n_empty_last"]),
                as_whole(row["n_passes"]),
                as_whole(row["n_gave_up"]),
                as_seconds(row["seconds"]),
            )
            for row in rows
        ]
        found.append(
            Sheet(
                f"{rows[0]['n_weights']} weights ({subset}), blocks of {block_size}, "
                f"{n_codes} codes; uncompressed {whole:.4f}",
                columns,
                table,
            )
        )
    return found
