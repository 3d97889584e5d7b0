"""Numbers per task by the tasks' names: `constant({"seg": 0.7, "depth": 0.3})`."""

from collections import OrderedDict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax
from samo_jax._combiners._types import combiner_update, init_combiner

from tiers import mostly_slow

TASKS = ("depth", "normals", "seg")
NUMBERS = [0.2, 0.3, 0.5]
NAMED = {"seg": 0.5, "depth": 0.2, "normals": 0.3}
LOSSES = jnp.array([0.7, 1.5, 1.1])
GRADIENTS = jax.random.normal(jax.random.key(0), (3, 4)) + 0.3

FACTORIES = {
    "constant": lambda x: samo_jax.constant(x),
    "upgrad": lambda x: samo_jax.upgrad(preference=x),
    "dualproj": lambda x: samo_jax.dualproj(x),
    "aligned_mtl": lambda x: samo_jax.aligned_mtl("rmse", preference=x),
    "conflict_free_inverse": lambda x: samo_jax.conflict_free_inverse(x),
    "stch, preference": lambda x: samo_jax.stch(1.0, x),
    "stch, reference": lambda x: samo_jax.stch(1.0, reference=x),
    "pbi, preference": lambda x: samo_jax.pbi(1.0, x),
    "pbi, ideal": lambda x: samo_jax.pbi(1.0, [1, 2, 3], x),
    "cosmos": lambda x: samo_jax.cosmos(x, 0.1),
    "geometric_mean": lambda x: samo_jax.geometric_mean(offset=x),
    "uncertainty": lambda x: samo_jax.uncertainty(offset=x),
    "imtl_l": lambda x: samo_jax.imtl_l(offset=x),
    "famo": lambda x: samo_jax.famo(offset=x),
    "db_mtl_momentum": lambda x: samo_jax.db_mtl_momentum(offset=x),
    "graddrop": lambda x: samo_jax.graddrop(0, leak=x),
    "sdmgrad": lambda x: samo_jax.sdmgrad(preference=x, learning_rate=0.1),
    "log_losses": lambda x: samo_jax.log_losses(samo_jax.mean(), offset=x),
    "log_losses around": lambda x: samo_jax.log_losses(samo_jax.constant(x)),
    "smoothed": lambda x: samo_jax.smoothed(samo_jax.upgrad(x)),
    "grouped": lambda x: samo_jax.grouped(samo_jax.constant(x)),
}

QUICK = {"constant", "upgrad", "graddrop", "smoothed", "log_losses"}


def update(combiner, **extra_args):
    state = init_combiner(combiner, jnp.zeros(4), 3)
    for _ in range(2):
        direction, weights, state = combiner_update(combiner)(
            GRADIENTS,
            state,
            losses=LOSSES,
            sample_grads=[2 * GRADIENTS],
            present=jnp.ones(3, bool),
            **extra_args,
        )
    return direction, weights


@pytest.mark.parametrize("name", mostly_slow(FACTORIES, but=QUICK))
def test_names_stand_for_positions(name):
    wanted = update(FACTORIES[name](NUMBERS))
    jax.tree.map(np.testing.assert_array_equal, update(FACTORIES[name](NAMED)), wanted)
    found = update(FACTORIES[name](NAMED), tasks=TASKS)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("name", mostly_slow(FACTORIES, but=QUICK))
def test_other_names_raise(name):
    wrong = {"seg": 0.5, "depth": 0.2, "normal": 0.3}
    with pytest.raises(ValueError, match="unknown: normal; missing: normals"):
        update(FACTORIES[name](wrong), tasks=TASKS)


@pytest.mark.parametrize("name", ["constant", "graddrop"])
def test_a_task_too_few_raises_at_once(name):
    combiner = FACTORIES[name]({"seg": 0.5, "depth": 0.2})
    with pytest.raises(ValueError, match="each of the 3 tasks, got depth, seg"):
        init_combiner(combiner, jnp.zeros(4), 3)


class Losses(NamedTuple):
    seg: float
    depth: float


def weights_of(combiner, losses):
    def loss_fn(w):
        return jax.tree.map(lambda factor: factor * jnp.sum(w**2), losses)

    tx = samo_jax.multitask(combiner, num_tasks=len(jax.tree.leaves(losses)))
    params = jnp.ones(2)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, loss_fn=loss_fn))
    return update(params, tx.init(params), params)[1].weights.tolist()


@pytest.mark.parametrize(
    ("losses", "values"),
    [
        ({"seg": 1.0, "depth": 2.0}, {"seg": 0.75, "depth": 0.25}),
        (OrderedDict(seg=1.0, depth=2.0), {"depth": 0.25, "seg": 0.75}),
        ({"depth": 2.0, "seg": 1.0}, OrderedDict(seg=0.75, depth=0.25)),
        (Losses(1.0, 2.0), {"seg": 0.75, "depth": 0.25}),
        ({"seg": 1.0, "depth": 2.0}, Losses(0.75, 0.25)),
        ({"a": {"seg": 1.0}, "depth": 2.0}, {"a": {"seg": 0.75}, "depth": 0.25}),
        ([1.0, 2.0], {"0": 0.75, "1": 0.25}),
    ],
)
def test_the_order_is_that_of_the_losses(losses, values):
    wanted = [0.75 if loss == 1 else 0.25 for loss in jax.tree.leaves(losses)]
    assert weights_of(samo_jax.constant(values), losses) == wanted


def test_traced_numbers():
    @jax.jit
    def weights(values):
        return update(samo_jax.upgrad(values), tasks=TASKS)[1]

    expected = update(samo_jax.upgrad(jnp.array(NUMBERS)))[1]
    np.testing.assert_allclose(weights(NAMED), expected, rtol=1e-6)


def test_the_call_is_shown_by_name():
    assert (
        repr(samo_jax.constant({"b": 1.0})) == "samo_jax.constant(weights={'b': 1.0})"
    )
