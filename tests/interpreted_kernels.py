"""Checks of Triton's kernels in its interpreter, which is chosen when Triton is imported.

So this is run as a program with TRITON_INTERPRET=1, that prints what became of each check as JSON.
"""

import json
import traceback
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from pgkmeans_sk.engines import (
    torch_choice,
    torch_memory,
    torch_passes,
    torch_sums,
    torch_totals,
    triton_labels,
)
from pgkmeans_sk.engines.torch_device import TorchEngine, open_device_engine
from pgkmeans_sk.engines.torch_labels import TF32_PARTS, Products, pack_centers
from pgkmeans_sk.engines.torch_passes import label_by_kernel
from pgkmeans_sk.engines.torch_source import StreamedRows
from pgkmeans_sk.engines.torch_totals import (
    LabelledRows,
    added_by_kernels,
    added_by_operations,
    new_totals,
)
from pgkmeans_sk.engines.triton_labels import KernelCenters, high_part, nearest_or_in_doubt
from pgkmeans_sk.pipeline import run
from pgkmeans_sk.pipeline.settings import Settings
from pgkmeans_sk.pipeline.starts import STARTS
from tests import reference

CPU = torch.device("cpu")


def by_kernel(kind, by_operations, by_kernel):
    """What stands for the choice: always the kernel."""
    return by_kernel()


def cut_as_hardware_would(create_dot):
    """Products whose factors lose what TF32 does not hold."""

    def cut(values):
        bits = np.ascontiguousarray(values.data, dtype=np.float32).view(np.int32)
        return interpreter.TensorHandle((bits & -(1 << 13)).view(np.float32), tl.float32)

    def product(self, a, b, d, input_precision, *rest):
        if str(input_precision).endswith("TF32"):
            a, b = cut(a), cut(b)
        return create_dot(self, a, b, d, input_precision, *rest)

    return product


# ------------------------------------------------------------------ labels


def labels_of_problems(n_parts):
    """Rows and centres where a label is easily got wrong."""

    def check():
        builder = interpreter.InterpreterBuilder
        with (
            mock.patch.object(torch_passes, "by_quicker", by_kernel),
            mock.patch.object(triton_labels, "n_parts_for", return_value=n_parts),
            mock.patch.object(builder, "create_dot", cut_as_hardware_would(builder.create_dot)),
        ):
            for problem in reference.problems(np.float32):
                d = problem.X.shape[1]
                if d > 100 or (n_parts == 2 and d < triton_labels.SHORTEST_DOT):
                    continue  # the interpreter takes its time
                expected = reference.labels(problem.X, problem.centers)
                opened = open_device_engine(problem.X, None, CPU)
                found = opened.nearest(problem.centers)
                np.testing.assert_array_equal(found, expected, problem.name)

    return check


def labels_of_shapes(n_parts):
    """Shapes around those of the tiles, layouts and short floats."""

    def check():
        rng = np.random.default_rng(0)
        shapes = [(1, 1, 2), (64, 15, 64), (65, 9, 33), (65, 16, 65), (63, 33, 2), (130, 17, 129)]
        if n_parts == 2:
            shapes = [shape for shape in shapes if shape[1] >= triton_labels.SHORTEST_DOT]
        builder = interpreter.InterpreterBuilder
        with (
            mock.patch.object(triton_labels, "n_parts_for", return_value=n_parts),
            mock.patch.object(builder, "create_dot", cut_as_hardware_would(builder.create_dot)),
        ):
            for n, d, k in shapes:
                for dtype in (torch.float16, torch.bfloat16, torch.float32):
                    X = torch.from_numpy(rng.standard_normal((n, 2 * d))).to(dtype)
                    for rows in (X[:, ::2], X[:, :d].T.contiguous().T):
                        centers = rng.standard_normal((k, d)).astype(np.float32)
                        exact = torch.from_numpy(centers.astype(np.float64))
                        found = label_by_kernel(rows, exact, torch.ones(d))
                        expected = reference.labels(rows.double().numpy(), centers)
                        np.testing.assert_array_equal(found, expected)

    return check


def raw(X, exact, n_pairs=1):
    """What the kernel says: labels, and where there is a doubt."""
    packed = pack_centers(exact, torch.zeros(X.shape[1]), n_pairs)
    products = Products(TF32_PARTS, 11) if n_pairs > 1 else Products()
    centers = KernelCenters(
        packed.origin, products.parts_of(packed.doubled), packed.starts, packed.norms,
        packed.kappa, packed.smallest, packed.largest,
    )  # fmt: skip
    labels = torch.empty(len(X), dtype=torch.int32)
    in_doubt = torch.empty(len(X), dtype=torch.int8)
    nearest_or_in_doubt(X, centers, labels, in_doubt)
    return labels, in_doubt.bool()


def doubts(d):
    """Clear cases are decided in the kernel, ties are not, nor what is too large."""

    def check():
        n_pairs = 1 if d < triton_labels.SHORTEST_DOT else len(TF32_PARTS)
        exact = torch.zeros((70, d), dtype=torch.float64)
        exact[:, 0] = torch.arange(70)
        X = torch.zeros((142, d))
        X[:70, 0] = torch.arange(70) + 0.25
        X[70:139, 0] = torch.arange(69) + 0.5  # in the middle between two
        X[139:141, 0] = torch.tensor([1e19, 3e38])
        X[141] = -1.0
        labels, in_doubt = raw(X, exact, n_pairs)
        np.testing.assert_array_equal(labels[:70], np.arange(70))
        assert not in_doubt[:70].any()
        assert in_doubt[70:141].all()
        assert int(labels[141]) == 0
        assert not in_doubt[141]
        exact[0, 0] = 1e30  # nothing is certain with that one
        assert raw(X, exact, n_pairs)[1].all()
        assert raw(X, exact[1:2].expand(40, -1), n_pairs)[1].all()  # all centres are equal

    return check


def parts_of_11_bits():
    from triton import jit

    @jit
    def cut(values, high, rest, n: tl.constexpr):
        i = tl.arange(0, n)
        x = tl.load(values + i)
        tl.store(high + i, high_part(x))
        tl.store(rest + i, high_part(x - high_part(x)))

    values = torch.randn(256) * 10.0 ** torch.randint(-9, 9, (256,))
    high, rest = torch.empty(256), torch.empty(256)
    cut[(1,)](values, high, rest, n=256)
    expected = Products(TF32_PARTS, 11).parts_of(values)
    np.testing.assert_array_equal(torch.stack([high, rest]), expected)


# ------------------------------------------------------------------ sums


@contextmanager
def short_pieces(piece=8):
    """Pieces of so many rows: the interpreter takes its time for each step."""
    with (
        mock.patch.object(torch_sums, "PIECE", piece),
        mock.patch.object(torch_totals, "PIECE", piece),
    ):
        yield


def sums(n_rows, d, n_clusters, dtype, weighting, block=1000, piece=8):
    """The kernels have the bytes of the operations."""

    def check():
        rng = torch.Generator().manual_seed(n_rows)
        X = (3 * torch.randn((n_rows, d), generator=rng) + 5).to(dtype)
        labels = torch.randint(n_clusters, (n_rows,), generator=rng, dtype=torch.int32)
        labels[labels == 1] = 0  # a cluster without rows
        weights = reference.sample_weights(n_rows)[weighting]
        weights = None if weights is None else torch.from_numpy(weights)
        exact = torch.randn((n_clusters, d), generator=rng, dtype=torch.float64)
        with mock.patch.object(torch_memory, "MAX_SUM_ROWS", block), short_pieces(piece):
            for rows in (X, X.repeat_interleave(2, dim=0).T.contiguous().T[::2]):
                labelled = LabelledRows(rows, labels, weights)
                before = new_totals(exact) + 0.1
                expected = added_by_operations(labelled, exact, before)
                found = added_by_kernels(labelled, exact, before)
                assert found.numpy().tobytes() == expected.numpy().tobytes()
                assert (before == 0.1).all()  # what was there is left as it was
        plain = torch.zeros((n_clusters, d), dtype=torch.float64)
        w = torch.ones(n_rows, dtype=torch.float64) if weights is None else weights
        plain.index_add_(0, labels, w[:, None] * (X.double() - exact[labels]))
        np.testing.assert_allclose(found[:, :d] - 0.1, plain, rtol=1e-9, atol=1e-9)

    return check


def sums_do_not_depend_on_memory():
    X, labels = torch.randn((900, 2)), torch.randint(3, (900,), dtype=torch.int32)
    exact, found = torch.zeros((3, 2), dtype=torch.float64), []
    for budget in (1, 20_000, 2**22):
        with (
            mock.patch.object(torch_memory, "MAX_SUM_ROWS", 200),
            mock.patch.object(torch_memory, "HOST_BLOCK_BYTES", budget),
            short_pieces(),
        ):
            totals = added_by_kernels(LabelledRows(X, labels, None), exact, new_totals(exact))
            found.append(totals.numpy().tobytes())
    assert found[0] == found[1] == found[2]


# ------------------------------------------------------------------ whole fits


def fits(weighting, is_streamed):
    """The bits of a fit do not depend on which way its passes go."""

    def check():
        X = np.random.default_rng(5).standard_normal((120, 3)).astype(np.float32)
        weights = reference.sample_weights(120)[weighting]
        kept = None if weights is None else torch.from_numpy(weights)
        turns = iter(range(10**9))

        def alternating(kind, by_operations, by_kernel):
            return (by_operations, by_kernel)[next(turns) % 2]()

        results = []
        for choice in (lambda kind, by_operations, _: by_operations(), by_kernel, alternating):
            opened = open_device_engine(X, weights, CPU)
            if is_streamed:
                opened = TorchEngine(StreamedRows(torch.from_numpy(X), CPU), kept, X, X)
            with mock.patch.object(torch_passes, "by_quicker", choice), short_pieces():
                starts, settings = [STARTS["partition"]], Settings(6, max_iter=6)
                found = run(opened, starts, settings, np.random.RandomState(0))
            results.append((found.centers.tobytes(), found.labels.tobytes(), found.inertia))
        assert results[0] == results[1] == results[2]
        assert next(turns) > 10

    return check


def clock_decides():
    """A pass of each kind goes through the clock to the kernels, and is right all the way."""
    X = np.random.default_rng(1).standard_normal((200, 4)).astype(np.float32)
    opened, expected = open_device_engine(X, None, CPU), reference.labels(X, X[:6])
    with (
        mock.patch.object(torch_choice, "has_kernels", return_value=True),
        mock.patch.object(torch_choice, "PATIENCE", 0.0),
        mock.patch.object(torch_choice, "_is_quicker", {}) as said,
        short_pieces(),
    ):
        assignments = [opened.assign(X[:6]) for _ in range(3 * torch_choice.TURNS)]
        np.testing.assert_array_equal(opened.labels, expected)
        assert {kind.work for kind in said} == {"nearest centres", "sums of clusters"}
        assert not any(said.values())  # the interpreter is slow
    assert len({found.centroids.tobytes() for found in assignments}) == 1


CHECKS = {
    **{f"labels: {n} parts": labels_of_problems(n) for n in (1, 2)},
    **{f"labels of shapes: {n} parts": labels_of_shapes(n) for n in (1, 2)},
    **{f"doubts: {d} features": doubts(d) for d in (1, 8, 16, 40)},
    "parts of 11 bits": parts_of_11_bits,
    "sums: one row": sums(1, 1, 1, torch.float32, "none"),
    "sums: windows": sums(700, 3, 5, torch.float32, "some zero", piece=torch_sums.PIECE),
    "sums: blocks": sums(640, 8, 4, torch.float32, "none", 300),
    "sums: more clusters than rows": sums(90, 5, 100, torch.bfloat16, "random", 50),
    "sums: float16": sums(500, 17, 40, torch.float16, "none"),
    "sums: float64": sums(150, 130, 3, torch.float64, "random", 100),
    "sums: one cluster": sums(530, 2, 1, torch.float64, "none"),
    "sums and memory": sums_do_not_depend_on_memory,
    **{
        f"fits: {weighting}, {is_streamed}": fits(weighting, is_streamed)
        for weighting, is_streamed in (("none", True), ("some zero", False))
    },
    "the clock decides": clock_decides,
}


def outcome(check):
    """Nothing, or what went wrong."""
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    print(json.dumps({name: outcome(check) for name, check in CHECKS.items()}))
