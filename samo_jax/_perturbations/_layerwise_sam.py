"""`layerwise_sam`: every layer looks as far as every other."""

from samo_jax._checks import ScalarOrSchedule
from samo_jax._labels import Mask
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation
from samo_jax._perturbations._directions import DirectionLike


@named
def layerwise_sam(
    rho: ScalarOrSchedule = 0.05,
    *,
    direction: DirectionLike = "global",
    mask: Mask = None,
) -> Perturbation:
    """Layer-wise SAM: `eps^d = rho p^d / ||p^d||` on every leaf d.

    The worst case within a ball for each leaf, so that `||eps|| = rho sqrt(L)` with L
    leaves: choose a smaller rho than for SAM.

    Args:
        rho: radius of each leaf, non-negative, or a schedule of the step.
        direction: see `sam`.
        mask: see `sam`.

    Returns:
        A `Perturbation` for `multitask` and `single_task`.

    Raises:
        ValueError: if `rho` is negative.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tx = samo_jax.single_task(samo_jax.layerwise_sam(rho=1.0))
        >>> loss_fn = lambda p: (p["a"] ** 2 + p["b"] ** 2) / 2
        >>> params = {"a": jnp.array(3.0), "b": jnp.array(-0.5)}
        >>> updates, _ = tx.update(params, tx.init(params), params, loss_fn=loss_fn)
        >>> print({name: float(update) for name, update in updates.items()})
        {'a': 4.0, 'b': -1.5}

    References:
        Liu, Mai, Chen, Hsieh and You, `Towards Efficient and Scalable Sharpness-Aware
        Minimization <https://arxiv.org/abs/2203.02714>`_, 2022 (layer-wise scaling)
    """
    return steepest_ascent(direction, rho, mask=mask, norm="layerwise")
