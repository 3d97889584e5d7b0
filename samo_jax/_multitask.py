"""`multitask`: the Optax gradient transformation."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import optax

from samo_jax._absent_tasks import task_mask_array
from samo_jax._checks import check_count, check_key
from samo_jax._combiners._types import (
    Combiner,
    Weighting,
    check_combiner,
    init_combiner,
)
from samo_jax._keys import raw_key, typed_key
from samo_jax._labels import (
    FROZEN,
    INFER,
    SHARED,
    ParamLabels,
    only_shared,
    only_trained,
    with_inferred_as,
    zeros_where_frozen,
)
from samo_jax._named import named
from samo_jax._perturbations._base import UNPERTURBED, Perturbation, check_perturbation
from samo_jax._problem import checked_labels, make_problem
from samo_jax._state import check_state, first_diagnostics, first_state, next_state
from samo_jax._step._devices import AxisName, Devices
from samo_jax._step._kept_weights import no_weights
from samo_jax._step._method import (
    GramianOf,
    Method,
    States,
    check_gramian_block,
    check_gramian_of,
    check_tasks_per_step,
    check_weights_every,
    draw_tasks,
    makes_task_gradients,
)
from samo_jax._step._separate_parts import init_parts
from samo_jax._step._step import take_step
from samo_jax._task_loop import Unroll, check_unroll
from samo_jax._tasks import LossFn
from samo_jax._tree import PyTree


@named
def multitask(
    combiner: Combiner,
    perturbation: Perturbation | None = None,
    *,
    num_tasks: int,
    key: jax.Array | int | None = None,
    param_labels: ParamLabels = None,
    unroll: Unroll = None,
    axis_name: AxisName = None,
    gramian_block: int | None = None,
    diagnostics: bool = False,
    tasks_per_step: int | None = None,
    gramian_of: GramianOf = "parameters",
    weights_every: int | None = None,
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
        param_labels: label of each leaf: "shared" by the tasks; the name of the one
            task that uses it (its path in the loss pytree such as "left", or its index
            0 in a list); "frozen", if it is not trained: then it is neither perturbed
            nor differentiated, takes no part in norms and Gramian, gets a zero update,
            and may be of any dtype; or "infer", see `infer_labels`. A pytree prefix of
            the parameters, or a function of them. None: all shared. Labels that the
            losses contradict raise.
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
        diagnostics: whether the state has the losses and the Gramian of the last step,
            for `report`, at no further pass. Without the Gramian where a step never has
            the gradient of each task: a `Weighting` that needs none (`mean`, `famo`)
            where tasks share their points (no perturbation, `global_sam`).
        tasks_per_step: number k of tasks drawn at each step, each equally often,
            without replacement, from `key`. Only their passes are made: in K branches
            where tasks are unrolled, in a loop over k tasks with a `loss_fn` of
            `by_task` (with another, forward passes are still of all). The others are
            absent in this step, and `skipped` does not count them. What a
            perturbation takes for all tasks at once (`probe(shared=True)`, clean
            gradients) stays that of all. Not with `gramian_block`. None: all K.
        gramian_of: gradients that the Gramian is of, at shared points (no perturbation,
            `global_sam`, a shared probe). "parameters": the gradients by all shared
            leaves, in K backward passes. "representation": those by what the heads
            read (`representation` marks it; else the arrays that losses have in common
            last), in K passes through the heads alone; the direction `J'w` is exact for
            these weights, in one pass through the trunk. A mask of the last shared
            leaves, a pytree prefix of bools: those by these leaves, in K passes down to
            them. An Aggregator without a memory of gradients combines the gradients by
            the representation.
        weights_every: number n of steps after which a `Weighting` takes the Gramian and
            the weights anew, at shared points. A step in between costs what one with
            fixed weights costs: one forward and one backward pass per point. Its
            direction has the length that the weighting's would have if all gradients
            had grown alike. A task that is absent is left out at once; for one that
            comes, the weights are taken at once. Kept in the state as `kept`. None:
            each step.

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
    check_arguments(combiner, num_tasks, unroll)
    if perturbation is None:
        perturbation = UNPERTURBED
    check_perturbation(perturbation)
    draws = perturbation.needs_key or tasks_per_step is not None
    if key is not None or draws:
        check_key(key)
    method = Method(
        combiner,
        perturbation,
        Devices(axis_name),
        gramian_block,
        tasks_per_step,
        diagnostics,
        gramian_of,
        weights_every,
    )
    return transformation(
        method, num_tasks=num_tasks, key=key, param_labels=param_labels, unroll=unroll
    )


def check_arguments(combiner: Any, num_tasks: Any, unroll: Any) -> None:
    """Raise unless these are what every transformation takes."""
    check_combiner(combiner)
    check_count(
        "num_tasks",
        num_tasks,
        'Under optax.inject_hyperparams pass static_args=("num_tasks",).',
    )
    check_unroll(unroll)


def transformation(
    method: Method,
    *,
    num_tasks: int,
    key: jax.Array | int | None,
    param_labels: ParamLabels,
    unroll: Unroll,
) -> optax.GradientTransformationExtraArgs:
    """The transformation of these settings."""
    check_weights_every(method)
    check_gramian_of(method, num_tasks)
    check_gramian_block(method, unroll)
    check_tasks_per_step(method, num_tasks)
    parts = (2,) if method.separate_parts else ()

    def init(params: PyTree) -> Any:
        labels = checked_labels(params, param_labels)
        state = first_state(num_tasks, _first_states(method, num_tasks, params, labels))
        return state._replace(
            key=None if key is None else raw_key(key),
            diagnostics=first_diagnostics(num_tasks, makes_task_gradients(method))
            if method.diagnostics
            else None,
            kept=None
            if method.weights_every is None
            else no_weights(num_tasks, *parts),
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
        state = check_state(state, num_tasks)
        problem = make_problem(
            updates,
            params,
            num_tasks=num_tasks,
            loss_fn=loss_fn,
            probe_loss_fn=probe_loss_fn,
            sample_loss_fns=sample_loss_fns,
            param_labels=param_labels,
            step=state.step,
            key=None
            if key is None
            else jax.random.fold_in(typed_key(state.key, key), state.step),
            extra_args=extra_args,
            unroll=unroll,
        )
        drawn = draw_tasks(method, problem)
        direction, outcome, kept = take_step(
            method,
            problem._replace(params=method.devices.varying(problem.params)),
            States(state.combiner_state, state.perturbation_state),
            task_mask_array(task_mask, problem.tasks),
            drawn,
            state.kept,
        )
        state = next_state(state, outcome, drawn)._replace(kept=kept)
        return zeros_where_frozen(direction, params), state

    return optax.GradientTransformationExtraArgs(init, update)


def _first_states(
    method: Method, num_tasks: int, params: PyTree, labels: PyTree
) -> States:
    """The first states; raise if they depend on labels that are to be inferred."""

    def states(inferred_as):
        known = with_inferred_as(inferred_as, labels)
        trained = only_trained(params, known)
        shared = only_shared(params, known)
        return States(
            init_parts(cast(Weighting, method.combiner), num_tasks)
            if method.separate_parts
            else init_combiner(method.combiner, shared, num_tasks),
            method.perturbation.init(trained, num_tasks),
        )

    if INFER in jax.tree.leaves(labels):
        shapes = [jax.eval_shape(partial(states, x)) for x in (SHARED, FROZEN)]
        for name, shared, frozen in zip(States._fields, *shapes, strict=True):
            if shared != frozen:
                raise ValueError(
                    f"`param_labels` cannot be inferred later, got 'infer' with "
                    f"{getattr(method, name)!r}, whose state has the shapes of "
                    "parameters. Infer them first: "
                    "`param_labels=samo_jax.infer_labels(loss_fn, params)`."
                )
    return states(SHARED)
