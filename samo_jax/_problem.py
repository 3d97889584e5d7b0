"""`Problem`: the arguments of one update, checked."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._by_task import map_params, unroll_of
from samo_jax._checks import check_floats, check_like, check_params, explained
from samo_jax._label_uses import check_uses, resolve_labels, separate
from samo_jax._labels import (
    FROZEN,
    SHARED,
    ParamLabels,
    check_labels,
    label_leaves,
    mask_other_heads,
    only_shared,
    only_trained,
    with_frozen,
    with_inferred_as,
)
from samo_jax._task_loop import Unroll
from samo_jax._tasks import (
    LossFn,
    LossTree,
    check_loss_fn,
    per_task,
    stack_losses,
    task_names,
)
from samo_jax._tree import PyTree, accumulator_dtype, displace, zero_unless


class Problem(NamedTuple):
    """All that a perturbation may look at in one step.

    Frozen leaves are not in it: None stands in their place in each tree, and functions
    of the parameters have them inside.

    Attributes:
        loss_fn: params to K losses, as the user passed it to `update`.
        probe_loss_fn: losses for forward-only probes (default: `loss_fn`).
        sample_loss_fns: further losses like `loss_fn`, of independent batches, whose
            gradients at the perturbed points the combiner wants too.
        params: parameters theta.
        mean_grad: g0, the incoming updates, like `params`.
        labels: a pytree like `params` of "shared" or a task's name. Leaves with one
            label are one norm group.
        tasks: the K task names, in task order.
        step: shape (), int32, number of the step, for schedules.
        key: PRNG key of this step, or None.
        extra_args: the further extra arguments of `update`, for what a method needs.
            Functions among them are of the parameters.
        unroll: way in which loops over tasks run, see `multitask`.
    """

    loss_fn: LossFn
    probe_loss_fn: LossFn
    sample_loss_fns: tuple[LossFn, ...]
    params: PyTree
    mean_grad: PyTree
    labels: PyTree
    tasks: tuple[str, ...]
    step: jax.Array
    key: jax.Array | None
    extra_args: Mapping[str, Any]
    unroll: Unroll

    def required(self, name: str, method: str) -> Any:
        """An extra argument; raise if `update` did not get it."""
        if name not in self.extra_args:
            raise ValueError(
                f"`{name}` is required by {method}, got None: call tx.update(grads, "
                f"state, params, loss_fn=loss_fn, {name}=...)."
            )
        return self.extra_args[name]

    def point(self, eps: PyTree, i: int | jax.Array | None = None) -> PyTree:
        """`theta + eps`; of task i, which moves no other task's head."""
        remedy = "`Perturbation.perturb` returns eps_i, with all tasks' heads."
        check_like("eps", eps, "params", self.params, remedy)
        if i is not None:
            eps = mask_other_heads(eps, self.labels, self.tasks, i)
        return displace(self.params, eps)

    def shared(self, tree: PyTree) -> PyTree:
        """A tree like the parameters without the leaves of heads."""
        return only_shared(tree, self.labels)

    def combiner_args(self, losses: jax.Array, present: jax.Array) -> dict[str, Any]:
        """Losses (NaN where absent), presence, names, and the user's arguments."""
        args = {"losses": losses.astype(accumulator_dtype()), **self.extra_args}
        losses = jnp.where(present, args["losses"], jnp.nan)
        return args | {"losses": losses, "present": present, "tasks": self.tasks}


def make_problem(
    updates: PyTree,
    params: PyTree,
    *,
    num_tasks: int,
    loss_fn: LossFn | None,
    probe_loss_fn: LossFn | None,
    sample_loss_fns: Sequence[LossFn],
    param_labels: ParamLabels,
    step: jax.Array,
    key: jax.Array | None,
    extra_args: dict[str, Any],
    unroll: Unroll,
) -> Problem:
    """The `Problem` of an update; raise where its arguments do not fit together."""
    loss_fn = _required_loss_fn(loss_fn)
    labels = checked_labels(params, param_labels)
    tasks, program = _trace_tasks(
        params, num_tasks, loss_fn, probe_loss_fn, sample_loss_fns
    )
    if {*jax.tree.leaves(labels)} - {SHARED, FROZEN}:
        program = separate(loss_fn, params, program)
    labels = resolve_labels(labels, tasks, program)
    check_labels(labels, tasks)
    check_uses(labels, tasks, program)
    trained, updates = only_trained(params, labels), only_trained(updates, labels)
    _check_updates(updates, trained)
    if "losses" in extra_args:
        losses = stack_losses(extra_args["losses"])
        extra_args = extra_args | {"losses": per_task("losses", losses, num_tasks, 0)}
    of_trained = partial(map_params, fn=with_frozen(params, labels))
    return Problem(
        loss_fn=of_trained(loss_fn),
        probe_loss_fn=of_trained(loss_fn if probe_loss_fn is None else probe_loss_fn),
        sample_loss_fns=tuple(map(of_trained, sample_loss_fns)),
        params=trained,
        mean_grad=jax.tree.map(lambda g: zero_unless(jnp.isfinite(g), g), updates),
        labels=only_trained(labels, labels),
        tasks=tasks,
        step=step,
        key=key,
        extra_args={
            name: of_trained(value) if callable(value) else value
            for name, value in extra_args.items()
        },
        unroll=unroll_of(loss_fn, unroll),
    )


def checked_labels(params: PyTree | None, param_labels: ParamLabels) -> PyTree:
    """The labels of parameters; raise unless trained ones are floats, none masked."""
    _check_whole(params)
    labels = label_leaves(params, param_labels)
    check_params(only_trained(params, with_inferred_as(FROZEN, labels)))
    return labels


def _required_loss_fn(loss_fn: LossFn | None) -> LossFn:
    """`loss_fn`; raise if it is missing."""
    if loss_fn is None:
        raise ValueError(
            "`loss_fn` is required, got None: call tx.update(grads, state, params, "
            "loss_fn=loss_fn). flax's TrainState.apply_gradients drops extra "
            "arguments: call state.tx.update yourself."
        )
    return loss_fn


def _check_whole(params: PyTree | None) -> None:
    """Raise unless all parameters are there, none masked."""
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
            "after it, and say with `param_labels` what is a task head or frozen."
        )


def _check_updates(updates: PyTree, params: PyTree) -> None:
    """Raise unless they are like the parameters."""
    remedy = (
        "Pass the gradient of the mean loss: "
        "`samo_jax.mean_value_and_grad(loss_fn)(params)[1]`."
    )
    check_like("updates", updates, "params", params, remedy)
    check_floats("updates", updates, remedy)


def _trace_tasks(
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
