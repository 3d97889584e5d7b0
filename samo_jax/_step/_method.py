"""`Method`: the settings of `multitask`, and what one step hands on."""

from typing import Any, NamedTuple

import jax

from samo_jax._checks import check_count
from samo_jax._combiners._types import Aggregator, Combiner, Weighting
from samo_jax._perturbations._base import Perturbation
from samo_jax._step._devices import Devices
from samo_jax._task_loop import Unroll
from samo_jax._tree import PyTree


class Method(NamedTuple):
    """Static settings of `multitask`, see there."""

    combiner: Combiner
    perturbation: Perturbation
    devices: Devices
    gramian_block: int | None
    diagnostics: bool


class States(NamedTuple):
    """States of a method, from step to step.

    Attributes:
        combiner: state of the combiner.
        perturbation: state of the perturbation.
    """

    combiner: Any
    perturbation: Any


class Outcome(NamedTuple):
    """Result of one way of a step.

    Attributes:
        shared: direction of shared leaves (others: anything).
        heads: each head's own gradient (shared leaves: anything).
        weights: weights of the tasks, shape (K,).
        present: whether each task took part, shape (K,), bool.
        states: the method's new states.
        losses: losses that the combiner got, NaN where absent, shape (K,).
        gramian: Gramian of the shared leaves, zero where absent, shape (K, K). None:
            it was not computed.
    """

    shared: PyTree
    heads: PyTree
    weights: jax.Array
    present: jax.Array
    states: States
    losses: jax.Array
    gramian: jax.Array | None


def makes_task_gradients(method: Method) -> bool:
    """Whether a step needs the tasks' gradients, not only their weighted sum."""
    combiner, perturbation = method.combiner, method.perturbation
    return (
        not isinstance(combiner, Weighting)
        or combiner.needs_gramian
        or not tasks_share_points(perturbation)
        or perturbation.finish is not None
    )


def tasks_share_points(perturbation: Perturbation) -> bool:
    """Whether gradients are those of `loss_fn`, at fewer points than tasks."""
    return perturbation.shared_perturbations is not None and perturbation.loss is None


def check_gramian_block(method: Method, unroll: Unroll) -> None:
    """Raise unless `gramian_block` is None or a step by blocks is possible."""
    block = method.gramian_block
    if block is None:
        return
    check_count("gramian_block", block, "It is the number of gradients held at once.")
    if unroll:
        raise ValueError(
            f"`gramian_block` loops over tasks, got `unroll`={unroll!r}. Leave out one."
        )
    if isinstance(method.combiner, Aggregator):
        raise ValueError(
            f"`gramian_block` is for a Weighting, got {method.combiner!r}, an "
            "Aggregator, which needs all gradients at once. Leave it out."
        )
    if method.perturbation.finish is not None:
        raise ValueError(
            "`gramian_block` is for perturbations that leave the gradients alone, got "
            f"{method.perturbation!r}, which does not. Leave it out."
        )
