"""`krum`: the gradients that have the closest neighbours."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from samo_jax._checks import check_count
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import gramian_weighting
from samo_jax._combiners.solvers._correlation import common_scale, direct
from samo_jax._combiners.solvers._equilibrate import (
    Equilibrated,
    Solution,
    solve_gramian,
)
from samo_jax._named import named
from samo_jax._tree import safe_divide, zero_unless


def krum_weights(
    gramian: ArrayLike,
    num_byzantine: int,
    num_selected: int = 1,
    *,
    present: ArrayLike | None = None,
) -> jax.Array:
    """Weights of (Multi-)Krum: the mean of the gradients with the lowest scores.

    The score of task i is the sum of its `max(K - num_byzantine - 2, 1)` smallest
    squared distances `||g_i - g_j||^2 = G_ii + G_jj - 2 G_ij` to other tasks. The
    num_selected lowest scores get the weight 1 / num_selected, the others 0; of equal
    ones, the first (of two tasks, always). TorchJD sums the distances, not their
    squares. Where tasks are absent, K is the number of the present ones, and no more
    than these are selected.

    A zero gradient takes part in the distances as any other; its own weight does not
    matter, and is 0. Distances are exact to the rounding of the larger norm, and never
    negative. All-zero and non-finite Gramians give uniform weights. `w` does not change
    when G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        num_byzantine: number of outliers to withstand, from 0 to max(K - 3, 0).
        num_selected: number of gradients to average, from 1 to K.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.

    Returns:
        w, shape (K,).

    Raises:
        ValueError: if `gramian` is not square, or `num_byzantine` or `num_selected` is
            not an int in its range.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> gradients = jnp.array([[1.0], [1.5], [1.125], [-9.0]])
        >>> print(samo_jax.krum_weights(gradients @ gradients.T, 1, 2))
        [0.5 0.  0.5 0. ]

    References:
        Blanchard, El Mhamdi, Guerraoui and Stainer, `Machine Learning with Adversaries:
        Byzantine Tolerant Gradient Descent
        <https://papers.nips.cc/paper/2017/hash/f4b9ec30ad9f68f89b29639786cb62ef-Abstract.html>`_,
        2017
    """
    _check_counts(num_byzantine, num_selected)
    return _solve(gramian, num_byzantine, num_selected, present)[0]


def _check_counts(num_byzantine, num_selected):
    check_count("num_byzantine", num_byzantine, "0 trusts every task.", least=0)
    check_count("num_selected", num_selected, "1 is Krum, more is Multi-Krum.")


def _check_num_tasks(num_tasks, num_byzantine, num_selected):
    if num_byzantine > max(num_tasks - 3, 0):
        raise ValueError(
            f"`num_byzantine` must be at most max(K - 3, 0), got {num_byzantine} for "
            f"K = {num_tasks} tasks. Krum needs K - f - 2 neighbours."
        )
    if num_selected > num_tasks:
        raise ValueError(
            f"`num_selected` must be at most K, got {num_selected} for K = {num_tasks} "
            "tasks. K averages all."
        )


@partial(jax.jit, static_argnums=(1, 2))
def _solve(gramian, num_byzantine, num_selected, present):
    def select(problem: Equilibrated) -> Solution:
        products = common_scale(problem)
        num_tasks = products.shape[0]
        _check_num_tasks(num_tasks, num_byzantine, num_selected)
        squares = jnp.diagonal(products)
        distances = squares[:, None] + squares[None, :] - 2 * products
        others = problem.present[None, :] & ~jnp.eye(num_tasks, dtype=bool)
        distances = jnp.where(others, jnp.maximum(distances, 0), jnp.inf)
        count = jnp.maximum(problem.num_present - num_byzantine - 2, 1)
        nearest = jnp.sort(distances, axis=1)
        counts = jnp.arange(num_tasks, dtype=count.dtype) < count
        scores = jnp.sum(zero_unless(counts[None, :], nearest), axis=1)
        # Before absent ones comes even a task without neighbours.
        farthest = jnp.finfo(scores.dtype).max
        scores = jnp.where(problem.present, jnp.minimum(scores, farthest), jnp.inf)
        _, chosen = lax.top_k(-scores, num_selected)
        ones = jnp.zeros_like(squares).at[chosen].set(1)
        weights = zero_unless(problem.present, ones)
        return direct(safe_divide(weights, jnp.sum(weights)))

    return solve_gramian(gramian, select, present=present)


@named
def krum(num_byzantine: int, num_selected: int = 1) -> Weighting:
    """`krum_weights` as a weighting for `multitask` and `samo`.

    Args:
        num_byzantine: number of outliers to withstand, from 0 to max(K - 3, 0).
        num_selected: number of gradients to average, from 1 to K.

    Returns:
        A `Weighting`. On a non-finite Gramian it keeps its last weights;
        `SolverState.info` says so.

    Raises:
        ValueError: if `num_byzantine` or `num_selected` is not an int in its range; in
            `init` and `update`, if K is too small for them.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.krum(num_byzantine=1)
        >>> gradients = jnp.array([[1.0], [1.5], [1.125], [-9.0]])
        >>> weights, _ = weighting.update(gradients @ gradients.T, weighting.init(4))
        >>> print(weights)
        [1. 0. 0. 0.]
    """
    _check_counts(num_byzantine, num_selected)
    weighting = gramian_weighting(
        lambda gramian, present: _solve(gramian, num_byzantine, num_selected, present)
    )

    def init(num_tasks):
        _check_num_tasks(num_tasks, num_byzantine, num_selected)
        return weighting.init(num_tasks)

    return weighting._replace(init=init)
