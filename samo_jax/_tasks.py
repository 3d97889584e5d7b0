"""`LossFn` and tasks: their losses, names, and arrays with one number per task."""

from collections.abc import Mapping
from numbers import Number
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import all_leaves, keystr, tree_leaves_with_path
from jax.typing import ArrayLike

from samo_jax._checks import TaskValues, check_function, is_scalar
from samo_jax._tree import PyTree, accumulator_dtype, safe_divide

LossTree: TypeAlias = Any


class LossFn(Protocol):
    """`loss_fn(params) -> losses`, one scalar per task.

    It closes over the batch, dropout keys and batch statistics. `losses` is a pytree of
    K scalars (a dict by task name, a list, ...) or one (K,) array; leaf order is task
    order (JAX sorts the keys of a dict).
    """

    def __call__(self, params: PyTree, /) -> LossTree:
        """Return the K task losses at `params`."""
        ...


def losses_of(output: Any, has_aux: bool) -> LossTree:
    """The losses among what a loss function returns, `(losses, aux)` with `has_aux`."""
    if has_aux and not (isinstance(output, tuple) and len(output) == 2):
        raise ValueError(
            "`loss_fn` must return `(losses, aux)` with has_aux=True, got "
            f"{jax.tree.structure(output)}. Leave `has_aux` out."
        )
    return output[0] if has_aux else output


def loss_leaves(losses: LossTree) -> list[jax.Array]:
    """The K scalars, in task order; a loss may be a Python number."""
    leaves = list(map(jnp.asarray, jax.tree.leaves(losses)))
    if len(leaves) == 1 and leaves[0].ndim == 1:
        return [leaves[0][i] for i in range(len(leaves[0]))]
    return leaves


def stack_losses(losses: LossTree) -> jax.Array:
    """The K losses as one array, shape (K,), in `accumulator_dtype`."""
    dtype = accumulator_dtype()
    leaves = jax.tree.leaves(losses)
    if len(leaves) == 1 and jnp.ndim(leaves[0]) == 1:
        return jnp.asarray(leaves[0], dtype)
    return jnp.stack([jnp.asarray(leaf, dtype) for leaf in leaves])


def check_loss_fn(name: str, loss_fn: Any) -> None:
    """Raise unless it is a function of the parameters alone."""
    remedy = "Close it over the batch: `lambda params: losses(params, batch)`."
    check_function(name, loss_fn, "the parameters", remedy)


def task_names(
    losses: LossTree, num_tasks: int | None = None, argument: str = "loss_fn"
) -> tuple[str, ...]:
    """Check the losses (arrays or shapes); name each task by its path in the pytree."""
    try:
        return _task_names(losses, num_tasks, argument)
    except ValueError:
        if _has_aux(losses, num_tasks, argument):
            raise ValueError(
                f"`{argument}` must return the losses only, got `(losses, aux)`. Leave "
                "out `aux`; `mean_value_and_grad(loss_fn, has_aux=True)` alone takes "
                "it."
            ) from None
        raise


def _has_aux(losses: LossTree, num_tasks: int | None, argument: str) -> bool:
    """Whether these are losses beside other data, rather than two wrong losses."""
    if not (isinstance(losses, tuple) and len(losses) == 2):
        return False
    if num_tasks is None and all(map(all_leaves, ([x] for x in losses))):
        return False
    try:
        _task_names(losses[0], num_tasks, argument)
    except ValueError:
        return False
    return True


def _task_names(
    losses: LossTree, num_tasks: int | None, argument: str
) -> tuple[str, ...]:
    paths_and_leaves = tree_leaves_with_path(losses)
    for path, leaf in paths_and_leaves:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, Number)):
            raise ValueError(
                f"`{argument}` must return a pytree of scalars, got leaf "
                f"'{_name_of(path)}' of type {type(leaf)}. "
                "Return the losses alone, as JAX arrays."
            )
    names = [_name_of(path) for path, _ in paths_and_leaves]
    shapes = [jnp.shape(leaf) for _, leaf in paths_and_leaves]
    if len(shapes) == 1 and len(shapes[0]) == 1:
        names, shapes = [str(i) for i in range(shapes[0][0])], [()]
    names = [name or "0" for name in names]
    wanted = len(names) if num_tasks is None else num_tasks
    for name, shape in zip(names, shapes, strict=False):
        if shape:
            raise ValueError(
                f"`{argument}` must return a pytree of {wanted} scalars or one "
                f"({wanted},) array; got leaf '{name}' of shape {shape}. Reduce over "
                "the batch first."
            )
    for name, (_, leaf) in zip(names, paths_and_leaves, strict=False):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"`{argument}` must return floating-point losses; got leaf '{name}' of "
                f"dtype {jnp.result_type(leaf)}. A count or an accuracy has no "
                "gradient."
            )
    if len(names) != max(wanted, 1):
        required = f"`num_tasks`={wanted}" if num_tasks else "one or more"
        raise ValueError(
            f"`{argument}` must return {required} losses; got {len(names)}: "
            f"{', '.join(names) or 'none'}. Change `num_tasks` or the losses."
        )
    return tuple(names)


def _name_of(path: Any) -> str:
    return keystr(path, simple=True, separator="/")


def values_by_name(name: str, values: Any) -> dict[str, Any] | None:
    """The numbers of a pytree in the structure of the losses, by the tasks' names.

    None: it is a number, an array or a sequence, which names no task.
    """
    nameless = isinstance(values, list | tuple) and not hasattr(values, "_fields")
    if values is None or nameless or all_leaves([values]):
        return None
    found = {_name_of(path): leaf for path, leaf in tree_leaves_with_path(values)}
    for task, value in found.items():
        if not is_scalar(value):
            raise ValueError(
                f"`{name}` must have one real number per task, got {value!r} for "
                f"'{task}'. Give it the structure of the losses."
            )
    return found


def in_task_order(name: str, values: Mapping[str, Any], tasks: tuple[str, ...]) -> Any:
    """The numbers in the order of the tasks; raise unless the names are the same."""
    if set(values) != set(tasks):
        wrong = {
            "unknown": [task for task in values if task not in tasks],
            "missing": [task for task in tasks if task not in values],
        }
        said = [f"{what}: {', '.join(of)}" for what, of in wrong.items() if of]
        raise ValueError(
            f"`{name}` must name the tasks, {', '.join(tasks)}, got "
            f"{', '.join(values) or 'none'} ({'; '.join(said)}). Name them like the "
            "losses."
        )
    ordered = [values[task] for task in tasks]
    traced = any(isinstance(value, jax.core.Tracer) for value in ordered)
    return jnp.stack(list(map(jnp.asarray, ordered))) if traced else ordered


def select_loss(losses: LossTree, task: int | jax.Array) -> jax.Array:
    """The loss of one task; a Python index lets JAX drop the other tasks' passes."""
    return select_leaf(loss_leaves(losses), task)


def select_leaf(leaves: list[jax.Array], task: int | jax.Array) -> jax.Array:
    """The array of one task; a traced index stacks them."""
    return leaves[task] if isinstance(task, int) else jnp.stack(leaves)[task]


def per_task(
    name: str, values: TaskValues | None, num_tasks: int, default: ArrayLike
) -> jax.Array:
    """`values` (one for all, or K of them; None: `default`) as a (K,) array."""
    given: Any = default if values is None else values
    vector = jnp.asarray(given, accumulator_dtype())
    if vector.shape not in {(), (num_tasks,)}:
        raise ValueError(
            f"`{name}` must be one number per task, shape ({num_tasks},), got shape "
            f"{vector.shape}. Give its entries in the order of the losses."
        )
    return jnp.broadcast_to(vector, (num_tasks,))


def count_tasks(*arrays: PyTree) -> int:
    """K, the length of all arrays that are there (not None)."""
    return len(jax.tree.leaves(arrays)[0])


def present_tasks(present: ArrayLike | None, num_tasks: int) -> jax.Array:
    """The tasks that take part (None: all), shape (K,), bool; raise on other shapes."""
    if present is None:
        return jnp.ones((num_tasks,), bool)
    present = jnp.asarray(present, bool)
    if present.shape != (num_tasks,):
        raise ValueError(
            f"`present` must be one bool per task, shape ({num_tasks},), got shape "
            f"{present.shape}. None means all tasks."
        )
    return present


def uniform_weights(num_tasks: int, present: ArrayLike | None = None) -> jax.Array:
    """Equal weights of the present tasks (None: all) that sum to one, shape (K,)."""
    shares = present_tasks(present, num_tasks).astype(accumulator_dtype())
    return safe_divide(shares, jnp.sum(shares))
