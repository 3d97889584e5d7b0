"""The ablation: its optimisers, its looks at minima, its tables, a tiny run."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import samo_jax
from samo_jax.experiments.__main__ import main
from samo_jax.experiments.networks.multitask_net import MultitaskNet
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.tasks import CLASSIFICATION
from samo_jax.experiments.studies.ablation import report, study
from samo_jax.experiments.studies.ablation.command import ALPHAS, MUS, RADII
from samo_jax.experiments.studies.ablation.minima import POINTS, Minimum, minimum_at
from samo_jax.experiments.studies.ablation.results import Results
from samo_jax.experiments.studies.ablation.settings import (
    GLOBAL,
    LABELS,
    PLAIN,
    SAMO,
    Setting,
)
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.optimizers import make_optimizer
from samo_jax.experiments.training.runs import Run, evaluated_epochs
from samo_jax.experiments.training.trainer import Trainer

TASKS = ("left", "right")


def tiny(split):
    """Two linear classifications."""

    def examples(count, seed):
        x = np.random.default_rng(seed).normal(size=(count, 4)).astype("f4")
        labels = {"left": x[:, 0] > 0, "right": x[:, 0] + x[:, 1] > 0}
        return Examples(x, {task: of.astype(int) for task, of in labels.items()})

    return Benchmark(
        dict.fromkeys(TASKS, CLASSIFICATION),
        lambda tasks: MultitaskNet(dict.fromkeys(tasks, 2), widths=(5,)),
        examples(100, seed=1),
        examples(80, seed={"test": 2, "validation": 3}[split]),
        batch_size=20,
        epochs=1,
        learning_rate=0.03,
        rho=0.2,
    )


def losses(params):
    x, y = params["Dense_0"], params["left"]
    return {"left": jnp.sum(x**2) * (1 + y**2), "right": jnp.sum((x - 2) ** 2)}


PARAMS = {"Dense_0": jnp.array([1.0, 0.5, -1.0]), "left": jnp.array(0.5)}


def train_step(tx):
    @jax.jit
    def step(params, state):
        grads = samo_jax.mean_value_and_grad(losses)(params)[1]
        updates, state = tx.update(grads, state, params, loss_fn=losses)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.slow
def test_swept_parameters_are_in_the_state():
    """Another's update, which takes radius, alpha and seed from the state."""
    method, benchmark = method_of(SAMO), tiny("test")._replace(learning_rate=0.1)
    expected = make_optimizer(method, benchmark._replace(rho=0.3, alpha=0.2), 7)
    swept = {"rho": 0.3, "alpha": 0.2}
    state = make_optimizer(method, benchmark, 7, swept).init(PARAMS)
    params, expected_params, expected_state = PARAMS, PARAMS, expected.init(PARAMS)
    other = {"rho": 0.0, "alpha": 0.5}
    other_step = train_step(make_optimizer(method, benchmark, 0, other))
    expected_step = train_step(expected)
    for _ in range(3):
        params, state = other_step(params, state)
        expected_params, expected_state = expected_step(expected_params, expected_state)
    for name, leaf in expected_params.items():
        np.testing.assert_allclose(params[name], leaf, rtol=1e-5)


@pytest.mark.slow
def test_a_minimum():
    benchmark = tiny("test")
    net = benchmark.net(TASKS)
    params = jax.jit(net.init)(jax.random.key(0), benchmark.train.inputs)["params"]
    found = minimum_at(benchmark, params)
    shared, unravel = ravel_pytree({"Dense_0": params["Dense_0"]})

    def task_losses_of(shared, batch):
        outputs = net.apply({"params": params | unravel(shared)}, batch.inputs)
        return {t: CLASSIFICATION.loss(outputs[t], batch.labels[t]) for t in TASKS}

    def mean_loss(shared):
        losses = task_losses_of(shared, benchmark.train.take(slice(80)))
        return (losses["left"] + losses["right"]) / 2

    spectrum = np.linalg.eigvalsh(jax.jit(jax.hessian(mean_loss))(shared))[::-1]
    np.testing.assert_allclose(found.eigenvalues, spectrum[:5], rtol=1e-3, atol=1e-6)
    heights = np.array(found.heights)
    centre = len(heights) // 2
    np.testing.assert_allclose(heights[centre, centre], mean_loss(shared), rtol=1e-5)
    gradients = jax.jit(jax.jacobian(task_losses_of))
    cosines = []
    for start in range(0, 100, 20):
        batch = benchmark.train.take(slice(start, start + 20))
        left, right = map(np.asarray, gradients(shared, batch).values())
        cosines.append(left @ right / np.linalg.norm(left) / np.linalg.norm(right))
    np.testing.assert_allclose(found.cosine, np.mean(cosines), rtol=1e-4)
    np.testing.assert_allclose(found.conflicts, np.mean(np.less(cosines, 0)))


def finished(left, right, seconds=0.1, loss=0.5, epochs=2):
    metrics = {"left": {"accuracy": left}, "right": {"accuracy": right}}
    curve = [(epoch, metrics) for epoch in evaluated_epochs(epochs)]
    return Run(metrics, curve, [*[1.0] * (epochs - 1), loss], seconds)


def results():
    """By hand."""
    return Results(
        dict.fromkeys(TASKS, CLASSIFICATION),
        sweeps={
            Setting(PLAIN): {0: finished(80, 40), 1: finished(80, 60)},
            Setting(GLOBAL, 0.2): {0: finished(80, 60), 1: finished(88, 50)},
            Setting(GLOBAL, 0.1): {0: finished(80, 50), 1: finished(80, 50)},
            Setting(SAMO, 0.1): {0: finished(80, 55), 1: finished(80, 55)},
            Setting(SAMO, 0.2): {0: finished(80, 50), 1: finished(80, 50)},
            Setting(SAMO, 0.1, 1.0): {0: finished(40, 50), 1: finished(80, 25)},
            Setting(SAMO, 0.1, 0.5, 1.0): {0: finished(80, 50), 1: finished(80, 60)},
        },
        rhos={PLAIN: 0.0, GLOBAL: 0.2, SAMO: 0.1},
        finals={
            PLAIN: {0: finished(80, 50), 1: finished(80, 50)},
            GLOBAL: {0: finished(88, 50, 0.2), 1: finished(80, 50, 0.2)},
            SAMO: {0: finished(96, 50, 0.3, 0.1), 1: finished(80, 60, 0.3, 0.3)},
        },
        minima={
            PLAIN: {0: Minimum(0.5, 0.0, [8.0, 5, 4, 3, 2], [[1.0, 2], [3, 4]])},
            SAMO: {
                0: Minimum(0.25, 0.5, [3.0, 2, 2, 2, 1], [[1.0, 2], [3, 4]]),
                1: Minimum(0.75, 0.25, [5.0, 2, 2, 2, 1], [[1.0, 2], [3, 4]]),
            },
        },
    )


def test_best_radius():
    assert results().best_rho(PLAIN) == 0
    assert results().best_rho(GLOBAL) == 0.2
    assert results().best_rho(SAMO) == 0.1


def test_tables():
    assert report.comparison(results()) == [
        [
            *("method", "rho", "left accuracy [%]", "right accuracy [%]"),
            *("Δm [%]", "to global", "time"),
        ],
        ["plain", "-", "80.0 ± 0.0", "50.0 ± 0.0", "0.0 ± 0.0", "2.5 ± 3.5", "1.00"],
        [
            "global",
            "0.2",
            "84.0 ± 5.7",
            "50.0 ± 0.0",
            "-2.5 ± 3.5",
            "0.0 ± 0.0",
            "2.00",
        ],
        [
            "SAMO",
            "0.1",
            "88.0 ± 11.3",
            "55.0 ± 7.1",
            "-10.0 ± 0.0",
            "-7.5 ± 3.5",
            "3.00",
        ],
    ]
    assert report.sharpness(results()) == [
        ["method", "training loss", "λ1", "λ1 / λ5", "cosine", "conflicts [%]"],
        ["plain", "0.500 ± 0.000", "8.00", "4.00", "0.500", "0.00"],
        [
            *("SAMO", "0.200 ± 0.141", "4.00 ± 1.41", "4.00 ± 1.41"),
            *("0.500 ± 0.354", "37.5 ± 17.7"),
        ],
    ]
    tables = {
        parameter: report.sweep_table(parameter, by_method)
        for parameter, by_method in report.sweeps(results()).items()
    }
    assert tables == {
        "rho": [
            ["rho", "0.1", "0.2"],
            ["global", "0.0 ± 0.0", "-7.5 ± 3.5"],
            ["SAMO", "-5.0 ± 0.0", "0.0 ± 0.0"],
        ],
        "alpha": [["alpha", "0.5", "1"], ["SAMO", "-5.0 ± 0.0", "25.0 ± 0.0"]],
        "mu": [["mu", "0.01", "1"], ["SAMO", "-5.0 ± 0.0", "-5.0 ± 7.1"]],
    }


@pytest.fixture
def ablation(monkeypatch, tmp_path):
    """Runs the command on the tiny problem; its exit status and folder."""
    monkeypatch.setitem(study.PROBLEMS, "digits", tiny)
    monkeypatch.chdir(tmp_path)

    def run(*args):
        command = ["experiments", "ablation", "--problems", "digits", "--out", "out"]
        monkeypatch.setattr(sys, "argv", [*command, *args])
        return main(), tmp_path / "out"

    return run


@pytest.mark.slow
def test_runs_and_reports(ablation):
    numbers = ["--seeds", "2", "--sweep-seeds", "1", "--minima", "1", "--epochs", "6"]
    status, out = ablation(*numbers)
    assert status == 0
    document = json.loads((out / "digits/results.json").read_text())
    config, runs = document["config"], document["runs"]
    assert [(r["method"], r["seed"]) for r in runs] == [
        (method, seed) for method in LABELS for seed in (0, 1)
    ]
    for r in runs:
        assert r["loss_curve"][-1] < r["loss_curve"][0]
    assert [m["method"] for m in config["minima"]] == list(LABELS)
    values = {"rho": set(), "alpha": set(), "mu": set()}
    accuracies = {}
    for entry in config["sweeps"]:
        if entry["method"] == SAMO:
            for parameter, seen in values.items():
                seen.add(entry[parameter])
        if (entry["alpha"], entry["mu"]) == (0.5, 0.01):
            accuracy = [of["accuracy"] for of in entry["metrics"].values()]
            accuracies.setdefault(entry["method"], {})[entry["rho"]] = accuracy
    assert values == {
        "rho": {0.2 * factor for factor in RADII},
        "alpha": set(ALPHAS),
        "mu": set(MUS),
    }
    assert len(config["sweeps"]) == 1 + 4 * len(RADII) + len(ALPHAS) + len(MUS) - 2
    plain = np.array(accuracies[PLAIN][0.0])
    for method, by_rho in accuracies.items():
        gains = {rho: np.mean(of / plain) for rho, of in by_rho.items()}
        np.testing.assert_allclose(gains[config["rho"][method]], max(gains.values()))
    page = (out / "report.md").read_text()
    assert "mean ± standard deviation over 2 seeds" in page
    for label in LABELS.values():
        assert f"| {label} |" in page
    built = config["built"][SAMO]
    assert f"joint_sam(rho={config['rho'][SAMO]!r})" in built
    assert built in page
    assert (out / "report.html").read_text().count("<img") == 3
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert [name for name in pictures if f"({name})" in page] == pictures
    assert len(pictures) == 3


@pytest.mark.slow
def test_other_methods(ablation):
    """Any method of the grammar; plain and global SAM are always there."""
    given = ["mean+f_mtl", "fairgrad+memory_sam(rho=0.1)"]
    numbers = ["--seeds", "1", "--sweep-seeds", "1", "--minima", "1", "--epochs", "1"]
    status, out = ablation("--methods", *given, *numbers)
    assert status == 0
    document = json.loads((out / "digits/results.json").read_text())
    assert [r["method"] for r in document["runs"]] == [PLAIN, GLOBAL, *given]
    swept = [entry["method"] for entry in document["config"]["sweeps"]]
    assert {m: swept.count(m) for m in swept} == {
        PLAIN: 1,
        GLOBAL: len(RADII),
        "mean+f_mtl": len(RADII),
        "fairgrad+memory_sam(rho=0.1)": 1,
    }
    page = (out / "report.md").read_text()
    assert "| fairgrad+memory_sam(rho=0.1) | - |" in page
    assert "| alpha |" not in page


def test_single_task_has_no_minimum(ablation):
    with pytest.raises(SystemExit, match="--methods: single-task has no minimum"):
        ablation("--methods", "single-task")


@pytest.mark.slow
def test_interrupted_and_resumed_as_uninterrupted(ablation, monkeypatch):
    calls, interrupts = [], []

    def train(_trainer, seed, epochs, _on_epoch, **hyperparams):
        calls.append((seed, hyperparams))
        if len(calls) in interrupts:
            raise KeyboardInterrupt
        accuracy = 90 - seed - abs(hyperparams["rho"] - 0.1) + hyperparams["alpha"]
        return {}, finished(accuracy, 80, epochs=epochs)

    heights = np.arange(1.0, POINTS**2 + 1).reshape(POINTS, POINTS).tolist()
    minimum = Minimum(0.1, 0.2, [5.0, 4, 3, 2, 1], heights)
    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(study, "minimum_at", lambda *_: minimum)
    status, out = ablation()
    assert status == 0
    results, page = out / "digits/results.json", out / "report.md"
    expected, uninterrupted, wanted = results.read_text(), len(calls), page.read_text()
    shutil.rmtree(out)

    calls.clear()
    interrupts += [4, uninterrupted - 3]  # in the first sweep, in the comparison
    with pytest.raises(SystemExit, match="130"):
        ablation()
    assert len(json.loads(results.read_text())["config"]["sweeps"]) == 3
    arguments = ["experiments", "ablation", "--resume", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="130"):
        main()
    assert main() == 0
    assert len(calls) == uninterrupted + len(interrupts)
    assert results.read_text() == expected
    assert page.read_text() == wanted
    monkeypatch.setattr(sys, "argv", [*arguments, "--seeds", "4"])
    with pytest.raises(SystemExit, match="has seeds 5, not 4"):
        main()
