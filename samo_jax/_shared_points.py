"""`SharedPoints`: losses and gradients of tasks at a few points."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._by_task import ByTask, one_by_one
from samo_jax._jaxprs import LossProgram, isolated_task, loss_program
from samo_jax._task_loop import is_unrolled
from samo_jax._tasks import LossFn, loss_leaves, select_loss, stack_losses
from samo_jax._tree import PyTree, zero_unless

# At one point: the value, and the pullback from its cotangent.
Pass: TypeAlias = tuple[jax.Array, Callable[..., Any]]


def look_into(loss_fn: LossFn, params: PyTree) -> LossProgram:
    """The program of a loss function, whose heads keep a NaN to themselves."""
    if isinstance(loss_fn, ByTask) and not is_unrolled(
        loss_fn.unroll, loss_fn.num_tasks
    ):
        alone = isolated_task(loss_fn.task_loss, params)
        if alone is None:
            return LossProgram(loss_fn, is_known=False, is_linear=False)
        mapped = dataclasses.replace(loss_fn, task_loss=alone)
        return LossProgram(mapped, is_known=True, is_linear=False)
    losses_of = one_by_one(loss_fn)
    return loss_program(lambda params: loss_leaves(losses_of(params)), params)


class SharedPoints(NamedTuple):
    """P points of K tasks, each with one forward pass of all losses.

    Make them by `at_points` or, for losses and weighted sums, by `all_at_points`.

    Attributes:
        index: number of the point of each task, shape (K,), int.
        passes: forward passes of all losses, shape (K,), by point.
        task_gradient: `task_gradient(i)`, loss and gradient of task i at its own point
            in passes of its own. None: they come out of `passes`.
        is_linear: whether backward passes are known to be linear in the cotangent.
    """

    index: jax.Array
    passes: list[Pass]
    task_gradient: Callable[[Any], tuple[jax.Array, PyTree]] | None
    is_linear: bool

    def losses(self) -> jax.Array:
        """Each task's loss at its own point, shape (K,)."""
        return select_point(self.index, *(losses for losses, _ in self.passes))

    def value_and_gradient(self, i: int | jax.Array) -> tuple[jax.Array, PyTree]:
        """Loss and gradient of task i at its own point, in one backward pass.

        What a backward pass needs is selected at run time.
        """
        if self.task_gradient is not None:
            return self.task_gradient(i)
        losses = self.losses()
        is_own = jnp.arange(len(losses)) == i
        cotangent = zero_unless(is_own, jnp.ones_like(losses))
        return losses[i], _pull_back(self.passes, self.index[i], cotangent)

    def cotangents(self, weights: jax.Array) -> list[PyTree]:
        """Gradients of the weighted losses of each point's tasks, by point."""
        return [
            pullback(
                zero_unless(self.index == point, weights + jnp.zeros_like(losses))
            )[0]
            for point, (losses, pullback) in enumerate(self.passes)
        ]

    def weighted_gradient(self, weights: jax.Array) -> PyTree:
        """`sum_i w_i g_i`, each gradient at its task's own point: P backward passes."""
        return jax.tree.map(lambda *leaves: sum(leaves), *self.cotangents(weights))

    def products(self, v: PyTree) -> jax.Array:
        """`<g_i, v>`, each gradient at its task's own point, shape (K,).

        P backward passes transposed, which must be linear: unlike `jax.jvp`, they do
        not repeat the forward pass.
        """
        # Each device's own, inside `jax.shard_map`.
        ones = jnp.ones_like(self.passes[0][0])
        v = jax.tree.map(lambda leaf: leaf * ones[0].astype(leaf.dtype), v)
        columns = [jax.vjp(pullback, ones)[1]((v,))[0] for _, pullback in self.passes]
        return select_point(self.index, *columns)


def at_points(
    loss_fn: LossFn,
    points: Sequence[PyTree],
    index: jax.Array,
    *,
    unrolled: bool = False,
) -> SharedPoints:
    """`SharedPoints` for the gradients of tasks one by one.

    Args:
        loss_fn: params to K losses. Losses by task have one pass per task, and none of
            all losses.
        points: P pytrees like params.
        index: number of the point of each task, shape (K,), int.
        unrolled: whether tasks come one by one as Python numbers, so that JAX drops the
            other tasks' heads from the passes of each.
    """
    if isinstance(loss_fn, ByTask):

        def alone(i):
            point = jax.tree.map(partial(select_point, index[i]), *points)
            return jax.value_and_grad(loss_fn.task_loss)(point, i)

        return SharedPoints(index, [], alone, is_linear=False)
    if not unrolled:
        return all_at_points(loss_fn, points, index)
    is_known = len(points) > 1 and look_into(loss_fn, points[0]).is_known

    def among_others(i):
        # At all points, where passes are those of other tasks, too.
        passes = _forward(lambda p: select_loss(loss_fn(p), i), points, is_known)
        loss = select_point(index[i], *(loss for loss, _ in passes))
        return loss, _pull_back(passes, index[i], jnp.ones_like(loss))

    return SharedPoints(index, [], among_others, is_linear=False)


def all_at_points(
    loss_fn: LossFn, points: Sequence[PyTree], index: jax.Array
) -> SharedPoints:
    """`SharedPoints` with one forward pass of all losses per point."""
    program = look_into(loss_fn, points[0])
    passes = _forward(
        lambda params: stack_losses(program.losses(params)), points, program.is_known
    )
    return SharedPoints(index, passes, None, program.is_linear)


def _forward(
    function: Callable, points: Sequence[PyTree], is_known: bool
) -> list[Pass]:
    """Value and pullback at each point, traced once for all if that is safe."""
    forward = partial(jax.vjp, function)
    if len(points) > 1 and is_known:
        forward = jax.jit(forward)
    return [forward(point) for point in points]


def _pull_back(passes: list[Pass], which: jax.Array, cotangent: jax.Array) -> PyTree:
    """The gradient by the pullback of one point, in one backward pass."""
    pullbacks = [pullback for _, pullback in passes]
    if len({jax.tree.structure(pullback) for pullback in pullbacks}) > 1:
        return lax.switch(which, pullbacks, cotangent)[0]
    # What they need is selected: the host of a GPU would wait for a branch.
    return jax.tree.map(partial(select_point, which), *pullbacks)(cotangent)[0]


def select_point(which: jax.Array, *cases: jax.Array) -> jax.Array:
    """`cases[which]`; a single one is not touched, as `jax.vmap` would copy it."""
    return cases[0] if len(cases) == 1 else lax.select_n(which, *cases)
