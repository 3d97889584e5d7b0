"""Tasks: their losses, labels, and the loop over them."""

from collections.abc import Callable
from numbers import Integral, Number
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import keystr

from samo_jax._arguments import check_function
from samo_jax._jaxprs import canonical_convolutions
from samo_jax._tree import PyTree, accumulator_dtype

SHARED = "shared"
_FEW_TASKS = 8

LossTree: TypeAlias = Any
Unroll: TypeAlias = bool | int | None
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
    return jnp.stack([jnp.asarray(leaf, dtype) for leaf in loss_leaves(losses)])


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
    if num_tasks is None and all(map(jax.tree_util.all_leaves, ([x] for x in losses))):
        return False
    try:
        _task_names(losses[0], num_tasks, argument)
    except ValueError:
        return False
    return True


def _task_names(
    losses: LossTree, num_tasks: int | None, argument: str
) -> tuple[str, ...]:
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(losses)
    for path, leaf in paths_and_leaves:
        if not (hasattr(leaf, "dtype") or isinstance(leaf, Number)):
            raise ValueError(
                f"`{argument}` must return a pytree of scalars, got leaf "
                f"'{keystr(path, simple=True, separator='/')}' of type {type(leaf)}. "
                "Return the losses alone, as JAX arrays."
            )
    names = [keystr(path, simple=True, separator="/") for path, _ in paths_and_leaves]
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


def select_loss(losses: LossTree, task: int | jax.Array) -> jax.Array:
    """The loss of one task; a Python index lets JAX drop the other tasks' passes."""
    return select_leaf(loss_leaves(losses), task)


def select_leaf(leaves: list[jax.Array], task: int | jax.Array) -> jax.Array:
    """The array of one task; a traced index stacks them."""
    return leaves[task] if isinstance(task, int) else jnp.stack(leaves)[task]


def map_tasks(fn: Callable[[Any], Any], num_tasks: int, unroll: Unroll) -> PyTree:
    """Stack `fn(0), ..., fn(K-1)` along a new leading axis.

    `unroll` True traces every call with a Python index, False is one `lax.map`, an int
    a `lax.map` over chunks of that many tasks. None is True for few tasks, else False.
    """
    if is_unrolled(unroll, num_tasks):
        return jax.tree.map(
            lambda *parts: jnp.stack(parts), *(fn(i) for i in range(num_tasks))
        )
    batch_size = unroll if is_chunked(unroll) else None
    loop = canonical_convolutions(
        lambda index: lax.map(fn, index, batch_size=batch_size)
    )
    return loop(jnp.arange(num_tasks))


def is_unrolled(unroll: Unroll, num_tasks: int) -> bool:
    """Whether every task is traced for itself."""
    return num_tasks <= _FEW_TASKS if unroll is None else unroll is True


def is_chunked(unroll: Unroll) -> bool:
    """Whether a loop takes several tasks at once, under `jax.vmap`."""
    return unroll is not None and not isinstance(unroll, bool)


def check_unroll(unroll: Unroll) -> None:
    """Raise unless `unroll` is None, a bool or a positive int."""
    if unroll is not None and (
        not isinstance(unroll, int)
        or unroll < 0
        or (unroll == 0 and unroll is not False)
    ):
        raise ValueError(
            "`unroll` must be None, True, False or a positive number of tasks per "
            f"chunk, got {unroll!r}. None chooses by the number of tasks."
        )


def label_leaves(params: PyTree, labels: ParamLabels) -> Any:
    """`labels` (all `SHARED` where None), broadcast to a pytree like `params`.

    The index of a task, which names it where the losses are a list, becomes a str.
    """
    if labels is None:
        return jax.tree.map(lambda _: SHARED, params)
    return jax.tree.map(_task_name, prefix_leaves(params, labels, "param_labels"))


def _task_name(label: Any) -> Any:
    is_index = isinstance(label, Integral) and not isinstance(label, bool)
    return str(int(label)) if is_index else label


def prefix_leaves(params: PyTree, prefix: Any, argument: str) -> Any:
    """A pytree prefix, or a function that returns one, made a pytree like `params`."""
    if callable(prefix) and not _is_prefix(prefix, params):
        remedy = "A function of paths fits under `jax.tree.map_with_path`."
        check_function(argument, prefix, "the parameters", remedy)
        prefix = prefix(params)
    try:
        return jax.tree.broadcast(prefix, params)
    except ValueError as error:
        raise ValueError(
            f"`{argument}` must be a pytree prefix of the parameters, or a function of "
            f"them that returns one; got another structure: {error}"
        ) from error


def _is_prefix(tree: Any, params: PyTree) -> bool:
    """Whether a callable is a tree: an Equinox module, unlike a function, can be."""
    if jax.tree_util.all_leaves([tree]):
        return False
    try:
        jax.tree.broadcast(tree, params)
    except ValueError:
        return False
    return True


def mask_leaves(params: PyTree, mask: Any, argument: str = "mask") -> Any:
    """`mask`, a prefix of bools or a function, broadcast to a pytree like `params`."""
    chosen = prefix_leaves(params, mask, argument)
    for leaf in jax.tree.leaves(chosen):
        if getattr(leaf, "dtype", type(leaf)) not in (bool, jnp.bool_):
            raise ValueError(
                f"`{argument}` must be a pytree prefix of bools, got {leaf!r}. True "
                "marks what to take."
            )
    return chosen


def check_labels(labels: Any, names: tuple[str, ...]) -> None:
    """Raise if a label is neither `SHARED` nor the name of a task."""
    known = {SHARED, *names}
    unknown = {
        repr(x)
        for x in jax.tree.leaves(labels)
        if not (isinstance(x, str) and x in known)
    }
    if unknown:
        raise ValueError(
            f"`param_labels` must label every leaf 'shared' or with a task's name "
            f"({', '.join(names)}); got {', '.join(sorted(unknown))}. "
            "Rename the labels or the losses."
        )


def keep_shared(tree: PyTree, labels: Any) -> PyTree:
    """`tree` without the leaves of task heads (None in their place)."""
    return jax.tree.map(
        lambda label, leaf: leaf if label == SHARED else None, labels, tree
    )
