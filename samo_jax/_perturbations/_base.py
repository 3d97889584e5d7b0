"""What a perturbation is: where each task looks for its worst case."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp

from samo_jax._arguments import check_like
from samo_jax._faults import is_finite, names_present
from samo_jax._gradients import (
    forward_passes,
    look_into,
    task_loss,
    task_value_and_gradient,
    value_and_gradient_at,
    values_and_weighted_gradient,
)
from samo_jax._tasks import (
    SHARED,
    LossFn,
    Unroll,
    map_tasks,
)
from samo_jax._tree import PyTree, displace, keep, keep_tasks


class Problem(NamedTuple):
    """All that a perturbation may look at in one step.

    Attributes:
        loss_fn: params to K losses, as the user passed it to `update`.
        probe_loss_fn: the same for forward-only probes (default: `loss_fn`).
        sample_loss_fns: further losses like `loss_fn`, of independent batches, whose
            gradients at the perturbed points the combiner wants too.
        params: theta.
        mean_grad: g0, the incoming updates, like `params`.
        labels: a pytree like `params` of "shared" or a task's name. Leaves with one
            label are one norm group.
        tasks: the K task names, in task order.
        step: shape (), int32, for schedules.
        key: this step's PRNG key, or None.
        extra_args: the further extra arguments of `update`, for what a method needs.
        unroll: how loops over tasks are to be run, see `multitask`.
    """

    loss_fn: LossFn
    probe_loss_fn: LossFn
    sample_loss_fns: tuple[LossFn, ...]
    params: PyTree
    mean_grad: PyTree
    labels: Any
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


def own_loss(problem: Problem, _context: Any, point: PyTree, i: Any) -> jax.Array:
    """The loss of task i as `loss_fn` has it."""
    return task_loss(problem.loss_fn, point, i)


class Perturbation(NamedTuple):
    """A sharpness method, as pure functions.

    Attributes:
        prepare: `prepare(problem, state) -> context`, once per step.
        perturb: `perturb(context, i) -> eps_i` like `params`, in the loop over tasks;
            `i` may be traced. Leaves of other tasks' heads are ignored.
        init: `init(params, num_tasks) -> state`, a pytree of fixed shapes and dtypes.
        finish: `finish(context, task_grads, state, *, present) -> (task_grads, state)`,
            once per step, with the K gradients at the perturbed points (leading task
            axis). `present`, shape (K,), bool, may be left out of the signature: absent
            tasks' gradients are zero before, and again after. None: the gradients are
            left alone, and so is the state.
        needs_key: whether `prepare` draws random numbers.
        clean_gradients: `clean_gradients(context) -> task_grads`, the K gradients at
            theta, where the method has them and a combiner wants them (`f_mtl`).
        loss: `loss(problem, context, point, i)`, the scalar of task i whose gradient at
            the perturbed point is taken. None: that of `loss_fn`.
        points: `points(context) -> (eps, index)`, where the tasks have fewer than K
            perturbations: a list of pytrees like `params` with all tasks' heads, and
            which of them is each task's, int, shape (K,), or () for all. They cost a
            forward pass each instead of one per task, and with a `Solver.linear` a
            backward pass each.
            None: one per task, by `perturb`.
    """

    prepare: Callable[[Problem, Any], Any]
    perturb: Callable[[Any, int | jax.Array], PyTree]
    init: Callable[[PyTree, int], Any] = lambda _params, _num_tasks: ()
    finish: Callable[..., tuple[PyTree, Any]] | None = None
    needs_key: bool = False
    clean_gradients: Callable[[Any], PyTree | None] = lambda _context: None
    loss: Callable[[Problem, Any, PyTree, Any], jax.Array] | None = None
    points: Callable[[Any], tuple[Sequence[PyTree], jax.Array]] | None = None


class Direction(NamedTuple):
    """Where each task looks, before that gets its length: a part of perturbations.

    `sam(direction=...)` makes a perturbation of it, `joint_sam(local=...)` a part of
    one. The attributes are those of `Perturbation`, but that `perturb` and `points`
    give ascent directions p_i, whose lengths do not matter, in place of eps_i.
    """

    prepare: Callable[[Problem, Any], Any]
    perturb: Callable[[Any, int | jax.Array], PyTree]
    init: Callable[[PyTree, int], Any] = lambda _params, _num_tasks: ()
    finish: Callable[..., tuple[PyTree, Any]] | None = None
    needs_key: bool = False
    clean_gradients: Callable[[Any], PyTree | None] = lambda _context: None
    loss: Callable[[Problem, Any, PyTree, Any], jax.Array] | None = None
    points: Callable[[Any], tuple[Sequence[PyTree], jax.Array]] | None = None


def common(
    prepare: Callable[[Problem, Any], Any], p: Callable[[Any], PyTree], **others: Any
) -> Direction:
    """A direction `p(context)` that is the same for every task."""
    return Direction(
        prepare,
        lambda context, _task: p(context),
        points=lambda context: ([p(context)], jnp.array(0, jnp.int32)),
        **others,
    )


def within(inner: Direction) -> Direction:
    """`inner` as a part of what has `context[1]` as its context.

    What is left for the other to replace is `prepare`, `perturb` and `points`.
    """

    def given(function, context, *rest):
        return function(context[1], *rest)

    def finish(context, task_grads, state, *, present):
        return finish_of(inner)(context[1], task_grads, state, present=present)

    def loss(inner_loss, problem, context, *rest):
        return inner_loss(problem, context[1], *rest)

    return inner._replace(
        finish=inner.finish and finish,
        clean_gradients=partial(given, inner.clean_gradients),
        loss=inner.loss and partial(loss, inner.loss),
    )


UNPERTURBED = Perturbation(
    *common(
        lambda problem, _state: problem.params,
        lambda params: jax.tree.map(jnp.zeros_like, params),
    )
)


TaskPass: TypeAlias = Callable[[Any], tuple[jax.Array, PyTree, list[PyTree]]]


class Gradients(NamedTuple):
    """What a step has seen.

    Attributes:
        losses: at the perturbed points, shape (K,).
        task_grads: there, like the parameters with a leading task axis.
        sample_grads: of each of `sample_loss_fns`, there.
        clean_grads: at theta, or None.
    """

    losses: jax.Array
    task_grads: PyTree
    sample_grads: list[PyTree]
    clean_grads: PyTree | None


def perturbed_gradients(
    perturbation: Perturbation,
    problem: Problem,
    state: Any,
    is_present: Callable[[jax.Array, Any], jax.Array],
) -> tuple[Gradients, jax.Array, Any]:
    """Losses and gradients at `theta + eps_i`, and the perturbation's new state.

    Between them which tasks are present, shape (K,): `is_present` of whether a task
    gave finite numbers, and its index. The gradients of the others are zero.
    """
    context = perturbation.prepare(problem, state)
    clean = perturbation.clean_gradients(context)
    own_pass = task_pass(perturbation, problem, context)

    def keep_present(present, grads):
        return jax.tree.map(partial(keep, present), grads)

    def without_faults(i):
        loss, *grads = own_pass(i)
        grads.append(jax.tree.map(lambda leaf: leaf[i], clean))
        present = is_present(is_finite(loss, grads), i)
        return loss, present, *keep_present(present, grads)

    losses, present, task_grads, samples, clean = map_tasks(
        without_faults, len(problem.tasks), problem.unroll
    )
    if perturbation.finish is not None:
        finish = partial(finish_of(perturbation), context, present=present)
        samples = [finish(grads, state)[0] for grads in samples]
        task_grads, state = finish(task_grads, state)
        # Clean gradients of absent tasks may have come in.
        given = samples, task_grads
        zeros = jax.tree.map(jnp.zeros_like, given)
        samples, task_grads = keep_tasks(present, given, zeros)
    return Gradients(losses, task_grads, samples, clean), present, state


def finish_of(
    perturbation: Perturbation | Direction,
) -> Callable[..., tuple[PyTree, Any]]:
    """`Perturbation.finish`, called with `present` whether it names it or not."""
    finish = cast(Callable, perturbation.finish)
    if names_present(finish):
        return finish

    def finish_all(context, task_grads, state, *, present):
        del present
        return finish(context, task_grads, state)

    return finish_all


def perturbed_weighted_gradient(
    perturbation: Perturbation, problem: Problem, state: Any
) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """Losses at the few perturbed points, and `w -> sum_i w_i g_i` there."""
    context = perturbation.prepare(problem, state)
    points, index = points_of(perturbation, problem, context)
    program = look_into(problem.loss_fn, points[0])
    return values_and_weighted_gradient(forward_passes(program, points), index)


def has_few_points(perturbation: Perturbation) -> bool:
    """Whether gradients are those of `loss_fn`, at fewer points than tasks."""
    return perturbation.points is not None and perturbation.loss is None


def points_of(
    perturbation: Perturbation, problem: Problem, context: Any
) -> tuple[list[PyTree], jax.Array]:
    """The few perturbed points, and which of them is each task's, shape (K,)."""
    perturbations, index = cast(Callable, perturbation.points)(context)
    index = jnp.broadcast_to(index, len(problem.tasks))
    return [displace(problem.params, eps) for eps in perturbations], index


def task_pass(perturbation: Perturbation, problem: Problem, context: Any) -> TaskPass:
    """`i` to loss, gradient and those of samples."""
    own_pass = _few_points_pass if has_few_points(perturbation) else _own_point_pass
    return own_pass(perturbation, problem, context)


def _few_points_pass(perturbation, problem, context):
    points, index = points_of(perturbation, problem, context)
    own, *samples = [
        value_and_gradient_at(loss_fn, points, index, problem.unroll)
        for loss_fn in (problem.loss_fn, *problem.sample_loss_fns)
    ]
    return lambda i: (*own(i), [sample(i)[1] for sample in samples])


def _own_point_pass(perturbation, problem, context):
    """eps_i lives only inside."""
    loss = own_loss if perturbation.loss is None else perturbation.loss

    def values_and_gradients(i):
        eps = perturbation.perturb(context, i)
        remedy = "`Perturbation.perturb` returns eps_i, with all tasks' heads."
        check_like("eps", eps, "params", problem.params, remedy)
        eps = own_leaves(eps, problem, i)
        point = displace(problem.params, eps)
        value_and_gradient = jax.value_and_grad(
            lambda point: loss(problem, context, point, i)
        )
        samples = [
            task_value_and_gradient(loss_fn, point, i)[1]
            for loss_fn in problem.sample_loss_fns
        ]
        return *value_and_gradient(point), samples

    return values_and_gradients


def own_leaves(eps: PyTree, problem: Problem, i: int | jax.Array) -> PyTree:
    """`eps` on shared leaves and on the task's own head, zero on other heads."""

    def own(leaf, label):
        if label == SHARED:
            return leaf
        return jnp.where(problem.tasks.index(label) == i, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(own, eps, problem.labels)
