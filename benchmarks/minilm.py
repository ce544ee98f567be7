"""The forward pass of all-MiniLM-L6-v2 in plain torch, from the weights of ``data.model_file()``.

A BERT encoder: embeddings, then six layers of attention and a feed-forward network, each with a
residual connection and a layer norm after it. A sentence's embedding is the mean of its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks import data
from benchmarks.wordpiece import WordPiece

BATCH_TOKENS = 4096  # padding included


class MiniLM:
    """The encoder, ready to use; weights stay under their names in the file."""

    def __init__(self) -> None:
        from safetensors.torch import load_file

        path = data.model_file()
        config = json.loads(path.with_name("config.json").read_text())
        self.n_layers: int = config["num_hidden_layers"]
        self.n_heads: int = config["num_attention_heads"]
        self.epsilon: float = config["layer_norm_eps"]
        self.tensors: dict[str, Tensor] = load_file(path)
        self.tokenizer = WordPiece(path.with_name("vocab.txt"))

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.epsilon)

    def _attention(self, x: Tensor, allowed: Tensor, name: str) -> Tensor:
        def heads(part: str) -> Tensor:  # (sentences, heads, tokens, width of a head)
            projected = self._linear(x, f"{name}.self.{part}")
            return projected.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            heads("query"), heads("key"), heads("value"), attn_mask=allowed
        )
        return self._linear(mixed.transpose(1, 2).flatten(2), f"{name}.output.dense")

    def hidden_states(self, tokens: Tensor, used: Tensor) -> Tensor:
        """Return the last layer's output (sentences, tokens, 384); ``used`` is False on padding."""
        names = [f"embeddings.{part}_embeddings.weight" for part in ("word", "position")]
        words, positions = (self.tensors[name] for name in names)
        kind = self.tensors["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(words[tokens] + positions[: tokens.shape[1]] + kind, "embeddings.LayerNorm")
        allowed = used[:, None, None, :]
        for number in range(self.n_layers):
            layer = f"encoder.layer.{number}"
            attended = self._attention(x, allowed, f"{layer}.attention")
            x = self._norm(x + attended, f"{layer}.attention.output.LayerNorm")
            wide = functional.gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(
                x + self._linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm"
            )
        return x

    @torch.inference_mode()
    def activations(self, sentences: Sequence[str]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield a sentence's index and its tokens' last states (tokens, 384); short ones first."""
        encoded = [self.tokenizer.encode(sentence) for sentence in sentences]
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
        while order:
            batch = order[: max(1, BATCH_TOKENS // len(encoded[order[0]]))]
            # Sorted by length, so the last of a batch is its longest.
            order = order[len(batch) :]
            tokens = torch.zeros(len(batch), len(encoded[batch[-1]]), dtype=torch.int64)
            used = torch.zeros_like(tokens, dtype=torch.bool)
            for row, index in enumerate(batch):
                tokens[row, : len(encoded[index])] = torch.tensor(encoded[index])
                used[row, : len(encoded[index])] = True
            states = self.hidden_states(tokens, used)
            for row, index in enumerate(batch):
                yield index, states[row, : len(encoded[index])].numpy()

    def embed(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector of length 1 per sentence (n, 384): the mean over its tokens."""
        means = np.empty((len(sentences), self.tensors["pooler.dense.bias"].shape[0]), np.float32)
        for index, states in self.activations(sentences):
            means[index] = states.mean(axis=0)
        return means / np.linalg.norm(means, axis=1, keepdims=True)
