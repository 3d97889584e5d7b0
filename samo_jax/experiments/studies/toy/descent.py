"""Descent of a landscape with a method, and where it ends."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

import samo_jax
from samo_jax.experiments.studies.toy.landscapes import (
    LANDSCAPES,
    Front,
    Landscape,
    Losses,
    distance_to_front,
    stacked_losses,
)
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.optimizers import Setup, make_transformation

_LAST = 50  # steps whose mean is the end of a trajectory


class Training(NamedTuple):
    """Training on a landscape.

    Attributes:
        optimizer: optimiser after the multi-task transformation.
        steps: number of steps.
        rho: radius.
    """

    optimizer: optax.GradientTransformation
    steps: int
    rho: float


TRAININGS = {
    "cagrad": Training(optax.adam(0.01), 3000, 0.5),
    "valleys": Training(
        optax.chain(optax.clip_by_global_norm(2.0), optax.sgd(0.08)), 1000, 0.3
    ),
}


def setup_on(name: str, key: Any, combiner_key: Any) -> Setup:
    """The setup of a method on a landscape."""
    _, steps, rho = TRAININGS[name]
    return Setup(2, steps, key, combiner_key, {"rho": rho})


def descend(name: str, text: str, seed: int) -> np.ndarray:
    """The trajectories from all starts, each with noise of its own.

    Args:
        name: name of the landscape.
        text: text of the method.
        seed: seed of the noise, the probes and the combiner's draws.

    Returns:
        The params, shape (N, steps + 1, 2).
    """
    landscape, (optimizer, steps, _) = LANDSCAPES[name], TRAININGS[name]
    method = method_of(text)

    def from_start(start_and_key):
        start, key = start_and_key
        noise_key, probe_key, combiner_key = jax.random.split(key, 3)
        setup = setup_on(name, probe_key, combiner_key)
        tx = optax.chain(make_transformation(method, setup), optimizer)

        def train_step(carry, shift):
            params, opt_state = carry

            def loss_fn(params):
                return landscape.losses(params + shift)

            _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
            updates, opt_state = tx.update(grads, opt_state, params, loss_fn=loss_fn)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), params

        shifts = landscape.noise * jax.random.normal(noise_key, (steps, 2))
        _, path = jax.lax.scan(train_step, (start, tx.init(start)), shifts)
        return jnp.concatenate([start[None], path])

    keys = jax.random.split(jax.random.key(seed), len(landscape.starts))
    # One by one: batched, the solvers' loops take longer to compile and to run, and
    # their factorisations could wait for each other's threads.
    descend_all = jax.jit(partial(jax.lax.map, from_start))
    return np.asarray(descend_all((landscape.starts, keys)))


class End(NamedTuple):
    """End of a method on a landscape, mean over starts.

    Attributes:
        losses: losses of each task.
        distance: distance to the Pareto front, in losses.
        sharpness: largest eigenvalue of the mean loss's Hessian.
        flat: share of starts that end in a flat valley; None where there is none.
    """

    losses: dict[str, float]
    distance: float
    sharpness: float
    flat: float | None


def ends_of(paths: np.ndarray) -> np.ndarray:
    """The mean of the last steps, over which noise averages out, shape (N, 2)."""
    return paths[:, -_LAST:].mean(axis=1)


@partial(jax.jit, static_argnums=0)
def sharpness_at(losses: Callable[[jax.Array], Losses], params: ArrayLike) -> jax.Array:
    """Largest eigenvalue of the mean loss's Hessian at params (N, 2), shape (N,)."""

    def mean_loss(params):
        return sum(losses(params).values()) / 2

    return jnp.linalg.eigvalsh(jax.vmap(jax.hessian(mean_loss))(params))[:, -1]


def measure(landscape: Landscape, front: Front, ends: np.ndarray) -> End:
    """The means over ends of shape (N, 2)."""
    losses = stacked_losses(landscape, ends)
    loss_a, loss_b = losses.mean(axis=0).tolist()
    return End(
        {"a": loss_a, "b": loss_b},
        float(distance_to_front(losses, front).mean()),
        float(sharpness_at(landscape.losses, ends).mean()),
        float(landscape.is_flat(ends).mean()) if landscape.is_flat else None,
    )
