"""A small network with one head per task."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class MultitaskNet(nn.Module):
    """3x3 convolutions and dense layers shared by all tasks, one linear head each.

    Attributes:
        tasks: names of the tasks; head parameters carry them.
        outputs: of each head.
        convolutions: width and stride of each convolution.
        widths: of the dense layers.
    """

    tasks: Sequence[str]
    outputs: int
    convolutions: Sequence[tuple[int, int]] = ()
    widths: Sequence[int] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map inputs (N, ...) to outputs (N, outputs) for each task."""
        for width, stride in self.convolutions:
            x = nn.relu(nn.Conv(width, (3, 3), strides=stride)(x))
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return {task: nn.Dense(self.outputs, name=task)(x) for task in self.tasks}


def two_digit_net(tasks: Sequence[str]) -> MultitaskNet:
    """The network of the digits experiment, for images (N, 12, 12, 1)."""
    return MultitaskNet(tuple(tasks), 10, ((16, 1), (32, 2)), (64,))
