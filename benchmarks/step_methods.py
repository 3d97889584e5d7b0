"""The methods of step.py and accelerator.py, and a whole training step of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import optax
from step_models import Model

import samo_jax

RHO, ALPHA, MU = 0.05, 0.5, 1e-2


@dataclass
class Method:
    """A transformation, and the bare passes that its step is made of."""

    transform: Callable[[Model, Any], optax.GradientTransformationExtraArgs]
    passes: dict[str, int]
    clean_pass: bool = True


def multitask(
    perturbation: Any, combiner: Any = None, **settings: Any
) -> Callable[[Model, Any], Any]:
    """FairGrad, or another combiner, with a perturbation."""
    return lambda model, unroll: samo_jax.multitask(
        combiner or samo_jax.fairgrad(2.0),
        perturbation,
        num_tasks=model.num_tasks,
        key=0,
        param_labels=model.labels,
        unroll=unroll,
        **settings,
    )


def f_mtl(combiner: Any = None, **settings: Any) -> Callable[[Model, Any], Any]:
    """F-MTL, its loss and flat parts combined apart."""
    return lambda model, unroll: samo_jax.f_mtl(
        combiner or samo_jax.fairgrad(2.0),
        RHO,
        num_tasks=model.num_tasks,
        param_labels=model.labels,
        unroll=unroll,
        **settings,
    )


two_points = samo_jax.joint_sam(RHO, ALPHA, local=samo_jax.probe(MU, shared=True))
METHODS = {
    "FairGrad": Method(multitask(None), {"gradients": 1}, clean_pass=False),
    "global SAM": Method(
        multitask(samo_jax.global_sam(RHO)), {"clean": 1, "gradients": 1}
    ),
    "local SAM": Method(
        multitask(samo_jax.local_sam(RHO)), {"clean": 1, "gradients": 1, "task": 1}
    ),
    "F-MTL": Method(f_mtl(), {"clean": 1, "gradients": 1, "task": 1}),
    "SAMO": Method(
        multitask(samo_jax.joint_sam(RHO, ALPHA, MU)),
        {"clean": 1, "task forward": 2, "task": 1},
    ),
    "SAMO, Rademacher": Method(
        multitask(
            samo_jax.joint_sam(
                RHO, ALPHA, local=samo_jax.probe(MU, distribution="rademacher")
            )
        ),
        {"clean": 1, "task forward": 2, "task": 1},
    ),
    "random-sign control": Method(
        multitask(samo_jax.joint_sam(RHO, ALPHA, local=samo_jax.probe(sign="random"))),
        {"clean": 1, "task": 1},
    ),
    "SAMO, shared probe": Method(
        multitask(two_points._replace(shared_perturbations=None)),
        {"clean": 1, "forward": 2, "task": 1},
    ),
    "SAMO, two points": Method(
        multitask(two_points), {"clean": 1, "forward": 3, "gradients": 1}
    ),
    "SAMO, two points, Rademacher": Method(
        multitask(
            samo_jax.joint_sam(
                RHO,
                ALPHA,
                local=samo_jax.probe(MU, shared=True, distribution="rademacher"),
            )
        ),
        {"clean": 1, "forward": 3, "gradients": 1},
    ),
    "SAMO, memory": Method(
        multitask(samo_jax.memory_sam(RHO, ALPHA)), {"clean": 1, "task": 1}
    ),
    "SAMO, memory, no clean pass": Method(
        multitask(samo_jax.memory_sam(RHO, ALPHA, clean_pass=False)),
        {"task": 1},
        clean_pass=False,
    ),
}
# With the Gramian of the representation, with weights kept for ten steps, and both.
_both = {"gramian_of": "representation", "weights_every": 10}
CHEAP_METHODS = {
    "FairGrad, representation": Method(
        multitask(None, gramian_of="representation"), {}, clean_pass=False
    ),
    "FairGrad, kept": Method(multitask(None, weights_every=10), {}, clean_pass=False),
    "FairGrad, both": Method(multitask(None, **_both), {}, clean_pass=False),
    "global SAM, both": Method(multitask(samo_jax.global_sam(RHO), **_both), {}),
    "F-MTL, common, both": Method(
        f_mtl(direction="global", **_both), {}, clean_pass=False
    ),
}
# Stochastic gradient descent on the mean loss, the clean pass alone.
PLAIN = Method(lambda *_: optax.with_extra_args_support(optax.identity()), {"clean": 1})


def make_step(model: Model, method: Method, unroll: Any) -> tuple[Callable, Any]:
    """The method's whole step, clean pass, combiner and SGD included; its first state.

    `step(params, state, data)` returns new params and state.
    """
    tx = optax.chain(method.transform(model, unroll), optax.sgd(1e-3))

    def step(params, state, data):
        loss_fn = partial(model.losses, data=data)
        updates = params
        if method.clean_pass:
            _, updates = samo_jax.mean_value_and_grad(loss_fn)(params)
        updates, state = tx.update(updates, state, params, loss_fn=loss_fn)
        return optax.apply_updates(params, updates), state

    return step, tx.init(model.params)
