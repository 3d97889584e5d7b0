"""What `update` must be given."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.tree_util import keystr, tree_leaves_with_path

from samo_jax._arguments import check_floats, check_like, check_params, explained
from samo_jax._jaxprs import Use, dependencies
from samo_jax._tasks import SHARED, LossFn, LossTree, check_loss_fn, task_names
from samo_jax._tree import PyTree


def required_loss_fn(loss_fn: LossFn | None) -> LossFn:
    """`loss_fn`; raise if it is missing."""
    if loss_fn is None:
        raise ValueError(
            "`loss_fn` is required, got None: call tx.update(grads, state, params, "
            "loss_fn=loss_fn). flax's TrainState.apply_gradients drops extra "
            "arguments: call state.tx.update yourself."
        )
    return loss_fn


def check_all_params(params: PyTree | None) -> None:
    """Raise unless they are floating-point arrays, none masked."""
    if params is None:
        raise ValueError(
            "`params` is required, got None: call tx.update(grads, state, params, "
            "loss_fn=loss_fn)."
        )
    leaves = jax.tree.leaves(
        params, is_leaf=lambda node: isinstance(node, optax.MaskedNode)
    )
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise ValueError(
            "`params` must be the whole parameters, got a masked leaf: "
            "samo/multitask is inside optax.masked or optax.partition. Chain those "
            "after it, and tell task heads apart with `param_labels`."
        )
    check_params(params)


def check_updates(updates: PyTree, params: PyTree) -> None:
    """Raise unless they are like the parameters."""
    remedy = (
        "Pass the gradient of the mean loss: "
        "`samo_jax.mean_value_and_grad(loss_fn)(params)[1]`."
    )
    check_like("updates", updates, "params", params, remedy)
    check_floats("updates", updates, remedy)


def trace_tasks(
    params: PyTree,
    num_tasks: int,
    loss_fn: LossFn,
    probe_loss_fn: LossFn | None,
    sample_loss_fns: Sequence[LossFn],
) -> tuple[tuple[str, ...], Any]:
    """The names of the K tasks, and the program of `loss_fn`.

    Raise unless all functions give the K losses.
    """
    tasks, program = _trace("loss_fn", loss_fn, params, num_tasks)
    if not isinstance(sample_loss_fns, Sequence):
        raise ValueError(
            "`sample_loss_fns` must be a sequence of functions, got "
            f"{sample_loss_fns!r}. Pass `[other_loss_fn]`."
        )
    others = [("sample_loss_fns", fn) for fn in sample_loss_fns]
    if probe_loss_fn is not None:
        others.append(("probe_loss_fn", probe_loss_fn))
    for name, fn in others:
        found, _ = _trace(name, fn, params, num_tasks)
        if found not in (tasks, tuple(map(str, range(num_tasks)))):
            raise ValueError(
                f"`{name}` must return the losses of `loss_fn`, {', '.join(tasks)}; "
                f"got {', '.join(found)}. Name them alike."
            )
    return tasks, program


def check_uses(labels: Any, tasks: tuple[str, ...], program: Any) -> None:
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


def _trace(
    name: str, loss_fn: LossFn, params: PyTree, num_tasks: int
) -> tuple[tuple[str, ...], Any]:
    check_loss_fn(name, loss_fn)
    losses, program = _trace_losses(loss_fn, params)
    return task_names(losses, num_tasks, name), program


def _trace_losses(loss_fn: LossFn, params: PyTree) -> tuple[LossTree, Any]:
    try:
        with explained(params):
            program, losses = jax.make_jaxpr(loss_fn, return_shape=True)(params)
        return losses, program
    except Exception as error:
        if isinstance(params, jax.Array) and params.ndim == 1:
            raise ValueError(
                f"`loss_fn` fails on `params`, got one vector of shape {params.shape}. "
                "If samo/multitask is inside optax.flatten, chain that after it."
            ) from error
        raise
