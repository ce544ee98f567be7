"""What a weight of a transformer is for, as far as its name and its module tell."""

from __future__ import annotations

import re

from torch import nn

from pgkmeans_sk.nn.selection import FoundTensor, Place

KINDS = ("ffn", "embeddings", "attention")
"""In the order in which iPQ compresses them."""

EMBEDDINGS = re.compile(r"(?i)(^|_)emb|embed|^wte$|^wpe$")
ATTENTION = re.compile(
    r"(?i)attn|attention|multihead|^mha$"
    r"|^(q|k|v|o|qkv|kv|query|key|value|query_key_value)_(proj|lin|linear)$"
    r"|^(qkv|query|key|value|query_key_value|to_[qkv])$"
)
FFN = re.compile(
    r"(?i)ffn|mlp|feed_?forward|^ff$|^ff_|intermediate|relu_?dense|h_to_4h|4h_to_h|expert|moe"
    r"|^c_fc$|^fc_?\d$|^lin(ear)?_?\d$|^w\d$|^w[io]$|^w[io]_\d$|^(gate|up|down|gate_up)_proj$"
)
# In BERT and its kin, the second layer of the FFN is called "output", as are many others.
BERT_OUTPUT = re.compile(r"(?i)(^|\.)(layers?|blocks?)\.\d+\.output\.[^.]+\.[^.]+$")


def kind_of(found: FoundTensor) -> str | None:
    """The kind of a weight, one of ``KINDS``, or None if it is another.

    An embedding is known by its type; for all others the innermost part of the name counts that
    says something: "attention.output.dense" is of attention, "h.0.mlp.c_proj" of an FFN. A tied
    weight that is an embedding anywhere is one.
    """
    kinds = [_kind_of(place) for place in found.places]
    if "embeddings" in kinds:
        return "embeddings"
    return next((kind for kind in kinds if kind is not None), None)


def _kind_of(place: Place) -> str | None:
    if isinstance(place.module, nn.Embedding | nn.EmbeddingBag):
        return "embeddings"
    if isinstance(place.module, nn.MultiheadAttention):
        return "attention"
    if BERT_OUTPUT.search(place.name):
        return "ffn"
    for part in reversed(place.name.split(".")[:-1]):
        for kind, pattern in (("embeddings", EMBEDDINGS), ("attention", ATTENTION), ("ffn", FFN)):
            if pattern.search(part):
                return kind
    return None
