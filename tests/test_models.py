"""Flax linen, Flax nnx and Equinox models, multi-input tasks, microbatches, dropout."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax import lax

import samo_jax

TASKS = ("left", "right")
RHO = 0.05
LEARNING_RATE = 0.05


def head_label(path, _):
    """The entry below `heads`, if there is one."""
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    return names[names.index("heads") + 1] if "heads" in names else "shared"


def head_labels(params):
    return jax.tree.map_with_path(head_label, params)


def samo_adam(param_labels):
    return optax.chain(
        samo_jax.samo(
            samo_jax.fairgrad(),
            rho=RHO,
            num_tasks=len(TASKS),
            key=3,
            param_labels=param_labels,
        ),
        optax.adam(LEARNING_RATE),
    )


def global_sam_adam(param_labels=None):
    """Compiles in a quarter of the time."""
    return optax.chain(
        samo_jax.multitask(
            samo_jax.mean(),
            samo_jax.global_sam(RHO),
            num_tasks=len(TASKS),
            param_labels=param_labels,
        ),
        optax.adam(LEARNING_RATE),
    )


def squared_errors(predictions, targets):
    return {
        name: jnp.mean((predictions[name] - targets[name]) ** 2) for name in targets
    }


def norm(tree):
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))


def distance(tree, other):
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return np.sqrt(sum(np.sum((np.asarray(a) - np.asarray(b)) ** 2) for a, b in leaves))


def assert_falls(history):
    """Every task's loss, averaged over five steps, falls by a third at least."""
    for name in history[0]:
        losses = np.array([losses[name] for losses in history])
        assert np.mean(losses[-5:]) < 0.67 * np.mean(losses[:5]), name


@pytest.fixture
def batch():
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    return x, {"left": np.sin(x[:, 0]) + 2, "right": x[:, 1] - x[:, 2] - 2}


# Flax linen


class LinenModel(nn.Module):
    """A shared body with BatchNorm and Dropout, and two heads."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(16)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return {name: nn.Dense(1, name=name)(x)[:, 0] for name in TASKS}


LINEN_LABELS = {
    "Dense_0": "shared",
    "BatchNorm_0": "shared",
    "left": "left",
    "right": "right",
}


def linen_losses(params, batch_stats, batch, dropout_key, train=True):
    """Task losses and new batch statistics."""
    x, targets = batch
    predictions, new = LinenModel().apply(
        {"params": params, "batch_stats": batch_stats},
        x,
        train,
        rngs={"dropout": dropout_key},
        mutable=["batch_stats"],
    )
    return squared_errors(predictions, targets), new["batch_stats"]


@pytest.fixture
def linen_variables(key, batch):
    variables = jax.jit(LinenModel().init, static_argnums=2)(key, batch[0], False)
    return variables["params"], variables["batch_stats"]


def linen_step(tx, params, batch_stats, opt_state, batch, dropout_key):
    def losses_and_stats(p):
        return linen_losses(p, batch_stats, batch, dropout_key)

    (losses, new_stats), grads = samo_jax.mean_value_and_grad(
        losses_and_stats, has_aux=True
    )(params)
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads, opt_state, params, loss_fn=lambda p: losses_and_stats(p)[0]
    )
    return optax.apply_updates(params, updates), new_stats, opt_state, losses


linen_step = jax.jit(linen_step, static_argnums=0)
LINEN_TX = samo_adam(LINEN_LABELS)


def test_linen_batch_statistics_equal_those_of_a_plain_step(linen_variables, batch):
    params, stats = linen_variables
    (samo_params, samo_stats, *_), (plain_params, plain_stats, *_) = (
        linen_step(tx, params, stats, tx.init(params), batch, jax.random.key(1))
        for tx in (LINEN_TX, optax.adam(LEARNING_RATE))
    )
    chex.assert_trees_all_equal(samo_stats, plain_stats)
    assert distance(samo_stats, stats) > 0.1
    assert distance(samo_params, plain_params) > 1e-3


def test_linen_two_heads_learn(linen_variables, batch):
    params, stats = linen_variables
    opt_state, history = LINEN_TX.init(params), []
    for i in range(30):
        params, stats, opt_state, losses = linen_step(
            LINEN_TX, params, stats, opt_state, batch, jax.random.key(i)
        )
        history.append(losses)
    assert_falls(history)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("perturbation", "unroll"),
    [
        ("global_sam", True),
        ("global_sam", False),
        ("local_sam", True),
    ],
    ids=["global", "global-looped", "local"],
)
def test_linen_head_takes_its_own_perturbed_gradient(
    linen_variables, batch, perturbation, unroll
):
    params, stats = linen_variables
    tx = samo_jax.multitask(
        samo_jax.mean(),
        getattr(samo_jax, perturbation)(RHO),
        num_tasks=2,
        param_labels=LINEN_LABELS,
        unroll=unroll,
    )

    def loss_fn(p):
        return linen_losses(p, stats, batch, jax.random.key(1))[0]

    @jax.jit
    def direction(params):
        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        return tx.update(grads, tx.init(params), params, loss_fn=loss_fn)[0]

    def loss_fn_of(name):
        return lambda p: loss_fn(p)[name]

    def head_gradient(params, name):
        """The same by hand: own norms for the shared leaves and for the head."""
        towards = jax.grad(
            loss_fn_of(name)
            if perturbation == "local_sam"
            else lambda p: sum(loss_fn(p).values()) / 2
        )(params)
        shared = {k: g for k, g in towards.items() if k not in TASKS}
        moved = dict(params)
        for part in (shared, {name: towards[name]}):
            for k, g in part.items():
                moved[k] = jax.tree.map(
                    lambda p, g, part=part: p + RHO * g / norm(part), params[k], g
                )
        return jax.grad(loss_fn_of(name))(moved)[name]

    head_gradient = jax.jit(head_gradient, static_argnums=1)
    updates = direction(params)
    for name in TASKS:
        chex.assert_trees_all_close(
            updates[name], head_gradient(params, name), rtol=1e-5, atol=1e-6
        )


@pytest.mark.slow
def test_linen_train_state_recipe(linen_variables, batch):
    params, stats = linen_variables
    state = TrainState.create(
        apply_fn=LinenModel().apply,
        params=params,
        tx=global_sam_adam(LINEN_LABELS),
    )

    @jax.jit
    def step(state, dropout_key):
        def loss_fn(p):
            return linen_losses(p, stats, batch, dropout_key)[0]

        losses, grads = samo_jax.mean_value_and_grad(loss_fn)(state.params)
        updates, opt_state = state.tx.update(
            grads, state.opt_state, state.params, loss_fn=loss_fn
        )
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        )
        return state, losses

    with pytest.raises(ValueError, match="apply_gradients"):
        state.apply_gradients(grads=state.params)
    history = []
    for i in range(30):
        state, losses = step(state, jax.random.key(i))
        history.append(losses)
    assert_falls(history)
    assert state.step == optax.tree.get(state.opt_state, "step") == 30


# Flax nnx


class NnxModel(nnx.Module):
    """A shared body with BatchNorm and Dropout, and two heads."""

    def __init__(self, rngs):
        self.body = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.heads = nnx.Dict(
            {name: nnx.Linear(16, 1, rngs=rngs) for name in TASKS},
        )

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.body(x))))
        return {name: head(x)[:, 0] for name, head in self.heads.items()}


def nnx_model():
    model = NnxModel(nnx.Rngs(0))
    model.train()
    return model


@nnx.jit
def nnx_step(model, optimizer, batch):
    x, targets = batch
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def losses_and_rest(p):
        # `copy`: the variables of `rest` belong to the outer trace.
        model = nnx.merge(graphdef, p, rest, copy=True)
        losses = squared_errors(model(x), targets)
        return losses, nnx.state(model, nnx.Not(nnx.Param))

    (losses, new_rest), grads = samo_jax.mean_value_and_grad(
        losses_and_rest, has_aux=True
    )(params)
    nnx.update(model, new_rest)
    optimizer.update(model, grads, loss_fn=lambda p: losses_and_rest(p)[0])
    return losses


NNX_TX = samo_adam(head_labels)


@pytest.mark.slow
def test_nnx_statistics_and_dropout_count_equal_those_of_a_plain_step(batch):
    states, kernels = [], []
    for tx in (NNX_TX, optax.with_extra_args_support(optax.adam(LEARNING_RATE))):
        model = nnx_model()
        nnx_step(model, nnx.Optimizer(model, tx, wrt=nnx.Param), batch)
        states.append(nnx.to_pure_dict(nnx.state(model, (nnx.BatchStat, nnx.RngCount))))
        kernels.append(model.body.kernel[...])
    samo, plain = states
    chex.assert_trees_all_equal(samo, plain)
    assert samo["dropout"]["rngs"]["count"] == 1
    assert distance(samo["norm"]["mean"], np.zeros(16)) > 0.01
    assert distance(*kernels) > 1e-3


def test_nnx_two_heads_learn(batch):
    model = nnx_model()
    optimizer = nnx.Optimizer(model, NNX_TX, wrt=nnx.Param)
    assert_falls([nnx_step(model, optimizer, batch) for _ in range(30)])
    assert optimizer.step[...] == 30
    assert optimizer.opt_state[0].step[...] == 30
    assert jax.tree.leaves(nnx.state(model, nnx.RngCount)) == [30]


# Probes in evaluation mode


def linen_probe_case(linen_variables, batch):
    params, stats = linen_variables

    def loss_fn(p, train):
        return linen_losses(p, stats, batch, jax.random.key(1), train)[0]

    return params, loss_fn


def nnx_probe_case(_linen_variables, batch):
    x, targets = batch
    train_def, params, rest = nnx.split(nnx_model(), nnx.Param, ...)
    eval_model = nnx_model()
    eval_model.eval()
    eval_def = nnx.graphdef(eval_model)

    def loss_fn(p, train):
        model = nnx.merge(train_def if train else eval_def, p, rest, copy=True)
        return squared_errors(model(x), targets)

    return nnx.as_pure(params), loss_fn


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [linen_probe_case, nnx_probe_case],
    ids=["linen", "nnx"],
)
def test_probes_run_in_evaluation_mode(linen_variables, batch, case):
    params, loss_fn = case(linen_variables, batch)
    tx = samo_jax.samo(samo_jax.mean(), num_tasks=2, key=3)
    traces = {"train": 0, "eval": 0}

    def train_loss_fn(p):
        traces["train"] += 1
        return loss_fn(p, True)

    def eval_loss_fn(p):
        traces["eval"] += 1
        return loss_fn(p, False)

    @jax.jit
    def step(params, sign):
        _, grads = samo_jax.mean_value_and_grad(lambda p: loss_fn(p, True))(params)
        return tx.update(
            grads,
            tx.init(params),
            params,
            loss_fn=train_loss_fn,
            probe_loss_fn=lambda p: [sign * x for x in eval_loss_fn(p).values()],
        )[0]

    # Only a probe's sign counts: reversed probes give another direction.
    assert distance(step(params, 1.0), step(params, -1.0)) > 1e-3
    chex.assert_trees_all_close(step(params, 1.0), step(params, 9.0), rtol=1e-6)
    assert traces == {"train": 1 + 2, "eval": 1 + 2 * 2}


# Equinox


class EquinoxModel(eqx.Module):
    """A shared body and two heads, with a static field and a static leaf."""

    body: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    heads: dict[str, eqx.nn.Linear]
    name: str = eqx.field(static=True)

    def __init__(self, key):
        body_key, *head_keys = jax.random.split(key, 1 + len(TASKS))
        self.body = eqx.nn.Linear(4, 16, key=body_key)
        self.dropout = eqx.nn.Dropout(0.2)
        self.heads = {
            name: eqx.nn.Linear(16, "scalar", key=head_key)
            for name, head_key in zip(TASKS, head_keys, strict=True)
        }
        self.name = "two heads"

    def __call__(self, x, key):
        x = self.dropout(jax.nn.relu(self.body(x)), key=key)
        return {name: head(x) for name, head in self.heads.items()}


@pytest.mark.slow
def test_equinox_two_heads_learn(key, batch):
    params, static = eqx.partition(EquinoxModel(key), eqx.is_inexact_array)
    tx = samo_adam(head_labels)
    x, targets = batch

    @eqx.filter_jit
    def step(params, opt_state, dropout_key):
        def loss_fn(p):
            model = eqx.combine(p, static)
            keys = jax.random.split(dropout_key, len(x))
            return squared_errors(jax.vmap(model)(x, keys), targets)

        losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, loss_fn=loss_fn)
        return eqx.apply_updates(params, updates), opt_state, losses

    opt_state, history = tx.init(params), []
    for i in range(30):
        params, opt_state, losses = step(params, opt_state, jax.random.key(i))
        history.append(losses)
    assert_falls(history)
    assert set(jax.tree.leaves(head_labels(params))) == {"shared", *TASKS}
    assert eqx.combine(params, static).name == "two heads"


class EquinoxBatchNormModel(eqx.Module):
    """BatchNorm, whose statistics Equinox keeps in a separate `State`."""

    body: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        body_key, head_key = jax.random.split(key)
        self.body = eqx.nn.Linear(4, 8, key=body_key)
        self.norm = eqx.nn.BatchNorm(8, axis_name="batch", mode="batch")
        self.head = eqx.nn.Linear(8, 2, key=head_key)

    def __call__(self, x, state):
        x, state = self.norm(self.body(x), state)
        return self.head(jax.nn.relu(x)), state


@pytest.mark.slow
def test_equinox_batch_statistics_equal_those_of_a_plain_step(key, batch):
    model, state = eqx.nn.make_with_state(EquinoxBatchNormModel)(key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x, targets = batch

    @eqx.filter_jit
    def step(tx, params, state):
        def losses_and_state(p):
            predictions, new_state = jax.vmap(
                eqx.combine(p, static),
                axis_name="batch",
                in_axes=(0, None),
                out_axes=(0, None),
            )(x, state)
            predictions = {name: predictions[:, i] for i, name in enumerate(TASKS)}
            return squared_errors(predictions, targets), new_state

        (_, new_state), grads = samo_jax.mean_value_and_grad(
            losses_and_state, has_aux=True
        )(params)
        updates, _ = optax.with_extra_args_support(tx).update(
            grads, tx.init(params), params, loss_fn=lambda p: losses_and_state(p)[0]
        )
        return eqx.apply_updates(params, updates), new_state

    sam_params, sam_state = step(global_sam_adam(), params, state)
    plain_params, plain_state = step(optax.adam(LEARNING_RATE), params, state)
    chex.assert_trees_all_equal(
        jax.tree.leaves(sam_state), jax.tree.leaves(plain_state)
    )
    assert distance(sam_state, state) > 0.1
    assert distance(sam_params, plain_params) > 1e-3


# Tasks with a batch each


def linear_gradients(body, heads, batches):
    """Gradients of mean((x @ body @ head - y)^2), in NumPy, per task."""
    gradients = {}
    for name, (x, y) in batches.items():
        residual = 2 / len(y) * (x @ body @ heads[name] - y)
        gradients[name] = {
            "body": np.outer(x.T @ residual, heads[name]),
            "head": body.T @ x.T @ residual,
        }
    return gradients


def global_sam_mgda_step(body, heads, batches, rho, heads_are_shared):
    """One step of `multitask(mgda(), global_sam(rho))` in NumPy."""
    at_theta = linear_gradients(body, heads, batches)
    g0_body = sum(g["body"] for g in at_theta.values()) / 2
    g0_heads = {name: g["head"] / 2 for name, g in at_theta.items()}
    own_norms = {name: np.linalg.norm(g) for name, g in g0_heads.items()}
    body_norm = np.linalg.norm(g0_body)
    if heads_are_shared:
        body_norm = np.sqrt(body_norm**2 + sum(n**2 for n in own_norms.values()))
        own_norms = dict.fromkeys(own_norms, body_norm)
    moved_heads = {
        name: head + rho * g0_heads[name] / own_norms[name]
        for name, head in heads.items()
    }
    moved_body = body + rho * g0_body / body_norm
    perturbed = linear_gradients(moved_body, moved_heads, batches)

    a, b = (perturbed[name]["body"].ravel() for name in TASKS)
    if heads_are_shared:
        a = np.concatenate([a, perturbed["left"]["head"], np.zeros_like(heads["left"])])
        b = np.concatenate(
            [b, np.zeros_like(heads["left"]), perturbed["right"]["head"]]
        )
    w = np.clip((b - a) @ b / ((b - a) @ (b - a)), 0, 1)
    weights = {"left": w, "right": 1 - w}
    direction = {
        "body": sum(weights[name] * perturbed[name]["body"] for name in TASKS),
        "heads": {
            name: perturbed[name]["head"] * (weights[name] if heads_are_shared else 1)
            for name in TASKS
        },
    }
    return direction, np.array([w, 1 - w])


@pytest.mark.parametrize(
    ("labels", "unroll"),
    [
        (None, True),
        pytest.param(head_labels, True, marks=pytest.mark.slow),
        (head_labels, False),
    ],
    ids=["all-shared", "heads", "heads-looped"],
)
def test_tasks_with_their_own_batches_match_numpy(labels, unroll):
    rng = np.random.default_rng(0)
    batches = {
        name: (rng.normal(size=(n, 4)), rng.normal(size=n))
        for name, n in [("left", 8), ("right", 5)]
    }
    body = rng.normal(size=(4, 3))
    heads = {name: rng.normal(size=3) for name in TASKS}
    expected, weights = global_sam_mgda_step(body, heads, batches, 0.3, labels is None)
    assert 0.05 < weights[0] < 0.95

    tx = samo_jax.multitask(
        samo_jax.mgda(),
        samo_jax.global_sam(0.3),
        num_tasks=2,
        param_labels=labels,
        unroll=unroll,
    )

    @jax.jit
    def step(params, batches):
        def loss_fn(p):
            return {
                name: jnp.mean((x @ p["body"] @ p["heads"][name] - y) ** 2)
                for name, (x, y) in batches.items()
            }

        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        return tx.update(grads, tx.init(params), params, loss_fn=loss_fn)

    def to_jax(tree):
        return jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree)

    updates, state = step(to_jax({"body": body, "heads": heads}), to_jax(batches))
    chex.assert_trees_all_close(updates, to_jax(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.weights, weights, rtol=1e-4)


# Microbatches


def full_batch_loss_fn(params, batch):
    x, targets = batch
    hidden = jnp.tanh(x @ params["body"])
    predictions = {name: hidden @ params["heads"][name] for name in TASKS}
    return squared_errors(predictions, targets)


def scanned_loss_fn(params, batch):
    microbatches = jax.tree.map(lambda v: v.reshape(4, 2, *v.shape[1:]), batch)

    def add(total, microbatch):
        losses = jax.checkpoint(full_batch_loss_fn)(params, microbatch)
        return jax.tree.map(lambda t, loss: t + loss / 4, total, losses), None

    return lax.scan(add, dict.fromkeys(TASKS, jnp.zeros(())), microbatches)[0]


def optax_microbatched_loss_fn(params, batch):
    return optax.microbatching.microbatch(
        full_batch_loss_fn,
        argnums=1,
        microbatch_size=2,
        accumulator=optax.microbatching.AccumulationType.MEAN,
    )(params, batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "microbatched",
    [
        scanned_loss_fn,
        optax_microbatched_loss_fn,
    ],
    ids=["scan", "optax.microbatching"],
)
def test_microbatches_give_the_full_batch_step(batch, microbatched):
    rng = np.random.default_rng(0)
    params = {
        "body": rng.normal(size=(4, 8)).astype(np.float32),
        "heads": {name: rng.normal(size=8).astype(np.float32) for name in TASKS},
    }
    tx = samo_jax.samo(samo_jax.mean(), num_tasks=2, key=3, param_labels=head_labels)

    @jax.jit
    def steps(params, batch):
        def step(losses_of):
            def loss_fn(p):
                return losses_of(p, batch)

            losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
            updates, _ = tx.update(grads, tx.init(params), params, loss_fn=loss_fn)
            return losses, updates

        return step(full_batch_loss_fn), step(microbatched)

    full, micro = steps(params, batch)
    chex.assert_trees_all_close(micro, full, rtol=1e-4, atol=1e-5)


# Common random numbers


def test_a_closed_over_dropout_key_is_common_to_all_passes(linen_variables, batch):
    params, stats = linen_variables
    opt_state = LINEN_TX.init(params)
    first, again, other = (
        linen_step(LINEN_TX, params, stats, opt_state, batch, jax.random.key(seed))
        for seed in (1, 1, 2)
    )
    chex.assert_trees_all_equal(first[:2], again[:2])
    chex.assert_trees_all_equal(first[3], again[3])
    assert distance(first[0], other[0]) > 1e-3

    # Both sides of a probe drop the same units: no direction, no difference.
    difference = jax.jit(
        lambda params: samo_jax.directional_difference(
            lambda p: linen_losses(p, stats, batch, jax.random.key(1))[0],
            params,
            optax.tree.zeros_like(params),
            mu=1e-2,
        )
    )(params)
    assert all(value == 0 for value in difference.values())
