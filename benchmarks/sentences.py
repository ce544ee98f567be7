"""Sentence embeddings from a compressed model, without any training: STS-B by arm, block and K.

The Linear matrices of all-MiniLM-L6-v2, with or without its word embeddings, are compressed by
several arms (``weight_arms.py``). Per arm: rank correlation of cosine and human judgement on
STS-B's dev set (``sts.py``), bits per weight from exact bytes, error of the weights, empty
clusters, passes and seconds. What layers take in is learned from sentences drawn from STS-B's
training set, for the arms that want to know: its file is in the order of where they come from, and
the first thousand are about little but captions of pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from statistics import mean
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import sts
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_seconds, as_whole
from benchmarks.units import FinishedUnits, Units, run_all

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
    "compress_model + feedback + scaled words",
)
"""Arms of ``weight_arms.py``, which needs torch: the command line must not."""

SPECS: dict[str, Any] = {
    "auto": "auto",
    "1 bit": {
        "defaults": {"block_size": 8, "feedback": True},
        "rules": [{"type": "Embedding", "scale": "row"}],
    },
}
"""Specs for the whole model, calibration included: name -> what ``nn.compress_model`` takes."""

TOGETHER, IN_SEQUENCE = WAYS = ("calibrate + compress_model", "compress_in_sequence")


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    arms: Sequence[str] = ARMS
    block_sizes: Sequence[int] = (8, 4)
    n_codes: Sequence[int] = (256, 1024, 3072)
    subsets: Sequence[str] = SUBSETS
    seeds: Sequence[int] = (0,)
    specs: Sequence[str] = tuple(SPECS)
    ways: Sequence[str] = WAYS
    n_calibration: int = 1000  # sentences
    quick: bool = False
    finished: bool = False  # show what is finished, and run nothing


def run(plan: Plan, console: Console, units: Units | None = None) -> Result:
    """Run a plan, or what is left of it; return a JSON-ready dictionary."""
    if units is None:
        kind = FinishedUnits if plan.finished else Units
        units = kind("sentences-quick" if plan.quick else "sentences")
    study = Study(plan, console, units)
    uncompressed = study.unit(
        "uncompressed", {}, lambda: {"spearman": study.spearman(study.encoder)}
    )
    skipped: list[dict[str, str]] = []
    sizes = product(plan.block_sizes, plan.n_codes, plan.seeds, plan.arms)
    rows = run_all(
        (partial(study.rows, arm, size, n_codes, seed) for size, n_codes, seed, arm in sizes),
        skipped,
    )
    ways = product(plan.specs, plan.ways, plan.seeds)
    specs = run_all((partial(study.whole, *which) for which in ways), skipped)
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
        "rows": [row for rows_of_arm in rows for row in rows_of_arm],
        "specs": specs,
        "skipped": skipped,
    }


class Study:
    """The model and the sentences, loaded once they are needed; results that are kept."""

    def __init__(self, plan: Plan, console: Console, units: Units) -> None:
        self.plan, self.console, self.units = plan, console, units
        self.pairs = sts.load_pairs("dev", QUICK_PAIRS if plan.quick else None)
        self._calibrations: dict[int, Any] = {}

    @cached_property
    def encoder(self) -> Any:
        from benchmarks import classifier

        return classifier.load_encoder(with_pooler=True)

    @cached_property
    def tokenizer(self) -> Any:
        from benchmarks import classifier

        return classifier.load_tokenizer()

    def calibration(self, seed: int) -> Any:
        """Measure what the weights take in, once for each seed; its seconds count for no arm."""
        if seed not in self._calibrations:
            self._calibrations[seed] = self.calibrated(seed)
        return self._calibrations[seed]

    def calibrated(self, seed: int) -> Any:
        """Measure what the weights take in."""
        from benchmarks import classifier

        return classifier.calibrated(self.encoder, self.sample(seed))

    def sample(self, seed: int) -> list[Any]:
        """Draw encoded sentences of the training set."""
        from benchmarks import classifier

        pairs = sts.load_pairs("train")
        both = (text for pair in zip(pairs.left, pairs.right, strict=True) for text in pair)
        sentences = list(dict.fromkeys(both))
        order = np.random.default_rng(seed).permutation(len(sentences))
        chosen = [sentences[i] for i in order[: self.plan.n_calibration]]
        return classifier.encoded_sentences(chosen, self.tokenizer)

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

    def whole(self, spec: str, way: str, seed: int) -> dict[str, Any]:
        """Measure one spec for the whole model, from calibration to the compressed model."""

        def measure() -> dict[str, Any]:
            model = deepcopy(self.encoder)
            begin = time.perf_counter()
            report = self._compressed(model, SPECS[spec], way, seed)
            seconds = time.perf_counter() - begin
            n_bytes = sum(tensor.stored_bytes for tensor in report.compressed)
            return {
                "spearman": self.spearman(model),
                "n_weights": len(report.compressed),
                "bits_per_weight": 8 * n_bytes / sum(t.n_values for t in report.compressed),
                "n_bytes": report.n_bytes,
                "original_bytes": report.original_bytes,
                "n_empty_last": report.n_unused_words,
                "seconds": seconds,
            }

        told = {"spec": spec, "way": way, "seed": seed, "n_calibration": self.plan.n_calibration}
        result = self.unit(f"spec {spec}, {way}, seed {seed}", told, measure)
        self.console.print(f"  spec {spec}, {way}: {result['spearman']:.4f}")
        return {**told, **result}

    def _compressed(self, model: Any, spec: Any, way: str, seed: int) -> Any:
        """Compress a model in place, with all that it takes to know what its layers take in."""
        from benchmarks import classifier
        from pgkmeans_sk import nn

        if way == TOGETHER:
            calibration = self.calibrated(seed)
            return nn.compress_model(model, spec, importance=calibration, random_state=seed)
        return nn.compress_in_sequence(
            model,
            classifier.calibration_batches(self.sample(seed)),
            spec,
            forward=classifier.mean_states,
            mask=lambda batch: batch.used,
            random_state=seed,
        )

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
            calibration = self.calibration(seed) if compressing[arm].wants_calibration else None
            job = Job(dict.fromkeys(missing, setting), seed, calibration)
            small.update(compressing[arm].compress(models[0], job))
            return {"spearman": self.spearman(models[0]), **totals(small)}

        found = []
        for subset in self.plan.subsets:
            told = {"arm": arm, "block_size": block_size, "n_codes": n_codes, "seed": seed}
            told |= {"subset": subset}
            if compressing[arm].wants_calibration:
                told |= {"n_calibration": self.plan.n_calibration, "drawn_by": seed}
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
    """Make a table of all sizes, one for each of them, and one of specs for the whole model."""
    found = [_sheet(group, result) for group in _groups(result)]
    for subset in dict.fromkeys(row["subset"] for row in result["rows"]):
        sizes = [group for group in _groups(result) if group[0] == subset]
        if len(sizes) > 1:
            found.insert(0, _overview(sizes, result))
    return [*found, _whole_sheet(result)] if result["specs"] else found


def _whole_sheet(result: Result) -> Sheet:
    columns = (
        "spec", "way", "Spearman", "to uncompressed", "weights", "bits per weight", "bytes in all",
        "times smaller", "empty at the end", "seconds",
    )  # fmt: skip
    whole = result["settings"]["uncompressed"]
    by_way: dict[Any, list[Result]] = {}
    for row in result["specs"]:
        # Results from before there was a second way do not name the first.
        by_way.setdefault((row["spec"], row.get("way", TOGETHER)), []).append(row)
    rows = [
        (
            spec,
            way,
            _with_range([run["spearman"] for run in runs]),
            f"{mean(run['spearman'] for run in runs) - whole:+.4f}",
            as_whole(runs[0]["n_weights"]),
            f"{runs[0]['bits_per_weight']:.3f}",
            as_whole(runs[0]["n_bytes"]),
            f"{runs[0]['original_bytes'] / runs[0]['n_bytes']:.1f}",
            _summed(runs, "n_empty_last"),
            as_seconds(mean(run["seconds"] for run in runs)),
        )
        for (spec, way), runs in by_way.items()
    ]
    n_seeds = max(len(runs) for runs in by_way.values())
    caption = (
        "Bytes and times smaller are of the file; bits are those of the compressed weights. "
        "Seconds are from the sentences to the compressed model."
    )
    if n_seeds > 1:
        caption += f" Means of {n_seeds} seeds (least - most); each draws other sentences."
    return Sheet(f"The whole model; uncompressed {whole:.4f}", columns, rows, caption, n_text=2)


KEYS = ("subset", "block_size", "n_codes")


def _groups(result: Result) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[key] for key in KEYS) for row in result["rows"]))


def _overview(groups: list[tuple[Any, ...]], result: Result) -> Sheet:
    """Spearman's correlation of every arm, by block size and K."""
    by_cell: dict[tuple[Any, ...], list[float]] = {}
    for row in result["rows"]:
        group = tuple(row[key] for key in KEYS)
        by_cell.setdefault((row["arm"], group), []).append(row["spearman"])
    arms = dict.fromkeys(row["arm"] for row in result["rows"] if row["subset"] == groups[0][0])
    table = [
        (arm, *(_mean_or_dash(by_cell.get((arm, group), [])) for group in groups)) for arm in arms
    ]
    columns = ("arm", *(f"{size} x {n_codes}" for _, size, n_codes in groups))
    whole = result["settings"]["uncompressed"]
    title = f"{groups[0][0]}: Spearman by block size x codes; uncompressed {whole:.4f}"
    return Sheet(title, columns, table)


def _mean_or_dash(values: list[float]) -> str:
    return f"{mean(values):.4f}" if values else "-"


def _sheet(group: tuple[Any, ...], result: Result) -> Sheet:
    columns = (
        "arm", "Spearman", "to uncompressed", "bits per weight", "rel. error",
        "empty at first", "empty at the end", "passes", "gave up", "seconds",
    )  # fmt: skip
    whole = result["settings"]["uncompressed"]
    rows = [row for row in result["rows"] if tuple(row[key] for key in KEYS) == group]
    subset, block_size, n_codes = group
    by_arm: dict[str, list[Result]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row)
    table = [
        (
            arm,
            _with_range([run["spearman"] for run in runs]),
            f"{mean(run['spearman'] for run in runs) - whole:+.4f}",
            f"{runs[0]['bits_per_weight']:.3f}",
            f"{mean(run['relative_error'] for run in runs):.4f}",
            *(_summed(runs, key) for key in ("n_empty_first", "n_empty_last", "n_passes")),
            _summed(runs, "n_gave_up"),
            as_seconds(mean(run["seconds"] for run in runs)),
        )
        for arm, runs in by_arm.items()
    ]
    n_seeds = len({row["seed"] for row in rows})
    title = (
        f"{rows[0]['n_weights']} weights ({subset}), blocks of {block_size}, {n_codes} codes; "
        f"uncompressed {whole:.4f}"
    )
    caption = f"Means of {n_seeds} seeds (least - most); counts are sums." if n_seeds > 1 else ""
    return Sheet(title, columns, table, caption)


def _with_range(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{mean(values):.4f} ({min(values):.4f} - {max(values):.4f})"


def _summed(runs: Sequence[Result], key: str) -> str:
    counts = [run[key] for run in runs]
    return as_whole(None if None in counts else sum(counts))
