"""`combine_gradients`: an Optax transformation of gradients stacked by task."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_leaves_with_path

from samo_jax._absent_tasks import is_finite, select_tasks, task_mask_array
from samo_jax._checks import check_count, check_floats
from samo_jax._combiners._types import Combiner, check_combiner, init_combiner
from samo_jax._labels import (
    ParamLabels,
    check_labels,
    label_leaves,
    only_shared,
    only_trained,
    own_heads,
    zeros_where_frozen,
)
from samo_jax._named import named
from samo_jax._state import check_state, first_diagnostics, first_state, next_state
from samo_jax._step._combine import combine_task_grads, settle
from samo_jax._step._method import States
from samo_jax._tasks import stack_losses, task_names
from samo_jax._tree import PyTree


@named
def combine_gradients(
    combiner: Combiner,
    *,
    num_tasks: int,
    param_labels: ParamLabels = None,
    diagnostics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Any combiner of gradients that are there already, first in an `optax.chain`.

    `d = J'w`, `w = combiner(J J')`: updates come in with a leading task axis, (K, ...),
    the rows of J, and go out without. It needs no `loss_fn`, makes no passes, and is
    what `multitask(combiner)` does with the same gradients.

    Tasks whose gradient (or loss, if given) is not finite, or that `task_mask` leaves
    out, are absent, see `multitask`.

    Args:
        combiner: the combiner, such as `fairgrad()`.
        num_tasks: K, the length of the task axis.
        param_labels: labels that say of each leaf whether all tasks use it ("shared"),
            one (its index, or, where `losses` are passed, its name in them), or none
            ("frozen"). The head of task i gets row i, a frozen leaf zeros like that of
            `params` (None without `params`). A pytree prefix of the parameters, or a
            function of what has their structure. None: all shared.
        diagnostics: whether the state has the losses (NaN unless passed) and the
            Gramian of the last step, for `report`.

    Returns:
        A `GradientTransformationExtraArgs`. `init` takes the parameters, without a task
        axis; the state is a `MultitaskState`; `update(updates, state, params=None, *,
        losses=None, task_mask=None, sample_grads=(), **extra_args)` takes the losses (a
        pytree of K scalars or a (K,) array) if the combiner needs them, and the
        gradients of further batches, like `updates`, that `modo` and `sdmgrad` need.
        Further extra arguments go to the combiner.

    Raises:
        ValueError: on wrong arguments; in `update`, if a leaf has no task axis of
            length K, a label names no task, or the combiner needs `losses` and gets
            none.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, samo_jax
        >>> tx = optax.chain(
        ...     samo_jax.combine_gradients(samo_jax.mgda(), num_tasks=2),
        ...     optax.sgd(0.1),
        ... )
        >>> params, goals = jnp.array([0.5, -2.0]), jnp.array([[1.0, 1.0], [-1, -1]])
        >>> state = tx.init(params)
        >>> loss = lambda params, goal: jnp.sum((params - goal) ** 2)
        >>> grads = jax.vmap(jax.grad(loss), (None, 0))(params, goals)
        >>> updates, state = tx.update(grads, state, params)
        >>> print(optax.tree.get(state, "weights"))
        [0.12... 0.87...]
    """
    check_combiner(combiner)
    check_count("num_tasks", num_tasks, "It is the length of the task axis.")

    def init(params: PyTree) -> Any:
        shared = only_shared(params, label_leaves(params, param_labels))
        combiner_state = init_combiner(combiner, shared, num_tasks)
        state = first_state(num_tasks, States(combiner_state, ()))
        if diagnostics:
            state = state._replace(diagnostics=first_diagnostics(num_tasks, True))
        return state

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        losses: PyTree = None,
        task_mask: PyTree = None,
        sample_grads: Sequence[PyTree] = (),
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        state = check_state(state, num_tasks)
        tasks, losses = _tasks_and_losses(losses, num_tasks)
        labels = _labels_by_name(updates, param_labels, tasks)
        given = [only_trained(grads, labels) for grads in (updates, *sample_grads)]
        labels = only_trained(labels, labels)
        like = _without_task_axis(given[0], num_tasks)

        finite = jax.vmap(is_finite)(
            jnp.zeros(num_tasks) if losses is None else losses, given
        )
        present = task_mask_array(task_mask, tasks) & finite
        zeros = jax.tree.map(jnp.zeros_like, given)
        task_grads, *samples = select_tasks(present, given, zeros)

        if samples:
            extra_args["sample_grads"] = [only_shared(one, labels) for one in samples]
        old = States(state.combiner_state, state.perturbation_state)
        try:
            outcome = combine_task_grads(
                combiner,
                old,
                only_shared(task_grads, labels),
                own_heads(task_grads, labels, tasks),
                tasks=tasks,
                present=present,
                losses=None if losses is None else jnp.where(present, losses, jnp.nan),
                with_gramian=diagnostics,
                **extra_args,
            )
        except TypeError as error:
            if losses is None and "keyword-only argument: 'losses'" in str(error):
                raise ValueError(
                    f"`losses` is required by {combiner!r}, got None: call "
                    "tx.update(grads, state, params, losses=losses)."
                ) from error
            raise
        direction, outcome = settle(outcome, old, labels, like, tasks)
        if params is not None:
            direction = zeros_where_frozen(direction, params)
        return direction, next_state(state, outcome)

    return optax.GradientTransformationExtraArgs(init, update)


def _without_task_axis(updates: PyTree, num_tasks: int) -> PyTree:
    """Shapes and dtypes of the parameters; raise unless K rows of floats come in."""
    remedy = "Stack them: `jax.vmap(jax.grad(loss), (None, 0))(params, batches)`."
    check_floats("updates", updates, remedy)
    for path, leaf in tree_leaves_with_path(updates):
        if leaf.shape[:1] != (num_tasks,):
            raise ValueError(
                f"`updates` must have a leading task axis of `num_tasks`={num_tasks}, "
                f"got leaf '{keystr(path)}' of shape {leaf.shape}. {remedy}"
            )
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), updates
    )


def _tasks_and_losses(
    losses: PyTree, num_tasks: int
) -> tuple[tuple[str, ...], jax.Array | None]:
    """The tasks' names, which are their indices where there are no losses."""
    if losses is None:
        return tuple(map(str, range(num_tasks))), None
    return task_names(losses, num_tasks, "losses"), stack_losses(losses)


def _labels_by_name(
    updates: PyTree, param_labels: ParamLabels, tasks: tuple[str, ...]
) -> PyTree:
    """Labels like the updates, of which those by index become names."""
    names = {str(i): name for i, name in enumerate(tasks) if str(i) not in tasks}
    labels = jax.tree.map(
        lambda label: names.get(label, label), label_leaves(updates, param_labels)
    )
    check_labels(labels, tasks)
    return labels
