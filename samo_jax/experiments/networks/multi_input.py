"""A network for tasks that have inputs of their own."""

from collections.abc import Mapping

import flax.linen as nn
import jax


class MultiInput(nn.Module):
    """A network that sees each task's own inputs, one task after the other.

    The parameters are those of the network, and so are the batch statistics: each
    task's inputs are normalised by themselves, and update the running ones in turn.

    Attributes:
        net: maps inputs to outputs by task.
    """

    net: nn.Module

    def setup(self) -> None:
        """Add no level to the network's variables."""
        nn.share_scope(self, self.net)

    def __call__(
        self, inputs: Mapping[str, jax.Array], train: bool
    ) -> dict[str, jax.Array]:
        """Map inputs by task to outputs of the same tasks."""
        return {task: self.net(x, train)[task] for task, x in inputs.items()}
