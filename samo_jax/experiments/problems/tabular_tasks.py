"""Tasks of tables: an output for each example, and labels that may be missing (NaN)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import roc_auc_score

import samo_jax
from samo_jax.experiments.problems.tasks import Function, Observed, Task


def _of_labelled(loss: Function) -> Function:
    """The mean loss of the examples that have a label; NaN if none has."""

    def mean(output: jax.Array, label: jax.Array) -> jax.Array:
        labelled = ~jnp.isnan(label)
        values = loss(output, jnp.where(labelled, label, 0))
        return samo_jax.masked_mean(values, labelled)

    return mean


def _task(
    loss: Function,
    metric: str,
    value: Callable[[np.ndarray, np.ndarray], Any],
    *,
    higher_is_better: bool,
    unit: str = "",
) -> Task:
    """A task with one metric: `value(outputs, labels)` of all labelled examples."""

    def metrics(observed: Sequence[Observed]) -> dict[str, float]:
        output, label = (
            np.concatenate([batch[name] for batch in observed])
            for name in ("output", "label")
        )
        labelled = ~np.isnan(label)
        return {metric: float(value(output[labelled].astype(float), label[labelled]))}

    units = {metric: unit} if unit else {}
    return Task(loss, _pair, metrics, {metric: higher_is_better}, units)


def has_both_classes(labels: np.ndarray) -> bool:
    """Whether labels of a binary task have zeros and ones."""
    return {0.0, 1.0} <= {*labels.tolist()}


def _pair(output, label):
    return {"output": output, "label": label}


def _auc(logits: np.ndarray, classes: np.ndarray) -> float:
    if not np.isfinite(logits).all():
        return np.nan
    return 100 * float(roc_auc_score(classes, logits))


def _accuracy(logits: np.ndarray, classes: np.ndarray) -> float:
    return 100 * np.mean(logits.argmax(-1) == classes)


def _cross_entropy(logits, classes):
    classes = classes.astype(int)
    return optax.softmax_cross_entropy_with_integer_labels(logits, classes)


_SQUARE = _of_labelled(lambda output, label: jnp.square(output - label))

# Logits (N,); classes (N,), 0, 1 or NaN.
BINARY = _task(
    _of_labelled(optax.sigmoid_binary_cross_entropy),
    "auc",
    _auc,
    higher_is_better=True,
    unit="%",
)
# Logits (N, C); classes (N,), 0 to C - 1 or NaN.
CLASSES = _task(
    _of_labelled(_cross_entropy),
    "accuracy",
    _accuracy,
    higher_is_better=True,
    unit="%",
)


def number(deviation: float, unit: str = "") -> Task:
    """Mean square of a standardised target, mean absolute error in its own unit.

    Args:
        deviation: deviation of the target, by which labels (N,) have been divided.
        unit: unit of the target, empty if it has none.
    """
    return _task(
        _SQUARE,
        "error",
        lambda output, label: deviation * np.mean(np.abs(output - label)),
        higher_is_better=False,
        unit=unit,
    )


def explained(variance: float) -> Task:
    """Mean square of a target, and the share of its variance that is explained.

    Args:
        variance: variance of the task's labels (N,), train and test together.
    """
    return _task(
        _SQUARE,
        "explained_variance",
        lambda output, label: 100 * (1 - np.mean((output - label) ** 2) / variance),
        higher_is_better=True,
        unit="%",
    )
