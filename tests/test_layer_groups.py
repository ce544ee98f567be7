"""Which layers iPQ compresses together, and in which order."""

import re

import pytest

torch = pytest.importorskip("torch")

from torch.nn import (  # noqa: E402 - only if torch is there
    Conv2d,
    Embedding,
    Linear,
    ModuleDict,
    ModuleList,
    MultiheadAttention,
    Sequential,
    TransformerEncoderLayer,
)

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.layer_groups import layer_groups  # noqa: E402
from pgkmeans_sk.nn.layer_kinds import kind_of  # noqa: E402
from pgkmeans_sk.nn.selection import FoundTensor, Place, find_targets  # noqa: E402
from pgkmeans_sk.spec import Rule, Spec  # noqa: E402

SPEC = Spec.of({"defaults": {"n_codes": 4, "block_size": 4}})


def kind_of_name(name, module=None):
    module = Linear(8, 8) if module is None else module
    place = Place(module, name.rpartition(".")[2], name)
    return kind_of(FoundTensor(places=(place,), tensor=torch.zeros(8, 8)))


NAMES = {
    "ffn": [
        "bert.encoder.layer.11.intermediate.dense.weight",
        "roberta.encoder.layer.0.output.dense.weight",
        "distilbert.transformer.layer.3.ffn.lin1.weight",
        "transformer.h.0.mlp.c_proj.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "decoder.layers.15.fc1.weight",
        "encoder.layers.0.linear2.weight",
        "blocks.7.mlp.fc2.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        "model.layers.3.mlp.gate_proj.weight",
        "encoder.albert_layer_groups.0.albert_layers.0.ffn_output.weight",
        "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
        "conformer.3.feed_forward1.linear_in.weight",
    ],
    "embeddings": [
        "decoder.embed_tokens.embeddings.0.1.weight",
        "encoder.embedding_hidden_mapping_in.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.weight",
        "tok_emb.weight",
        "emb_out.weight",
    ],
    "attention": [
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.0.attention.output.dense.weight",
        "bert.encoder.layer.0.crossattention.self.key.weight",
        "distilbert.transformer.layer.0.attention.out_lin.weight",
        "transformer.h.11.attn.c_attn.weight",
        "transformer.h.11.attn.c_proj.weight",
        "decoder.layers.0.self_attn.out_proj.weight",
        "decoder.layers.0.encoder_attn.k_proj.weight",
        "decoder.layers.1.multihead_attn.in_proj_weight",
        "blocks.0.attn.qkv.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight",
        "layers.0.q_proj.weight",
    ],
    None: [
        "bert.pooler.dense.weight",
        "classifier.weight",
        "lm_head.weight",
        "ensemble.0.weight",
        "output.dense.weight",
        "0.weight",
        "weight",
        "key",  # a tensor's own name says nothing of its layer
    ],
}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in NAMES.items() for n in names])
def test_names_of_well_known_models(kind, name):
    assert kind_of_name(name) == kind


def test_types_tell_what_names_do_not():
    assert kind_of_name("0.weight", Embedding(8, 8)) == "embeddings"
    assert kind_of_name("0.in_proj_weight", MultiheadAttention(8, 2)) == "attention"
    # Relative positions in T5: by name they would be of attention.
    assert kind_of_name("SelfAttention.bias.weight", Embedding(8, 8)) == "embeddings"


def transformer():
    model = ModuleDict(
        {
            "head": Linear(32, 32),
            "layers": ModuleList(
                TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(2)
            ),
            "embed": Embedding(64, 32),
        }
    )
    model["output_projection"] = Linear(32, 64, bias=False)
    model["output_projection"].weight = model["embed"].weight
    return model


def groups_of(model, groups, spec=SPEC):
    found = layer_groups(find_targets(model, Spec.of(spec)), groups)
    return {group.name: group.tensors for group in found}


def assert_each_weight_is_in_one_group(model, groups, spec=SPEC):
    chosen = [t.found.name for t in find_targets(model, spec) if t.layout is not None]
    found = [name for names in groups_of(model, groups, spec).values() for name in names]
    assert sorted(found) == sorted(chosen)
    assert len(chosen) > 0


def test_a_transformer_begins_with_its_ffns():
    found = groups_of(transformer(), "ipq")
    assert list(found) == ["ffn", "embeddings", "attention", "others"]
    assert found["ffn"] == tuple(
        f"layers.{i}.linear{j}.weight" for i in range(2) for j in range(1, 3)
    )
    assert found["embeddings"] == ("embed.weight",)  # with the tied output projection
    assert found["attention"] == tuple(
        f"layers.{i}.self_attn.{name}"
        for i in range(2)
        for name in ("in_proj_weight", "out_proj.weight")
    )
    assert found["others"] == ("head.weight",)


@pytest.mark.parametrize(
    "groups",
    [
        "ipq",
        "input_to_output",
        ["*.linear1.weight"],
        [Embedding, Linear],
        [re.compile(r".*\.self_attn\..*"), "*"],
        {"rest": {"type": "Embedding"}, "a": [Rule(match="*linear*"), "head.*"]},
    ],
)
def test_each_weight_is_in_exactly_one_group(groups):
    assert_each_weight_is_in_one_group(transformer(), groups)
    skip = SPEC.with_rules(Rule(match="head.*", settings={"skip": True}))
    if not isinstance(groups, dict):
        assert_each_weight_is_in_one_group(transformer(), groups, skip)


def test_a_convolutional_model_goes_from_input_to_output():
    model = ModuleDict({"stem": Conv2d(4, 16, 3), "mlp": Conv2d(16, 16, 1), "fc1": Linear(16, 32)})
    expected = {"stem": ("stem.weight",), "mlp": ("mlp.weight",), "fc1": ("fc1.weight",)}
    assert groups_of(model, "ipq") == expected
    assert list(groups_of(model, "ipq")) == list(expected)
    model["attn"] = MultiheadAttention(16, 2)  # a transformer with a convolution
    assert list(groups_of(model, "ipq")) == ["ffn", "attention", "others"]


def test_a_layer_with_several_weights_is_one_step_from_input_to_output():
    model = MultiheadAttention(32, 2, kdim=16, vdim=16)
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    found = groups_of(model, "input_to_output")
    assert list(found.values()) == [names, ("out_proj.weight",)]


def test_the_first_pattern_that_fits_counts():
    found = groups_of(transformer(), ["layers.0.*", re.compile(r"LAYERS\..*\d\.weight", re.I)])
    assert list(found) == ["layers.0.*", r"LAYERS\..*\d\.weight", "others"]
    assert found[r"LAYERS\..*\d\.weight"] == ("layers.1.linear1.weight", "layers.1.linear2.weight")
    assert len(found["others"]) == 4


def test_a_tied_weight_is_found_by_any_of_its_names():
    found = groups_of(transformer(), {"out": "output_projection.*"})
    assert found["out"] == ("embed.weight",)


def test_patterns_of_weights_that_are_compressed_already_are_no_mistake():
    model = transformer()
    nn.compress_model(model, SPEC.only(["*linear*"]))
    assert "ffn" not in groups_of(model, "ipq")
    assert list(groups_of(model, {"ffn": "*linear*"})) == ["others"]


def test_weights_that_share_a_codebook_are_compressed_together():
    model = Sequential(Linear(32, 32), Linear(32, 16), Linear(32, 32))
    spec = SPEC.with_rules(Rule(regex=r"[02]\.weight", settings={"group": "same"}))
    found = groups_of(model, "input_to_output", spec)
    assert list(found.values()) == [("0.weight", "2.weight"), ("1.weight",)]
    with pytest.raises(ValueError, match=r"'0\.weight' in the group '0\.\*' and '2\.weight' in"):
        groups_of(model, ["0.*"], spec)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("pq", ValueError, "groups='pq', but expected one of 'ipq', 'input_to_output'"),
        (3, TypeError, "groups of type int"),
        ([], ValueError, "groups without any"),
        (["layers.9.*"], ValueError, r"the group 'layers\.9\.\*', but expected one that weights"),
        ([Linear, "head.*"], ValueError, r"'head\.\*', but expected one that weights belong to"),
        (["head.*", "head.*"], ValueError, r"'head\.\*' twice"),
        ({"others": "head.*"}, ValueError, "a group called 'others'"),
        ({"": "head.*"}, ValueError, "a group called ''"),
        ([int], TypeError, "for the group 'int', but expected a glob"),
        ({"a": []}, TypeError, r"Got \[\] for the group 'a'"),
        ({"a": None}, TypeError, "Got None for the group 'a'"),
        ({"a": {"match": "*", "skip": True}}, TypeError, "a rule without settings"),
        ([Rule(match="*", settings={"n_codes": 8})], TypeError, "a rule without settings"),
        ([{"regex": "("}], ValueError, "expected a regular expression"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups, error, message):
    with pytest.raises(error, match=message):
        groups_of(transformer(), groups)
