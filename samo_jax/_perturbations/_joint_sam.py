"""`joint_sam`: SAMO's perturbation, whose local part needs no derivative."""

from samo_jax._checks import ScalarOrSchedule, check_mu, check_rho, is_number
from samo_jax._named import named
from samo_jax._perturbations._base import Perturbation
from samo_jax._perturbations._directions import DirectionLike, as_direction
from samo_jax._perturbations._global_sam import global_sam
from samo_jax._perturbations._joint import Alpha, joint
from samo_jax._perturbations._probe import probe

_MU = 1e-2


@named
def joint_sam(
    rho: ScalarOrSchedule = 0.05,
    alpha: Alpha = 0.5,
    mu: ScalarOrSchedule = _MU,
    *,
    local: DirectionLike | None = None,
) -> Perturbation:
    """SAMO: the global gradient mixed with a local estimate.

    `eps_i = joint_perturbation(g0, ghat_i)`. In the paper, ghat_i is a forward-only
    SPSA estimate from one probe per task on the shared leaves: 2K extra forward passes
    a step. On a head, g0 is (up to 1/K) already the task's own gradient and is used
    alone. Layer-wise normalisation leaves only the sign of the probe's difference.

    Args:
        rho: radius, non-negative, or a schedule of the step.
        alpha: share of the global gradient, in [0, 1], or a schedule. The number 1 is
            `global_sam`: nothing is drawn and no probe is run. "adaptive" learns it for
            each task: `p = a g0 + b lhat_i` with the coefficients that would have been
            closest to the task's gradients in the steps before (least squares with a
            moving average of the cosines between g0, lhat_i and g_i, all shared leaves
            one vector). An unreliable estimate drops out, and a task in conflict with
            the mean looks away from it. The first step is `global_sam`'s. Share the
            probes: where tasks are looped over, those of each task's own run twice.
        mu: step of the default probe's difference, positive, or a schedule. Probes are
            `mu sqrt(n)` away.
        local: source of ghat_i. None: `probe(mu)`, the paper's. A `probe` with other
            settings; "local", the exact gradient (K more forward and backward passes);
            any other `Direction`, or a perturbation, for its direction. `memory_sam`
            needs no pass for it.

    Returns:
        A `Perturbation` for `multitask`.

    Raises:
        ValueError: if `rho` is negative, `alpha` outside [0, 1], `mu` not positive, or
            `mu` is set beside `local`.

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    check_rho(rho)
    check_mu(mu)
    if local is not None and not (is_number(mu) and mu == _MU):
        raise ValueError(
            f"`mu` is the step of the default probe, got {mu} beside `local`. Set it "
            "there: `local=samo_jax.probe(mu)`."
        )
    if is_number(alpha) and alpha == 1:
        return global_sam(rho)
    return joint(probe(mu) if local is None else as_direction(local), rho, alpha)
