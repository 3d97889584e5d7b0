"""Gradients of the mean loss and of every task, at one point or a few."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._arguments import check_params, explained
from samo_jax._jaxprs import LossProgram, loss_program
from samo_jax._tasks import (
    LossFn,
    Unroll,
    check_loss_fn,
    check_unroll,
    is_unrolled,
    loss_leaves,
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


def look_into(loss_fn: LossFn, params: PyTree) -> LossProgram:
    """The program of a loss function, whose heads keep a NaN to themselves."""
    return loss_program(lambda params: loss_leaves(loss_fn(params)), params)


def task_loss(loss_fn: LossFn, params: PyTree, task: int | jax.Array) -> jax.Array:
    """The loss of one task, of which the gradient is to be taken."""
    if isinstance(task, int):
        return select_loss(loss_fn(params), task)
    return select_loss(look_into(loss_fn, params).losses(params), task)


def task_value_and_gradient(
    loss_fn: LossFn, params: PyTree, task: int | jax.Array
) -> tuple[jax.Array, PyTree]:
    """Loss of one task, and its gradient like `params`."""
    return jax.value_and_grad(lambda params: task_loss(loss_fn, params, task))(params)


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
        program = look_into(loss_fn, points[0])
        return value_and_gradient_of(forward_passes(program, points), index)
    is_known = len(points) > 1 and look_into(loss_fn, points[0]).is_known

    def value_and_gradient(i):
        def one_loss(params):
            return select_loss(loss_fn(params), i)

        passes = _forward(one_loss, points, is_known)
        loss = lax.select_n(index[i], *(loss for loss, _ in passes))
        return loss, _pull_back(passes, index[i], jnp.ones_like(loss))

    return value_and_gradient


def forward_passes(program: LossProgram, points: Sequence[PyTree]) -> Passes:
    """All losses, shape (K,), and the pullback, at each of P points."""
    return _forward(lambda p: stack_losses(program.losses(p)), points, program.is_known)


def value_and_gradient_of(passes: Passes, index: jax.Array) -> ValueAndGradient:
    """`i` to task i's loss and gradient at its own one of P points.

    A backward pass a call; `passes` are the forward passes of all losses.
    """
    losses = lax.select_n(index, *(losses for losses, _ in passes))
    one_hot = jnp.diag(jnp.ones_like(losses))
    return lambda i: (losses[i], _pull_back(passes, index[i], one_hot[i]))


def products_with_gradients(
    passes: Passes, index: jax.Array
) -> Callable[[PyTree], jax.Array]:
    """`v -> <g_i, v>` with each task's gradient at its own one of P points, shape (K,).

    P passes a call, each a backward pass transposed, which must be linear in the
    cotangent: unlike `jax.jvp`, it does not repeat the forward pass.
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


def _forward(function: Callable, points: Sequence[PyTree], is_known: bool) -> Passes:
    """Value and pullback at each point, traced once for all if that is safe."""
    forward = partial(jax.vjp, function)
    if len(points) > 1 and is_known:
        forward = jax.jit(forward)
    return [forward(point) for point in points]


def _pull_back(passes: Passes, which: jax.Array, cotangent: jax.Array) -> PyTree:
    """The gradient by the pullback of one point, in one backward pass."""
    pullbacks = [pullback for _, pullback in passes]
    if len({jax.tree.structure(pullback) for pullback in pullbacks}) > 1:
        return lax.switch(which, pullbacks, cotangent)[0]
    # What they need is selected: the host of a GPU would wait for a branch.
    select = partial(lax.select_n, which)
    return jax.tree.map(select, *pullbacks)(cotangent)[0]
