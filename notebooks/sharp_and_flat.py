# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A sharp and a flat valley
#
# A landscape of our own: two valleys of equal depth, one twenty times as curved across
# as the other. Every step sees it shifted by noise, as minibatches shift a loss. Where
# do the sharpness-aware methods end, and how far may they look?

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import samo_jax


def loss(params, shift=(0.0, 0.0)):
    x, y = params["x"] + shift[0], params["y"] + shift[1]
    sharp = 10 * (x + 1) ** 2 + y**2 / 2
    flat = (x - 1.5) ** 2 / 2 + y**2 / 2
    return -0.1 * jax.nn.logsumexp(-jnp.array([sharp, flat]) / 0.1)


# %% [markdown]
# Every method as a function of its radius. Each is the first link of an Optax chain.

# %%
ONE = samo_jax.single_task
METHODS = {
    "gradient descent": lambda _: optax.with_extra_args_support(optax.identity()),
    "sam": lambda rho: ONE(samo_jax.sam(rho)),
    "layerwise_sam": lambda rho: ONE(samo_jax.layerwise_sam(rho / 2**0.5)),
    "adaptive_sam": lambda rho: ONE(samo_jax.adaptive_sam(rho)),
    "monge_sam": lambda rho: ONE(samo_jax.monge_sam(rho)),
    "fisher_sam": lambda rho: ONE(samo_jax.fisher_sam(rho)),
    "friendly_sam": lambda rho: ONE(samo_jax.friendly_sam(rho, sigma=0.5)),
    "surrogate_gap_sam": lambda rho: ONE(samo_jax.surrogate_gap_sam(rho, alpha=0.2)),
    "look_sam": lambda rho: samo_jax.look_sam(ONE(samo_jax.sam(rho)), every=5),
    "momentum_sam": lambda rho: ONE(samo_jax.momentum_sam(rho)),
}
RADII = jnp.array([0.05, 0.1, 0.2, 0.3, 0.4])
STEPS, RUNS = 400, 50


def train(method, rho, key):
    """One noisy run from a random start near the sharp valley."""
    start_key, noise_key = jax.random.split(key)
    params = {
        "x": jax.random.uniform(start_key, minval=-1.6, maxval=-0.7),
        "y": jnp.array(2.0),
    }
    tx = optax.chain(METHODS[method](rho), optax.sgd(0.03))

    def step(carry, noise):
        params, state = carry

        def loss_fn(params):
            return loss(params, noise)

        grads = jax.grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    noise = 0.15 * jax.random.normal(noise_key, (STEPS, 2))
    return jax.lax.scan(step, (params, tx.init(params)), noise)[1]


@jax.jit(static_argnums=0)
def train_all(method):
    """Trajectories of all runs with all radii, shape (radii, runs, steps)."""
    keys = jax.random.split(jax.random.key(0), RUNS)
    runs = jax.vmap(lambda rho, key: train(method, rho, key), (None, 0))
    return jax.vmap(runs, (0, None))(RADII, keys)


paths = {method: train_all(method) for method in METHODS}

# %% [markdown]
# Five runs of each with radius 0.2.

# %%
x, y = np.meshgrid(np.linspace(-2, 3.2, 120), np.linspace(-1, 2.4, 80))
height = jax.vmap(jax.vmap(lambda x, y: loss({"x": x, "y": y})))(x, y)
figure, axes = plt.subplots(2, 5, figsize=(13, 5), sharex=True, sharey=True)
for ax, (method, path) in zip(axes.flat, paths.items(), strict=True):
    ax.contourf(x, y, height, np.linspace(0, 5, 40), cmap="Greys", extend="max")
    for run in range(5):
        ax.plot(path["x"][2, run], path["y"][2, run], lw=0.8)
    ax.plot(-1, 0, "kx", 1.5, 0, "k*")
    ax.set_title(method, fontsize=10)
figure.suptitle("cross: sharp minimum, star: flat minimum")
figure.tight_layout()

# %% [markdown]
# The share of fifty runs that end in the flat valley, by radius. Gradient descent
# hardly ever leaves the sharp one. Momentum-SAM and adaptive SAM leave it most often
# here. SAM does so with a moderate radius only: with a large one it is caught between
# the valleys, where uphill from the flat one is the sharp one. Monge and Fisher SAM
# look less far where the slope is steep, as it is here, and stay.

# %%
share = np.array(
    [np.mean(p["x"][:, :, -50:].mean(-1) > -0.3, -1) for p in paths.values()]
)
figure, ax = plt.subplots(figsize=(6, 4.5))
image = ax.imshow(share, vmin=0, vmax=1, cmap="viridis", aspect="auto")
for (row, column), value in np.ndenumerate(share):
    color = "white" if value < 0.6 else "black"
    ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
ax.set_xticks(range(len(RADII)), [f"{rho:g}" for rho in np.asarray(RADII)])
ax.set_yticks(range(len(paths)), paths)
ax.set_xlabel("rho")
ax.set_title("share of runs that end in the flat valley")
figure.tight_layout()
