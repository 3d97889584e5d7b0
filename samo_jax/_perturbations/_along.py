"""From a direction to a perturbation: metric, mask, norm groups and radius."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from samo_jax._hyperparameters import (
    ScalarOrSchedule,
    check_choice,
    check_rho,
    resolve,
)
from samo_jax._perturbations._base import Perturbation, own_leaves, within
from samo_jax._perturbations._directions import DirectionLike, as_direction
from samo_jax._perturbations._radius import scale_to_radius
from samo_jax._tasks import mask_leaves
from samo_jax._tree import accumulator_dtype, as_floats, keep

Norm: TypeAlias = Literal["separate", "joint", "layerwise"]


def along(
    direction: DirectionLike,
    rho: ScalarOrSchedule,
    *,
    stretch: Callable[..., jax.Array] | None = None,
    damping: Callable[..., jax.Array] | None = None,
    mask: Any = None,
    norm: Norm = "separate",
) -> Perturbation:
    """Steepest ascent along a direction, in a diagonal metric.

    `eps = rho t (t p) / ||t p||`, elementwise, maximises `<p, eps>` over
    `sum_j (eps_j / t_j)^2 <= rho^2`, on every norm group.

    Args:
        direction: p.
        rho: radius, or a schedule of the step.
        stretch: `stretch(params, p, step)`, the pytree t. None: 1.
        damping: `damping(norm, step)`, a factor of rho, of `||t p||`. None: 1.
        mask: a pytree prefix of bools, or a function of the parameters that returns
            one; t = 0 where it is False. None: all True.
        norm: "separate": the shared leaves are one norm group, and each head is;
            "joint": the shared leaves and the task's head are one; "layerwise": each
            leaf is one.
    """
    check_rho(rho)
    check_choice("norm", norm, get_args(Norm))
    inner = as_direction(direction)

    def prepare(problem, state):
        return problem, inner.prepare(problem, state)

    def perturb(context, i):
        problem, inner_context = context
        return scale(problem, own_leaves(inner.perturb(inner_context, i), problem, i))

    def scale(problem, p):
        step, dtype = problem.step, accumulator_dtype()
        params, p = as_floats((problem.params, p))
        t = jax.tree.map(lambda _: jnp.ones((), dtype), p)
        if stretch is not None:
            t = stretch(params, p, step)
        if mask is not None:
            t = jax.tree.map(keep, mask_leaves(params, mask), t)

        def radius(norm):
            factor = 1 if damping is None else damping(norm, step)
            return jnp.asarray(resolve("rho", rho, step), dtype) * factor

        tp = jax.tree.map(jnp.multiply, t, p)
        eps = scale_to_radius(tp, radius, _groups(problem.labels, norm))
        return jax.tree.map(jnp.multiply, t, eps)

    def points(inner_points, context):
        problem, inner_context = context
        directions, index = inner_points(inner_context)
        return [scale(problem, p) for p in directions], index

    parts = within(inner)._replace(
        prepare=prepare,
        perturb=perturb,
        # A joint norm is also over the task's own head.
        points=(
            None
            if inner.points is None or norm == "joint"
            else partial(points, inner.points)
        ),
    )
    return Perturbation(*parts)


def _groups(labels, norm):
    if norm == "joint":
        return jax.tree.map(lambda _: "", labels)
    if norm == "layerwise":
        return jax.tree.map_with_path(
            lambda path, _: jax.tree_util.keystr(path), labels
        )
    return labels
