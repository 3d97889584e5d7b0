"""`MultitaskState`: what a transformation keeps from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from samo_jax._step._kept_weights import KeptWeights
from samo_jax._step._method import Outcome, States
from samo_jax._tasks import uniform_weights
from samo_jax._tree import accumulator_dtype


class Diagnostics(NamedTuple):
    """Numbers of the last step, for `report`; NaN and zero before the first.

    Attributes:
        losses: shape (K,), the losses that the combiner got: those at the perturbed
            points, or `losses=`. NaN for absent tasks.
        gramian: shape (K, K), the Gramian of the shared leaves' gradients, zero for
            absent tasks. None: the method needs no gradient of each task.
    """

    losses: jax.Array
    gramian: jax.Array | None


class MultitaskState(NamedTuple):
    """State of `multitask` and `samo`; read it with `optax.tree.get(state, "weights")`.

    Attributes:
        step: shape (), int32, updates done so far.
        key: the data of the PRNG key as given, uint32, or None. Draws fold in the step.
        weights: shape (K,), float32 (float64 under x64), the weights of the last update
            in task order; uniform before the first.
        combiner_state: state of the combiner.
        perturbation_state: state of the perturbation.
        skipped: shape (K,), int32, number of updates that were made without each task,
            though it was drawn.
        diagnostics: `Diagnostics` of the last update, or None.
        kept: `KeptWeights`, where there is `weights_every`, or None.
    """

    step: jax.Array
    key: jax.Array | None
    weights: jax.Array
    combiner_state: Any
    perturbation_state: Any
    skipped: jax.Array
    diagnostics: Diagnostics | None = None
    kept: KeptWeights | None = None


def first_state(num_tasks: int, states: States) -> MultitaskState:
    """The state before the first step, of a method without key and diagnostics."""
    return MultitaskState(
        step=jnp.zeros((), jnp.int32),
        key=None,
        weights=uniform_weights(num_tasks),
        combiner_state=states.combiner,
        perturbation_state=states.perturbation,
        skipped=jnp.zeros(num_tasks, jnp.int32),
    )


def first_diagnostics(num_tasks: int, with_gramian: bool) -> Diagnostics:
    """Diagnostics before the first step."""
    shape = num_tasks, num_tasks
    return Diagnostics(
        losses=jnp.full(num_tasks, jnp.nan, accumulator_dtype()),
        gramian=jnp.zeros(shape, accumulator_dtype()) if with_gramian else None,
    )


def next_state(
    state: MultitaskState, outcome: Outcome, drawn: jax.Array | None = None
) -> MultitaskState:
    """The state after a step, of all tasks or the drawn ones."""
    skipped = ~outcome.present
    if drawn is not None:
        skipped &= jnp.zeros_like(skipped).at[drawn].set(True)
    diagnostics = state.diagnostics
    if diagnostics is not None:
        has_gramian = diagnostics.gramian is not None
        diagnostics = Diagnostics(
            outcome.losses, outcome.gramian if has_gramian else None
        )
    return state._replace(
        diagnostics=diagnostics,
        step=jnp.asarray(optax.safe_increment(state.step)),
        weights=outcome.weights,
        combiner_state=outcome.states.combiner,
        perturbation_state=outcome.states.perturbation,
        skipped=state.skipped + skipped.astype(jnp.int32),
    )


def check_state(state: Any, num_tasks: int) -> MultitaskState:
    """The state; raise unless it is that of K tasks."""
    if isinstance(state, MultitaskState) and state.weights.shape == (num_tasks,):
        return state
    got = (
        f"that of {state.weights.shape[0]} tasks"
        if isinstance(state, MultitaskState)
        else f"{type(state)}"
    )
    raise ValueError(
        f"`state` must be the MultitaskState of `num_tasks`={num_tasks}, got {got}. "
        "Take it from this transformation's `init(params)`."
    )
