"""Local directions from forward passes alone."""

from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from samo_jax._hyperparameters import (
    ScalarOrSchedule,
    check_choice,
    check_count,
    check_mu,
    resolve,
)
from samo_jax._perturbations._base import Direction
from samo_jax._perturbations._radius import scale_to_radius
from samo_jax._spsa import Distribution, random_direction
from samo_jax._tasks import SHARED, mask_leaves, select_loss, stack_losses
from samo_jax._tree import accumulator_dtype, displace, keep, safe_divide, scale_leaves

Sign: TypeAlias = Literal["estimated", "random"]


def probe(
    mu: ScalarOrSchedule = 1e-2,
    *,
    num_probes: int = 1,
    shared: bool = False,
    antithetic: bool = True,
    distribution: Distribution = "normal",
    unit: bool = False,
    sign: Sign = "estimated",
    mask: Any = None,
) -> Direction:
    """A task's gradient as forward-only probes see it: a direction for `joint_sam`.

    `ghat_i = sum_k c_ik z_k` up to its length, with the differences of the task's loss
    along n probes `c_ik = l_i(theta + mu z_k) - l_i(theta - mu z_k)`. The expected
    cosine with the task's gradient is about `sqrt(2 n / (pi P))` for P probed
    parameters. Passes: `2 n K` forward, or `2 n` with `shared`.

    With `shared` and one probe the K tasks have two perturbed points, `theta + eps_+`
    and `theta + eps_-`, and are evaluated there: 2 forward passes and K backward ones;
    2 backward ones with a linear combiner such as `mean`. (`direction._replace(
    points=None)` evaluates task after task, in less memory.)

    Args:
        mu: step of the difference, positive, or a schedule.
        num_probes: n.
        shared: one set of probes for all tasks, whose losses come out of one forward
            pass, instead of one set per task.
        antithetic: False takes `l_i(theta + mu z_k) - l_i(theta)` instead: n + 1
            passes, not 2 n, but also the curvature along z_k.
        distribution: of the entries of z_k: "normal" or "rademacher" (random signs).
        unit: z_k has length one, so that probes are mu away. Otherwise they are about
            `mu sqrt(P)` away, which is far in a large model.
        sign: "random" draws c_ik = +-1 instead, without a pass: the control for every
            claim that local information helps.
        mask: the leaves to probe: a pytree prefix of bools, or a function of the
            parameters; for instance the last shared layers. The global gradient is
            used on the others. None: all shared leaves.

    Returns:
        The `Direction` ghat_i, for `joint_sam`, `samo` and `sam`. It needs a key. A
        zero or NaN difference counts as zero (for two points: as positive).

    Raises:
        ValueError: if `mu` is not positive, `num_probes` is not a positive int, or
            `distribution` or `sign` is none of the above.

    Examples:
        >>> import jax, jax.numpy as jnp, samo_jax
        >>> loss_fn = lambda w: [jnp.sum(w**2), jnp.sum((w - 1) ** 2)]
        >>> local = samo_jax.probe(shared=True)
        >>> tx = samo_jax.samo(samo_jax.mgda(), num_tasks=2, key=0, local=local)
        >>> w = jnp.array([2.0, 3.0])
        >>> _, grad = samo_jax.mean_value_and_grad(loss_fn)(w)
        >>> updates, state = tx.update(grad, tx.init(w), w, loss_fn=loss_fn)

    References:
        Spall, `Multivariate stochastic approximation using a simultaneous perturbation
        gradient approximation <https://doi.org/10.1109/9.119632>`_, 1992
    """
    check_mu(mu)
    check_count("num_probes", num_probes, "1 is the paper's.")
    check_choice("distribution", distribution, get_args(Distribution))
    check_choice("sign", sign, get_args(Sign))

    def draw(problem, i):
        """The probes z_k of task i, zero on leaves that are not probed."""
        task_key = jax.random.fold_in(problem.key, i)
        probed = _probed(problem, mask)

        def one(k):
            key = task_key if k == 0 else jax.random.fold_in(task_key, k)
            z = random_direction(key, problem.params, distribution)
            z = jax.tree.map(keep, probed, z)
            return scale_to_radius(z, 1.0) if unit else z

        return [one(k) for k in range(num_probes)]

    def differences(problem, losses_at, probes):
        """`c_ik` for all k along a last axis, up to one factor per task."""
        length = resolve("mu", mu, problem.step)
        clean = None if antithetic else losses_at(problem.params)

        def difference(z):
            step = scale_leaves(z, lambda _: length)
            back = jax.tree.map(jnp.negative, step)
            ahead = losses_at(displace(problem.params, step))
            behind = losses_at(displace(problem.params, back)) if antithetic else clean
            return ahead - behind

        c = jnp.stack([difference(z) for z in probes], -1)
        c = jnp.where(jnp.isfinite(c), c, 0)
        # Signs of a single probe become exact.
        return safe_divide(c, jnp.max(jnp.abs(c), axis=-1, keepdims=True))

    def prepare(problem, state):
        """Probes and coefficients of all tasks; None: each task's own come later."""
        del state
        probes = draw(problem, 0) if shared else None
        if sign == "random":
            num_tasks = len(problem.tasks)
            key = jax.random.fold_in(problem.key, num_tasks)
            shape = (num_tasks, num_probes)
            c = jax.random.rademacher(key, shape, accumulator_dtype())
        elif shared:
            loss_fn = problem.probe_loss_fn
            c = differences(problem, lambda p: stack_losses(loss_fn(p)), probes)
        else:
            c = None
        return problem, probes, c

    def estimate(problem, probes, coefficients):
        return jax.tree.map(
            lambda probed, g, *z: (
                sum(c * z for c, z in zip(coefficients, z, strict=True))
                if probed
                else g
            ),
            _probed(problem, mask),
            problem.mean_grad,
            *probes,
        )

    def perturb(context, i):
        problem, probes, c = context

        def own_loss(point):
            loss = select_loss(problem.probe_loss_fn(point), i)
            return loss.astype(accumulator_dtype())

        probes = draw(problem, i) if probes is None else probes
        c = differences(problem, own_loss, probes) if c is None else c[i]
        return estimate(problem, probes, c)

    def points(context):
        problem, probes, c = context
        negative = (c[:, 0] < 0).astype(jnp.int32)
        return [estimate(problem, probes, [s]) for s in (1, -1)], negative

    return Direction(
        prepare,
        perturb,
        needs_key=True,
        points=points if shared and num_probes == 1 else None,
    )


def _probed(problem, mask):
    return jax.tree.map(
        lambda label, chosen: label == SHARED and bool(chosen),
        problem.labels,
        mask_leaves(problem.params, True if mask is None else mask),
    )
