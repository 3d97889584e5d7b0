"""Methods that remember, over several steps, by hand in float64."""

import functools

import chex
import jax
import numpy as np
import optax
import pytest

import samo_jax

from sharpness import (
    RATE,
    STEPS,
    TASKS,
    add,
    batch,
    descend,
    descend_by_hand,
    descend_on_total,
    gradients,
    initial_params,
    multitask,
    norm,
    norm_groups,
    perturb,
    scale,
    single_task,
    total_examples,
    total_gradient,
    update,
)
from tiers import mostly_slow

pytestmark = pytest.mark.usefixtures("x64")

assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-11)


def friendly(sigma, decay):
    """The paper's: the new average is subtracted."""
    average = scale(initial_params("float64"), 0.0)

    def ascent(g):
        nonlocal average
        average = add(scale(average, decay), scale(g, 1 - decay))
        return add(g, scale(average, -sigma))

    return ascent


def friendly_as_in_the_official_code(sigma, decay):
    """The last average is subtracted."""
    average = scale(initial_params("float64"), 0.0)

    def ascent(g):
        nonlocal average
        q = add(g, scale(average, -sigma))
        average = add(scale(average, decay), scale(g, 1 - decay))
        return q

    return ascent


@pytest.mark.parametrize(
    ("by_hand", "sigma"),
    mostly_slow(
        [(friendly, 0.6), (friendly, 1.0), (friendly_as_in_the_official_code, 1.0)],
        but=1,
        several=True,
    ),
)
def test_friendly_sam(by_hand, sigma):
    ascent = by_hand(sigma, 0.7)

    def direction(w, data):
        q = ascent(total_gradient(w, data))
        return total_gradient(add(w, scale(q, 0.3 / norm(q))), data)

    perturbation = samo_jax.friendly_sam(0.3, sigma, decay=0.7)
    actual = descend_on_total(single_task(perturbation), "float64")
    assert_close(actual, descend_by_hand(direction))


def test_momentum_sam_looks_ahead_along_minus_v():
    velocity = scale(initial_params("float64"), 0.0)

    def direction(w, data):
        nonlocal velocity
        length = norm(velocity)
        eps = scale(velocity, -0.3 / length if length else 0.0)
        q = total_gradient(add(w, eps), data)
        velocity = add(scale(velocity, 0.8), q)
        return q

    perturbation = samo_jax.momentum_sam(0.3, decay=0.8)
    actual = descend_on_total(single_task(perturbation), "float64")
    assert_close(actual, descend_by_hand(direction))


def test_momentum_sam_of_several_tasks():
    """v is the momentum of the mean gradient, here also what the optimiser follows."""
    velocity = scale(initial_params("float64"), 0.0)

    def direction(w, data):
        nonlocal velocity
        rows = []
        for i, head in enumerate(TASKS):
            groups = norm_groups("separate", head)
            eps = perturb(
                lambda _, v: scale(v, -0.3 / norm(v) if norm(v) else 0.0),
                *(w, velocity, groups),
            )
            rows.append(gradients(add(w, eps), data)[i])
        mean = scale(add(*rows), 1 / len(rows))
        velocity = add(scale(velocity, 0.8), mean)
        heads = {head: row[head] for head, row in zip(TASKS, rows, strict=True)}
        return mean | heads

    actual = descend(multitask(samo_jax.momentum_sam(0.3, decay=0.8)), "float64")
    assert_close(actual, descend_by_hand(direction))


# Momentum-SAM's official optimisers store perturbed parameters w~ = w - rho v / ||v||


def shift(velocity):
    return scale(velocity, 0.3 / (norm(velocity) + 1e-12))


def official_sgd(decay=0.8):
    w = {n: np.asarray(x) for n, x in initial_params("float64").items()}
    velocity = scale(w, 0.0)
    stored = w
    for t in range(STEPS):
        g = total_gradient(stored, batch(t, "float64"))
        w = add(stored, shift(velocity))
        velocity = add(scale(velocity, decay), g)
        w = add(w, scale(velocity, -RATE))
        stored = add(w, scale(shift(velocity), -1))
        yield w


def official_adam(b1=0.8, b2=0.999):
    w = {n: np.asarray(x) for n, x in initial_params("float64").items()}
    m = v = scale(w, 0.0)
    stored = w
    for t in range(STEPS):
        g = total_gradient(stored, batch(t, "float64"))
        w = add(stored, shift(m))
        m = add(scale(m, b1), scale(g, 1 - b1))
        v = {n: b2 * v[n] + (1 - b2) * g[n] ** 2 for n in v}
        w = {
            n: x
            - RATE
            * (m[n] / (1 - b1 ** (t + 1)))
            / (np.sqrt(v[n] / (1 - b2 ** (t + 1))) + 1e-8)
            for n, x in w.items()
        }
        stored = add(w, scale(shift(m), -1))
        yield w


@pytest.mark.parametrize(
    ("optimizer", "official"),
    [
        pytest.param(optax.sgd(RATE, momentum=0.8), official_sgd, id="sgd"),
        pytest.param(optax.adam(RATE, b1=0.8), official_adam, id="adam"),
    ],
)
def test_momentum_sam_is_the_official_optimiser_unperturbed(optimizer, official):
    tx = optax.chain(single_task(samo_jax.momentum_sam(0.3, decay=0.8)), optimizer)
    params = initial_params("float64")
    state = tx.init(params)
    step = jax.jit(
        lambda params, state, data: update(tx, params, state, data, total_examples)
    )
    for t, expected in enumerate(official()):
        updates, state = step(params, state, batch(t, "float64"))
        params = optax.apply_updates(params, updates)
        # The official code adds 1e-12 to the norm, and moves to and fro.
        chex.assert_trees_all_close(params, expected, rtol=1e-7, atol=1e-9)


def test_momentum_sam_needs_no_clean_pass():
    tx = single_task(samo_jax.momentum_sam(0.3))
    params, data = initial_params(), batch(0, "float32")

    def loss_fn(p):
        return total_examples(p, data).mean()

    state = tx.init(params)
    for incoming in (params, jax.grad(loss_fn)(params)):
        updates, _ = tx.update(incoming, state, params, loss_fn=loss_fn)
        chex.assert_trees_all_close(updates, jax.grad(loss_fn)(params), rtol=1e-6)
