"""`efficient_sam` (ESAM): random parameters perturbed, few examples used."""

import jax
import jax.numpy as jnp
from jax import lax

from samo_jax._checks import ScalarOrSchedule, check_scalar, is_number
from samo_jax._labels import Mask
from samo_jax._named import named
from samo_jax._perturbations._ascent import steepest_ascent
from samo_jax._perturbations._base import Perturbation
from samo_jax._perturbations._directions import DirectionLike
from samo_jax._tasks import select_leaf


@named
def efficient_sam(
    rho: ScalarOrSchedule = 0.05,
    beta: float = 0.6,
    gamma: float = 0.5,
    *,
    direction: DirectionLike = "global",
    mask: Mask = None,
) -> Perturbation:
    """ESAM: `eps = (m / beta) rho p / ||p||`, m Bernoulli(beta) for each parameter.

    Only the gamma share of the examples whose loss grows most, `l_b(w + eps) - l_b(w)`,
    gives the gradient at w + eps. beta = gamma = 1 is SAM.

    `update` needs two more arguments. `example_losses`: per-example losses at w, from
    the clean pass (a pytree of K arrays, shape (B,), like the K losses).
    `example_loss_fn(params, index)`: the same for the examples that the int array
    `index` selects. A step costs, beyond the clean pass, a forward pass on all B
    examples and a forward and backward pass on gamma B of them, for every task.

    Args:
        rho: radius, non-negative, or a schedule of the step.
        beta: share of the parameters that are perturbed, in (0, 1].
        gamma: share of the examples that are used, in (0, 1], static.
        direction: see `sam`.
        mask: see `sam`.

    Returns:
        A `Perturbation` for `multitask` and `single_task`, which then need a `key`.

    Raises:
        ValueError: if `rho` is negative, or `beta` or `gamma` not in (0, 1]; in
            `update`, if an argument is missing or not per example.

    Examples:
        >>> import jax.numpy as jnp, samo_jax
        >>> tx = samo_jax.single_task(samo_jax.efficient_sam(beta=1.0), key=0)
        >>> x = jnp.array([1.0, -2.0, 3.0, 4.0])
        >>> example_loss_fn = lambda w, index: (w * x[index] - 1) ** 2
        >>> params = jnp.array(1.0)
        >>> losses = example_loss_fn(params, jnp.arange(4))
        >>> updates, _ = tx.update(
        ...     jnp.array(14.0), tx.init(params), params,
        ...     loss_fn=lambda w: jnp.mean(example_loss_fn(w, jnp.arange(4))),
        ...     example_losses=losses, example_loss_fn=example_loss_fn,
        ... )
        >>> print(updates)  # of the two examples with the steepest losses, 3 and 4
        19.25

    References:
        Du, Yan, Feng, Zhou, Zhen, Goh and Tan, `Efficient Sharpness-aware Minimization
        for Improved Training of Neural Networks <https://arxiv.org/abs/2110.03141>`_,
        2022
    """
    for name, share in (("beta", beta), ("gamma", gamma)):
        check_scalar(name, share, "1 takes all.")
        if is_number(share) and not 0 < share <= 1:
            raise ValueError(f"`{name}` must be in (0, 1], got {share}. 1 takes all.")
    ascent = steepest_ascent(direction, rho, mask=mask)

    def perturb(context, i):
        problem = context.problem
        eps = ascent.perturb(context, i)
        leaves, structure = jax.tree.flatten(eps)
        keys = jax.random.split(jax.random.fold_in(problem.key, i), len(leaves))
        thinned = [
            jnp.where(jax.random.bernoulli(key, beta, leaf.shape), leaf / beta, 0)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
        return structure.unflatten(thinned)

    def loss(problem, _context, point, i):
        example_loss_fn = problem.required("example_loss_fn", "efficient_sam()")
        clean = problem.required("example_losses", "efficient_sam()")

        def of_task(losses, name):
            leaves = jax.tree.leaves(losses)
            if [leaf.ndim for leaf in leaves] != [1] * len(problem.tasks):
                raise ValueError(
                    f"`{name}` must be a pytree of {len(problem.tasks)} arrays of "
                    f"shape (B,), one per task; got {jax.tree.map(jnp.shape, losses)}. "
                    "Do not reduce over the batch."
                )
            return select_leaf(leaves, i)

        clean = of_task(clean, "example_losses")
        count = max(round(gamma * len(clean)), 1)
        everyone = jnp.arange(len(clean))
        losses = example_loss_fn(lax.stop_gradient(point), everyone)
        losses = of_task(losses, "example_loss_fn")
        _, index = lax.top_k(losses - clean, count)
        return jnp.mean(of_task(example_loss_fn(point, index), "example_loss_fn"))

    return ascent._replace(perturb=perturb, loss=loss, needs_key=True)
