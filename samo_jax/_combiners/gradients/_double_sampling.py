"""`double_sampling`: products of two independent samples of the gradients."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from samo_jax._combiners._task_vectors import task_norms
from samo_jax._gramian import gramian
from samo_jax._tasks import uniform_weights
from samo_jax._tree import PyTree, accumulator_dtype


def double_sampling(
    task_grads: PyTree,
    sample_grads: Sequence[PyTree],
    present: jax.Array,
    method: str,
) -> tuple[PyTree, jax.Array]:
    """The gradients J to combine, and the unbiased Gramian `M = J1 J2' / m^2`.

    With one further sample J1 and J2 are the two there are, and J their mean; with two,
    J1 and J2 are these, and J, which then is independent of M, `task_grads`. The scale
    is `m = mean_i sqrt(||J1_i|| ||J2_i||)`, over the present tasks.
    """
    num_tasks = len(present)
    if len(sample_grads) not in (1, 2):
        raise ValueError(
            f"`sample_grads` is required by {method}(), one or two further samples of "
            f"the task gradients, got {len(sample_grads)}: call tx.update(grads, "
            "state, params, loss_fn=loss_fn, sample_loss_fns=[other_loss_fn]) with the "
            "losses of an independent batch."
        )
    if len(sample_grads) == 1:
        first, second = task_grads, sample_grads[0]
        task_grads = jax.tree.map(_mean, first, second)
    else:
        first, second = sample_grads
    if not jax.tree.leaves(first):
        return task_grads, jnp.zeros((num_tasks, num_tasks), accumulator_dtype())
    norms = [task_norms(sample, num_tasks) for sample in (first, second)]
    scale = jnp.sqrt(norms[0]) * jnp.sqrt(norms[1])
    scale = jnp.sum(uniform_weights(num_tasks, present) * scale)
    scale = jnp.where(scale == 0, 1, scale)
    return task_grads, gramian(first, second) / scale / scale


def _mean(leaf: jax.Array, other: jax.Array) -> jax.Array:
    dtype = accumulator_dtype()
    return (leaf.astype(dtype) / 2 + other.astype(dtype) / 2).astype(leaf.dtype)
