"""SAMO's local parts, and what they are compared with."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import optax

import samo_jax


class Method(NamedTuple):
    """A sharpness method.

    Attributes:
        perturbation: function of rho and alpha; with alpha 0 the local part alone.
        passes: numbers of forward and of backward passes with K tasks.
        alpha: share of the global gradient.
        clean_pass: whether the step takes g0 at the clean parameters.
    """

    perturbation: Callable[[Any, Any], samo_jax.Perturbation | None]
    passes: Callable[[int], tuple[int, int]]
    alpha: Any = 0.5
    clean_pass: bool = True

    def make(self, rho: Any) -> samo_jax.Perturbation | None:
        """The perturbation of a radius."""
        return self.perturbation(rho, self.alpha)

    @property
    def local(self) -> samo_jax.Perturbation | None:
        """The local part alone."""
        return self.perturbation(1.0, 0.0)


def _joint(**probe_args: Any) -> Callable[[Any, Any], samo_jax.Perturbation]:
    return partial(samo_jax.joint_sam, local=samo_jax.probe(**probe_args))


def _last_layer(params: Any) -> Any:
    """The last shared layer."""
    last = max(name for name in params if name.startswith("Dense"))
    return {name: name == last for name in params}


PLAIN, GLOBAL, F_MTL, CONTROL = "plain", "global", "F-MTL", "random-sign control"
METHODS: dict[str, Method] = {
    PLAIN: Method(lambda _rho, _alpha: None, lambda k: (1, k)),
    GLOBAL: Method(lambda rho, _alpha: samo_jax.global_sam(rho), lambda k: (2, 1 + k)),
    "L-SAM": Method(
        lambda rho, _alpha: samo_jax.local_sam(rho), lambda k: (1 + k, 2 * k)
    ),
    F_MTL: Method(
        lambda rho, _alpha: samo_jax.local_sam(rho), lambda k: (1 + k, 2 * k)
    ),
    "SAMO": Method(samo_jax.joint_sam, lambda k: (1 + 3 * k, 1 + k)),
    CONTROL: Method(_joint(sign="random"), lambda k: (1 + k, 1 + k)),
    "exact local part": Method(
        partial(samo_jax.joint_sam, local="local"), lambda k: (1 + k, 1 + 2 * k)
    ),
    "shared probe": Method(_joint(shared=True), lambda k: (5, 1 + k)),
    "8 shared Rademacher": Method(
        _joint(shared=True, num_probes=8, distribution="rademacher"),
        lambda k: (17 + k, 1 + k),
    ),
    "8 on the last layer": Method(
        _joint(shared=True, num_probes=8, mask=_last_layer),
        lambda k: (17 + k, 1 + k),
    ),
    "unit probes": Method(_joint(unit=True), lambda k: (1 + 3 * k, 1 + k)),
    "memory": Method(samo_jax.memory_sam, lambda k: (1 + k, 1 + k)),
    "memory, average": Method(
        partial(samo_jax.memory_sam, decay=0.9), lambda k: (1 + k, 1 + k)
    ),
    "memory, no clean pass": Method(
        partial(samo_jax.memory_sam, clean_pass=False),
        lambda k: (k, k),
        clean_pass=False,
    ),
    "shared probe, adaptive": Method(
        _joint(shared=True), lambda k: (3 + k, 1 + k), alpha="adaptive"
    ),
    "memory, adaptive": Method(
        partial(samo_jax.memory_sam, decay=0.9),
        lambda k: (1 + k, 1 + k),
        alpha="adaptive",
    ),
}


def task_labels(tasks: tuple[str, ...], params: Any) -> dict[str, str]:
    """Heads by their task, all else shared."""
    return {name: name if name in tasks else "shared" for name in params}


def make_optimizer(
    method: str, tasks: tuple[str, ...], learning_rate: float, rho: Any, seed: int
) -> optax.GradientTransformationExtraArgs:
    """FairGrad at the method's points (one task needs none), and Adam."""
    shape: dict[str, Any] = {
        "num_tasks": len(tasks),
        "param_labels": partial(task_labels, tasks),
    }
    solver = samo_jax.fairgrad(alpha=2.0) if len(tasks) > 1 else samo_jax.mean()
    if method == F_MTL:
        combined = samo_jax.f_mtl(solver, rho, **shape)
    else:
        combined = samo_jax.multitask(
            solver, METHODS[method].make(rho), key=seed, **shape
        )
    return optax.chain(combined, optax.adam(learning_rate))
