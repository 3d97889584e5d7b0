"""Two Pareto fronts, each of trainings in one program: writes docs/guide/pareto.png."""

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax

import samo_jax
from samo_jax.experiments.data.digits import TASKS, Pairs, multi_digits

OUTPUT = Path(__file__).parents[1] / "docs" / "guide" / "pareto.png"
SEEDS, PREFERENCES = 3, 11
CENTRES = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
WIDTH, BATCH, RATE = 6, 200, 0.01


def toy_losses(x: jax.Array) -> dict[str, jax.Array]:
    """Squared distances to two points."""
    left, right = jnp.sum((x - CENTRES) ** 2, axis=1)
    return {"left": left, "right": right}


def train_toy(preference: jax.Array, key: jax.Array, steps: int) -> dict:
    """The losses at the end of a training."""
    x = jax.random.normal(key, (2,))
    combiner = samo_jax.stch(mu=0.01, preference=preference)
    schedule = optax.cosine_decay_schedule(0.05, steps)
    first = samo_jax.multitask(combiner, num_tasks=2)
    tx = optax.chain(first, optax.sgd(schedule))

    def step(carry, _):
        x, state = carry
        _, grads = samo_jax.mean_value_and_grad(toy_losses)(x)
        updates, state = tx.update(grads, state, x, loss_fn=toy_losses)
        return (optax.apply_updates(x, updates), state), None

    (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=steps)
    return toy_losses(x)


def logits(params: dict, images: jax.Array) -> dict[str, jax.Array]:
    """A narrow trunk, and a linear head a task."""
    hidden = jnp.tanh(images.reshape(len(images), -1) @ params["trunk"])
    return {name: hidden @ params[name] for name in TASKS}


def digit_losses(params: dict, images: jax.Array, labels: dict) -> dict:
    """Cross-entropies."""
    outputs = logits(params, images)
    loss = optax.softmax_cross_entropy_with_integer_labels
    return {name: jnp.mean(loss(outputs[name], labels[name])) for name in TASKS}


def train_digits(
    preference: jax.Array, key: jax.Array, data: Pairs, held_out: Pairs, steps: int
) -> dict:
    """The errors on held-out pairs, in percent."""
    keys = jax.random.split(key, 5)
    shapes = {"trunk": (144, WIDTH), **dict.fromkeys(TASKS, (WIDTH, 10))}
    params = {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for (name, shape), key in zip(shapes.items(), keys, strict=False)
    }
    combiner = samo_jax.stch(mu=0.1, preference=preference)
    labels = {"trunk": "shared", **{name: name for name in TASKS}}
    tx = optax.chain(
        samo_jax.samo(combiner, 0.05, num_tasks=2, key=keys[3], param_labels=labels),
        optax.adam(optax.cosine_decay_schedule(RATE, steps)),
    )

    def step(carry, key):
        params, state = carry
        rows = jax.random.choice(key, len(data.images), (BATCH,))
        batch = jax.tree.map(lambda x: x[rows], tuple(data))
        loss_fn = partial(digit_losses, images=batch[0], labels=batch[1])
        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        return (optax.apply_updates(params, updates), state), None

    drawn = jax.random.split(keys[4], steps)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), drawn)
    outputs = logits(params, held_out.images)
    return {
        name: 100 * jnp.mean(outputs[name].argmax(-1) != held_out.labels[name])
        for name in TASKS
    }


def preferences(least: float) -> jax.Array:
    """Pairs that sum to one."""
    first = jnp.linspace(least, 1 - least, PREFERENCES)
    return jnp.stack([first, 1 - first], axis=1)


def timed(function, *args) -> tuple[dict, float]:
    """The result of a compiled call, and its seconds."""
    compiled = jax.jit(function).lower(*args).compile()
    start = time.perf_counter()
    result = jax.block_until_ready(compiled(*args))
    return result, time.perf_counter() - start


def main() -> None:
    """Train, time, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), SEEDS)
    data, held_out = jax.tree.map(jnp.asarray, multi_digits())
    _, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    digits = partial(train_digits, data=data, held_out=held_out, steps=arguments.steps)
    toy = partial(train_toy, steps=arguments.steps)
    for ax, train, least in zip(axes, (toy, digits), (0.02, 0.1), strict=True):
        pairs = preferences(least)
        over_seeds = jax.vmap(train, in_axes=(None, 0))
        front, together = timed(jax.vmap(over_seeds, in_axes=(0, None)), pairs, keys)
        one = jax.jit(train).lower(pairs[0], keys[0]).compile()
        start = time.perf_counter()
        for pair in pairs:
            for key in keys:
                jax.block_until_ready(one(pair, key))
        apart = time.perf_counter() - start
        print(f"one program {together:.2f} s, one after the other {apart:.2f} s")
        for pair, *points in zip(pairs, *front.values(), strict=True):
            print(f"{pair[0]:.2f}", *(f"{np.mean(x):.3f}" for x in points))
        colours = np.repeat(pairs[:, 0], SEEDS)
        drawn = ax.scatter(
            *(x.ravel() for x in front.values()),
            c=colours,
            cmap="viridis",
            vmin=0,
            vmax=1,
            zorder=2,
        )
    ideal = np.linspace(0, 2, 200)
    axes[0].plot(ideal**2, (2 - ideal) ** 2, color="0.6", zorder=1, label="true front")
    axes[0].legend(frameon=False)
    axes[0].set(title="Two distances", xlabel="loss, left", ylabel="loss, right")
    unit = "held-out error, {} (%)"
    axes[1].set(
        title="Two overlaid digits",
        **dict(zip(("xlabel", "ylabel"), map(unit.format, TASKS), strict=True)),
    )
    plt.colorbar(drawn, ax=axes, label="preference of left")
    plt.savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
