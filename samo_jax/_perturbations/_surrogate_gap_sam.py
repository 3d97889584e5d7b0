"""`surrogate_gap_sam` (GSAM): a low perturbed loss, close to the clean one."""

from typing import Literal

import jax

from samo_jax._checks import ScalarOrSchedule, check_nonnegative, resolve
from samo_jax._labels import Mask
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation
from samo_jax._perturbations._directions import (
    check_named,
    clean_directions,
    mean_gradient,
)
from samo_jax._tree import as_floats, group_products, safe_divide


@named
def surrogate_gap_sam(
    rho: ScalarOrSchedule = 0.05,
    alpha: ScalarOrSchedule = 0.4,
    *,
    direction: Literal["global", "local"] = "global",
    mask: Mask = None,
) -> Perturbation:
    """GSAM: SAM's gradient q minus alpha times the part of p orthogonal to it.

    `eps = rho p / ||p||`, `q = grad l(w + eps)`, and the gradient handed on is
    `q - alpha (p - (<p, q> / ||q||^2) q)`: it still descends the perturbed loss at
    first order, and also narrows the gap to the clean one. alpha = 0 is SAM.

    Args:
        rho: radius, non-negative, or a schedule of the step. The paper lets it follow
            the learning rate, which any schedule can.
        alpha: weight of the orthogonal part, non-negative, or a schedule.
        direction: "global": p is the gradient of the mean loss. With several tasks
            choose "local", each task's own gradient (K more passes and copies): of the
            other tasks' gradients "global" would subtract a part, even with rho = 0.
        mask: leaves that are perturbed, see `sam`.

    Returns:
        A `Perturbation` for `multitask` and `single_task`. Inner products are over the
        norm groups of `multitask`: the shared leaves, and each head.

    Raises:
        ValueError: if `rho` or `alpha` is negative, or `direction` none of the above.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tx = samo_jax.single_task(samo_jax.surrogate_gap_sam(1.0, alpha=1.0))
        >>> loss_fn = lambda w: jnp.sum(w**2 * jnp.array([0.5, 2.0]))
        >>> params = jnp.array([3.0, 1.0])
        >>> grads = jnp.array([3.0, 4.0])
        >>> updates, _ = tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
        >>> print(updates)
        [2.79... 7.59...]

    References:
        Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan and Liu, `Surrogate
        Gap Minimization Improves Sharpness-Aware Training
        <https://arxiv.org/abs/2203.08065>`_, 2022
    """
    check_nonnegative("alpha", alpha, "0 is SAM.")
    check_named(direction)
    inner = clean_directions("local") if direction == "local" else mean_gradient()
    ascent = steepest_ascent(inner, rho, mask=mask)

    def finish(context, task_grads, state):
        problem, clean = context.problem, context.inner
        strength = resolve("alpha", alpha, problem.step)

        def narrow(p, q):
            inner_products = group_products(p, q, problem.labels)
            squares = group_products(q, q, problem.labels)

            def leaf(p, q, label):
                dtype, (p, q) = q.dtype, as_floats((p, q))
                along_q = safe_divide(inner_products[label], squares[label]) * q
                return (q - strength * (p - along_q)).astype(dtype)

            return jax.tree.map(leaf, p, q, problem.labels)

        in_axes = (0 if direction == "local" else None, 0)
        return jax.vmap(narrow, in_axes)(clean, task_grads), state

    return ascent._replace(finish=finish)
