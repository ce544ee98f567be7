"""Small safetensors files for tests, of all dtypes, and what is said of those that are wrong."""

import struct

import numpy as np
import pytest

from pgkmeans_sk.codes.tensor_dtypes import ITEM_BITS, stored_bytes
from pgkmeans_sk.codes.tensor_writer import TensorEntry

METADATA = {"format": "pt", "ключ": 'with "quotes"\n\x00'}


def items(dtype, shape, seed=0):
    """Random bytes of a tensor; any bits are a value of each dtype but BOOL."""
    n_bytes = stored_bytes(dtype, shape)
    return np.random.default_rng(seed).integers(0, 1 + (dtype != "BOOL") * 255, n_bytes, np.uint8)


ENTRIES = [
    *[TensorEntry(f"a.{d}", d, (3, 4), items(d, (3, 4), i)) for i, d in enumerate(ITEM_BITS)],
    TensorEntry("scalar", "F32", (), items("F32", ())),
    TensorEntry("empty", "BF16", (2, 0, 5), b""),
    TensorEntry("odd", "U8", (3,), b"abc"),
    TensorEntry("", "I16", (1,), b"\x01\x02"),
    TensorEntry('odd "name"\n/é\U0001f600', "F16", (2, 1), lambda: bytearray(4)),
]


def content(source):
    """The bytes that a source gives."""
    return bytes(source() if callable(source) else source)


def raw_file(path, head, data=b"", length=None):
    """A file whose header is any text at all."""
    text = head if isinstance(head, bytes) else head.encode("utf-8")
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def files(folder):
    """What lies in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(message):
    """A ValueError that names the file, which is to be called "some file"."""
    return pytest.raises(ValueError, match=f"(?s)some file.*{message}")
