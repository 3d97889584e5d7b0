"""The local experiment: its data, its looks at directions, its pass counts, a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax
from samo_jax.experiments.__main__ import main
from samo_jax.experiments.data.faces import ATTRIBUTES, draw_faces
from samo_jax.experiments.local import experiment
from samo_jax.experiments.local.looks import look
from samo_jax.experiments.local.methods import METHODS, make_optimizer
from samo_jax.experiments.local.problems import PROBLEMS
from samo_jax.experiments.local.training import Cost, Run, Trainer

from passes import NUM_TASKS, operations

TASKS = ("a", "b", "c")


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["global", "F-MTL", "SAMO", "exact local part", "memory, adaptive"],
)
def test_looks(method):
    tx = make_optimizer(method, TASKS, 1e-3, 0.1, 0)
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        grads = samo_jax.mean_value_and_grad(losses)(params)[1]
        _, state = tx.update(grads, state, params, loss_fn=losses)
    seen = look(METHODS[method], losses, params, state[0], TASKS)

    rows = np.stack(
        [
            np.array(jax.grad(lambda p, t=t: losses(p)[t])(params)["Dense_0"])
            for t in TASKS
        ]
    )
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    mean = rows.mean(0) / np.linalg.norm(rows.mean(0))
    cosines = (unit @ unit.T)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(seen.anchor, np.mean(unit @ mean), rtol=1e-5)
    np.testing.assert_allclose(seen.pairs, cosines.mean(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.conflicts, np.mean(cosines < 0), rtol=1e-6)
    exact = {"L-SAM", "F-MTL", "exact local part"}
    if method in exact or (method.startswith("memory") and "average" not in method):
        # The memory's gradient is that of these parameters, but perturbed.
        atol = 1e-5 if method in exact else 0.1
        np.testing.assert_allclose(seen.local, 1, atol=atol)
    if method == "global":
        np.testing.assert_allclose(seen.whole, seen.anchor, rtol=1e-5)
    if method == "exact local part":
        joint = unit / 2 * np.linalg.norm(rows.mean(0)) + rows.mean(0) / 2
        joint /= np.linalg.norm(joint, axis=1, keepdims=True)
        np.testing.assert_allclose(seen.whole, np.sum(joint * unit) / 3, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["L-SAM", "F-MTL", "exact local part", "8 shared Rademacher"]
)
def test_passes(method):
    """Operations of the compiled step, against the passes that the table claims."""
    tasks = tuple(map(str, range(NUM_TASKS)))
    tx = make_optimizer(method, tasks, 1e-3, 0.1, 0)
    passes = METHODS[method].passes(NUM_TASKS)
    assert 0.97 <= operations(tx, METHODS[method].clean_pass, *passes) < 1.25


@pytest.mark.slow
def test_a_radius_needs_no_new_compilation():
    problem = PROBLEMS["targets"]("validation")._replace(epochs=2)
    trainer = Trainer("global", problem)
    small, again, large = (
        trainer.run(problem, rho, 0, lambda: None) for rho in (0.01, 0.01, 0.3)
    )
    assert small == again
    assert small.error != large.error
    assert [step for step, *_ in small.looks] == [1]


@pytest.mark.slow
def test_learns_and_reports(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "RHOS", (0.03, 0.3))
    out = tmp_path / "out"
    arguments = ["--problems", "targets", "--methods", "plain", "global"]
    arguments += [
        "--seeds",
        "2",
        "--tuning-seeds",
        "1",
        "--epochs",
        "25",
        "--out",
        str(out),
    ]
    assert main(["local", *arguments]) == 0
    document = json.loads((out / "targets/results.json").read_text())
    table = (out / "table.md").read_text()
    for run in document["runs"]:
        assert np.mean(list(run["error"].values())) < 95
        assert len(run["error"]) == 11
        assert f"| {run['method']} |" in table
        scores = document["config"]["validation_error"].get(run["method"], {"0.0": 0})
        assert run["rho"] == float(min(scores, key=lambda rho: np.mean(scores[rho])))
    costs = document["config"]["costs"]
    units = {name: cost["units"] for name, cost in costs.items()}
    assert units == {"plain": 23, "global": 26}
    assert all(cost["milliseconds"] > 0 for cost in costs.values())
    assert (out / "local.png").stat().st_size > 10_000


@pytest.mark.slow
def test_interrupted_and_resumed_as_uninterrupted(monkeypatch, tmp_path):
    """Radii already tried and runs that had finished are not trained again."""
    calls, interrupts = [], []

    class Fake:
        def __init__(self, *_args):
            pass

        def run(self, problem, rho, seed, _on_epoch):
            calls.append((rho, seed))
            if len(calls) in interrupts:
                raise KeyboardInterrupt
            error = abs(rho - 0.2) + seed % 10
            looks = [[1, 0.1, 0.2, 0.3, 0.4, 0.5]]
            return Run(dict.fromkeys(problem.tasks, error), 1.0, rho, looks)

        def seconds(self):
            return 1.0

        def cost(self, milliseconds):
            return Cost(5, 2**20, milliseconds)

    monkeypatch.setattr(experiment, "Trainer", Fake)
    monkeypatch.setattr(experiment, "SingleTaskTrainer", Fake)
    arguments = ["local", "--problems", "digits", "--methods", "global", "SAMO"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main([*arguments, "--out", str(whole)]) == 0
    uninterrupted = len(calls)

    calls.clear()
    interrupts += [19, uninterrupted - 1]  # among the radii, among the seeds
    with pytest.raises(SystemExit, match="130"):
        main([*arguments, "--out", str(part)])
    with pytest.raises(SystemExit, match="130"):
        main(["local", "--resume", str(part)])
    assert main(["local", "--resume", str(part)]) == 0
    assert len(calls) == uninterrupted + len(interrupts)
    monkeypatch.delattr(experiment, "Trainer")  # what has finished is not even timed
    assert main(["local", "--resume", str(part)]) == 0
    for file in ("digits/results.json", "table.md"):
        assert (part / file).read_text() == (whole / file).read_text()
