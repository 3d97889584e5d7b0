"""`nash_mtl`: the tasks' Nash bargaining solution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, Vector, check_count
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.gramian._fairgrad import fairgrad, fairgrad_weights
from samo_jax._combiners.gramian._gramian_weighting import SolverState
from samo_jax._named import named
from samo_jax._tasks import present_tasks
from samo_jax._tree import zero_unless


def nash_mtl_weights(
    gramian: ArrayLike,
    *,
    preference: Vector | None = None,
    present: ArrayLike | None = None,
) -> jax.Array:
    """Weights of the Nash bargaining direction: `(Gw)_i = p_i / w_i`, w > 0.

    They maximise the product of the tasks' descent rates `<g_i, d>` (to the powers p,
    their bargaining powers) over directions of one length. It is `fairgrad_weights`
    with alpha = 1, exact where the reference alternates 20 convex programs. Every guard
    of `fairgrad_weights` applies. The direction always has norm sqrt(K) and does not
    change when single gradients are rescaled; the reference then clips it to norm 1
    (`optax.clip_by_global_norm`).

    Args:
        gramian: G, shape (K, K), inner products of the task gradients.
        preference: p, shape (K,), positive; its scale does not matter. None: ones.
        present: shape (K,), bool, the tasks that take part; others get the weight 0.
            None: all.

    Returns:
        w, shape (K,).

    Raises:
        ValueError: if `gramian` is not square, or `preference` not K positive numbers.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(samo_jax.nash_mtl_weights(jnp.diag(jnp.array([1.0, 4.0]))))
        [1.  0.5]

    References:
        Navon et al., `Multi-Task Learning as a Bargaining Game
        <https://arxiv.org/abs/2202.01017>`_, 2022
    """
    return fairgrad_weights(gramian, 1.0, preference=preference, present=present)


class NashState(NamedTuple):
    """State of `nash_mtl`.

    Attributes:
        step: shape (), int32, updates done so far.
        solver_state: state of the last solve, with the weights in use.
        solved_for: shape (K,), bool, the tasks that were present in the last update.
    """

    step: jax.Array
    solver_state: SolverState
    solved_for: jax.Array


@named
@by_name("preference")
def nash_mtl(
    update_every: int = 1, *, preference: TaskValues | None = None
) -> Weighting:
    """`nash_mtl_weights` as a weighting, optionally solved every few steps only.

    Args:
        update_every: steps between two solves; the weights are kept in between, unless
            a task comes or goes.
        preference: p, shape (K,) or by name, positive, of any scale. None: uniform.

    Returns:
        A `Weighting`.

    Raises:
        ValueError: if `update_every` is not a positive int, or `preference` not
            positive.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.nash_mtl(update_every=2)
        >>> weights, state = weighting.update(jnp.eye(2), weighting.init(2))
        >>> weights, state = weighting.update(4 * jnp.eye(2), state)
        >>> print(weights)
        [1. 1.]
    """
    check_count("update_every", update_every, "1 solves at every step.")
    inner = fairgrad(1.0, preference=preference)

    def init(num_tasks):
        return NashState(
            jnp.zeros((), jnp.int32),
            inner.init(num_tasks),
            present_tasks(None, num_tasks),
        )

    def update(gramian, state, *, present=None, **extra_args):
        del extra_args
        present = present_tasks(present, len(gramian))
        is_due = state.step % update_every == 0
        weights, solver_state = lax.cond(
            is_due | jnp.any(present != state.solved_for),
            lambda: inner.update(gramian, state.solver_state, present=present),
            lambda: (
                zero_unless(present, state.solver_state.last_weights),
                state.solver_state,
            ),
        )
        return weights, NashState(state.step + 1, solver_state, present)

    return Weighting(init, update, degree=0.0)
