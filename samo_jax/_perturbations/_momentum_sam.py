"""`momentum_sam`: the worst case guessed from momentum, with one gradient a step."""

import jax
import jax.numpy as jnp

from samo_jax._checks import ScalarOrSchedule, check_share
from samo_jax._gramian import combine
from samo_jax._labels import Mask
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation, same_for_all_tasks
from samo_jax._tasks import uniform_weights
from samo_jax._tree import as_floats, zeros_like_params


@named
def momentum_sam(
    rho: ScalarOrSchedule = 0.3, decay: float = 0.9, *, mask: Mask = None
) -> Perturbation:
    """Momentum-SAM: `eps = -rho v / ||v||`, `v <- decay v + mean_i grad l_i(w + eps)`.

    One gradient a step: the incoming updates are not looked at, so that the clean pass
    may be left out (pass `params` in their place). The step of descent, along -v, is
    looked ahead to. Between steps the parameters are never perturbed: evaluate them as
    they are. (The official optimiser stores `w + eps`, and must be told to move back.)

    v is the momentum of SGD with the same decay, for Adam, with its b1; with several
    tasks, of the mean gradient, whatever the combiner makes of it. Costs one float32
    copy of the parameters.

    Args:
        rho: radius, non-negative, or a schedule of the step. The official scripts use
            up to 3.
        decay: decay of the momentum v, in [0, 1].
        mask: see `sam`.

    Returns:
        A `Perturbation` for `multitask` and `single_task`, all of whose tasks look
        along the same v. The first step is not perturbed.

    Raises:
        ValueError: if `rho` is negative or `decay` not in [0, 1].

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tx = samo_jax.single_task(samo_jax.momentum_sam(rho=0.5))
        >>> loss_fn = lambda w: jnp.sum(w**2) / 2
        >>> params, state = jnp.array([3.0]), tx.init(jnp.array([3.0]))
        >>> for _ in range(2):
        ...     updates, state = tx.update(params, state, params, loss_fn=loss_fn)
        >>> print(updates)
        [2.5]

    References:
        Becker, Altrock and Risse, `Momentum-SAM: Sharpness Aware Minimization without
        Computational Overhead <https://arxiv.org/abs/2401.12033>`_, 2024
    """
    check_share("decay", decay, "0.9 is usual.")

    def finish(context, task_grads, velocity, *, present):
        del context
        shares = uniform_weights(len(present), present)
        mean_grad = combine(shares, as_floats(task_grads))
        new = jax.tree.map(lambda v, g: decay * v + g, velocity, mean_grad)
        return task_grads, new

    direction = same_for_all_tasks(
        lambda _problem, velocity: jax.tree.map(jnp.negative, velocity),
        lambda ascent: ascent,
        init=lambda params, _num_tasks: zeros_like_params(params),
        finish=finish,
    )
    return steepest_ascent(direction, rho, mask=mask)
