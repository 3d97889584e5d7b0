"""`famo`: fast adaptive multi-task optimisation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._checks import (
    ScalarOrSchedule,
    TaskValues,
    check_nonnegative,
    check_positive,
)
from samo_jax._combiners._by_name import by_name
from samo_jax._combiners._types import Weighting
from samo_jax._combiners.losses._adam import AdamState, adam_init, adam_step
from samo_jax._combiners.losses._loss_weighting import (
    loss_weighting,
    shifted_losses,
    usable_losses,
)
from samo_jax._named import named
from samo_jax._tree import accumulator_dtype, zero_unless


class FAMOState(NamedTuple):
    """State of `famo`.

    Attributes:
        logits: logits xi, shape (K,); 0 at first.
        adam: state of their optimiser.
        previous_losses: shape (K,), the losses of the last update, less `offset`; 0
            where there was none, of a task that was absent or before the first.
    """

    logits: jax.Array
    adam: AdamState
    previous_losses: jax.Array


@named
@by_name("offset")
def famo(
    learning_rate: ScalarOrSchedule = 0.025,
    weight_decay: float = 1e-3,
    *,
    offset: TaskValues = 0.0,
) -> Weighting:
    """FAMO: `w_i = (z_i / L_i) / sum_j (z_j / L_j)` with `z = softmax(xi)`.

    The weights of the log losses, z, are learned from what each step achieved: with
    `delta_i = log L_i(before) - log L_i(after)`, one Adam step on xi along `z * (delta
    - z'delta) + weight_decay xi` moves weight to the tasks that improved least.

    An update sees only the losses before its step, so it first learns from the step
    before. By default the losses of this update stand for those after that step: no
    further forward pass, but between different batches their difference holds the
    noise of sampling too. The published algorithm evaluates the same batch again after
    the step: do that, and give the result to the next update as `losses_after`. Under a
    perturbation the losses of an update are those at the perturbed points; then give
    the clean ones as `losses` too, so that the two compare.

    Args:
        learning_rate: step size of Adam for xi, positive, or a schedule of the steps.
        weight_decay: gamma, non-negative, an L2 penalty on xi (0.001 in LibMTL and
            TorchJD, 0.01 in the official script).
        offset: the official script's minimum losses, one number, or one per task, shape
            (K,) or by name: `L_i - offset_i` stands for L_i. Losses that can be
            negative need one below their minimum.

    Returns:
        A `Weighting` that ignores the Gramian and takes the extra argument
        `losses_after`, shape (K,) (None: `losses`). While a loss is not finite or not
        above `offset` it keeps its last weights (at first: uniform) and state, and
        `LossWeightingState.unusable` counts; such a `losses_after` is not learned from.
        Nor is a step without the task.

    Raises:
        ValueError: if `learning_rate` is not positive, `weight_decay` is negative, or
            `offset` is neither one finite number nor one per task.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.famo()
        >>> state = weighting.init(2)
        >>> for losses in ([1.0, 1.0], [0.5, 1.0]):
        ...     weights, state = weighting.update(None, state, losses=jnp.array(losses))
        ...     print(state.method_state.logits.round(3))
        [0. 0.]
        [-0.025  0.025]

    References:
        Liu et al., `FAMO: Fast Adaptive Multitask Optimization
        <https://arxiv.org/abs/2306.03792>`_, 2023
    """
    check_positive("learning_rate", learning_rate, "The paper uses 0.025.")
    check_nonnegative("weight_decay", weight_decay, "0 switches it off.")

    def init(num_tasks):
        zeros = jnp.zeros((num_tasks,), accumulator_dtype())
        return FAMOState(zeros, adam_init(num_tasks), zeros)

    def step(losses, present, state, *, losses_after=None, **extra_args):
        del extra_args
        before = state.previous_losses
        after = losses if losses_after is None else shifted_losses(losses_after, offset)
        learns = present & usable_losses(after, positive=True) & (before > 0)

        before, after = (jnp.where(learns, x, 1) for x in (before, after))
        delta = jnp.log(before) - jnp.log(after)
        z = jax.nn.softmax(state.logits, where=learns)
        decay = jnp.asarray(weight_decay, losses.dtype) * state.logits
        slope = z * (delta - jnp.sum(z * delta)) + decay
        change, adam = adam_step(slope, state.adam, learning_rate, learns)
        logits = state.logits + change
        weights = jax.nn.softmax(logits - jnp.log(losses), where=present)
        return weights, FAMOState(logits, adam, zero_unless(present, losses))

    return loss_weighting(init, step, positive=True, offset=offset)
