"""`local_sam`: every task looks along its own gradient."""

from samo_jax._checks import ScalarOrSchedule
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation


@named
def local_sam(rho: ScalarOrSchedule = 0.05) -> Perturbation:
    """L-SAM: every task is perturbed along its own gradient.

    `eps_i = rho g_i / ||g_i||` with exact `g_i = grad l_i(theta)`, one norm over the
    shared leaves and one per head: K more forward and backward passes a step.

    Args:
        rho: radius, non-negative, or a schedule of the step.

    Returns:
        A `Perturbation` for `multitask`.

    Raises:
        ValueError: if `rho` is negative.

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    return steepest_ascent("local", rho)
