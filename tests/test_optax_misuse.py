"""What must fail clearly: wrong places in a pipeline, missing or wrong arguments."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax.training.train_state import TrainState
from packaging.version import Version

import samo_jax

PARAMS = {"w": jnp.arange(3.0), "v": jnp.ones(3)}
LABELS = {"w": "shared", "v": "right"}


def loss_fn(params):
    return {
        "left": jnp.sum((params["w"] - 1) ** 2),
        "right": jnp.sum((params["w"] + 1) ** 2 * params["v"]),
    }


def samo(solver=None, **kwargs):
    solver = samo_jax.mean() if solver is None else solver
    return samo_jax.samo(solver, **{"num_tasks": 2, "key": 0} | kwargs)


def update(tx, loss_fn=loss_fn, params=PARAMS, **kwargs):
    state = tx.init(params)
    return jax.eval_shape(
        lambda grads: tx.update(grads, state, params, loss_fn=loss_fn, **kwargs), params
    )


# Wrong places in a pipeline


@pytest.mark.parametrize(
    "tx",
    [
        optax.masked(samo(), {"w": True, "v": False}),
        optax.partition(
            {"samo": samo(), "sgd": optax.sgd(0.1)}, {"w": "samo", "v": "sgd"}
        ),
    ],
    ids=["masked", "partition"],
)
def test_inside_masks(tx):
    with pytest.raises(ValueError, match=r"masked leaf.*optax\.masked.*param_labels"):
        update(tx)


def test_inside_flatten():
    with pytest.raises(
        ValueError, match=r"`loss_fn` fails on `params`.*optax\.flatten"
    ):
        update(optax.flatten(samo()))


@pytest.mark.parametrize(
    "tx", [samo(), samo_jax.multitask(samo_jax.mean(), num_tasks=2)]
)
def test_other_errors_of_the_loss_pass_through(tx):
    def broken(params):
        raise KeyError(f"no batch for {sorted(params)}")

    with pytest.raises(KeyError, match="no batch for"):
        update(tx, broken)


@pytest.mark.skipif(
    Version(optax.__version__) < Version("0.2.7"), reason="did not check then"
)
def test_before_lbfgs():
    tx = optax.chain(samo(), optax.lbfgs())
    with pytest.raises(TypeError, match=r"not consumed by `value_fn`: \['loss_fn'\]"):
        update(
            tx,
            value=jnp.float32(1.0),
            grad=PARAMS,
            value_fn=lambda params: sum(loss_fn(params).values()),
        )


def test_jit_of_update_itself():
    tx = samo()
    with pytest.raises(TypeError, match="loss_fn"):
        jax.jit(tx.update)(PARAMS, tx.init(PARAMS), PARAMS, loss_fn=loss_fn)


@pytest.mark.parametrize(
    "solver", [samo_jax.mgda, samo_jax.mgda_weights], ids=["factory", "function"]
)
def test_inject_hyperparams_takes_a_bare_callable_for_a_schedule(solver):
    injected = optax.inject_hyperparams(samo_jax.samo, static_args=("num_tasks",))
    with pytest.raises((TypeError, ValueError)):
        update(injected(solver, num_tasks=2, key=jax.random.key(0)))


def test_inject_hyperparams_without_static_num_tasks():
    injected = optax.inject_hyperparams(samo_jax.samo)
    with pytest.raises(ValueError, match=r'`num_tasks`.*static_args=\("num_tasks",\)'):
        update(injected(samo_jax.mgda(), num_tasks=2, key=jax.random.key(0)))


# Missing arguments of update


def test_missing_loss_fn():
    tx = samo()
    with pytest.raises(ValueError, match="`loss_fn` is required"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_missing_loss_fn_in_a_chain():
    with pytest.raises(ValueError, match="`loss_fn` is required"):
        update(optax.chain(samo(), optax.adam(1e-3)), loss_fn=None)


def test_train_state_drops_loss_fn():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=samo())
    with pytest.raises(ValueError, match=r"`loss_fn`.*TrainState\.apply_gradients"):
        state.apply_gradients(grads=PARAMS, loss_fn=loss_fn)


def test_missing_params():
    tx = samo()
    with pytest.raises(ValueError, match="`params` is required"):
        tx.update(PARAMS, tx.init(PARAMS), loss_fn=loss_fn)


# Wrong losses, labels and parameters


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (
            lambda p: {"left": p["w"], "right": p["v"]},
            r"pytree of 2 scalars.*'left' of shape \(3,\).*Reduce over the batch",
        ),
        (lambda p: jnp.stack([p["w"], p["v"]]), r"of shape \(2, 3\)"),
        (lambda p: jnp.sum(p["w"]), r"`num_tasks`=2 losses; got 1"),
        (lambda p: p["w"], r"`num_tasks`=2 losses; got 3: 0, 1, 2"),
        (
            lambda p: loss_fn(p) | {"up": jnp.sum(p["w"])},
            r"`num_tasks`=2 losses; got 3: left, right, up",
        ),
        (
            lambda p: {"left": jnp.sum(p["w"]), "right": jnp.argmax(p["v"])},
            r"floating-point losses; got leaf 'right' of dtype int32",
        ),
    ],
    ids=["vectors", "matrix", "scalar", "long", "three", "integer"],
)
@pytest.mark.parametrize("unroll", [True, False])
def test_wrong_losses(wrong, match, unroll):
    with pytest.raises(ValueError, match=match):
        update(samo(unroll=unroll), wrong)


@pytest.mark.parametrize(
    "labels", [LABELS | {"v": "up"}, lambda _: LABELS | {"v": "up"}, "up"]
)
def test_unknown_label(labels):
    match = r"`param_labels`.*\(left, right\); got 'up'"
    with pytest.raises(ValueError, match=match):
        update(samo(param_labels=labels))


def test_labels_of_another_structure():
    with pytest.raises(ValueError, match="structure"):
        update(samo(param_labels={"w": "shared"}))


def test_integer_params():
    with pytest.raises(ValueError, match=r"floating-point.*'\['step'\]'.*int32"):
        samo().init(PARAMS | {"step": jnp.zeros((), jnp.int32)})


# Wrong arguments of the factories


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rho", -0.05),
        ("rho", -1),
        ("rho", float("nan")),
        ("alpha", -0.1),
        ("alpha", 1.5),
        ("alpha", float("nan")),
        ("mu", 0.0),
        ("mu", -0.01),
        ("mu", float("nan")),
        ("num_tasks", 0),
        ("num_tasks", -2),
        ("num_tasks", 2.0),
        ("num_tasks", None),
        ("unroll", 0),
        ("unroll", -1),
        ("unroll", 1.5),
        ("unroll", "all"),
    ],
)
def test_wrong_hyperparameter(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .* got {value!r}"):
        samo(**{name: value})


@pytest.mark.parametrize("factory", [samo_jax.global_sam, samo_jax.local_sam])
def test_negative_radius(factory):
    with pytest.raises(ValueError, match=r"`rho` must be non-negative and .*got -0.1"):
        factory(-0.1)


@pytest.mark.parametrize(
    "solver",
    [samo_jax.mgda, samo_jax.mgda_weights, None, "mgda"],
    ids=["factory", "function", "none", "name"],
)
def test_wrong_solver(solver):
    with pytest.raises(ValueError, match=r"`combiner` must be .*Call the factory"):
        samo_jax.samo(solver, num_tasks=2, key=0)


@pytest.mark.parametrize("perturbation", [samo_jax.global_sam, 0.05])
def test_wrong_perturbation(perturbation):
    with pytest.raises(ValueError, match=r"`perturbation` must be .*Call the factory"):
        samo_jax.multitask(samo_jax.mean(), perturbation, num_tasks=2)


def test_missing_key():
    with pytest.raises(ValueError, match="`key` is required"):
        samo(key=None)
    with pytest.raises(ValueError, match="`key` is required"):
        samo_jax.multitask(samo_jax.mean(), samo_jax.joint_sam(), num_tasks=2)


@pytest.mark.parametrize(
    "perturbation", [None, samo_jax.global_sam(), samo_jax.local_sam()]
)
def test_no_key_where_nothing_is_drawn(perturbation):
    tx = samo_jax.multitask(samo_jax.mean(), perturbation, num_tasks=2)
    assert optax.tree.get(tx.init(PARAMS), "key", default="none found") is None
    update(tx)
