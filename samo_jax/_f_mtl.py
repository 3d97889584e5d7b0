"""`f_mtl`: per-task SAM, whose loss parts and flat parts are combined separately."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from samo_jax._checks import ScalarOrSchedule
from samo_jax._combiners._types import (
    Aggregator,
    Combiner,
    Weighting,
    check_combiner,
    combiner_update,
    init_combiner,
)
from samo_jax._labels import Mask, ParamLabels
from samo_jax._multitask import check_arguments, multitask, transformation
from samo_jax._named import named
from samo_jax._perturbations._ascent import Norm, steepest_ascent
from samo_jax._perturbations._directions import check_named, clean_directions
from samo_jax._step._devices import AxisName, Devices
from samo_jax._step._method import GramianOf, Method, takes_part
from samo_jax._step._separate_parts import SeparateState
from samo_jax._task_loop import Unroll
from samo_jax._tasks import uniform_weights


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
    gramian_of: GramianOf = "parameters",
    weights_every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """F-MTL, first in an `optax.chain`: `d = combiner(g) + combiner(q - g)`.

    On shared leaves, with `g_i = grad l_i(theta)` (the loss part), `eps_i = rho g_i /
    ||g_i||` and `q_i = grad l_i(theta + eps_i)`, the combiner combines the g_i and,
    with weights of its own, the flat parts `q_i - g_i`. Head i keeps its own q_i.

    With fixed weights (`mean`, `constant`) it is per-task SAM:
    `multitask(combiner, local_sam(rho))`. Costs K more forward and backward passes than
    `multitask`, and K more copies of the gradients.

    With a common perturbation, `direction="global"`, and kept weights w and v of both
    parts, `d = J(theta)'w + (J(theta + eps) - J(theta))'v` costs two forward and four
    backward passes for any K.

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
        diagnostics: see `multitask`; of the q_i, with `gramian_of` or `weights_every`
            the Gramian of the g_i.
        gramian_of: see `multitask`; of both parts, each of which has the length that
            its gradients by all shared leaves give it. With a common perturbation and a
            `Weighting`.
        weights_every: see `multitask`; of both parts, each with the length that its
            gradients of this step give it. With a common perturbation and a
            `Weighting`.

    Returns:
        A `GradientTransformationExtraArgs`, see `multitask`. The incoming updates only
        give the shapes: the clean pass may be left out.

    Raises:
        ValueError: see `multitask`; if `rho` is negative, `direction` or `norm` none of
            the above, or tasks have no common perturbation (`direction` "local", `norm`
            "together") with `gramian_of` or `weights_every`.

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

    ascent = partial(
        steepest_ascent,
        rho=rho,
        stretch=stretch if adaptive else None,
        mask=mask,
        norm=norm,
    )
    method = Method(
        combiner,
        ascent("global"),
        Devices(axis_name),
        gramian_block=None,
        tasks_per_step=None,
        diagnostics=diagnostics,
        gramian_of=gramian_of,
        weights_every=weights_every,
        separate_parts=True,
    )
    if weights_every is not None or takes_part(method):
        check_arguments(combiner, num_tasks, unroll)
        _check_common(combiner, direction, norm, gramian_of, weights_every)
        return transformation(
            method,
            num_tasks=num_tasks,
            key=None,
            param_labels=param_labels,
            unroll=unroll,
        )
    return multitask(
        _separately(combiner),
        ascent(clean_directions(direction)),
        num_tasks=num_tasks,
        param_labels=param_labels,
        unroll=unroll,
        axis_name=axis_name,
        diagnostics=diagnostics,
    )


def _check_common(combiner, direction, norm, gramian_of, weights_every) -> None:
    """Raise unless all tasks have one perturbation, and their weights a Gramian."""
    name, value = (
        ("gramian_of", gramian_of)
        if weights_every is None
        else ("weights_every", weights_every)
    )
    check_named(direction)
    if not isinstance(combiner, Weighting):
        raise ValueError(
            f"`{name}` is for a Weighting, got {value!r} with {combiner!r}, an "
            "Aggregator. Leave it out."
        )
    for argument, given, common in (
        ("direction", direction, "global"),
        ("norm", norm, "separate"),
    ):
        if given in ("local", "together"):
            raise ValueError(
                f"`{name}` is for a perturbation that all tasks share, got "
                f"{value!r} with `{argument}`={given!r}. Take {common!r}."
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
