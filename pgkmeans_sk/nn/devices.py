"""Where weights are clustered, and how values get there and back: the one place that says so.

Code words are found where the weight is: by the kernels of ``ProductQuantizer`` in host memory, in
PyTorch operations on another device. What these cannot do (error feedback, a padding row of zeros,
optimal levels of single values) and what several workers share is done in host memory: the weight
goes there once, as the matrix that is clustered, and never comes back; what returns are code words
and codes. All else happens where the weight is: sums over the inputs of layers, decoding, counting
codes, soft k-means, and the search for the nearest of its centroids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.engines.torch_device import works_on_host
from pgkmeans_sk.engines.torch_rows import can_work_on
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.torch_codec import TensorCodec


def host_matrix(matrix: Tensor) -> NDArray[np.floating]:
    """A weight's matrix for the kernels: in host memory, contiguous; bfloat16 as float32, exactly.

    It shares the memory of one that is there already, and so. Whoever gets it does not write to it.
    """
    matrix = matrix.detach().cpu()
    if matrix.dtype == torch.bfloat16:
        matrix = matrix.float()
    return np.ascontiguousarray(matrix.numpy())


def clustered_matrix(matrix: Tensor) -> NDArray[np.floating] | Tensor:
    """A weight's matrix for a quantizer: as it is, if its device is another one that can do it."""
    return host_matrix(matrix) if _is_for_kernels(matrix) else matrix.detach()


def _is_for_kernels(matrix: Tensor) -> bool:
    return works_on_host(matrix) or not can_work_on(matrix.device)


def encoded(matrix: Tensor, decoder: Decoder) -> Tensor:
    """Codes (n, n_columns) of the nearest code words, where the ``matrix`` (n, n_features) is."""
    if _is_for_kernels(matrix):
        codes = torch.from_numpy(Encoder(decoder).encode(host_matrix(matrix)))
        return codes.to(matrix.device)
    return TensorCodec(Encoder(decoder), matrix.device).encode(matrix.detach())


def words_on(array: NDArray[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Code words, or other values that were found in host memory, where they are used."""
    return torch.from_numpy(array.astype(np.float64)).to(device, dtype)
