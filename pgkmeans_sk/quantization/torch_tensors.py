"""Tensors as a quantizer uses them: rows, codes and queries, worked on where they are.

On the CPU they share their memory with NumPy arrays and the kernels, and results are tensors over
what these have found. On other devices ``torch_codec.py`` does the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgkmeans_sk.array_kinds import as_numpy, is_tensor
from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.search import check_k, nearest_rows
from pgkmeans_sk.engines.torch_device import works_on_host
from pgkmeans_sk.engines.torch_memory import block_rows, blocks
from pgkmeans_sk.engines.torch_rows import check_device, numpy_dtype, reported_dtype
from pgkmeans_sk.engines.torch_sums import sums_of_runs
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.errors import relative_error
from pgkmeans_sk.quantization.in_memory import InMemory
from pgkmeans_sk.quantization.prepared import Prepared
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.torch_codec import TensorCodec
from pgkmeans_sk.quantization.torch_search import nearest_rows as nearest_on_device
from pgkmeans_sk.quantization.torch_training import TensorRows


def check_tensor(X: torch.Tensor) -> None:
    """Raise unless a tensor is dense, and its device can do the work."""
    if X.layout != torch.strided:
        raise ValueError(f"Got a tensor of layout {X.layout}, but expected a dense one.")
    check_device(None, X)


def tensor_rows(X: torch.Tensor, weights: torch.Tensor | None) -> OnHost | OnDevice:
    """Validated rows and weights on one device."""
    output_dtype = np.dtype(np.float16) if X.dtype == torch.float16 else numpy_dtype(X.dtype)
    if not works_on_host(X):
        return OnDevice(X, weights, output_dtype)
    own = None if weights is None else weights.numpy()
    return OnHost(InMemory(X.to(reported_dtype(X.dtype)).numpy(), own, output_dtype))


@dataclass(frozen=True)
class OnHost:
    """Rows whose memory is shared; what methods do is said in ``in_memory.py``."""

    shared: InMemory

    @property
    def shape(self) -> tuple[int, int]:
        return self.shared.shape

    @property
    def output_dtype(self) -> np.dtype[Any]:
        return self.shared.output_dtype

    def training(self, settings: QuantizerSettings) -> Prepared:
        return self.shared.training(settings)

    def codes(self, encoder: Encoder) -> torch.Tensor:
        return torch.from_numpy(self.shared.codes(encoder))

    def mean_sq_error(self, encoder: Encoder) -> float:
        return self.shared.mean_sq_error(encoder)

    def compressed(self, encoder: Encoder) -> CompressedMatrix:
        return self.shared.compressed(encoder)


@dataclass(frozen=True)
class OnDevice:
    """Rows (n, d), floats of any kind, and weights (n,) on another device."""

    rows: torch.Tensor
    weights: torch.Tensor | None
    output_dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape[0], self.rows.shape[1]

    def training(self, settings: QuantizerSettings) -> TensorRows:
        """The rows; raise if somebody else is to find code words."""
        if settings.train is not None:
            raise ValueError(
                f"Got a quantizer of its own with rows on {self.rows.device}, but expected None: "
                "other clusterers take arrays. X.cpu() is the way there."
            )
        return TensorRows(self.rows.to(reported_dtype(self.rows.dtype)), self.weights)

    def codes(self, encoder: Encoder) -> torch.Tensor:
        return TensorCodec(encoder, self.rows.device).encode(self.rows)

    def mean_sq_error(self, encoder: Encoder) -> float:
        codec = TensorCodec(encoder, self.rows.device)
        errors = codec.sq_errors(self.rows, codec.encode(self.rows))
        weights = torch.ones_like(errors) if self.weights is None else self.weights
        end = torch.tensor([len(errors)], device=errors.device)
        error, weight = sums_of_runs(torch.stack([errors * weights, weights], 1), end)[0].tolist()
        return float(error / weight)

    def compressed(self, encoder: Encoder) -> CompressedMatrix:
        codec = TensorCodec(encoder, self.rows.device)
        codes = codec.encode(self.rows)
        errors, sq_norms = codec.sq_errors(self.rows, codes), codec.sq_lengths(self.rows)
        lost = relative_error(errors.cpu().numpy(), sq_norms.cpu().numpy())
        return CompressedMatrix.from_codes(
            encoder.decoder, codes.cpu().numpy(), relative_error=lost
        )


# ---------------------------------------------------------------- codes


def check_code_tensor(codes: torch.Tensor, decoder: Decoder) -> torch.Tensor:
    """Codes (n, n_columns), detached; raise if they are not codes of the decoder."""
    check_tensor(codes)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"Got codes of dtype {codes.dtype}, but expected integers.")
    if codes.ndim != 2 or codes.shape[1] != decoder.n_columns:
        raise ValueError(
            f"Got codes of shape {tuple(codes.shape)}, but expected (n, {decoder.n_columns})."
        )
    n_block_codes = decoder.n_block_codes
    for start, stop in blocks(len(codes), block_rows(codes.device, 16 * decoder.n_columns)):
        some = codes[start:stop].to(torch.int64)
        for name, part, limit in (
            ("code", some[:, :n_block_codes], decoder.n_codes),
            ("size", some[:, n_block_codes:], 256),
        ):
            if part.numel():
                low, high = (int(bound) for bound in part.aminmax())
                if low < 0 or high >= limit:
                    wrong = low if low < 0 else high
                    raise ValueError(f"Got {name} {wrong}, but expected 0 to {limit - 1}.")
    return codes.detach()


def decoded(codes: torch.Tensor, decoder: Decoder) -> torch.Tensor:
    """Rows (n, n_features) that ``codes`` stand for, where these are."""
    codes = check_code_tensor(codes, decoder)
    if works_on_host(codes):
        checked = codes.numpy().astype(decoder.code_dtype, copy=False)
        return torch.from_numpy(decoder.decode(checked))
    return TensorCodec(Encoder(decoder), codes.device).decode(codes)


# ---------------------------------------------------------------- search


def searched(
    decoder: Decoder, queries: Any, codes: torch.Tensor, k: int, metric: str
) -> tuple[Any, Any]:
    """What ``nearest_rows`` finds, where ``codes`` are; results are where ``queries`` are.

    Queries (q, d) are a checked array or tensor; codes are checked here.
    """
    codes = check_code_tensor(codes, decoder)
    check_k(k, len(codes))
    if works_on_host(codes):
        own = codes.numpy().astype(decoder.code_dtype, copy=False)
        return as_queries(nearest_rows(decoder, as_numpy(queries), own, k, metric), queries)
    sent = queries if is_tensor(queries) else torch.from_numpy(np.array(queries))
    codec = TensorCodec(Encoder(decoder), codes.device)
    found = nearest_on_device(codec, sent.to(codes.device), codes, k, metric)
    if is_tensor(queries):
        return found[0].to(queries.device), found[1].to(queries.device)
    return as_numpy(found[0]), as_numpy(found[1])


def as_queries(found: tuple[NDArray[Any], NDArray[Any]], queries: Any) -> tuple[Any, Any]:
    """Arrays that were found on the host, as the user's ``queries`` are, and where they are."""
    if not is_tensor(queries):
        return found
    values, rows = (torch.from_numpy(part).to(queries.device) for part in found)
    return values, rows
