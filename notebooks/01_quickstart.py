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
# # Quickstart
#
# From an ordinary Flax training loop to SAMO in three changed lines. The tasks: name
# the left and the right one of two overlaid handwritten digits.

# %%
import os
import time
from functools import partial

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown

import samo_jax
from samo_jax.experiments.data.digits import TASKS, multi_digits
from samo_jax.experiments.problems.benchmark import Examples
from samo_jax.experiments.reports.tables import markdown_table

QUICK = "QUICK" in os.environ  # QUICK=1: one epoch, the first and the last method
EPOCHS = 1 if QUICK else 30


def chosen(methods):
    methods = list(methods)
    return methods[:: len(methods) - 1] if QUICK else methods


# %% [markdown]
# ## The data
#
# Pictures of 12 by 12 pixels, and two labels each. No handwritten digit is in both
# sets.

# %%
train, test = (Examples(*pairs) for pairs in multi_digits())
figure, axes = plt.subplots(2, 9, figsize=(9, 2.6), layout="constrained")
for index, ax in enumerate(axes.flat):
    ax.imshow(train.inputs[index, ..., 0], cmap="gray_r")
    ax.set_title(", ".join(str(train.labels[task][index]) for task in TASKS))
    ax.axis("off")

# %% [markdown]
# ## The ordinary loop
#
# A network with a head per task, the losses by task, and a step on their mean. The
# optimiser is an argument of the step, so that others can take its place below.


# %%
class TwoDigits(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (3, 3))(images))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return {task: nn.Dense(10, name=task)(x) for task in TASKS}


net = TwoDigits()
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def task_losses(params, batch):
    logits = net.apply({"params": params}, batch.inputs)
    return {
        task: cross_entropy(logits[task], batch.labels[task]).mean() for task in TASKS
    }


def mean_loss(params, batch):
    return sum(task_losses(params, batch).values()) / len(TASKS)


@partial(jax.jit, static_argnums=0)
def plain_step(tx, params, opt_state, batch):
    losses, grads = jax.value_and_grad(mean_loss)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, losses


@jax.jit
def accuracy(params, examples):
    logits = net.apply({"params": params}, examples.inputs)
    return {
        task: 100 * (logits[task].argmax(-1) == examples.labels[task]).mean()
        for task in TASKS
    }


def fit(train_step, tx):
    """Train; return parameters, optimiser state and a record of every epoch."""
    params = jax.jit(net.init)(jax.random.key(0), train.inputs[:1])["params"]
    opt_state, rng = tx.init(params), np.random.default_rng(0)
    record = {"loss": [], "weights": [], "accuracy": [], "ms": []}
    for _ in range(EPOCHS):
        start, losses, weights = time.process_time(), [], []
        for batch in train.batches(100, rng):
            params, opt_state, loss = train_step(tx, params, opt_state, batch)
            losses.append(loss)
            weights.append(optax.tree.get(opt_state, "weights"))
        losses = jax.device_get(losses)
        record["ms"].append(1000 * (time.process_time() - start) / len(losses))
        record["loss"].append(np.mean(jax.tree.leaves(losses)))
        record["weights"].append(weights)
        record["accuracy"].append(list(accuracy(params, test).values()))
    return params, opt_state, record


tx = optax.adam(1e-3)
params, opt_state, plain = fit(plain_step, tx)
dict(zip(TASKS, plain["accuracy"][-1], strict=True))

# %% [markdown]
# ## Three lines to SAMO
#
# ```diff
# -tx = optax.adam(1e-3)
# +tx = optax.chain(
# +    samo_jax.samo(
# +        samo_jax.fairgrad(), RHO, num_tasks=2, key=0, param_labels=labels
# +    ),
# +    optax.adam(1e-3),
# +)
#
#  def step(tx, params, opt_state, batch):
# -    losses, grads = jax.value_and_grad(mean_loss)(params, batch)
# +    losses, grads = samo_jax.mean_value_and_grad(task_losses)(params, batch)
# -    updates, opt_state = tx.update(grads, opt_state, params)
# +    updates, opt_state = tx.update(
# +        grads, opt_state, params, loss_fn=partial(task_losses, batch=batch)
# +    )
#      return optax.apply_updates(params, updates), opt_state, losses
# ```
#
# `samo` is first in the chain: it takes the gradient of the mean loss and hands another
# direction on to Adam. `loss_fn` is how it sees the tasks one by one, at other points.
#
# `param_labels` says which parameters belong to one task alone, by the name that its
# loss has in `task_losses`: such a head gets its own task's gradient, unweighted.
# Without labels everything counts as shared.


# %%
def labels(params):
    return {name: name if name in TASKS else "shared" for name in params}


@partial(jax.jit, static_argnums=0)
def samo_step(tx, params, opt_state, batch):
    losses, grads = samo_jax.mean_value_and_grad(task_losses)(params, batch)
    updates, opt_state = tx.update(
        grads, opt_state, params, loss_fn=partial(task_losses, batch=batch)
    )
    return optax.apply_updates(params, updates), opt_state, losses


RHO = 0.2  # how far to look; tune it on a logarithmic grid, say 0.01 to 1
tasks = {"num_tasks": len(TASKS), "param_labels": labels}
tx = optax.chain(
    samo_jax.samo(samo_jax.fairgrad(), RHO, key=0, **tasks), optax.adam(1e-3)
)
params, opt_state, samo = fit(samo_step, tx)
labels(params)

# %%
COLORS = {"plain": "#d55e00", "samo": "#009e73"}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
epochs = 1 + np.arange(EPOCHS)
for (name, color), record in zip(COLORS.items(), (plain, samo), strict=True):
    axes[0].semilogy(epochs, record["loss"], color=color, label=name)
    for line, values in zip(("-", "--"), np.transpose(record["accuracy"]), strict=True):
        axes[1].plot(epochs, values, line, color=color)
shares = np.array(samo["weights"])
shares /= shares.sum(-1, keepdims=True)
for task, line, share in zip(TASKS, ("-", "--"), shares.mean(1).T, strict=True):
    axes[2].plot(epochs, share, line, color=COLORS["samo"], label=task)
axes[0].set(ylabel="training loss, mean over tasks")
axes[1].set(ylabel="test accuracy, %", ylim=(90, 99))
axes[2].set(ylabel="share of the weights", ylim=(0, 1))
for ax in axes:
    ax.set_xlabel("epoch")
    ax.grid(alpha=0.3)
axes[0].legend()
axes[2].legend(title="task, also in the middle")
plt.show()

# %% [markdown]
# With SAMO the training loss falls more slowly, and ends close to plain training's. Its
# test accuracy is lower for the first dozen epochs and ends a point (right) or two
# (left) higher. FairGrad's weights do not sum to one, hence shares; they stay near a
# half, for the two tasks are alike.

# %% [markdown]
# ## Another combiner, another perturbation
#
# One line each: the combiner is the first argument
# ([all of them](../docs/combiners.md)), and `multitask` takes any perturbation
# ([all of them](../docs/sharpness.md)). `samo` is `multitask` with `joint_sam`.

# %%
METHODS = {
    "FairGrad": samo_jax.multitask(samo_jax.fairgrad(), **tasks),
    "FairGrad, global SAM": samo_jax.multitask(
        samo_jax.fairgrad(), samo_jax.global_sam(RHO), **tasks
    ),
    "FairGrad, F-MTL": samo_jax.f_mtl(samo_jax.fairgrad(), 2 * RHO, **tasks),
    "MGDA, SAMO": samo_jax.samo(samo_jax.mgda(), RHO, key=0, **tasks),
}
records = {
    "mean (plain)": plain,
    **{
        name: fit(samo_step, optax.chain(METHODS[name], optax.adam(1e-3)))[-1]
        for name in chosen(METHODS)
    },
    "FairGrad, SAMO": samo,
}

rows = [["method", *(f"{task} %" for task in TASKS), "mean %", "CPU ms a step"]]
for name, record in records.items():
    final = record["accuracy"][-1]
    numbers = [*final, np.mean(final), np.median(record["ms"][1:] or record["ms"])]
    rows.append([name, *(f"{number:.1f}" for number in numbers)])
Markdown(markdown_table(rows))

# %% [markdown]
# Every perturbation gains 1.4 to 2.5 points over the plain mean; the combiner alone
# gains nothing. SAMO and global SAM cannot be told apart on one seed: with three
# ([README](../README.md)) the spread is some 0.3 points, and they are equal too. F-MTL
# comes out best here, as in [a comparison with five seeds](../docs/local_parts.md).
#
# What a step costs: the mean takes one forward and one backward pass, FairGrad one more
# backward pass for each of the K tasks. On top of FairGrad's, global SAM takes one
# forward pass, F-MTL K forward and backward passes, SAMO 3K forward passes. The times
# here, summed over CPU threads, are a rough guide;
# [a benchmark](../docs/step_benchmark.md) has better ones.

# %% [markdown]
# ## Reading what happens
#
# The state holds the weights of the last step, in task order, and whatever the combiner
# and the perturbation keep. `optax.tree.get` finds them in any chain.

# %%
print("weights", optax.tree.get(opt_state, "weights"))
print("step   ", optax.tree.get(opt_state, "step"))

# %% [markdown]
# Pure functions tell the rest: the gradients of all tasks, their inner products,
# whether they conflict, and what a combiner makes of them.


# %%
@jax.jit
def shared_gramian(params, batch):
    task_grads = samo_jax.task_gradients(partial(task_losses, batch=batch), params)
    return samo_jax.gramian(
        {name: grads for name, grads in task_grads.items() if name not in TASKS}
    )


batch = train.take(slice(100))
gramian = shared_gramian(params, batch)
weights, info = samo_jax.fairgrad_weights(gramian, return_info=True)
print("norms    ", np.sqrt(np.diag(gramian)))
print("cosine   ", samo_jax.gradient_cosines(gramian)[0, 1])
print("conflicts", samo_jax.conflict_rate(gramian))
print("FairGrad ", weights)
print("solved   ", info.converged, "with residual", info.residual)

# %% [markdown]
# On this batch the left task's gradient is four times as long as the right one's, and
# they hardly share a direction. FairGrad then weighs each about inversely to its
# length, so that both tasks gain.

# %% [markdown]
# ## Common mistakes
#
# An error names the argument, what it got and the remedy. Two that everybody meets:


# %%
def message(function, *args, **kwargs):
    """Of the error that a call must end in."""
    try:
        function(*args, **kwargs)
    except ValueError as error:
        return str(error)
    raise AssertionError("no error")


def unreduced(params):
    logits = net.apply({"params": params}, batch.inputs)
    return {task: cross_entropy(logits[task], batch.labels[task]) for task in TASKS}


grads = jax.jit(jax.grad(mean_loss))(params, batch)
print(message(tx.update, grads, opt_state, params))
print()
print(message(tx.update, grads, opt_state, params, loss_fn=unreduced))

# %% [markdown]
# What raises no error:
#
# - **The radius.** `rho` is a length in the space of all shared parameters. Too small
#   does nothing, too large does not train. It carries over neither between methods nor
#   between networks.
# - **Order.** `samo` comes first; clipping, weight decay, Adam and `optax.MultiSteps`
#   come after it.
# - **Dropout.** `loss_fn` must close over *one* key, the clean pass's.
# - **Batch norm.** Only the clean pass may update the statistics:
#   `mean_value_and_grad(..., has_aux=True)`; `loss_fn` returns losses alone.
#
# [README](../README.md) has recipes for these, for Flax nnx, Equinox, `TrainState`,
# gradient accumulation and schedules.
