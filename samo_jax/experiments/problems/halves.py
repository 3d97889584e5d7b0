"""The problem of modalities: digits from two halves, together or alone."""

from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

import samo_jax
from samo_jax.experiments.data.halves import MODALITIES, masked
from samo_jax.experiments.networks.halves_net import HalvesNet

_BOTH = np.array([True, True])
# Which halves are there, by name.
PRESENT = MappingProxyType(
    {"both": _BOTH} | dict(zip(MODALITIES, np.eye(2, dtype=bool), strict=True))
)


def encoder_labels(params: Any) -> dict[str, int]:
    """The modality whose encoder each layer is in, or -1."""
    modality = {name: m for m, name in enumerate(MODALITIES)}
    return {layer: modality.get(layer.split("_")[0], -1) for layer in params}


class Batch(NamedTuple):
    """Batch, with its losses and values as functions of the parameters.

    Attributes:
        net: the network.
        halves: halves of the pictures, shape (B, 2, 32).
        digits: labels, shape (B,).
    """

    net: HalvesNet
    halves: jax.Array
    digits: jax.Array

    def logits(self, params: Any, present: ArrayLike = _BOTH) -> jax.Array:
        """The logits, shape (B, 10)."""
        halves = masked(self.halves, present)
        return jnp.asarray(self.net.apply({"params": params}, halves))

    def losses(self, params: Any, present: ArrayLike = _BOTH) -> jax.Array:
        """The losses of the examples, shape (B,)."""
        return _cross_entropy(self.logits(params, present), self.digits)

    def loss(self, params: Any) -> jax.Array:
        """The mean loss."""
        return jnp.mean(self.losses(params))

    def accuracy(self, params: Any, present: ArrayLike = _BOTH) -> jax.Array:
        """The share of digits that are recognised."""
        return jnp.mean(self.logits(params, present).argmax(axis=-1) == self.digits)

    def modality_losses(self, params: Any) -> jax.Array:
        """The loss of each modality's share of the logits, shape (2,)."""
        shares = samo_jax.shapley_values(partial(self.logits, params), 2)
        return jnp.mean(jax.vmap(_cross_entropy, (0, None))(shares, self.digits), 1)

    def joint_loss(self, params: Any) -> jax.Array:
        """The mean loss, plus that of each modality: the "unimodal" method's."""
        return self.loss(params) + jnp.sum(self.modality_losses(params))

    def example_losses(self, params: Any, index: jax.Array) -> jax.Array:
        """The losses of the examples that `index` selects, shape (n,)."""
        part = self._replace(halves=self.halves[index], digits=self.digits[index])
        return part.losses(params)


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels
