"""`f_mtl`: per-task SAM, whose loss parts and flat parts are combined separately."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._checks import ScalarOrSchedule
from samo_jax._combiners._types import (
    Aggregator,
    Combiner,
    check_combiner,
    combiner_update,
    init_combiner,
)
from samo_jax._labels import Mask, ParamLabels
from samo_jax._multitask import multitask
from samo_jax._named import named
from samo_jax._perturbations._ascent import Norm, steepest_ascent
from samo_jax._perturbations._directions import clean_directions
from samo_jax._step._devices import AxisName
from samo_jax._task_loop import Unroll
from samo_jax._tasks import uniform_weights


class SeparateState(NamedTuple):
    """State of the combiner of `f_mtl`.

    Attributes:
        loss_state: state of the combiner for the loss parts.
        flat_state: state of the combiner for the flat parts.
        flat_weights: shape (K,), the last weights of the flat parts. (Those of the loss
            parts are `MultitaskState.weights`.)
    """

    loss_state: Any
    flat_state: Any
    flat_weights: jax.Array


@named
def f_mtl(
    combiner: Combiner,
    rho: ScalarOrSchedule = 0.05,
    *,
    adaptive: bool = False,
    direction: Literal["local", "global"] = "local",
    norm: Norm = "separate",
    mask: Mask = None,
    num_tasks: int,
    param_labels: ParamLabels = None,
    unroll: Unroll = None,
    axis_name: AxisName = None,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """F-MTL, first in an `optax.chain`: `d = combiner(g) + combiner(q - g)`.

    On shared leaves, with `g_i = grad l_i(theta)` (the loss part), `eps_i = rho g_i /
    ||g_i||` and `q_i = grad l_i(theta + eps_i)`, the combiner combines the g_i and,
    with weights of its own, the flat parts `q_i - g_i`. Head i keeps its own q_i.

    With fixed weights (`mean`, `constant`) it is per-task SAM:
    `multitask(combiner, local_sam(rho))`. Costs K more forward and backward passes than
    `multitask`, and K more copies of the gradients.

    Args:
        combiner: the combiner, run twice with a state of its own for each part. It gets
            the losses at the perturbed points both times.
        rho: radius, non-negative, or a schedule of the step. The official scripts use 2
            with `adaptive`.
        adaptive: `eps_i = rho theta^2 g_i / ||theta g_i||`, as the official scripts do
            (see `adaptive_sam`, eta 0).
        direction: "local": each task has its own eps_i; "global": all have that of the
            mean gradient.
        norm: "separate", "together" or "layerwise", see `sam`. The official scripts use
            "separate", and "together" on Multi-MNIST.
        mask: leaves that are perturbed, see `sam`.
        num_tasks: K, the number of losses.
        param_labels: see `multitask`.
        unroll: see `multitask`.
        axis_name: see `multitask`.
        diagnostics: see `multitask`; of the q_i.

    Returns:
        A `GradientTransformationExtraArgs`, see `multitask`. The incoming updates only
        give the shapes: the clean pass may be left out.

    Raises:
        ValueError: see `multitask`; if `rho` is negative, or `direction` or `norm` none
            of the above.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: {"a": jnp.sum((w - 1) ** 2), "b": jnp.sum((w + 1) ** 2)}
        >>> tx = samo_jax.f_mtl(samo_jax.mgda(), rho=0.1, num_tasks=2)
        >>> params = jnp.array([0.5, -2.0])
        >>> updates, state = tx.update(
        ...     params, tx.init(params), params, loss_fn=loss_fn
        ... )
        >>> print(updates)
        [ 2.56... -2.65...]

    References:
        Phan, Tran, Tran, Ho, Le, Ngo, Nguyen, Le and Phung, `Beyond Losses Reweighting:
        Empowering Multi-Task Learning via the Generalization Perspective
        <https://arxiv.org/abs/2211.13723>`_, 2025
    """

    def stretch(params, p, step):
        del p, step
        return jax.tree.map(jnp.abs, params)

    perturbation = steepest_ascent(
        clean_directions(direction),
        rho,
        stretch=stretch if adaptive else None,
        mask=mask,
        norm=norm,
    )
    return multitask(
        _separately(combiner),
        perturbation,
        num_tasks=num_tasks,
        param_labels=param_labels,
        unroll=unroll,
        axis_name=axis_name,
        diagnostics=diagnostics,
    )


def _separately(combiner: Combiner) -> Aggregator:
    check_combiner(combiner)
    combine_gradients = combiner_update(combiner)

    def init(params, num_tasks):
        # Two buffers: the state may be donated.
        first, second = (init_combiner(combiner, params, num_tasks) for _ in range(2))
        return SeparateState(first, second, uniform_weights(num_tasks))

    def update(
        task_grads, state, *, clean_grads, present=None, sample_grads=(), **extra_args
    ):
        if sample_grads:
            raise ValueError(
                "`sample_loss_fns` is not for f_mtl(), which has no clean gradients of "
                "other batches. Leave it out, or use `multitask`."
            )
        flat = jax.tree.map(jnp.subtract, task_grads, clean_grads)
        loss_part, weights, loss_state = combine_gradients(
            clean_grads, state.loss_state, present=present, **extra_args
        )
        flat_part, flat_weights, flat_state = combine_gradients(
            flat, state.flat_state, present=present, **extra_args
        )
        direction = jax.tree.map(jnp.add, loss_part, flat_part)
        return direction, weights, SeparateState(loss_state, flat_state, flat_weights)

    return Aggregator(init, update)
