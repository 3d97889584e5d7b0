"""Tasks whose examples have any number of classes at once, each above a threshold."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samo_jax.experiments.problems.tasks import Observed, Task


def label_set(class_weights: np.ndarray | None = None) -> Task:
    """Cross-entropy of C classes, and F1 with thresholds chosen on other examples.

    Outputs are logits (N, C), of one class also (N,). Labels of training are 0 or 1,
    shape (N, C). Those of evaluation have another column: 1 where an example chooses
    the thresholds, 0 where it is evaluated. Where all choose, all are evaluated.

    Args:
        class_weights: weight of each class where it is present, shape (C,). None: 1.
    """
    weights = None if class_weights is None else jnp.asarray(class_weights)
    return Task(
        partial(_loss, weights),
        lambda logits, labels: {
            "logits": logits.reshape(len(labels), -1),
            "labels": labels,
        },
        lambda observed: {"f1": _f1(observed)},
        {"f1": True},
        {"f1": "%"},
    )


def best_thresholds(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The threshold of each class with the greatest F1, shape (C,).

    It lies halfway between two logits; above all of them where no example has the
    class.

    Args:
        logits: logits, shape (N, C).
        labels: whether an example has the class, shape (N, C).

    >>> best_thresholds(np.array([[3.0], [1.0], [0.0]]), np.array([[1], [1], [0]]))
    array([0.5])
    """
    order = np.argsort(-logits, axis=0, kind="stable")
    sorted_logits = np.take_along_axis(logits, order, axis=0)
    hits = np.cumsum(np.take_along_axis(labels, order, axis=0), axis=0)
    chosen = np.arange(1, len(logits) + 1)[:, None]
    f1 = 2 * hits / (chosen + labels.sum(axis=0))
    below = np.concatenate([sorted_logits[1:], sorted_logits[-1:] - 1])
    f1[sorted_logits == below] = -1  # equal logits are all above or none
    best = np.argmax(f1, axis=0)
    columns = np.arange(logits.shape[1])
    thresholds = (sorted_logits[best, columns] + below[best, columns]) / 2
    return np.where(labels.sum(axis=0) > 0, thresholds, sorted_logits[0] + 1)


def _loss(weights: jax.Array | None, logits: jax.Array, labels: jax.Array) -> jax.Array:
    losses = optax.sigmoid_binary_cross_entropy(logits.reshape(labels.shape), labels)
    if weights is not None:
        losses = losses * jnp.where(labels > 0, weights, 1)
    return jnp.mean(losses)


def _f1(observed: Sequence[Observed]) -> float:
    """Mean of F1 over classes in percent; 0 of a class that is nowhere."""
    logits, labels = (
        np.concatenate([batch[name] for batch in observed])
        for name in ("logits", "labels")
    )
    if not np.isfinite(logits).all():
        return float("nan")
    labels, chooses = labels[:, :-1] > 0, labels[:, -1] > 0
    evaluated = ~chooses if not chooses.all() else chooses
    thresholds = best_thresholds(logits[chooses], labels[chooses])
    found, there = logits[evaluated] > thresholds, labels[evaluated]
    hits = (found & there).sum(axis=0)
    either = found.sum(axis=0) + there.sum(axis=0)
    return float(np.mean(200 * hits / np.maximum(either, 1)))
