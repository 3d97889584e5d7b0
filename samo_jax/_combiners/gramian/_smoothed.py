"""`smoothed` (CR-MOGM): a moving average of any weighting's weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._checks import check_decay
from samo_jax._combiners._types import Weighting, check_weighting, weighting_update
from samo_jax._named import named
from samo_jax._tasks import present_tasks, uniform_weights
from samo_jax._tree import zero_unless


class SmoothedState(NamedTuple):
    """State of `smoothed`.

    Attributes:
        average: shape (K,), each task's last smoothed weight (before the first: 1 / K).
        started: shape (K,), bool, whether each task has taken part in an update.
        weighting_state: state of the wrapped weighting.
    """

    average: jax.Array
    started: jax.Array
    weighting_state: Any


@named
def smoothed(weighting: Weighting, decay: float = 0.9) -> Weighting:
    """A moving average of the weights of another: `w <- decay w + (1 - decay) what`.

    A task's first update takes the weighting's weight as it is, and updates without the
    task leave its average alone. Averaging removes the bias
    that combiners have with stochastic gradients (CR-MOGM).

    Args:
        weighting: the `Weighting` whose weights what are averaged.
        decay: share of the old weights, in [0, 1). 0: no smoothing.

    Returns:
        A `Weighting`. Where `weighting` gives non-finite weights the average stays.

    Raises:
        ValueError: if `weighting` is not a `Weighting` or `decay` is not in [0, 1).

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.smoothed(samo_jax.mgda(), decay=0.5)
        >>> state = weighting.init(2)
        >>> _, state = weighting.update(jnp.diag(jnp.array([1.0, 3.0])), state)
        >>> weights, state = weighting.update(jnp.eye(2), state)
        >>> print(weights)
        [0.625 0.375]

    References:
        Zhou, Zhang, Jiang, Zhong, Gu and Zhu, `On the Convergence of Stochastic
        Multi-Objective Gradient Manipulation and Beyond
        <https://openreview.net/forum?id=ScwfQ7hdwyP>`_, 2022
    """
    check_weighting("weighting", weighting)
    check_decay(decay)

    def init(num_tasks: int) -> SmoothedState:
        started = jnp.zeros((num_tasks,), bool)
        return SmoothedState(
            uniform_weights(num_tasks), started, weighting.init(num_tasks)
        )

    def update(gramian, state, *, present=None, **extra_args):
        weights, weighting_state = weighting_update(weighting)(
            gramian, state.weighting_state, present=present, **extra_args
        )
        weights = weights.astype(state.average.dtype)
        present = present_tasks(present, len(weights))
        averaged = present & jnp.isfinite(weights).all()
        blend = weights + decay * (state.average - weights)
        average = jnp.where(state.started, blend, weights)
        average = jnp.where(averaged, average, state.average)
        return zero_unless(present, average), SmoothedState(
            average, state.started | averaged, weighting_state
        )

    return weighting._replace(init=init, update=update)
