"""Mistakes that users make, and the errors they get: the tables of docs/mistakes.md."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import samo_jax

import small_runs

PAGE = Path(__file__).parent.parent / "docs" / "mistakes.md"
PARAMS = {"w": jnp.arange(3.0), "v": jnp.ones(3)}
EYE = jnp.eye(2)
MEAN = samo_jax.mean()


def loss_fn(p):
    return {"left": jnp.sum((p["w"] - 1) ** 2), "right": jnp.sum(p["w"] * p["v"])}


def vectors(p):
    return {"left": p["w"], "right": p["v"]}


def third(p):
    return loss_fn(p) | {"up": jnp.sum(p["w"])}


def other_names(p):
    return {"right": jnp.sum(p["w"]), "up": jnp.sum(p["v"])}


def of_a_batch(p, batch):
    return {"left": p["w"] @ batch, "right": p["v"] @ batch}


def by_path(path, leaf):
    return "shared" if leaf.ndim else path


def with_accuracy(p):
    return loss_fn(p), {"accuracy": jnp.ones(4)}


MLP = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
NET = nnx.Sequential(
    nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))
)


def call(model):
    """The losses of who takes the parameters for the model."""
    return list(model(jnp.ones(3)))


def update_model(params, loss_fn=call):
    return update(samo(), loss_fn, params, params)


def samo(solver=MEAN, **kwargs):
    return samo_jax.samo(solver, **{"num_tasks": 2, "key": 0} | kwargs)


def multitask(solver=MEAN, perturbation=None, **kwargs):
    return samo_jax.multitask(solver, perturbation, **{"num_tasks": 2} | kwargs)


def update(tx, loss_fn=loss_fn, grads=PARAMS, params=PARAMS, state=None, **kwargs):
    state = tx.init(params) if state is None else state
    return jax.eval_shape(
        lambda: tx.update(grads, state, params, loss_fn=loss_fn, **kwargs)
    )


def clean_pass(loss_fn, params=PARAMS, **kwargs):
    return samo_jax.mean_value_and_grad(loss_fn, **kwargs)(params)


def apply_gradients():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=samo())
    return state.apply_gradients(grads=PARAMS, loss_fn=loss_fn)


def inject(solver, **kwargs):
    injected = optax.inject_hyperparams(samo_jax.samo)
    return update(injected(solver, key=jax.random.key(0), **kwargs))


def partitioned(tx):
    return optax.partition(
        {"samo": tx, "sgd": optax.sgd(0.1)}, {"w": "samo", "v": "sgd"}
    )


LIBRARY = {
    # Hyperparameters
    "a negative radius": lambda: samo(rho=-0.05),
    "a radius that is NaN": lambda: samo(rho=float("nan")),
    "a radius in quotes": lambda: samo(rho="0.05"),
    "no radius": lambda: samo(rho=None),
    "a radius per group": lambda: samo(rho={"shared": 0.1}),
    "a radius per task": lambda: samo(rho=jnp.ones(3)),
    "a complex radius": lambda: samo(rho=1j),
    "a schedule of vectors": lambda: update(samo(rho=lambda _: jnp.ones(3))),
    "a schedule that returns nothing": lambda: update(samo(rho=lambda _: None)),
    "a schedule's factory, not called": lambda: update(samo(rho=optax.linear_schedule)),
    "a share above one": lambda: samo(alpha=1.5),
    "a share in words": lambda: samo(alpha="auto"),
    "no step of the probes": lambda: samo(mu=0),
    "a negative step of the probes": lambda: samo(mu=-0.1),
    "no probes": lambda: samo_jax.probe(num_probes=0),
    "the default probe's step beside another": lambda: samo(
        mu=0.1, local=samo_jax.probe()
    ),
    "no tasks": lambda: samo(num_tasks=0),
    "tasks by name": lambda: samo(num_tasks=["left", "right"]),
    "True tasks": lambda: samo(num_tasks=True),
    "unroll in words": lambda: samo(unroll="yes"),
    "chunks of no task": lambda: samo(unroll=0),
    "no gradient at a time": lambda: samo(gramian_block=0),
    "unrolled and streamed": lambda: samo(gramian_block=1, unroll=True),
    "full gradients, streamed": lambda: multitask(samo_jax.moco(), gramian_block=1),
    "a memory, streamed": lambda: multitask(
        MEAN, samo_jax.memory_sam(), gramian_block=1
    ),
    "one mask for two tasks": lambda: update(samo(), task_mask=[True]),
    "an unknown norm": lambda: samo_jax.sam(norm="layer"),
    "an unknown direction": lambda: samo_jax.sam(direction="locale"),
    "LookSAM every zero steps": lambda: samo_jax.look_sam(samo(), every=0),
    "an infinite fairness": lambda: samo_jax.fairgrad(float("inf")),
    "fairness in quotes": lambda: samo_jax.fairgrad("1"),
    "a negative temperature": lambda: samo_jax.dwa(-1.0, window=1),
    "a smoothing of one": lambda: samo_jax.smoothed(samo_jax.mgda(), 1.0),
    # Combiners and perturbations
    "a combiner's factory, not called": lambda: samo(samo_jax.mgda),
    "a combiner by name": lambda: samo("mgda"),
    "an optimiser as combiner": lambda: multitask(optax.adam(1e-3)),
    "combiner and perturbation swapped": lambda: multitask(samo_jax.sam(), MEAN),
    "a perturbation's factory, not called": lambda: multitask(MEAN, samo_jax.sam),
    "a radius as perturbation": lambda: multitask(MEAN, 0.05),
    "samo as perturbation": lambda: multitask(MEAN, samo()),
    "a direction as perturbation": lambda: multitask(MEAN, samo_jax.probe(), key=0),
    "a perturbation in samo": lambda: samo(rho=samo_jax.global_sam()),
    "a direction in samo": lambda: samo(rho=samo_jax.probe()),
    "a perturbation in LookSAM": lambda: samo_jax.look_sam(samo_jax.sam()),
    "smoothing what is no weighting": lambda: samo_jax.smoothed(samo_jax.graddrop(0)),
    # Keys
    "no key": lambda: samo(key=None),
    "no key of a combiner": lambda: samo_jax.pcgrad(None),
    "a key in quotes": lambda: samo(key="0"),
    "a fraction as key": lambda: samo(key=0.5),
    "an array of an int as key": lambda: samo(key=jnp.array(3)),
    "two keys": lambda: samo(key=jax.random.split(jax.random.key(0))),
    "a key in quotes, of a function": lambda: samo_jax.pcgrad_weights(EYE, "0"),
    # One number per task
    "too few preferences": lambda: update(multitask(samo_jax.upgrad([1.0, 2.0, 3.0]))),
    "a negative preference": lambda: samo_jax.upgrad([-1.0, 2.0]),
    "preferences by name": lambda: samo_jax.upgrad({"left": 1.0, "right": 2.0}),
    "too many weights": lambda: multitask(samo_jax.constant([1, 2, 3])).init(PARAMS),
    "one weight": lambda: samo_jax.constant(0.5),
    "weights in quotes": lambda: samo_jax.constant(["a", "b"]),
    "too many to trim": lambda: multitask(samo_jax.trimmed_mean(1)).init(PARAMS),
    "Krum of two tasks": lambda: multitask(samo_jax.krum(1)).init(PARAMS),
    # Places in a pipeline
    "under optax.masked": lambda: update(optax.masked(samo(), {"w": True, "v": False})),
    "under optax.partition": lambda: update(partitioned(samo())),
    "under optax.flatten": lambda: update(optax.flatten(samo())),
    "injected without static tasks": lambda: inject(samo_jax.mgda(), num_tasks=2),
    "Flax's apply_gradients": apply_gradients,
    "an axis outside of shard_map": lambda: update(samo(axis_name="data")),
    # Parameters and labels
    "parameters missing": lambda: samo().update(
        PARAMS, samo().init(PARAMS), loss_fn=loss_fn
    ),
    "a count among the parameters": lambda: samo().init(PARAMS | {"n": jnp.array(0)}),
    "complex parameters": lambda: samo().init({"w": jnp.ones(3) * 1j}),
    "a float among the parameters": lambda: samo().init(PARAMS | {"scale": 1.0}),
    "a key among the parameters": lambda: samo().init({"key": jax.random.key(0)}),
    "NumPy's float64 without x64": lambda: samo().init({"w": np.ones(3)}),
    "an Equinox module that is not partitioned": lambda: update_model(MLP),
    "all state of an nnx model": lambda: update_model(nnx.state(NET)),
    "integers in the clean pass": lambda: clean_pass(
        lambda w: [jnp.sum(w * 1.0)], jnp.arange(3)
    ),
    "integers in task gradients": lambda: samo_jax.task_gradients(
        lambda w: [jnp.sum(w * 1.0)], jnp.arange(3)
    ),
    "a label that is no task": lambda: update(
        samo(param_labels={"w": "shared", "v": "up"})
    ),
    "a label that is the index of no task": lambda: update(
        samo(param_labels={"w": "shared", "v": 2}), lambda p: list(loss_fn(p).values())
    ),
    "labels of two heads swapped": lambda: update(
        samo(param_labels={"w": "shared", "v": "left"})
    ),
    "a shared leaf labelled as a head": lambda: update(
        samo(param_labels={"w": "left", "v": "right"})
    ),
    "labels of some parameters": lambda: update(samo(param_labels={"w": "shared"})),
    "labels that are bools": lambda: update(samo(param_labels={"w": True, "v": False})),
    "a function of paths as labels": lambda: update(samo(param_labels=by_path)),
    "a mask in words": lambda: update(multitask(MEAN, samo_jax.sam(mask="no"))),
    # The loss function
    "no loss function": lambda: samo().update(PARAMS, samo().init(PARAMS), PARAMS),
    "losses instead of their function": lambda: update(samo(), loss_fn(PARAMS)),
    "a loss function of no argument": lambda: update(samo(), lambda: loss_fn(PARAMS)),
    "a loss function of a batch": lambda: update(samo(), of_a_batch),
    "a loss per example": lambda: update(samo(), vectors),
    "another number of losses": lambda: update(samo(), third),
    "one loss that is None": lambda: update(
        samo(), lambda p: loss_fn(p) | {"left": None}
    ),
    "no losses": lambda: update(samo(), lambda _: {}),
    "a count as loss": lambda: update(samo(), lambda _: {"left": 1, "right": 2}),
    "a complex loss": lambda: update(samo(), lambda p: [jnp.sum(p["w"]) * 1j] * 2),
    "a name as loss": lambda: clean_pass(lambda p: [jnp.sum(p["w"]), "right"]),
    "the parameters of an Equinox module, called": lambda: update_model(
        eqx.filter(MLP, eqx.is_inexact_array)
    ),
    "the state of an nnx model, called": lambda: update_model(
        nnx.state(NET, nnx.Param)
    ),
    "the same in the clean pass": lambda: clean_pass(call, nnx.state(NET, nnx.Param)),
    "losses with other data": lambda: update(samo(), with_accuracy),
    "losses with other data, in the clean pass": lambda: clean_pass(with_accuracy),
    "has_aux without other data": lambda: clean_pass(loss_fn, has_aux=True),
    "losses instead of their function, in the clean pass": lambda: clean_pass({}),
    "probe losses of one task": lambda: update(
        samo(), probe_loss_fn=lambda p: [jnp.sum(p["w"])]
    ),
    "probe losses of other tasks": lambda: update(samo(), probe_loss_fn=other_names),
    "one function of samples": lambda: update(
        multitask(samo_jax.modo()), sample_loss_fns=loss_fn
    ),
    "no samples": lambda: update(multitask(samo_jax.modo())),
    "too many clean losses": lambda: update(
        multitask(samo_jax.dwa(window=1)), losses=jnp.ones(3)
    ),
    "no losses for a weighting": lambda: samo_jax.mgda_weights(
        EYE, normalization="loss"
    ),
    "no losses of examples": lambda: update(
        multitask(MEAN, samo_jax.efficient_sam(), key=0)
    ),
    # Gradients and state
    "no gradient": lambda: update(samo(), grads=None),
    "the gradient of some parameters": lambda: update(samo(), grads={"w": PARAMS["w"]}),
    "a gradient of other shapes": lambda: update(
        samo(), grads=PARAMS | {"w": jnp.ones(4)}
    ),
    "task gradients as gradient": lambda: update(
        samo(), grads=samo_jax.task_gradients(loss_fn, PARAMS)
    ),
    "losses and gradient as gradient": lambda: update(
        samo(), grads=clean_pass(loss_fn)
    ),
    "integers as gradient": lambda: update(samo(), grads=PARAMS | {"w": jnp.arange(3)}),
    "the state of other tasks": lambda: update(
        samo(), state=samo(num_tasks=3).init(PARAMS)
    ),
    "the state of another optimiser": lambda: update(
        samo(), state=optax.adam(1e-3).init(PARAMS)
    ),
    # Pure functions
    "a Gramian that is not square": lambda: samo_jax.mgda_weights(jnp.ones((2, 3))),
    "a Gramian of no task": lambda: samo_jax.mgda_weights(jnp.ones((0, 0))),
    "a complex Gramian": lambda: samo_jax.mgda_weights(EYE * 1j),
    "the Gramian of no gradient": lambda: samo_jax.gramian({}),
    "too many weights to combine with": lambda: samo_jax.combine(
        jnp.ones(3), {"w": jnp.ones((2, 4))}
    ),
    "a difference along some parameters": lambda: samo_jax.directional_difference(
        loss_fn, PARAMS, {"w": PARAMS["w"]}, mu=0.1
    ),
    "an estimate for two losses": lambda: samo_jax.spsa_gradient(
        0, loss_fn, PARAMS, mu=0.1
    ),
    "too few baselines": lambda: samo_jax.delta_m([1.0, 2.0, 3.0], [1.0, 2.0]),
    # One's own methods
    "an own weighting's weights": lambda: update(
        multitask(samo_jax.Weighting(lambda _: (), lambda *_, **__: (jnp.ones(3), ())))
    ),
    "an own perturbation's shapes": lambda: update(
        multitask(MEAN, samo_jax.Perturbation(lambda *_: (), lambda *_: jnp.ones(3)))
    ),
}
COMMANDS = [
    "nothing",
    "digits --methods genius",
    "digits --epochs -1",
    "digits --seeds two",
    "digits --rho -0.1",
    "digits --alpha 1.5",
    "digits --split train",
    "digits --config missing.json",
    "digits --resume missing",
    "digits --learning-rate 1",
    "celeba",
    "celeba --data missing",
    "compare missing",
]


def rows():
    """The mistakes of the page, and what it says that they get."""
    found = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    return {mistake: error for mistake, error in found if error not in {"---", "Error"}}


ROWS = rows()


def assert_told(mistake, message):
    """Whether the error is the page's, where `…` stands for anything."""
    told = ".*".join(map(re.escape, ROWS[mistake].split("…")))
    assert re.fullmatch(told, " ".join(message.split())), message


def test_the_page_has_every_mistake():
    assert list(ROWS) == [*LIBRARY, *(f"`{command}`" for command in COMMANDS)]


@pytest.mark.parametrize("mistake", LIBRARY)
def test_library(mistake):
    """An error names the argument, what was got, and (the rest) what to do."""
    with pytest.raises(ValueError, match=r"^`\w+` ") as error:
        LIBRARY[mistake]()
    message = str(error.value)
    assert_told(mistake, message)
    remedied = re.search(r"\bgot .+?[.:] +[`\w]", message, re.DOTALL)
    assert remedied or "must be one of" in message


@pytest.mark.parametrize("command", COMMANDS)
def test_command_line(command, capsys, tmp_path, monkeypatch):
    """One line that ends the process, and names the option."""
    monkeypatch.chdir(tmp_path)
    assert_told(f"`{command}`", small_runs.last_line(capsys, *command.split()))
    assert not list(tmp_path.iterdir())


def leaked(value):
    """A tracer of `value` whose trace is over."""
    kept = []
    jax.jit(lambda x: kept.append(x))(value)
    return kept[0]


def test_leaked_tracers_are_left_to_jax():
    with pytest.raises(jax.errors.UnexpectedTracerError, match="side effect"):
        samo(key=leaked(jax.random.key(0))).init(PARAMS)
    x = leaked(jnp.ones(3))
    with pytest.raises(jax.errors.UnexpectedTracerError, match="side effect"):
        clean_pass(lambda p: {"left": p["w"] @ x, "right": p["v"] @ x})


def test_a_task_without_gradient_is_no_mistake():
    def one_ignores_all(p):
        return loss_fn(p) | {"left": jnp.ones(())}

    tx = multitask()
    grad = clean_pass(one_ignores_all)[1]
    direction, _ = tx.update(grad, tx.init(PARAMS), PARAMS, loss_fn=one_ignores_all)
    np.testing.assert_allclose(direction["w"], PARAMS["v"] / 2)


def test_losses_of_the_clean_pass_in_any_form():
    seen = samo_jax.Weighting(
        lambda _: (), lambda _, s, *, losses, **__: (losses, s), True
    )
    tx = multitask(seen)
    for losses in ({"left": 2.0, "right": 3.0}, [2.0, 3.0], jnp.array([2.0, 3.0])):
        _, state = tx.update(
            PARAMS, tx.init(PARAMS), PARAMS, loss_fn=loss_fn, losses=losses
        )
        np.testing.assert_array_equal(state.weights, [2.0, 3.0])
