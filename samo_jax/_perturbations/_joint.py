"""Directions between a global and a local one."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from samo_jax._hyperparameters import (
    ScalarOrSchedule,
    check_alpha,
    resolve,
)
from samo_jax._perturbations._base import Direction, within
from samo_jax._perturbations._radius import layerwise_normalize
from samo_jax._tasks import SHARED, keep_shared, map_tasks
from samo_jax._tree import (
    PyTree,
    accumulator_dtype,
    group_products,
    keep_tasks,
    safe_divide,
)

Alpha: TypeAlias = ScalarOrSchedule | Literal["adaptive"]
_DECAY = 0.9
_RIDGE = 1e-3


class Pair(NamedTuple):
    """This step's problem, the local direction's context, g0, and any moments."""

    problem: Any
    local_context: Any
    mean_grad: PyTree
    moments: jax.Array | None = None


class AdaptiveState(NamedTuple):
    """What `alpha="adaptive"` remembers.

    Attributes:
        local_state: of the local direction.
        moments: shape (K, 4), moving averages of cos(g0, g_i), cos(lhat_i, g_i),
            cos(g0, lhat_i) and 1.
    """

    local_state: Any
    moments: jax.Array


def mix(a: Any, mean_grad: PyTree, b: Any, local_grad: PyTree) -> PyTree:
    """`a g0 + b lhat`, with a lhat in `accumulator_dtype`."""
    return jax.tree.map(
        lambda g, local: a * g.astype(local.dtype) + b * local, mean_grad, local_grad
    )


def joint(
    local: Direction, alpha: Alpha, anchor: Callable[[Any], PyTree] | None = None
) -> Direction:
    """The direction `alpha g0 + (1 - alpha) lhat_i` of task i, on heads g0 alone.

    lhat_i is the local direction with every leaf rescaled to the norm of g0's leaf; g0
    is `anchor(context of local)`, or the incoming updates.
    """
    if isinstance(alpha, str) and alpha == "adaptive":
        return _adaptive(local, anchor)
    check_alpha(alpha, ', or "adaptive"')
    prepare = _prepare(local, anchor)

    def join(pair, ghat):
        share = resolve("alpha", alpha, pair.problem.step)
        return mix(share, pair.mean_grad, 1 - share, _rescale(pair, ghat))

    def points(local_points, pair):
        directions, index = local_points(pair.local_context)
        return [join(pair, ghat) for ghat in directions], index

    return within(local)._replace(
        prepare=prepare,
        perturb=lambda pair, i: join(pair, local.perturb(pair.local_context, i)),
        points=local.points and partial(points, local.points),
    )


def _adaptive(local: Direction, anchor: Any) -> Direction:
    """The combination of g0 and lhat_i that has had the largest cosine with g_i.

    With r = cos(g0, lhat), the least-squares coefficients of g_i / ||g_i|| on the two
    unit vectors are `(1, -r; -r, 1) (cos(g0, g_i), cos(lhat, g_i))`, up to a factor.
    """
    prepare_pair, finish_local = _prepare(local, anchor), within(local).finish

    def init(params, num_tasks):
        moments = jnp.zeros((num_tasks, 4), accumulator_dtype())
        return AdaptiveState(local.init(params, num_tasks), moments)

    def prepare(problem, state):
        return prepare_pair(problem, state.local_state)._replace(moments=state.moments)

    def perturb(pair, i):
        with_global, with_local, between, one = pair.moments[i]
        one *= 1 + _RIDGE
        a = one * with_global - between * with_local
        b = one * with_local - between * with_global
        a = jnp.where((a == 0) & (b == 0), 1, a)
        ghat = local.perturb(pair.local_context, i)
        return mix(a, pair.mean_grad, b, _rescale(pair, ghat))

    def finish(pair, task_grads, state, *, present):
        labels, num_tasks = pair.problem.labels, len(pair.problem.tasks)

        def observe(i):
            ghat = local.perturb(pair.local_context, i)
            vectors = (
                keep_shared(tree, labels)
                for tree in (
                    pair.mean_grad,
                    _rescale(pair, ghat),
                    jax.tree.map(lambda leaf: leaf[i], task_grads),
                )
            )
            g0, lhat, g = map(jax.tree.leaves, vectors)
            cosines = [_cosine(g0, g), _cosine(lhat, g), _cosine(g0, lhat)]
            return jnp.stack([*cosines, jnp.ones_like(cosines[0])])

        seen = map_tasks(observe, num_tasks, pair.problem.unroll)
        moments = _DECAY * pair.moments + (1 - _DECAY) * seen
        moments = keep_tasks(present, moments, pair.moments)
        local_state = state.local_state
        if finish_local is not None:
            task_grads, local_state = finish_local(
                pair, task_grads, local_state, present=present
            )
        return task_grads, AdaptiveState(local_state, moments)

    return within(local)._replace(
        init=init, prepare=prepare, perturb=perturb, finish=finish, points=None
    )


def _prepare(local, anchor):
    def prepare(problem, state):
        context = local.prepare(problem, state)
        g0 = problem.mean_grad if anchor is None else anchor(context)
        return Pair(problem, context, g0)

    return prepare


def _rescale(pair: Pair, ghat: PyTree) -> PyTree:
    ghat = jax.tree.map(
        lambda label, local, g: local if label == SHARED else g,
        pair.problem.labels,
        ghat,
        pair.mean_grad,
    )
    return layerwise_normalize(ghat, pair.mean_grad)


def _cosine(one: list[jax.Array], other: list[jax.Array]) -> jax.Array:
    def product(a, b):
        products = group_products(a, b, [SHARED] * len(a))
        return jnp.asarray(sum(products.values()), accumulator_dtype())

    lengths = product(one, one) * product(other, other)
    return safe_divide(product(one, other), jnp.sqrt(lengths))
