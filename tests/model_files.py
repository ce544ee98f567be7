"""Small safetensors files with tensors of every kind that a model file may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.tensor_dtypes import to_bytes
from pgkmeans_sk.codes.tensor_writer import TensorEntry, write_tensors

METADATA = {"format": "pt", "note": "a\nb \N{SNOWMAN}"}


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    """Values as weights have them."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def entry(name: str, dtype: str, array: NDArray[Any]) -> TensorEntry:
    """A tensor for a file, converted to ``dtype``."""
    return TensorEntry(name, dtype, array.shape, to_bytes(array, dtype))


WORDS = normal(1, 120, 32)

MODEL = (
    entry("layer.0.weight", "F32", normal(2, 64, 32)),
    entry("layer.0.bias", "F32", normal(3, 64)),
    entry("layer.1.weight", "F16", normal(4, 64, 32)),
    entry("layer.2.weight", "BF16", normal(5, 64, 32)),
    entry("layer.3.weight", "F64", normal(6, 64, 32)),
    entry("conv.weight", "F32", normal(7, 16, 6, 3, 3)),
    entry("ragged.weight", "F32", normal(8, 80, 13)),
    entry("embedding.weight", "F32", WORDS),
    entry("head.weight", "F32", WORDS),
    entry("tiny.weight", "F32", normal(9, 3, 4)),
    entry("narrow.weight", "F32", normal(10, 600, 1)),
    entry("numbers", "I64", np.arange(12).reshape(3, 4)),
    entry("small numbers", "U8", np.arange(256).reshape(16, 16)),
    entry("scalar", "F32", np.float32(3.5).reshape(())),
    entry("empty", "F32", np.zeros((0, 8), np.float32)),
    entry("mask", "F32", np.where(np.tri(64) > 0, 0, -np.inf)),
    entry("odd \N{GREEK SMALL LETTER OMEGA}\n[red]name\x1b[31m", "F32", normal(11, 40, 16)),
    TensorEntry("eighths", "F8_E4M3", (4, 4), bytes(range(16))),
    TensorEntry("truth", "BOOL", (3,), b"\x01\x00\x01"),
)


def write_model(path: Path, entries: Any = MODEL) -> Path:
    """Write a file of these tensors."""
    write_tensors(path, entries, METADATA)
    return path
