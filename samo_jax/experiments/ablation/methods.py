"""FairGrad with SAMO, its two halves, neither, and a control."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import optax

import samo_jax
from samo_jax.experiments.local.methods import task_labels

PLAIN, GLOBAL, SAMO = "plain", "global", "SAMO"


class Setting(NamedTuple):
    """Settings that a network is trained with.

    Attributes:
        method: one of `METHODS`.
        rho: radius, a number or a tracer, as the others.
        alpha: share of the global gradient.
        mu: step of the probes.
    """

    method: str
    rho: Any = 0.0
    alpha: Any = 0.5
    mu: Any = 1e-2


METHODS: dict[str, Callable[[Setting], samo_jax.Perturbation | None]] = {
    PLAIN: lambda _: None,
    GLOBAL: lambda at: samo_jax.global_sam(at.rho),
    "L-SAM": lambda at: samo_jax.local_sam(at.rho),
    SAMO: lambda at: samo_jax.joint_sam(at.rho, at.alpha, at.mu),
    "random-sign control": lambda at: samo_jax.joint_sam(
        at.rho, at.alpha, local=samo_jax.probe(sign="random")
    ),
}


def make_optimizer(
    method: str,
    tasks: Sequence[str],
    learning_rate: float,
    seed: int,
    **hyperparams: float,
) -> optax.GradientTransformationExtraArgs:
    """The benchmarks' pipeline, with rho, alpha and mu in its state.

    Its update depends on neither them nor the seed, and is compiled once.
    """
    _, rho, alpha, mu = Setting(method, **hyperparams)

    def multitask(rho, alpha, mu):
        return samo_jax.multitask(
            samo_jax.fairgrad(alpha=2.0),
            METHODS[method](Setting(method, rho, alpha, mu)),
            num_tasks=len(tasks),
            key=seed,
            param_labels=partial(task_labels, tuple(tasks)),
        )

    def shared(params):
        return {name: name not in tasks for name in params}

    return optax.chain(
        optax.inject_hyperparams(multitask)(rho, alpha, mu),
        optax.masked(optax.clip_by_global_norm(1.0), shared),
        optax.adam(learning_rate),
    )
