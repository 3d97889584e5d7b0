"""Losses and metrics of dense prediction: segmentation, depth and surface normals.

They are those of NYU-v2 and Cityscapes in MTAN [1] and LibMTL [2]. The metrics pool all
pixels of all batches, as LibMTL's do, and so do not depend on the batch size. MTAN's
own code averages instead: mean IoU and pixel accuracy over images, the errors of depth
and normals over batches.

A batch without a valid pixel has loss 0 and gradient 0.

References:
    [1] Liu, Johns & Davison, "End-to-end multi-task learning with attention", CVPR 2019
        (github.com/lorenmt/mtan, im2im_pred/utils.py).
    [2] github.com/median-research-group/LibMTL, examples/nyu/utils.py.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

import samo_jax
from samo_jax.experiments.problems.tasks import Observed, Task


def segmentation_loss(output: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy, mean over labelled pixels.

    Args:
        output: logits, (N, H, W, C).
        label: classes, (N, H, W) ints; -1 where there is none.
    """
    valid = label >= 0
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(
        output, jnp.where(valid, label, 0)
    )
    return samo_jax.masked_mean(cross_entropy, valid)


def observe_segmentation(output: jax.Array, label: jax.Array) -> Observed:
    """The confusion matrix, (C, C): labelled pixels by class (row) and prediction."""
    num_classes = output.shape[-1]
    counts = jnp.zeros((num_classes, num_classes), jnp.int32)
    return {"confusion": counts.at[label, output.argmax(-1)].add(label >= 0)}


def segmentation_metrics(observed: Sequence[Observed]) -> dict[str, float]:
    """Mean intersection over union, and pixels whose class is right, in percent.

    Classes neither labelled nor predicted anywhere have no IoU and are left out of the
    mean (LibMTL's is NaN then).

    >>> confusion = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    >>> segmentation_metrics([{"confusion": confusion}])
    {'mean_iou': 70.8..., 'pixel_accuracy': 83.3...}
    """
    confusion = np.sum([batch["confusion"] for batch in observed], axis=0, dtype=int)
    intersection = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    seen = union > 0
    return {
        "mean_iou": float(100 * np.mean(intersection[seen] / union[seen])),
        "pixel_accuracy": float(100 * intersection.sum() / confusion.sum()),
    }


def depth_loss(output: jax.Array, label: jax.Array) -> jax.Array:
    """Absolute error, mean over valid pixels.

    Args:
        output: depths, (N, H, W, 1).
        label: depths, (N, H, W, 1); valid where positive (MTAN: not zero).
    """
    return samo_jax.masked_mean(jnp.abs(output - label), label > 0)


def observe_depth(output: jax.Array, label: jax.Array) -> Observed:
    """Sums over valid pixels of absolute and relative errors; the number of them."""
    valid = label > 0
    error = jnp.where(valid, jnp.abs(output - label), 0)
    return {
        "absolute": error.sum(),
        "relative": (error / jnp.where(valid, label, 1)).sum(),
        "pixels": valid.sum(),
    }


def depth_metrics(observed: Sequence[Observed]) -> dict[str, float]:
    """Mean over valid pixels of |output - label|, and of |output - label| / label.

    >>> depth_metrics([{"absolute": 6.0, "relative": 3.0, "pixels": 4}])
    {'absolute_error': 1.5, 'relative_error': 0.75}
    """
    total = {
        name: sum(float(batch[name]) for batch in observed)
        for name in ("absolute", "relative", "pixels")
    }
    return {
        "absolute_error": total["absolute"] / total["pixels"],
        "relative_error": total["relative"] / total["pixels"],
    }


def normals_loss(output: jax.Array, label: jax.Array) -> jax.Array:
    """1 - cosine of the angle between output and label, mean over valid pixels.

    Args:
        output: vectors of any length, (N, H, W, 3).
        label: vectors of any positive length, (N, H, W, 3); valid where not zero.
    """
    cosine = jnp.sum(_unit(output) * _unit(label), axis=-1)
    return samo_jax.masked_mean(1 - cosine, jnp.any(label != 0, axis=-1))


def observe_normals(output: jax.Array, label: jax.Array) -> Observed:
    """Angles in degrees, (N, H, W), between output and label; NaN where none is valid.

    Precise at small angles, unlike the arc cosine of the product.
    """
    output, label = _unit(output), _unit(label)
    angle = 2 * jnp.arctan2(
        jnp.linalg.norm(output - label, axis=-1),
        jnp.linalg.norm(output + label, axis=-1),
    )
    valid = jnp.any(label != 0, axis=-1)
    return {"angles": jnp.where(valid, jnp.rad2deg(angle), jnp.nan)}


def normals_metrics(observed: Sequence[Observed]) -> dict[str, float]:
    """Mean and median angle; percent of angles below 11.25, 22.5 and 30 degrees.

    >>> metrics = normals_metrics([{"angles": np.array([10, 20, 40, 90, np.nan])}])
    >>> metrics["mean_angle"], metrics["median_angle"], metrics["within_30"]
    (40.0, 30.0, 50.0)
    """
    angles = np.concatenate([batch["angles"].ravel() for batch in observed])
    angles = angles[~np.isnan(angles)]
    return {
        "mean_angle": float(np.mean(angles, dtype=np.float64)),
        "median_angle": float(np.median(angles)),
        "within_11.25": float(100 * np.mean(angles < 11.25)),
        "within_22.5": float(100 * np.mean(angles < 22.5)),
        "within_30": float(100 * np.mean(angles < 30)),
    }


SEGMENTATION = Task(
    segmentation_loss,
    observe_segmentation,
    segmentation_metrics,
    {"mean_iou": True, "pixel_accuracy": True},
    {"mean_iou": "%", "pixel_accuracy": "%"},
)
DEPTH = Task(
    depth_loss,
    observe_depth,
    depth_metrics,
    {"absolute_error": False, "relative_error": False},
    {"absolute_error": "m"},
)
NORMALS = Task(
    normals_loss,
    observe_normals,
    normals_metrics,
    {
        "mean_angle": False,
        "median_angle": False,
        "within_11.25": True,
        "within_22.5": True,
        "within_30": True,
    },
    {
        "mean_angle": "°",
        "median_angle": "°",
        "within_11.25": "%",
        "within_22.5": "%",
        "within_30": "%",
    },
)


def _unit(vectors: jax.Array) -> jax.Array:
    """The vectors scaled to length 1, those below 1e-3 to less."""
    return vectors / optax.safe_norm(vectors, 1e-3, axis=-1, keepdims=True)
