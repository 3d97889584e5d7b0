"""`probe`: local directions by forward passes alone."""

from typing import Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp

from samo_jax._by_task import task_loss
from samo_jax._checks import (
    ScalarOrSchedule,
    check_choice,
    check_count,
    check_mu,
    resolve,
)
from samo_jax._labels import SHARED, Mask, mask_leaves
from samo_jax._named import named
from samo_jax._perturbations._base import Direction
from samo_jax._perturbations._radius import scale_to_radius
from samo_jax._problem import Problem
from samo_jax._spsa import (
    Distribution,
    estimate_along,
    probe_differences,
    random_direction,
)
from samo_jax._tasks import stack_losses
from samo_jax._tree import PyTree, accumulator_dtype, safe_divide, zero_unless

Sign: TypeAlias = Literal["estimated", "random"]


class _Probes(NamedTuple):
    """Context of a probe.

    Attributes:
        problem: the problem of this step.
        probes: the probes z_k that all tasks share. None: each task draws its own.
        coefficients: c_ik, shape (K, n). None: each task takes its own differences.
    """

    problem: Problem
    probes: list[PyTree] | None
    coefficients: jax.Array | None


@named
def probe(
    mu: ScalarOrSchedule = 1e-2,
    *,
    num_probes: int = 1,
    shared: bool = False,
    antithetic: bool = True,
    distribution: Distribution = "normal",
    unit: bool = False,
    sign: Sign = "estimated",
    mask: Mask = None,
) -> Direction:
    """A task's gradient as forward-only probes see it: a direction for `joint_sam`.

    `ghat_i = sum_k c_ik z_k` up to its length, with the differences of the task's loss
    along n probes `c_ik = l_i(theta + mu z_k) - l_i(theta - mu z_k)`. The expected
    cosine with the task's gradient is about `sqrt(2 n / (pi P))` for P probed
    parameters. Passes: `2 n K` forward, or `2 n` with `shared`.

    With `shared` and one probe the K tasks have two perturbed points, `theta + eps_+`
    and `theta + eps_-`, and are evaluated there: 2 forward passes and K backward ones;
    2 backward ones with a combiner that needs no Gramian, such as `mean`.
    (`direction._replace(shared_perturbations=None)` evaluates task after task, in less
    memory.)

    Args:
        mu: step of the difference, positive, or a schedule.
        num_probes: number n of probes.
        shared: one set of probes for all tasks, whose losses come out of one forward
            pass, instead of one set per task.
        antithetic: False takes `l_i(theta + mu z_k) - l_i(theta)` instead: n + 1
            passes, not 2 n, but also the curvature along z_k.
        distribution: law of the entries of z_k: "normal" or "rademacher" (random
            signs).
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
            z = jax.tree.map(zero_unless, probed, z)
            return scale_to_radius(z, 1.0) if unit else z

        return [one(k) for k in range(num_probes)]

    def differences(problem, losses_at, probes):
        """`c_ik` for all k along a last axis, up to one factor per task."""
        c = probe_differences(
            losses_at,
            problem.params,
            probes,
            mu=resolve("mu", mu, problem.step),
            antithetic=antithetic,
        )
        c = zero_unless(jnp.isfinite(c), c)
        # Signs of a single probe become exact.
        return safe_divide(c, jnp.max(jnp.abs(c), axis=-1, keepdims=True))

    def prepare(problem, state):
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
        return _Probes(problem, probes, c)

    def estimate(problem, coefficients, probes):
        """The estimate on probed leaves, g0 on the others."""
        return jax.tree.map(
            lambda probed, ghat, g: ghat if probed else g,
            _probed(problem, mask),
            estimate_along(coefficients, probes),
            problem.mean_grad,
        )

    def perturb(context, i):
        problem, probes, c = context

        def loss_at(point):
            loss = task_loss(problem.probe_loss_fn, point, i)
            return loss.astype(accumulator_dtype())

        probes = draw(problem, i) if probes is None else probes
        c = differences(problem, loss_at, probes) if c is None else c[i]
        return estimate(problem, c, probes)

    def two_points(context):
        problem, probes, c = context
        negative = (c[:, 0] < 0).astype(jnp.int32)
        return [estimate(problem, [sign], probes) for sign in (1, -1)], negative

    return Direction(
        prepare,
        perturb,
        needs_key=True,
        shared_perturbations=two_points if shared and num_probes == 1 else None,
    )


def _probed(problem, mask):
    return jax.tree.map(
        lambda label, chosen: label == SHARED and bool(chosen),
        problem.labels,
        mask_leaves(problem.params, True if mask is None else mask),
    )
