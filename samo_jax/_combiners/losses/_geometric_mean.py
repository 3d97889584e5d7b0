"""`geometric_mean` (GLS): the geometric mean of the losses."""

import jax
import jax.numpy as jnp

from samo_jax._checks import TaskValues
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.losses._loss_weighting import scalarization
from samo_jax._named import named
from samo_jax._tasks import LossTree, stack_losses


def geometric_mean_loss(losses: LossTree) -> jax.Array:
    """The geometric mean of the losses, `(prod_i L_i)^(1/K)`.

    Computed as `exp(mean_i log L_i)`, which neither overflows nor underflows where the
    product does. Its direction does not change when a loss is rescaled.

    Args:
        losses: L, K positive losses, a pytree of scalars or a (K,) array. A zero or
            negative loss gives a gradient that is not finite.

    Returns:
        A scalar.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(f"{samo_jax.geometric_mean_loss({'a': 1.0, 'b': 4.0}):.3f}")
        2.000

    References:
        Chennupati et al., `MultiNet++: Multi-Stream Feature Aggregation and Geometric
        Loss Strategy for Multi-Task Learning <https://arxiv.org/abs/1904.08492>`_, 2019
    """
    return _geometric_mean(stack_losses(losses))


def _geometric_mean(losses, present=None):
    return jnp.exp(jnp.mean(jnp.log(losses), where=present))


@named
@by_name("offset")
def geometric_mean(*, offset: TaskValues = 0.0) -> Weighting:
    """GLS: the weights that `geometric_mean_loss` gives, `w_i = GM(L) / (K L_i)`.

    They sum to 1 where the losses are equal, and to more elsewhere. (LibMTL reports
    other weights, which are not those of its loss.)

    Args:
        offset: one number, or one per task, shape (K,) or by name: `L_i - offset_i`
            stands for L_i. Losses that can be negative need one below their minimum.

    Returns:
        A `Weighting` that ignores the Gramian. While a loss is not finite or not above
        `offset` it keeps its last weights (at first: uniform), and
        `LossWeightingState.unusable` counts.

    Raises:
        ValueError: if `offset` is neither one finite number nor one per task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.geometric_mean()
        >>> losses = jnp.array([1.0, 4.0])
        >>> weights, _ = weighting.update(jnp.eye(2), weighting.init(2), losses=losses)
        >>> print(weights)
        [1.   0.25]

    References:
        Chennupati et al., `MultiNet++: Multi-Stream Feature Aggregation and Geometric
        Loss Strategy for Multi-Task Learning <https://arxiv.org/abs/1904.08492>`_, 2019
    """
    return scalarization(_geometric_mean, positive=True, offset=offset)
