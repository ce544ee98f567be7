"""calibrate: which inputs count, names and notes, and that the model is left as it was."""

import weakref

import numpy as np
import pytest

from pgkmeans_sk import ProductQuantizer

torch = pytest.importorskip("torch")

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn import moments  # noqa: E402


class Tied(torch.nn.Module):
    """Tokens in, scores of tokens out, by one weight; one layer in between, used twice."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 4)
        self.middle = torch.nn.Linear(4, 4)
        self.output = torch.nn.Linear(4, 9, bias=False)
        self.output.weight = self.embedding.weight
        self.unused = torch.nn.Linear(4, 4)

    def forward(self, tokens):
        return self.output(self.middle(self.middle(self.embedding(tokens))))


def tokens(*shape, seed=0, n=9):
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(seed))


def second_moment(rows):
    rows = rows.detach().double().reshape(-1, rows.shape[-1]).numpy()
    return rows.T @ rows / len(rows)


# ------------------------------------------------------------------ what counts


def test_by_hand():
    model = torch.nn.Linear(2, 3)
    calibration = nn.calibrate(model, [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0]])])
    record = calibration["weight"]
    assert record.full.tolist() == [[5.0, -2.0], [-2.0, 4.0]]
    assert record.diagonal.tolist() == [5.0, 4.0]
    assert record.mean.tolist() == [2.0, 0.0]
    assert (record.n_rows, calibration.n_batches, len(calibration)) == (2, 2, 1)
    assert record.full.dtype == record.mean.dtype == np.float64
    assert repr(calibration) == "<Calibration of 1 weights on 2 batches>"


def test_kinds_of_batches():
    class Sum(torch.nn.Linear):
        def forward(self, first, second):
            return super().forward(first + second)

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, first, second):
            return self.layer(first + second)

    one, two = torch.randn(4, 2), torch.randn(4, 2)
    batches = ((one, two), [one, two], {"second": two, "first": one})
    expected = second_moment(one + two)
    for batch in batches:
        record = nn.calibrate(Outer(), [batch])["layer.weight"]
        np.testing.assert_allclose(record.full, expected, rtol=1e-6)
    record = nn.calibrate(
        Outer(), iter(["ab"]), forward=lambda model, batch: model(one, two) if batch == "ab" else 0
    )["layer.weight"]
    np.testing.assert_allclose(record.full, expected, rtol=1e-6)


def test_tied_weights_and_layers_that_are_used_twice():
    model = Tied()
    batches = [tokens(2, 5), tokens(3, 4, seed=1)]
    calibration = nn.calibrate(model, batches)
    assert list(calibration) == ["embedding.weight", "middle.weight"]
    with torch.no_grad():
        first = [model.embedding(b).reshape(-1, 4) for b in batches]
        second = [model.middle(x) for x in first]
        third = [model.middle(x) for x in second]
    record = calibration["embedding.weight"]
    np.testing.assert_allclose(record.full, second_moment(torch.cat(third)), rtol=1e-5, atol=1e-7)
    counts = torch.bincount(torch.cat([b.flatten() for b in batches]), minlength=9)
    np.testing.assert_array_equal(record.row_counts, counts)
    np.testing.assert_array_equal(
        calibration.row_weights("output.weight"), np.sqrt(1.0 + counts.numpy())
    )
    np.testing.assert_array_equal(calibration.row_weights("embedding.weight", 1.0), 1.0 + counts)
    assert calibration["output.weight"] is record
    assert "output.weight" not in calibration
    middle = calibration["middle.weight"]
    assert middle.n_rows == 2 * (10 + 12)
    np.testing.assert_allclose(middle.full, second_moment(torch.cat(first + second)), rtol=1e-5)
    assert calibration.row_weights("middle.weight") is None
    assert calibration.notes == {"unused.weight": "its layer was never called"}


def test_linear_layers_that_are_tied_add_up():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    x = torch.randn(50, 3)
    calibration = nn.calibrate(model, [x])
    expected = second_moment(torch.cat([x, model[0](x)]))
    np.testing.assert_allclose(calibration["0.weight"].full, expected, rtol=1e-5)
    assert list(calibration) == ["0.weight"]


def test_a_use_with_other_rows_is_named():
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 2, 1), torch.nn.ConvTranspose1d(2, 2, 1))
    model[1].weight = model[0].weight
    x = torch.randn(3, 2, 5)
    calibration = nn.calibrate(model, [x])
    expected = second_moment(x.movedim(1, -1))
    np.testing.assert_allclose(calibration["0.weight"].full, expected, rtol=1e-5)
    assert calibration.notes == {
        "0.weight": "the use as '1.weight' is not part of its record: it has other rows there"
    }


def test_one_module_under_two_names():
    layer = torch.nn.Linear(3, 3)
    calibration = nn.calibrate(torch.nn.Sequential(layer, layer), [torch.randn(5, 3)])
    assert list(calibration) == ["0.weight"]
    assert calibration["1.weight"].n_rows == 10


def test_names():
    model, batches = Tied(), [tokens(2, 5)]
    assert list(nn.calibrate(model, batches, names="mid*")) == ["middle.weight"]
    # By any of its names; the record has all uses.
    only = nn.calibrate(model, batches, names=["output.weight"])
    assert list(only) == ["embedding.weight"]
    assert only["embedding.weight"].row_counts.sum() == only["embedding.weight"].n_rows == 10
    with pytest.raises(ValueError, match=r"names with 'middl\.\*', which fits no weight.*middle"):
        nn.calibrate(model, batches, names=["output.*", "middl.*"])


def test_unknown_names():
    calibration = nn.calibrate(Tied(), [tokens(2, 5)])
    with pytest.raises(KeyError, match=r"Got 'unused.weight', which has no record: its layer was"):
        calibration["unused.weight"]
    with pytest.raises(KeyError, match=r"'middl.weight'.*did you mean 'middle.weight'\?"):
        calibration.column_importance("middl.weight")
    assert calibration.get("middl.weight") is None
    assert calibration.get("unused.weight") is None


# ------------------------------------------------------------------ masks


class Texts(torch.nn.Module):
    """Layers for tokens in rows and in one row, and for what comes after pooling."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(9, 3)
        self.by_token = torch.nn.Linear(3, 3)
        self.flat = torch.nn.Linear(3, 3)
        self.convolution = torch.nn.Conv1d(3, 3, 1)
        self.pooled = torch.nn.Linear(3, 2)

    def forward(self, input_ids, attention_mask=None):
        x = self.by_token(self.embedding(input_ids))
        x = self.flat(x.reshape(-1, 3)).reshape(x.shape)
        x = self.convolution(x.transpose(1, 2))
        return self.pooled(x.mean(dim=2))


IDS = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 0], [6, 7, 8, 1]])


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_mask(explicit, dtype):
    model = Texts()
    mask = (IDS != 0).to(dtype)
    if explicit:
        calibration = nn.calibrate(model, [IDS], mask=lambda ids: (ids != 0).to(dtype))
    else:
        calibration = nn.calibrate(model, [{"input_ids": IDS, "attention_mask": mask}])
    assert calibration["embedding.weight"].counts.tolist() == [0, 2, 1, 1, 1, 1, 1, 1, 1]
    kept = model.embedding(IDS)[IDS != 0]
    np.testing.assert_allclose(
        calibration["by_token.weight"].full, second_moment(kept), rtol=1e-5, atol=1e-7
    )
    n_rows = {name: r.n_rows for name, r in calibration.items() if name != "embedding.weight"}
    assert n_rows == {
        "by_token.weight": 9,
        "flat.weight": 12,
        "convolution.weight": 12,
        "pooled.weight": 3,
    }


def test_no_mask():
    batch = {"input_ids": IDS, "attention_mask": IDS != 0}
    calibration = nn.calibrate(Texts(), [batch], mask=lambda batch: None)
    assert calibration["embedding.weight"].counts[0] == 3
    # One of another kind, as for attention with a mask for each pair of tokens, is none of tokens.
    batch["attention_mask"] = torch.ones(3, 1, 4, 4)
    assert nn.calibrate(Texts(), [batch])["by_token.weight"].n_rows == 12


def test_all_left_out():
    calibration = nn.calibrate(Texts(), [IDS], mask=lambda ids: torch.zeros(3, 4))
    assert list(calibration) == [
        "embedding.weight",
        "flat.weight",
        "convolution.weight",
        "pooled.weight",
    ]
    assert calibration["embedding.weight"].counts.sum() == 0
    with pytest.raises(KeyError, match="its inputs were empty, or all left out by the mask"):
        calibration["by_token.weight"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda ids: ids.T != 0, r"Got a mask of shape \(4, 3\), but expected \(batch, tokens\)"),
        (lambda ids: ids[0] != 0, r"Got \(4,\) from mask\(batch\), but expected a tensor"),
        (lambda ids: ids.numpy() != 0, r"Got ndarray from mask\(batch\), but expected a tensor"),
    ],
)
def test_masks_that_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        nn.calibrate(Texts(), [IDS], mask=mask)


def test_bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=20,
    )  # fmt: skip
    model = transformers.BertModel(config)
    lengths = torch.tensor([[7], [3], [5]])
    mask = (torch.arange(7) < lengths).long()
    batch = transformers.BatchEncoding(
        {"input_ids": tokens(3, 7, n=50) * mask, "attention_mask": mask}
    )
    calibration = nn.calibrate(model, [batch, batch])
    model.eval()
    seen = []
    layer = model.encoder.layer[1].output.dense
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    model(**batch)
    handle.remove()
    record = calibration["encoder.layer.1.output.dense.weight"]
    np.testing.assert_allclose(record.full, second_moment(seen[0][mask.bool()]), atol=1e-6)
    assert record.n_rows == 2 * 15
    assert calibration["pooler.dense.weight"].n_rows == 2 * 3
    words = calibration["embeddings.word_embeddings.weight"]
    expected = torch.bincount(batch["input_ids"][mask.bool()], minlength=50)
    np.testing.assert_array_equal(words.counts, 2 * expected)
    assert calibration.notes == {}
    report = nn.compress_model(model, {"defaults": {"n_codes": 16}}, importance=calibration)
    assert len(report.compressed) >= 12


# ------------------------------------------------------------------ numbers


def test_many_rows_stay_exact():
    model = torch.nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(100_000, 3, generator=generator) + 30.0 for _ in range(10)]
    record = nn.calibrate(model, batches)["weight"]
    rows = torch.cat(batches)
    assert record.n_rows == 1_000_000
    np.testing.assert_allclose(record.full, second_moment(rows), rtol=3e-7)
    np.testing.assert_allclose(record.mean, rows.double().mean(0), rtol=3e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats(dtype):
    model = torch.nn.Linear(8, 2, dtype=dtype)
    x = (torch.randn(500, 8) * 300.0).to(dtype)  # squares are beyond float16
    np.testing.assert_allclose(
        nn.calibrate(model, [x])["weight"].full, second_moment(x), rtol=1e-5, atol=0.1
    )


def test_neither_autocast_nor_a_precision_of_torch_shortens_products():
    model, x = torch.nn.Linear(64, 2), torch.randn(300, 64)
    expected = second_moment(x)

    def forward(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
            model(batch)

    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = nn.calibrate(model, [x], forward=forward)["weight"].full
    finally:
        torch.set_float32_matmul_precision(precision)
    np.testing.assert_allclose(found, expected, atol=1e-12)  # float64, which is not shortened
    found = nn.calibrate(model, [x], forward=forward)["weight"].full
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_same_batches_same_bytes():
    model = Tied().train()
    batches = [tokens(4, 5, seed=seed) for seed in range(3)]
    first, second = (nn.calibrate(model, batches) for _ in range(2))
    for name in first:
        assert first[name].full.tobytes() == second[name].full.tobytes()
        assert first[name].mean.tobytes() == second[name].mean.tobytes()


def test_inputs_are_not_kept():
    seen = []

    def batches():
        for _ in range(4):
            # The loop still has the last one at hand.
            assert all(reference() is None for reference in seen[:-1])
            x = torch.randn(5, 3)
            seen.append(weakref.ref(x))
            yield x
            del x

    nn.calibrate(torch.nn.Linear(3, 2), batches())
    assert len(seen) == 4


# ------------------------------------------------------------------ blocks and memory


def test_block_metric_and_column_importance():
    x = torch.randn(200, 7, dtype=torch.float64)
    calibration = nn.calibrate(torch.nn.Linear(7, 40, dtype=torch.float64), [x])
    h = second_moment(x)
    expected = (h[:3, :3] + h[3:6, 3:6]) / 2  # the seventh column is no whole block
    np.testing.assert_allclose(calibration.block_metric("weight", 3), expected, rtol=1e-12)
    np.testing.assert_allclose(calibration.block_metric("weight", 9), h, rtol=1e-12)
    np.testing.assert_allclose(calibration.column_importance("weight"), np.diag(h), rtol=1e-12)
    rows = np.random.default_rng(0).normal(size=(40, 7))
    for importance in (calibration.block_metric("weight", 3), np.diag(h)):
        ProductQuantizer(3, 8, random_state=0).fit(rows, importance=importance)
    with pytest.raises(ValueError, match=r"Got block_size=0, but expected an int >= 1"):
        calibration.block_metric("weight", 0)


def test_beyond_the_limit_the_diagonal_is_kept(monkeypatch):
    monkeypatch.setattr(moments, "DIAGONAL_TILE", 12)
    model = torch.nn.Sequential(torch.nn.Linear(31, 5), torch.nn.Linear(5, 2))
    x = torch.randn(200, 31)
    whole = nn.calibrate(model, [x])
    assert whole.notes == {}
    assert nn.calibrate(model, [x], max_bytes=8 * 31**2)["0.weight"].full is not None
    limited = nn.calibrate(model, [x], max_bytes=8 * 31**2 - 1)
    record = limited["0.weight"]
    assert record.full is None
    assert [tile.shape for tile in record.tiles] == [(12, 12), (12, 12), (7, 7)]
    assert limited["1.weight"].full is not None
    assert list(limited.notes) == ["0.weight"]
    assert "only what is along the diagonal was kept" in limited.notes["0.weight"]
    for size in (1, 2, 3, 4, 6, 12):
        np.testing.assert_allclose(
            limited.block_metric("0.weight", size),
            whole.block_metric("0.weight", size),
            rtol=1e-5,
            atol=1e-6,
        )
    for name in ("diagonal", "mean"):
        np.testing.assert_allclose(
            getattr(record, name), getattr(whole["0.weight"], name), rtol=1e-5, atol=1e-6
        )
    with pytest.raises(ValueError, match="block_size=5, but expected a divisor of 12"):
        limited.block_metric("0.weight", 5)


def test_groups_of_columns_beyond_the_limit():
    model = torch.nn.ConvTranspose1d(4, 4, 2, groups=2, dtype=torch.float64)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    full = nn.calibrate(model, [x])["weight"].full
    assert full.any()
    (tile,) = nn.calibrate(model, [x], max_bytes=0)["weight"].tiles
    np.testing.assert_array_equal(tile, full)


def test_helpers_for_the_wrong_kind_of_weight():
    calibration = nn.calibrate(torch.nn.Embedding(5, 2), [tokens(3, n=5)])
    with pytest.raises(ValueError, match=r"Got 'weight', of which there are RowCounts"):
        calibration.block_metric("weight", 2)
    with pytest.raises(ValueError, match=r"Got 'weight', whose rows are looked up"):
        calibration.column_importance("weight")
