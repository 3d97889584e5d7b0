"""Tasks: what one is trained on, and measured by."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

Observed: TypeAlias = dict[str, Any]
Function: TypeAlias = Callable[[Any, Any], jax.Array]  # of output and label


class Task(NamedTuple):
    """Loss and metrics of one task.

    Attributes:
        loss: `loss(output, label)`, a scalar, of one batch.
        observe: `observe(output, label)`, what the metrics need of one batch.
        metrics: `metrics(observed)` of the list of observations, as NumPy arrays.
            Shares are in percent.
        higher_is_better: whether higher is better, by metric.
        units: units of the metrics that have one.
        single_task: published results of single-task training, where known.
    """

    loss: Function
    observe: Callable[[Any, Any], Observed]
    metrics: Callable[[Sequence[Observed]], dict[str, float]]
    higher_is_better: dict[str, bool]
    units: Mapping[str, str] = MappingProxyType({})
    single_task: Mapping[str, float] = MappingProxyType({})


def averaged(
    loss: Function,
    metric: str,
    values: Function,
    *,
    higher_is_better: bool,
    unit: str = "",
) -> Task:
    """A task with one metric, a mean over examples.

    Args:
        loss: loss of a batch.
        metric: name of the metric.
        values: `values(output, label)` of each example, shape (N,).
        higher_is_better: whether a higher metric is better.
        unit: unit of the metric, empty if it has none.

    >>> errors = lambda output, label: abs(output - label)
    >>> task = averaged(errors, "error", errors, higher_is_better=False)
    >>> task.metrics([task.observe(np.array([1.0, 2.0]), np.array([1.0, 4.0]))])
    {'error': 1.0}
    """

    def observe(output, label):
        return {metric: values(output, label)}

    def metrics(observed):
        every = np.concatenate([batch[metric] for batch in observed])
        return {metric: float(np.mean(every, dtype=np.float64))}

    units = {metric: unit} if unit else {}
    return Task(loss, observe, metrics, {metric: higher_is_better}, units)


def _cross_entropy(logits, classes):
    return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()


# Logits (N, C), classes (N,).
CLASSIFICATION = averaged(
    _cross_entropy,
    "accuracy",
    lambda logits, classes: 100.0 * (logits.argmax(-1) == classes),
    higher_is_better=True,
    unit="%",
)


def _f1(observed):
    hits, predicted, positive = (
        sum(int(batch[name]) for batch in observed)
        for name in ("hits", "predicted", "positive")
    )
    return {"f1": 200 * hits / max(predicted + positive, 1)}


# Logits (N,); classes (N,), 0 or 1. F1 is 0 where nothing is positive or predicted so.
DETECTION = Task(
    lambda logits, positive: optax.sigmoid_binary_cross_entropy(
        logits, positive
    ).mean(),
    lambda logits, positive: {
        "hits": jnp.sum((logits > 0) & (positive > 0)),
        "predicted": jnp.sum(logits > 0),
        "positive": jnp.sum(positive > 0),
    },
    _f1,
    {"f1": True},
    {"f1": "%"},
)


def regression(deviation: float, unit: str = "") -> Task:
    """Mean square of a standardised target, mean absolute error in its own unit.

    Args:
        deviation: deviation of the target, by which labels (N,) have been divided.
        unit: unit of the target, empty if it has none.
    """
    return averaged(
        lambda output, label: jnp.mean(jnp.square(output - label)),
        "error",
        lambda output, label: deviation * jnp.abs(output - label),
        higher_is_better=False,
        unit=unit,
    )


def _square_errors(output, label):
    return jnp.mean(jnp.square(output - label.reshape(output.shape)), axis=-1)


# Flat images (N, P) for labels of any shape (N, ...).
RECONSTRUCTION = averaged(
    lambda output, label: jnp.mean(_square_errors(output, label)),
    "square_error",
    _square_errors,
    higher_is_better=False,
)
