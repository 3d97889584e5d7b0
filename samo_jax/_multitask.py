"""`multitask`: the Optax gradient transformation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._absent_tasks import task_mask_array
from samo_jax._checks import as_key, check_count, check_key
from samo_jax._combiners._types import (
    Aggregator,
    Weighting,
    check_combiner,
    init_combiner,
)
from samo_jax._labels import ParamLabels
from samo_jax._named import named
from samo_jax._perturbations._base import UNPERTURBED, Perturbation, check_perturbation
from samo_jax._problem import check_all_params, make_problem
from samo_jax._step._devices import AxisName, Devices
from samo_jax._step._method import (
    Method,
    States,
    check_gramian_block,
    check_tasks_per_step,
    draw_tasks,
)
from samo_jax._step._step import take_step
from samo_jax._task_loop import Unroll, check_unroll
from samo_jax._tasks import LossFn, uniform_weights
from samo_jax._tree import PyTree


class MultitaskState(NamedTuple):
    """State of `multitask` and `samo`; read it with `optax.tree.get(state, "weights")`.

    Attributes:
        step: shape (), int32, updates done so far.
        key: the PRNG key as given (draws fold in the step), or None.
        weights: shape (K,), float32 (float64 under x64), the weights of the last update
            in task order; uniform before the first.
        combiner_state: state of the combiner.
        perturbation_state: state of the perturbation.
        skipped: shape (K,), int32, number of updates that were made without each task,
            though it was drawn.
    """

    step: jax.Array
    key: jax.Array | None
    weights: jax.Array
    combiner_state: Any
    perturbation_state: Any
    skipped: jax.Array


@named
def multitask(
    combiner: Weighting | Aggregator,
    perturbation: Perturbation | None = None,
    *,
    num_tasks: int,
    key: jax.Array | int | None = None,
    param_labels: ParamLabels = None,
    unroll: Unroll = None,
    axis_name: AxisName = None,
    gramian_block: int | None = None,
    tasks_per_step: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Any sharpness method with any gradient combiner, first in an `optax.chain`.

    One update takes the gradient g0 of the mean loss as incoming updates and returns
    the direction d (ascent sign; an Optax optimiser follows):

    1. a perturbation `eps_i` per task (`perturbation`; None: zero);
    2. `g_i = grad l_i(theta + eps_i)`;
    3. on shared leaves `d = J'w` with `w = combiner(J J')`, the rows of J being g_i; on
       the head of task i, g_i itself.

    For SAM and SAMO incoming updates only set directions and layer-wise proportions, so
    their overall scale does not matter. Perturbed parameters are formed in float32 and
    handed to `loss_fn` in their own dtype: bfloat16 rounds much of a small perturbation
    away. Keep float32 parameters, and compute in half precision by `mixed_precision`.

    Tasks whose loss or gradient is not finite, or of which the batch has no examples
    (`task_mask`), are left out: the direction is that of the method built for the
    others, and what the state holds of them alone stays. Where none is left, or the
    direction is not finite, it is zero, and the states of the combiner and of the
    perturbation stay.

    Args:
        combiner: the combiner, such as `fairgrad()`.
        perturbation: the sharpness method, such as `global_sam()`.
        num_tasks: K, the number of losses.
        key: typed PRNG key or int, required if `perturbation` draws random numbers or
            tasks are drawn.
        param_labels: labels that say of each leaf whether all tasks use it ("shared")
            or one (its name: the path in the loss pytree such as "left", or its index 0
            in a list): a pytree prefix of the parameters, or a function of them. None:
            all shared. Labels that the losses contradict raise.
        unroll: True traces K passes, of which XLA drops the other tasks' heads; False
            loops with `lax.map`, for the compile time and nearly the memory of one
            task; an int maps in chunks of that many tasks, batched (slow for
            convolutions). None: True for up to 8 tasks, False for more.
        axis_name: the mesh axis (or axes) of the data inside `jax.shard_map`.
            `loss_fn` is then of each device's own batch: gradients and losses at the
            perturbed points are averaged over the axis before they are combined. Along
            incoming updates that were averaged too, the perturbation is common; along
            each device's own (gradients by `lax.pcast(params, axis_name,
            to="varying")`), it is each device's own: m-sharpness. Gradients and probes
            that a perturbation takes itself ("local", `joint_sam`) are each device's
            own; the state is common. None: under `jit` alone everything is global.
        gramian_block: number of gradients held at once, for models of which K do not
            fit: an int B holds B + 1, in two sweeps over the tasks. The first takes the
            Gramian, B rows at a time, in K (K / B + 1) / 2 backward passes; where tasks
            share P points (`global_sam`: 1, a shared probe: 2) and K > (2 P + 1) B, a
            column at a time, in (1 + P) K, in the precision of `loss_fn`. The second
            takes the weighted sum, in K, or in P at shared points. Columns and the sum
            in P passes need backward passes that are linear: with a `jax.custom_vjp`,
            or a program that is not known, the others are taken. For a `Weighting`, and
            perturbations without a memory of gradients. None: all K at once, in K.
        tasks_per_step: number k of tasks drawn at each step, each equally often,
            without replacement, from `key`. Only their passes are made: in K branches
            where tasks are unrolled, in a loop over k tasks with a `loss_fn` of
            `by_task` (with another, forward passes are still of all). The others are
            absent in this step, and `skipped` does not count them. What a
            perturbation takes for all tasks at once (`probe(shared=True)`, clean
            gradients) stays that of all. Not with `gramian_block`. None: all K.

    Returns:
        A `GradientTransformationExtraArgs` whose update is
        `update(updates, state, params, *, loss_fn, probe_loss_fn=None,
        sample_loss_fns=(), task_mask=None, **extra_args)`. `loss_fn` maps params to K
        losses; `probe_loss_fn` (default: `loss_fn`) is used by forward-only probes, for
        instance in evaluation mode; `sample_loss_fns` are the losses of independent
        batches, whose gradients the combiner gets as `sample_grads` (`modo` and
        `sdmgrad` need one or two; each costs K more passes). None can touch batch
        statistics: they return losses only. `task_mask` says which tasks the batch has
        examples of: booleans in the structure of the losses, or of shape (K,). Further
        extra arguments go to the combiner, which also gets `losses` (default: those at
        the perturbed points), in any form.

    Raises:
        ValueError: on wrong arguments; in `update`, if `loss_fn` or `params` is
            missing, the losses are not K scalars, or a label names no task, or one
            whose loss does not use the leaf, or not alone.

    Examples:
        >>> import jax.numpy as jnp, optax, samo_jax
        >>> loss_fn = lambda w: {"a": jnp.sum((w - 1) ** 2), "b": jnp.sum((w + 1) ** 2)}
        >>> tx = optax.chain(
        ...     samo_jax.multitask(samo_jax.mgda(), samo_jax.global_sam(), num_tasks=2),
        ...     optax.sgd(0.1),
        ... )
        >>> params = jnp.array([0.5, -2.0])
        >>> state = tx.init(params)
        >>> losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        >>> updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        >>> print(optax.tree.get(state, "weights"))
        [0.11... 0.88...]
    """
    check_combiner(combiner)
    if perturbation is None:
        perturbation = UNPERTURBED
    check_perturbation(perturbation)
    check_count(
        "num_tasks",
        num_tasks,
        'Under optax.inject_hyperparams pass static_args=("num_tasks",).',
    )
    draws = perturbation.needs_key or tasks_per_step is not None
    if key is not None or draws:
        check_key(key)
    check_unroll(unroll)
    method = Method(
        combiner, perturbation, Devices(axis_name), gramian_block, tasks_per_step
    )
    check_gramian_block(method, unroll)
    check_tasks_per_step(method, num_tasks)

    def init(params: PyTree) -> Any:
        check_all_params(params)
        return MultitaskState(
            step=jnp.zeros((), jnp.int32),
            key=None if key is None else as_key(key),
            weights=uniform_weights(num_tasks),
            combiner_state=init_combiner(combiner, params, num_tasks, param_labels),
            perturbation_state=perturbation.init(params, num_tasks),
            skipped=jnp.zeros(num_tasks, jnp.int32),
        )

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        loss_fn: LossFn | None = None,
        probe_loss_fn: LossFn | None = None,
        sample_loss_fns: Sequence[LossFn] = (),
        task_mask: PyTree = None,
        **extra_args: Any,
    ) -> tuple[PyTree, Any]:
        check_all_params(params)
        state = _checked_state(state, num_tasks)
        problem = make_problem(
            updates,
            method.devices.varying(params),
            num_tasks=num_tasks,
            loss_fn=loss_fn,
            probe_loss_fn=probe_loss_fn,
            sample_loss_fns=sample_loss_fns,
            param_labels=param_labels,
            step=state.step,
            key=state.key
            if state.key is None
            else jax.random.fold_in(state.key, state.step),
            extra_args=extra_args,
            unroll=unroll,
        )
        drawn = draw_tasks(method, problem)
        direction, outcome = take_step(
            method,
            problem,
            States(state.combiner_state, state.perturbation_state),
            task_mask_array(task_mask, problem.tasks),
            drawn,
        )
        skipped = ~outcome.present
        if drawn is not None:
            skipped &= jnp.zeros(num_tasks, bool).at[drawn].set(True)
        return direction, MultitaskState(
            step=jnp.asarray(optax.safe_increment(state.step)),
            key=state.key,
            weights=outcome.weights,
            combiner_state=outcome.states.combiner,
            perturbation_state=outcome.states.perturbation,
            skipped=state.skipped + skipped.astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _checked_state(state: Any, num_tasks: int) -> MultitaskState:
    if isinstance(state, MultitaskState) and state.weights.shape == (num_tasks,):
        return state
    got = (
        f"that of {state.weights.shape[0]} tasks"
        if isinstance(state, MultitaskState)
        else f"{type(state)}"
    )
    raise ValueError(
        f"`state` must be the MultitaskState of `num_tasks`={num_tasks}, got {got}. "
        "Take it from this transformation's `init(params)`."
    )
