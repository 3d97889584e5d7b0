"""DWA: dynamic weight average, from the losses' rates of descent."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._hyperparameters import check_count, check_positive
from samo_jax._solvers import Solver
from samo_jax._solvers._base import uniform_weights
from samo_jax._tree import accumulator_dtype
from samo_jax._weightings._base import weighting


class DWAState(NamedTuple):
    """What `dwa` remembers.

    Attributes:
        count: shape (), int32, losses in the running average, below `window`.
        filled: shape (), int32, windows completed, at most 2.
        running: shape (K,), average of the losses of this window.
        averages: shape (2, K), of the last window and of the one before.
    """

    count: jax.Array
    filled: jax.Array
    running: jax.Array
    averages: jax.Array


def dwa(temperature: float = 2.0, *, window: int) -> Solver:
    """DWA: `w = softmax(r / T)`, `r_i` the last window's mean loss over the one before.

    A task whose loss falls slower gets more weight. The weights are uniform during the
    first two windows, then change once a window, as published with epochs for windows.
    The published weights are K times these. (SAMO's scripts instead slide windows of 25
    steps; every ratio is 1 where the earlier mean is 0.)

    Args:
        temperature: T, positive; larger is closer to uniform.
        window: updates per window: the steps of an epoch.

    Returns:
        A `Solver` that ignores the Gramian. While a loss is not finite it keeps its
        last weights (at first: uniform) and averages.

    Raises:
        ValueError: if `temperature` is not positive or `window` is not a positive int.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> solver = samo_jax.dwa(temperature=2.0, window=1)
        >>> state = solver.init(2)
        >>> for losses in ([4.0, 4.0], [1.0, 2.0], [1.0, 1.0]):
        ...     weights, state = solver.update(None, state, losses=jnp.array(losses))
        ...     print(weights.round(3))
        [0.5 0.5]
        [0.5 0.5]
        [0.469 0.531]

    References:
        Liu, Johns and Davison, `End-to-End Multi-Task Learning with Attention
        <https://arxiv.org/abs/1803.10704>`_, 2019
    """
    check_positive("temperature", temperature, "The paper uses 2.")
    check_count("window", window, "Pass the number of updates in an epoch.")

    def init(num_tasks):
        zeros = jnp.zeros((num_tasks,), accumulator_dtype())
        count = jnp.zeros((), jnp.int32)
        return DWAState(count, count, zeros, jnp.stack([zeros, zeros]))

    def step(losses, state, **extra_args):
        del extra_args
        last, before = state.averages
        ratios = jnp.where(before != 0, last / jnp.where(before != 0, before, 1), 1)
        logits = ratios / jnp.asarray(temperature, losses.dtype)
        # An overflowing ratio must not make the softmax inf / inf.
        largest = jnp.asarray(jnp.finfo(losses.dtype).max / 4, losses.dtype)
        weights = jax.nn.softmax(jnp.clip(logits, -largest, largest))
        weights = jnp.where(state.filled == 2, weights, uniform_weights(len(losses)))

        count = state.count + 1
        running = state.running + (losses - state.running) / count.astype(losses.dtype)
        full = count == window
        return weights, DWAState(
            count=jnp.where(full, 0, count),
            filled=jnp.minimum(state.filled + full.astype(jnp.int32), 2),
            running=jnp.where(full, 0, running),
            averages=jnp.where(full, jnp.stack([running, last]), state.averages),
        )

    return weighting(init, step, positive=False)
