"""`imtl_l`: learnt scales that make all scaled losses equal."""

import jax
import jax.numpy as jnp

from samo_jax._checks import ScalarOrSchedule, TaskValues, Vector
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.losses._uncertainty import uncertainty
from samo_jax._named import named
from samo_jax._tasks import LossTree, per_task, stack_losses


def imtl_l_loss(losses: LossTree, log_scales: Vector) -> jax.Array:
    """The losses under learned scales, `(1/K) sum_i exp(s_i) L_i - s_i`.

    It is `uncertainty_loss` at -s, and 1/K times the published loss. At fixed losses
    the minimum is `s_i = -log L_i`: every scaled loss is then 1.

    Args:
        losses: L, K losses, a pytree of scalars or a (K,) array.
        log_scales: log scales s, shape (K,).

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(samo_jax.imtl_l_loss([1.0, 4.0], jnp.zeros(2)))
        2.5

    References:
        Liu et al., `Towards Impartial Multi-task Learning
        <https://openreview.net/forum?id=IMPnRXEWpvr>`_, 2021
    """
    losses = stack_losses(losses)
    log_scales = per_task("log_scales", log_scales, len(losses), 0)
    return jnp.mean(jnp.exp(log_scales) * losses - log_scales)


@named
@by_name("offset")
def imtl_l(
    learning_rate: ScalarOrSchedule = 0.025, *, offset: TaskValues = 0.0
) -> Weighting:
    """IMTL-L: `w_i = exp(s_i) / K`, the log scales s trained inside the weighting.

    With the convention of weights that start uniform, and Adam for s, this is exactly
    `uncertainty` with `s_i = -log_variances_i`: the two published losses differ by a
    factor of 2 in the weights. The published weights are K times these.

    Args:
        learning_rate: step size of Adam for s, positive, or a schedule of the updates.
        offset: see `uncertainty`.

    Returns:
        A `Weighting`, see `uncertainty`.

    Raises:
        ValueError: see `uncertainty`.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.imtl_l()
        >>> losses = jnp.array([0.5, 2.0])
        >>> weights, _ = weighting.update(None, weighting.init(2), losses=losses)
        >>> print(weights)
        [0.5 0.5]

    References:
        Liu et al., `Towards Impartial Multi-task Learning
        <https://openreview.net/forum?id=IMPnRXEWpvr>`_, 2021
    """
    return uncertainty(learning_rate, offset=offset)
