"""Tasks: their losses, gradients, labels, and the loop over them."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import keystr

from samo_jax._tree import PyTree, accumulator_dtype

SHARED = "shared"

LossTree: TypeAlias = Any
Unroll: TypeAlias = bool | int
ParamLabels: TypeAlias = Any | Callable[[PyTree], Any] | None


class LossFn(Protocol):
    """`loss_fn(params) -> losses`, one scalar per task.

    It closes over the batch, dropout keys and batch statistics. `losses` is a pytree of
    K scalars (a dict by task name, a list, ...) or one (K,) array; leaf order is task
    order (JAX sorts the keys of a dict).
    """

    def __call__(self, params: PyTree, /) -> LossTree:
        """Return the K task losses at `params`."""
        ...


def loss_leaves(losses: LossTree) -> list[jax.Array]:
    """The K scalars, in task order."""
    leaves = jax.tree.leaves(losses)
    if len(leaves) == 1 and jnp.ndim(leaves[0]) == 1:
        return [leaves[0][i] for i in range(len(leaves[0]))]
    return leaves


def task_names(losses: LossTree, num_tasks: int | None = None) -> tuple[str, ...]:
    """Check the losses (arrays or shapes); name each task by its path in the pytree."""
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(losses)
    names = [keystr(path, simple=True, separator="/") for path, _ in paths_and_leaves]
    shapes = [jnp.shape(leaf) for _, leaf in paths_and_leaves]
    if len(shapes) == 1 and len(shapes[0]) == 1:
        names, shapes = [str(i) for i in range(shapes[0][0])], [()]
    names = [name or "0" for name in names]
    wanted = len(names) if num_tasks is None else num_tasks
    for name, shape in zip(names, shapes, strict=False):
        if shape:
            raise ValueError(
                f"`loss_fn` must return a pytree of {wanted} scalars or one "
                f"({wanted},) array; got leaf '{name}' of shape {shape}. Reduce over "
                "the batch first."
            )
    for name, (_, leaf) in zip(names, paths_and_leaves, strict=False):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"`loss_fn` must return floating-point losses; got leaf '{name}' of "
                f"dtype {jnp.result_type(leaf)}. A count or an accuracy has no "
                "gradient."
            )
    if len(names) != max(wanted, 1):
        required = f"`num_tasks`={wanted}" if num_tasks else "one or more"
        raise ValueError(
            f"`loss_fn` must return {required} losses; got {len(names)}: "
            f"{', '.join(names)}. Change `num_tasks` or the losses."
        )
    return tuple(names)


def select_loss(losses: LossTree, task: int | jax.Array) -> jax.Array:
    """The loss of one task; a Python index lets JAX drop the other tasks' passes."""
    return select_leaf(loss_leaves(losses), task)


def select_leaf(leaves: list[jax.Array], task: int | jax.Array) -> jax.Array:
    """The array of one task; a traced index stacks them."""
    return leaves[task] if isinstance(task, int) else jnp.stack(leaves)[task]


def map_tasks(fn: Callable[[Any], Any], num_tasks: int, unroll: Unroll) -> PyTree:
    """Stack `fn(0), ..., fn(K-1)` along a new leading axis.

    `unroll` True traces every call with a Python index, False is one `lax.map`, an int
    a `lax.map` over chunks of that many tasks.
    """
    if unroll is True:
        return jax.tree.map(
            lambda *parts: jnp.stack(parts), *(fn(i) for i in range(num_tasks))
        )
    batch_size = None if unroll is False else unroll
    return lax.map(fn, jnp.arange(num_tasks), batch_size=batch_size)


def check_unroll(unroll: Unroll) -> None:
    """Raise unless `unroll` is a bool or a positive int."""
    if (
        not isinstance(unroll, int)
        or unroll < 0
        or (unroll == 0 and unroll is not False)
    ):
        raise ValueError(
            "`unroll` must be True, False or a positive number of tasks per chunk, "
            f"got {unroll!r}."
        )


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
        ValueError: when called, if a loss is not a floating-point scalar.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: {"left": (w - 1) ** 2, "right": (w + 3) ** 2}
        >>> losses, grad = samo_jax.mean_value_and_grad(loss_fn)(jnp.array(2.0))
        >>> print({name: float(loss) for name, loss in losses.items()}, float(grad))
        {'left': 1.0, 'right': 25.0} 6.0
    """

    def mean_loss(params, *args, **kwargs):
        output = loss_fn(params, *args, **kwargs)
        losses = output[0] if has_aux else output
        task_names(losses)
        leaves = [leaf.astype(accumulator_dtype()) for leaf in loss_leaves(losses)]
        return jnp.mean(jnp.stack(leaves)), output

    def value_and_grad(params, *args, **kwargs):
        (_, output), grads = jax.value_and_grad(mean_loss, has_aux=True)(
            params, *args, **kwargs
        )
        return output, grads

    return value_and_grad


def task_gradients(loss_fn: LossFn, params: PyTree, *, unroll: Unroll = True) -> PyTree:
    """Gradients of every task, `g_i = grad l_i(theta)`.

    Args:
        loss_fn: params to K losses (a pytree of scalars or a (K,) array).
        params: theta, a pytree of floating-point arrays.
        unroll: True traces K passes, of which XLA drops the other tasks' heads; False
            loops with `lax.map` over one shared forward pass (flat compile time and
            memory for many tasks; slow for convolutions on CPU); an int maps in chunks.

    Returns:
        A pytree like `params` whose leaves have a leading task axis, shape (K, ...).

    Raises:
        ValueError: if a loss is not a floating-point scalar, or `unroll` is neither a
            bool nor positive.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: {"left": (w - 1) ** 2, "right": (w + 3) ** 2}
        >>> print(samo_jax.task_gradients(loss_fn, jnp.array(2.0)))
        [ 2. 10.]
    """
    check_unroll(unroll)
    num_tasks = len(task_names(jax.eval_shape(loss_fn, params)))
    return task_values_and_gradients(loss_fn, params, num_tasks, unroll)[1]


def task_values_and_gradients(
    loss_fn: LossFn, params: PyTree, num_tasks: int, unroll: Unroll
) -> tuple[jax.Array, PyTree]:
    """Losses, shape (K,), and gradients with a leading task axis, all at `params`."""
    if unroll is True:
        return map_tasks(
            lambda i: task_value_and_gradient(loss_fn, params, i), num_tasks, True
        )
    losses, pullback = jax.vjp(lambda p: jnp.stack(loss_leaves(loss_fn(p))), params)
    one_hot = jnp.diag(jnp.ones_like(losses))
    return losses, map_tasks(lambda i: pullback(one_hot[i])[0], num_tasks, unroll)


def task_value_and_gradient(
    loss_fn: LossFn, params: PyTree, task: int | jax.Array
) -> tuple[jax.Array, PyTree]:
    """Loss of one task, and its gradient like `params`."""
    return jax.value_and_grad(lambda p: select_loss(loss_fn(p), task))(params)


def label_leaves(
    params: PyTree, labels: ParamLabels, argument: str = "param_labels"
) -> Any:
    """`labels` (all `SHARED` where None), broadcast to a pytree like `params`."""
    if labels is None:
        return jax.tree.map(lambda _: SHARED, params)
    labels = labels(params) if callable(labels) else labels
    try:
        return jax.tree.broadcast(labels, params)
    except ValueError as error:
        raise ValueError(
            f"`{argument}` must be a pytree prefix of the parameters, or a function of "
            f"them that returns one; got another structure: {error}"
        ) from error


def check_labels(labels: Any, names: tuple[str, ...]) -> None:
    """Raise if a label is neither `SHARED` nor the name of a task."""
    unknown = sorted({str(x) for x in jax.tree.leaves(labels)} - {SHARED, *names})
    if unknown:
        raise ValueError(
            f"`param_labels` must label every leaf 'shared' or with a task's name "
            f"({', '.join(names)}); got {', '.join(map(repr, unknown))}."
        )


def keep_shared(tree: PyTree, labels: Any) -> PyTree:
    """`tree` without the leaves of task heads (None in their place)."""
    return jax.tree.map(
        lambda label, leaf: leaf if label == SHARED else None, labels, tree
    )
