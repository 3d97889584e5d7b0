"""A tiny problem in JAX and by hand in NumPy, and every sharpness method on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import samo_jax

TASKS = ("left", "right", "up")
SHARED = ("kernel", "bias")
LABELS = {"kernel": "shared", "bias": "shared"} | {name: name for name in TASKS}
RATE = 0.1
STEPS = 3


def initial_params(dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,)} | dict.fromkeys(TASKS, (4,))
    return {
        name: jnp.asarray(rng.normal(size=shape), dtype)
        for name, shape in shapes.items()
    }


def batch(seed, dtype="float32", size=6):
    """Inputs, shape (B, 3), and targets, shape (B, K)."""
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.normal(size=(size, columns)), dtype) for columns in (3, 3)
    )


def example_losses(params, data):
    """Per task, the losses of all examples, shape (B,)."""
    x, y = data
    # [None, :]: the tests of strict rank promotion use this too.
    hidden = jnp.tanh(x @ params["kernel"] + params["bias"][None, :])
    return {
        name: jnp.square(hidden @ params[name] - y[:, i])
        for i, name in enumerate(TASKS)
    }


def task_losses(params, data):
    return jax.tree.map(jnp.mean, example_losses(params, data))


def total_examples(params, data):
    return sum(example_losses(params, data).values())


def total_loss(params, data):
    return jnp.mean(total_examples(params, data))


def update(tx, params, state, data, examples=example_losses):
    """One update, with every extra argument that some method wants."""

    def loss_fn(p):
        return jax.tree.map(jnp.mean, examples(p, data))

    def example_loss_fn(p, index):
        return examples(p, tuple(array[index] for array in data))

    def modality_fn(p, present):
        """Of three modalities, the columns of the inputs."""
        x, y = data
        values = examples(p, (jnp.where(present[None, :], x, 0), y))
        return jax.tree.map(lambda losses: -jnp.mean(losses), values)

    return tx.update(
        samo_jax.mean_value_and_grad(loss_fn)(params)[1],
        state,
        params,
        loss_fn=loss_fn,
        example_losses=examples(params, data),
        example_loss_fn=example_loss_fn,
        modality_fn=modality_fn,
    )


def descend(
    tx, dtype="float32", examples=example_losses, *, steps=STEPS, compiled=False
):
    """The updates of some steps of descent, with a new batch at each.

    `tx` may be a function of the step; all then share one state. Compilation would take
    ten times as long, unless there is control flow.
    """
    at = tx if callable(tx) else lambda _step: tx
    params = initial_params(dtype)
    state, directions = at(0).init(params), []

    step = functools.partial(update, examples=examples)
    if compiled:
        step = jax.jit(step, static_argnums=0)
    for t in range(steps):
        direction, state = step(at(t), params, state, batch(t, dtype))
        params = jax.tree.map(lambda w, d: w - RATE * d, params, direction)
        directions.append(direction)
    return directions


descend_on_total = functools.partial(descend, examples=total_examples)


# By hand, in float64


def gradients(params, data):
    """The gradients of the K losses: a list of dicts."""
    x, y = (np.asarray(array, np.float64) for array in data)
    hidden = np.tanh(x @ params["kernel"] + params["bias"])
    rows = []
    for i, name in enumerate(TASKS):
        residual = 2 * (hidden @ params[name] - y[:, i]) / len(x)
        inner = np.outer(residual, params[name]) * (1 - hidden**2)
        row = {name: np.zeros_like(leaf) for name, leaf in params.items()}
        row |= {"kernel": x.T @ inner, "bias": inner.sum(0), name: hidden.T @ residual}
        rows.append(row)
    return rows


def total_gradient(params, data):
    return add(*gradients(params, data))


def descend_by_hand(direction, steps=STEPS):
    """The same as `descend`, with `direction(params, data)`."""
    params = {n: np.asarray(w) for n, w in initial_params("float64").items()}
    directions = []
    for t in range(steps):
        directions.append(direction(params, batch(t, "float64")))
        params = add(params, scale(directions[-1], -RATE))
    return directions


def add(*trees):
    return {name: sum(tree[name] for tree in trees) for name in trees[0]}


def scale(tree, factor):
    return {name: factor * leaf for name, leaf in tree.items()}


def inner_product(tree, other):
    return sum(np.sum(tree[name] * other[name]) for name in tree)


def norm(tree):
    return np.sqrt(inner_product(tree, tree))


def keep(tree, names):
    return {name: leaf for name, leaf in tree.items() if name in names}


def norm_groups(kind, head):
    """The names of the leaves that share a norm, for one task."""
    if kind == "together":
        return [(*SHARED, head)]
    if kind == "layerwise":
        return [(name,) for name in (*SHARED, head)]
    return [SHARED, (head,)]


def perturb(rule, params, p, groups):
    """`rule(params, p)` on every norm group; zero elsewhere."""
    eps = scale(params, 0.0)
    for group in groups:
        eps |= rule(keep(params, group), keep(p, group))
    return eps


# Every method, with several tasks and with one

RADIUS = 0.3
PERTURBATIONS = {
    "sam": lambda rho=RADIUS: samo_jax.sam(rho),
    "sam-local": lambda rho=RADIUS: samo_jax.sam(rho, direction="local"),
    "sam-joint-norm": lambda rho=RADIUS: samo_jax.sam(rho, norm="together"),
    "sam-masked": lambda rho=RADIUS: samo_jax.sam(
        rho, mask=dict.fromkeys(LABELS, True) | {"bias": False}
    ),
    "adaptive": lambda rho=RADIUS: samo_jax.adaptive_sam(rho),
    "monge": lambda rho=RADIUS: samo_jax.monge_sam(rho),
    "fisher": lambda rho=RADIUS: samo_jax.fisher_sam(rho),
    "layerwise": lambda rho=RADIUS: samo_jax.layerwise_sam(rho),
    "friendly": lambda rho=RADIUS: samo_jax.friendly_sam(rho),
    "momentum": lambda rho=RADIUS: samo_jax.momentum_sam(rho),
    "surrogate-gap": lambda rho=RADIUS: samo_jax.surrogate_gap_sam(rho),
    "surrogate-gap-local": lambda rho=RADIUS: samo_jax.surrogate_gap_sam(
        rho, direction="local"
    ),
    "efficient": lambda rho=RADIUS: samo_jax.efficient_sam(rho),
    "global": lambda rho=RADIUS: samo_jax.global_sam(rho),
    "local": lambda rho=RADIUS: samo_jax.local_sam(rho),
    "joint": lambda rho=RADIUS: samo_jax.joint_sam(rho),
    "joint-shared": lambda rho=RADIUS: samo_jax.joint_sam(
        rho, local=samo_jax.probe(shared=True)
    ),
    "joint-probes": lambda rho=RADIUS: samo_jax.joint_sam(
        rho, "adaptive", local=samo_jax.probe(num_probes=2, antithetic=False)
    ),
    "memory": lambda rho=RADIUS: samo_jax.memory_sam(rho),
    "memory-adaptive": lambda rho=RADIUS: samo_jax.memory_sam(
        rho, "adaptive", decay=0.5, dtype="bfloat16", clean_pass=False
    ),
}
# One point for all tasks, one for each, a few shared ones, and a memory.
REPRESENTATIVES = {"global", "local", "joint-shared", "memory"}


def multitask(perturbation, combiner=None, **kwargs):
    """Three tasks with heads."""
    defaults = {"num_tasks": 3, "key": 0, "param_labels": LABELS}
    combiner = samo_jax.mean() if combiner is None else combiner
    return samo_jax.multitask(combiner, perturbation, **defaults | kwargs)


def single_task(perturbation):
    return samo_jax.single_task(perturbation, key=0)
