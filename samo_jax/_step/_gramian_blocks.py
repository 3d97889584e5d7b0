"""`step_by_gramian_blocks`: a step in two sweeps that never holds K gradients."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._absent_tasks import among_present, is_finite
from samo_jax._combiners._types import Weighting, weighting_update
from samo_jax._gramian import gramian
from samo_jax._jaxprs import canonicalize_convolutions
from samo_jax._labels import SHARED
from samo_jax._part_gradients import PartGradients, Sweep
from samo_jax._problem import Problem
from samo_jax._shared_points import all_at_points, at_points
from samo_jax._step._devices import Devices
from samo_jax._step._method import Method, Outcome, States
from samo_jax._step._passes import task_pass
from samo_jax._tasks import LossFn
from samo_jax._tree import PyTree, accumulator_dtype, zero_unless, zeros_like_params

ValueAndGradient: TypeAlias = Callable[[jax.Array], tuple[jax.Array, PyTree]]


class FirstSweep(NamedTuple):
    """Results of the first sweep over the tasks.

    Attributes:
        losses: losses at the perturbed points, shape (K,).
        gramian: Gramian of the shared leaves, shape (K, K).
        finite: whether a task's loss and squared gradient norm are finite, shape (K,).
    """

    losses: jax.Array
    gramian: jax.Array
    finite: jax.Array


def step_by_gramian_blocks(
    method: Method, problem: Problem, states: States, task_mask: jax.Array
) -> Outcome:
    """The Gramian by blocks of tasks with points of their own, then `J'w` task by task.

    The first sweep holds the gradients of B = `gramian_block` tasks, and takes those of
    the tasks after them one by one: `K (K / B + 1) / 2` backward passes.
    """
    block, devices = cast(int, method.gramian_block), method.devices
    context = method.perturbation.prepare(problem, states.perturbation)
    pass_of = task_pass(method.perturbation, problem, context)

    def value_and_gradient(i):
        loss, grads, _ = pass_of(i)
        return loss, grads

    def common_gradient(i):
        loss, grads = value_and_gradient(i)
        return loss, devices.mean(grads)

    sweep = partial(_by_blocks, common_gradient, problem, block)
    first = canonicalize_convolutions(sweep)()
    losses = devices.mean(first.losses)
    present = devices.all(task_mask & first.finite)
    products = among_present(first.gramian, present)
    args = problem.combiner_args(losses, present)
    weights, combiner_state = weighting_update(cast(Weighting, method.combiner))(
        products, states.combiner, **args
    )
    total = _weighted_sum(value_and_gradient, problem)(
        weights, present.astype(weights.dtype)
    )
    total = devices.mean(total)
    states = states._replace(combiner=combiner_state)
    return Outcome(total, total, weights, present, states, args["losses"], products)


def gradients_by_blocks(
    loss_fn: LossFn,
    points: Sequence[PyTree],
    index: jax.Array,
    *,
    problem: Problem,
    block: int,
    devices: Devices,
) -> PartGradients:
    """Gramian by blocks of tasks at P shared points.

    Where backward passes are known to be linear, the sweep takes a column at a time if
    that is less: K backward passes, and `P K` through their transposes. Then a sum is
    one backward pass per point.
    """
    one_by_one = at_points(loss_fn, points, index)
    at_all = one_by_one if one_by_one.passes else all_at_points(loss_fn, points, index)

    def common_gradient(i):
        loss, grads = one_by_one.value_and_gradient(i)
        return loss, devices.mean(grads)

    def products(v):
        return devices.mean(one_by_one.products(v))

    def sweep():
        by_columns = len(index) > (2 * len(points) + 1) * block
        if one_by_one.is_linear and by_columns:
            first_sweep = partial(_by_columns, common_gradient, problem, products)
        else:
            first_sweep = partial(_by_blocks, common_gradient, problem, block)
        first = canonicalize_convolutions(first_sweep)()
        if one_by_one.is_linear:
            weighted_gradient = one_by_one.weighted_gradient
        else:
            weighted_gradient = _weighted_sum(one_by_one.value_and_gradient, problem)
        return Sweep(first.finite, weighted_gradient, [], first.gramian)

    return PartGradients(at_all.losses(), at_all.weighted_gradient, sweep)


def _by_blocks(
    value_and_gradient: ValueAndGradient, problem: Problem, block: int
) -> FirstSweep:
    num_tasks = len(problem.tasks)
    starts = jnp.arange(0, num_tasks, block)
    padded = len(starts) * block

    def shared_gradient(i):
        return problem.shared(value_and_gradient(i)[1])

    def upper_rows(start):
        tasks = jnp.minimum(start + jnp.arange(block), num_tasks - 1)
        losses, grads = lax.map(value_and_gradient, tasks)
        finite = jax.vmap(is_finite)(losses, grads)
        held = problem.shared(grads)

        def add_column(j, rows):
            one = jax.tree.map(lambda leaf: leaf[None], shared_gradient(j))
            return lax.dynamic_update_slice(rows, gramian(held, one), (0, j))

        rows = jnp.zeros((block, padded), accumulator_dtype())
        rows = lax.dynamic_update_slice(rows, gramian(held), (0, start))
        rows = lax.fori_loop(start + block, num_tasks, add_column, rows)
        return losses, finite, rows

    losses, finite, rows = jax.tree.map(
        lambda parts: parts.reshape(padded, *parts.shape[2:])[:num_tasks],
        lax.map(upper_rows, starts),
    )
    upper = jnp.triu(rows[:, :num_tasks])
    return FirstSweep(losses, upper + jnp.triu(upper, 1).T, finite)


def _by_columns(
    value_and_gradient: ValueAndGradient,
    problem: Problem,
    products: Callable[[PyTree], jax.Array],
) -> FirstSweep:
    def loss_and_column(i):
        loss, grads = value_and_gradient(i)
        shared = jax.tree.map(
            lambda label, leaf: zero_unless(label == SHARED, leaf),
            problem.labels,
            grads,
        )
        return loss, is_finite(loss, grads), products(shared)

    tasks = jnp.arange(len(problem.tasks))
    losses, finite, columns = lax.map(loss_and_column, tasks)
    return FirstSweep(losses, (columns + columns.T) / 2, finite)


def _weighted_sum(
    value_and_gradient: ValueAndGradient, problem: Problem
) -> Callable[..., PyTree]:
    """`sum_i w_i g_i`, on heads by weights of their own, task by task."""

    def weighted_gradient(weights, of_heads=None):
        of_heads = weights if of_heads is None else of_heads

        def add(i, total):
            def add_leaf(label, old, leaf):
                weight = (weights if label == SHARED else of_heads)[i]
                return old + zero_unless(weight != 0, leaf.astype(old.dtype)) * weight

            grads = value_and_gradient(i)[1]
            return jax.tree.map(add_leaf, problem.labels, total, grads)

        start = zeros_like_params(problem.params)
        return lax.fori_loop(0, len(problem.tasks), add, start)

    return canonicalize_convolutions(weighted_gradient)
