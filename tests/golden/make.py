"""Writes the files beside it: ``python -m tests.golden.make``.

They must load for ever, so none is written again once it has been released: a change of the format
gets files of its own. All values are small fractions, for which arithmetic is exact.
"""

from pathlib import Path

import numpy as np

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.packing import code_bits, pack
from pgkmeans_sk.codes.rotation import Rotation
from pgkmeans_sk.codes.storage import (
    CarriedTensor,
    StoredTensor,
    open_tensors,
    save_matrix,
    save_tensors,
)
from pgkmeans_sk.codes.tensor_dtypes import to_bytes

FOLDER = Path(__file__).resolve().parent


def fractions(shape, *, step=7, dtype=np.float32):
    """Eighths from -2 to 2, in an order that looks random enough."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    return ((numbers * step % 33 - 16) / 8).astype(dtype)


def matrix(decoder, n_rows, *, relative_error=0.125, entropy=2.5):
    """Codes for ``decoder`` that use all code words."""
    count = n_rows * decoder.n_block_codes
    codes = (np.arange(count) * 5 + np.arange(count) // 3) % decoder.n_codes
    scale_codes = None
    if decoder.row_scales is not None:
        scale_codes = (np.arange(n_rows) * 37 % 256).astype(np.uint8)
    return CompressedMatrix(
        decoder=decoder,
        packed=pack(codes.astype(np.uint16), code_bits(decoder.n_codes)),
        scale_codes=scale_codes,
        n_rows=n_rows,
        relative_error=relative_error,
        entropy=entropy,
    )


def shared():
    """One codebook for all blocks, the last of them narrower; 3 bits a code."""
    books = fractions((1, 1, 8, 4))
    return matrix(Decoder(codebooks=books, n_features=10, dtype=np.dtype(np.float32)), 13)


def per_block():
    """A codebook a block, zeros behind the narrower last one; 5 of 8 codes in use; float64."""
    books = fractions((1, 3, 5, 4), dtype=np.float64)
    books[:, -1, :, 2:] = 0.0
    return matrix(Decoder(codebooks=books, n_features=10, dtype=np.dtype(np.float64)), 11)


def stages():
    """Two stages, and all three kinds of scales."""
    decoder = Decoder(
        codebooks=fractions((2, 3, 16, 2)),
        n_features=6,
        dtype=np.dtype(np.float32),
        row_scales=(np.arange(256) / 64).astype(np.float32),
        block_scales=np.array([0.5, 1.0, 2.0], dtype=np.float32),
        column_scales=np.array([1, 2, 4, 0.5, 0.25, 1], dtype=np.float32),
    )
    return matrix(decoder, 9)


def hadamard():
    """A rotation of 48 columns: 3 pieces of 16, and a mixer that swaps them."""
    mixer = np.array([[0, 1, 0], [0, 0, -1], [1, 0, 0]], dtype=np.float32)
    signs = np.where(np.arange(48) % 5 < 2, -1, 1).astype(np.int8)
    decoder = Decoder(
        codebooks=fractions((1, 1, 32, 8)),
        n_features=48,
        dtype=np.dtype(np.float32),
        rotation=Rotation(mixer, signs),
    )
    return matrix(decoder, 6)


def float16():
    """float16 throughout, and more than 256 codes: 9 bits each, of which 300 words are in use."""
    books = fractions((1, 2, 300, 1), dtype=np.float16)
    decoder = Decoder(
        codebooks=books,
        n_features=2,
        dtype=np.dtype(np.float16),
        column_scales=np.array([0.5, 2.0], dtype=np.float16),
    )
    return matrix(decoder, 40)


def one_bit():
    """The least there can be: two code words for a column, and a row."""
    books = np.array([-1.0, 1.0], dtype=np.float32).reshape(1, 1, 2, 1)
    return matrix(Decoder(codebooks=books, n_features=1, dtype=np.dtype(np.float32)), 1)


MATRICES = {f.__name__: f for f in (shared, per_block, stages, hadamard, float16, one_bit)}


def model():
    """Arguments of ``save_tensors``: what a small model might be."""
    half = fractions((5, 3), step=11)
    compressed = {
        # (out, in, kernel), whose matrix is (13, 10)
        "conv.weight": StoredTensor(shape=(13, 5, 2), dtype="BF16", matrix=shared()),
        # (in, out), whose matrix has a row for each of the outputs
        "encoder.Gewicht ä": StoredTensor(
            shape=(6, 9),
            dtype="F32",
            matrix=stages(),
            axis=1,
            aliases=("decoder.weight", "lm_head.weight"),
        ),
    }
    carried = {
        "norm.bias": CarriedTensor(shape=(5, 3), dtype="BF16", source=to_bytes(half, "BF16")),
        "steps": CarriedTensor(shape=(), dtype="I64", source=np.int64(1234567).tobytes()),
        "empty": CarriedTensor(shape=(0, 4), dtype="F32", source=b""),
        "small": CarriedTensor(
            shape=(3,), dtype="F8_E4M3", source=b"\x00\x38\xb8", aliases=("tied small",)
        ),
    }
    return compressed, carried, {"format": "pt", "author's note": 'a "quoted" one'}


def group():
    """Arguments of ``save_tensors``: three tensors with the codebooks of one of them."""
    words = fractions((2, 1, 7, 3), step=5)

    def member(n_features, n_rows, **scales):
        dtype = np.dtype(np.float32)
        decoder = Decoder(codebooks=words, n_features=n_features, dtype=dtype, **scales)
        return matrix(decoder, n_rows)

    compressed = {
        # It stands before the one that stores them.
        "0.weight": StoredTensor(
            shape=(7, 9), dtype="F16", matrix=member(9, 7), codebooks_of="1.weight"
        ),
        "1.weight": StoredTensor(shape=(10, 6), dtype="F32", matrix=member(6, 10)),
        "2.weight": StoredTensor(
            shape=(2, 4, 5),
            dtype="F32",
            matrix=member(10, 4, column_scales=fractions(10, step=3)),
            axis=1,
            aliases=("tied",),
            codebooks_of="1.weight",
        ),
        "3.weight": StoredTensor(shape=(13, 10), dtype="F32", matrix=shared()),
    }
    bias = np.array([0.5, -1.25], dtype=np.float32)
    carried = {"1.bias": CarriedTensor(shape=(2,), dtype="F32", source=bias.tobytes())}
    return compressed, carried, {"format": "pt"}


def groups():
    """Arguments of ``save_tensors``: tensors whose groups have codebooks of their own."""
    dtype = np.dtype(np.float32)
    books = fractions((1, 9, 4, 1), step=5)
    compressed = {
        # 54 values in 9 groups of 6, which go across the rows
        "0.weight": StoredTensor(
            shape=(2, 9, 3),
            dtype="F32",
            matrix=matrix(Decoder(codebooks=books, n_features=9, dtype=dtype), 6),
            group_size=6,
        ),
        # One codebook for all groups of 13
        "1.weight": StoredTensor(
            shape=(10, 13), dtype="BF16", matrix=shared(), group_size=13, aliases=("tied",)
        ),
        "2.weight": StoredTensor(shape=(13, 10), dtype="F32", matrix=shared()),
    }
    return compressed, {}, {"format": "pt"}


MODELS = {"model": model, "group": group, "groups": groups}


def write(folder):
    """All files and what they decode to."""
    expected = {}
    for name, make in MATRICES.items():
        save_matrix(folder / f"{name}.safetensors", make())
        expected[name] = make().decode()
    save_tensors(folder / "model.safetensors", *model())
    with open_tensors(folder / "model.safetensors") as file:
        for name in (*file.compressed, "norm.bias"):
            expected[f"model {name}"] = file.array(name)
    np.savez_compressed(folder / "expected.npz", **expected)
    # Version 2 of the format, in which tensors may share codebooks.
    save_tensors(folder / "group.safetensors", *group())
    with open_tensors(folder / "group.safetensors") as file:
        decoded = {f"group {name}": file.array(name) for name in file.compressed}
    np.savez_compressed(folder / "expected_2.npz", **decoded)
    # Version 3, in which the columns of a matrix may be groups of values.
    save_tensors(folder / "groups.safetensors", *groups())
    with open_tensors(folder / "groups.safetensors") as file:
        decoded = {f"groups {name}": file.array(name) for name in file.compressed}
    np.savez_compressed(folder / "expected_3.npz", **decoded)


if __name__ == "__main__":
    write(FOLDER)
