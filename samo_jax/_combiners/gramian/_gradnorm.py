"""`gradnorm`: learnt weights that balance gradient norms and training rates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._checks import check_nonnegative, check_positive
from samo_jax._combiners._task_vectors import required_losses
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.solvers._correlation import direct, relative_norms
from samo_jax._combiners.solvers._equilibrate import (
    Equilibrated,
    Solution,
    solve_gramian,
)
from samo_jax._named import named
from samo_jax._tasks import present_tasks
from samo_jax._tree import accumulator_dtype, safe_divide, zero_unless


class GradNormState(NamedTuple):
    """State of `gradnorm`.

    Attributes:
        logits: s, shape (K,); the next weights are softmax(s) over the present tasks.
        initial_losses: l(0), shape (K,), of the task's first update with finite losses.
        started: shape (K,), bool, whether there was one.
    """

    logits: jax.Array
    initial_losses: jax.Array
    started: jax.Array


@named
def gradnorm(alpha: float = 1.5, learning_rate: float = 0.025) -> Weighting:
    """Weights `w = softmax(s)`, learnt so that weighted norms follow training rates.

    With weighted norms `n_i = w_i ||g_i||`, their mean nbar over the tasks, and inverse
    training rates `r_i = (l_i / l_i(0)) / mean_j(l_j / l_j(0))`, each update takes one
    gradient step on `sum_i |n_i - nbar r_i^alpha| / nbar` in s, holding nbar and r:

    `s_i <- s_i - learning_rate (e_i n_i - w_i sum_j e_j n_j) / nbar`,
    `e_i = sign(n_i - nbar r_i^alpha)`.

    Dividing by nbar makes the step independent of the gradients' scale. The weights sum
    to one (to K in the references), and an update returns those from before its step:
    uniform at first. Norms are over all shared leaves (the paper: the last shared
    layer's).

    Tasks with a zero gradient take no part in the step. A loss ratio that is negative
    counts as 0. A non-finite Gramian or loss leaves the state as it is. What an absent
    task has learnt waits for it.

    Args:
        alpha: strength of the pull towards equal training rates, non-negative.
        learning_rate: step on the logits, positive.

    Returns:
        A `Weighting` that needs `losses`.

    Raises:
        ValueError: if `alpha` or `learning_rate` is out of range; in `update`, if
            `losses` is None.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.gradnorm(learning_rate=0.1)
        >>> state, gramian = weighting.init(2), jnp.diag(jnp.array([1.0, 16.0]))
        >>> for _ in range(50):
        ...     weights, state = weighting.update(gramian, state, losses=jnp.ones(2))
        >>> print(weights.round(1))
        [0.8 0.2]

    References:
        Chen, Badrinarayanan, Lee and Rabinovich, `GradNorm: Gradient Normalization for
        Adaptive Loss Balancing in Deep Multitask Networks
        <https://arxiv.org/abs/1711.02257>`_, 2018
    """
    check_nonnegative("alpha", alpha, "0 pulls towards equal norms.")
    check_positive("learning_rate", learning_rate, "0.025 is the default.")

    def init(num_tasks: int) -> GradNormState:
        ones = jnp.ones((num_tasks,), accumulator_dtype())
        return GradNormState(jnp.zeros_like(ones), ones, jnp.zeros((num_tasks,), bool))

    def update(gramian, state, *, losses=None, present=None, **extra_args):
        del extra_args
        losses = required_losses(losses, "gradnorm()", gramian.shape[0])
        present = present_tasks(present, len(losses))
        losses = jnp.where(present, losses, 1)
        weights = jax.nn.softmax(state.logits, where=present)
        initial = jnp.where(state.started, state.initial_losses, losses)

        def logits_gradient(problem: Equilibrated) -> Solution:
            active = problem.active
            count = jnp.maximum(jnp.sum(active), 1).astype(weights.dtype)
            norms = jnp.where(active, weights * relative_norms(problem), 0)
            norms = safe_divide(norms, jnp.sum(norms) / count)
            ratios = jnp.maximum(losses / jnp.where(initial == 0, 1, initial), 0)
            mean_ratio = jnp.sum(jnp.where(active, ratios, 0)) / count
            rates = jnp.where(mean_ratio > 0, safe_divide(ratios, mean_ratio), 1)
            pulls = jnp.sign(norms - rates**alpha) * norms
            # The softmax of the active tasks alone: the others' logits stay.
            shares = safe_divide(
                jnp.where(active, weights, 0), jnp.sum(weights, where=active)
            )
            return direct(pulls - shares * jnp.sum(pulls))

        gradient, info = solve_gramian(gramian, logits_gradient)
        usable = info.finite & jnp.isfinite(losses).all() & jnp.isfinite(gradient).all()
        usable &= present
        # Where no gradient is there, `solve_gramian` falls back to uniform numbers.
        moved = usable & jnp.any(jnp.diagonal(gramian) > 0)
        return weights, GradNormState(
            logits=state.logits - zero_unless(moved, learning_rate * gradient),
            initial_losses=jnp.where(usable, initial, state.initial_losses),
            started=state.started | usable,
        )

    return Weighting(init, update)
