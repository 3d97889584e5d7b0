"""`adaptive_sam` (ASAM): a radius relative to the size of each parameter."""

import jax
import jax.numpy as jnp

from samo_jax._checks import ScalarOrSchedule, check_nonnegative, resolve
from samo_jax._labels import Mask, mask_leaves
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation
from samo_jax._perturbations._directions import DirectionLike


@named
def adaptive_sam(
    rho: ScalarOrSchedule = 0.5,
    eta: ScalarOrSchedule = 0.01,
    *,
    direction: DirectionLike = "global",
    mask: Mask = None,
    adapt: Mask = None,
) -> Perturbation:
    """ASAM: `eps = rho T^2 p / ||T p||` with `T = |w| + eta`, elementwise.

    The worst case within `||eps / T|| <= rho`, which does not change when a layer is
    scaled up and the next one down.

    The official implementation has T = 1 on biases and BatchNorm shifts: `adapt`.
    Others have `T = |w|` everywhere (`eta=0`), for which rho is several times larger:
    rho does not carry over from one T to another, nor from SAM.

    Args:
        rho: radius, non-negative, or a schedule of the step.
        eta: summand of `|w|`, non-negative, or a schedule.
        direction: see `sam`.
        mask: leaves that are perturbed, see `sam`.
        adapt: leaves on which `T = |w| + eta`; elsewhere T = 1. A pytree prefix of
            bools, or a function of the parameters that returns one. None: all.

    Returns:
        A `Perturbation` for `multitask` and `single_task`.

    Raises:
        ValueError: if `rho` or `eta` is negative.

    Examples:
        >>> import jax, jax.numpy as jnp, samo_jax
        >>> def weights(params):
        ...     is_weight = lambda path, _: "bias" not in jax.tree_util.keystr(path)
        ...     return jax.tree.map_with_path(is_weight, params)
        >>> tx = samo_jax.single_task(samo_jax.adaptive_sam(0.5, adapt=weights))
        >>> loss_fn = lambda p: jnp.sum(p["kernel"] ** 2) / 2 + p["bias"]
        >>> params = {"kernel": jnp.array([2.0, 0.0]), "bias": jnp.array(1.0)}
        >>> grads = {"kernel": params["kernel"], "bias": jnp.array(1.0)}
        >>> updates, _ = tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
        >>> print(updates["kernel"])
        [2.97... 0.  ]

    References:
        Kwon, Kim, Park and Choi, `ASAM: Adaptive Sharpness-Aware Minimization for
        Scale-Invariant Learning of Deep Neural Networks
        <https://arxiv.org/abs/2102.11600>`_, 2021
    """
    check_nonnegative("eta", eta, "0 is T = |w|.")

    def stretch(params, p, step):
        del p
        adapted = mask_leaves(params, True if adapt is None else adapt, "adapt")
        offset = resolve("eta", eta, step)
        return jax.tree.map(
            lambda adapts, w: jnp.where(adapts, jnp.abs(w) + offset, 1),
            adapted,
            params,
        )

    return steepest_ascent(direction, rho, stretch=stretch, mask=mask)
