"""`DirectionLike`: raw ascent directions, one per task, without a length."""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from samo_jax._gradients import task_values_and_gradients
from samo_jax._perturbations._base import Direction, Perturbation, same_for_all_tasks
from samo_jax._shared_points import at_points

DirectionLike: TypeAlias = Literal["global", "local"] | Direction | Perturbation


def mean_gradient() -> Direction:
    """The gradient of the mean loss, for every task: no extra pass."""
    return same_for_all_tasks(lambda problem, _state: problem.mean_grad, lambda g: g)


def task_gradient() -> Direction:
    """Each task's own gradient, computed when used: K passes, one copy."""

    def perturb(problem, i):
        index = jnp.zeros(len(problem.tasks), jnp.int32)
        params = at_points(
            problem.loss_fn, [problem.params], index, unrolled=isinstance(i, int)
        )
        return params.value_and_gradient(i)[1]

    return Direction(lambda problem, _state: problem, perturb)


def clean_directions(direction: Literal["global", "local"]) -> Direction:
    """A direction, with the K clean gradients (K passes, K copies) as context."""
    check_named(direction)

    def prepare(problem, state):
        del state
        return task_values_and_gradients(
            problem.loss_fn, problem.params, len(problem.tasks), problem.unroll
        )[1]

    def perturb(task_grads, i):
        if direction == "global":
            return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), task_grads)
        return jax.tree.map(lambda leaf: leaf[i], task_grads)

    return Direction(prepare, perturb, clean_gradients=lambda context: context)


def check_named(direction: Any) -> None:
    """Raise unless the direction is that of a gradient."""
    if direction not in ("global", "local"):
        raise ValueError(
            f'`direction` must be "global" or "local", got {direction!r}: this method '
            "uses the gradient itself."
        )


def as_direction(direction: DirectionLike) -> Direction:
    """The direction of that name, or of a perturbation, without its length."""
    if direction == "global":
        return mean_gradient()
    if direction == "local":
        return task_gradient()
    if isinstance(direction, Direction | Perturbation):
        return Direction(*direction)
    raise ValueError(
        '`direction` must be "global", "local" or a samo_jax.Direction, got '
        f"{direction!r}. Make one by `samo_jax.probe()`."
    )
