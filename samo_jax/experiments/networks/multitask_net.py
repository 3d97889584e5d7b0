"""A small network with one head per task."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax


class MultitaskNet(nn.Module):
    """3x3 convolutions and dense layers shared by all tasks, one linear head each.

    Attributes:
        outputs: number of outputs of each task; head parameters carry its name.
        convolutions: width and stride of each convolution.
        widths: widths of the dense layers.
    """

    outputs: Mapping[str, int]
    convolutions: Sequence[tuple[int, int]] = ()
    widths: Sequence[int] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map inputs (N, ...) to outputs (N, outputs) of each task."""
        for width, stride in self.convolutions:
            x = nn.relu(nn.Conv(width, (3, 3), strides=stride)(x))
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return {
            task: nn.Dense(outputs, name=task)(x)
            for task, outputs in self.outputs.items()
        }


def two_digit_net(tasks: Sequence[str]) -> MultitaskNet:
    """The network of the digits benchmarks, for images (N, 12, 12, 1)."""
    outputs = {task: 144 if task == "reconstruction" else 10 for task in tasks}
    return MultitaskNet(outputs, ((16, 1), (32, 2)), (64,))


def last_layer(params: Mapping[str, Any]) -> dict[str, bool]:
    """Mask of the last shared dense layer."""
    layers = [name for name in params if name.startswith("Dense")]
    if not layers:
        raise ValueError(
            "`last_layer` is of networks with shared dense layers; this one has "
            f"{', '.join(params)}. Leave `mask` out."
        )
    return {name: name == max(layers) for name in params}
