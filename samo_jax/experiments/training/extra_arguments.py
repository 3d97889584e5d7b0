"""The arguments of `update` beyond `loss_fn`, which some methods need."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import samo_jax
from samo_jax.experiments.training.methods import (
    EXAMPLE_LOSSES,
    LOSSES_AFTER,
    SECOND_BATCH,
    Method,
)


class Step(NamedTuple):
    """Step of training, with what it can offer its method beyond `loss_fn`.

    Attributes:
        params: parameters before the step.
        losses: losses of this batch at `params`.
        second_loss_fn: `loss_fn` of an independent batch.
        last_loss_fn: `loss_fn` of the last step's batch.
        example_loss_fn: `example_loss_fn(params, index)`, the losses of this batch's
            examples that `index` selects.
        num_examples: number of examples in this batch.
    """

    params: Any
    losses: Any
    second_loss_fn: samo_jax.LossFn
    last_loss_fn: samo_jax.LossFn
    example_loss_fn: Callable[[Any, jax.Array], Any]
    num_examples: int


ExtraArgs = Callable[[Step], dict[str, Any]]


def extra_args(method: Method) -> ExtraArgs:
    """The arguments of a method's `update` beyond `loss_fn`, from the step."""
    offers = [of for need, of in _OFFERS.items() if need in method.needs]

    def of_step(step: Step) -> dict[str, Any]:
        return {name: value for offer in offers for name, value in offer(step).items()}

    return of_step


def _second_batch(step: Step) -> dict[str, Any]:
    return {"sample_loss_fns": [step.second_loss_fn]}


def _losses_before_and_after(step: Step) -> dict[str, Any]:
    after = step.last_loss_fn(step.params)
    return {"losses": _stack(step.losses), "losses_after": _stack(after)}


def _example_losses(step: Step) -> dict[str, Any]:
    everyone = jnp.arange(step.num_examples)
    return {
        "example_losses": step.example_loss_fn(step.params, everyone),
        "example_loss_fn": step.example_loss_fn,
    }


def _stack(losses: Any) -> jax.Array:
    return jnp.stack(jax.tree.leaves(losses))


_OFFERS: dict[str, ExtraArgs] = {
    SECOND_BATCH: _second_batch,
    LOSSES_AFTER: _losses_before_and_after,
    EXAMPLE_LOSSES[0]: _example_losses,
}
