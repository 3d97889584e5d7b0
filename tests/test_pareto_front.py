"""Trainings vmapped over preferences and seeds, in one program."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax
from samo_jax import COMBINERS

from tiers import mostly_slow

ARGUMENTS = {"stch": {"mu": 0.3}, "pbi": {"theta": 2.0}, "cosmos": {"lam": 1.0}}
NAMES = [
    name
    for name, entry in COMBINERS.items()
    if "preference" in inspect.signature(getattr(samo_jax, name)).parameters
]
PREFERENCES = jnp.array([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])
STEPS = 4


def losses(params, scale=1.0):
    hidden = jnp.tanh(params["body"])
    return {
        "left": scale * jnp.sum((hidden + params["a"] - 1) ** 2) + 0.1,
        "right": jnp.sum((hidden * params["b"] + 1) ** 2) + 0.1,
    }


def train(name, perturbed, preference, key):
    body_key, key = jax.random.split(key)
    params = {
        "body": jax.random.normal(body_key, (3,)),
        "a": jnp.zeros(3),
        "b": jnp.ones(3),
    }
    make = getattr(samo_jax, name)
    given = {"preference": preference, **ARGUMENTS.get(name, {})}
    if "key" in inspect.signature(make).parameters:
        given["key"] = key
    combiner = make(**given)
    labels = {"body": "shared", "a": "left", "b": "right"}
    options = {"num_tasks": 2, "param_labels": labels}
    if perturbed:
        first = samo_jax.samo(combiner, 0.05, key=key, **options)
    else:
        first = samo_jax.multitask(combiner, **options)
    tx = optax.chain(first, optax.sgd(0.05))
    second = [lambda p: losses(p, 0.9)] * 2 if name == "sdmgrad" else []

    def step(carry, _):
        params, state = carry
        values, grads = samo_jax.mean_value_and_grad(losses)(params)
        updates, state = tx.update(
            grads, state, params, loss_fn=losses, sample_loss_fns=second
        )
        return (optax.apply_updates(params, updates), state), values

    (params, _), values = jax.lax.scan(step, (params, tx.init(params)), None, STEPS)
    return params, values


def test_these_combiners_take_preferences():
    known = {"mgda", "cagrad", "fairgrad", "nash_mtl", "stch", "pbi", "cosmos"}
    assert known | {"upgrad", "dualproj", "aligned_mtl", "sdmgrad"} <= set(NAMES)


@pytest.mark.parametrize("perturbed", mostly_slow([True, False], but=[True]))
@pytest.mark.parametrize("name", mostly_slow(NAMES, but=["stch"]))
def test_a_front_in_one_program_is_the_trainings_one_by_one(name, perturbed):
    keys = jax.random.split(jax.random.key(0), 2)

    def one(preference, key):
        return train(name, perturbed, preference, key)

    over_seeds = jax.vmap(one, in_axes=(None, 0))
    front = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(PREFERENCES, keys)
    single = jax.jit(one)
    for i, preference in enumerate(PREFERENCES):
        for j, key in enumerate(keys):
            jax.tree.map(
                lambda batch, x, i=i, j=j: np.testing.assert_allclose(
                    batch[i, j], x, rtol=2e-4, atol=2e-5
                ),
                front,
                single(preference, key),
            )
    bodies = front[0]["body"]
    assert jnp.all(jnp.isfinite(bodies))
    assert not jnp.allclose(bodies[0], bodies[2], atol=1e-5)


WATCHED = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp, optax, samo_jax as sj
kind, rounds, size, num_tasks = sys.argv[1], *map(int, sys.argv[2:])
rows = jax.random.normal(jax.random.key(0), (2, size, num_tasks, 2 * num_tasks))
grams = rows @ rows.mT

def loss_fn(w, rows):
    return [jnp.mean((row - w) ** 2) for row in rows]

def f_mtl_step(rows):
    tx = sj.f_mtl(sj.fairgrad(), 0.05, num_tasks=num_tasks)
    w = jnp.zeros(rows.shape[-1])
    return tx.update(w, tx.init(w), w, loss_fn=lambda w: loss_fn(w, rows))[0]

def front_steps(rows):
    p = jnp.abs(rows[:, 0]) + 0.1
    chains = [
        sj.multitask(combiner, num_tasks=num_tasks)
        for combiner in (sj.mgda(preference=p), sj.fairgrad(preference=p))
    ]
    w = jnp.zeros(rows.shape[-1])
    return [
        tx.update(w, tx.init(w), w, loss_fn=lambda w: loss_fn(w, rows))[0]
        for tx in chains
    ]

def two(first, second):
    return lambda g: (jax.vmap(first)(g[0]), jax.vmap(second)(g[1]))

f, x = {
    "newton": (two(sj.fairgrad_weights, sj.cagrad_weights), grams),
    "active_set": (two(sj.mgda_weights, sj.upgrad_weights), grams),
    "spectra": (two(sj.imtl_g_weights, sj.aligned_mtl_weights), grams),
    "f_mtl": (jax.vmap(f_mtl_step), rows[0]),
    "front": (jax.vmap(front_steps), rows[0]),
}[kind]
f = jax.jit(f)
for _ in range(rounds):
    jax.block_until_ready(f(x))
print("done")
"""


# With batched calls of LAPACK, jaxlib 0.10 hung in the spectra, twice of three times.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rounds", "size", "num_tasks"),
    [
        ("newton", 30, 500, 20),
        ("active_set", 100, 100, 10),
        ("spectra", 400, 1000, 20),
        ("f_mtl", 100, 200, 10),
        ("front", 100, 200, 10),
    ],
)
def test_solvers_under_vmap_do_not_hang_on_two_threads(kind, rounds, size, num_tasks):
    program = [
        sys.executable,
        "-c",
        WATCHED,
        kind,
        *map(str, (rounds, size, num_tasks)),
    ]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    done = subprocess.run(
        program, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize(
    "name", mostly_slow(["mgda", "fairgrad", "cagrad", "imtl_g"], but=1)
)
def test_a_batch_on_a_cpu_calls_lapack_once_a_matrix(name):
    weights = getattr(samo_jax, f"{name}_weights")
    batch = jnp.stack([jnp.eye(3)] * 5)
    text = jax.jit(jax.vmap(weights)).lower(batch).compile().as_text()
    calls = [line for line in text.splitlines() if "lapack_" in line]
    assert calls
    assert not any("[5," in line for line in calls)


def test_reverse_mode_through_a_spectrum_is_what_differences_say(x64):
    del x64
    rows = jax.random.normal(jax.random.key(1), (3, 5))
    gramian = rows @ rows.T

    def first(gramian):
        return samo_jax.imtl_g_weights(gramian / 2 + gramian.T / 2)[0]

    slope = jax.grad(first)(gramian)
    turn = jnp.array([[0.3, -0.2, 0.1], [-0.2, 0.5, 0.4], [0.1, 0.4, -0.6]])
    step = 1e-6 * turn
    difference = (first(gramian + step) - first(gramian - step)) / 2e-6
    np.testing.assert_allclose(jnp.sum(slope * turn), difference, rtol=1e-6)
