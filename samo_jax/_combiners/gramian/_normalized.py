"""`normalized`: any combiner on gradients of unit, or of unit average, norm."""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from samo_jax._checks import check_choice, check_decay
from samo_jax._combiners._task_vectors import task_norms
from samo_jax._combiners._types import (
    Aggregator,
    Weighting,
    check_combiner,
    combiner_update,
    weighting_update,
)
from samo_jax._named import named
from samo_jax._tree import accumulator_dtype, cast_like, scale_tasks

NormKind: TypeAlias = Literal["unit", "running"]


class NormalizedState(NamedTuple):
    """State of `normalized`.

    Attributes:
        norms: shape (K,), the last divisor of each task's gradient: its norm, or the
            running average of its norms; 0 before its first gradient.
        combiner_state: state of the wrapped combiner.
    """

    norms: jax.Array
    combiner_state: Any


@named
def normalized(
    combiner: Weighting | Aggregator, norm: NormKind = "unit", *, decay: float = 0.9
) -> Weighting | Aggregator:
    """A combiner on gradients of unit norm: `d = sum_i v_i g_i / n_i`.

    v are the weights that the combiner gives to the gradients `g_i / n_i`, and `w_i =
    v_i / n_i` those of the gradients themselves. n_i is `||g_i||` ("unit"), or its
    running average ("running"), so that a task whose gradients shrink takes shorter
    steps, as it does without. A loss on another scale then changes nothing, unless
    the combiner looks at the losses. With "unit" d no longer shrinks with the
    gradients: let the learning rate decay.

    Where no gradient conflicts with the combiner's direction, none conflicts with this
    one.

    Args:
        combiner: a `Weighting` or `Aggregator`. Its losses are those of the tasks.
        norm: "unit" or "running".
        decay: share of the old average in the new one, in [0, 1), for "running". A
            task's first gradient starts its average.

    Returns:
        A combiner of the same type. Tasks that are absent, or whose gradient is 0, get
        no weight, and their averages wait. So do all where a gradient is not finite.

    Raises:
        ValueError: if `combiner` is not a combiner, `norm` none of the above, or
            `decay` not in [0, 1).

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> weighting = samo_jax.normalized(samo_jax.mean())
        >>> gramian = jnp.diag(jnp.array([1.0, 16.0]))
        >>> weights, _ = weighting.update(gramian, weighting.init(2))
        >>> print(weights)
        [0.5   0.125]

    References:
        Chen, Badrinarayanan, Lee and Rabinovich, `GradNorm: Gradient Normalization for
        Adaptive Loss Balancing in Deep Multitask Networks
        <https://arxiv.org/abs/1711.02257>`_, 2018, on why norms matter
    """
    check_combiner(combiner)
    check_choice("norm", norm, get_args(NormKind))
    check_decay(decay)
    memory = decay if norm == "running" else 0

    def measure(norms, finite, old):
        """The norms to divide by, and one over them, 0 where the gradient is 0."""
        average = jnp.where(old > 0, norms + memory * (old - norms), norms)
        average = jnp.where(finite & (norms > 0), average, old)
        scales = 1 / jnp.where(average > 0, average, 1)
        return average, jnp.where(norms == 0, 0, scales)

    def first_state(num_tasks, state):
        return NormalizedState(jnp.zeros((num_tasks,), accumulator_dtype()), state)

    if isinstance(combiner, Weighting):
        weigh = weighting_update(combiner)

        def init(num_tasks):
            return first_state(num_tasks, combiner.init(num_tasks))

        def update(gramian, state, *, present=None, **extra_args):
            squares = jnp.diagonal(gramian)
            # Below, they underflow.
            none = squares < jnp.finfo(squares.dtype).tiny
            norms = jnp.where(none, 0, jnp.sqrt(squares))
            finite = jnp.all(jnp.isfinite(gramian))
            norms, scales = measure(norms, finite, state.norms)
            weights, inner = weigh(
                gramian * scales[:, None] * scales[None, :],
                state.combiner_state,
                present=present,
                **extra_args,
            )
            return scales * weights, NormalizedState(norms, inner)

        return Weighting(init, update, degree=0.0)

    combine_gradients = combiner_update(combiner)

    def init_aggregator(params, num_tasks):
        return first_state(num_tasks, combiner.init(params, num_tasks))

    def update_aggregator(
        task_grads, state, *, losses, present=None, sample_grads=(), **extra_args
    ):
        norms = task_norms(task_grads, len(losses))
        finite = jnp.all(jnp.isfinite(norms))
        norms, scales = measure(norms, finite, state.norms)

        def scaled(grads):
            return jax.tree.map(lambda leaf: scale_tasks(leaf, scales), grads)

        if sample_grads:
            extra_args["sample_grads"] = list(map(scaled, sample_grads))
        direction, weights, inner = combine_gradients(
            scaled(task_grads),
            state.combiner_state,
            losses=losses,
            present=present,
            **extra_args,
        )
        direction = cast_like(direction, task_grads)
        return direction, scales * weights, NormalizedState(norms, inner)

    return Aggregator(init_aggregator, update_aggregator)
