"""`infer_labels`: labels from which losses use which leaf, and checks of given ones."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.tree_util import keystr, tree_leaves_with_path

from samo_jax._by_task import ByTask, one_by_one
from samo_jax._checks import explained
from samo_jax._jaxprs import Reach, Use, dependencies
from samo_jax._labels import FROZEN, INFER, SHARED, ParamLabels, label_leaves
from samo_jax._tasks import LossFn, check_loss_fn, task_names
from samo_jax._tree import PyTree

# By task, the inputs that its loss depends on.
Losses: TypeAlias = Mapping[str, Reach]


def infer_labels(
    loss_fn: LossFn, params: PyTree, labels: ParamLabels = INFER
) -> PyTree:
    """Labels of parameters, from which losses depend on which leaf.

    A leaf on which two or more losses depend is "shared"; one that a single loss
    depends on is a head, labelled with the task's name; one without a gradient in any
    loss (through `jax.lax.stop_gradient`, or integers) is "frozen". The program of
    `loss_fn` is looked into, calls such as `jit`, `scan`, `checkpoint` and
    `custom_vjp` included; nothing is computed.

    Heads that are computed by one operation, such as one array of K heads, are shared.
    A head whose task the batch has no examples of is frozen in that step: infer labels
    once, from a batch with all tasks, or at each step by `param_labels="infer"`.

    Args:
        loss_fn: params to K losses.
        params: theta, a pytree of arrays.
        labels: labels that are known: a pytree prefix of the parameters, or a function
            of them, with "infer" where a leaf is to be inferred. With
            `{"encoder": "frozen", "heads": "infer"}` the encoder stays frozen.

    Returns:
        A pytree of strings like `params`, for `param_labels`.

    Raises:
        ValueError: if a leaf cannot be decided, because its way to a loss is not known
            to JAX (a kernel, a custom derivative); the message names it.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> params = {"trunk": jnp.ones(2), "a": jnp.ones(()), "old": jnp.ones(2)}
        >>> def loss_fn(params):
        ...     features = jnp.tanh(params["trunk"])
        ...     return {"a": params["a"] * features[0], "b": features[1]}
        >>> samo_jax.infer_labels(loss_fn, params)
        {'a': 'a', 'old': 'frozen', 'trunk': 'shared'}
    """
    check_loss_fn("loss_fn", loss_fn)
    return inferred(loss_fn, params, labels)


def inferred(loss_fn: LossFn, params: PyTree, labels: ParamLabels) -> PyTree:
    """The labels, those that are to be inferred by the losses."""
    found = label_leaves(params, labels)
    if INFER not in jax.tree.leaves(found):
        return found
    with explained(params):
        program, losses = jax.make_jaxpr(loss_fn, return_shape=True)(params)
    program = separate(loss_fn, params, program)
    return resolve_labels(found, task_names(losses), program)


def separate(loss_fn: LossFn, params: PyTree, program: Any) -> Any:
    """The program of the losses, or one whose operations are of one task each."""
    if not isinstance(loss_fn, ByTask):
        return program
    return jax.make_jaxpr(one_by_one(loss_fn))(params)


def resolve_labels(labels: PyTree, tasks: tuple[str, ...], program: Any) -> PyTree:
    """Labels with those that the losses give in place of "infer"."""
    if INFER not in jax.tree.leaves(labels):
        return labels
    try:
        losses = dict(zip(tasks, dependencies(program), strict=True))
    except Exception as error:
        raise ValueError(
            "`param_labels` cannot be inferred, as the program of `loss_fn` could not "
            f"be read, got {error!r}. Label leaves yourself; please report it with the "
            "version of JAX."
        ) from error
    leaves = [
        _inferred(losses, i, keystr(path)) if label == INFER else label
        for i, (path, label) in enumerate(tree_leaves_with_path(labels))
    ]
    return jax.tree.unflatten(jax.tree.structure(labels), leaves)


def _inferred(losses: Losses, i: int, path: str) -> str:
    """The label of leaf i."""
    users = [name for name, loss in losses.items() if loss.use(i) >= Use.LIKELY]
    if len(users) > 1:
        return SHARED
    possible = [name for name, loss in losses.items() if loss.use(i) >= Use.MAYBE]
    if len(possible) > 1:
        raise ValueError(
            f"`param_labels` cannot be inferred for leaf '{path}', got operations that "
            "cannot be looked into (a custom derivative, a kernel) between it and "
            f"{_some(possible)}. Label it yourself, and 'infer' the others."
        )
    return possible[0] if possible else FROZEN


def check_uses(labels: PyTree, tasks: tuple[str, ...], program: Any) -> None:
    """Raise if a leaf is labelled with a task while another one's loss needs it.

    Another one's loss does so certainly, or, but for masks and branches, where the
    task's own loss does not depend on the leaf.
    """
    of_heads = [
        (i, keystr(path), label)
        for i, (path, label) in enumerate(tree_leaves_with_path(labels))
        if label not in (SHARED, FROZEN)
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
