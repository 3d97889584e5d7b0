"""A network for two halves of a picture, which are joined late or early."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

Fusion: TypeAlias = Literal["late", "early"]


class HalvesNet(nn.Module):
    """Two dense layers, for each half (late fusion) or both (early), and a linear one.

    Attributes:
        fusion: "late" or "early".
        halves: names of the halves.
    """

    fusion: Fusion
    halves: Sequence[str]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map halves (N, 2, 32) to logits (N, 10)."""

        def encoder(x, width, name):
            x = nn.relu(nn.Dense(width, name=f"{name}_1")(x))
            return nn.relu(nn.Dense(width, name=f"{name}_2")(x))

        if self.fusion == "early":
            features = encoder(x.reshape(len(x), -1), 128, "both")
        else:
            parts = [encoder(x[:, m], 64, name) for m, name in enumerate(self.halves)]
            features = jnp.concatenate(parts, axis=-1)
        return nn.Dense(10, name="fusion")(features)
