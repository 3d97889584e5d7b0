"""`uncertainty` (UW): weights by learnt homoscedastic uncertainty."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._checks import ScalarOrSchedule, TaskValues, Vector, check_positive
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.losses._adam import AdamState, adam_init, adam_step
from samo_jax._combiners.losses._loss_weighting import loss_weighting
from samo_jax._named import named
from samo_jax._tasks import LossTree, per_task, stack_losses
from samo_jax._tree import accumulator_dtype

_LARGEST = 80.0  # exp of it is finite in float32


class UncertaintyState(NamedTuple):
    """State of `uncertainty`.

    Attributes:
        log_variances: log variances s, shape (K,); 0 at first.
        adam: state of their optimiser.
    """

    log_variances: jax.Array
    adam: AdamState


def uncertainty_loss(losses: LossTree, log_variances: Vector) -> jax.Array:
    """The losses under learned variances, `(1/K) sum_i exp(-s_i) L_i + s_i`.

    To train s as parameters of the model, rather than inside `uncertainty`, minimise
    this over both. At fixed losses the minimum is `s_i = log L_i`. K/2 times it is the
    published loss.

    Args:
        losses: L, K losses, a pytree of scalars or a (K,) array.
        log_variances: log variances s, shape (K,).

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes differ.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> print(samo_jax.uncertainty_loss([1.0, 4.0], jnp.zeros(2)))
        2.5

    References:
        Kendall, Gal and Cipolla, `Multi-Task Learning Using Uncertainty to Weigh Losses
        for Scene Geometry and Semantics <https://arxiv.org/abs/1705.07115>`_, 2018
    """
    losses = stack_losses(losses)
    log_variances = per_task("log_variances", log_variances, len(losses), 0)
    return _uncertainty(losses, log_variances)


def _uncertainty(losses, log_variances, present=None):
    likelihoods = jnp.exp(-log_variances) * losses + log_variances
    return jnp.mean(likelihoods, where=present)


@named
@by_name("offset")
def uncertainty(
    learning_rate: ScalarOrSchedule = 0.025, *, offset: TaskValues = 0.0
) -> Weighting:
    """UW: `w_i = exp(-s_i) / K`, the log variances s trained inside the weighting.

    Each update does one Adam step on s for `uncertainty_loss`, after the weights are
    taken; s starts at 0 (uniform weights) and tends to `log L_i`, that is to weights
    `1 / (K L_i)`. The published weights are K/2 times these.

    Args:
        learning_rate: step size of Adam for s, positive, or a schedule of the updates.
            SAMO's scripts use 0.025.
        offset: one number, or one per task, shape (K,) or by name: `L_i - offset_i`
            stands for L_i. Losses that can be negative need one below their minimum.

    Returns:
        A `Weighting` that ignores the Gramian. While a loss is not finite or not above
        `offset` (s would diverge) it keeps its last weights (at first: uniform) and s,
        and `LossWeightingState.unusable` counts.

    Raises:
        ValueError: if `learning_rate` is not positive, or `offset` is neither one
            finite number nor one per task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.uncertainty()
        >>> state, losses = weighting.init(2), jnp.array([0.5, 2.0])
        >>> for _ in range(200):
        ...     weights, state = weighting.update(None, state, losses=losses)
        >>> print(weights.round(2))
        [1.   0.25]

    References:
        Kendall, Gal and Cipolla, `Multi-Task Learning Using Uncertainty to Weigh Losses
        for Scene Geometry and Semantics <https://arxiv.org/abs/1705.07115>`_, 2018
    """
    check_positive("learning_rate", learning_rate, "SAMO's scripts use 0.025.")

    def init(num_tasks):
        zeros = jnp.zeros((num_tasks,), accumulator_dtype())
        return UncertaintyState(zeros, adam_init(num_tasks))

    def step(losses, present, state, **extra_args):
        del extra_args
        weights, slope = jax.grad(_uncertainty, argnums=(0, 1))(
            losses, state.log_variances, present
        )
        change, adam = adam_step(slope, state.adam, learning_rate, present)
        log_variances = jnp.clip(state.log_variances + change, -_LARGEST, _LARGEST)
        return weights, UncertaintyState(log_variances, adam)

    return loss_weighting(init, step, positive=True, offset=offset)
