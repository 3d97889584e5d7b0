"""`monge_sam`: a radius that shrinks where the loss is steep."""

import jax.numpy as jnp

from samo_jax._checks import ScalarOrSchedule, check_nonnegative, resolve
from samo_jax._labels import Mask
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation
from samo_jax._perturbations._directions import DirectionLike


@named
def monge_sam(
    rho: ScalarOrSchedule = 0.05,
    alpha: ScalarOrSchedule = 1.0,
    *,
    direction: DirectionLike = "global",
    mask: Mask = None,
) -> Perturbation:
    """Monge SAM: `eps = rho p / (||p|| sqrt(1 + alpha^2 ||p||^2))`, p the gradient.

    The worst case within `eps' (I + alpha^2 p p') eps <= rho^2`, the metric of the
    loss's graph: SAM where the gradient is small, plain descent where it is large.
    alpha = 0 is SAM; the paper has alpha = 1.

    Unlike SAM it depends on the scale of the loss: undo any loss scaling first, and
    the incoming updates of "global" must be the gradient of the mean loss, not a
    multiple.

    Args:
        rho: radius, non-negative, or a schedule of the step.
        alpha: strength of the metric, non-negative, or a schedule.
        direction: see `sam`. A `Direction` must keep the gradient's length. On a
            task's head the gradient of the mean loss is 1/K of the task's own: with
            heads choose "local".
        mask: see `sam`.

    Returns:
        A `Perturbation` for `multitask` and `single_task`.

    Raises:
        ValueError: if `rho` or `alpha` is negative.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tx = samo_jax.single_task(samo_jax.monge_sam(rho=1.0))
        >>> loss_fn = lambda w: jnp.sum(w**2) / 2
        >>> params = jnp.array([3.0])
        >>> updates, _ = tx.update(params, tx.init(params), params, loss_fn=loss_fn)
        >>> print(updates)
        [3.31...]

    References:
        Jacobsen and Arvanitidis, `Monge SAM: Robust Reparameterization-Invariant
        Sharpness-Aware Minimization Based on Loss Geometry
        <https://arxiv.org/abs/2502.08448>`_, 2025
    """
    check_nonnegative("alpha", alpha, "0 is SAM.")

    def damping(norm, step):
        return 1 / jnp.hypot(1, resolve("alpha", alpha, step) * norm)

    return steepest_ascent(direction, rho, damping=damping, mask=mask)
