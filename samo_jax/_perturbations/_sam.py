"""`sam`: the worst case within a ball."""

from samo_jax._checks import ScalarOrSchedule
from samo_jax._labels import Mask
from samo_jax._named import named
from samo_jax._perturbations._ascent import Norm, steepest_ascent
from samo_jax._perturbations._base import Perturbation
from samo_jax._perturbations._directions import DirectionLike


@named
def sam(
    rho: ScalarOrSchedule = 0.05,
    *,
    direction: DirectionLike = "global",
    mask: Mask = None,
    norm: Norm = "separate",
) -> Perturbation:
    """SAM: `eps = rho p / ||p||`, p the gradient.

    The norm is over the leaves that the mask selects, so that `||eps|| = rho`.

    Args:
        rho: radius, non-negative, or a schedule of the step.
        direction: ascent direction p. "global": the gradient of the mean loss, the
            incoming updates, at no extra pass (G-SAM); "local": each task's own, K more
            passes (L-SAM); a `Direction` such as `probe()`; or a `Perturbation`, for
            its direction.
        mask: leaves that are perturbed: a pytree prefix of bools, or a function of the
            parameters that returns one. None: all.
        norm: leaves over which `||p||` is taken: "separate", shared leaves on their own
            and each head on its own; "together", shared leaves and the task's head
            together; "layerwise", each leaf on its own.

    Returns:
        A `Perturbation` for `multitask` and `single_task`.

    Raises:
        ValueError: if `rho` is negative, or `direction` or `norm` none of the above.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tx = samo_jax.single_task(samo_jax.sam(rho=0.5))
        >>> loss_fn = lambda w: jnp.sum(w**4) / 4
        >>> params = jnp.array([3.0, 0.0])
        >>> grads = jnp.array([27.0, 0.0])
        >>> updates, _ = tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
        >>> print(updates)
        [42.875  0.   ]

    References:
        Foret, Kleiner, Mobahi and Neyshabur, `Sharpness-Aware Minimization for
        Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    return steepest_ascent(direction, rho, mask=mask, norm=norm)
