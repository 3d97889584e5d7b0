"""The digits experiment, end to end at a small size."""

import argparse
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from samo_jax.experiments import digits, report
from samo_jax.experiments.data import multi_digits
from samo_jax.experiments.methods import COMBINERS, METHODS
from samo_jax.experiments.training import Run

COMMAND = [sys.executable, "-m", "samo_jax.experiments", "digits"]


def run(*args, cwd):
    return subprocess.run(
        [*COMMAND, *args], cwd=cwd, capture_output=True, text=True, check=False
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


def test_learns_and_reports(tmp_path):
    methods = ["single-task", "mean", "fairgrad+samo", "modo"]
    result = run(
        *["--seeds", "2", "--epochs", "6", "--out", "out", "--methods", *methods],
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert document["config"]["epochs"] == 6
    runs = document["runs"]
    assert {(r["method"], r["seed"]) for r in runs} == {
        (m, s) for m in methods for s in (0, 1)
    }
    for r in runs:
        assert set(r["accuracy"]) == {"left", "right"}
        assert np.mean(list(r["accuracy"].values())) > 0.75
        assert len(r["accuracy_curve"]) == 6
        assert r["loss_curve"][-1] < r["loss_curve"][0] / 2
    table = (tmp_path / "out/table.md").read_text()
    for method in methods:
        assert f"| {method} |" in table
        assert method in result.stdout
    assert (tmp_path / "out/accuracy.png").stat().st_size > 10_000


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
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in output
    assert json.loads(results.read_text())["runs"]
    assert "| mean |" in (tmp_path / "o/table.md").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--rho", "-1"], "argument --rho: must be a finite non-negative number"),
        (["--rho", "big"], "argument --rho: must be a finite non-negative number"),
        (["--alpha", "2"], r"argument --alpha: must be a number in [0, 1], got '2'"),
        (["--seeds", "0"], "argument --seeds: must be a positive integer, got '0'"),
        (["--epochs", "x"], "argument --epochs: must be a positive integer, got 'x'"),
        (["--methods", "adam"], "argument --methods: invalid choice: 'adam'"),
        (["--out", "."], "--out: . exists and is not an empty folder"),
    ],
)
def test_wrong_values_get_one_line(tmp_path, args, message):
    (tmp_path / "taken").touch()
    result = run(*args, cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_lists_the_combiners(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    words = result.stdout.replace(",", " ").split()
    assert {"single-task", "all", *COMBINERS} <= set(words)


def test_default_methods_and_selections():
    parser = argparse.ArgumentParser()
    digits.add_arguments(parser)

    def selected(*args):
        return digits.selected_methods(parser.parse_args(args).methods)

    assert selected() == [
        "single-task",
        *("mean", "mean+global", "mean+samo"),
        *("mgda", "mgda+global", "mgda+samo"),
        *("fairgrad", "fairgrad+global", "fairgrad+samo"),
    ]
    once = selected("--methods", "mgda+samo", "mean", "mgda+samo")
    assert once == ["mgda+samo", "mean"]
    assert selected("--methods", "all+samo") == [f"{c}+samo" for c in COMBINERS]


def test_plot_of_many_methods(tmp_path):
    finished = Run({"left": 0.9, "right": 0.8}, [(1, 0.5), (2, 0.85)], [2, 1], 0.1)
    report.plot({m: {0: finished} for m in METHODS}, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
