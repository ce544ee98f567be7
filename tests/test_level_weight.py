"""LevelWeight: what a LevelMatrix decodes to, in torch, with gradients for its ranges."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pgkmeans_sk.codes.level_matrix import LevelMatrix  # noqa: E402
from pgkmeans_sk.nn.level_weight import LevelWeight  # noqa: E402

SIZES = {
    "tensor": {"range_size": 77, "group_size": 77},
    "rows": {"range_size": 11, "group_size": 11},
    "groups across rows": {"range_size": 77, "group_size": 8},
    "ranges across groups": {"range_size": 10, "group_size": 4},
}


def matrix(name, dtype=np.float64, *, range_dtype=None, largest=16):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 11)).astype(dtype)
    n_groups = -(-77 // SIZES[name]["group_size"])
    widths = rng.integers(1, largest + 1, n_groups)
    return LevelMatrix.from_values(values, widths, range_dtype=range_dtype, **SIZES[name])


def made(name, *, shape=(7, 11), axis=0, **options):
    record = matrix(name, **options)
    weight = LevelWeight.from_matrix(record, shape, axis)
    dtype = torch.from_numpy(record.decode()).dtype
    return record, weight, torch.from_numpy(record.ranges.copy()).to(dtype)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("largest", [8, 16])
def test_decodes_to_the_same(name, dtype, largest):
    record, weight, ranges = made(name, dtype=dtype, largest=largest)
    assert torch.equal(weight(ranges), torch.from_numpy(record.decode()))
    rows = torch.tensor([6, 0, 3, 3])
    assert torch.equal(weight.decode(ranges, rows), weight(ranges)[rows])
    np.testing.assert_array_equal(weight.wide_codes(), record.codes())
    again = weight.to_matrix(ranges)
    assert again.layout == record.layout == weight.stored_layout(ranges)
    for part, array in record.parts().items():
        np.testing.assert_array_equal(again.parts()[part], array)
    with pytest.raises((IndexError, RuntimeError)):
        weight.decode(ranges, torch.tensor([-1]))


def test_another_axis():
    record, weight, ranges = made("rows", shape=(11, 7), axis=1)
    assert torch.equal(weight(ranges), torch.from_numpy(record.decode().T.copy()))
    assert weight.dense(ranges).is_contiguous()


@pytest.mark.parametrize("name", SIZES)
def test_gradients(name):
    _, weight, ranges = made(name)
    assert torch.autograd.gradcheck(weight, (ranges.requires_grad_(),))


def test_ranges_are_used_as_they_are_stored():
    """In float16, with the gradient passed straight through."""
    record, weight, ranges = made("rows", dtype=np.float32, range_dtype=np.float16)
    trained = (ranges + 1e-5).requires_grad_()
    assert not torch.equal(trained, ranges)
    assert torch.equal(weight(trained), weight(ranges))
    np.testing.assert_array_equal(weight.to_matrix(trained).decode(), record.decode())
    weight(trained).sum().backward()
    torch.testing.assert_close(trained.grad.sum(1), torch.full((7,), 11.0))
    with pytest.raises(ValueError, match="not finite in float16"):
        weight.to_matrix(ranges * 1e6)


def test_compiled():
    _, weight, ranges = made("ranges across groups", dtype=np.float32)
    torch._dynamo.reset()
    compiled = torch.compile(weight, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ranges), weight(ranges))


def test_moved_and_printed():
    record, weight, ranges = made("groups across rows", dtype=np.float32)
    other = LevelWeight.from_matrix(matrix("groups across rows", np.float32), (7, 11), 0)
    other.codes.zero_()
    other.load_state_dict(weight.state_dict())
    assert torch.equal(other(ranges), weight(ranges))
    bits = sorted({int(width) for width in record.widths()})
    assert repr(weight) == f"LevelWeight(shape=(7, 11), group_size=8, bits={bits})"
    assert "unknown" in repr(weight.to("meta"))
