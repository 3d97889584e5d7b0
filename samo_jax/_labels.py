"""`ParamLabels`: leaves shared by all tasks, heads of one, frozen leaves; and masks."""

from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from samo_jax._checks import check_function
from samo_jax._tree import PyTree, zero_unless

SHARED = "shared"
FROZEN = "frozen"
# Stands for the label that the losses give.
INFER = "infer"


ParamLabels: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None
Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None


def label_leaves(params: PyTree, labels: ParamLabels) -> PyTree:
    """`labels` (all `SHARED` where None), broadcast to a pytree like `params`.

    The index of a task, which names it where the losses are a list, becomes a str.
    """
    # `optax.tree.map_params` has a tree without leaves stand for the parameters.
    if labels is None or not jax.tree.leaves(params):
        return jax.tree.map(lambda _: SHARED, params)
    return jax.tree.map(_task_name, prefix_leaves(params, labels, "param_labels"))


def _task_name(label: Any) -> Any:
    is_index = isinstance(label, Integral) and not isinstance(label, bool)
    return str(int(label)) if is_index else label


def prefix_leaves(params: PyTree, prefix: ParamLabels, argument: str) -> PyTree:
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


def mask_leaves(params: PyTree, mask: Mask, argument: str = "mask") -> PyTree:
    """`mask`, a prefix of bools or a function, broadcast to a pytree like `params`."""
    chosen = prefix_leaves(params, mask, argument)
    for leaf in jax.tree.leaves(chosen):
        if getattr(leaf, "dtype", type(leaf)) not in (bool, jnp.bool_):
            raise ValueError(
                f"`{argument}` must be a pytree prefix of bools, got {leaf!r}. True "
                "marks what to take."
            )
    return chosen


def check_labels(labels: PyTree, names: tuple[str, ...]) -> None:
    """Raise if a label is neither `SHARED`, `FROZEN` nor the name of a task."""
    reserved = sorted({SHARED, FROZEN} & {*names} & {*jax.tree.leaves(labels)})
    if reserved:
        raise ValueError(
            f"`param_labels` must tell tasks apart, got {reserved[0]!r} where a task "
            "has that name, too. Rename its loss."
        )
    known = {SHARED, FROZEN, *names}
    unknown = {
        repr(x)
        for x in jax.tree.leaves(labels)
        if not (isinstance(x, str) and x in known)
    }
    if unknown:
        raise ValueError(
            f"`param_labels` must label every leaf 'shared', 'frozen' or with a task's "
            f"name ({', '.join(names)}); got {', '.join(sorted(unknown))}. "
            "Rename the labels or the losses."
        )


def only_shared(tree: PyTree, labels: PyTree) -> PyTree:
    """`tree` without the leaves of task heads (None in their place)."""
    return jax.tree.map(
        lambda label, leaf: leaf if label == SHARED else None, labels, tree
    )


def only_heads(tree: PyTree, labels: PyTree) -> PyTree:
    """`tree` without the leaves that tasks share (None in their place)."""
    return jax.tree.map(
        lambda label, leaf: None if label == SHARED else leaf, labels, tree
    )


def own_heads(task_grads: PyTree, labels: PyTree, tasks: tuple[str, ...]) -> PyTree:
    """Row i on the head of task i, of a tree with a leading task axis."""
    return jax.tree.map(
        lambda label, leaf: None if label == SHARED else leaf[tasks.index(label)],
        labels,
        task_grads,
    )


def only_trained(tree: PyTree, labels: PyTree) -> PyTree:
    """`tree` without frozen leaves (None in their place)."""
    if FROZEN not in jax.tree.leaves(labels):
        return tree
    return jax.tree.map(
        lambda label, leaf: None if label == FROZEN else leaf, labels, tree
    )


def with_inferred_as(label: str, labels: PyTree) -> PyTree:
    """The labels with this one where they are to be inferred."""
    return jax.tree.map(lambda given: label if given == INFER else given, labels)


def with_frozen(params: PyTree, labels: PyTree) -> Callable[[PyTree], PyTree]:
    """A function that puts the frozen leaves of `params` beside trained ones."""

    def whole(trained):
        return jax.tree.map(
            lambda label, leaf, new: leaf if label == FROZEN else new,
            labels,
            params,
            trained,
        )

    return whole


def zeros_where_frozen(tree: PyTree, params: PyTree) -> PyTree:
    """`tree` with zeros like the parameters where it has no leaf."""
    return jax.tree.map(
        lambda leaf, new: jnp.zeros_like(leaf) if new is None else new, params, tree
    )


def mask_other_heads(
    eps: PyTree, labels: PyTree, tasks: tuple[str, ...], i: int | jax.Array
) -> PyTree:
    """`eps` on shared leaves and on the task's own head, zero on other heads."""

    def mask(leaf, label):
        if label == SHARED:
            return leaf
        return zero_unless(tasks.index(label) == i, leaf)

    return jax.tree.map(mask, eps, labels)
