"""`dwa`: dynamic weight average, from the losses' rates of descent."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._checks import check_count, check_positive
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.losses._loss_weighting import loss_weighting
from samo_jax._named import named
from samo_jax._tree import accumulator_dtype, select


class DWAState(NamedTuple):
    """State of `dwa`, over the updates that each task took part in.

    Attributes:
        counts: shape (K,), int32, losses in the running averages, below `window`.
        running: shape (K,), average of the losses of this window.
        averages: shape (2, K), mean losses of the last window and of the one before; 0
            at first.
    """

    counts: jax.Array
    running: jax.Array
    averages: jax.Array


@named
def dwa(temperature: float = 2.0, *, window: int) -> Weighting:
    """DWA: `w = softmax(r / T)`, `r_i` the last window's mean loss over the one before.

    A task whose loss falls slower gets more weight. The weights are uniform during the
    first two windows, then change once a window, as published with epochs for windows.
    The published weights are K times these. (SAMO's scripts instead slide windows of 25
    steps.) A ratio is 1 where there is no earlier mean, or it is 0. Steps without a
    task are not in its windows.

    Args:
        temperature: T, positive; larger is closer to uniform.
        window: updates per window: the steps of an epoch.

    Returns:
        A `Weighting` that ignores the Gramian. While a loss is not finite it keeps its
        last weights (at first: uniform) and averages.

    Raises:
        ValueError: if `temperature` is not positive or `window` is not a positive int.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.dwa(temperature=2.0, window=1)
        >>> state = weighting.init(2)
        >>> for losses in ([4.0, 4.0], [1.0, 2.0], [1.0, 1.0]):
        ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
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
        counts = jnp.zeros((num_tasks,), jnp.int32)
        return DWAState(counts, zeros, jnp.stack([zeros, zeros]))

    def step(losses, present, state, **extra_args):
        del extra_args
        last, before = state.averages
        ratios = jnp.where(before != 0, last / jnp.where(before != 0, before, 1), 1)
        logits = ratios / jnp.asarray(temperature, losses.dtype)
        # An overflowing ratio must not make the softmax inf / inf.
        largest = jnp.asarray(jnp.finfo(losses.dtype).max / 4, losses.dtype)
        logits = jnp.clip(logits, -largest, largest)
        weights = jax.nn.softmax(logits, where=present)

        counts = state.counts + 1
        running = state.running
        running += (losses - running) / counts.astype(losses.dtype)
        full = counts == window
        new = DWAState(
            counts=jnp.where(full, 0, counts),
            running=jnp.where(full, 0, running),
            averages=jnp.where(full, jnp.stack([running, last]), state.averages),
        )
        return weights, select(present, new, state)

    return loss_weighting(init, step, positive=False)
