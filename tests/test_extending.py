"""The methods of docs/extending.md, checked like the built-in ones."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import samo_jax

from properties import (
    NUM_TASKS,
    Method,
    Scope,
    check_degree,
    check_finite,
    check_property,
)
from three_heads import (
    DTYPES,
    HEADS,
    abstract_update,
    assert_close,
    assert_finite,
    batch,
    initial_params,
    losses_on,
    mean_grad,
    multitask,
    train_step,
)
from tiers import mostly_slow

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
DEFINITIONS = re.findall(
    r"^```python\n(.*?)^```",
    PAGE.read_text().partition("## Both at work")[0],
    re.MULTILINE | re.DOTALL,
)
page: dict[str, Any] = {}
exec("\n".join(DEFINITIONS), page)
inverse_norms, agreeing_signs = page["inverse_norms"], page["agreeing_signs"]
sign_sam, one_point, euclidean = page["sign_sam"], page["one_point"], page["euclidean"]
METHODS = {
    "inverse_norms": Method(
        lambda _, power: inverse_norms(power), "PI CONE RAY SS", hyperparameter=1.0
    ),
    "agreeing_signs": Method(lambda *_: agreeing_signs(), "NC NCI LUS PI"),
}


def test_thirty_lines():
    assert len(DEFINITIONS) == 5
    assert all(block.count("\n") <= 30 for block in DEFINITIONS)


@pytest.mark.parametrize("precision", NUM_TASKS)
@pytest.mark.parametrize("name", METHODS)
def test_properties_of_the_combiners(name, precision):
    method, scope = METHODS[name], Scope(precision, NUM_TASKS[precision])
    check_finite(method, scope)
    check_degree(method, scope)
    for quality in method.properties.split():
        check_property(method, quality, scope)


@pytest.mark.parametrize(("x64", "dtype"), DTYPES)
@pytest.mark.parametrize(
    ("combiner", "perturbation"),
    [
        (inverse_norms(), sign_sam()),
        (agreeing_signs(), one_point(sign_sam())),
        (inverse_norms(), euclidean),
    ],
    ids=["weighting", "aggregator", "direction"],
)
@pytest.mark.usefixtures("strict")
def test_types_are_a_fixed_point(combiner, perturbation, x64, dtype):
    with jax.enable_x64(x64):
        tx = multitask(combiner, perturbation, param_labels=HEADS)
        before, after = abstract_update(tx, dtype)
        assert after == before


# Losses s_i (||body - c_i||^2 + ||head_i||^2) / 2, whose steps are easy to write down.
SCALES = {"left": 1.0, "right": 4.0}
CENTRES = {"left": np.array([1.0, 0.0, -2.0]), "right": np.array([-1.0, 3.0, 0.5])}
LABELS = {"body": "shared", "left": "left", "right": "right"}
PARAMS = {
    "body": np.array([0.2, -0.4, 1.0]),
    "left": np.array([0.3, -0.1]),
    "right": np.array([-0.7, 0.6]),
}
RHO, POWER, DECAY = 0.3, 1.5, 0.75


def quadratics(params):
    return {
        task: SCALES[task]
        * (jnp.sum((params["body"] - CENTRES[task]) ** 2) + jnp.sum(params[task] ** 2))
        / 2
        for task in CENTRES
    }


def own_gradient(params, task):
    gradient = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    gradient["body"] = SCALES[task] * (params["body"] - CENTRES[task])
    gradient[task] = SCALES[task] * params[task]
    return gradient


def by_hand(params, average, squared, tasks):
    """One step in NumPy: direction, weights, and both averages."""
    clean = [own_gradient(params, task) for task in tasks]
    average = {
        name: DECAY * v + (1 - DECAY) * np.mean([g[name] for g in clean], axis=0)
        for name, v in average.items()
    }
    point = {name: leaf + RHO * np.sign(average[name]) for name, leaf in params.items()}
    gradients = [own_gradient(point, task) for task in tasks]
    norms = np.array([np.linalg.norm(g["body"]) for g in gradients])
    squared = DECAY * squared + (1 - DECAY) * norms**2
    weights = squared ** (-POWER / 2) / np.sum(squared ** (-POWER / 2))
    direction = {task: g[task] for task, g in zip(tasks, gradients, strict=True)}
    direction["body"] = sum(
        w * g["body"] for w, g in zip(weights, gradients, strict=True)
    )
    return direction, weights, average, squared


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize(
    "points", [one_point, lambda perturbation: perturbation], ids=["shared", "each"]
)
@pytest.mark.parametrize("tasks", [["left"], ["left", "right"]], ids=["one", "two"])
def test_steps_computed_by_hand(tasks, points, unroll):
    tx = samo_jax.multitask(
        inverse_norms(POWER, DECAY),
        points(sign_sam(RHO, DECAY)),
        num_tasks=len(tasks),
        param_labels={name: LABELS[name] for name in ("body", *tasks)},
        unroll=unroll,
    )

    def loss_fn(params):
        losses = quadratics(params | dict.fromkeys(set(CENTRES) - set(tasks), 0.0))
        return {task: losses[task] for task in tasks}

    @jax.jit
    def update(params, state):
        grads = samo_jax.mean_value_and_grad(loss_fn)(params)[1]
        return tx.update(grads, state, params, loss_fn=loss_fn)

    params = {name: PARAMS[name] for name in ("body", *tasks)}
    average = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    squared = np.zeros(len(tasks))
    state = tx.init(jax.tree.map(jnp.float32, params))
    for _ in range(3):
        direction, state = update(jax.tree.map(jnp.float32, params), state)
        expected, weights, average, squared = by_hand(params, average, squared, tasks)
        assert_close(direction, jax.tree.map(jnp.float32, expected))
        assert_close(state.weights, jnp.float32(weights))
        assert_close(state.combiner_state, jnp.float32(squared))
        assert_close(state.perturbation_state, jax.tree.map(jnp.float32, average))
        params = {name: leaf - 0.1 * expected[name] for name, leaf in params.items()}


@pytest.mark.slow
def test_injected_schedule_is_its_values():
    rho = optax.linear_schedule(0.5, 0.1, 2)

    def method(rho):
        return multitask(inverse_norms(), sign_sam(rho), param_labels=HEADS)

    injected = optax.inject_hyperparams(method)(rho)
    data, params = batch(0), initial_params()
    grads = mean_grad(params, data)

    @jax.jit
    def both(rho, state):
        inner = state.inner_state
        scheduled = injected.update(grads, state, params, loss_fn=losses_on(data))
        direct = method(rho).update(grads, inner, params, loss_fn=losses_on(data))
        return scheduled, direct

    state: Any = injected.init(params)
    for step in range(3):
        (updates, state), direct = both(rho(step), state)
        assert_close((updates, state.inner_state), direct)
    assert both._cache_size() == 1


@pytest.mark.parametrize(
    "combiner",
    mostly_slow(
        [
            samo_jax.smoothed(inverse_norms()),
            samo_jax.grouped(inverse_norms()),
            agreeing_signs(),
        ],
        but=1,
    ),
    ids=["smoothed", "grouped", "aggregator"],
)
def test_trains_in_a_scan_inside_other_methods(combiner):
    tx = optax.chain(
        multitask(
            combiner, samo_jax.sam(0.05, direction=sign_sam()), param_labels=HEADS
        ),
        optax.adam(1e-2),
    )
    step, params = train_step(tx, batch(0)), initial_params()

    @jax.jit
    def train(carry):
        return lax.scan(lambda c, _: (step(*c), None), carry, length=100)[0]

    trained, state = train((params, tx.init(params)))
    assert_finite(state)
    before, after = (sum(losses_on(batch(0))(p).values()) for p in (params, trained))
    assert after < 0.5 * before
