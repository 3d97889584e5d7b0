"""`pcgrad`: conflicting gradients projected onto each other's normal planes."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import as_key
from samo_jax._combiners._keyed import keyed_weighting
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import (
    init_solver_state,
    or_last_weights,
)
from samo_jax._combiners.gramian._surgery import operate
from samo_jax._combiners.solvers._correlation import direct
from samo_jax._combiners.solvers._equilibrate import solve_gramian
from samo_jax._named import named


def pcgrad_weights(
    gramian: ArrayLike, key: jax.Array | int, *, present: ArrayLike | None = None
) -> jax.Array:
    """Weights of the mean of the projected gradients.

    For each task i, `h = g_i` is projected for the other tasks j in a random order of
    its own: where `<h, g_j> < 0`, `h <- h - <h, g_j> / ||g_j||^2 g_j`. The direction is
    the *mean* of the K projected gradients, `d = J'w`; TorchJD and LibMTL take the sum,
    which is K times this.

    For two tasks d conflicts with neither; for more it may. It depends on the order of
    the draws, hence also on that of the tasks. All-zero and non-finite Gramians give
    uniform weights; a task with a zero gradient has weight 0. `w` does not change when
    G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        key: typed PRNG key or int.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.

    Returns:
        w, shape (K,), non-negative.

    Raises:
        ValueError: if `gramian` is not square or `key` no key.

    Examples:
        >>> import jax, jax.numpy as jnp, samo_jax
        >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 2.0]])
        >>> print(samo_jax.pcgrad_weights(gramian, jax.random.key(0)))
        [1.   0.75]

    References:
        Yu, Kumar, Gupta, Levine, Hausman and Finn, `Gradient Surgery for Multi-Task
        Learning <https://arxiv.org/abs/2001.06782>`_, 2020
    """
    return _solve(gramian, as_key(key), present)[0]


@jax.jit
def _solve(gramian, key, present):
    return solve_gramian(
        gramian,
        lambda problem: direct(
            operate(problem, jnp.zeros_like(problem.matrix), key)[0]
        ),
        present=present,
    )


@named
def pcgrad(key: jax.Array | int) -> Weighting:
    """`pcgrad_weights` as a weighting for `multitask` and `samo`.

    Args:
        key: typed PRNG key or int. It stays constant in the state; draws fold in the
            number of the update.

    Returns:
        A `Weighting`. On a non-finite Gramian it keeps its last weights;
        `SolverState.info` says so.

    Raises:
        ValueError: if `key` is None.

    Examples:
        >>> import jax, jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.pcgrad(jax.random.key(0))
        >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 2.0]])
        >>> weights, _ = weighting.update(gramian, weighting.init(2))
        >>> print(weights)
        [1.   0.75]
    """

    def update(key, gramian, memory, present=None):
        return or_last_weights(_solve(gramian, key, present), memory, present)

    return keyed_weighting(key, init_solver_state, update)
