"""`adaptive_joint`: the mixture that has been closest to each task's gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samo_jax._absent_tasks import select_tasks
from samo_jax._labels import SHARED, only_shared
from samo_jax._perturbations._base import Direction, wrap_direction
from samo_jax._perturbations._joint_context import JointContext, prepare_joint
from samo_jax._perturbations._joint_perturbation import mix_directions
from samo_jax._perturbations._radius import layerwise_normalize
from samo_jax._task_loop import map_tasks
from samo_jax._tree import PyTree, accumulator_dtype, group_products, safe_divide

_DECAY = 0.9
_RIDGE = 1e-3


class AdaptiveState(NamedTuple):
    """State of `alpha="adaptive"`.

    Attributes:
        local_state: state of the local direction.
        moments: shape (K, 4), moving averages of cos(g0, g_i), cos(lhat_i, g_i),
            cos(g0, lhat_i) and 1.
    """

    local_state: Any
    moments: jax.Array


def adaptive_joint(
    local: Direction, anchor: Callable[[Any], PyTree] | None
) -> Direction:
    """The combination of g0 and lhat_i that has had the largest cosine with g_i.

    With r = cos(g0, lhat), the least-squares coefficients of g_i / ||g_i|| on the two
    unit vectors are `(1, -r; -r, 1) (cos(g0, g_i), cos(lhat, g_i))`, up to a factor.
    """
    wrapped, prepare_context = wrap_direction(local), prepare_joint(local, anchor)

    def init(params, num_tasks):
        moments = jnp.zeros((num_tasks, 4), accumulator_dtype())
        return AdaptiveState(local.init(params, num_tasks), moments)

    def prepare(problem, state):
        return prepare_context(problem, state.local_state)._replace(
            moments=state.moments
        )

    def perturb(context, i):
        with_global, with_local, between, one = context.moments[i]
        one *= 1 + _RIDGE
        a = one * with_global - between * with_local
        b = one * with_local - between * with_global
        a = jnp.where((a == 0) & (b == 0), 1, a)
        ghat = local.perturb(context.inner, i)
        return mix_directions(a, context.mean_grad, b, _rescale(context, ghat))

    def finish(context, task_grads, state, *, present):
        labels, num_tasks = context.problem.labels, len(context.problem.tasks)

        def observe(i):
            ghat = local.perturb(context.inner, i)
            vectors = (
                only_shared(tree, labels)
                for tree in (
                    context.mean_grad,
                    _rescale(context, ghat),
                    jax.tree.map(lambda leaf: leaf[i], task_grads),
                )
            )
            g0, lhat, g = map(jax.tree.leaves, vectors)
            cosines = [_cosine(g0, g), _cosine(lhat, g), _cosine(g0, lhat)]
            return jnp.stack([*cosines, jnp.ones_like(cosines[0])])

        cosines = map_tasks(observe, num_tasks, context.problem.unroll)
        moments = _DECAY * context.moments + (1 - _DECAY) * cosines
        moments = select_tasks(present, moments, context.moments)
        local_state = state.local_state
        if wrapped.finish is not None:
            task_grads, local_state = wrapped.finish(
                context, task_grads, local_state, present=present
            )
        return task_grads, AdaptiveState(local_state, moments)

    return wrapped._replace(
        init=init,
        prepare=prepare,
        perturb=perturb,
        finish=finish,
        shared_perturbations=None,
    )


def _rescale(context: JointContext, ghat: PyTree) -> PyTree:
    """lhat_i, every leaf with the norm of g0's."""
    return layerwise_normalize(context.on_shared_leaves(ghat), context.mean_grad)


def _cosine(one: list[jax.Array], other: list[jax.Array]) -> jax.Array:
    def product(a, b):
        products = group_products(a, b, [SHARED] * len(a))
        return jnp.asarray(sum(products.values()), accumulator_dtype())

    lengths = product(one, one) * product(other, other)
    return safe_divide(product(one, other), jnp.sqrt(lengths))
