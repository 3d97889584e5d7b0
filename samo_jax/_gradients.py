"""Gradients of the mean loss and of every task, at one point or a few."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun

from samo_jax._arguments import check_params, explained
from samo_jax._convolutions import canonical_program
from samo_jax._programs import precomputed, traced
from samo_jax._task_loss import Split, split_tasks, task_loss
from samo_jax._tasks import (
    LossFn,
    Unroll,
    check_loss_fn,
    check_unroll,
    is_chunked,
    is_unrolled,
    losses_of,
    map_tasks,
    select_loss,
    stack_losses,
    task_names,
)
from samo_jax._tree import PyTree, keep

# Values and pullback at each point.
Passes: TypeAlias = list[tuple[jax.Array, Callable[..., Any]]]
# Of one task, by its index.
ValueAndGradient: TypeAlias = Callable[[Any], tuple[jax.Array, PyTree]]


def mean_value_and_grad(
    loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., tuple[Any, PyTree]]:
    """The clean pass: all task losses and `g0`, the gradient of their mean.

    `g0 = grad (1/K) sum_i l_i(theta)` is what `samo` and `multitask` take as incoming
    updates. One forward and one backward pass.

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returning K losses (a pytree of
            scalars or a (K,) array), or `(losses, aux)` with `has_aux`.
        has_aux: whether `loss_fn` also returns auxiliary data, such as updated batch
            statistics. Only this clean pass may update them.

    Returns:
        A function with the arguments of `loss_fn` that returns `(losses, g0)`, or
        `((losses, aux), g0)` with `has_aux`.

    Raises:
        ValueError: if `loss_fn` is no function; when called, if a loss is not a
            floating-point scalar, or a parameter not a floating-point array.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: {"left": (w - 1) ** 2, "right": (w + 3) ** 2}
        >>> losses, grad = samo_jax.mean_value_and_grad(loss_fn)(jnp.array(2.0))
        >>> print({name: float(loss) for name, loss in losses.items()}, float(grad))
        {'left': 1.0, 'right': 25.0} 6.0
    """
    if not callable(loss_fn):
        raise ValueError(
            f"`loss_fn` must be a function, got {loss_fn!r}. Call what it returns: "
            "`mean_value_and_grad(loss_fn)(params)`."
        )

    def mean_loss(params, *args, **kwargs):
        with explained(params):
            output = loss_fn(params, *args, **kwargs)
        losses = losses_of(output, has_aux)
        task_names(losses)
        return jnp.mean(stack_losses(losses)), output

    def value_and_grad(params, *args, **kwargs):
        check_params(params)
        (_, output), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            params, *args, **kwargs
        )
        return output, grads

    return value_and_grad


def task_gradients(loss_fn: LossFn, params: PyTree, *, unroll: Unroll = None) -> PyTree:
    """Gradients of every task, `g_i = grad l_i(theta)`.

    Args:
        loss_fn: params to K losses (a pytree of scalars or a (K,) array).
        params: theta, a pytree of floating-point arrays.
        unroll: see `multitask`.

    Returns:
        A pytree like `params` whose leaves have a leading task axis, shape (K, ...).

    Raises:
        ValueError: if a loss is not a floating-point scalar, a parameter not a
            floating-point array, or `unroll` neither None, a bool nor positive.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: {"left": (w - 1) ** 2, "right": (w + 3) ** 2}
        >>> print(samo_jax.task_gradients(loss_fn, jnp.array(2.0)))
        [ 2. 10.]
    """
    check_unroll(unroll)
    check_params(params)
    check_loss_fn("loss_fn", loss_fn)
    num_tasks = len(task_names(jax.eval_shape(loss_fn, params)))
    return task_values_and_gradients(loss_fn, params, num_tasks, unroll)[1]


def task_value_and_gradient(
    loss_fn: LossFn, params: PyTree, task: int | jax.Array, unroll: Unroll
) -> tuple[jax.Array, PyTree]:
    """Loss of one task, and its gradient like `params`; `unroll` as in `task_loss`."""
    return jax.value_and_grad(lambda p: task_loss(loss_fn, p, task, unroll))(params)


def task_values_and_gradients(
    loss_fn: LossFn, params: PyTree, num_tasks: int, unroll: Unroll
) -> tuple[jax.Array, PyTree]:
    """Losses, shape (K,), and gradients with a leading task axis, all at `params`."""
    index = jnp.zeros(num_tasks, jnp.int32)
    own = value_and_gradient_at(loss_fn, [params], index, unroll)
    return map_tasks(own, num_tasks, unroll)


def value_and_gradient_at(
    loss_fn: LossFn, points: Sequence[PyTree], index: jax.Array, unroll: Unroll
) -> ValueAndGradient:
    """`i` to task i's loss and gradient at its own one of P points.

    P forward and K backward passes: what a backward pass needs is selected at run time.

    Args:
        loss_fn: params to K losses.
        points: P pytrees like params.
        index: which point is each task's, shape (K,), int.
        unroll: of the loop over tasks in which the function is to be called.
    """
    if not is_unrolled(unroll, len(index)):
        split = split_tasks(loss_fn, points[0])
        passes = forward_passes(split.losses, points)
        return value_and_gradient_of(split, points, passes, index, unroll)

    def value_and_gradient(i):
        loss, pullback = _select(
            _forward(lambda p: select_loss(loss_fn(p), i), points), index[i]
        )
        return loss, pullback(jnp.ones_like(loss))[0]

    return value_and_gradient


def forward_passes(loss_fn: LossFn, points: Sequence[PyTree]) -> Passes:
    """All losses, shape (K,), and the pullback, at each of P points."""
    return _forward(lambda p: stack_losses(loss_fn(p)), points)


def value_and_gradient_of(
    split: Split,
    points: Sequence[PyTree],
    passes: Passes,
    index: jax.Array,
    unroll: Unroll = None,
) -> ValueAndGradient:
    """A traced `i` to task i's loss and gradient at its own one of P points.

    A backward pass a call; `passes` are the forward passes of all losses.
    """
    losses = lax.select_n(index, *(losses for losses, _ in passes))
    one_hot = jnp.diag(jnp.ones_like(losses))

    def select(i):
        pullback = _select([pullback for _, pullback in passes], index[i])
        return losses[i], pullback(one_hot[i])[0]

    if is_chunked(unroll):
        return select
    starts = [jax.vjp(split.trunk, point, has_aux=True) for point in points]
    links = [
        partial(lambda *links: links, floats, others) for floats, _, others in starts
    ]
    pullbacks = [_in_loop(pullback, floats) for floats, pullback, _ in starts]

    def branch(i):
        floats, others = lax.switch(index[i], links)
        loss, gradient = jax.value_and_grad(split.tail)(floats, others, i)
        (gradient,) = lax.switch(index[i], pullbacks, gradient)
        return loss.astype(losses.dtype), gradient

    # A branch copies little, but the host of a GPU waits for it.
    return lambda i: lax.platform_dependent(i, cpu=branch, default=select)


def products_with_gradients(
    passes: Passes, index: jax.Array
) -> Callable[[PyTree], jax.Array]:
    """`v -> <g_i, v>` with each task's gradient at its own one of P points, shape (K,).

    P passes a call, each a backward pass transposed: unlike `jax.jvp`, it neither
    repeats the forward pass nor refuses a `jax.custom_vjp`.
    """
    # Each device's own, inside `jax.shard_map`.
    ones = jnp.ones_like(passes[0][0])

    def products(v):
        v = jax.tree.map(lambda leaf: leaf * ones[0].astype(leaf.dtype), v)
        columns = [jax.vjp(pullback, ones)[1]((v,))[0] for _, pullback in passes]
        return lax.select_n(index, *columns)

    return products


def values_and_weighted_gradient(
    passes: Passes, index: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """Each task's loss at its own one of P points, and `w -> sum_i w_i g_i` there.

    P backward passes a call.
    """
    losses = lax.select_n(index, *(losses for losses, _ in passes))
    # Each device's own, inside `jax.shard_map`.
    ones = jnp.ones_like(losses)

    def weighted_gradient(weights):
        parts = [
            pullback(ones * keep(index == point, weights))[0]
            for point, (_, pullback) in enumerate(passes)
        ]
        return jax.tree.map(lambda *leaves: sum(leaves), *parts)

    return losses, weighted_gradient


def _in_loop(function: Callable, *args: Any) -> Callable:
    """`function` on a CPU, with all that its arguments do not change done before."""
    closed, restore = traced(function, *args)
    run = jaxpr_as_fun(precomputed(canonical_program(closed)))
    return lambda *args: restore(run(*jax.tree.leaves(args)))


def _forward(function: Callable, points: Sequence[PyTree]) -> Passes:
    forward = partial(jax.vjp, function)
    if len(points) > 1:
        # Traced once for all points, so that their pullbacks have one structure.
        forward = jax.jit(forward)
    return [forward(point) for point in points]


def _select(passes: list[Any], index: jax.Array) -> Any:
    return jax.tree.map(lambda *leaves: lax.select_n(index, *leaves), *passes)
