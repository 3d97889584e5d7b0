"""`excess_mtl`: weights by estimated excess risk."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._checks import check_nonnegative
from samo_jax._combiners._task_vectors import task_norms
from samo_jax._combiners._types import Aggregator
from samo_jax._gramian import combine
from samo_jax._named import named
from samo_jax._tasks import present_tasks, uniform_weights
from samo_jax._tree import (
    PyTree,
    accumulator_dtype,
    all_finite,
    safe_divide,
    select,
    zeros_per_task,
)


class ExcessMTLState(NamedTuple):
    """State of `excess_mtl`.

    Attributes:
        log_weights: shape (K,), logarithms of the weights, which sum to one; of uniform
            ones at first.
        baseline: shape (K,), the first positive excess risk of every task; 0 before.
        sum_of_squares: sums S like the shared parameters with a leading task axis,
            float32 (float64 under x64); 0 at first.
    """

    log_weights: jax.Array
    baseline: jax.Array
    sum_of_squares: PyTree


@named
def excess_mtl(eta: float = 1e-2) -> Aggregator:
    """ExcessMTL: more weight to the tasks furthest from their optimum.

    The excess risk is estimated with a diagonal (AdaGrad) curvature,
    `S_i <- S_i + g_i^2`, `r_i = sum_j g_ij^2 / sqrt(S_ij)`, relative to its first
    value: `w <- normalise(w exp(eta r / r_first))`, `d = sum_i w_i g_i`.

    A task's first step gives its baseline alone, as in LibMTL, whose weights are K
    times these. The weights do not depend on the gradients' scale: the references add
    1e-7 to S, which rules it for small gradients. Costs K float32 copies of the shared
    parameters.

    Args:
        eta: step size of the weights, non-negative: 0.01 in LibMTL, 1 in TorchJD.

    Returns:
        An `Aggregator`. On a step with a gradient that is not finite its state and
        weights do not change; the direction is then not finite either.

    Raises:
        ValueError: if `eta` is negative.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> combiner = samo_jax.excess_mtl(eta=1.0)
        >>> state = combiner.init(jnp.zeros(2), 2)
        >>> for scale in (1.0, 2.0):  # the first task does not converge
        ...     task_grads = jnp.array([[scale, 0.0], [0.0, 1.0]])
        ...     direction, weights, state = combiner.update(
        ...         task_grads, state, losses=jnp.ones(2)
        ...     )
        ...     print(weights.round(2))
        [0.5 0.5]
        [0.75 0.25]

    References:
        He et al., `Robust Multi-Task Learning with Excess Risks
        <https://arxiv.org/abs/2402.02009>`_, 2024
    """
    check_nonnegative("eta", eta, "0 keeps the weights uniform.")

    def init(params, num_tasks):
        return ExcessMTLState(
            log_weights=jnp.log(uniform_weights(num_tasks)),
            baseline=jnp.zeros((num_tasks,), accumulator_dtype()),
            sum_of_squares=zeros_per_task(params, num_tasks, accumulator_dtype()),
        )

    def update(task_grads, state, *, present=None, **extra_args):
        del extra_args
        present = present_tasks(present, len(state.baseline))
        squares = jax.tree.map(
            lambda total, leaf: total + jnp.square(leaf.astype(total.dtype)),
            state.sum_of_squares,
            task_grads,
        )
        # g^2 / sqrt(S) = |g^2 / sqrt(S)|: its sum is the squared norm of the root.
        roots = jax.tree.map(
            lambda total, leaf: safe_divide(
                jnp.abs(leaf.astype(total.dtype)), jnp.sqrt(jnp.sqrt(total))
            ),
            squares,
            task_grads,
        )
        risks = jnp.square(task_norms(roots, len(state.baseline)))
        known = state.baseline > 0
        growth = jnp.where(known, safe_divide(risks, state.baseline), 0)
        # Present tasks change their weights among themselves.
        old = state.log_weights
        logits = old + jnp.asarray(eta, growth.dtype) * growth
        logits += _log_total(old, present) - _log_total(logits, present)
        new = ExcessMTLState(
            log_weights=jnp.where(present, logits, old),
            baseline=jnp.where(known, state.baseline, risks),
            sum_of_squares=squares,
        )
        state = select(all_finite(new), new, state)
        weights = jax.nn.softmax(state.log_weights, where=present)
        return combine(weights, task_grads), weights, state

    return Aggregator(init, update)


def _log_total(logits: jax.Array, present: jax.Array) -> jax.Array:
    """The logarithm of the present tasks' summed weights."""
    return jax.nn.logsumexp(logits, where=present)
