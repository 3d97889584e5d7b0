"""A BERT encoder of sentences, such as MiniLM, with adapters, and a head each task.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805; Wang et al. 2020,
https://arxiv.org/abs/2002.10957; adapters: Hu et al. 2022,
https://arxiv.org/abs/2106.09685.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

ENCODER = "encoder"
ADAPTER = "lora"
PAD = 0
_LORA_SCALE = 2.0  # alpha / rank


class Size(NamedTuple):
    """Size of an encoder.

    Attributes:
        width: width of a token.
        hidden: width within the feed-forward layers.
        heads: number of attention heads.
        layers: number of layers.
        vocabulary: number of tokens.
        positions: greatest length of a sentence.
    """

    width: int
    hidden: int
    heads: int
    layers: int
    vocabulary: int
    positions: int


class MiniLM(nn.Module):
    """The mean of a sentence's tokens after the encoder, and a linear head each task.

    Attributes:
        outputs: number of outputs of each task; head parameters carry its name.
        size: size of the encoder.
        rank: rank of the adapters on queries and values; 0: none.
        dropout: share of what a training step leaves out.
        dtype: dtype of the encoder's products; parameters are float32.
    """

    outputs: Mapping[str, int]
    size: Size
    rank: int = 0
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Map tokens (N, L) to outputs (N, outputs) of each task."""
        encoder = Encoder(self.size, self.rank, self.dropout, self.dtype, name=ENCODER)
        x = nn.Dropout(self.dropout)(encoder(tokens, train), deterministic=not train)
        return {task: nn.Dense(n, name=task)(x) for task, n in self.outputs.items()}


class Encoder(nn.Module):
    """The mean of a sentence's tokens. Attributes: see `MiniLM`."""

    size: Size
    rank: int = 0
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Map tokens (N, L), 0 after a sentence's end, to float32 means (N, width)."""
        size = self.size
        known = tokens != PAD

        def table(rows, name):
            return self.param(name, nn.initializers.normal(0.02), (rows, size.width))

        x = table(size.vocabulary, "words")[tokens]
        x += table(size.positions, "positions")[: tokens.shape[1]]
        x += table(2, "kinds")[0]  # of the first sentence: there is no second one
        x = _norm("norm")(x).astype(self.dtype)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        for k in range(size.layers):
            layer = Layer(size, self.rank, self.dropout, self.dtype, name=f"layer_{k}")
            x = layer(x, known, train)
        total = jnp.sum(x, axis=1, where=known[..., None], dtype=jnp.float32)
        return total / jnp.maximum(jnp.sum(known, axis=1, keepdims=True), 1)


class Layer(nn.Module):
    """Attention and a feed-forward part. Attributes: see `MiniLM`."""

    size: Size
    rank: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, known: jax.Array, train: bool) -> jax.Array:
        """Map tokens (N, L, width), of which some are known, to the same shape."""
        size = self.size

        def dense(features, name):
            return nn.Dense(features, dtype=self.dtype, name=name)

        def drop(x):
            return nn.Dropout(self.dropout)(x, deterministic=not train)

        def split(x):
            return x.reshape(*x.shape[:2], size.heads, -1)

        query, key, value = (
            split(Adapted(size.width, rank, self.dtype, name=name)(x))
            for name, rank in (("query", self.rank), ("key", 0), ("value", self.rank))
        )
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key).astype(jnp.float32)
        scores = jnp.where(known[:, None, None], scores, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores / jnp.sqrt(size.width / size.heads))
        seen = jnp.einsum("nhqk,nkhd->nqhd", drop(shares).astype(self.dtype), value)
        seen = dense(size.width, "attended")(seen.reshape(x.shape))
        x = _norm("attended_norm")(x + drop(seen)).astype(self.dtype)
        hidden = nn.gelu(dense(size.hidden, "up")(x), approximate=False)
        down = dense(size.width, "down")(hidden)
        return _norm("norm")(x + drop(down)).astype(self.dtype)


class Adapted(nn.Module):
    """A dense layer and, with a rank, a product of two thin matrices that starts at 0.

    Attributes:
        features: number of outputs.
        rank: rank of the product; 0: none.
        dtype: dtype of the products.
    """

    features: int
    rank: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map inputs (..., width) to outputs (..., features)."""
        y = nn.Dense(self.features, dtype=self.dtype, name="dense")(x)
        if not self.rank:
            return y
        shapes = (x.shape[-1], self.rank), (self.rank, self.features)
        inner = self.param(f"{ADAPTER}_in", nn.initializers.lecun_normal(), shapes[0])
        outer = self.param(f"{ADAPTER}_out", nn.initializers.zeros, shapes[1])
        product = x @ inner.astype(self.dtype) @ outer.astype(self.dtype)
        return y + _LORA_SCALE * product


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-12, dtype=jnp.float32, name=name)
