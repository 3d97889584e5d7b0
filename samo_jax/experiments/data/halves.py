"""Digits in two halves: one modality strong, the other weak; and a network for both."""

from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from sklearn.datasets import load_digits

MODALITIES = ("upper", "lower")
Fusion: TypeAlias = Literal["late", "early"]


class Halves(NamedTuple):
    """Pictures and their digits.

    Attributes:
        halves: shape (N, 2, 32), float32: the pixels of each of `MODALITIES`.
        digits: shape (N,), ints.
    """

    halves: np.ndarray
    digits: np.ndarray


def half_digits() -> tuple[Halves, Halves, Halves]:
    """Training, validation and test pictures: 900, 300 and 597.

    The upper half of scikit-learn's 8x8 digits is as it is, in [0, 1]; the lower half
    has Gaussian noise of deviation 0.5, always the same.
    """
    pixels, digits = load_digits(return_X_y=True)
    halves = (pixels.reshape(-1, 2, 32) / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(halves))
    halves[:, 1] += 0.5 * rng.normal(size=(len(halves), 32)).astype(np.float32)
    train, validation, test = (
        Halves(halves[index], digits[index]) for index in np.split(order, [900, 1200])
    )
    return train, validation, test


def masked(halves: ArrayLike, present: ArrayLike) -> jax.Array:
    """The halves, of which absent ones are zeros."""
    return jnp.where(jnp.asarray(present)[:, None], halves, 0)


class HalvesNet(nn.Module):
    """Two dense layers, for each half (late fusion) or both (early), and a linear one.

    Attributes:
        fusion: "late" or "early".
    """

    fusion: Fusion

    @nn.compact
    def __call__(self, halves: jax.Array) -> jax.Array:
        """Map halves (N, 2, 32) to logits (N, 10)."""

        def encoder(x, width, name):
            x = nn.relu(nn.Dense(width, name=f"{name}_1")(x))
            return nn.relu(nn.Dense(width, name=f"{name}_2")(x))

        if self.fusion == "early":
            x = encoder(halves.reshape(len(halves), -1), 128, "both")
        else:
            features = [
                encoder(halves[:, m], 64, name) for m, name in enumerate(MODALITIES)
            ]
            x = jnp.concatenate(features, axis=-1)
        return nn.Dense(10, name="fusion")(x)


def encoder_labels(params: Any) -> dict[str, int]:
    """The modality whose encoder each layer is in, or -1."""
    modality = {name: m for m, name in enumerate(MODALITIES)}
    return {layer: modality.get(layer.split("_")[0], -1) for layer in params}
