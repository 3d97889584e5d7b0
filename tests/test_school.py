"""School: files, batches of tasks' own examples, losses by task, and training."""

import json

import jax
import numpy as np
import pytest
from scipy.io import savemat

import samo_jax
from samo_jax.experiments.data.school import read_school
from samo_jax.experiments.problems import registry
from samo_jax.experiments.problems.benchmark import Examples
from samo_jax.experiments.problems.own_examples import OwnExamples
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.train_step import losses_by_task, task_losses
from samo_jax.experiments.training.trainer import Trainer

from small_runs import main

SIZES = (40, 22, 31)


def write_school(path, sizes=SIZES, **changes):
    """Pupils whose scores are a line in two of three features, as MALSAR's cells."""
    rng = np.random.default_rng(0)
    x, y = np.empty((1, len(sizes)), object), np.empty((1, len(sizes)), object)
    for k, size in enumerate(sizes):
        features = rng.integers(0, 9, (size, 3)).astype(np.uint8)
        features[:, 2] = 1
        x[0, k] = features
        y[0, k] = (features[:, :1] * 3 + features[:, 1:2] + k).astype(np.uint8)
    savemat(path, {"X": x, "Y": y} | changes)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "school.mat"
    write_school(path)
    return path


def test_file(path):
    features, scores = read_school(path)
    assert [x.shape for x in features] == [(size, 3) for size in SIZES]
    assert [y.shape for y in scores] == [(size,) for size in SIZES]
    np.testing.assert_array_equal(
        scores[2], 3 * features[2][:, 0] + features[2][:, 1] + 2
    )


def cells(*arrays):
    found = np.empty((1, len(arrays)), object)
    for k, array in enumerate(arrays):
        found[0, k] = array
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": cells(np.ones((4, 3)))}, "as many cells in X as in Y, .* got 1 and 3"),
        ({"X": cells(*[np.ones((4, 3))] * 3)}, r"cell 1 .* got \(4, 3\) and \(40, 1\)"),
        (
            {
                "X": cells(*[np.full((n, 3), np.nan) for n in SIZES]),
            },
            "cell 1 must have finite numbers",
        ),
        ({"X": cells("a", "b", "c")}, "must be a MATLAB file with cells X and Y"),
    ],
)
def test_other_content(tmp_path, changes, message):
    path = tmp_path / "school.mat"
    write_school(path, **changes)
    with pytest.raises(ValueError, match=message):
        read_school(path)


def test_no_matlab_file(tmp_path):
    path = tmp_path / "school.mat"
    with pytest.raises(ValueError, match="is missing: take MALSAR's"):
        read_school(path)
    path.write_bytes(b"\0" * 200)
    with pytest.raises(ValueError, match="must be a MATLAB file"):
        read_school(path)


def own_examples():
    def part(task, count):
        numbers = np.arange(count, dtype=np.float32)
        return Examples(numbers[:, None] * [1.0, 2.0], {task: 10 * numbers})

    return OwnExamples({"a": part("a", 3), "b": part("b", 7)})


def test_epochs_of_own_examples():
    """As long as the longest; the shorter begins anew when all have come."""
    batches = list(own_examples().batches(2, np.random.default_rng(0)))
    assert len(batches) == 3
    for k, (task, count) in enumerate((("a", 3), ("b", 7))):
        seen = np.concatenate([batch.inputs[k, :, 0] for batch in batches])
        labels = np.concatenate([batch.labels[task] for batch in batches])
        np.testing.assert_array_equal(labels, 10 * seen)
        assert len(set(seen[:count])) == min(count, 6)
    again = list(own_examples().batches(2, np.random.default_rng(0)))
    np.testing.assert_array_equal(again[0].inputs, batches[0].inputs)


def test_evaluation_pads_without_labels():
    [batch] = own_examples().batches(500)
    assert batch.inputs.shape == (2, 7, 2)
    np.testing.assert_array_equal(batch.labels["a"][:3], [0, 10, 20])
    assert np.isnan(batch.labels["a"][3:]).all()
    assert not np.isnan(batch.labels["b"]).any()


def test_benchmark(path):
    """A quarter for test; for validation a quarter of the others; scaled by train."""
    test, validation = (
        registry.load("school", path, split, 5) for split in ("test", "validation")
    )
    counts = {
        split: [
            [of.num_examples for of in part.parts.values()]
            for part in (found.train, found.evaluation)
        ]
        for split, found in (("test", test), ("validation", validation))
    }
    assert counts["test"] == [[30, 17, 24], [10, 5, 7]]
    assert counts["validation"] == [[23, 13, 18], [7, 4, 6]]
    labels = [part.labels[name] for name, part in test.train.parts.items()]
    np.testing.assert_allclose(np.concatenate(labels).mean(), 0, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(labels).std(), 1, rtol=1e-6)
    kept = {*map(tuple, validation.evaluation.parts["school001"].inputs[:, :2])}
    assert kept  # held out of what was for training
    assert list(test.tasks) == ["school001", "school002", "school003"]


def test_explained_variance_is_that_of_a_school(path):
    found = registry.load("school", path, "test", 5)
    [batch] = found.evaluation.batches(500)
    perfect = {
        name: task.metrics([task.observe(batch.labels[name], batch.labels[name])])
        for name, task in found.tasks.items()
    }
    assert {of["explained_variance"] for of in perfect.values()} == {100.0}
    _, scores = read_school(path)
    scale = np.concatenate(
        [part.labels[name] for name, part in found.train.parts.items()]
    )
    raw = np.concatenate([scores[0], scores[1], scores[2]])
    assert scale.size < raw.size
    # A prediction off by one deviation of all scores.
    task, label = found.tasks["school001"], batch.labels["school001"]
    value = task.metrics([task.observe(label + 1, label)])["explained_variance"]
    assert value < 100


def test_losses_by_task_are_the_losses(path):
    """And their gradients; each of a head and the shared leaves alone."""
    found = registry.load("school", path, "test", 5)
    trainer = Trainer(found, method_of("mean"))
    params, _, _ = trainer.start(0)
    batch = trainer.batch()
    together = lambda params: task_losses(found, trainer.net, params, batch)[0]  # noqa: E731
    alone = losses_by_task(found, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        *(
            (of(params), samo_jax.task_gradients(of, params))
            for of in (together, alone)
        ),
    )


@pytest.mark.slow
def test_trains_and_reports(path, tmp_path):
    out = tmp_path / "out"
    methods = ["single-task", "mean", "fairgrad+samo", "mean+f_mtl", "sdmgrad"]
    options = ["--epochs", 60, "--seeds", 1, "--batch-size", 5]
    main("school", "--data", path, "--out", out, *options, "--methods", *methods)
    document = json.loads((out / "results.json").read_text())
    assert len(document["runs"]) == len(methods)
    for finished in document["runs"]:
        for metrics in finished["metrics"].values():
            assert metrics["explained_variance"] > 60, finished["method"]
