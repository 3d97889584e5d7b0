"""`Method`: the settings of `multitask`, and what one step hands on."""

from typing import Any, Literal, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp

from samo_jax._checks import check_count
from samo_jax._combiners._types import Aggregator, Combiner, Weighting
from samo_jax._labels import Mask
from samo_jax._perturbations._base import Perturbation
from samo_jax._problem import Problem
from samo_jax._step._devices import Devices
from samo_jax._task_loop import Unroll
from samo_jax._tree import PyTree

GramianOf: TypeAlias = Literal["parameters", "representation"] | Mask

PARAMETERS = "parameters"
REPRESENTATION = "representation"


class Method(NamedTuple):
    """Static settings of `multitask`, see there."""

    combiner: Combiner
    perturbation: Perturbation
    devices: Devices
    gramian_block: int | None
    tasks_per_step: int | None
    diagnostics: bool
    gramian_of: GramianOf
    weights_every: int | None
    separate_parts: bool = False


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
        heads: each head's own gradient, finite if its task is present (shared leaves,
            and heads of absent tasks: anything).
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


def check_samples(method: Method, problem: Problem) -> None:
    """Raise unless the combiner can get the gradients of samples, where there are."""
    settings = {
        "gramian_block": method.gramian_block,
        "weights_every": method.weights_every,
        "gramian_of": method.gramian_of if takes_part(method) else None,
    }
    for name, value in settings.items():
        if problem.sample_loss_fns and value is not None:
            raise ValueError(
                "`sample_loss_fns` needs the gradients of all tasks at once, by all "
                f"parameters, at each step, got `{name}`={value!r}. Leave out one."
            )


def makes_task_gradients(method: Method) -> bool:
    """Whether a step needs the tasks' gradients, not only their weighted sum."""
    combiner, perturbation = method.combiner, method.perturbation
    return (
        not isinstance(combiner, Weighting)
        or combiner.needs_gramian
        or not tasks_share_points(perturbation)
        or perturbation.finish is not None
        or method.tasks_per_step is not None
    )


def tasks_share_points(perturbation: Perturbation) -> bool:
    """Whether gradients are those of `loss_fn`, at fewer points than tasks."""
    return perturbation.shared_perturbations is not None and perturbation.loss is None


def check_tasks_per_step(method: Method, num_tasks: int) -> None:
    """Raise unless `tasks_per_step` is None or so many tasks can be drawn."""
    count = method.tasks_per_step
    if count is None:
        return
    check_count("tasks_per_step", count, "It is the number of tasks drawn at a step.")
    if count > num_tasks:
        raise ValueError(
            f"`tasks_per_step` must be at most `num_tasks`={num_tasks}, got {count}. "
            "None takes all."
        )
    if method.gramian_block is not None:
        raise ValueError(
            "`tasks_per_step` takes the gradients of the drawn tasks at once, got "
            f"`gramian_block`={method.gramian_block}. Leave out one."
        )


def draw_tasks(method: Method, problem: Problem) -> jax.Array | None:
    """The tasks of this step, in order, shape (k,), int; None: all."""
    if method.tasks_per_step is None:
        return None
    num_tasks = len(problem.tasks)
    # Perturbations fold in numbers up to K.
    key = jax.random.fold_in(cast(jax.Array, problem.key), num_tasks + 1)
    order = jax.random.permutation(key, num_tasks)
    return jnp.sort(order[: method.tasks_per_step])


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


def takes_part(method: Method) -> bool:
    """Whether the Gramian is that of a part of the model."""
    part = method.gramian_of
    return not (isinstance(part, str) and part == PARAMETERS)


def check_gramian_of(method: Method, num_tasks: int) -> None:
    """Raise unless a step with this Gramian is possible."""
    if not takes_part(method):
        return
    part, combiner = method.gramian_of, method.combiner
    if isinstance(part, str) and part != REPRESENTATION:
        raise ValueError(
            "`gramian_of` must be 'parameters', 'representation' or a mask of shared "
            f"leaves, got {part!r}. A mask is a pytree prefix of bools."
        )
    for name in ("gramian_block", "tasks_per_step"):
        if getattr(method, name) is not None:
            raise ValueError(
                f"`gramian_of` takes the gradients of all tasks at once, got `{name}`="
                f"{getattr(method, name)!r}. Leave out one."
            )
    _check_shared_points("gramian_of", method.perturbation)
    if isinstance(combiner, Aggregator) and not isinstance(part, str):
        raise ValueError(
            f"`gramian_of` with a mask is for a Weighting, got {combiner!r}, an "
            "Aggregator. Take 'representation', or leave it out."
        )
    if isinstance(combiner, Aggregator) and _remembers_shapes(combiner, num_tasks):
        raise ValueError(
            "`gramian_of` 'representation' is for combiners without a memory of "
            f"gradients, got {combiner!r}. Leave it out."
        )


def _remembers_shapes(combiner: Aggregator, num_tasks: int) -> bool:
    """Whether the state has the shapes of the parameters."""
    one, other = (
        jax.eval_shape(lambda shape=shape: combiner.init([jnp.zeros(shape)], num_tasks))
        for shape in ((), (3,))
    )
    return one != other


def check_weights_every(method: Method) -> None:
    """Raise unless `weights_every` is None or weights can be kept."""
    count, combiner = method.weights_every, method.combiner
    if count is None:
        return
    check_count("weights_every", count, "None takes the weights anew at each step.")
    if not isinstance(combiner, Weighting) or not combiner.needs_gramian:
        raise ValueError(
            "`weights_every` keeps weights of a Gramian, got the combiner "
            f"{combiner!r}, which has none. Leave it out."
        )
    if method.tasks_per_step is not None:
        raise ValueError(
            "`weights_every` keeps weights of all tasks, got `tasks_per_step`="
            f"{method.tasks_per_step}. Leave out one."
        )
    _check_shared_points("weights_every", method.perturbation)


def _check_shared_points(argument: str, perturbation: Perturbation) -> None:
    """Raise unless a step with one backward pass per point is possible."""
    if not tasks_share_points(perturbation) or perturbation.finish is not None:
        raise ValueError(
            f"`{argument}` is for perturbations whose points tasks share, and that "
            f"leave gradients alone, got {perturbation!r}. Take `global_sam()`, or "
            "`joint_sam(local=probe(shared=True))`."
        )
