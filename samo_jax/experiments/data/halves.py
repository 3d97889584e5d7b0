"""Digits in two halves: one modality strong, the other weak."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from sklearn.datasets import load_digits

MODALITIES = ("upper", "lower")


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
