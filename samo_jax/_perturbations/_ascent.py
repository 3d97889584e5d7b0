"""`steepest_ascent`: from a direction to a perturbation of some length.

Metric, mask, norm groups and radius.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp

from samo_jax._checks import ScalarOrSchedule, check_choice, check_rho, resolve
from samo_jax._labels import Mask, mask_leaves, mask_other_heads
from samo_jax._perturbations._base import Perturbation, Wrapped, wrap_direction
from samo_jax._perturbations._directions import DirectionLike, as_direction
from samo_jax._perturbations._radius import scale_to_radius
from samo_jax._tree import accumulator_dtype, as_floats, zero_unless

Norm: TypeAlias = Literal["separate", "together", "layerwise"]


def steepest_ascent(
    direction: DirectionLike,
    rho: ScalarOrSchedule,
    *,
    stretch: Callable[..., jax.Array] | None = None,
    damping: Callable[..., jax.Array] | None = None,
    mask: Mask = None,
    norm: Norm = "separate",
) -> Perturbation:
    """Steepest ascent along a direction, in a diagonal metric.

    `eps = rho t (t p) / ||t p||`, elementwise, maximises `<p, eps>` over
    `sum_j (eps_j / t_j)^2 <= rho^2`, on every norm group.

    Args:
        direction: ascent direction p.
        rho: radius, or a schedule of the step.
        stretch: `stretch(params, p, step)`, the pytree t. None: 1.
        damping: `damping(norm, step)`, a factor of rho, of `||t p||`. None: 1.
        mask: a pytree prefix of bools, or a function of the parameters that returns
            one; t = 0 where it is False. None: all True.
        norm: "separate": the shared leaves are one norm group, and each head is;
            "together": the shared leaves and the task's head are one; "layerwise": each
            leaf is one.
    """
    check_rho(rho)
    check_choice("norm", norm, get_args(Norm))
    inner = as_direction(direction)

    def prepare(problem, state):
        return Wrapped(problem, inner.prepare(problem, state))

    def scale(problem, p):
        step, dtype = problem.step, accumulator_dtype()
        params, p = as_floats((problem.params, p))
        t = jax.tree.map(lambda _: jnp.ones((), dtype), p)
        if stretch is not None:
            t = stretch(params, p, step)
        if mask is not None:
            t = jax.tree.map(zero_unless, mask_leaves(params, mask), t)

        def radius(norm):
            factor = 1 if damping is None else damping(norm, step)
            return jnp.asarray(resolve("rho", rho, step), dtype) * factor

        tp = jax.tree.map(jnp.multiply, t, p)
        eps = scale_to_radius(tp, radius, _groups(problem.labels, norm))
        return jax.tree.map(jnp.multiply, t, eps)

    def perturb(wrapped, i):
        problem, p = wrapped.problem, inner.perturb(wrapped.inner, i)
        return scale(problem, mask_other_heads(p, problem.labels, problem.tasks, i))

    def shared_perturbations(wrapped):
        directions, index = cast(Callable, inner.shared_perturbations)(wrapped.inner)
        return [scale(wrapped.problem, p) for p in directions], index

    # A norm together with the head is another one for each task.
    shared = inner.shared_perturbations is not None and norm != "together"
    return Perturbation(
        *wrap_direction(inner)._replace(
            prepare=prepare,
            perturb=perturb,
            shared_perturbations=shared_perturbations if shared else None,
        )
    )


def _groups(labels, norm):
    if norm == "together":
        return jax.tree.map(lambda _: "", labels)
    if norm == "layerwise":
        return jax.tree.map_with_path(
            lambda path, _: jax.tree_util.keystr(path), labels
        )
    return labels
