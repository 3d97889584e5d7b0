"""A multilayer perceptron for tasks that have examples of their own."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class OwnExamplesNet(nn.Module):
    """Dense layers shared by all tasks, and one linear output of each task's examples.

    Attributes:
        tasks: names of the K tasks; head parameters carry them.
        widths: widths of the dense layers.
    """

    tasks: Sequence[str]
    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Map inputs (K, N, F), the tasks' in order, to an output (N,) of each."""
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        heads = {task: nn.Dense(1, name=task) for task in self.tasks}
        pairs = zip(heads.items(), x, strict=True)
        return {task: head(own)[:, 0] for (task, head), own in pairs}
