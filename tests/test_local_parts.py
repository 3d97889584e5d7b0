"""The study of local parts: its data, directions, pass counts, and a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax
from samo_jax.experiments.__main__ import main
from samo_jax.experiments.data.faces import ATTRIBUTES, draw_faces
from samo_jax.experiments.problems.small import PROBLEMS
from samo_jax.experiments.studies.local_parts import study
from samo_jax.experiments.studies.local_parts.costs import Cost
from samo_jax.experiments.studies.local_parts.directions import (
    diagnose_directions,
    mean_cosines,
)
from samo_jax.experiments.studies.local_parts.methods import KNOWN, PLAIN
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.optimizers import (
    Setup,
    make_transformation,
    task_labels,
)
from samo_jax.experiments.training.runs import Run, evaluated_epochs
from samo_jax.experiments.training.trainer import Trainer

from passes import NUM_TASKS, operations

TASKS = ("a", "b", "c")
TEXTS = {of.label: text for text, of in KNOWN.items()}


def test_faces():
    faces, again = draw_faces(2000, seed=3), draw_faces(2000, seed=3)
    np.testing.assert_array_equal(faces.images, again.images)
    assert faces.images.shape == (2000, 16, 16, 3)
    assert tuple(faces.labels) == ATTRIBUTES
    assert len(ATTRIBUTES) == 40
    shares = {name: has.mean() for name, has in faces.labels.items()}
    assert abs(shares["bald"] - 0.1) < 0.03
    assert abs(shares["smiling"] - 0.5) < 0.04
    # A smile is part of a laugh, glasses are dark, light comes from its side.
    assert np.mean(faces.labels["smiling"][faces.labels["laughing"] == 1]) > 0.9
    left, right = faces.images[:, :, :4].mean((1, 2, 3)), faces.images[:, :, 12:]
    lit = (left > right.mean((1, 2, 3))) == faces.labels["lit_from_left"]
    assert lit.mean() > 0.95
    noisy = draw_faces(2000, seed=3, wrong=0.1).labels
    wrong = [np.mean(noisy[name] != faces.labels[name]) for name in ATTRIBUTES]
    assert np.allclose(wrong, 0.1, atol=0.03)


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems(name):
    for split in ("validation", "test"):
        problem = PROBLEMS[name](split)
        inputs, labels = problem.train
        assert len(inputs) % problem.batch_size == 0
        assert len(labels) == {"digits": 2, "targets": 11, "attributes": 40}[name]
        rows = {row.tobytes() for row in inputs}
        assert not rows & {row.tobytes() for row in problem.evaluation.inputs}
        rng = np.random.default_rng(0)
        batches = list(problem.train.batches(problem.batch_size, rng))
        assert {row.tobytes() for batch in batches for row in batch.inputs} == rows


def losses(params):
    x, y = params["Dense_0"], params["a"]
    values = (x @ jnp.arange(1.0, 5.0), x @ jnp.array([4.0, -3.0, 1.0, -1.0]), x @ x)
    return dict(zip(TASKS, values, strict=True)) | {"a": values[0] + y**2}


PARAMS = {"Dense_0": jnp.array([1.0, 0.5, -1.0, 2.0]), "a": jnp.array(1.0)}


def transformation(text, tasks):
    def labels(params):
        return task_labels(tasks, params)

    setup = Setup(len(tasks), 1, 0, jax.random.key(0), {"rho": 0.1}, labels)
    return make_transformation(method_of(text), setup)


@pytest.mark.parametrize(
    "label",
    ["global", "F-MTL", "SAMO", "exact local part", "memory, adaptive"],
)
@pytest.mark.slow
def test_directions(label):
    method = method_of(TEXTS[label])
    tx = transformation(TEXTS[label], TASKS)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        grads = samo_jax.mean_value_and_grad(losses)(params)[1]
        _, state = tx.update(grads, state, params, loss_fn=losses)
    found = mean_cosines(method.perturbation, losses, params, state, TASKS)

    rows = np.stack(
        [
            np.array(jax.grad(lambda p, t=t: losses(p)[t])(params)["Dense_0"])
            for t in TASKS
        ]
    )
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    mean = rows.mean(0) / np.linalg.norm(rows.mean(0))
    np.testing.assert_allclose(found["g0"], np.mean(unit @ mean), rtol=1e-5)
    exact = {"L-SAM", "F-MTL", "exact local part"}
    if label in exact or (label.startswith("memory") and "average" not in label):
        # The memory's gradient is that of these parameters, but perturbed.
        atol = 1e-5 if label in exact else 0.1
        np.testing.assert_allclose(found["local"], 1, atol=atol)
    if label == "global":
        np.testing.assert_allclose(found["whole"], found["g0"], rtol=1e-5)
    if label == "exact local part":
        joint = unit / 2 * np.linalg.norm(rows.mean(0)) + rows.mean(0) / 2
        joint /= np.linalg.norm(joint, axis=1, keepdims=True)
        np.testing.assert_allclose(found["whole"], np.sum(joint * unit) / 3, rtol=1e-5)


@pytest.mark.parametrize(
    "label", ["L-SAM", "F-MTL", "exact local part", "8 shared Rademacher"]
)
@pytest.mark.slow
def test_passes(label):
    """Operations of the compiled step, against the passes that the table claims."""
    tasks = tuple(map(str, range(NUM_TASKS)))
    tx = transformation(TEXTS[label], tasks)
    passes = KNOWN[TEXTS[label]].passes(NUM_TASKS)
    assert 0.97 <= operations(tx, True, *passes) < 1.18


@pytest.mark.slow
def test_a_radius_needs_no_new_compilation():
    problem = PROBLEMS["targets"]("validation")
    method = method_of("fairgrad+global_sam")
    diagnose = diagnose_directions(method, problem)
    trainer = Trainer(problem, method, {"rho": 0.0}, diagnose)
    small, again, large = (
        trainer.train(0, 2, lambda: None, rho=rho)[1] for rho in (0.01, 0.01, 0.3)
    )
    assert trainer.train_step._cache_size() == 1
    timeless = {"seconds_per_step": 0}
    assert small._replace(**timeless) == again._replace(**timeless)
    assert small.metrics != large.metrics
    assert [epoch for epoch, _ in small.agreement_curve] == [1, 2]
    for _, agreement in small.agreement_curve:
        cosines = agreement["directions"]
        np.testing.assert_allclose(cosines["whole"], cosines["g0"], rtol=1e-5)


@pytest.mark.slow
def test_other_data_have_their_own_metrics():
    """The share of the variance that they leave unexplained is that of their labels."""
    validation, test = map(PROBLEMS["targets"], ("validation", "test"))
    trainer = Trainer(test, method_of(PLAIN))
    params, *_ = trainer.start(0)
    there = Trainer(validation, method_of(PLAIN)).evaluate(params)
    assert trainer.with_data(validation).evaluate(params) == there
    assert trainer.evaluate(params) != there


@pytest.mark.slow
def test_learns_and_reports(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "RHOS", (0.03, 0.3))
    out = tmp_path / "out"
    methods = ["fairgrad", "fairgrad+global_sam", "cagrad+momentum_sam(rho=0.1)"]
    arguments = ["--problems", "targets", "--methods", *methods, "--epochs", "25"]
    numbers = ["--seeds", "2", "--tuning-seeds", "1"]
    assert main(["local_parts", *arguments, *numbers, "--out", str(out)]) == 0
    document = json.loads((out / "targets/results.json").read_text())
    page = (out / "report.md").read_text()
    assert {run["method"] for run in document["runs"]} == {"single-task", *methods}
    for run in document["runs"]:
        errors = [of["unexplained"] for of in run["metrics"].values()]
        assert np.mean(errors) < 95
        assert len(errors) == 11
    errors = document["config"]["validation_error"]
    assert list(errors) == ["fairgrad+global_sam"]
    by_rho = errors["fairgrad+global_sam"]
    best = min(by_rho, key=lambda rho: np.mean(by_rho[rho]))
    assert f"| global | {best} |" in page
    for label in ("single-task", "plain", methods[-1]):
        assert f"| {label} | - |" in page
    costs = document["config"]["costs"]
    assert [cost["units"] for cost in costs.values()] == [23, 26, None]
    assert all(cost["milliseconds"] > 0 for cost in costs.values())
    assert (out / "local_parts.png").stat().st_size > 10_000
    assert (out / "report.html").read_text().count("<img") == 1


@pytest.mark.slow
def test_interrupted_and_resumed_as_uninterrupted(monkeypatch, tmp_path):
    """Radii already tried and runs that had finished are not trained again."""
    calls, interrupts = [], []

    def train(trainer, seed, epochs, _on_epoch, rho=0.0):
        calls.append((rho, seed))
        if len(calls) in interrupts:
            raise KeyboardInterrupt
        tasks = trainer.benchmark.tasks
        metrics = {t: {"accuracy": 90 - abs(rho - 0.2) - seed % 10} for t in tasks}
        directions = {"local": 0.1, "whole": 0.2, "g0": 0.3}
        agreement = {"cosine": 0.1, "conflicts": 0.2, "weights": None}
        agreement |= {"directions": directions}
        evaluated = evaluated_epochs(epochs)
        curve = [(epoch, agreement) for epoch in evaluated] if len(tasks) > 1 else []
        metrics_curve = [(epoch, metrics) for epoch in evaluated]
        return {}, Run(metrics, metrics_curve, [1.0] * epochs, 0.1, curve)

    class TimedStep:
        def __init__(self, *_args):
            pass

        def seconds(self):
            return 1.0

        def cost(self, milliseconds):
            return Cost(5, 2**20, milliseconds)

    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(study, "TimedStep", TimedStep)
    methods = ["fairgrad+global_sam", "fairgrad+samo"]
    arguments = ["local_parts", "--problems", "digits", "--methods", *methods]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main([*arguments, "--out", str(whole)]) == 0
    uninterrupted = len(calls)

    calls.clear()
    interrupts += [19, uninterrupted - 1]  # among the radii, among the seeds
    with pytest.raises(SystemExit, match="130"):
        main([*arguments, "--out", str(part)])
    with pytest.raises(SystemExit, match="130"):
        main(["local_parts", "--resume", str(part)])
    assert main(["local_parts", "--resume", str(part)]) == 0
    # Single-task has two networks, which are trained again together.
    assert len(calls) - uninterrupted - len(interrupts) in (0, 1)
    monkeypatch.delattr(study, "TimedStep")  # what has finished is not even timed
    assert main(["local_parts", "--resume", str(part)]) == 0
    for file in ("digits/results.json", "report.md"):
        assert (part / file).read_text() == (whole / file).read_text()
