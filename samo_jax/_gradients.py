"""`mean_value_and_grad` and `task_gradients`: gradients at the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from samo_jax._by_task import map_params, unroll_of
from samo_jax._checks import check_params, explained
from samo_jax._label_uses import inferred
from samo_jax._labels import ParamLabels, only_trained, with_frozen, zeros_where_frozen
from samo_jax._shared_points import at_points
from samo_jax._task_loop import Unroll, check_unroll, is_unrolled, map_tasks
from samo_jax._tasks import (
    LossFn,
    check_loss_fn,
    losses_of,
    stack_losses,
    task_names,
)
from samo_jax._tree import PyTree


def mean_value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    param_labels: ParamLabels = None,
) -> Callable[..., tuple[Any, PyTree]]:
    """The clean pass: all task losses and `g0`, the gradient of their mean.

    `g0 = grad (1/K) sum_i l_i(theta)` is what `samo` and `multitask` take as incoming
    updates. One forward and one backward pass.

    Args:
        loss_fn: `loss_fn(params, *args, **kwargs)` returning K losses (a pytree of
            scalars or a (K,) array), or `(losses, aux)` with `has_aux`.
        has_aux: whether `loss_fn` also returns auxiliary data, such as updated batch
            statistics. Only this clean pass may update them.
        param_labels: labels as given to `multitask`, where some are "frozen": these
            leaves are not differentiated, and have zeros in g0. None: all are trained.

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
        labels = inferred(
            lambda params: losses_of(loss_fn(params, *args, **kwargs), has_aux),
            params,
            param_labels,
        )
        trained, whole = only_trained(params, labels), with_frozen(params, labels)
        check_params(trained)

        def loss_of_trained(trained):
            return mean_loss(whole(trained), *args, **kwargs)

        (_, output), grads = jax.value_and_grad(loss_of_trained, has_aux=True)(trained)
        return output, zeros_where_frozen(grads, params)

    return value_and_grad


def task_gradients(
    loss_fn: LossFn,
    params: PyTree,
    *,
    unroll: Unroll = None,
    param_labels: ParamLabels = None,
) -> PyTree:
    """Gradients of every task, `g_i = grad l_i(theta)`.

    Args:
        loss_fn: params to K losses (a pytree of scalars or a (K,) array).
        params: theta, a pytree of floating-point arrays.
        unroll: see `multitask`.
        param_labels: see `mean_value_and_grad`.

    Returns:
        A pytree like `params` whose leaves have a leading task axis, shape (K, ...);
        None in place of frozen leaves.

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
    check_loss_fn("loss_fn", loss_fn)
    labels = inferred(loss_fn, params, param_labels)
    trained = only_trained(params, labels)
    check_params(trained)
    num_tasks = len(task_names(jax.eval_shape(loss_fn, params)))
    of_trained = map_params(loss_fn, with_frozen(params, labels))
    return task_values_and_gradients(of_trained, trained, num_tasks, unroll)[1]


def task_values_and_gradients(
    loss_fn: LossFn, params: PyTree, num_tasks: int, unroll: Unroll
) -> tuple[jax.Array, PyTree]:
    """Losses, shape (K,), and gradients with a leading task axis, all at `params`."""
    index = jnp.zeros(num_tasks, jnp.int32)
    unroll = unroll_of(loss_fn, unroll)
    unrolled = is_unrolled(unroll, num_tasks)
    point = at_points(loss_fn, [params], index, unrolled=unrolled)
    return map_tasks(point.value_and_gradient, num_tasks, unroll)
