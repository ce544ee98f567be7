"""Checks on a device "far" that is made up: tensors there have no values, only a place.

Whoever looks at one, or mixes it with a tensor of another device, gets an error. PyTorch has one
made-up device for a process, and keeps it: so this is run as a program, that prints what became of
each check as JSON.
"""

import json
import traceback
from unittest import mock

import numpy as np
import torch
import torch.utils.backend_registration
from torch._subclasses.fake_tensor import FakeTensorMode

from pgkmeans_sk import ProductQuantizer, nn
from pgkmeans_sk.engines import torch_problem_labels
from pgkmeans_sk.engines.torch_problems import TorchProblems
from pgkmeans_sk.nn import dkm_weight as dkm_module
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.dkm_weight import DKMSettings, DKMWeight
from pgkmeans_sk.nn.drift_sums import DriftSums
from pgkmeans_sk.nn.level_weight import LevelWeight
from pgkmeans_sk.nn.moments import MomentSums
from pgkmeans_sk.nn.soft_kmeans import Points, SoftKMeans, nearest
from pgkmeans_sk.pipeline.settings import Settings
from pgkmeans_sk.pipeline.together_exchange import are_settled, rebalance_together
from pgkmeans_sk.pipeline.together_lloyd import lloyd_together

FAR = "far"


def is_possible():
    """Whether this PyTorch can make a device up."""
    return hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")


def moved_there(module):
    """The module with its tensors on the device."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=FAR)
    return module


def is_there(*tensors):
    assert {tensor.device.type for tensor in tensors} == {FAR}


# ------------------------------------------------------------------ decoding

KINDS = {
    "plain": {"n_codes": 8, "codebook": "shared"},
    "codes of two bytes": {"n_codes": 300, "codebook": "shared"},
    "stages": {"n_codes": 8, "n_stages": 2},
    "hadamard": {"n_codes": 8, "rotation": "hadamard", "scale": "row"},
    "opq": {"n_codes": 8, "rotation": "opq"},
    "scale of blocks": {"n_codes": 8, "codebook": "shared", "scale": "block"},
}


def decoding(kind):
    def check():
        rows = np.random.default_rng(0).normal(size=(320, 16)).astype(np.float32)
        matrix = ProductQuantizer(4, max_iter=2, random_state=0, **KINDS[kind]).compress(rows)
        weight = CodebookWeight.from_matrix(matrix, (320, 16), 0)
        with FakeTensorMode():
            moved_there(weight)
            shape = matrix.decoder.codebooks.shape
            codebook = torch.empty(shape, device=FAR, requires_grad=True)
            dense = weight(codebook)
            some = weight.decode(codebook, torch.empty(5, dtype=torch.int64, device=FAR))
            dense.sum().backward()
            is_there(dense, some, codebook.grad)

    return check


def levels():
    layer = torch.nn.Linear(16, 32)
    nn.diffq(layer)
    lists = layer.parametrizations.weight
    matrix = lists[0].to_matrix(lists.original)
    weight = LevelWeight.from_matrix(matrix, (32, 16), 0)
    with FakeTensorMode():
        moved_there(weight)
        is_there(weight.decode(torch.empty(matrix.ranges.shape, device=FAR)))


# ------------------------------------------------------------------ noise


def noise(give):
    """What ``give(layer)`` makes of its weight in training."""

    def check():
        layer = torch.nn.Linear(16, 32)
        give(layer)
        parametrization = layer.parametrizations.weight[0]
        with FakeTensorMode():
            for owner in moved_there(parametrization).modules():
                for name, parameter in owner._parameters.items():
                    there = torch.empty(parameter.shape, dtype=parameter.dtype, device=FAR)
                    owner._parameters[name] = torch.nn.Parameter(there)
            original = torch.empty(32, 16, device=FAR, requires_grad=True)
            noisy = parametrization.train()(original)
            noisy.sum().backward()
            is_there(noisy, original.grad)

    return check


def quant_noise(kind):
    return noise(lambda layer: nn.quant_noise(layer, kind=kind, spec={"defaults": {"n_codes": 8}}))


# ------------------------------------------------------------------ sums


def sums(n_columns):
    def check():
        with FakeTensorMode():
            device = torch.device(FAR, 0)
            squares, drift = MomentSums(n_columns, 1, 2**20, device), DriftSums(n_columns, device)
            rows = torch.empty(30, n_columns, device=FAR)
            for _ in range(3):
                squares.add(rows[:, None], slice(None))
                drift.add(rows, rows, torch.empty(30, 7, device=FAR))
            is_there(squares.sums, *squares.strips)

    return check


# ------------------------------------------------------------------ soft k-means


def dkm_weight(block_size, *, zero_row=None, **settings):
    """A weight of (30, 12) with 8 centroids."""
    return DKMWeight(
        torch.randn(8, block_size),
        shape=(30, 12),
        axis=0,
        tau=0.1,
        settings=DKMSettings(**settings),
        stored_dtype=np.dtype(np.float16),
        zero_row=zero_row,
    )


def dkm(block_size, **settings):
    def check():
        weight = dkm_weight(block_size, zero_row=2, **settings)
        # Whether centroids still move is what the host has to look at, once an iteration; and GMRES
        # at its numbers, once a step.
        with (
            mock.patch.object(dkm_module, "_is_close", return_value=False),
            mock.patch(
                "pgkmeans_sk.nn.soft_gradients.solved", lambda f, b, x, **_: (b - f(x), 0.0)
            ),
            FakeTensorMode(),
        ):
            moved_there(weight)
            original = torch.empty(30, 12, device=FAR, requires_grad=True)
            soft = weight.train()(original)
            soft.sum().backward()
            stored, codes = weight.eval()(original), weight.codes(original)
            is_there(soft, original.grad, stored, codes, weight.centroids)

    return check


def arithmetic(device):
    """All that soft k-means computes, in both directions."""
    options = {"device": device, "dtype": torch.float32}
    kmeans = SoftKMeans(torch.empty((), **options), is_squared=True)
    points, centroids = Points(torch.empty(50, 3, **options)), torch.empty(6, 3, **options)
    moved = kmeans.moved(points, centroids)
    pulls = kmeans.moved_backward(points, centroids, moved, centroids, for_points=True)
    soft = kmeans.softened(points, centroids)
    back = kmeans.softened_backward(points, centroids, soft, for_points=True)
    jacobian = kmeans.jacobian(points, centroids, moved)
    return [*moved, *pulls, soft, *back, jacobian, nearest(points.values, centroids)]


def all_arithmetic():
    with FakeTensorMode():
        is_there(*arithmetic(FAR))


# ------------------------------------------------------------------ many problems


def read(tensor):
    """Something for the host to look at: ones."""
    dtype = np.float64 if tensor.is_floating_point() else np.int64
    return np.ones(tuple(tensor.shape), dtype=dtype)


def some(tensor, as_tuple=False):
    """Four places in a tensor: as many as ``read`` makes four nodes to have members."""
    places = torch.empty((4, tensor.ndim), dtype=torch.int64, device=tensor.device)
    return places.unbind(dim=1) if as_tuple else places


def many_problems(weighted, few_rows):
    """All stages of fits in step; what the host reads and what is in doubt is made up as well."""

    def check():
        which, chosen = np.array([1, 3]), Settings(9, max_iter=4)
        with (
            mock.patch.object(torch.Tensor, "numpy", read),
            mock.patch.object(torch.Tensor, "nonzero", some),
            mock.patch.object(torch.Tensor, "__bool__", return_value=False),
            mock.patch.object(torch_problem_labels, "DIRECT_BLOCKS", 10**6 if few_rows else 0),
            FakeTensorMode(),
        ):
            X = torch.empty((4, 300, 3), device=FAR)
            weights = torch.empty((4, 300), dtype=torch.float64, device=FAR) if weighted else None
            problems = TorchProblems(X, weights, X)
            problems.assign(np.arange(4), torch.empty((4, 9, 3), device=FAR))
            states = problems.assign(which, torch.empty((2, 9, 3), device=FAR))
            states, _, _ = lloyd_together(problems, which, states, chosen)
            states, moves = rebalance_together(problems, which, states, chosen, 2)
            are_settled(problems, which, states, moves)
            part = problems.sampled(np.zeros((4, 20), dtype=np.int64))
            rows, placed = problems.rows_at(np.zeros((4, 9), dtype=np.int64)), states.centers
            is_there(states.centers, states.means, problems.labels, part.X, part.labels, rows)
            is_there(problems.as_placed(placed), problems.as_centers(*np.ones((2, 4, 9, 3))))
            if not weighted:
                roots = problems.roots(np.arange(4))
                problems.cut(roots, np.full(4, 0.5), "ball", 1, np.ones(4, dtype=int))

    return check


CHECKS = {
    **{f"decoding: {kind}": decoding(kind) for kind in KINDS},
    "decoding: levels": levels,
    "diffq": noise(nn.diffq),
    **{f"noise: {kind}": quant_noise(kind) for kind in ("proxy", "mean", "pq", "int8")},
    "sums over inputs": sums(20),
    "sums over many inputs": sums(600),
    "soft k-means": all_arithmetic,
    **{
        f"many problems: {weighted}, {few_rows}": many_problems(weighted, few_rows)
        for weighted in (False, True)
        for few_rows in (False, True)
    },
    **{
        f"dkm: blocks of {size}, {backward}, {distance}": dkm(
            size, backward=backward, distance=distance
        )
        for size in (1, 4, 5)
        for backward in ("unrolled", "implicit", "jfb")
        for distance in ("squared", "euclidean")
    },
}


def outcome(check):
    """Nothing, or what went wrong."""
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(FAR)
    torch.get_device_module(FAR).get_amp_supported_dtype = lambda: []  # autocast asks for it
    print(json.dumps({name: outcome(check) for name, check in CHECKS.items()}))
