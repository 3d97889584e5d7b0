"""Which combiner has which property, and of what degree it is.

Terms and strategy are those of TorchJD and of Quinton and Rey (2024). With d the
direction for the gradients J, a property is a number that is zero where it holds:

NC: no task conflicts with d, `J d >= 0`; NCI: if the gradients are independent.
LUS: linear under scaling, `d(diag(c) J)` is linear in c > 0.
PI: independent of the order of the tasks.
CONE: d is a combination of the gradients with non-negative weights.
RAY: rescaling single gradients, if they are independent, does not turn d.
SS: d vanishes at strongly stationary J only.
DEGREE: `d(s J) = s^degree d(J)`.

For FairGrad and Nash-MTL, SS is the ridge's answer: the equations have no solution.
Methods with a state are in the table with their first update.
"""

import jax
import jax.numpy as jnp

import samo_jax

from properties import Method


def gradvac(tasks, target):
    """With constant targets: the combiner's own are zero in its first update."""
    targets, key = jnp.full(2 * tasks.shape, target), jax.random.key(0)
    return samo_jax.Weighting(
        lambda _: (),
        lambda gramian, state, **_: (
            samo_jax.gradvac_weights(gramian, targets, key)[0],
            state,
        ),
    )


def mgda(tasks, _):
    return samo_jax.mgda(preference=tasks)


def cagrad(tasks, c):
    return samo_jax.cagrad(c, preference=tasks)


def fairgrad(tasks, alpha):
    return samo_jax.fairgrad(alpha, preference=tasks)


def nash_mtl(tasks, _):
    return samo_jax.nash_mtl(preference=tasks)


def fixed(combiner):
    return lambda *_: combiner


def equally(factory, *args, **kwargs):
    return lambda tasks, _: factory(*args, preference=0 * tasks + 1, **kwargs)


def preferring(factory, *args):
    return lambda tasks, _: factory(*args, tasks)


LINEAR = "LUS PI CONE SS"
METHODS = {
    "mean": Method(fixed(samo_jax.mean()), LINEAR),
    "total": Method(fixed(samo_jax.total()), LINEAR),
    "constant": Method(preferring(samo_jax.constant), LINEAR),
    "random_weights": Method(fixed(samo_jax.random_weights(0)), "LUS CONE SS"),
    "mgda": Method(mgda, "NC NCI PI CONE"),
    "upgrad": Method(preferring(samo_jax.upgrad), "NC NCI LUS PI CONE SS"),
    "dualproj": Method(preferring(samo_jax.dualproj), "NC NCI PI CONE SS"),
    "cagrad-0.5": Method(cagrad, "PI CONE SS", hyperparameter=0.5),
    "cagrad-1": Method(cagrad, "NC NCI PI CONE SS", hyperparameter=1),
    "cagrad-2": Method(cagrad, "NC NCI PI CONE SS", hyperparameter=2),
    "pcd-0": Method(lambda *_: samo_jax.pcd(tau=0.0), "NC NCI LUS CONE RAY"),
    "pcd-0.3": Method(lambda *_: samo_jax.pcd(tau=0.3), "LUS CONE RAY"),
    "pcgrad": Method(fixed(samo_jax.pcgrad(0)), "LUS CONE SS"),
    "gradvac": Method(
        gradvac, "LUS CONE SS", hyperparameter=0.3, has_rounded_roots=True
    ),
    "imtl_g": Method(fixed(samo_jax.imtl_g()), "PI SS"),
    "aligned_mtl-min": Method(preferring(samo_jax.aligned_mtl, "min"), "PI SS"),
    "aligned_mtl-median": Method(preferring(samo_jax.aligned_mtl, "median"), "PI SS"),
    "aligned_mtl-rmse": Method(preferring(samo_jax.aligned_mtl, "rmse"), "PI SS"),
    "conflict_free_inverse": Method(
        fixed(samo_jax.conflict_free_inverse()), "NCI LUS PI RAY"
    ),
    "nash_mtl": Method(nash_mtl, "NC NCI PI CONE RAY SS", 0),
    "fairgrad-0.5": Method(fairgrad, "NC NCI PI CONE SS", 1 / 3, 0.5),
    "fairgrad-1": Method(fairgrad, "NC NCI PI CONE RAY SS", 0, 1),
    "fairgrad-2": Method(fairgrad, "NC NCI PI CONE SS", -1 / 3, 2),
    "db_mtl": Method(fixed(samo_jax.db_mtl()), "PI CONE RAY SS"),
    "krum": Method(fixed(samo_jax.krum(1, 2)), "PI CONE"),
    "gradnorm": Method(fixed(samo_jax.gradnorm()), LINEAR),
    "smoothed": Method(fixed(samo_jax.smoothed(samo_jax.db_mtl())), "PI CONE RAY SS"),
    "normalized": Method(
        fixed(samo_jax.normalized(samo_jax.upgrad())), "NC NCI PI CONE RAY SS", 0
    ),
    "geometric_mean": Method(fixed(samo_jax.geometric_mean()), LINEAR),
    "stch": Method(fixed(samo_jax.stch(0.3)), LINEAR),
    "famo": Method(fixed(samo_jax.famo()), LINEAR),
    "uncertainty": Method(fixed(samo_jax.uncertainty()), LINEAR),
    "imtl_l": Method(fixed(samo_jax.imtl_l()), LINEAR),
    "dwa": Method(fixed(samo_jax.dwa(window=1)), LINEAR),
    "pbi": Method(equally(samo_jax.pbi, 5**0.5), "LUS PI"),
    "cosmos": Method(equally(samo_jax.cosmos, lam=270**0.5), "LUS PI"),
    "log_losses": Method(
        fixed(samo_jax.log_losses(samo_jax.conflict_free_inverse())), "NCI LUS PI RAY"
    ),
    "graddrop": Method(fixed(samo_jax.graddrop(0)), "PI SS"),
    "trimmed_mean": Method(fixed(samo_jax.trimmed_mean(1)), "PI"),
    "moco": Method(fixed(samo_jax.moco(gamma=40.0)), "PI CONE RAY SS", 0),
    "excess_mtl": Method(fixed(samo_jax.excess_mtl()), LINEAR),
    "db_mtl_momentum": Method(fixed(samo_jax.db_mtl_momentum()), "PI CONE RAY SS"),
}
# What holds for two tasks only.
TWO_TASKS = [("pcgrad", "NC"), ("imtl_g", "NC"), ("imtl_g", "RAY")]
