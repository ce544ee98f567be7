"""nn.load of files that the command line wrote: all tensors of two axes are codes there."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from pgkmeans_sk import compress_file, decompress_file, nn  # noqa: E402
from pgkmeans_sk.codes.storage import open_tensors  # noqa: E402
from pgkmeans_sk.codes.tensor_file import TensorFile  # noqa: E402
from pgkmeans_sk.codes.tensor_writer import TensorEntry, write_tensors  # noqa: E402
from pgkmeans_sk.nn.selection import DTYPE_NAMES  # noqa: E402
from pgkmeans_sk.nn.tensor_bytes import bytes_of, tensor_of_bytes  # noqa: E402
from tests.nn_models import Tied, small_model, state_bytes  # noqa: E402

SPEC = {"defaults": {"block_size": 4, "n_codes": 8}}


def write_plain(model, path, names=None):
    """What another library would write."""
    state = model.state_dict()
    entries = [
        TensorEntry(name, DTYPE_NAMES[t.dtype], tuple(t.shape), bytes_of(t))
        for name, t in state.items()
        if names is None or name in names
    ]
    write_tensors(path, entries, {"format": "pt"})


def compressed(model, folder, spec=SPEC, names=None):
    write_plain(model, folder / "plain", names)
    compress_file(folder / "plain", folder / "small", spec)
    decompress_file(folder / "small", folder / "restored")
    return folder / "small"


def check_weights(model, path):
    """Those of a decompressed file, bit for bit."""
    state = nn.bake(model).state_dict()
    with TensorFile(path) as file:
        for name in file.names:
            expected = tensor_of_bytes(file.raw(name), file.dtype(name), file.shape(name))
            assert torch.equal(state[name], expected), name


class Mixture(torch.nn.Module):
    """Layers of which some cannot be parametrized, or have their outputs in another axis."""

    def __init__(self):
        super().__init__()
        self.cell = torch.nn.LSTM(8, 16, batch_first=True)
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.up = torch.nn.ConvTranspose1d(16, 12, 3)
        self.table = torch.nn.Parameter(torch.randn(40, 3, 8))
        self.tables = torch.nn.ParameterList([torch.randn(20, 8) for _ in range(2)])
        self.register_buffer("positions", torch.randn(30, 16))

    def forward(self, x):
        y = self.cell(x)[0] + self.positions[: x.shape[1]]
        y = self.attention(y, y, y)[0] + self.tables[1].mean() + self.table.sum()
        return self.up(y.transpose(1, 2))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_all_tensors_of_two_axes(device, tmp_path):
    torch.manual_seed(0)
    model = Mixture()
    path = compressed(model, tmp_path)
    with torch.device(device):
        loaded = Mixture()
    nn.load(loaded, path)
    with open_tensors(path) as file:
        names = set(file.compressed)
    assert {"cell.weight_ih_l0", "positions", "up.weight", "table", "tables.1"} < names
    report = nn.compress_model(loaded, {"defaults": {"skip": True}})
    assert {t.name for t in report.compressed} == {
        n for n in names if n[:4] not in ("cell", "posi")
    }
    assert type(loaded.cell) is torch.nn.LSTM
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    inputs = torch.randn(2, 5, 8)
    found = loaded(inputs)
    found.sum().backward()

    nn.save(loaded, tmp_path / "saved")
    again = nn.load(Mixture(), tmp_path / "saved")
    assert state_bytes(again) == state_bytes(loaded)
    check_weights(loaded, tmp_path / "restored")
    assert torch.equal(loaded(inputs), found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_each_dtype(dtype, tmp_path):
    path = compressed(small_model(dtype), tmp_path)
    loaded = nn.load(small_model(dtype), path)
    assert hasattr(loaded[1], "parametrizations")
    check_weights(loaded, tmp_path / "restored")


@pytest.mark.parametrize(
    "settings",
    [{"n_stages": 2}, {"rotation": "hadamard"}, {"scale": "row"}, {"codebook": "per_block"}],
    ids=str,
)
def test_each_setting(settings, tmp_path):
    path = compressed(small_model(), tmp_path, {"defaults": {**SPEC["defaults"], **settings}})
    loaded = nn.load(small_model(), path)
    state = nn.bake(loaded).state_dict()
    with TensorFile(tmp_path / "restored") as file:
        for name in file.names:
            np.testing.assert_allclose(state[name].numpy(), file.array(name), rtol=1e-5, atol=1e-6)


def test_rows_of_an_embedding_whose_matrix_is_turned(tmp_path):
    """Another writer may have taken its columns for rows."""
    from pgkmeans_sk.codes.storage import StoredTensor, save_tensors
    from pgkmeans_sk.product_quantizer import ProductQuantizer

    rows = torch.randn(16, 16).numpy()
    matrix = ProductQuantizer(4, 8, random_state=0).compress(rows.T.copy())
    tensor = StoredTensor(shape=(16, 16), dtype="F32", matrix=matrix, axis=1)
    save_tensors(tmp_path / "turned", {"weight": tensor})
    loaded = nn.load(torch.nn.Embedding(16, 16), tmp_path / "turned")
    expected = torch.from_numpy(matrix.decode().T.copy())
    assert torch.equal(loaded.weight, expected)
    assert torch.equal(loaded(torch.tensor([3, 5])), expected[[3, 5]])


# ------------------------------------------------------------------ ties


def test_weights_that_are_equal_by_chance_are_not_tied(tmp_path):
    """Layers that were copied before training: the file stores them once, the model has two."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    path = compressed(model, tmp_path)
    with open_tensors(path) as file:
        assert file.compressed["layers.0.linear1.weight"].aliases == ("layers.1.linear1.weight",)
    loaded = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    n_parameters = len(list(loaded.parameters()))
    nn.load(loaded, path)
    assert len(list(loaded.parameters())) == n_parameters
    first, second = (m.linear1.parametrizations.weight for m in loaded.layers)
    assert first[0] is not second[0]
    with torch.no_grad():
        first.original.zero_()
    assert second.original.any()


def test_tied_weights_of_the_model_stay_tied(tmp_path):
    """Files of other libraries have one of the names, or all, each with the values."""
    torch.manual_seed(0)
    model = Tied()
    for names in (None, {"words.weight", "mix.weight", "mix.bias"}):
        for spec in (SPEC, {"defaults": {"skip": True}}):
            path = compressed(model, tmp_path, spec, names)
            loaded = nn.load(Tied(), path)
            if spec is SPEC:
                assert (
                    loaded.out.parametrizations.weight[0]
                    is (loaded.words.parametrizations.weight[0])
                )
            check_weights(loaded, tmp_path / "restored")
            assert loaded.out.weight is loaded.words.weight
