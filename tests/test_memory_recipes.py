"""Recipes of docs/scale.md: the same direction in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samo_jax

from tiers import mostly_slow

NUM_TASKS, WIDTH, DEPTH, EXAMPLES = 8, 16, 6, 1024


def block(hidden, kernels):
    wide = jnp.tanh(hidden @ kernels["up"])
    return hidden + wide @ kernels["down"], None


def task_losses(params, batch, block=block):
    hidden, _ = jax.lax.scan(block, batch["x"], params["blocks"])
    return jnp.mean((hidden @ params["heads"] - batch["y"]) ** 2, axis=0)


LOSSES = {
    "direct": task_losses,
    "remat": functools.partial(task_losses, block=jax.checkpoint(block)),
    "micro-batches": optax.microbatch(
        jax.checkpoint(task_losses),
        argnums=1,
        microbatch_size=EXAMPLES // 8,
        accumulator=optax.microbatching.AccumulationType.MEAN,
    ),
}
PERTURBATIONS = {
    "plain": None,
    "samo": samo_jax.joint_sam(0.3),
    "shared probe": samo_jax.joint_sam(0.3, local=samo_jax.probe(shared=True)),
}


def problem():
    rng = np.random.default_rng(0)
    shapes = {"up": (DEPTH, WIDTH, 4 * WIDTH), "down": (DEPTH, 4 * WIDTH, WIDTH)}
    params = {
        "blocks": {n: 0.1 * rng.normal(size=shape) for n, shape in shapes.items()},
        "heads": rng.normal(size=(WIDTH, NUM_TASKS)),
    }
    batch = {
        "x": rng.normal(size=(EXAMPLES, WIDTH)),
        "y": rng.normal(size=(EXAMPLES, NUM_TASKS)),
    }
    return jax.tree.map(np.float32, (params, batch))


def compiled_update(loss_fn, params, perturbation, num_tasks=NUM_TASKS, **options):
    """Clean pass and update."""
    tx = samo_jax.multitask(
        samo_jax.fairgrad(),
        PERTURBATIONS[perturbation],
        num_tasks=num_tasks,
        key=0,
        **options,
    )

    def update(params, batch):
        def losses(params):
            return loss_fn(params, batch)

        grads = samo_jax.mean_value_and_grad(losses)(params)[1]
        return tx.update(grads, tx.init(params), params, loss_fn=losses)[0]

    return jax.jit(update).lower(params, problem()[1]).compile()


@functools.cache
def direction_and_bytes(losses, perturbation, **options):
    """An update, and its temporary memory."""
    params, batch = problem()
    update = compiled_update(LOSSES[losses], params, perturbation, **options)
    return update(params, batch), update.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("perturbation", "losses", "options", "unroll", "share"),
    [
        ("samo", "direct", {"unroll": 2}, True, 0.4),
        ("shared probe", "remat", {"unroll": False}, False, 0.3),
        ("shared probe", "micro-batches", {"unroll": False}, False, 0.2),
        ("shared probe", "micro-batches", {"gramian_block": 1}, False, 0.1),
    ],
)
def test_same_direction_in_less_memory(perturbation, losses, options, unroll, share):
    expected, most = direction_and_bytes("direct", perturbation, unroll=unroll)
    found, used = direction_and_bytes(losses, perturbation, **options)
    error = optax.tree.norm(optax.tree.sub(found, expected))
    assert error < 1e-5 * optax.tree.norm(expected)
    assert used < share * most


@pytest.mark.parametrize(
    "perturbation", mostly_slow(PERTURBATIONS, but={"shared probe"})
)
def test_only_gradients_are_held_for_every_task(perturbation, monkeypatch):
    """On one device; over several XLA for CPUs transposes a copy for the Gramian."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    num_tasks, width, depth = 20, 100, 4

    def losses(params, batch):
        hidden = batch["x"][:2, :1] * jnp.ones(width)
        for kernel in params["trunk"]:
            hidden = jnp.tanh(hidden @ kernel)
        return jnp.mean((hidden @ params["heads"] - 1) ** 2, axis=0)

    heads = jnp.ones((width, num_tasks))
    params = {"trunk": [jnp.eye(width)] * depth, "heads": heads}
    options = {"num_tasks": num_tasks, "unroll": False}
    update = compiled_update(losses, params, perturbation, **options)
    temporary = update.memory_analysis().temp_size_in_bytes
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    # The others: random bits, probe, points, perturbation, one gradient.
    assert temporary / size < num_tasks + 10


@pytest.mark.parametrize("perturbation", mostly_slow(["samo", "plain"], but={"samo"}))
def test_a_loop_holds_each_head_once(perturbation):
    """And not one of each task's for each task."""
    num_tasks, width = 12, 3000
    names = [f"task{i}" for i in range(num_tasks)]
    params = {"trunk": jnp.ones(3), "heads": {name: jnp.ones(width) for name in names}}
    labels = {"trunk": "shared", "heads": {name: name for name in names}}

    def losses(params, batch):
        level = jnp.sum(params["trunk"] * batch["x"][0, :1])
        return {
            name: jnp.mean((head * level - i) ** 2)
            for i, (name, head) in enumerate(params["heads"].items())
        }

    options = {"num_tasks": num_tasks, "unroll": False, "param_labels": labels}
    update = compiled_update(losses, params, perturbation, **options)
    temporary = update.memory_analysis().temp_size_in_bytes
    assert temporary / params["heads"]["task0"].nbytes < 8 * num_tasks
