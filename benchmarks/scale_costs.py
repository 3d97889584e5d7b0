"""The cost model of scale.py: what a step of each method should take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optax
import step_methods

import samo_jax


@dataclass(frozen=True)
class Cost:
    """Of one step, clean pass included.

    Attributes:
        forward: passes of all examples, each of which gathers a sharded point.
        backward: passes of all examples.
        transposed: backward passes the other way.
        again: points that are gathered once more for backward passes in a loop: what
            tasks share once, but two points at every turn, which selects one.
        draws: of as many random numbers as parameters.
        copies: of the parameters in temporary memory, activations aside.
        kept: the same, between steps.
        products: of two gradients.
    """

    forward: float
    backward: float
    transposed: float = 0
    again: float = 0
    draws: float = 0
    copies: float = 1
    kept: float = 0
    products: float = 0

    @property
    def gathered(self) -> float:
        """Copies of the parameters' size that fully sharded devices gather."""
        return self.forward + self.again

    @property
    def reduced(self) -> float:
        """The same that they, or devices with copies of the parameters, sum."""
        return self.backward

    def passes(self, num_examples: float) -> float:
        """All arithmetic, random numbers aside, in forward and backward passes."""
        # Per parameter and example 2 operations forward, 4 back; 2 an inner product.
        operations = 2 * self.forward + 4 * (self.backward + self.transposed)
        return (operations + 2 * self.products / num_examples) / 6


def of_gradients(k: int, forward: float, clean: int = 1, **others: float) -> Cost:
    """K gradients at once."""
    return Cost(
        **{"forward": clean + forward, "backward": clean + k, "copies": k}
        | {"products": k**2}
        | others
    )


@dataclass
class Method:
    """A transformation of K tasks, and what its step with K tasks should cost."""

    transform: Callable[[int], optax.GradientTransformationExtraArgs]
    cost: Callable[[int], Cost]
    clean_pass: bool = True


def multitask(
    perturbation: Any, solver: Any = None, **options: Any
) -> Callable[[int], optax.GradientTransformationExtraArgs]:
    """The step of K tasks, in a loop."""
    return lambda num_tasks: samo_jax.multitask(
        solver or samo_jax.fairgrad(2.0),
        perturbation,
        num_tasks=num_tasks,
        key=0,
        **{"unroll": False} | options,
    )


def blocks(size: int) -> Method:
    """SAMO by blocks of the Gramian."""

    def cost(num_tasks):
        evaluations = num_tasks * (num_tasks / size + 1) / 2 + num_tasks
        return Cost(
            forward=1 + 3 * evaluations,
            backward=1 + evaluations,
            draws=evaluations,
            copies=size + 10,  # random bits, a probe, three points, a gradient
            products=num_tasks * (num_tasks + size) / 2,
        )

    perturbation = samo_jax.joint_sam(step_methods.RHO)
    return Method(multitask(perturbation, gramian_block=size), cost)


global_sam = samo_jax.global_sam(step_methods.RHO)
METHODS = {
    "FairGrad": Method(
        multitask(None), lambda k: of_gradients(k, 1, 0, again=1), False
    ),
    "global SAM": Method(multitask(global_sam), lambda k: of_gradients(k, 1, again=1)),
    "SAMO": Method(
        multitask(samo_jax.joint_sam(step_methods.RHO)),
        lambda k: of_gradients(k, 3 * k, draws=k),
    ),
    "SAMO, two points": Method(
        multitask(step_methods.two_points),
        lambda k: of_gradients(k, 4, again=k, draws=1),
    ),
    "SAMO, memory": Method(
        multitask(samo_jax.memory_sam(step_methods.RHO)),
        lambda k: of_gradients(k, k, copies=k, kept=k),
    ),
    "global SAM, mean": Method(
        multitask(global_sam, samo_jax.mean()), lambda _: Cost(2, 2)
    ),
    "SAMO, two points, mean": Method(
        multitask(step_methods.two_points, samo_jax.mean()),
        lambda _: Cost(5, 3, draws=1, copies=4),
    ),
    "global SAM, block 1": Method(
        multitask(global_sam, gramian_block=1), lambda k: Cost(2, k + 2, k, again=1)
    ),
    "SAMO, two points, block 1": Method(
        multitask(step_methods.two_points, gramian_block=1),
        lambda k: Cost(5, k + 3, 2 * k, again=k, draws=1, copies=4),
    ),
    "SAMO, block 1": blocks(1),
    "SAMO, block 8": blocks(8),
}
