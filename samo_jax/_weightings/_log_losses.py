"""Any solver on the logarithms of the losses."""

import jax.numpy as jnp

from samo_jax._solvers import Solver
from samo_jax._solvers._arguments import Vector
from samo_jax._solvers._base import solver_update
from samo_jax._weightings._base import weighting


def log_losses(solver: Solver, *, offset: Vector = 0.0) -> Solver:
    """A solver on the gradients of `log L_i`, which do not depend on losses' scales.

    The gradients `g_i / L_i` have the Gramian `G_ij / (L_i L_j)`. Its weights v mean
    `d = sum_i v_i g_i / L_i`, that is weights `w_i = v_i / L_i` of the gradients
    themselves. With `mean()` this descends the geometric mean of the losses; SAMO's
    LOG_MGDA and LOG_CAGrad are `log_losses(mgda())` and the like. The losses must be
    those whose gradients make the Gramian: with `multitask`, don't override `losses`.

    Args:
        solver: any `Solver`. It gets the log losses as `losses`.
        offset: one number or one per task: `L_i - offset_i` stands for L_i. Losses that
            can be negative need one below their minimum.

    Returns:
        A `Solver`. While a loss is not finite or not above `offset`, or a weight would
        not be finite, it keeps its last weights (at first: uniform) and the solver's
        state, and `WeightingState.unusable` counts.

    Raises:
        ValueError: if `solver` is not a `Solver`, or `offset` is neither one finite
            number nor one per task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> solver = samo_jax.log_losses(samo_jax.mean())
        >>> losses = jnp.array([0.5, 4.0])
        >>> weights, _ = solver.update(jnp.eye(2), solver.init(2), losses=losses)
        >>> print(weights)
        [1.    0.125]

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    if not isinstance(solver, Solver):
        raise ValueError(
            f"`solver` must be a samo_jax.Solver, got {solver!r}. Call the factory: "
            "`samo_jax.log_losses(samo_jax.mgda())`."
        )

    update = solver_update(solver)

    def step(losses, present, state, *, gramian, **extra_args):
        weights, state = update(
            gramian / losses[:, None] / losses[None, :],
            state,
            losses=jnp.where(present, jnp.log(losses), jnp.nan),
            present=present,
            **extra_args,
        )
        return weights / losses, state

    return weighting(solver.init, step, positive=True, offset=offset)._replace(
        linear=solver.linear
    )
