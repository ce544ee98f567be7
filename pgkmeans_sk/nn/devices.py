"""Where weights are clustered, and how values get there and back: the one place that says so.

Code words are found in host memory, by the kernels of ``ProductQuantizer``. So a weight goes there
once, as the matrix that is clustered, and never comes back: what returns to its device are code
words and codes. All else happens where the weight is: sums over the inputs of layers, decoding,
counting codes, soft k-means, and the search for the nearest of its centroids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def host_matrix(matrix: Tensor) -> NDArray[np.floating]:
    """A weight's matrix for the kernels: in host memory, contiguous; bfloat16 as float32, exactly.

    It shares the memory of one that is there already, and so. Whoever gets it does not write to it.
    """
    matrix = matrix.detach().cpu()
    if matrix.dtype == torch.bfloat16:
        matrix = matrix.float()
    return np.ascontiguousarray(matrix.numpy())


def words_on(array: NDArray[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Code words, or other values that were found in host memory, where they are used."""
    return torch.from_numpy(array.astype(np.float64)).to(device, dtype)
