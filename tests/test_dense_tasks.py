"""Losses and metrics of dense prediction, against loops over pixels."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samo_jax.experiments.problems.dense_tasks import DEPTH, NORMALS, SEGMENTATION

SHAPE = (2, 3, 4)
CLASSES = 3


def batches(task, sizes=(2, 3)):
    """Outputs and labels of random batches, some pixels of which have no label."""
    rng = np.random.default_rng(0)
    for size in sizes:
        shape = (size, *SHAPE[1:])
        if task is SEGMENTATION:
            label = rng.integers(-1, CLASSES, shape, np.int32)
            output = rng.normal(size=(*shape, CLASSES))
        elif task is DEPTH:
            label = rng.uniform(1, 5, (*shape, 1)) * rng.integers(0, 2, (*shape, 1))
            output = rng.uniform(0, 5, (*shape, 1))
        else:
            label = rng.normal(size=(*shape, 3))
            label /= np.linalg.norm(label, axis=-1, keepdims=True)
            label *= rng.integers(0, 2, (*shape, 1))
            output = label + rng.normal(size=(*shape, 3))
        if task is not SEGMENTATION:
            label = label.astype(np.float32)
        yield output.astype(np.float32), label


def pixels(task, output, label):
    """Output and label of each valid pixel."""
    for index in itertools.product(*map(range, output.shape[:-1])):
        value, target = output[index].astype(float), label[index]
        missing = target == -1 if task is SEGMENTATION else not np.any(target)
        if not missing:
            yield value, target


def pixel_loss(task, output, label):
    if task is SEGMENTATION:
        return math.log(sum(map(math.exp, output))) - output[int(label)]
    if task is DEPTH:
        return abs(output[0] - label[0])
    return 1 - output @ label / math.hypot(*output)


def observe(task, output, label):
    observed = jax.jit(task.observe)(output, label)
    return {name: np.asarray(value) for name, value in observed.items()}


TASKS = pytest.mark.parametrize(
    "task", [SEGMENTATION, DEPTH, NORMALS], ids=["segmentation", "depth", "normals"]
)


@TASKS
def test_loss(task):
    for output, label in batches(task):
        losses = [pixel_loss(task, *pixel) for pixel in pixels(task, output, label)]
        loss = jax.jit(task.loss)(output, label)
        assert loss.shape == ()
        np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


@TASKS
def test_metrics_pool_the_pixels_of_all_batches(task):
    data = list(batches(task))
    metrics = task.metrics([observe(task, *batch) for batch in data])
    assert set(metrics) == set(task.higher_is_better)
    pairs = [pair for batch in data for pair in pixels(task, *batch)]
    if task is SEGMENTATION:
        predicted, labelled = zip(
            *((o.argmax(), int(t)) for o, t in pairs), strict=True
        )
        ious = []
        for c in range(CLASSES):
            inter = sum(p == t == c for p, t in zip(predicted, labelled, strict=True))
            union = sum(c in pair for pair in zip(predicted, labelled, strict=True))
            ious.append(inter / union)
        expected = {
            "mean_iou": 100 * np.mean(ious),
            "pixel_accuracy": 100 * np.mean(np.equal(predicted, labelled)),
        }
    elif task is DEPTH:
        expected = {
            "absolute_error": np.mean([abs(o - t) for o, t in pairs]),
            "relative_error": np.mean([abs(o - t) / t for o, t in pairs]),
        }
    else:
        angles = np.array(
            [math.degrees(math.acos(o @ t / math.hypot(*o))) for o, t in pairs]
        )
        expected = {
            "mean_angle": angles.mean(),
            "median_angle": np.median(angles),
            "within_11.25": 100 * (angles < 11.25).mean(),
            "within_22.5": 100 * (angles < 22.5).mean(),
            "within_30": 100 * (angles < 30).mean(),
        }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        assert isinstance(metrics[name], float)


@TASKS
def test_metrics_do_not_depend_on_the_batches(task):
    (output, label), *_ = batches(task, sizes=(6,))
    whole = task.metrics([observe(task, output, label)])
    parts = zip(np.split(output, [1, 3]), np.split(label, [1, 3]), strict=True)
    split = task.metrics([observe(task, *part) for part in parts])
    for name in whole:
        np.testing.assert_allclose(split[name], whole[name], rtol=1e-6)


def perfect(task, label):
    if task is SEGMENTATION:
        return 30 * jax.nn.one_hot(label, CLASSES)
    return jnp.asarray(label)


@TASKS
def test_perfect_output(task):
    (_, label), *_ = batches(task)
    output = perfect(task, label)
    assert task.loss(output, label) < 1e-6
    metrics = task.metrics([observe(task, np.asarray(output), label)])
    for name, higher in task.higher_is_better.items():
        np.testing.assert_allclose(metrics[name], 100.0 if higher else 0.0, atol=1e-2)


@TASKS
def test_better_outputs_have_better_metrics(task):
    """An output moved towards the label is better in every metric, or as good."""
    (output, label), *_ = batches(task, sizes=(20,))
    weight = 0.05 if task is SEGMENTATION else 0.7
    moved = (1 - weight) * output + weight * np.asarray(perfect(task, label))
    before = task.metrics([observe(task, output, label)])
    after = task.metrics([observe(task, moved, label)])
    for name, higher in task.higher_is_better.items():
        assert (after[name] > before[name]) == higher, name


@TASKS
@pytest.mark.parametrize("labelled", [0, 1])
def test_unlabelled_pixels_have_no_gradient(task, labelled):
    """Also at an output of zero; without any label the loss is NaN: an absent task."""
    (output, _), *_ = batches(task, sizes=SHAPE[:1])
    output = np.zeros_like(output)
    if task is SEGMENTATION:
        label = np.full(SHAPE, -1, np.int32)
        label[:labelled] = 1
    else:
        label = np.zeros_like(output)
        label[:labelled] = 1
    loss, gradient = jax.value_and_grad(task.loss)(output, label)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[labelled:])
    assert np.all(np.any(gradient[:labelled] != 0, axis=-1))
    assert loss > 0 if labelled else np.isnan(loss)


def test_absent_classes_have_no_share_in_the_mean_iou():
    """Classes 0, 1 and 3 have IoU 1/2, 1 and 0; 2 is predicted without a label only."""
    label = np.array([[[0, 0, 1, 1, -1]]], np.int32)
    predicted = np.array([[[0, 3, 1, 1, 2]]])
    output = np.eye(4, dtype=np.float32)[predicted]
    metrics = SEGMENTATION.metrics([observe(SEGMENTATION, output, label)])
    assert metrics == {
        "mean_iou": pytest.approx(50),
        "pixel_accuracy": 75,
    }


@pytest.mark.parametrize("degrees", [0.001, 11.0, 90.0, 179.9])
def test_angles_are_precise(degrees):
    angle = math.radians(degrees)
    output = np.array([[[[0, 2 * math.sin(angle), 2 * math.cos(angle)]]]], np.float32)
    label = np.array([[[[0, 0, 1]]]], np.float32)
    metrics = NORMALS.metrics([observe(NORMALS, output, label)])
    assert metrics["mean_angle"] == pytest.approx(degrees, rel=1e-4)
