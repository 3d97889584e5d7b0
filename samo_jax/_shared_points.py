"""`SharedPoints`: losses and gradients of tasks at a few points."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._jaxprs import LossProgram, loss_program
from samo_jax._tasks import LossFn, loss_leaves, select_loss, stack_losses
from samo_jax._tree import PyTree, zero_unless

# At one point: the value, and the pullback from its cotangent.
Pass: TypeAlias = tuple[jax.Array, Callable[..., Any]]


def look_into(loss_fn: LossFn, params: PyTree) -> LossProgram:
    """The program of a loss function, whose heads keep a NaN to themselves."""
    return loss_program(lambda params: loss_leaves(loss_fn(params)), params)


class SharedPoints(NamedTuple):
    """P points of K tasks, each with one forward pass of all losses.

    Make them by `at_points`.

    Attributes:
        index: number of the point of each task, shape (K,), int.
        passes: forward passes of all losses, shape (K,), by point.
        task_passes: `task_passes(i)`, forward passes of the loss of task i alone, by
            point. None: its losses and gradients come out of `passes`.
        is_linear: whether backward passes are known to be linear in the cotangent.
    """

    index: jax.Array
    passes: list[Pass]
    task_passes: Callable[[Any], list[Pass]] | None
    is_linear: bool

    def losses(self) -> jax.Array:
        """Each task's loss at its own point, shape (K,)."""
        return _select(self.index, *(losses for losses, _ in self.passes))

    def value_and_gradient(self, i: int | jax.Array) -> tuple[jax.Array, PyTree]:
        """Loss and gradient of task i at its own point, in one backward pass.

        What a backward pass needs is selected at run time.
        """
        if self.task_passes is not None:
            passes = self.task_passes(i)
            loss = _select(self.index[i], *(loss for loss, _ in passes))
            return loss, _pull_back(passes, self.index[i], jnp.ones_like(loss))
        losses = self.losses()
        is_own = jnp.arange(len(losses)) == i
        cotangent = zero_unless(is_own, jnp.ones_like(losses))
        return losses[i], _pull_back(self.passes, self.index[i], cotangent)

    def weighted_gradient(self, weights: jax.Array) -> PyTree:
        """`sum_i w_i g_i`, each gradient at its task's own point: P backward passes."""
        parts = [
            pullback(zero_unless(self.index == point, weights + jnp.zeros_like(losses)))
            for point, (losses, pullback) in enumerate(self.passes)
        ]
        return jax.tree.map(lambda *leaves: sum(leaves), *(part for (part,) in parts))

    def products(self, v: PyTree) -> jax.Array:
        """`<g_i, v>`, each gradient at its task's own point, shape (K,).

        P backward passes transposed, which must be linear: unlike `jax.jvp`, they do
        not repeat the forward pass.
        """
        # Each device's own, inside `jax.shard_map`.
        ones = jnp.ones_like(self.passes[0][0])
        v = jax.tree.map(lambda leaf: leaf * ones[0].astype(leaf.dtype), v)
        columns = [jax.vjp(pullback, ones)[1]((v,))[0] for _, pullback in self.passes]
        return _select(self.index, *columns)


def at_points(
    loss_fn: LossFn,
    points: Sequence[PyTree],
    index: jax.Array,
    *,
    unrolled: bool = False,
) -> SharedPoints:
    """`SharedPoints` of a loss function.

    Args:
        loss_fn: params to K losses.
        points: P pytrees like params.
        index: number of the point of each task, shape (K,), int.
        unrolled: whether tasks come one by one as Python numbers, so that JAX drops the
            other tasks' heads from the passes of each.
    """
    if unrolled:
        is_known = len(points) > 1 and look_into(loss_fn, points[0]).is_known

        def task_passes(i):
            return _forward(lambda p: select_loss(loss_fn(p), i), points, is_known)

        return SharedPoints(index, [], task_passes, is_linear=False)
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
    return jax.tree.map(partial(_select, which), *pullbacks)(cotangent)[0]


def _select(which: jax.Array, *cases: jax.Array) -> jax.Array:
    """`cases[which]`; a single one is not touched, as `jax.vmap` would copy it."""
    return cases[0] if len(cases) == 1 else lax.select_n(which, *cases)
