"""Agreement of the tasks' gradients through training, and how they are weighted."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax

import samo_jax
from samo_jax.experiments.training.optimizers import SHARED, Frozen, task_labels


class Agreement(TypedDict):
    """Agreement of the tasks' gradients at one point of training.

    Attributes:
        cosine: mean between the shared gradients of two tasks.
        conflicts: share of pairs with a negative one.
        weights: weights of the tasks in the last step, None if there are none.
        directions: mean cosines with the task's gradient, of a study that takes them.
    """

    cosine: float
    conflicts: float
    weights: dict[str, float] | None
    directions: NotRequired[dict[str, float]]


Diagnose = Callable[[Any, Any, Any], Agreement]


def make_diagnose(
    losses: Callable[..., Any],
    batch: Any,
    tasks: Sequence[str],
    frozen: Frozen | None = None,
) -> Diagnose:
    """A function of parameters and the states of optimiser and network; compiled once.

    Args:
        losses: `losses(params, batch, state)`, of each task, and what they leave.
        batch: always the same.
        tasks: two or more, which are also the names of the heads' parameters.
        frozen: see `Benchmark`.
    """
    pairs = np.triu_indices(len(tasks), 1)
    labels = partial(task_labels, tuple(tasks), frozen=frozen)
    param_labels = labels if frozen else None

    @jax.jit
    def agree(params, batch, state):
        task_grads = samo_jax.task_gradients(
            lambda params: losses(params, batch, state)[0],
            params,
            param_labels=param_labels,
        )
        shared = jax.tree.map(
            lambda label, of: of if label == SHARED else None,
            labels(params),
            task_grads,
        )
        gramian = samo_jax.gramian(shared)
        cosines = samo_jax.gradient_cosines(gramian)[pairs]
        return jnp.mean(cosines), samo_jax.conflict_rate(gramian)

    def diagnose(params, opt_state, net_state):
        cosine, conflicts = map(float, agree(params, batch, net_state))
        state = optax.tree.get(opt_state, "MultitaskState")
        weights = None
        if state is not None:
            # JAX sorts the losses by name.
            weights = dict(zip(sorted(tasks), state.weights.tolist(), strict=True))
        return Agreement(cosine=cosine, conflicts=conflicts, weights=weights)

    return diagnose
