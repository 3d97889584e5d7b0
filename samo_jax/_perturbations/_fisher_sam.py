"""`fisher_sam`: a radius that shrinks where the model's output is sensitive."""

import jax
from jax import lax

from samo_jax._checks import ScalarOrSchedule, check_nonnegative, resolve
from samo_jax._labels import Mask
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation
from samo_jax._perturbations._directions import DirectionLike


@named
def fisher_sam(
    rho: ScalarOrSchedule = 0.1,
    eta: ScalarOrSchedule = 1.0,
    *,
    direction: DirectionLike = "global",
    mask: Mask = None,
) -> Perturbation:
    """Fisher SAM: `eps = rho F^-1 p / sqrt(p' F^-1 p)` with `F = 1 + eta p^2`.

    The worst case within `eps' F eps <= rho^2`, F the diagonal empirical Fisher matrix
    (the square of the batch's mean gradient), regularised by the identity. eta = 0 is
    SAM. Like `monge_sam`, the full matrix of rank one, it depends on the loss's scale.

    Args:
        rho: radius, non-negative, or a schedule of the step.
        eta: strength of the metric, non-negative, or a schedule.
        direction: see `sam`. A `Direction` must keep the gradient's length. On a
            task's head the gradient of the mean loss is 1/K of the task's own: with
            heads choose "local".
        mask: see `sam`.

    Returns:
        A `Perturbation` for `multitask` and `single_task`.

    Raises:
        ValueError: if `rho` or `eta` is negative.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tx = samo_jax.single_task(samo_jax.fisher_sam(rho=1.0))
        >>> loss_fn = lambda w: jnp.sum(w**2) / 2
        >>> params = jnp.array([3.0])
        >>> updates, _ = tx.update(params, tx.init(params), params, loss_fn=loss_fn)
        >>> print(updates)
        [3.31...]

    References:
        Kim, Li, Hu and Hospedales, `Fisher SAM: Information Geometry and Sharpness
        Aware Minimisation <https://arxiv.org/abs/2206.04920>`_, 2022
    """
    check_nonnegative("eta", eta, "0 is SAM.")

    def stretch(params, p, step):
        del params
        strength = resolve("eta", eta, step)
        return jax.tree.map(lambda p: lax.rsqrt(1 + strength * p**2), p)

    return steepest_ascent(direction, rho, stretch=stretch, mask=mask)
