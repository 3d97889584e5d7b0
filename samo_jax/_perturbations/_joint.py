"""`joint`: perturbations between the global gradient and a local direction."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

from samo_jax._checks import ScalarOrSchedule, check_alpha, check_rho, resolve
from samo_jax._perturbations._adaptive_joint import adaptive_joint
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Direction, Perturbation, wrap_direction
from samo_jax._perturbations._joint_context import prepare_joint
from samo_jax._perturbations._joint_perturbation import joint_perturbation
from samo_jax._tree import PyTree

Alpha: TypeAlias = ScalarOrSchedule | Literal["adaptive"]


def joint(
    local: Direction,
    rho: ScalarOrSchedule,
    alpha: Alpha,
    anchor: Callable[[Any], PyTree] | None = None,
) -> Perturbation:
    """`eps_i = joint_perturbation(g0, ghat_i)`, on heads along g0 alone.

    Args:
        local: local direction ghat_i.
        rho: radius, or a schedule of the step.
        alpha: share of the global gradient, a schedule of the step, or "adaptive".
        anchor: g0 from the context of `local`. None: the incoming updates.
    """
    check_rho(rho)
    if isinstance(alpha, str) and alpha == "adaptive":
        return steepest_ascent(adaptive_joint(local, anchor), rho)
    check_alpha(alpha, ', or "adaptive"')

    def scale(context, ghat):
        step = context.problem.step
        return joint_perturbation(
            context.mean_grad,
            context.on_shared_leaves(ghat),
            rho=resolve("rho", rho, step),
            alpha=resolve("alpha", alpha, step),
            groups=context.problem.labels,
        )

    def shared_perturbations(context):
        directions, index = cast(Callable, local.shared_perturbations)(context.inner)
        return [scale(context, ghat) for ghat in directions], index

    return Perturbation(
        *wrap_direction(local)._replace(
            prepare=prepare_joint(local, anchor),
            perturb=lambda context, i: scale(context, local.perturb(context.inner, i)),
            shared_perturbations=local.shared_perturbations and shared_perturbations,
        )
    )
