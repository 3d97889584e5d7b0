"""Tasks with NaN, with too large gradients, or without examples: left out of a step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import samo_jax
from samo_jax._combiners._types import combiner_update, init_combiner

from three_heads import without_keys
from tiers import mostly_slow

LABELS = {"body": "shared", "a": "a", "b": "b", "c": "c"}
TARGETS = {
    "a": [1.0, 0.0, -1.0, 2.0],
    "b": [0.0, 2.0, 1.0, 0.5],
    "c": [-1.0, 1.0, 0.0, 1.0],
}
# Of a loss l, which becomes factor * l + sqrt(offset + 0 * l) - 1.
NO_FAULT = (1.0, 1.0)
FAULTS = {
    "NaN loss": (np.nan, 1.0),
    "infinite loss": (np.inf, 1.0),
    "NaN gradient of a finite loss": (1.0, 0.0),
    "finite gradient with an infinite square": (1e25, 1.0),
}


def initial_params():
    rng = np.random.default_rng(0)
    return {"body": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)} | {
        name: jnp.asarray(rng.normal(size=3), jnp.float32) for name in TARGETS
    }


def task_losses(params, tasks=tuple(TARGETS), fault=NO_FAULT):
    """Task "b" may have a fault."""
    factor, offset = fault
    losses = {
        name: jnp.mean((jnp.tanh(params["body"]) @ params[name] - target) ** 2)
        for name in tasks
        for target in [jnp.array(TARGETS[name])]
    }
    if "b" in losses:
        losses["b"] = factor * losses["b"] + jnp.sqrt(offset + 0 * losses["b"]) - 1
    return losses


def make_tx(combiner, perturbation, tasks=tuple(TARGETS), unroll=True):
    labels = {"body": "shared"} | {name: name for name in tasks}
    labels |= {name: tasks[0] for name in TARGETS if name not in tasks}
    return samo_jax.multitask(
        combiner,
        perturbation,
        num_tasks=len(tasks),
        key=0,
        param_labels=labels,
        unroll=unroll,
    )


@functools.partial(jax.jit, static_argnames=("tx", "tasks", "wrap"))
def update(
    tx,
    state,
    params,
    fault=NO_FAULT,
    tasks=tuple(TARGETS),
    task_mask=None,
    wrap=lambda loss_fn: loss_fn,
):
    loss_fn = wrap(functools.partial(task_losses, tasks=tasks, fault=fault))
    _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
    return tx.update(grads, state, params, loss_fn=loss_fn, task_mask=task_mask)


@functools.cache
def update_of_the_others(combiner):
    params, others = initial_params(), ("a", "c")
    tx = make_tx(combiner, None, others)
    direction, state = update(tx, tx.init(params), params, tasks=others)
    return direction | {"b": jnp.zeros(3)}, state.weights


COMBINERS = {"fairgrad": samo_jax.fairgrad(), "trimmed_mean": samo_jax.trimmed_mean(0)}
FAULTY = {name: make_tx(combiner, None) for name, combiner in COMBINERS.items()}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("combiner", mostly_slow(COMBINERS, but={"fairgrad"}))
def test_as_if_the_faulty_task_were_not_there(combiner, fault):
    params, tx = initial_params(), FAULTY[combiner]
    direction, state = update(tx, tx.init(params), params, FAULTS[fault])
    expected, weights = update_of_the_others(COMBINERS[combiner])
    chex.assert_trees_all_close(direction, expected, rtol=1e-5)
    np.testing.assert_allclose(state.weights, np.insert(weights, 1, 0), rtol=1e-5)
    np.testing.assert_array_equal(state.skipped, [0, 1, 0])


@pytest.mark.parametrize(
    "combiner", [samo_jax.mean(), samo_jax.fairgrad(), samo_jax.dwa(window=1)]
)
@pytest.mark.parametrize("unroll", mostly_slow([True, False], but={False}))
def test_as_if_the_masked_task_were_not_there(combiner, unroll):
    params, tx = initial_params(), make_tx(combiner, None, unroll=unroll)
    mask = {"a": True, "b": False, "c": True}
    direction, state = update(tx, tx.init(params), params, task_mask=mask)
    expected, weights = update_of_the_others(combiner)
    chex.assert_trees_all_close(direction, expected, rtol=1e-5)
    np.testing.assert_allclose(state.weights, np.insert(weights, 1, 0), rtol=1e-5)
    np.testing.assert_array_equal(state.skipped, [0, 1, 0])


@pytest.mark.parametrize(
    "combiner",
    mostly_slow(
        ["mgda", "cagrad", "upgrad", "imtl_g", "aligned_mtl", "krum", "graddrop"],
        but={"imtl_g"},
    ),
)
def test_a_zero_gradient_changes_no_direction(combiner):
    rng = np.random.default_rng(0)
    grads, losses = rng.normal(size=(4, 30)), np.array([1.0, 2.0, 0.5, 3.0])
    others = [0, 1, 3]
    absent = np.where(np.arange(4)[:, None] == 2, 0, grads)

    def direction(grads, losses):
        made = samo_jax.COMBINERS[combiner].make(len(losses), jax.random.key(0))
        grads, losses = jnp.float32(grads), jnp.float32(losses)
        state = init_combiner(made, grads[0], len(losses))
        combined, _, _ = jax.jit(combiner_update(made))(
            grads, state, losses=losses, losses_after=losses
        )
        return combined / jnp.linalg.norm(combined)

    filled = np.where(np.arange(4) == 2, np.mean(losses[others]), losses)
    np.testing.assert_allclose(
        direction(absent, filled), direction(grads[others], losses[others]), atol=1e-3
    )


PERTURBATIONS = {
    "global": samo_jax.global_sam(0.1),
    "local": samo_jax.local_sam(0.1),
    "joint": samo_jax.joint_sam(0.1),
    "shared probe": samo_jax.joint_sam(0.1, local=samo_jax.probe(shared=True)),
    "memory": samo_jax.memory_sam(0.1),
    "surrogate gap": samo_jax.surrogate_gap_sam(0.1),
}


@pytest.mark.parametrize(
    "perturbation", mostly_slow(PERTURBATIONS, but={"shared probe", "memory"})
)
def test_faults_come_and_go(perturbation):
    """One task is left out as long as it must be; nothing stays in any state."""
    params = initial_params()
    tx = make_tx(samo_jax.fairgrad(), PERTURBATIONS[perturbation])
    state = tx.init(params)
    for fault in (NO_FAULT, FAULTS["NaN loss"], NO_FAULT):
        direction, state = update(tx, state, params, fault)
        chex.assert_tree_all_finite((direction, state))
        assert all(np.any(direction[name]) for name in ("body", "a", "c"))
        assert np.any(direction["b"]) == (fault == NO_FAULT)
    np.testing.assert_array_equal(state.skipped, [0, 1, 0])


@pytest.mark.parametrize("block", mostly_slow([1, 2], but=1))
def test_blocks_of_gradients_leave_masked_tasks_out(block):
    params, mask = initial_params(), jnp.array([True, False, True])
    labels = {"body": "shared"} | {name: name for name in TARGETS}
    directions = []
    for settings in ({}, {"gramian_block": block}):
        tx = samo_jax.multitask(
            samo_jax.log_losses(samo_jax.gradnorm()),
            samo_jax.global_sam(0.1),
            num_tasks=3,
            param_labels=labels,
            **settings,
        )
        direction, _ = update(tx, tx.init(params), params, task_mask=mask)
        assert not np.any(direction["b"])
        directions.append(direction)
    chex.assert_trees_all_close(*directions, rtol=1e-5)


@pytest.mark.parametrize(
    "perturbation", mostly_slow(["surrogate gap", "memory"], but={"memory"})
)
def test_a_masked_task_has_no_say_under_any_perturbation(perturbation):
    """Whatever its own loss is: here large, and finite."""
    params = initial_params()
    tx = make_tx(samo_jax.total(), PERTURBATIONS[perturbation])
    mask, grads = jnp.array([True, False, True]), initial_params()
    directions = [
        tx.update(
            grads,
            tx.init(params),
            params,
            loss_fn=functools.partial(task_losses, fault=(factor, 1.0)),
            task_mask=mask,
        )[0]
        for factor in (1.0, 1e3)
    ]
    chex.assert_trees_all_equal(*directions)
    assert not np.any(directions[0]["b"])


MEMORIES = {
    "memory": samo_jax.memory_sam(0.1),
    "average": samo_jax.memory_sam(0.1, decay=0.5),
    "adaptive": samo_jax.memory_sam(0.1, "adaptive"),
    "momentum": samo_jax.momentum_sam(0.1),
    "friendly": samo_jax.friendly_sam(0.1),
}


@pytest.mark.parametrize("perturbation", mostly_slow(MEMORIES, but={"average"}))
def test_memories_of_gradients_wait(perturbation):
    params, tx = initial_params(), make_tx(samo_jax.mean(), MEMORIES[perturbation])
    _, before = update(tx, tx.init(params), params)
    _, without = update(tx, before, params, FAULTS["NaN loss"])
    _, skipped = update(tx, before, params, task_mask=jnp.zeros(3, bool))
    chex.assert_trees_all_equal(skipped.perturbation_state, before.perturbation_state)
    chex.assert_tree_all_finite(without.perturbation_state)
    if perturbation in ("memory", "average", "adaptive"):
        of_b = [
            jax.tree.map(lambda leaf: leaf[1], state.perturbation_state)
            for state in (before, without)
        ]
        chex.assert_trees_all_equal(*of_b)


def test_momentum_is_that_of_the_present_tasks():
    params = initial_params()
    mask = {"a": True, "b": False, "c": True}
    tx, others = (
        make_tx(samo_jax.mean(), samo_jax.momentum_sam(0.1), tasks)
        for tasks in (("a", "b", "c"), ("a", "c"))
    )
    _, state = update(tx, tx.init(params), params, task_mask=mask)
    _, expected = update(others, others.init(params), params, tasks=("a", "c"))
    state, expected = (of.perturbation_state["body"] for of in (state, expected))
    np.testing.assert_allclose(state, expected, rtol=1e-5)


def test_a_modality_of_a_faulty_task():
    """Neither its clean gradient nor its contributions spoil the others' step."""

    def loss_fn(w, present=True, fault=1.0):
        x = jnp.where(present, jnp.array([[2.0, 1.0], [1.0, -1.0]]), 0)
        return [jnp.mean((x @ w - 1) ** 2), fault * jnp.mean((x @ w + 1) ** 2)]

    perturbation = samo_jax.modality_aware_sam(0.1, num_modalities=2, decay=0.5)
    tx = samo_jax.multitask(samo_jax.total(), perturbation, num_tasks=2)

    @jax.jit
    def step(w, state, fault):
        return tx.update(
            jnp.ones(2),
            state,
            w,
            loss_fn=lambda w: loss_fn(w, fault=fault),
            modality_fn=lambda w, present: [
                -loss for loss in loss_fn(w, present, fault)
            ],
        )

    w = jnp.array([0.5, 0.2])
    _, before = step(w, tx.init(w), 1.0)
    direction, after = step(w, before, jnp.nan)
    assert np.isfinite(direction).all()
    assert np.any(direction)
    for old, new in zip(
        before.perturbation_state, after.perturbation_state, strict=True
    ):
        np.testing.assert_array_equal(new[1], old[1])
    np.testing.assert_array_equal(after.skipped, [0, 1])


def test_look_sam_forgets_nothing_in_a_bad_step():
    def loss_fn(w):
        return w[0] ** 2 / 2 + w[1] ** 2

    tx = samo_jax.look_sam(samo_jax.single_task(samo_jax.sam(1.0)), every=2)
    params, grads = jnp.array([3.0, 2.0]), jnp.array([3.0, 4.0])
    _, state = tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
    expected, _ = tx.update(grads, state, params, loss_fn=loss_fn)
    for _ in range(2):  # a step in between, and one that looks
        direction, state = tx.update(
            jnp.nan * grads, state, params, loss_fn=lambda w: jnp.nan * loss_fn(w)
        )
        np.testing.assert_array_equal(direction, [0, 0])
    direction, _ = tx.update(grads, state, params, loss_fn=loss_fn)
    np.testing.assert_array_equal(direction, expected)


def by_losses():
    """A user's own weighting, which does not ask for `present`."""

    def update(_gramian, state, *, losses, **extra_args):
        assert "present" not in extra_args
        return 2 * losses, state

    return samo_jax.Weighting(lambda _num_tasks: (), update)


def as_aggregator(weighting):
    """A user's own aggregator, which does not ask either."""

    def update(task_grads, state, *, losses, **extra_args):
        weights, state = weighting.update(None, state, losses=losses, **extra_args)
        return jnp.tensordot(weights, task_grads, 1), weights, state

    return samo_jax.Aggregator(lambda *_: (), update)


WRAPPERS = {
    "itself": lambda weighting: weighting,
    "aggregator": as_aggregator,
    "smoothed": samo_jax.smoothed,
    "grouped": samo_jax.grouped,
    "log_losses": samo_jax.log_losses,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_a_combiner_of_the_users_sees_of_an_absent_task(wrapper):
    """The mean of the others' losses; its weight is theirs in proportion."""
    params, mask = jnp.array([1.0, -2.0]), jnp.array([True, False, True])
    tx = samo_jax.multitask(WRAPPERS[wrapper](by_losses()), num_tasks=3)
    direction, state = tx.update(
        params,
        tx.init(params),
        params,
        loss_fn=lambda w: [1.0 + 0 * w[0], 50 + w[1], 3 + w[0]],
        task_mask=mask,
    )
    if wrapper == "log_losses":  # of 1 and 4: 0 and log 4, and half of it between
        weights = np.array([0, 0, 3 * np.log(4) / 4])
    else:  # 1 and 4, and 2.5 between
        weights = 2 * np.array([1, 0, 4]) * (1 + 2.5 + 4) / (1 + 4)
    np.testing.assert_allclose(state.weights, weights, rtol=1e-5)
    np.testing.assert_allclose(direction, [weights[2], 0], rtol=1e-5)


def test_devices_agree_on_a_mask():
    """Also where one backward pass serves all tasks."""
    tx = samo_jax.multitask(samo_jax.mean(), num_tasks=2, axis_name="x")
    params = jnp.array([1.0, -2.0])

    def step(params, mask):
        return tx.update(
            params,
            tx.init(params),
            params,
            loss_fn=lambda w: [jnp.sum(w), jnp.sum(w**2)],
            task_mask=[True, mask[0]],
        )

    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    direction, state = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(P(), P("x")), out_specs=P())
    )(params, jnp.array([True, False, True, True]))
    np.testing.assert_array_equal(direction, [1, 1])
    np.testing.assert_array_equal(state.weights, [1, 0])
    np.testing.assert_array_equal(state.skipped, [0, 1])


LOGARITHMIC = {
    "famo": samo_jax.famo,
    "geometric_mean": samo_jax.geometric_mean,
    "uncertainty": samo_jax.uncertainty,
    "imtl_l": samo_jax.imtl_l,
    "log_losses": functools.partial(samo_jax.log_losses, samo_jax.mean()),
    "db_mtl_momentum": samo_jax.db_mtl_momentum,
}


@pytest.mark.parametrize(
    "method", mostly_slow(LOGARITHMIC, but={"famo", "uncertainty", "log_losses"})
)
def test_losses_that_are_not_positive_are_counted_and_cured(method):
    params = jnp.array([1.0, -2.0, 0.5])

    def train(offset):
        tx = samo_jax.multitask(LOGARITHMIC[method](offset=offset), num_tasks=3)

        def step(state, _):
            _, state = tx.update(
                params, state, params, loss_fn=lambda w: [w[0], w[1], w[2] ** 2]
            )
            return state, state.weights

        return jax.jit(lambda state: jax.lax.scan(step, state, length=50))(
            tx.init(params)
        )

    state, weights = train(0.0)
    np.testing.assert_array_equal(optax.tree.get(state, "unusable"), [0, 50, 0])
    assert np.ptp(weights, axis=0).max() == 0
    for offset in (-3.0, [-1.0, -3.0, 0.0]):
        state, weights = train(offset)
        assert not optax.tree.get(state, "unusable").any()
        assert np.ptp(weights[-1]) > 0.01


@pytest.mark.parametrize("method", LOGARITHMIC)
@pytest.mark.parametrize("offset", [np.nan, [[0.0]], "low"])
def test_wrong_offsets(method, offset):
    with pytest.raises(ValueError, match=r"`offset` must be .*, got"):
        LOGARITHMIC[method](offset=offset)


def test_state_of_the_clean_pass_is_kept_as_a_whole():
    old = {"mean": jnp.zeros(2, jnp.bfloat16), "count": jnp.array(3)}
    old |= {"key": jax.random.key(0)}
    good = {"mean": jnp.ones(2), "count": jnp.array(4), "key": jax.random.key(1)}

    @jax.jit
    def kept(new):
        return samo_jax.keep_finite(new, old)

    chex.assert_trees_all_equal(
        without_keys(kept(good)),
        without_keys(good | {"mean": jnp.ones(2, jnp.bfloat16)}),
    )
    for bad in (np.nan, np.inf):
        chex.assert_trees_all_equal(
            without_keys(kept(good | {"mean": jnp.array([0.0, bad])})),
            without_keys(old),
        )
    assert samo_jax.keep_finite({}, {}) == {}


@pytest.mark.parametrize(
    "new", [{}, {"mean": jnp.zeros(3)}, {"mean": jnp.zeros(2), "var": jnp.zeros(2)}]
)
def test_states_of_another_structure(new):
    with pytest.raises(ValueError, match=r"`new` must have the shapes of `old`, got"):
        samo_jax.keep_finite(new, {"mean": jnp.zeros(2)})


@pytest.mark.parametrize(
    ("combiner", "unroll"),
    [
        (samo_jax.mean(), True),  # one backward pass for all tasks
        (samo_jax.moco(), False),  # 0 * NaN in each turn of the loop
        (samo_jax.moco(), 2),  # and in those of a chunk
    ],
)
def test_a_step_is_skipped_whose_tasks_cannot_be_told_apart(combiner, unroll):
    params, tx = (
        initial_params(),
        make_tx(combiner, samo_jax.global_sam(), unroll=unroll),
    )
    _, before = update(tx, tx.init(params), params, NO_FAULT, wrap=jax.jit)
    direction, after = update(tx, before, params, FAULTS["NaN loss"], wrap=jax.jit)
    chex.assert_trees_all_equal(direction, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(after.combiner_state, before.combiner_state)
    np.testing.assert_array_equal(after.skipped, [1, 1, 1])
    np.testing.assert_array_equal(after.weights, [0, 0, 0])


def test_no_task_is_there():
    params, tx = initial_params(), make_tx(samo_jax.fairgrad(), None)
    before = tx.init(params)
    mask = jnp.zeros(3, bool)
    direction, after = update(tx, before, params, task_mask=mask)
    chex.assert_trees_all_equal(direction, jax.tree.map(jnp.zeros_like, params))
    chex.assert_trees_all_equal(after.combiner_state, before.combiner_state)
    np.testing.assert_array_equal(after.skipped, [1, 1, 1])


def test_directions_that_are_not_finite_never_reach_the_parameters():
    """A weighting of the user's that divides by zero."""
    combiner = samo_jax.Weighting(
        lambda num_tasks: jnp.zeros(num_tasks),
        lambda gramian, _state, **_: (1 / (0 * jnp.diag(gramian)),) * 2,
    )
    params, tx = initial_params(), make_tx(combiner, None)
    direction, state = update(tx, tx.init(params), params)
    chex.assert_trees_all_equal(direction, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_array_equal(state.combiner_state, [0, 0, 0])
    np.testing.assert_array_equal(state.skipped, [1, 1, 1])


@pytest.mark.slow
def test_devices_agree():
    """A NaN in one device's examples leaves the task out on all of them."""
    tx = samo_jax.multitask(
        samo_jax.fairgrad(), samo_jax.global_sam(), num_tasks=2, axis_name="x"
    )
    params = jnp.array([1.0, -2.0])
    batch = {"a": jnp.arange(8.0), "b": jnp.arange(8.0).at[5].set(jnp.nan)}

    def step(params, batch):
        def loss_fn(w):
            return {name: jnp.mean((w - x[:, None]) ** 2) for name, x in batch.items()}

        grads = jax.lax.pmean(samo_jax.mean_value_and_grad(loss_fn)(params)[1], "x")
        return tx.update(grads, tx.init(params), params, loss_fn=loss_fn)

    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    direction, state = jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=(P(), P("x")), out_specs=P())
    )(params, batch)
    np.testing.assert_array_equal(state.skipped, [0, 1])
    gradient = (params - np.mean(np.arange(8))) * state.weights[0]
    np.testing.assert_allclose(direction, gradient, rtol=1e-5)
    assert state.weights[1] == 0


@pytest.mark.slow
def test_learns_through_faults():
    tx = optax.chain(
        make_tx(samo_jax.fairgrad(), samo_jax.joint_sam(0.01)), optax.adam(3e-2)
    )
    rng = np.random.default_rng(0)
    faults = [NO_FAULT, *FAULTS.values()]
    params = initial_params()
    state = tx.init(params)
    for _ in range(200):
        mask = jnp.asarray(rng.uniform(size=3) < 0.8)
        fault = faults[rng.integers(len(faults))]
        updates, state = update(tx, state, params, fault, task_mask=mask)
        params = optax.apply_updates(params, updates)
        chex.assert_tree_all_finite((params, state))
    losses, start = task_losses(params), task_losses(initial_params())
    assert all(losses[name] < 0.1 * start[name] for name in TARGETS)
    assert optax.tree.get(state, "skipped")[1] > 100


@pytest.mark.parametrize(
    "mask", [True, jnp.ones(2), {"a": True, "b": True}, jnp.ones((3, 1))]
)
def test_wrong_masks(mask):
    params, tx = initial_params(), make_tx(samo_jax.mean(), None)
    with pytest.raises(ValueError, match=r"`task_mask` must be .* array, got"):
        tx.update(params, tx.init(params), params, loss_fn=task_losses, task_mask=mask)
