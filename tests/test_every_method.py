"""Every combiner of the experiments' table, in their training step."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax
from samo_jax.experiments.benchmarks.benchmark import Examples
from samo_jax.experiments.benchmarks.methods import (
    COMBINERS,
    METHODS,
    Setting,
    extra_args,
    make_optimizer,
    select,
    split,
)
from samo_jax.experiments.benchmarks.training import make_train_step

from three_heads import assert_finite, types, without_keys

TASKS = ("left", "right")
SHAPES = {"trunk": (3, 4), "left": (4,), "right": (4,)}


def batch(seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(5, 3)).astype(np.float32)
    labels = {task: rng.normal(size=5).astype(np.float32) for task in TASKS}
    return Examples(inputs, labels)


def losses(params, batch, _state, _train=True):
    hidden = jnp.tanh(batch.inputs @ params["trunk"])
    return {
        task: jnp.mean(jnp.square(hidden @ params[task] - batch.labels[task]))
        for task in TASKS
    }, {}


@pytest.fixture(scope="module")
def initial_params():
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def restore(tree):
    """Through NumPy arrays and back, as a checkpoint would."""
    leaves, treedef = jax.tree.flatten(tree)
    saved = [np.asarray(leaf) for leaf in without_keys(leaves)]

    def load(array, leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(array)
        return jnp.asarray(array)

    return treedef.unflatten(map(load, saved, leaves))


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [*(f"{combiner}+global" for combiner in COMBINERS), "fairgrad+samo", "moco+samo"],
)
def test_trains_under_jit_and_resumes(method, initial_params):
    tx = make_optimizer(method, TASKS, rho=0.2, alpha=0.5, seed=0, steps_per_epoch=1)
    train_step = make_train_step(losses, tx, extra_args(method))

    def step(i, carry):
        return train_step(*carry, batch(i), batch(100 + i), batch(max(i - 1, 0)))[:2]

    carry = (initial_params, tx.init(initial_params))
    before = types(carry)
    for i in range(3):
        carry = step(i, carry)
        assert types(carry) == before
    assert_finite(carry)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), carry[0], initial_params)
    assert all(jax.tree.leaves(moved))

    resumed, continued = step(3, restore(carry)), step(3, carry)
    jax.tree.map(
        np.testing.assert_array_equal, *map(without_keys, (resumed, continued))
    )
    assert train_step._cache_size() == 1


def test_the_table_uses_every_factory(monkeypatch):
    """Public functions that say that they return a solver or a combiner."""
    factories = {
        name: value
        for name, value in vars(samo_jax).items()
        if inspect.isfunction(value)
        and inspect.signature(value).return_annotation
        in (samo_jax.Weighting, samo_jax.Aggregator)
    }
    called = set()

    def recorded(name, *args, **kwargs):
        called.add(name)
        return factories[name](*args, **kwargs)

    for name in factories:
        monkeypatch.setattr(samo_jax, name, partial(recorded, name))
    for make in COMBINERS.values():
        make(Setting(jax.random.key(0), steps_per_epoch=1, num_tasks=2))
    assert len(factories) > 30
    assert called == set(factories)


def test_names():
    assert len(set(METHODS)) == 1 + 3 * len(COMBINERS)
    assert split("mgda-loss+") == ("mgda-loss+", "plain")
    assert split("mgda-loss++samo") == ("mgda-loss+", "samo")
    assert select("mgda-loss++samo") == ("mgda-loss++samo",)
    selected = [m for name in ("all", "all+global", "all+samo") for m in select(name)]
    assert sorted(selected) == sorted(set(METHODS) - {"single-task"})
