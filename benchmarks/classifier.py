"""The encoder with a classification head: what is fine-tuned on SST-2 and RTE.

transformers' BertModel, built from the configuration beside the weights, so that nothing is
fetched; its tensors have the names that they have in the file. A sentence, or a pair, is the mean
of its tokens' last states, and a linear layer makes scores of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmarks import data, glue
from benchmarks.data import Points
from benchmarks.wordpiece import WordPiece
from pgkmeans_sk.nn.calibration import Calibration, calibrate

LONGEST = 128  # tokens of an example
EVALUATION_BATCH = 64  # examples at once where nothing is trained
TASKS = {"SST-2": ("0", "1"), "RTE": ("not_entailment", "entailment")}
"""Tasks with the labels of their files; a label's number is its place."""


@dataclass(frozen=True)
class Encoded:
    """One example as token numbers, which of its sentences each is of, and its label's number."""

    tokens: Sequence[int]
    kinds: Sequence[int]
    label: int = 0


@dataclass(frozen=True)
class Batch:
    """Examples side by side, the shorter ones padded."""

    tokens: Tensor  # (n, length) int64
    kinds: Tensor  # (n, length) int64
    used: Tensor  # (n, length) bool, False on padding
    labels: Tensor  # (n,) int64

    @classmethod
    def of(cls, examples: Sequence[Encoded], device: torch.device | str = "cpu") -> Batch:
        """Pad examples to the longest of them."""
        shape = len(examples), max(len(example.tokens) for example in examples)
        tokens, kinds, used = (np.zeros(shape, dtype) for dtype in (np.int64, np.int64, bool))
        for row, example in enumerate(examples):
            tokens[row, : len(example.tokens)] = example.tokens
            kinds[row, : len(example.kinds)] = example.kinds
            used[row, : len(example.tokens)] = True
        labels = np.array([example.label for example in examples])
        return cls(*(torch.from_numpy(part).to(device) for part in (tokens, kinds, used, labels)))


def load_encoder(with_pooler: bool = False) -> BertModel:
    """Return the real model; the mean over tokens does not use its pooler."""
    from safetensors.torch import load_file

    path = data.model_file()
    settings = json.loads(path.with_name("config.json").read_text())
    encoder = BertModel(BertConfig.from_dict(settings), add_pooling_layer=with_pooler)
    tensors = load_file(path)
    wanted = encoder.state_dict().keys()
    encoder.load_state_dict({name: tensors[name] for name in wanted})
    return encoder.eval()


def load_tokenizer() -> WordPiece:
    """Return the real model's tokenizer."""
    return WordPiece(data.model_file().with_name("vocab.txt"))


def encoded(example: glue.Example, labels: Sequence[str], tokenizer: WordPiece) -> Encoded:
    """Turn an example into token numbers."""
    parts = tokenizer.encode_parts(example.sentences, LONGEST)
    kinds = [kind for kind, part in enumerate(parts) for _ in part]
    tokens = [token for part in parts for token in part]
    return Encoded(tokens, kinds, labels.index(example.label))


def load_task(task: str, part: str, n_examples: int | None = None) -> list[Encoded]:
    """Return the examples of ``"train"`` or ``"dev"``, or the first ``n_examples`` of them."""
    tokenizer = load_tokenizer()
    examples = glue.examples(task, part)[:n_examples]
    return [encoded(example, TASKS[task], tokenizer) for example in examples]


def mean_states(encoder: BertModel, batch: Batch) -> Tensor:
    """Return the mean of the last states of each example's tokens, (n, width)."""
    states = encoder(batch.tokens, batch.used, batch.kinds).last_hidden_state
    used = batch.used[:, :, None].to(states.dtype)
    return (states * used).sum(dim=1) / used.sum(dim=1)


class Classifier(nn.Module):
    """An encoder and a linear layer on the mean of its last states."""

    def __init__(self, encoder: BertModel, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, n_classes)
        nn.init.normal_(self.head.weight, std=encoder.config.initializer_range)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> Tensor:
        """Return scores (n, n_classes)."""
        scores: Tensor = self.head(mean_states(self.encoder, batch))
        return scores


def batches(
    examples: Sequence[Encoded], size: int, order: np.random.Generator | None = None
) -> Iterator[list[Encoded]]:
    """Cut examples into batches of about equal lengths, which saves padding.

    In training (with ``order``), only some batches' worth of shuffled examples are sorted at once,
    so that batches differ between epochs.
    """
    numbers = np.arange(len(examples))
    pool = len(examples)
    if order is not None:
        order.shuffle(numbers)
        pool = 50 * size
    found = []
    for start in range(0, len(numbers), max(pool, 1)):
        chosen = sorted(numbers[start : start + pool], key=lambda i: len(examples[i].tokens))
        found += [chosen[i : i + size] for i in range(0, len(chosen), size)]
    if order is not None:
        order.shuffle(found)
    yield from ([examples[i] for i in numbers] for numbers in found)


def encoded_sentences(sentences: Sequence[str], tokenizer: WordPiece) -> list[Encoded]:
    """Turn single sentences into token numbers; the label of each is its place."""
    return [
        Encoded(tokens, [0] * len(tokens), place)
        for place, tokens in enumerate(map(tokenizer.encode, sentences))
    ]


@torch.inference_mode()
def embed(encoder: BertModel, tokenizer: WordPiece, sentences: Sequence[str]) -> Points:
    """Return the mean state of each sentence, (n, width): what ``sts.spearman`` asks for."""
    vectors = np.empty((len(sentences), encoder.config.hidden_size), np.float32)
    for chosen in batches(encoded_sentences(sentences, tokenizer), EVALUATION_BATCH):
        batch = Batch.of(chosen, next(encoder.parameters()).device)
        vectors[batch.labels.cpu().numpy()] = mean_states(encoder, batch).cpu().numpy()
    return vectors


def calibration_batches(
    examples: Sequence[Encoded], device: torch.device | str = "cpu"
) -> list[Batch]:
    """Cut examples into batches that ``mean_states`` takes."""
    return [Batch.of(chosen, device) for chosen in batches(examples, EVALUATION_BATCH)]


def calibrated(model: nn.Module, examples: Sequence[Encoded]) -> Calibration:
    """Return what the weights of a classifier or an encoder take in, padding left out."""
    return calibrate(
        model,
        calibration_batches(examples, next(model.parameters()).device),
        forward=lambda model, batch: (
            model(batch) if isinstance(model, Classifier) else mean_states(model, batch)
        ),
        mask=lambda batch: batch.used,
    )
