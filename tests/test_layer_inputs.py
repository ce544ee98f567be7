"""What calibrate sums up for each type of layer, against layers whose weights are all 0 but one.

The layers are linear in their weights. With the matrix that is 1 in row r and column c and else 0,
the output that belongs to row r is what that row's weights are multiplied by in column c.
"""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn import layer_inputs  # noqa: E402
from pgkmeans_sk.nn.layers import matrix_of, row_axis, tensor_of  # noqa: E402


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen_by_row(layer, inputs, row):
    """A list with (n, in) for each output channel that the row of the matrix is for."""
    axis = row_axis(layer, "weight")
    shape = layer.weight.shape
    n_rows, n_columns = matrix_of(layer.weight, axis).shape
    columns = []
    for column in range(n_columns):
        matrix = torch.zeros(n_rows, n_columns, dtype=torch.float64)
        matrix[row, column] = 1.0
        with torch.no_grad():
            layer.weight.copy_(tensor_of(matrix, shape, axis))
            outputs = [layer(x).movedim(1, -1) for x in inputs]
        columns.append(torch.cat([y.reshape(-1, y.shape[-1]) for y in outputs]).numpy())
    stacked = np.stack(columns, axis=-1)  # (n, out_channels, in)
    return [stacked[:, channel] for channel in range(row, stacked.shape[1], n_rows)]


def assert_same(record, vectors):
    """``vectors``: (n, in) for each output channel; each of a channel's products counts."""
    n_rows = len(vectors[0])
    second = sum(v.T @ v for v in vectors) / n_rows
    np.testing.assert_allclose(record.full, second, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(record.diagonal, np.diagonal(second), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(record.mean, sum(v.sum(0) for v in vectors) / n_rows, atol=1e-12)
    assert record.n_rows == n_rows
    np.testing.assert_array_equal(record.full, record.full.T)


C = T = torch.nn
CONVOLUTIONS = [
    (C.Conv1d(3, 4, 3), (2, 3, 9)),
    (C.Conv1d(4, 6, 3, padding=2, stride=2, dilation=2, groups=2), (3, 4, 11)),
    (C.Conv1d(2, 3, 4, padding="same"), (2, 2, 9)),  # an even kernel: one more on the right
    (C.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (2, 2, 7)),
    (C.Conv1d(2, 3, 3), (2, 8)),  # a single image
    (C.Conv2d(3, 4, (3, 2), padding=(1, 0), stride=(2, 1)), (2, 3, 7, 6)),
    (C.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 5)),
    (C.Conv2d(6, 6, 3, groups=6, bias=False), (2, 6, 5, 5)),  # depthwise
    (C.Conv2d(2, 3, 1), (3, 2, 4, 4)),
    (C.Conv2d(2, 3, 3, padding="same", dilation=2, padding_mode="reflect"), (2, 2, 8, 8)),
    (C.Conv2d(2, 3, 3, padding="valid"), (2, 2, 5, 6)),
    (C.Conv3d(2, 3, (2, 3, 1), padding=(1, 1, 0), stride=(1, 2, 1)), (2, 2, 4, 5, 3)),
    (T.ConvTranspose1d(3, 4, 3), (2, 3, 5)),
    (T.ConvTranspose1d(4, 6, 4, stride=3, padding=2, output_padding=1, groups=2), (2, 4, 5)),
    (T.ConvTranspose1d(2, 3, 1, padding=1), (2, 2, 6)),  # cuts off what there is
    (T.ConvTranspose2d(2, 3, (3, 2), stride=2, padding=(1, 0), dilation=(2, 1)), (2, 2, 4, 5)),
    (T.ConvTranspose2d(4, 4, 3, stride=2, groups=4, bias=False), (2, 4, 3, 3)),
    (T.ConvTranspose3d(2, 2, 2, stride=(1, 2, 1)), (1, 2, 3, 2, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda v: str(v).replace(" ", ""))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("patch_bytes", [1, 700, 2**25])
def test_convolutions(layer, shape, patch_bytes, monkeypatch):
    monkeypatch.setattr(layer_inputs, "PATCH_BYTES", patch_bytes)
    layer = copy.deepcopy(layer).double()
    inputs = [images(*shape, seed=seed) for seed in range(2)]
    record = nn.calibrate(layer, inputs)["weight"]
    if layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)
    if len(shape) == layer.weight.ndim - 1:
        inputs = [x[None] for x in inputs]
    n_rows = matrix_of(layer.weight, row_axis(layer, "weight")).shape[0]
    if not record.groups:
        assert_same(record, seen_by_row(layer, inputs, n_rows - 1))
        return
    assert len(record.groups) == layer.groups
    groups = [
        seen_by_row(layer, inputs, group * n_rows // layer.groups)[0]
        for group in range(layer.groups)
    ]
    for part, vectors in zip(record.groups, groups, strict=True):
        assert_same(part, [vectors])
    assert_same(record, [np.concatenate(groups)])


def test_output_size_of_a_transposed_convolution():
    layer = torch.nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, bias=False).double()
    x = images(2, 2, 4, 5)
    for call in (
        lambda model, batch: model(batch, (8, 9)),
        lambda model, batch: model(output_size=[2, 3, 8, 9], input=batch),
    ):
        record = nn.calibrate(layer, [x], forward=call)["weight"]
        assert record.n_rows == 2 * 8 * 9
        longer = torch.nn.ConvTranspose2d(
            2, 3, 3, stride=2, padding=1, output_padding=(1, 0), bias=False
        )
        assert_same(record, seen_by_row(longer.double(), [x], 0))


def test_a_convolution_by_hand():
    layer = torch.nn.Conv1d(1, 1, 2, stride=2)
    record = nn.calibrate(layer, [torch.tensor([[[1.0, 2.0, 3.0, 4.0, 9.0]]])])["weight"]
    # Patches [1, 2] and [3, 4]; the last value is part of none.
    np.testing.assert_array_equal(record.full, [[5.0, 7.0], [7.0, 10.0]])
    np.testing.assert_array_equal(record.mean, [2.0, 3.0])
    assert record.n_rows == 2


def test_a_convolution_without_any_position():
    layer = torch.nn.Conv1d(1, 1, 2)
    calibration = nn.calibrate(layer, [torch.zeros(0, 1, 5)])
    assert len(calibration) == 0
    assert calibration.notes == {"weight": "its inputs were empty, or all left out by the mask"}


@pytest.mark.parametrize("lead", [(), (7,), (2, 3), (2, 3, 4)])
def test_linear(lead):
    layer = torch.nn.Linear(5, 6, dtype=torch.float64)
    inputs = [images(*lead, 5, seed=seed) for seed in range(3)]
    record = nn.calibrate(layer, inputs)["weight"]
    assert_same(record, [torch.cat([x.reshape(-1, 5) for x in inputs]).numpy()])
    by_keyword = nn.calibrate(layer, [{"input": x} for x in inputs])["weight"]
    np.testing.assert_array_equal(by_keyword.full, record.full)


def test_linear_with_more_columns_than_a_strip():
    layer = torch.nn.Linear(600, 1, dtype=torch.float64)
    x = images(5000, 600)
    assert_same(nn.calibrate(layer, [x])["weight"], [x.numpy()])


def test_conv1d_of_transformers():
    utils = pytest.importorskip("transformers.pytorch_utils")
    layer = utils.Conv1D(6, 5).double()  # weight (5, 6)
    x = images(2, 3, 5)
    calibration = nn.calibrate(layer, [x])
    assert_same(calibration["weight"], [x.reshape(-1, 5).numpy()])
    with torch.no_grad():
        y = (layer(x) - layer.bias).reshape(-1, 6).numpy()
    matrix = matrix_of(layer.weight.detach(), 1).numpy()
    np.testing.assert_allclose(
        matrix @ calibration["weight"].full @ matrix.T, y.T @ y / 6, rtol=1e-10
    )


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.Linear(6, 5, bias=False),
        torch.nn.Conv2d(2, 5, 3, padding=1, bias=False),
        torch.nn.Conv2d(4, 6, 3, groups=2, bias=False),
        torch.nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_error_of_the_output(layer):
    layer = copy.deepcopy(layer).double()
    channels = getattr(layer, "in_channels", None)
    x = images(8, 6) if channels is None else images(3, channels, 6, 6)
    record = nn.calibrate(layer, [x])["weight"]
    difference = images(*layer.weight.shape, seed=1)
    matrix = matrix_of(difference, row_axis(layer, "weight")).numpy()
    before = layer(x)
    with torch.no_grad():
        layer.weight -= difference
    squares = (before - layer(x)).square()
    squares = squares.sum(1).mean().item()
    parts = record.groups or (record,)
    rows = np.split(matrix, len(parts))
    expected = sum(np.trace(d @ p.full @ d.T) for d, p in zip(rows, parts, strict=True))
    np.testing.assert_allclose(squares, expected, rtol=1e-10)


@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention(batch_first):
    layer = torch.nn.MultiheadAttention(4, 2, batch_first=batch_first, dtype=torch.float64)
    x = images(3, 5, 4)
    calibration = nn.calibrate(layer, [(x, x, x)])
    record = calibration["in_proj_weight"]
    assert_same(record, [x.reshape(-1, 4).numpy().repeat(3, axis=0)])
    for part in record.groups:
        assert_same(part, [x.reshape(-1, 4).numpy()])
    # Its output projection is multiplied by without being called.
    assert calibration.notes == {"out_proj.weight": "its layer was never called"}


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_with_a_mask(batch_first):
    layer = torch.nn.MultiheadAttention(4, 2, batch_first=batch_first, dtype=torch.float64)
    x = images(3, 5, 4)
    keep = torch.arange(5) < torch.tensor([[5], [1], [3]])  # (batch, tokens) in both orders
    given = x if batch_first else x.transpose(0, 1)
    calibration = nn.calibrate(layer, [(given,) * 3], mask=lambda batch: keep)
    assert_same(calibration["in_proj_weight"].groups[0], [x[keep].numpy()])


def test_attention_to_something_else():
    layer = torch.nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
    query, memory = images(2, 3, 4), images(2, 7, 4, seed=1)
    given = {"query": query, "value": memory, "key": memory}
    record = nn.calibrate(layer, [given])["in_proj_weight"]
    for part, x in zip(record.groups, (query, memory, memory), strict=True):
        assert_same(part, [x.reshape(-1, 4).numpy()])
    assert record.n_rows == 2 * (3 + 7 + 7)


def test_attention_with_other_sizes_of_keys():
    layer = torch.nn.MultiheadAttention(4, 2, kdim=3, vdim=5, dtype=torch.float64)
    query, key, value = images(6, 2, 4), images(7, 2, 3, seed=1), images(7, 2, 5, seed=2)
    calibration = nn.calibrate(layer, [(query, key, value)])
    for name, x in (("q", query), ("k", key), ("v", value)):
        assert_same(calibration[f"{name}_proj_weight"], [x.reshape(-1, x.shape[-1]).numpy()])


def test_a_transformer_of_torch_runs_layer_by_layer():
    # With padding it would make nested tensors, and compute a layer at once, past all hooks.
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2)
    x = torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [2]])
    batch = {"src": x, "src_key_padding_mask": padding}
    calibration = nn.calibrate(model, [batch], mask=lambda b: ~b["src_key_padding_mask"])
    assert calibration["layers.1.linear2.weight"].n_rows == 10
    assert calibration["layers.1.self_attn.in_proj_weight"].groups[0].n_rows == 10
    assert torch.backends.mha.get_fastpath_enabled()


def test_embeddings():
    layer = torch.nn.Embedding(6, 2, padding_idx=0)
    batches = [torch.tensor([[1, 1, 0], [5, 1, 0]]), torch.tensor(4)]
    assert nn.calibrate(layer, batches)["weight"].counts.tolist() == [2, 3, 0, 0, 1, 1]


@pytest.mark.parametrize(("padding_idx", "expected"), [(None, [1, 2, 0, 1]), (1, [1, 0, 0, 1])])
def test_bags_leave_out_padding(padding_idx, expected):
    layer = torch.nn.EmbeddingBag(4, 2, padding_idx=padding_idx)
    batches = [(torch.tensor([1, 0, 1, 3]), torch.tensor([0, 2]))]
    assert nn.calibrate(layer, batches)["weight"].counts.tolist() == expected


def test_integers_are_no_input_of_linear():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"Got an input of torch.int64, but expected real floats"):
        nn.calibrate(layer, [torch.zeros(3, 2, dtype=torch.int64)])
