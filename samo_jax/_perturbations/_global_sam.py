"""`global_sam`: all tasks look along the gradient of the mean loss."""

from samo_jax._checks import ScalarOrSchedule
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation


@named
def global_sam(rho: ScalarOrSchedule = 0.05) -> Perturbation:
    """G-SAM: every task is perturbed along the gradient of the mean loss.

    `eps_i = rho g0 / ||g0||`, with one norm over the shared leaves and one per head. No
    extra pass. With K = 1 it is SAM.

    Args:
        rho: radius, non-negative, or a schedule of the step.

    Returns:
        A `Perturbation` for `multitask`.

    Raises:
        ValueError: if `rho` is negative.

    References:
        Foret et al., `Sharpness-Aware Minimization for Efficiently Improving
        Generalization <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    return steepest_ascent("global", rho)
