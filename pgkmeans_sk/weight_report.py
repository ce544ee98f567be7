"""Records of what became of the tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

__all__ = ["FileReport", "TensorReport"]

UNKNOWN_REASON = "carried when the file was made"
"""A file of codes does not say why a tensor was carried."""


@dataclass(frozen=True, kw_only=True)
class TensorReport:
    """One tensor of a file.

    Attributes
    ----------
    name : str
        Its name.
    aliases : tuple of str
        Other names of the same tensor (tied weights).
    shape : tuple of int
        Its shape.
    dtype : str
        Its dtype as safetensors files name it.
    original_bytes : int
        What it takes uncompressed, under all its names.
    stored_bytes : int
        What it takes in the file; codebooks that several tensors use count at the one that
        stores them.
    relative_error : float or None
        ``|W - decoded| / |W|`` when it was compressed; 0 if it was carried; None if it is only
        planned.
    entropy : float or None
        Of the codes, in bits per code; None if it was carried.
    n_code_words : int
        Code words in all codebooks that are stored for it; 0 if it was carried, or has levels.
    n_unused_words : int or None
        How many of them no code means, in none of the tensors that use them. There are none, unless
        there are fewer distinct blocks than code words. None if it is only planned.
    seconds : float or None
        That it took to compress or decompress; None if that was not done.
    carried_because : str or None
        Why it was carried as it is; None if it was compressed.
    codebooks_of : str or None
        The tensor whose codebooks it uses; None if it has its own or none.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from pgkmeans_sk import describe_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> W = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    >>> save_file({"weight": W, "bias": W[0]}, folder / "model.safetensors")
    >>> report = describe_file(folder / "model.safetensors")
    >>> {tensor.name: tensor.shape for tensor in report.tensors}
    {'bias': (64,), 'weight': (512, 64)}
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    original_bytes: int
    stored_bytes: int
    relative_error: float | None = 0.0
    entropy: float | None = None
    n_code_words: int = 0
    n_unused_words: int | None = 0
    seconds: float | None = None
    carried_because: str | None = None
    codebooks_of: str | None = None

    @property
    def n_values(self) -> int:
        """Values of the tensor, counted once."""
        return prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each value, codebooks included; 0 if there are no values."""
        return 8 * self.stored_bytes / self.n_values if self.n_values else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types."""
        content = asdict(self)
        for name in ("aliases", "shape"):
            content[name] = list(content[name])
        return {**content, "bits_per_weight": self.bits_per_weight}


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """All tensors of a file.

    Attributes
    ----------
    path : str
        The file with the tensors as they are described here.
    n_bytes : int
        Its size: that of its header, and of the stored bytes of all tensors.
    header_bytes : int
        All that comes before the first tensor.
    original_bytes : int
        Size of the file of uncompressed tensors: of the source when compressing, else of what
        decompressing writes.
    tensors : tuple of TensorReport
        In the order of the original file, as far as it is known.
    metadata : mapping of str to str
        What the original file says beside its tensors.
    is_compressed : bool
        Whether it is a file of codes.
    unused_rules : tuple of str
        Rules of the spec that fit no tensor.
    seconds : float or None
        That all of it took.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from safetensors.numpy import save_file
    >>> from pgkmeans_sk import compress_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> W = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    >>> save_file({"weight": W, "bias": W[0]}, folder / "model.safetensors")
    >>> report = compress_file(folder / "model.safetensors", folder / "small.safetensors")
    >>> f"{report.original_bytes / report.n_bytes:.1f} times smaller"
    '...times smaller'
    """

    path: str
    n_bytes: int
    header_bytes: int
    original_bytes: int
    tensors: tuple[TensorReport, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_compressed: bool = True
    unused_rules: tuple[str, ...] = ()
    seconds: float | None = None

    @property
    def compressed(self) -> tuple[TensorReport, ...]:
        """Tensors that are stored as codes."""
        return tuple(t for t in self.tensors if t.carried_because is None)

    @property
    def carried(self) -> tuple[TensorReport, ...]:
        """Tensors that are stored as they were."""
        return tuple(t for t in self.tensors if t.carried_because is not None)

    @property
    def n_values(self) -> int:
        """Values of all tensors, tied ones counted once."""
        return sum(tensor.n_values for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file for each value, all included."""
        return 8 * self.n_bytes / self.n_values if self.n_values else 0.0

    @property
    def n_unused_words(self) -> int:
        """Code words of all tensors that no code means, as far as it is known."""
        return sum(tensor.n_unused_words or 0 for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types, for JSON or a data frame of ``["tensors"]``."""
        return {
            "path": self.path,
            "is_compressed": self.is_compressed,
            "n_bytes": self.n_bytes,
            "header_bytes": self.header_bytes,
            "original_bytes": self.original_bytes,
            "n_values": self.n_values,
            "bits_per_weight": self.bits_per_weight,
            "n_compressed": len(self.compressed),
            "n_carried": len(self.carried),
            "n_unused_words": self.n_unused_words,
            "seconds": self.seconds,
            "unused_rules": list(self.unused_rules),
            "metadata": dict(self.metadata),
            "tensors": [tensor.to_dict() for tensor in self.tensors],
        }
