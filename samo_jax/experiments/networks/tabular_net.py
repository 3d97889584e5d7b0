"""A multilayer perceptron with dropout, and a linear head for each task."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class TabularNet(nn.Module):
    """Dense layers shared by all tasks, with dropout, and one linear head each.

    Attributes:
        outputs: number of outputs of each task; head parameters carry its name.
        widths: widths of the dense layers.
        dropout: share of the units that a training step leaves out.
    """

    outputs: Mapping[str, int]
    widths: Sequence[int]
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Map inputs (N, F) to outputs (N, outputs), (N,) of a task with one."""
        x = x.astype(jnp.float32)
        # Tasks may have any names, of columns of a file: "Dense_0", too.
        for k, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"Dense, shared {k}")(x))
            drop = nn.Dropout(self.dropout, name=f"Dropout, shared {k}")
            x = drop(x, deterministic=not train)
        heads = {task: nn.Dense(n, name=task)(x) for task, n in self.outputs.items()}
        return {
            task: head[:, 0] if head.shape[1] == 1 else head
            for task, head in heads.items()
        }
