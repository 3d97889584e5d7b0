"""`gradvac`: gradient surgery towards a running average of the cosines."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._checks import as_key, check_share
from samo_jax._combiners._keyed import keyed_weighting
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._gramian_weighting import (
    SolverState,
    init_solver_state,
    or_last_weights,
)
from samo_jax._combiners.gramian._surgery import operate
from samo_jax._combiners.solvers._correlation import direct
from samo_jax._combiners.solvers._equilibrate import (
    check_gramian,
    conclude,
    equilibrate,
)
from samo_jax._named import named
from samo_jax._tree import accumulator_dtype


def gradvac_weights(
    gramian: ArrayLike,
    targets: ArrayLike,
    key: jax.Array,
    *,
    present: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weights of the mean of the gradients aligned to cosine targets.

    For each task i, `h = g_i` meets the other tasks j in a random order of its own:
    where `phi = cos(h, g_j)` is below the target t_ij, h moves along g_j until it has
    that cosine,

    `h <- h + ||h|| (t sqrt(1 - phi^2) - phi sqrt(1 - t^2)) / (||g_j|| sqrt(1 - t^2))
    g_j`.

    The direction is the *mean* of the K moved gradients, `d = J'w`; TorchJD and LibMTL
    take the sum, which is K times this. Zero targets are PCGrad.

    `1 - t^2` is bounded below by the square root of the machine epsilon. All-zero and
    non-finite Gramians give uniform weights; a task with a zero gradient has weight 0.
    `w` does not change when G is scaled.

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        targets: cosine targets t, shape (K, K), in [-1, 1]; the diagonal is not used.
        key: typed PRNG key.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.

    Returns:
        w, shape (K,), and the cosines phi as met, before h moved, shape (K, K). Where
        there is none (the diagonal, zero gradients, absent tasks, a non-finite
        Gramian), the target.

    Raises:
        ValueError: if `gramian` is not square or `targets` not of the same shape.

    Examples:
        >>> import jax, jax.numpy as jnp, samo_jax
        >>> gramian = jnp.array([[1.0, 0.0], [0.0, 4.0]])
        >>> targets = jnp.full((2, 2), 0.5)
        >>> weights, cosines = samo_jax.gradvac_weights(
        ...     gramian, targets, jax.random.key(0)
        ... )
        >>> print(weights)
        [1.07... 0.64...]

    References:
        Wang, Tsvetkov, Firat and Cao, `Gradient Vaccine: Investigating and Improving
        Multi-task Optimization in Massively Multilingual Models
        <https://arxiv.org/abs/2010.05874>`_, 2021
    """
    weights, cosines, _ = _solve(gramian, targets, as_key(key), present)
    return weights, cosines


@jax.jit
def _solve(gramian, targets, key, present):
    gramian = check_gramian(gramian)
    targets = jnp.asarray(targets, accumulator_dtype())
    if targets.shape != gramian.shape:
        raise ValueError(
            f"`targets` must have the shape of `gramian`, {gramian.shape}, got "
            f"{targets.shape}. `jnp.zeros_like(gramian)` is PCGrad."
        )

    problem, finite = equilibrate(gramian, present)
    with jax.default_matmul_precision("highest"):
        weights, cosines = operate(problem, targets, key)
    met = problem.active[:, None] & problem.active[None, :] & finite
    met &= ~jnp.eye(len(targets), dtype=bool)
    weights, info = conclude(direct(weights), problem, finite)
    return weights, jnp.where(met, cosines, targets), info


class GradVacState(NamedTuple):
    """Memory of `gradvac`.

    Attributes:
        targets: shape (K, K), the running averages of the cosines.
        solver_state: `SolverState`.
    """

    targets: jax.Array
    solver_state: SolverState


@named
def gradvac(key: jax.Array | int, beta: float = 0.5) -> Weighting:
    """`gradvac_weights` towards running averages, `t <- (1 - beta) t + beta phi`.

    The averages start at zero: the first update is PCGrad's.

    Args:
        key: typed PRNG key or int. It stays constant in the state; draws fold in the
            number of the update.
        beta: share of the new cosines in the averages, in [0, 1]. 0 is PCGrad.

    Returns:
        A `Weighting`. On a non-finite Gramian it keeps its averages and last weights;
        `SolverState.info` says so.

    Raises:
        ValueError: if `key` is None or `beta` not in [0, 1].

    Examples:
        >>> import jax, jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.gradvac(jax.random.key(0))
        >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 2.0]])
        >>> weights, state = weighting.update(gramian, weighting.init(2))
        >>> print(weights, state.memory.targets[0, 1])
        [1.   0.75] -0.35...
    """
    check_share("beta", beta, "0 is PCGrad.")

    def init(num_tasks):
        targets = jnp.zeros((num_tasks, num_tasks), accumulator_dtype())
        return GradVacState(targets, init_solver_state(num_tasks))

    def update(key, gramian, memory, present=None):
        targets = memory.targets
        weights, cosines, info = _solve(gramian, targets, key, present)
        weights, solver_state = or_last_weights(
            (weights, info), memory.solver_state, present
        )
        return weights, GradVacState(targets + beta * (cosines - targets), solver_state)

    return keyed_weighting(key, init, update)
