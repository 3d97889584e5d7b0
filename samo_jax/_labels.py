"""`ParamLabels`: leaves shared by all tasks, or the head of one; and masks."""

import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from samo_jax._checks import check_function
from samo_jax._jaxprs import Use, dependencies
from samo_jax._tree import PyTree, zero_unless

SHARED = "shared"


ParamLabels: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None
Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree] | None


def label_leaves(params: PyTree, labels: ParamLabels) -> PyTree:
    """`labels` (all `SHARED` where None), broadcast to a pytree like `params`.

    The index of a task, which names it where the losses are a list, becomes a str.
    """
    if labels is None:
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


def only_shared(tree: PyTree, labels: PyTree) -> PyTree:
    """`tree` without the leaves of task heads (None in their place)."""
    return jax.tree.map(
        lambda label, leaf: leaf if label == SHARED else None, labels, tree
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


def check_uses(labels: PyTree, tasks: tuple[str, ...], program: Any) -> None:
    """Raise if a leaf is labelled with a task while another one's loss needs it.

    Another one's loss does so certainly, or, but for masks and branches, where the
    task's own loss does not depend on the leaf.
    """
    of_heads = [
        (i, keystr(path), label)
        for i, (path, label) in enumerate(tree_leaves_with_path(labels))
        if label != SHARED
    ]
    if not of_heads:
        return
    try:
        losses = dict(zip(tasks, dependencies(program), strict=True))
    except Exception as error:
        # A newer JAX may write programs in another way: no reason to stop a training.
        warnings.warn(
            "`param_labels` were not checked, as the program of `loss_fn` could not be "
            f"read, got {error!r}. Please report it with the version of JAX.",
            stacklevel=3,
        )
        return
    for i, path, label in of_heads:
        own = losses[label]
        unused = own.use(i) == Use.NO
        # A task without examples has a constant loss.
        least = Use.LIKELY if unused and not own.is_constant() else Use.CERTAIN
        users = [
            name
            for name, loss in losses.items()
            if name != label and loss.use(i) >= least
        ]
        if users:
            fault = f", not {label!r}" if unused else ", too"
            label_then = users[0] if unused and len(users) == 1 else SHARED
            raise ValueError(
                "`param_labels` must label a leaf with the one task that uses it, got "
                f"{label!r} for leaf '{path}', which {_some(users)} uses{fault}. "
                f"Label it {label_then!r}."
            )


def _some(names: Sequence[str]) -> str:
    """The first three names."""
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown}, ..." if len(names) > 3 else shown
