"""The benchmarks, end to end at a small size."""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from samo_jax.experiments.__main__ import main
from samo_jax.experiments.command import add_methods_argument
from samo_jax.experiments.data.digits import multi_digits
from samo_jax.experiments.problems.generated import BENCHMARKS
from samo_jax.experiments.problems.tasks import CLASSIFICATION
from samo_jax.experiments.reports import benchmark_page, scores
from samo_jax.experiments.reports.summary_plot import plot
from samo_jax.experiments.studies.benchmark import DEFAULT_METHODS
from samo_jax.experiments.training.columns import columns
from samo_jax.experiments.training.grammar import COMBINER_NAMES, PERTURBATION_NAMES
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.runs import Run
from samo_jax.experiments.training.trainer import Trainer

import small_runs

COMMAND = [sys.executable, "-m", "samo_jax.experiments"]


def run(*args, cwd, name="digits"):
    return subprocess.run(
        [*COMMAND, name, *args], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("split", ["test", "validation"])
def test_data(split):
    train, evaluation = multi_digits(split)
    again, _ = multi_digits(split)
    np.testing.assert_array_equal(train.images, again.images)
    assert train.images.shape == (2000, 12, 12, 1)
    assert evaluation.images.shape == (3000, 12, 12, 1)
    assert train.images.min() == 0
    assert train.images.max() == 1
    for labels in (*train.labels.values(), *evaluation.labels.values()):
        assert set(labels) == set(range(10))

    def corners(pairs):
        """The top-left 4x4 block belongs to the left digit alone."""
        return {
            image[:4].tobytes() + image[4:8, :4].tobytes() for image in pairs.images
        }

    assert len(corners(train) & corners(evaluation)) <= 3  # chance lookalikes


@pytest.mark.slow
def test_learns_and_reports(tmp_path):
    methods = ["single-task", "fairgrad+samo"]
    result = run(
        *["--seeds", "1", "--epochs", "6", "--out", "out", "--methods", *methods],
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert document["config"]["epochs"] == 6
    runs = document["runs"]
    assert {(r["method"], r["seed"]) for r in runs} == {(m, 0) for m in methods}
    for r in runs:
        assert set(r["metrics"]) == {"left", "right"}
        assert np.mean([of["accuracy"] for of in r["metrics"].values()]) > 75
        assert len(r["metrics_curve"]) == 6
        assert r["metrics_curve"][-1] == [6, r["metrics"]]
        assert r["loss_curve"][-1] < r["loss_curve"][0] / 2
    table = (tmp_path / "out/report.md").read_text()
    for method in methods:
        assert f"| {method} |" in table
        assert method in result.stdout
    assert (tmp_path / "out/summary.png").stat().st_size > 10_000


@pytest.mark.slow
def test_interrupt_keeps_finished_runs(tmp_path):
    # Where the tests run in the background, SIGINT may be ignored by inheritance.
    script = (
        "import runpy, signal, sys;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "sys.argv[0] = 'experiments';"
        "runpy.run_module('samo_jax.experiments', run_name='__main__')"
    )
    args = ["--epochs", "2", "--seeds", "500", "--methods", "mean", "--out", "o"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, "digits", *args],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    results = tmp_path / "o/results.json"
    deadline = time.monotonic() + 120
    while not results.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    output = None
    while output is None and time.monotonic() < deadline + 180:
        # Again, as users would: one that falls into JAX's callback of the garbage
        # collection is lost.
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in output
    assert json.loads(results.read_text())["runs"]
    assert "| mean |" in (tmp_path / "o/report.md").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rho", "-1"], "argument --rho: must be a finite non-negative number"),
        (["--rho", "big"], "argument --rho: must be a finite non-negative number"),
        (["--alpha", "2"], r"argument --alpha: must be a number in [0, 1], got '2'"),
        (["--seeds", "0"], "argument --seeds: must be a positive integer, got '0'"),
        (["--epochs", "x"], "argument --epochs: must be a positive integer, got 'x'"),
        (
            ["--methods", "adam"],
            "argument --methods: 'adam': there is no combiner 'adam'",
        ),
        (["--out", "."], "--out: . exists and is not an empty folder"),
    ],
)
def test_wrong_values_get_one_line(monkeypatch, tmp_path, capsys, args, message):
    (tmp_path / "taken").touch()
    monkeypatch.chdir(tmp_path)
    assert message in small_runs.last_line(capsys, "digits", *args)


def test_help_lists_the_methods_and_the_real_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["digits", "--help"])
    printed = capsys.readouterr().out
    words = set(printed.replace(",", " ").split())
    assert {"single-task", *COMBINER_NAMES, *PERTURBATION_NAMES} <= words
    text = " ".join(printed.split())
    assert f"(default: {' '.join(DEFAULT_METHODS)})" in text
    assert "--epochs EPOCHS per run (default: 30)" in text


def test_default_methods_and_selections():
    parser = argparse.ArgumentParser()
    add_methods_argument(parser, DEFAULT_METHODS)

    def selected(*args):
        return parser.parse_args(args).methods

    assert selected() == [
        "single-task",
        *("mean", "mean+global_sam", "mean+samo"),
        *("mgda", "mgda+global_sam", "mgda+samo"),
        *("fairgrad", "fairgrad+global_sam", "fairgrad+samo"),
    ]
    once = selected("--methods", "mgda + samo", "mean", "mgda+samo")
    assert once == ["mgda+samo", "mean"]
    assert selected("--methods", "all+samo") == [f"{c}+samo" for c in COMBINER_NAMES]


TWO_TASKS = dict.fromkeys(("left", "right"), CLASSIFICATION)


def finished(left, right, seconds=0.1):
    metrics = {"left": {"accuracy": left}, "right": {"accuracy": right}}
    return Run(metrics, [(1, metrics)], [2, 1], seconds)


def test_summary():
    results = {
        "single-task": {0: finished(80, 50, 0.2), 1: finished(90, 50)},
        "mean": {0: finished(85, 60), 1: finished(68, 50)},
    }
    header, single, mean = benchmark_page.summarize(results, TWO_TASKS)
    assert header == [
        *("method", "left accuracy [%]", "right accuracy [%]", "Δm [%]", "time")
    ]
    assert single[1:3] == ["85.0 ± 7.1", "50.0 ± 0.0"]
    # -(85 - 85) / 85 and -(60 - 50) / 50; -(68 - 85) / 85 and 0
    np.testing.assert_allclose(
        scores.delta_m(columns(TWO_TASKS), results)["mean"], [-10, 10], rtol=1e-5
    )
    assert mean[3:] == ["0.0 ± 14.1", "1.00"]
    assert single[4] == "1.50"
    del results["single-task"]
    assert benchmark_page.summarize(results, TWO_TASKS)[1][3].startswith("0.0")


def test_many_metrics_are_averaged_over_tasks():
    names = [f"task{i}" for i in range(13)]
    metrics = {name: {"accuracy": float(i)} for i, name in enumerate(names)}
    results = {"mean": {0: Run(metrics, [(1, metrics)], [1.0], 0.1)}}
    table = benchmark_page.summarize(results, dict.fromkeys(names, CLASSIFICATION))
    assert table[0] == ["method", "mean accuracy [%]", "Δm [%]", "time"]
    assert table[1][1] == "6.00"


@pytest.mark.slow
def test_plot_of_many_methods(tmp_path):
    methods = [
        f"{combiner}+{perturbation}"
        for combiner in COMBINER_NAMES
        for perturbation in PERTURBATION_NAMES[:3]
    ]
    results = {method: {0: finished(90, 80)} for method in methods}
    plot(results, TWO_TASKS, tmp_path / "summary.png")
    assert (tmp_path / "summary.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - {"scenes2"}))  # of scenes
def test_every_benchmark_learns(name):
    """A few steps on a small part lower the loss; heads carry their task's name."""
    benchmark = BENCHMARKS[name]("validation")
    small = benchmark._replace(
        train=benchmark.train.take(slice(20)),
        evaluation=benchmark.evaluation.take(slice(10)),
        batch_size=10,
        learning_rate=3e-3,
        clip_norm=None,
    )
    tasks = set(small.tasks)
    trainer = Trainer(small, method_of("mean"))
    _, finished = trainer.train(0, 8, lambda: None)
    assert finished.loss_curve[-1] < 0.9 * finished.loss_curve[0]
    for task, of in finished.metrics.items():
        assert set(of) == set(small.tasks[task].higher_is_better)
        assert np.all(np.isfinite(list(of.values())))

    def modules(net):
        shapes = jax.eval_shape(net.init, jax.random.key(0), small.train.inputs)
        return set(shapes["params"])

    assert tasks < modules(trainer.net)
    assert modules(small.net(sorted(tasks)[:1])) & tasks == {min(tasks)}


@pytest.mark.slow
def test_one_bad_batch_leaves_no_nan_in_a_training_loop():
    """The experiments' own, whose network has batch statistics and dropout."""
    benchmark = small_runs.normalised_benchmark()
    trainer = small_runs.trainer(benchmark, "mgda+global_sam")
    params, opt_state, state = trainer.start(0)
    good = trainer.batch()
    bad = good._replace(inputs=np.nan * good.inputs)
    for batch in (good, bad, good):
        before = state
        params, opt_state, _, state = trainer.train_step(
            params, opt_state, batch, batch, batch, state
        )
        chex.assert_tree_all_finite((params, state.collections))
        if batch is bad:
            chex.assert_trees_all_equal(state.collections, before.collections)
    metrics = trainer.evaluate(params, state)
    assert np.isfinite([list(of.values()) for of in metrics.values()]).all()
