"""What `update` must be given."""

from collections.abc import Sequence

import jax
import optax

from samo_jax._arguments import check_floats, check_like, check_params
from samo_jax._tasks import LossFn, LossTree, check_loss_fn, task_names
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
) -> tuple[str, ...]:
    """The names of the K tasks; raise unless all functions give their losses."""
    tasks = _trace("loss_fn", loss_fn, params, num_tasks)
    if not isinstance(sample_loss_fns, Sequence):
        raise ValueError(
            "`sample_loss_fns` must be a sequence of functions, got "
            f"{sample_loss_fns!r}. Pass `[other_loss_fn]`."
        )
    others = [("sample_loss_fns", fn) for fn in sample_loss_fns]
    if probe_loss_fn is not None:
        others.append(("probe_loss_fn", probe_loss_fn))
    for name, fn in others:
        found = _trace(name, fn, params, num_tasks)
        if found not in (tasks, tuple(map(str, range(num_tasks)))):
            raise ValueError(
                f"`{name}` must return the losses of `loss_fn`, {', '.join(tasks)}; "
                f"got {', '.join(found)}. Name them alike."
            )
    return tasks


def _trace(
    name: str, loss_fn: LossFn, params: PyTree, num_tasks: int
) -> tuple[str, ...]:
    check_loss_fn(name, loss_fn)
    return task_names(_trace_losses(loss_fn, params), num_tasks, name)


def _trace_losses(loss_fn: LossFn, params: PyTree) -> LossTree:
    try:
        return jax.eval_shape(loss_fn, params)
    except Exception as error:
        if isinstance(params, jax.Array) and params.ndim == 1:
            raise ValueError(
                f"`loss_fn` fails on `params`, got one vector of shape {params.shape}. "
                "If samo/multitask is inside optax.flatten, chain that after it."
            ) from error
        raise
