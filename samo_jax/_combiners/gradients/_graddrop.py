"""`graddrop`: gradient sign dropout."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samo_jax._checks import TaskValues, as_numbers, check_key
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Aggregator
from samo_jax._keys import raw_key, typed_key
from samo_jax._named import named
from samo_jax._tasks import count_tasks, per_task, uniform_weights
from samo_jax._tree import accumulator_dtype, safe_divide


class GradDropState(NamedTuple):
    """State of `graddrop`.

    Attributes:
        key: the data of the PRNG key as given, uint32; draws fold in the step.
        step: shape (), int32, updates done.
    """

    key: jax.Array
    step: jax.Array


@named
@by_name("leak")
def graddrop(key: jax.Array | int, leak: TaskValues = 0.0) -> Aggregator:
    """GradDrop: each coordinate follows the positive or the negative gradients.

    With `P = (1 + sum_i g_i / sum_i |g_i|) / 2` in each coordinate, the positive
    entries stay with probability P, and the negative ones otherwise:
    `d = (1/K) sum_i (leak_i + (1 - leak_i) kept_i) g_i`. Coordinates in which the signs
    agree are those of the mean gradient. K times this d is the published sum.

    Here the shared parameters' gradients take part, as in TorchJD and SAMO; the paper
    and LibMTL apply the method to a representation's.

    Args:
        key: typed PRNG key or int.
        leak: share of the dropped entries that passes, in [0, 1], a number, or
            one per task, shape (K,) or by name. 1 is the mean gradient.

    Returns:
        An `Aggregator`, whose weights are uniform.

    Raises:
        ValueError: if `leak` is outside [0, 1] or, in `update`, not one per task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> combiner = samo_jax.graddrop(0)
        >>> task_grads = jnp.array([[-4.0, 1.0, 2.0], [6.0, 1.0, 4.0]])
        >>> state = combiner.init(task_grads[0], 2)
        >>> direction, _, _ = combiner.update(task_grads, state, losses=jnp.ones(2))
        >>> print(direction)
        [3. 1. 3.]

    References:
        Chen et al., `Just Pick a Sign: Optimizing Deep Multitask Models with Gradient
        Sign Dropout <https://arxiv.org/abs/2010.06808>`_, 2020
    """
    _check_leak(leak)
    check_key(key)

    def init(params, num_tasks):
        del params, num_tasks
        return GradDropState(raw_key(key), jnp.zeros((), jnp.int32))

    def update(task_grads, state, *, losses=None, present=None, **extra_args):
        del extra_args
        num_tasks = count_tasks(losses, present, task_grads)
        weights = uniform_weights(num_tasks, present)
        leaks = per_task("leak", leak, num_tasks, 0)
        draw = jax.random.fold_in(typed_key(state.key, key), state.step)
        leaves, treedef = jax.tree.flatten(task_grads)
        direction = [
            _drop(jax.random.fold_in(draw, i), leaf, leaks, jnp.max(weights))
            for i, leaf in enumerate(leaves)
        ]
        return (
            treedef.unflatten(direction),
            weights,
            GradDropState(state.key, jnp.asarray(optax.safe_increment(state.step))),
        )

    return Aggregator(init, update)


def _drop(key, leaf, leaks, weight):
    dtype = accumulator_dtype()
    grads = leaf.astype(dtype)
    agreement = safe_divide(jnp.sum(grads, axis=0), jnp.sum(jnp.abs(grads), axis=0))
    positive = (1 + agreement) / 2 > jax.random.uniform(key, leaf.shape[1:], dtype)
    kept = (positive[None] & (grads > 0)) | (~positive[None] & (grads < 0))
    leaks = jnp.expand_dims(leaks, tuple(range(1, grads.ndim)))
    total = jnp.sum(jnp.where(kept, grads, leaks * grads), axis=0)
    return (weight * total).astype(leaf.dtype)


def _check_leak(leak):
    if isinstance(leak, jax.core.Tracer):
        return
    values = as_numbers("leak", leak)
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError(
            f"`leak` must be in [0, 1], got {leak}. 0 drops, 1 is the mean gradient."
        )
