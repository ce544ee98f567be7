"""A file's description as metadata of the safetensors header: writing it, reading it.

docs/storage_format.md describes the form. Whatever is read may be damaged or made up: each claim is
checked before it is believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isfinite
from reprlib import repr as short
from typing import Any
from zlib import crc32

from pgkmeans_sk.codes.description import (
    CarriedDescription,
    CompressedDescription,
    FileDescription,
    rows_and_columns,
    stored_name,
)
from pgkmeans_sk.codes.matrix_layout import MatrixLayout
from pgkmeans_sk.codes.matrix_values import check_parts
from pgkmeans_sk.codes.strict_json import parse
from pgkmeans_sk.codes.tensor_file import TensorFile, naming

FORMAT = "pgkmeans_sk"

CONTENT_FORMAT = "content_format"
"""Where the metadata says it, too, if another library has put its own name into "format"."""

VERSION = "1"
"""Of files without shared codebooks: the first readers there were can still read them."""

SHARING_VERSION = "2"
"""Of files in which a tensor uses the codebooks of another."""

GROUPS_VERSION = "3"
"""Of files in which the matrix of a tensor has its groups as columns."""

VERSIONS = (VERSION, SHARING_VERSION, GROUPS_VERSION)

SMALLEST_NUMBER, LARGEST_NUMBER = 1e-99, 1e99
"""Positive numbers with an exponent of two digits: all numbers are written in the same width."""

DTYPE_FIELDS = {
    "codebooks": "codebook_dtype",
    "row_scales": "row_scale_dtype",
    "block_scales": "block_scale_dtype",
    "column_scales": "column_scale_dtype",
    "rotation_mixer": "mixer_dtype",
}
"""Fields of a layout that are read off an array."""

COMPRESSED_KEYS = (
    *("shape", "dtype", "axis", "aliases", "decoded_dtype", "block_size", "n_codes"),
    *("n_books", "n_stages", "relative_error", "entropy", "crc32"),
)
"""Of the entry of a compressed tensor."""


# ------------------------------------------------------------------ writing


def to_metadata(description: FileDescription) -> dict[str, str]:
    """The metadata of the safetensors file: as many bytes for any numbers and checksums.

    Raises
    ------
    ValueError
        If a number cannot be written; the message names the tensor.
    """
    compressed = {}
    for name, tensor in description.compressed.items():
        with naming(f"tensor {name!r}"):
            compressed[name] = _compressed_to_json(tensor)
    content = {
        "compressed": compressed,
        "carried": {name: _carried_to_json(t) for name, t in description.carried.items()},
        "metadata": dict(description.metadata),
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return {
        "format": FORMAT,
        "format_version": _version(description),
        "description": text,
        "description_crc32": checksum_text(crc32(text.encode("utf-8"))),
    }


def _version(description: FileDescription) -> str:
    """The least that says what there is to say, so that earlier readers take what they can."""
    tensors = description.compressed.values()
    if any(tensor.group_size is not None for tensor in tensors):
        return GROUPS_VERSION
    if any(tensor.codebooks_of is not None for tensor in tensors):
        return SHARING_VERSION
    return VERSION


def checksum_text(checksum: int) -> str:
    """A CRC-32 as 8 hexadecimal digits."""
    return f"{checksum:08x}"


def number_text(name: str, value: float) -> str:
    """A number >= 0 in 22 characters, from which the same float64 is read; tiny ones become 0."""
    if not isfinite(value) or not 0.0 <= value < LARGEST_NUMBER:
        raise ValueError(
            f"got {name}={value!r}, but expected a number from 0 to {LARGEST_NUMBER:.0e}"
        )
    return f"{value if value >= SMALLEST_NUMBER else 0.0:.16e}"


def _compressed_to_json(tensor: CompressedDescription) -> dict[str, Any]:
    layout = tensor.layout
    checksums = {part: tensor.checksums.get(part, 0) for part in tensor.parts()}
    shared = {} if tensor.codebooks_of is None else {"codebooks_of": tensor.codebooks_of}
    form = {"axis": tensor.axis}
    if tensor.group_size is not None:
        form = {"group_size": int(tensor.group_size)}
    return {
        "shape": [int(size) for size in tensor.shape],
        "dtype": tensor.dtype,
        **form,
        "aliases": list(tensor.aliases),
        "decoded_dtype": layout.dtype,
        "block_size": int(layout.block_size),
        "n_codes": int(layout.n_codes),
        "n_books": int(layout.n_books),
        "n_stages": int(layout.n_stages),
        **shared,
        "relative_error": number_text("relative_error", tensor.relative_error),
        "entropy": number_text("entropy", tensor.entropy),
        "crc32": {part: checksum_text(value) for part, value in checksums.items()},
    }


def _carried_to_json(tensor: CarriedDescription) -> dict[str, Any]:
    return {
        "shape": [int(size) for size in tensor.shape],
        "dtype": tensor.dtype,
        "aliases": list(tensor.aliases),
        "crc32": checksum_text(tensor.checksum),
    }


# ------------------------------------------------------------------ reading


def read_description(file: TensorFile) -> FileDescription:
    """What a file says about itself, and what its tensors bear out.

    Nothing is allocated in proportion to a number that the description claims.

    Raises
    ------
    ValueError
        If it is not a file of this format and version, or its description is damaged, or is not
        that of the tensors in the file.
    """
    with naming(file.path):
        text = _description_text(file.metadata)
        content = _fields(text, "compressed", "carried", "metadata")
        compressed = {}
        for name, entry in _object(content["compressed"]).items():
            with naming(f"compressed tensor {name!r}"):
                compressed[name] = _compressed_from_json(name, entry, file)
        carried = {}
        for name, entry in _object(content["carried"]).items():
            with naming(f"carried tensor {name!r}"):
                carried[name] = _carried_from_json(name, entry, file)
        found = FileDescription(
            compressed=compressed, carried=carried, metadata=_object(content["metadata"])
        )
        described = {spec.name for spec in found.specs()}
        for name in file.names:
            if name not in described:
                raise ValueError(f"got a tensor {name!r} that the description does not mention")
        return found


def _description_text(metadata: Mapping[str, str]) -> Any:
    """The parsed description, once format, version and checksum are right."""
    if not claims_codes(metadata):
        raise ValueError(
            f"got a safetensors file with the format {metadata.get('format')!r}, but expected "
            f"{FORMAT!r}: it was not written by this library, or holds no codes"
        )
    _check_version(metadata.get("format_version", ""))
    for key in ("description", "description_crc32"):
        if key not in metadata:
            raise ValueError(f"got no {key!r} in the metadata, but expected it")
    text = metadata["description"]
    with naming("'description'"):
        found = checksum_text(crc32(text.encode("utf-8")))
        if found != metadata["description_crc32"]:
            raise ValueError(
                f"got the CRC-32 {found}, but expected {metadata['description_crc32']!r}: "
                "the file is damaged"
            )
        return parse(text)


def claims_codes(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file claims to be one of codes."""
    return FORMAT in (metadata.get("format"), metadata.get(CONTENT_FORMAT))


def _check_version(version: str) -> None:
    if version in VERSIONS:
        return
    message = f"got format_version {version!r}, but expected {', '.join(map(repr, VERSIONS))}"
    if re.fullmatch("[0-9]{1,9}", version) and int(version) > int(VERSIONS[-1]):
        message += ": the file was written by a newer version of this library"
    raise ValueError(message)


def _compressed_from_json(name: str, entry: Any, file: TensorFile) -> CompressedDescription:
    fields = _fields(entry, *_compressed_keys(_object(entry), file.metadata["format_version"]))
    owner = _owner(fields)
    shape = tuple(_list(fields["shape"]))
    axis, group_size = fields.get("axis", 0), fields.get("group_size")
    n_rows, n_features = rows_and_columns(shape, axis, group_size)
    checksums = {part: _checksum(text) for part, text in _object(fields["crc32"]).items()}
    stored = {part: _stored(stored_name(name, part), file) for part in checksums}
    if owner is not None:
        if "codebooks" in stored:
            raise ValueError(f"'codebooks': got some, but expected none beside those of {owner!r}")
        stored["codebooks"] = _stored(stored_name(owner, "codebooks"), file)
    dtypes = {field: stored[part][0] for part, field in DTYPE_FIELDS.items() if part in stored}
    mixer_shape = stored.get("rotation_mixer", ("", ()))[1]
    layout = MatrixLayout(
        n_rows=n_rows,
        n_features=n_features,
        block_size=fields["block_size"],
        n_codes=fields["n_codes"],
        n_books=fields["n_books"],
        n_stages=fields["n_stages"],
        dtype=fields["decoded_dtype"],
        mixer_size=mixer_shape[0] if mixer_shape else None,
        **dtypes,
    )
    check_parts(layout, stored)
    return CompressedDescription(
        shape=shape,
        dtype=fields["dtype"],
        layout=layout,
        axis=axis,
        group_size=group_size,
        aliases=_names(fields["aliases"]),
        relative_error=_number("relative_error", fields["relative_error"]),
        entropy=_number("entropy", fields["entropy"]),
        checksums=checksums,
        codebooks_of=owner,
    )


def _compressed_keys(entry: Mapping[str, Any], version: str) -> set[str]:
    """The keys that the entry of a compressed tensor must have, given those that it has."""
    keys = set(COMPRESSED_KEYS)
    if version != VERSION and "codebooks_of" in entry:
        keys.add("codebooks_of")
    if version == GROUPS_VERSION and entry.get("group_size") is not None:
        keys.symmetric_difference_update({"axis", "group_size"})
    return keys


def _carried_from_json(name: str, entry: Any, file: TensorFile) -> CarriedDescription:
    fields = _fields(entry, "shape", "dtype", "aliases", "crc32")
    described = fields["dtype"], tuple(_list(fields["shape"]))
    stored = _stored(name, file)
    # Of the right type, too: True is equal to 1.
    if stored != described or not all(type(size) is int for size in described[1]):
        raise ValueError(
            f"got dtype {stored[0]} and shape {stored[1]}, but expected {short(described[0])} and "
            f"{short(described[1])}"
        )
    return CarriedDescription(
        shape=stored[1],
        dtype=stored[0],
        aliases=_names(fields["aliases"]),
        checksum=_checksum(fields["crc32"]),
    )


# ------------------------------------------------------------------ values of the JSON text


def _stored(name: str, file: TensorFile) -> tuple[str, tuple[int, ...]]:
    if name not in file:
        raise ValueError(f"got no tensor {name!r} in the file, but expected one")
    return file.dtype(name), file.shape(name)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"got {short(value)}, but expected a JSON object")
    return value


def _owner(fields: dict[str, Any]) -> str | None:
    """The tensor whose codebooks are used; None where an entry does not say."""
    if "codebooks_of" not in fields:
        return None
    owner = fields["codebooks_of"]
    if not isinstance(owner, str):
        raise ValueError(f"got codebooks_of={short(owner)}, but expected the name of a tensor")
    return owner


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"got {short(value)}, but expected a JSON array")
    return value


def _fields(value: Any, *names: str) -> dict[str, Any]:
    """An object with exactly these keys."""
    found = _object(value)
    if found.keys() != set(names):
        raise ValueError(f"got the keys {short(sorted(found))}, but expected {sorted(names)}")
    return found


def _names(value: Any) -> tuple[str, ...]:
    found = _list(value)
    if not all(isinstance(name, str) for name in found):
        raise ValueError(f"got aliases {short(value)}, but expected an array of strings")
    return tuple(found)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]\.[0-9]{16}e[+-][0-9]{2}", value):
        raise ValueError(f"got {name}={short(value)}, but expected a number such as '{0.5:.16e}'")
    return float(value)


def _checksum(value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{8}", value):
        raise ValueError(f"got the CRC-32 {short(value)}, but expected 8 hexadecimal digits")
    return int(value, 16)
