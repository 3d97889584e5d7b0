"""`log_losses`: any weighting on the logarithms of the losses."""

import jax.numpy as jnp

from samo_jax._checks import TaskValues
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting, check_weighting, weighting_update
from samo_jax._combiners.losses._loss_weighting import loss_weighting
from samo_jax._named import named


@named
@by_name("offset")
def log_losses(weighting: Weighting, *, offset: TaskValues = 0.0) -> Weighting:
    """A weighting on the gradients of `log L_i`, which do not depend on losses' scales.

    The gradients `g_i / L_i` have the Gramian `G_ij / (L_i L_j)`. Its weights v mean
    `d = sum_i v_i g_i / L_i`, that is weights `w_i = v_i / L_i` of the gradients
    themselves. With `mean()` this descends the geometric mean of the losses; SAMO's
    LOG_MGDA and LOG_CAGrad are `log_losses(mgda())` and the like. The losses must be
    those whose gradients make the Gramian: with `multitask`, don't override `losses`.

    Args:
        weighting: any `Weighting`. It gets the log losses as `losses`.
        offset: one number, or one per task, shape (K,) or by name: `L_i - offset_i`
            stands for L_i. Losses that can be negative need one below their minimum.

    Returns:
        A `Weighting`. While a loss is not finite or not above `offset`, or a weight
        would not be finite, it keeps its last weights (at first: uniform) and the
        weighting's state, and `LossWeightingState.unusable` counts.

    Raises:
        ValueError: if `weighting` is not a `Weighting`, or `offset` is neither one
            finite number nor one per task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.log_losses(samo_jax.mean())
        >>> losses = jnp.array([0.5, 4.0])
        >>> weights, _ = weighting.update(jnp.eye(2), weighting.init(2), losses=losses)
        >>> print(weights)
        [1.    0.125]

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    check_weighting("weighting", weighting)

    update = weighting_update(weighting)

    def step(losses, present, state, *, gramian, **extra_args):
        weights, state = update(
            gramian / losses[:, None] / losses[None, :],
            state,
            losses=jnp.where(present, jnp.log(losses), jnp.nan),
            present=present,
            **extra_args,
        )
        return weights / losses, state

    return loss_weighting(weighting.init, step, positive=True, offset=offset)._replace(
        needs_gramian=weighting.needs_gramian, degree=weighting.degree
    )
