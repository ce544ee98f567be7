"""A small random encoder and made-up sentences in the place of the real ones."""

import numpy as np
import torch
from transformers import BertConfig, BertModel

from benchmarks import classifier, sts
from benchmarks.classifier import Encoded

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film", "dog", "runs"]
VOCABULARY = len(WORDS)


def small_encoder(with_pooler=False):
    """Two layers of 16 columns; the same numbers each time."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertModel(config, add_pooling_layer=with_pooler).eval()


def small_classifier(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return classifier.Classifier(small_encoder(), 2).eval()


def small_examples(n=24, seed=0):
    """Sentences of 3 to 8 tokens; the label says whether "good" is among them, or "bad"."""
    rng = np.random.default_rng(seed)
    examples = []
    for label in rng.integers(0, 2, n).tolist():
        others = rng.choice([4, 7, 8, 9], rng.integers(0, 6)).tolist()
        tokens = [2, *others, 6 - label, 3]
        examples.append(Encoded(tokens, [0] * len(tokens), label))
    return examples


def use_small_sentences(monkeypatch, folder):
    """Let studies find the small encoder, and pairs of sentences of its few words."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    monkeypatch.setattr(classifier, "load_encoder", small_encoder)
    monkeypatch.setattr(classifier, "load_tokenizer", lambda: classifier.WordPiece(vocabulary))
    pairs = sts.Pairs(
        ["a good film", "a dog", "bad", "dog runs"],
        ["a bad film", "dog runs", "a good dog", "a dog runs"],
        [3.0, 2.0, 0.0, 5.0],
    )
    monkeypatch.setattr(sts, "load_pairs", lambda part="dev", n_pairs=None: pairs)
