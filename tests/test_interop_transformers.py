"""save_pretrained and from_pretrained of compressed models: bit for bit, never silently wrong."""

import importlib
import json
import logging
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

from pgkmeans_sk import compress_file, describe_file, nn  # noqa: E402
from pgkmeans_sk.codes.tensor_file import TensorFile  # noqa: E402
from pgkmeans_sk.interop import transformers as plug_in  # noqa: E402
from pgkmeans_sk.interop.transformers import PGKMeansConfig, prepare_for_saving  # noqa: E402
from tests.nn_models import spec, state_bytes  # noqa: E402

TOKENS = torch.tensor([[3, 5, 7, 11, 2]])
BERT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 20,
}


def bert(kind="BertModel", **options):
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.BertConfig(**BERT, **options)).eval()


def gpt(kind="GPT2LMHeadModel"):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=60, n_positions=20, n_embd=16, n_layer=2, n_head=2)
    return getattr(transformers, kind)(config).eval()


MODELS = {
    "bert": lambda: bert(),
    "classifier": lambda: bert("BertForSequenceClassification", num_labels=3),
    "tied bert": lambda: bert("BertForMaskedLM"),
    "tied gpt": lambda: gpt(),
}


def saved(model, folder, *rules, **settings):
    report = nn.compress_model(model, spec(*rules, **settings))
    assert report.compressed
    prepare_for_saving(model).save_pretrained(folder)
    return model


@contextmanager
def told():
    """What transformers says meanwhile, at warning level or above."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def content(folder):
    """What is in a model's file; its library writes metadata in any order."""
    with TensorFile(folder / "model.safetensors") as file:
        tensors = {n: (file.dtype(n), file.shape(n), bytes(file.raw(n))) for n in file.names}
        return dict(file.metadata), tensors


def outputs(model, tokens=TOKENS):
    with torch.inference_mode():
        return model(tokens)[0]


# ------------------------------------------------------------------ there and back


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, tmp_path):
    model = saved(MODELS[name](), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "pgkmeans"
    with (
        mock.patch.object(nn.CodebookWeight, "decode", side_effect=AssertionError("decoded")),
        told() as messages,
    ):
        again = type(model).from_pretrained(tmp_path / "a")
    assert messages == []
    assert state_bytes(again) == state_bytes(model)
    assert torch.equal(outputs(again), outputs(model))
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    assert len(list(again.parameters())) == len(list(model.parameters()))
    assert not again.training
    again.save_pretrained(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize(
    "settings",
    [
        {"n_stages": 2, "scale": "row"},
        {"codebook": "per_block"},
        {"rotation": "hadamard"},
        {"block_size": 2, "n_codes": 300},
        {"group": "all"},
    ],
    ids=str,
)
def test_each_setting(settings, tmp_path):
    rules = []
    if "group" in settings:
        rules, settings = [{"match": "encoder.*dense.weight", **settings}], {}
    if "n_codes" in settings:
        rules, settings = [{"match": "*word*", **settings}], {}
    model = saved(bert(), tmp_path, *rules, **settings)
    again = transformers.AutoModel.from_pretrained(tmp_path)
    assert state_bytes(again) == state_bytes(model)
    assert torch.equal(outputs(again), outputs(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_each_dtype(dtype, tmp_path):
    model = saved(bert().to(dtype), tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == dtype
    assert state_bytes(again) == state_bytes(model)
    other = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    weight = other.encoder.layer[0].output.dense.weight
    expected = model.encoder.layer[0].output.dense.weight.float()
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0.0)


def test_the_file_is_that_of_nn_save(tmp_path):
    """The same for all: transformers, torch without it, and the command line."""
    model = saved(bert("BertForMaskedLM"), tmp_path)
    path = tmp_path / "model.safetensors"
    report = describe_file(path)
    assert report.is_compressed
    assert report.compressed
    loaded = nn.load(bert("BertForMaskedLM"), path)
    assert state_bytes(loaded) == state_bytes(model)
    nn.save(loaded, path)
    again = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    assert state_bytes(again) == state_bytes(model)
    assert again.cls.predictions.decoder.parametrizations.weight.original is (
        again.bert.embeddings.word_embeddings.parametrizations.weight.original
    )


def test_a_file_of_the_command_line(tmp_path):
    model = bert("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    compress_file(path, tmp_path / "small", spec())
    (tmp_path / "small").replace(path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "pgkmeans"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with told() as messages:
        again = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    assert messages == []
    loaded = nn.load(bert("BertForMaskedLM"), path)
    assert state_bytes(again) == state_bytes(loaded)


# ------------------------------------------------------------------ parts of a model


def test_a_model_from_the_file_of_a_larger_one(tmp_path):
    model = saved(bert("BertForSequenceClassification"), tmp_path)
    again = transformers.BertModel.from_pretrained(tmp_path)
    assert state_bytes(again) == state_bytes(model.bert)


def test_a_model_from_the_file_of_a_smaller_one(tmp_path):
    """What is new is random, and transformers says so."""
    model = saved(bert(), tmp_path)
    with told() as messages:
        again = transformers.BertForSequenceClassification.from_pretrained(tmp_path)
    assert state_bytes(again.bert) == state_bytes(model)
    (message,) = messages
    assert "classifier.weight" in message
    assert "encoder" not in message
    assert again.classifier.weight.std() > 0


# ------------------------------------------------------------------ other ways


def test_compressed_while_it_is_loaded(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path / "plain")
    config = PGKMeansConfig(spec=spec(scale="row"))
    again = transformers.AutoModel.from_pretrained(tmp_path / "plain", quantization_config=config)
    nn.compress_model(model, spec(scale="row"))
    assert state_bytes(again) == state_bytes(model)
    again.save_pretrained(tmp_path / "small")
    third = transformers.AutoModel.from_pretrained(tmp_path / "small")
    assert state_bytes(third) == state_bytes(model)
    assert third.config.quantization_config.spec == config.spec


def test_dequantized(tmp_path):
    model = saved(bert(), tmp_path / "a")
    again = transformers.AutoModel.from_pretrained(tmp_path / "a").dequantize()
    assert state_bytes(again) == state_bytes(nn.bake(model))
    again.save_pretrained(tmp_path / "b")
    assert "quantization_config" not in json.loads((tmp_path / "b" / "config.json").read_text())
    third = transformers.AutoModel.from_pretrained(tmp_path / "b")
    assert state_bytes(third) == state_bytes(model)


@pytest.mark.parametrize("name", ["tied bert", "tied gpt"])
def test_training_goes_on_from_a_file(name, tmp_path):
    """As Trainer does: the file of save_pretrained into load_state_dict."""
    model = saved(MODELS[name](), tmp_path, {"match": "*.0.*.weight", "group": "a"})
    again = type(model).from_pretrained(tmp_path)
    for parameter in again.parameters():
        with torch.no_grad():
            parameter.add_(1.0)
    again(TOKENS, labels=TOKENS).loss.backward()
    codebook = again.get_input_embeddings().parametrizations.weight.original
    assert codebook.grad is not None
    state = safetensors_torch.load_file(tmp_path / "model.safetensors")
    found = again.load_state_dict(state, strict=False)
    assert found.unexpected_keys == []
    assert state_bytes(again) == state_bytes(model)
    assert again.get_input_embeddings().parametrizations.weight.original is codebook
    again.load_state_dict(model.state_dict())


def test_the_module_may_be_loaded_again(tmp_path):
    model = saved(bert(), tmp_path)
    again = importlib.reload(plug_in)
    assert state_bytes(transformers.AutoModel.from_pretrained(tmp_path)) == state_bytes(model)
    mapping = transformers.quantizers.auto.AUTO_QUANTIZER_MAPPING
    assert mapping["pgkmeans"] is again.PGKMeansQuantizer


# ------------------------------------------------------------------ what is refused


def test_damage_is_found(tmp_path):
    saved(bert(), tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors: .*got the CRC-32"):
        transformers.AutoModel.from_pretrained(tmp_path)


def test_another_file_than_config_json_says(tmp_path):
    saved(bert(), tmp_path)
    plain = bert().state_dict()
    safetensors_torch.save_file(plain, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="format 'pt', but expected 'pgkmeans_sk'"):
        transformers.AutoModel.from_pretrained(tmp_path)


def test_other_shapes(tmp_path):
    saved(bert(), tmp_path)
    config = transformers.BertConfig(**{**BERT, "intermediate_size": 40})
    with pytest.raises((ValueError, RuntimeError), match=r"intermediate.dense|LOAD REPORT|ignore"):
        transformers.BertModel.from_pretrained(
            tmp_path, config=config, quantization_config=PGKMeansConfig()
        )


def test_several_files_and_devices(tmp_path):
    model = bert()
    nn.compress_model(model, spec())
    prepare_for_saving(model).save_pretrained(tmp_path, max_shard_size="1KB")
    with pytest.raises(ValueError, match=r"in \d+ files, but expected one: save it with a larger"):
        transformers.AutoModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Got a device_map with 2 devices, but expected one"):
        transformers.AutoModel.from_pretrained(
            tmp_path, device_map={"embeddings": "cpu", "encoder": "meta", "pooler": "cpu"}
        )


def test_models_without_codes():
    with pytest.raises(ValueError, match="Got a BertModel without compressed weights"):
        prepare_for_saving(bert())
    with pytest.raises(TypeError, match="Got a Linear, but expected a PreTrainedModel"):
        prepare_for_saving(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "max"}, "gradient='max'"),
        ({"quant_method": "gptq"}, "quant_method='gptq'"),
        ({"spec": {"default": {}}}, "Got the key 'default' in a spec"),
    ],
)
def test_wrong_configs(options, message):
    with pytest.raises(ValueError, match=message):
        PGKMeansConfig(**options)


def test_configs_as_json():
    config = PGKMeansConfig(spec=spec(n_codes=16), random_state=3)
    content = json.loads(config.to_json_string())
    again = PGKMeansConfig.from_dict(content)
    assert again.to_dict() == config.to_dict()
    assert np.array_equal(again.random_state, 3)
