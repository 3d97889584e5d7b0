"""`by_task`: losses of which each can be computed without the others."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._checks import check_count
from samo_jax._task_loop import Unroll, check_unroll, is_chunked, map_tasks
from samo_jax._tasks import LossFn, LossTree, select_loss
from samo_jax._tree import PyTree

TaskLoss: TypeAlias = Callable[[PyTree, int | jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class ByTask:
    """A `LossFn` that can compute the loss of one task alone; made by `by_task`.

    Attributes:
        task_loss: `task_loss(params, i)`, the scalar of task i, and nothing of the
            others. `i` may be traced.
        num_tasks: number K of tasks.
        names: the K names, in task order. None: the losses are an array.
        unroll: way in which the losses are mapped, see `multitask`, whose default it
            is.
    """

    task_loss: TaskLoss
    num_tasks: int
    names: tuple[str, ...] | None = None
    unroll: Unroll = None

    def __call__(self, params: PyTree, /) -> LossTree:
        """The K losses: a dict by name, or an array of shape (K,)."""
        task_loss = functools.partial(self.task_loss, params)
        losses = map_tasks(task_loss, self.num_tasks, self.unroll)
        if self.names is None:
            return losses
        return {name: losses[i] for i, name in enumerate(self.names)}


def by_task(
    loss: Callable[[PyTree, Any], jax.Array],
    batches: PyTree | list[PyTree] | int,
    *,
    names: Sequence[str] | None = None,
    unroll: Unroll = None,
) -> ByTask:
    """A `loss_fn` of K tasks with a batch each, of which no task computes another's.

    `l_i(theta) = loss(theta, batch_i)`. A step takes the gradient of task i in one
    forward and one backward pass of task i alone, however it loops over the tasks: K
    tasks with n / K examples each cost what one pass over n examples does. (Loops over
    another `loss_fn` compute all losses, and go back through all of them K times.)

    Args:
        loss: `loss(params, batch)`, a scalar: the loss of one task. It gets the index i
            (a Python int, or traced in a loop) in place of a batch if `batches` is K.
        batches: the batches of the tasks: a pytree of arrays with a leading task axis,
            shape (K, ...), such as a tuple `(x, y)` or a dict; or a list of K pytrees,
            whose shapes may differ (in chunks they may not); or the int K.
        names: the K names, in the order of `batches`. As in any dict of losses, task
            order is then alphabetical. None: the losses are an array of shape (K,).
        unroll: see `multitask`, which takes it from here unless it has its own. For
            tasks of one example each, an int: chunks of so many, under `jax.vmap`.

    Returns:
        A `loss_fn` for `mean_value_and_grad`, `task_gradients` and `update` (also as
        `probe_loss_fn` and among `sample_loss_fns`). Make it inside the jitted step.

    Raises:
        ValueError: if `loss` is no function of two arguments, the batches have no
            common leading axis, `names` are not K distinct strings, or `unroll` does
            not fit; when called, if `loss` does not return a floating-point scalar.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> loss = lambda w, batch: jnp.mean((batch["x"] * w - batch["y"]) ** 2)
        >>> batches = {"x": jnp.ones((3, 4)), "y": jnp.arange(12.0).reshape(3, 4)}
        >>> loss_fn = samo_jax.by_task(loss, batches)
        >>> print(loss_fn(jnp.array(1.5)))
        [ 1.25 17.25 65.25]
        >>> print(samo_jax.task_gradients(loss_fn, jnp.array(1.5)))
        [  0.  -8. -16.]
    """
    if not callable(loss):
        raise ValueError(
            f"`loss` must be a function, got {loss!r}. Pass `loss(params, batch)`, the "
            "scalar loss of one task."
        )
    check_unroll(unroll)
    num_tasks, batch_of = _batches(batches, unroll)
    order = _task_order(names, num_tasks)

    def task_loss(params, i):
        if names is not None:
            i = order[i] if isinstance(i, int) else jnp.asarray(order)[i]
        return batch_of(lambda batch: _checked(loss(params, batch)), i)

    names = None if names is None else tuple(names[i] for i in order)
    return ByTask(task_loss, num_tasks, names, unroll)


def task_loss(loss_fn: LossFn, params: PyTree, i: int | jax.Array) -> jax.Array:
    """The loss of task i: alone where the function can, else selected from all K."""
    if isinstance(loss_fn, ByTask):
        return loss_fn.task_loss(params, i)
    return select_loss(loss_fn(params), i)


def one_by_one(loss_fn: LossFn) -> Callable[[PyTree], LossTree]:
    """The losses, of which no operation computes several if they are by task."""
    if not isinstance(loss_fn, ByTask):
        return loss_fn
    return lambda params: [
        loss_fn.task_loss(params, i) for i in range(loss_fn.num_tasks)
    ]


def unroll_of(loss_fn: LossFn, unroll: Unroll) -> Unroll:
    """`unroll`, or if that is None the one that `by_task` got."""
    is_default = unroll is None and isinstance(loss_fn, ByTask)
    return loss_fn.unroll if is_default else unroll


def map_params(
    loss_fn: Callable[..., Any],
    fn: Callable[[PyTree], PyTree],
    after: Callable[[Any], Any] = lambda output: output,
) -> Callable[..., Any]:
    """`after(loss_fn(fn(params), ...))`; losses by task stay losses by task."""
    if isinstance(loss_fn, ByTask):
        inner = loss_fn.task_loss
        return dataclasses.replace(
            loss_fn, task_loss=lambda params, i: after(inner(fn(params), i))
        )

    @functools.wraps(loss_fn)
    def mapped(params, *args, **kwargs):
        return after(loss_fn(fn(params), *args, **kwargs))

    return mapped


def _batches(batches: Any, unroll: Unroll) -> tuple[int, Callable[..., jax.Array]]:
    """K, and `batch_of(fn, i)`, which calls a function with the batch of task i."""
    if isinstance(batches, Integral):
        check_count("batches", batches, "An int is K, the number of tasks.")
        return int(cast(int, batches)), lambda fn, i: fn(i)
    if isinstance(batches, list):
        return _listed(batches, unroll)
    leaves = jax.tree.leaves(batches)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            "`batches` must be arrays with one leading task axis, shape (K, ...), got "
            f"leaves of shapes {shapes}. Batches of different shapes go into a list, "
            "one for each task."
        )
    return shapes[0][0], _stacked(batches)


def _stacked(batches: PyTree) -> Callable[..., jax.Array]:
    batches = jax.tree.map(jnp.asarray, batches)
    return lambda fn, i: fn(jax.tree.map(lambda leaf: leaf[i], batches))


def _listed(
    batches: list[PyTree], unroll: Unroll
) -> tuple[int, Callable[..., jax.Array]]:
    if not batches:
        raise ValueError("`batches` must not be empty, got []. Pass one for each task.")
    first, *others = map(_types, batches)
    if all(other == first for other in others) and None not in first[1]:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        return len(batches), _stacked(stacked)
    if is_chunked(unroll):
        raise ValueError(
            "`batches` must have equal shapes to be taken in chunks, got "
            f"{[jax.tree.map(jnp.shape, batch) for batch in batches]} and "
            f"`unroll`={unroll!r}. Pad them, or leave out `unroll`."
        )

    def batch_of(fn, i):
        if isinstance(i, int):
            return fn(batches[i])
        return lax.switch(i, [functools.partial(fn, batch) for batch in batches])

    return len(batches), batch_of


def _types(batch: PyTree) -> tuple[Any, list[Any]]:
    """Structure, shapes and dtypes of a batch; None for what is no array."""
    leaves, structure = jax.tree.flatten(batch)
    is_array = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]
    return structure, [
        (leaf.shape, leaf.dtype) if known else None
        for leaf, known in zip(leaves, is_array, strict=True)
    ]


def _task_order(names: Sequence[str] | None, num_tasks: int) -> list[int]:
    """The place in `batches` of each task, in task order."""
    if names is None:
        return list(range(num_tasks))
    good = not isinstance(names, str) and all(isinstance(name, str) for name in names)
    if not good or len(set(names)) != len(names) or len(names) != num_tasks:
        raise ValueError(
            f"`names` must be {num_tasks} distinct strings, got {names!r}. Give one "
            "for each batch, in their order."
        )
    return sorted(range(num_tasks), key=lambda i: names[i])


def _checked(loss: Any) -> jax.Array:
    is_scalar = jax.tree_util.all_leaves([loss]) and jnp.shape(loss) == ()
    if not is_scalar or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        got = jax.tree.map(lambda leaf: jax.typeof(leaf).str_short(), loss)
        raise ValueError(
            f"`loss` must return one floating-point scalar, got {got}. Reduce over the "
            "batch, and return nothing else."
        )
    return jnp.asarray(loss)
