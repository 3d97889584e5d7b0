"""SAMO: a joint global-local perturbation, whose local part needs no derivative."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from samo_jax._hyperparameters import (
    ScalarOrSchedule,
    check_alpha,
    check_mu,
    check_rho,
    is_number,
    resolve,
)
from samo_jax._perturbations._along import along
from samo_jax._perturbations._base import Perturbation
from samo_jax._perturbations._global_sam import global_sam
from samo_jax._perturbations._radius import layerwise_normalize, scale_to_radius
from samo_jax._spsa import directional_difference, random_direction
from samo_jax._tasks import SHARED, map_tasks, select_loss
from samo_jax._tree import PyTree


def joint_perturbation(
    mean_grad: PyTree,
    local_grad: PyTree,
    *,
    rho: ArrayLike,
    alpha: ArrayLike,
    groups: Any = None,
) -> PyTree:
    """SAMO's joint global-local perturbation of one task.

    `p = alpha g0 + (1 - alpha) lhat`, `eps = rho p / ||p||`, where lhat is the local
    gradient with every leaf rescaled to the norm of g0's leaf (`layerwise_normalize`).

    Args:
        mean_grad: g0, gradient of the mean loss.
        local_grad: the task's own gradient or an estimate of it, like `mean_grad`. Its
            leaves' lengths do not matter.
        rho: radius, non-negative.
        alpha: share of the global gradient, in [0, 1].
        groups: a pytree of labels, see `scale_to_radius`.

    Returns:
        eps, a pytree like `mean_grad`, in float32 (float64 under x64).

    Raises:
        ValueError: if `rho` is negative or `alpha` outside [0, 1].

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> g0, local = jnp.array([2.0, 0.0]), jnp.array([0.0, 0.5])
        >>> print(samo_jax.joint_perturbation(g0, local, rho=1.0, alpha=0.5))
        [0.70710677 0.70710677]

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    check_rho(rho)
    check_alpha(alpha)
    return scale_to_radius(_mix(mean_grad, local_grad, alpha), rho, groups)


def _mix(mean_grad, local_grad, alpha):
    return jax.tree.map(
        lambda g, local: alpha * g.astype(local.dtype) + (1 - alpha) * local,
        mean_grad,
        layerwise_normalize(local_grad, mean_grad),
    )


def joint_sam(
    rho: ScalarOrSchedule = 0.05,
    alpha: ScalarOrSchedule = 0.5,
    mu: ScalarOrSchedule = 1e-2,
) -> Perturbation:
    """SAMO: the global gradient mixed with a forward-only local estimate.

    `eps_i = joint_perturbation(g0, ghat_i)` with the SPSA estimate `ghat_i = c_i z_i`,
    one probe z_i per task on the shared leaves: 2K extra forward passes a step. On a
    head, g0 is (up to 1/K) already the task's own gradient and is used alone.
    Layer-wise normalisation leaves only the sign of c_i, so a key and a sign per task
    are all that is kept. A zero or NaN difference gives a zero estimate.

    Args:
        rho: radius, non-negative, or a schedule of the step.
        alpha: share of the global gradient, in [0, 1], or a schedule. The number 1 is
            `global_sam`: nothing is drawn and no probe is run.
        mu: step of the central difference, positive, or a schedule. Probes are
            `mu sqrt(n)` away.

    Returns:
        A `Perturbation` for `multitask`.

    Raises:
        ValueError: if `rho` is negative, `alpha` outside [0, 1] or `mu` not positive.

    References:
        Ban, Subramani and Ji, `SAMO: A Lightweight Sharpness-Aware Approach for
        Multi-Task Optimization with Joint Global-Local Perturbation
        <https://arxiv.org/abs/2507.07883>`_, 2025
    """
    check_rho(rho)
    check_alpha(alpha)
    check_mu(mu)
    if is_number(alpha) and alpha == 1:
        return global_sam(rho)

    def probe(problem, i):
        z = random_direction(jax.random.fold_in(problem.key, i), problem.params)
        return jax.tree.map(
            lambda z, label: z if label == SHARED else jnp.zeros_like(z),
            z,
            problem.labels,
        )

    def prepare(problem, state):
        del state

        def sign(i):
            difference = directional_difference(
                lambda p: select_loss(problem.probe_loss_fn(p), i),
                problem.params,
                probe(problem, i),
                mu=resolve(mu, problem.step),
            )
            return jnp.sign(jnp.nan_to_num(difference))

        return problem, map_tasks(sign, len(problem.tasks), problem.unroll)

    def perturb(context, i):
        problem, signs = context
        local_grad = jax.tree.map(
            lambda z, g, label: signs[i] * z if label == SHARED else g,
            probe(problem, i),
            problem.mean_grad,
            problem.labels,
        )
        return _mix(problem.mean_grad, local_grad, resolve(alpha, problem.step))

    return along(Perturbation(prepare, perturb, needs_key=True), rho)
