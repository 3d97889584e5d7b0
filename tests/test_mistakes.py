"""Mistakes that users make, and the errors they get."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from packaging.version import Version

import samo_jax

from mistakes import ROWS, assert_told

PARAMS = {"w": jnp.arange(3.0), "v": jnp.ones(3)}
EYE = jnp.eye(2)
MEAN = samo_jax.mean()
MGDA = samo_jax.mgda()


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


def by_a_kernel(p):
    shapes = [jax.ShapeDtypeStruct((), jnp.float32)] * 2
    return jax.pure_callback(
        lambda w, v: (w.sum(), v.sum()),
        *(shapes, p["w"], p["v"]),
        vmap_method="sequential",
    )


def by_path(path, leaf):
    return "shared" if leaf.ndim else path


def with_accuracy(p):
    return loss_fn(p), {"accuracy": jnp.ones(4)}


def marked_in_a_loop(p):
    def body(w, _):
        return 2 * samo_jax.representation(jnp.sin(w)), None

    w, _ = jax.lax.scan(body, p["w"], length=2)
    return {"left": jnp.sum(w**2), "right": jnp.sum(w * p["v"])}


def printing(p):
    jax.debug.print("{}", p["w"])
    return loss_fn(p)


PAIR = jnp.ones((2, 3))
MLP = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
NET = nnx.Sequential(
    nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))
)
NORMALISED = nnx.BatchNorm(2, rngs=nnx.Rngs(0))


def call(model):
    """The losses of who takes the parameters for the model."""
    return list(model(jnp.ones(3)))


def normalised(model):
    return list(model(jnp.ones((4, 2)))[0])


def nnx_update(loss_fn, model=NET):
    """What users of `nnx.Optimizer` write: the gradients are of the model."""
    optimizer = nnx.Optimizer(model, samo(), wrt=nnx.Param)
    grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads, loss_fn=loss_fn)


def merged_of(model, *filters):
    """The losses of a model made of its parameters and of other state."""
    graphdef = nnx.graphdef(model)
    rest = [nnx.state(model, other) for other in filters]
    return lambda params: normalised(nnx.merge(graphdef, params, *rest))


def update_model(params, loss_fn=call):
    return update(samo(), loss_fn, params, params)


def samo(combiner=MEAN, **kwargs):
    return samo_jax.samo(combiner, **{"num_tasks": 2, "key": 0} | kwargs)


def multitask(combiner=MEAN, perturbation=None, **kwargs):
    return samo_jax.multitask(combiner, perturbation, **{"num_tasks": 2} | kwargs)


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


def inject(combiner, **kwargs):
    injected = optax.inject_hyperparams(samo_jax.samo)
    return update(injected(combiner, key=jax.random.key(0), **kwargs))


def partitioned(tx):
    return optax.partition(
        {"samo": tx, "sgd": optax.sgd(0.1)}, {"w": "samo", "v": "sgd"}
    )


def combine_stacked(combiner, grads):
    tx = samo_jax.combine_gradients(combiner, num_tasks=2)
    return tx.update(grads, tx.init(PARAMS))


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
    "no task at a step": lambda: samo(tasks_per_step=0),
    "more tasks at a step than there are": lambda: samo(tasks_per_step=3),
    "tasks drawn and streamed": lambda: samo(tasks_per_step=1, gramian_block=1),
    "tasks drawn without a key": lambda: multitask(tasks_per_step=1),
    "a Gramian of layers by name": lambda: multitask(gramian_of="layers"),
    "a part's Gramian at points of one task": lambda: multitask(
        perturbation=samo_jax.local_sam(), gramian_of="representation"
    ),
    "a part's Gramian, streamed": lambda: multitask(
        gramian_of="representation", gramian_block=1
    ),
    "full gradients of a mask": lambda: multitask(
        samo_jax.graddrop(key=0), gramian_of={"w": True, "v": False}
    ),
    "a memory of representations": lambda: multitask(
        samo_jax.moco(), gramian_of="representation"
    ),
    "a Gramian of no leaf": lambda: update(multitask(MGDA, gramian_of=False)),
    "no representation": lambda: update(multitask(MGDA, gramian_of="representation")),
    "a representation of one loop": lambda: update(
        multitask(MGDA, gramian_of="representation"), loss_fn=marked_in_a_loop
    ),
    "a representation of tasks by index": lambda: update(
        multitask(MGDA, gramian_of="representation"),
        loss_fn=samo_jax.by_task(lambda p, x: p["w"] @ x, PAIR),
    ),
    "a representation through a callback": lambda: update(
        multitask(MGDA, gramian_of="representation"), loss_fn=printing
    ),
    "weights kept for no step": lambda: multitask(weights_every=0),
    "constant weights, kept": lambda: multitask(MEAN, weights_every=2),
    "weights kept at points of one task": lambda: multitask(
        samo_jax.mgda(), samo_jax.local_sam(), weights_every=2
    ),
    "weights of F-MTL kept at points of one task": lambda: samo_jax.f_mtl(
        samo_jax.mgda(), num_tasks=2, weights_every=2
    ),
    "a part's Gramian of F-MTL at points of one task": lambda: samo_jax.f_mtl(
        samo_jax.mgda(),
        num_tasks=2,
        direction="global",
        norm="together",
        gramian_of="representation",
    ),
    "full gradients of F-MTL, kept": lambda: samo_jax.f_mtl(
        samo_jax.moco(), num_tasks=2, direction="global", weights_every=2
    ),
    "weights kept of drawn tasks": lambda: multitask(
        samo_jax.mgda(), weights_every=2, tasks_per_step=1, key=0
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
    "preferences by name, of a function": lambda: samo_jax.upgrad_weights(
        EYE, {"left": 1.0, "right": 2.0}
    ),
    "a task's name misspelt": lambda: update(
        multitask(samo_jax.constant({"left": 1.0, "rigth": 2.0}))
    ),
    "a task without a preference": lambda: multitask(
        samo_jax.upgrad({"left": 1.0})
    ).init(PARAMS),
    "two offsets of one task": lambda: samo_jax.famo(offset={"left": jnp.arange(2.0)}),
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
    "a task whose name is a label": lambda: update(
        samo(param_labels={"w": "frozen", "v": "right"}),
        lambda p: {"frozen": jnp.sum(p["w"]), "right": jnp.sum(p["v"])},
    ),
    "labels that no losses tell": lambda: samo_jax.infer_labels(
        by_a_kernel, dict.fromkeys("wv", jnp.ones(2))
    ),
    "labels to be inferred for a memory": lambda: update(
        multitask(perturbation=samo_jax.memory_sam(), param_labels="infer")
    ),
    "labels to be inferred by LookSAM": lambda: samo_jax.look_sam(
        samo(param_labels="infer"), param_labels="infer"
    ).init(PARAMS),
    "labels that are bools": lambda: update(samo(param_labels={"w": True, "v": False})),
    "a function of paths as labels": lambda: update(samo(param_labels=by_path)),
    "a mask in words": lambda: update(multitask(MEAN, samo_jax.sam(mask="no"))),
    # The loss function
    "no loss of a task": lambda: samo_jax.by_task(None, PAIR),
    "no tasks by index": lambda: samo_jax.by_task(jnp.dot, 0),
    "batches of different lengths": lambda: samo_jax.by_task(
        jnp.dot, (PAIR, jnp.ones(3))
    ),
    "no batches": lambda: samo_jax.by_task(jnp.dot, []),
    "batches of different shapes, in chunks": lambda: samo_jax.by_task(
        jnp.dot, [jnp.ones(2), jnp.ones(3)], unroll=2
    ),
    "batches with one name": lambda: samo_jax.by_task(
        jnp.dot, PAIR, names=["left", "left"]
    ),
    "a loss per example of a task": lambda: samo_jax.by_task(jnp.multiply, PAIR)(
        jnp.ones(3)
    ),
    "a loss of a task with other data": lambda: samo_jax.by_task(
        lambda w, x: (jnp.dot(w, x), x), PAIR
    )(jnp.ones(3)),
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
    "the loss function of an nnx model": lambda: nnx_update(call),
    "the same with a method of the model": lambda: nnx_update(
        lambda model: (model.train(), call(model))[1]
    ),
    "the nnx model made of its parameters alone": lambda: nnx_update(
        merged_of(NORMALISED), NORMALISED
    ),
    "the nnx model outside, of which batch norm changes the statistics": lambda: (
        nnx_update(lambda _: normalised(NORMALISED), NORMALISED)
    ),
    "the nnx model made without a copy": lambda: nnx_update(
        merged_of(NORMALISED, nnx.BatchStat), NORMALISED
    ),
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
    "samples, streamed": lambda: update(
        multitask(gramian_block=1), sample_loss_fns=[loss_fn]
    ),
    "samples of a representation": lambda: update(
        multitask(gramian_of="representation"), sample_loss_fns=[loss_fn]
    ),
    "samples and kept weights": lambda: update(
        multitask(samo_jax.mgda(), weights_every=2), sample_loss_fns=[loss_fn]
    ),
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
    "gradients of too few tasks": lambda: combine_stacked(MEAN, PARAMS),
    "gradients without the losses that are needed": lambda: combine_stacked(
        samo_jax.famo(), {"w": jnp.ones((2, 3)), "v": jnp.ones((2, 3))}
    ),
    "the report of another optimiser": lambda: samo_jax.report(
        optax.adam(1e-3).init(PARAMS), ["left", "right"]
    ),
    "the report of too few names": lambda: samo_jax.report(
        samo().init(PARAMS), ["left"]
    ),
    "typed keys in a state": lambda: update(
        samo(), state=samo().init(PARAMS)._replace(key=jax.random.key(0))
    ),
    # Pure functions
    "weights as a mask of labels": lambda: samo_jax.masked_mean(
        jnp.ones((3, 2)), jnp.ones(3)
    ),
    "a mask of other examples": lambda: samo_jax.masked_mean(
        jnp.ones((3, 2)), jnp.ones(2, bool)
    ),
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
LABELS = {"w": "shared", "v": "up"}
NUM_MODALITIES = {"modality_aware_sam": {"num_modalities": 2}}
# Those that the page leaves out: what makes the error, and what is in it.
OTHERS = [
    # `samo`, `multitask` and their losses
    *(
        (partial(samo, **{name: value}), f"`{name}` must be .* got {value!r}")
        for name, values in {
            "rho": (-0.05, -1, float("nan")),
            "alpha": (-0.1, 1.5, float("nan")),
            "mu": (0.0, -0.01, float("nan")),
            "num_tasks": (0, -2, 2.0, None),
            "unroll": (0, -1, 1.5, "all"),
        }.items()
        for value in values
    ),
    *(
        (partial(samo, combiner), r"`combiner` must be .*Call the factory")
        for combiner in (samo_jax.mgda, samo_jax.mgda_weights, None, "mgda")
    ),
    *(
        (partial(multitask, MEAN, perturbation), "`perturbation` must be .*the factory")
        for perturbation in (samo_jax.global_sam, 0.05)
    ),
    (lambda: samo(key=None), "`key` is required"),
    (lambda: multitask(MEAN, samo_jax.joint_sam()), "`key` is required"),
    (
        lambda: update(optax.chain(samo(), optax.adam(1e-3)), loss_fn=None),
        "`loss_fn` is required",
    ),
    *(
        (partial(update, samo(unroll=unroll), wrong), message)
        for unroll in (True, False)
        for wrong, message in (
            (vectors, r"of 2 scalars.*'left' of shape \(3,\).*Reduce over the batch"),
            (lambda p: jnp.stack([p["w"], p["v"]]), r"of shape \(2, 3\)"),
            (lambda p: jnp.sum(p["w"]), r"`num_tasks`=2 losses; got 1"),
            (lambda p: p["w"], r"`num_tasks`=2 losses; got 3: 0, 1, 2"),
            (third, r"`num_tasks`=2 losses; got 3: left, right, up"),
            (
                lambda p: loss_fn(p) | {"right": jnp.argmax(p["v"])},
                r"floating-point losses; got leaf 'right' of dtype int32",
            ),
        )
    ),
    *(
        (
            lambda labels=labels: update(samo(param_labels=labels)),
            r"`param_labels`.*\(left, right\); got 'up'",
        )
        for labels in (LABELS, lambda _: LABELS, "up")
    ),
    # Weightings of the Gramian
    (
        lambda: samo_jax.constant([1.0, np.nan]),
        "`weights` must be a vector of K finite",
    ),
    (lambda: samo_jax.constant(1.0), "`weights` must be a vector of K finite"),
    (
        lambda: samo_jax.constant([1.0, 2]).init(3),
        "`weights` must be one number per task",
    ),
    (lambda: samo_jax.random_weights(None), "`key` is required"),
    (lambda: samo_jax.pcgrad(None), "`key` is required"),
    (lambda: samo_jax.gradvac(0, beta=1.5), r"`beta` must be in \[0, 1\], got 1.5"),
    (lambda: samo_jax.gradvac(None), "`key` is required"),
    (
        lambda: samo_jax.gradvac_weights(np.eye(2), np.eye(3), jax.random.key(0)),
        "`targets` must have the shape of `gramian`",
    ),
    (lambda: samo_jax.aligned_mtl("max"), "`scale_mode` must be one of .*'median'"),
    (
        lambda: samo_jax.aligned_mtl(preference=[-1.0, 1]),
        "`preference` must be finite and non-negative",
    ),
    (
        lambda: samo_jax.conflict_free_inverse_weights(np.eye(2), np.ones(3)),
        "`preference` must be one number per task",
    ),
    (lambda: samo_jax.krum(-1), "`num_byzantine` must be a non-negative int"),
    (lambda: samo_jax.krum(1, 0), "`num_selected` must be a positive int"),
    (
        lambda: samo_jax.krum(1).init(3),
        r"`num_byzantine` must be at most max\(K - 3, 0\)",
    ),
    (
        lambda: samo_jax.krum_weights(np.eye(4), 1, 5),
        "`num_selected` must be at most K",
    ),
    (lambda: samo_jax.gradnorm(alpha=-1.0), "`alpha` must be non-negative"),
    (lambda: samo_jax.gradnorm(learning_rate=0.0), "`learning_rate` must be positive"),
    (
        lambda: samo_jax.smoothed(samo_jax.mean),
        "`weighting` must be a samo_jax.Weighting",
    ),
    (
        lambda: samo_jax.smoothed(samo_jax.mean(), decay=1.0),
        r"`decay` must be in \[0, 1\)",
    ),
    (
        lambda: samo_jax.db_mtl_weights(np.eye(2), None),
        r"`losses` is required by db_mtl",
    ),
    (
        lambda: samo_jax.db_mtl_weights(np.eye(2), np.ones(3)),
        "`losses` must be one number per task",
    ),
    (
        lambda: samo_jax.db_mtl().update(np.eye(2), samo_jax.db_mtl().init(2)),
        r"`losses` is required by db_mtl\(\), got None",
    ),
    (
        lambda: samo_jax.gradnorm().update(
            np.eye(2), samo_jax.gradnorm().init(2), losses=None
        ),
        r"`losses` is required by gradnorm\(\), got None",
    ),
    (lambda: samo_jax.cagrad(-1), "`c` must be non-negative and finite, got -1"),
    (
        lambda: samo_jax.cagrad(0.5, 3),
        r"`rescale` must be one of \(0, 1, 2\), got 3",
    ),
    (lambda: samo_jax.nash_mtl(0), "`update_every` must be a positive int, got 0"),
    (
        lambda: samo_jax.upgrad([1, -1]),
        "`preference` must be finite and non-neg",
    ),
    (
        lambda: samo_jax.dualproj_weights(np.eye(2), np.ones(3)),
        r"`preference` must be one number per task, shape \(2,\), got shape \(3,\)",
    ),
    (lambda: samo_jax.upgrad_weights(np.ones((2, 3))), "`gramian` must have shape"),
    (lambda: samo_jax.mgda("l1"), r"`normalization` must be one of .* got 'l1'"),
    (lambda: samo_jax.mgda(apply_to="x"), "`apply_to` must be one of .* got 'x'"),
    (
        lambda: samo_jax.mgda_weights(np.eye(2), normalization="loss"),
        r"`losses` is required by mgda\('loss'\), got None",
    ),
    *(
        (call, "`alpha` must be positive and finite, got")
        for alpha in (0, -1.0, float("nan"), float("inf"))
        for call in (
            partial(samo_jax.fairgrad, alpha),
            partial(samo_jax.fairgrad_weights, EYE, alpha),
        )
    ),
    # Weightings of the losses
    (lambda: samo_jax.uncertainty(0), "`learning_rate` must be positive"),
    (lambda: samo_jax.imtl_l(-1), "`learning_rate` must be positive"),
    (lambda: samo_jax.famo(float("nan")), "`learning_rate` must be positive"),
    (lambda: samo_jax.famo(0.1, -1), "`weight_decay` must be non-negative"),
    (lambda: samo_jax.dwa(0, window=1), "`temperature` must be positive"),
    (lambda: samo_jax.dwa(window=0), "`window` must be a positive int, got 0"),
    (lambda: samo_jax.dwa(window=2.0), "`window` must be a positive int"),
    (lambda: samo_jax.stch(0), "`mu` must be positive and finite, got 0"),
    (lambda: samo_jax.stch(1, [1, -1]), "`preference` must be finite and non-n"),
    (lambda: samo_jax.pbi(-1, [1, 1]), "`theta` must be non-negative"),
    (lambda: samo_jax.pbi(1, [0, 0]), "`preference` must be .* positive entry"),
    (lambda: samo_jax.cosmos([1, 1], -1), "`lam` must be non-negative"),
    (lambda: samo_jax.log_losses(samo_jax.mgda), "Call the factory"),
    (
        lambda: samo_jax.stch_loss([1.0, 2.0], mu=1, preference=[1, 1, 1]),
        r"`preference` must be one number per task, shape \(2,\), got shape \(3,\)",
    ),
    (
        lambda: update(multitask(samo_jax.pbi(1, [1, 1, 1]))),
        "`preference` must be one number per task",
    ),
    (
        lambda: samo_jax.uncertainty_loss([1.0, 2.0], [1, 1, 1]),
        "`log_variances` must be one number per task",
    ),
    # Aggregators
    (lambda: samo_jax.graddrop(0, 1.5), r"`leak` must be in \[0, 1\], got 1.5"),
    (lambda: update(multitask(samo_jax.graddrop(0, [0, 1, 1]))), "`leak` must be o"),
    (lambda: samo_jax.trimmed_mean(-1), "`trim` must be a non-negative int, got"),
    (lambda: samo_jax.trimmed_mean(0.5), "`trim` must be a non-negative int"),
    (
        lambda: samo_jax.trimmed_mean(2).init(PARAMS, 4),
        "`trim` must leave a task, got 2 at each end of 4 tasks. Choose at most 1",
    ),
    (lambda: samo_jax.moco(1.5), r"`beta` must be in \[0, 1\], got 1.5"),
    (lambda: samo_jax.moco(gamma=-1), "`gamma` must be non-negative"),
    (lambda: samo_jax.moco(rho=-1), "`rho` must be non-negative"),
    (lambda: samo_jax.moco(decay=-1), "`decay` must be non-negative"),
    (lambda: samo_jax.excess_mtl(-1), "`eta` must be non-negative and finite"),
    (lambda: samo_jax.db_mtl_momentum(2), r"`decay` must be in \[0, 1\], got 2"),
    (lambda: samo_jax.db_mtl_momentum(power=-1), "`power` must be non-negative"),
    # Perturbations
    *(
        (
            partial(entry.factory, rho=-0.1, **NUM_MODALITIES.get(name, {})),
            "`rho` must be non-negative and finite, got -0.1",
        )
        for name, entry in samo_jax.PERTURBATIONS.items()
    ),
    (lambda: samo_jax.sam(float("nan")), "`rho` must be non-negative"),
    (lambda: samo_jax.adaptive_sam(eta=-1), "`eta` must be .* got -1. 0 is T"),
    (lambda: samo_jax.monge_sam(alpha=-1), "`alpha` must be .* got -1. 0 is SAM"),
    (lambda: samo_jax.fisher_sam(eta=-1), "`eta` must be .* got -1. 0 is SAM"),
    (lambda: samo_jax.friendly_sam(sigma=-1), "`sigma` must be .* 0 is SAM"),
    (lambda: samo_jax.friendly_sam(decay=1.5), r"`decay` must be in \[0, 1\]"),
    (lambda: samo_jax.momentum_sam(decay=-0.5), r"`decay` must be in \[0, 1\]"),
    (lambda: samo_jax.surrogate_gap_sam(alpha=-1), "`alpha` must be .* 0 is SAM"),
    (lambda: samo_jax.efficient_sam(beta=0), r"`beta` must be in \(0, 1\], got 0"),
    (lambda: samo_jax.efficient_sam(gamma=1.5), r"`gamma` must be in \(0, 1\]"),
    (lambda: samo_jax.sam(norm="both"), "`norm` must be one of .*got 'both'"),
    (lambda: samo_jax.sam(direction="own"), "`direction` must be .*got 'own'"),
    (
        lambda: samo_jax.surrogate_gap_sam(direction=samo_jax.joint_sam()),
        '`direction` must be "global" or "local"',
    ),
    (
        lambda: samo_jax.single_task(samo_jax.sam),
        "`perturbation` must be a samo_jax.Perturbation.*Call the factory",
    ),
    (lambda: samo_jax.memory_sam(-1.0), "`rho` must be non-negative"),
    (lambda: samo_jax.memory_sam(alpha=2), r"`alpha` must be in \[0, 1\], got 2"),
    (
        lambda: samo_jax.memory_sam(alpha="best"),
        "got 'best'. It is the share of .*, or \"adaptive\".",
    ),
    (lambda: samo_jax.memory_sam(decay=1.5), r"`decay` must be in \[0, 1\]"),
    (
        lambda: samo_jax.joint_sam(alpha="learned"),
        "got 'learned'. It is the share of .*, or \"adaptive\".",
    ),
    # Pure functions of perturbations
    *(
        (partial(function, PARAMS, PARAMS, rho=rho, alpha=alpha), message)
        for rho, alpha, message in (
            (-1, 0.5, "`rho` must be non-negative and finite, got -1"),
            (float("nan"), 0.5, "`rho` must be non-negative"),
            (0.1, 1.5, r"`alpha` must be in \[0, 1\]"),
        )
        for function in (samo_jax.joint_perturbation,)
    ),
    (lambda: samo_jax.joint_sam(0.1, 1.5), r"`alpha` must be in \[0, 1\]"),
    *(
        (
            partial(samo_jax.spsa_gradient, 0, jnp.sum, jnp.ones(2), mu=mu),
            "`mu` must be positive and finite, got",
        )
        for mu in (0, -0.1, float("nan"), float("inf"))
    ),
    (
        lambda: samo_jax.spsa_gradient(
            0, lambda p: [jnp.sum(p)] * 2, jnp.ones(2), mu=0.1
        ),
        "`loss_fn` must return one scalar",
    ),
]


def test_the_page_has_every_mistake():
    assert [row for row in ROWS if not row.startswith("`")] == list(LIBRARY)


@pytest.mark.parametrize("mistake", LIBRARY)
def test_library(mistake):
    """An error names the argument, what was got, and (the rest) what to do."""
    with pytest.raises(ValueError, match=r"^`\w+` ") as error:
        LIBRARY[mistake]()
    message = str(error.value)
    assert_told(mistake, message)
    remedied = re.search(r"\bgot .+?[.:] +[`\w]", message, re.DOTALL)
    assert remedied or "must be one of" in message


@pytest.mark.parametrize(("call", "message"), OTHERS)
def test_others(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# What other libraries tell


def test_other_errors_of_the_loss_pass_through():
    def broken(params):
        raise KeyError(f"no batch for {sorted(params)}")

    for tx in (samo(), multitask()):
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
    "combiner", [samo_jax.mgda, samo_jax.mgda_weights], ids=["factory", "function"]
)
def test_inject_hyperparams_takes_a_bare_callable_for_a_schedule(combiner):
    injected = optax.inject_hyperparams(samo_jax.samo, static_args=("num_tasks",))
    with pytest.raises((TypeError, ValueError)):
        update(injected(combiner, num_tasks=2, key=jax.random.key(0)))


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


@pytest.mark.parametrize(
    "perturbation", [None, samo_jax.global_sam(), samo_jax.local_sam()]
)
def test_no_key_where_nothing_is_drawn(perturbation):
    tx = multitask(MEAN, perturbation)
    assert optax.tree.get(tx.init(PARAMS), "key", default="none found") is None
    update(tx)
