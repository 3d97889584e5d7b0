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
# # Why flat minima help
#
# Three questions: Do sharpness-aware methods leave sharp valleys? What do they do where
# tasks conflict? And is what they find in a real network flatter, and better?

# %%
import io
import os
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown
from PIL import Image

import samo_jax
from samo_jax.experiments.problems.generated import digits
from samo_jax.experiments.reports.sharpness import (
    hessian_eigenvalues,
    loss_slice,
    random_directions,
    sharpness,
)
from samo_jax.experiments.reports.sharpness_plots import plot_slices, plot_spectra
from samo_jax.experiments.reports.tables import markdown_table
from samo_jax.experiments.studies.toy.descent import descend, ends_of
from samo_jax.experiments.studies.toy.landscapes import (
    LANDSCAPES,
    distance_to_front,
    grid,
    pareto_front,
    stacked_losses,
)
from samo_jax.experiments.studies.toy.plots import COLORS, plot
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.optimizers import make_optimizer
from samo_jax.experiments.training.train_step import make_train_step, task_losses
from samo_jax.experiments.training.trainer import Trainer

plt.rcParams["axes.prop_cycle"] = plt.cycler(
    color=[
        COLORS[name]
        for name in ("plain", "global_sam", "samo", "local_sam", "memory_sam", "f_mtl")
    ]
)
QUICK = "QUICK" in os.environ  # QUICK=1: least data, the first and the last method
EPOCHS, PICTURES, POINTS = (1, 20, 5) if QUICK else (30, 500, 17)


def chosen(methods):
    methods = list(methods)
    return methods[:: len(methods) - 1] if QUICK else methods


def picture(draw, *args):
    """What a plotting function writes into a file, in few colours to keep it small."""
    file = io.BytesIO()
    draw(*args, file)
    return Image.open(file).convert("RGB").quantize(128)


# %% [markdown]
# ## A sharp and a flat valley
#
# Two losses of two parameters that share two valleys of equal depth, one twenty times
# as curved across as the other. Every step sees the landscape shifted by noise, as
# minibatches shift a loss. Every run starts near the sharp valley. Each method, as a
# function of its radius, is the first link of an Optax chain; the combiner is the mean.

# %%
valleys = LANDSCAPES["valleys"]
mean = partial(samo_jax.multitask, samo_jax.mean(), num_tasks=2)
METHODS = {
    "plain": lambda _: mean(),
    "global_sam": lambda rho: mean(samo_jax.global_sam(rho)),
    "local_sam": lambda rho: mean(samo_jax.local_sam(rho)),
    "samo": lambda rho: mean(samo_jax.joint_sam(rho), key=0),
    "adaptive_sam": lambda rho: mean(samo_jax.adaptive_sam(rho)),
    "monge_sam": lambda rho: mean(samo_jax.monge_sam(rho)),
    "fisher_sam": lambda rho: mean(samo_jax.fisher_sam(rho)),
    "friendly_sam": lambda rho: mean(samo_jax.friendly_sam(rho, sigma=0.5)),
    "surrogate_gap_sam": lambda rho: mean(samo_jax.surrogate_gap_sam(rho, alpha=0.2)),
    "look_sam": lambda rho: samo_jax.look_sam(mean(samo_jax.global_sam(rho)), every=5),
    "momentum_sam": lambda rho: mean(samo_jax.momentum_sam(rho)),
}
RADII = jnp.array([0.05, 0.1, 0.2, 0.3, 0.4])
STEPS, RUNS = 400, 50


def train_one(method, rho, key):
    """One noisy run from a random start near the sharp valley."""
    start_key, noise_key = jax.random.split(key)
    start = jax.random.uniform(start_key, minval=-1.6, maxval=-0.7)
    params = jnp.stack([start, 2.0])
    tx = optax.chain(METHODS[method](rho), optax.sgd(0.03))

    def step(carry, shift):
        params, state = carry

        def loss_fn(params):
            return valleys.losses(params + shift)

        _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    shifts = 0.15 * jax.random.normal(noise_key, (STEPS, 2))
    return jax.lax.scan(step, (params, tx.init(params)), shifts)[1]


@partial(jax.jit, static_argnums=0)
def train_all(method):
    """Trajectories of all runs with all radii, shape (radii, runs, steps, 2)."""
    keys = jax.random.split(jax.random.key(0), RUNS)
    runs = jax.vmap(partial(train_one, method), (None, 0))
    return jax.vmap(runs, (0, None))(RADII, keys)


paths = {method: train_all(method) for method in chosen(METHODS)}

# %% [markdown]
# Five runs of some of them with radius 0.2. Cross: the sharp minimum of the mean loss,
# star: the flat one.

# %%
points = grid(valleys, 120)
height = stacked_losses(valleys, points).mean(-1)
SHOWN = "plain", "global_sam", "samo", "local_sam", "adaptive_sam", "momentum_sam"
figure, axes = plt.subplots(
    2, 3, figsize=(10, 4.6), sharex=True, sharey=True, layout="constrained"
)
levels = np.linspace(0.5, 5.5, 16)
greys = plt.get_cmap("Greys")(np.linspace(0, 0.55, len(levels)))
for ax, method in zip(axes.flat, chosen(SHOWN), strict=False):
    ax.contourf(*points.transpose(2, 0, 1), height, levels, colors=greys, extend="max")
    for run in range(5):
        ax.plot(*paths[method][2, run].T, color=f"C{SHOWN.index(method)}", lw=0.6)
    ax.plot(-1, 0, "kX", 1.5, 0, "k*", mec="white", ms=10)
    ax.set(title=method, xlim=(-2.2, 2.75), ylim=(-1, 2.3))
figure.supxlabel("x")
figure.supylabel("y")
plt.show()

# %% [markdown]
# The share of fifty runs that end in the flat valley, by radius.

# %%
ends = {method: path[:, :, -50:].mean(2) for method, path in paths.items()}
share = np.array([valleys.is_flat(end).mean(-1) for end in ends.values()])
figure, ax = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
ax.imshow(share, vmin=0, vmax=1, cmap="viridis", aspect="auto")
for (row, column), value in np.ndenumerate(share):
    color = "white" if value < 0.6 else "black"
    ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
ax.set_xticks(range(len(RADII)), [f"{rho:g}" for rho in np.asarray(RADII)])
ax.set_yticks(range(len(paths)), paths)
ax.set(xlabel="radius rho", title="share of runs that end in the flat valley")
plt.show()

# %% [markdown]
# Plain descent hardly ever leaves the sharp valley. Global and local SAM and SAMO do in
# a quarter to a third of the runs, and with a moderate radius only: with a large one
# they are caught between the valleys, where uphill from the flat one is the sharp one.
# Friendly and surrogate-gap SAM are like SAM. Adaptive SAM and momentum-SAM leave it
# most often here. Monge and Fisher SAM look less far where the slope is steep, as it is
# here, and stay.

# %% [markdown]
# ## Two tasks in conflict
#
# CAGrad's toy problem: above, narrow valleys, one for each task, in conflict; below,
# two bowls and the Pareto set between them (black). Adam, 3000 steps from five starts.
# On the right the same in losses.

# %%
cagrad = LANDSCAPES["cagrad"]
front = pareto_front(cagrad)
texts = [
    combiner + perturbation
    for combiner in ("mean", "fairgrad")
    for perturbation in ("", "+global_sam", "+samo")
]
paths = {text: descend("cagrad", text, seed=0) for text in chosen(texts)}
ends = {text: ends_of(path) for text, path in paths.items()}
picture(plot, cagrad, front, paths, ends)

# %% [markdown]
# Steps to within 0.5 of the Pareto front, in losses, from each start.


# %%
def steps_to_front(path):
    """For each start; "never" if not within the run."""
    distance = distance_to_front(stacked_losses(cagrad, path[:, ::20]), front)
    arrived = distance < 0.5
    return [str(20 * row.argmax()) if any(row) else "never" for row in arrived]


starts = [f"({x:g}, {y:g})" for x, y in cagrad.starts]
rows = [["method", *starts]]
rows += [[text, *steps_to_front(path)] for text, path in paths.items()]
Markdown(markdown_table(rows))

# %% [markdown]
# The third start leads into a narrow valley, where the mean of two conflicting
# gradients zigzags. How long that takes is a matter of chance, and no perturbation
# shortens it reliably: from there the mean is quickest with global SAM, but with SAMO
# 3000 steps are not enough, and from the first start global SAM is the slowest of the
# three.
#
# FairGrad takes some 1200 steps from the third start and less than half the mean's time
# from three others, and the perturbations make no difference to it. The mean ends near
# the middle of the front more often, FairGrad's ends spread along it. Here conflict is
# what holds training up, not sharpness, and the combiner is the remedy.

# %% [markdown]
# ## A real network
#
# Two overlaid handwritten digits, a small CNN with two heads, Adam, the mean of the
# losses; plain, with global SAM, with SAMO. Data, initialisation and batches are the
# same. Every fifth step we look at the Gramian of the two tasks' gradients on the
# shared parameters.

# %%
benchmark = digits("test")
tasks = tuple(benchmark.tasks)
net = benchmark.net(tasks)
train_losses = partial(task_losses, benchmark, net)


def losses(params, batch):
    return train_losses(params, batch)[0]


def split(params):
    """Shared parameters and heads."""
    heads = {name: params[name] for name in tasks}
    return {name: params[name] for name in params if name not in tasks}, heads


@jax.jit
def shared_gramian(params, batch):
    grads = samo_jax.task_gradients(partial(losses, batch=batch), params)
    return samo_jax.gramian(split(grads)[0])


def train(text):
    """The parameters, and a Gramian every five steps, shape (epochs, 4, 2, 2)."""
    tx = make_optimizer(method_of(text), benchmark, seed=0)
    step = make_train_step(train_losses, tx)
    params = jax.jit(net.init)(jax.random.key(0), benchmark.train.inputs[:1])["params"]
    state, rng, gramians = tx.init(params), np.random.default_rng(0), []
    for _ in range(EPOCHS):
        batches = benchmark.train.batches(benchmark.batch_size, rng)
        for index, batch in enumerate(batches):
            if index % 5 == 0:
                gramians.append(shared_gramian(params, batch))
            params, state, *_ = step(params, state, batch, batch, batch)
    return params, np.reshape(gramians, (EPOCHS, -1, 2, 2))


VARIANTS = {"plain": "mean", "global_sam": "mean+global_sam", "samo": "mean+samo"}
trained = {name: train(VARIANTS[name]) for name in chosen(VARIANTS)}

# %%
figure, axes = plt.subplots(
    1, 3, figsize=(11, 3), sharex=True, sharey=True, layout="constrained"
)
epochs = 0.5 + np.arange(EPOCHS)
for ax, (name, (_, gramians)) in zip(axes, trained.items(), strict=False):
    cosines = np.asarray(samo_jax.gradient_cosines(gramians)[..., 0, 1])
    conflicts = np.mean(samo_jax.conflict_rate(gramians))
    steps = np.linspace(0, EPOCHS, cosines.size, endpoint=False)
    ax.plot(steps, cosines.ravel(), ".", color=COLORS[name], alpha=0.4)
    ax.plot(epochs, cosines.mean(-1), color=COLORS[name])
    ax.axhline(0, color="black", lw=0.8)
    ax.set(title=f"{name}: conflict in {100 * conflicts:.0f} %", xlabel="epoch")
axes[0].set_ylabel("cosine of the tasks' gradients")
plt.show()

# %% [markdown]
# Now the minima. The loss is the mean over tasks on 500 training pictures, as a
# function of the shared parameters: the largest eigenvalues of its Hessian, and how
# much it increases at a distance of 0.2, along its gradient g (SAM's step) and in
# random directions.

# %%
seen = benchmark.train.take(slice(PICTURES))
mean_loss = jax.jit(lambda params, batch: sum(losses(params, batch).values()) / 2)
evaluate = Trainer(benchmark, method_of("mean")).evaluate


def loss_of_shared(params):
    """The loss on `seen` as a function of the shared parameters."""
    _, heads = split(params)
    return lambda shared: mean_loss({**shared, **heads}, seen)


spectra = {}
header = ["training loss", "test loss", "test accuracy %", "λ1", "along g", "random"]
rows = [["", *header]]
for name, (params, _) in trained.items():
    (shared, _), loss_fn = split(params), loss_of_shared(params)
    spectra[name] = hessian_eigenvalues(loss_fn, shared, num=10)
    numbers = [
        mean_loss(params, benchmark.train),
        mean_loss(params, benchmark.evaluation),
        np.mean([of["accuracy"] for of in evaluate(params).values()]),
        spectra[name][0],
        *sharpness(loss_fn, shared, 0.2, key=jax.random.key(0)),
    ]
    rows.append([name, *(f"{number:.2g}" for number in numbers)])
Markdown(markdown_table(rows))

# %%
picture(plot_spectra, spectra)

# %% [markdown]
# Slices of the loss through each minimum, up to a distance of 0.3: the first direction
# is the gradient's, the second one random.

# %%
slices = {}
for name, (params, _) in trained.items():
    (shared, _), loss_fn = split(params), loss_of_shared(params)
    directions = (
        jax.grad(loss_fn)(shared),
        random_directions(jax.random.key(0), shared)[0],
    )
    unit = tuple(samo_jax.scale_to_radius(d, 1.0) for d in directions)
    slices[name] = loss_slice(loss_fn, shared, unit, extent=0.3, points=POINTS)
picture(plot_slices, slices, 0.3)

# %% [markdown]
# What we see, on one seed:
#
# - **Conflicts.** The tasks' gradients conflict in a third of the plain steps and in a
#   few percent of those of global SAM and SAMO, whose cosines are higher throughout.
# - **Sharpness.** Plain training comes to the lowest training loss and to the sharpest
#   minimum: its largest eigenvalue is more than ten times that of the others, and along
#   the gradient the loss rises twenty times as much. In random directions nothing
#   rises: slices along these alone would show no difference.
# - **Generalisation.** The flatter minima have the lower test loss and a point more of
#   accuracy.
# - **Global SAM and SAMO** cannot be told apart in any of this.
#   [With more seeds and tasks](../docs/local_parts.md) neither can.
