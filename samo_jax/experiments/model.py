"""A small convolutional network with one head per task."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class TwoDigitNet(nn.Module):
    """Two convolutions and a dense layer shared by all tasks, one linear head each.

    Attributes:
        tasks: names of the tasks; head parameters carry them.
    """

    tasks: Sequence[str]

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Map images (N, 12, 12, 1) to logits (N, 10) for each task."""
        x = nn.relu(nn.Conv(16, (3, 3))(images))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return {task: nn.Dense(10, name=task)(x) for task in self.tasks}
