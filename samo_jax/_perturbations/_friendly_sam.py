"""`friendly_sam`: ascent along the minibatch's own part of the gradient."""

from typing import NamedTuple

import jax

from samo_jax._checks import ScalarOrSchedule, check_nonnegative, check_share, resolve
from samo_jax._labels import Mask
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation, same_for_all_tasks
from samo_jax._tree import PyTree, zeros_like_params


class _Context(NamedTuple):
    """Context of `friendly_sam`.

    Attributes:
        direction: the ascent direction q.
        average: the new moving average m.
    """

    direction: PyTree
    average: PyTree


@named
def friendly_sam(
    rho: ScalarOrSchedule = 0.05,
    sigma: ScalarOrSchedule = 1.0,
    decay: float = 0.9,
    *,
    mask: Mask = None,
) -> Perturbation:
    """Friendly SAM: `eps = rho q / ||q||`, `q = g0 - sigma m`.

    `m <- decay m + (1 - decay) g0` estimates the full gradient, whose component is
    taken out of the ascent: what remains is the minibatch's noise. With sigma = 1 the
    direction is that of the official code, which subtracts the last m (and starts m at
    the first gradient, here at zero). sigma = 0 is SAM. Costs one float32 copy of the
    parameters.

    Args:
        rho: radius, non-negative, or a schedule of the step.
        sigma: share of m taken out, non-negative, or a schedule.
        decay: decay of the average m, in [0, 1].
        mask: see `sam`.

    Returns:
        A `Perturbation` for `multitask` and `single_task`, all of whose tasks look
        along the same q.

    Raises:
        ValueError: if `rho` or `sigma` is negative, or `decay` not in [0, 1].

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tx = samo_jax.single_task(samo_jax.friendly_sam(rho=1.0))
        >>> loss_fn = lambda w: jnp.sum(w**2) / 2
        >>> params = jnp.array([3.0])
        >>> updates, _ = tx.update(params, tx.init(params), params, loss_fn=loss_fn)
        >>> print(updates)
        [4.]

    References:
        Li, Zhou, He, Cheng and Huang, `Friendly Sharpness-Aware Minimization
        <https://arxiv.org/abs/2403.12350>`_, 2024
    """
    check_nonnegative("sigma", sigma, "0 is SAM.")
    check_share("decay", decay, "0.9 is usual.")

    def prepare(problem, average):
        average = jax.tree.map(
            lambda m, g: decay * m + (1 - decay) * g.astype(m.dtype),
            average,
            problem.mean_grad,
        )
        share = resolve("sigma", sigma, problem.step)
        direction = jax.tree.map(
            lambda m, g: g.astype(m.dtype) - share * m, average, problem.mean_grad
        )
        return _Context(direction, average)

    def finish(context, task_grads, state):
        del state
        return task_grads, context.average

    direction = same_for_all_tasks(
        prepare,
        lambda context: context.direction,
        init=lambda params, _num_tasks: zeros_like_params(params),
        finish=finish,
    )
    return steepest_ascent(direction, rho, mask=mask)
