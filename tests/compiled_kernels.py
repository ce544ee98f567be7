"""Checks that Triton's kernels can be compiled for GPUs, by a machine that need not have one.

Launches compile and do no more. A program of its own, since Triton is told of another device; it
prints, as JSON, what became of the kernels for each: how often their PTX has certain instructions.
"""

import json
import sys
import warnings
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from pgkmeans_sk.engines import triton_labels
from pgkmeans_sk.engines.torch_passes import label_by_kernel
from pgkmeans_sk.engines.torch_totals import LabelledRows, added_by_kernels, new_totals

INSTRUCTIONS = ("fma.rn.f64", "fma.rn.f32", "tf32", "atom")
PROBLEMS = (
    # rows, features, clusters, dtype, parts in products, weights
    (1000, 8, 256, torch.float32, 1, False),
    (1000, 1, 2, torch.bfloat16, 1, True),
    (1000, 15, 3, torch.float16, 1, False),
    (1000, 128, 1024, torch.float32, 2, False),
    (1000, 33, 17, torch.bfloat16, 2, True),
    (1000, 40, 16, torch.float32, 1, False),
    (300_000, 3, 1, torch.float64, 1, True),
)


class Elsewhere:
    """A device that is not here, as far as compilers ask for it."""

    def __init__(self, capability):
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self._target


def compiled_for(capability):
    """For each kernel, the instructions that count, over all problems."""
    driver.set_active(Elsewhere(capability))
    found = {}
    launch = jit.JITFunction.run

    def compile_alone(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        assert kernel.asm["cubin"]  # the assembler took it, too
        counts = found.setdefault(self.__name__, dict.fromkeys(INSTRUCTIONS, 0))
        for instruction in INSTRUCTIONS:
            counts[instruction] += kernel.asm["ptx"].count(instruction)

    with mock.patch.object(jit.JITFunction, "run", compile_alone):
        for n, d, k, dtype, n_parts, has_weights in PROBLEMS:
            X, labels = torch.zeros((n, d), dtype=dtype), torch.zeros(n, dtype=torch.int32)
            exact = torch.zeros((k, d), dtype=torch.float64)
            weights = torch.ones(n, dtype=torch.float64) if has_weights else None
            added_by_kernels(LabelledRows(X, labels, weights), exact, new_totals(exact))
            if dtype != torch.float64:
                with (
                    mock.patch.object(triton_labels, "n_parts_for", lambda X, n=n_parts: n),
                    mock.patch.object(torch.Tensor, "nonzero", lambda values: values[:0, None]),
                ):
                    label_by_kernel(X, exact, torch.zeros(d))
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(json.dumps({number: compiled_for(int(number)) for number in sys.argv[1:]}))
