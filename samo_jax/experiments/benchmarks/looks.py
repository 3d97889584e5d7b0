"""Agreement of the tasks' gradients through training, and their weights."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax

import samo_jax


class Look(TypedDict):
    """One look at a network in training.

    Attributes:
        cosine: mean between the shared gradients of two tasks.
        conflicts: share of pairs with a negative one.
        weights: weights of the tasks in the last step, None if there are none.
    """

    cosine: float
    conflicts: float
    weights: dict[str, float] | None


def agreement(gramian: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean cosine between the gradients of two tasks, and share of conflicts."""
    pairs = np.triu_indices(gramian.shape[0], 1)
    cosines = samo_jax.gradient_cosines(gramian)[pairs]
    return jnp.mean(cosines), samo_jax.conflict_rate(gramian)


def make_look(
    losses: Callable[..., Any], batch: Any, tasks: Sequence[str]
) -> Callable[[Any, Any, Any], Look]:
    """A look at parameters and states of optimiser and network; compiled once.

    Args:
        losses: `losses(params, batch, state)`, of each task, and what they leave.
        batch: always the same.
        tasks: two or more, which are also the names of the heads' parameters.
    """

    @jax.jit
    def agree(params, batch, state):
        task_grads = samo_jax.task_gradients(
            lambda params: losses(params, batch, state)[0], params
        )
        shared = {name: task_grads[name] for name in params if name not in tasks}
        return agreement(samo_jax.gramian(shared))

    def look(params, opt_state, net_state):
        cosine, conflicts = map(float, agree(params, batch, net_state))
        state = optax.tree.get(opt_state, "MultitaskState")
        weights = None
        if state is not None:
            # JAX sorts the losses by name.
            weights = dict(zip(sorted(tasks), state.weights.tolist(), strict=True))
        return Look(cosine=cosine, conflicts=conflicts, weights=weights)

    return look
