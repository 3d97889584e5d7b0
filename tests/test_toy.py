"""The toy study: methods against loops by hand, and end to end."""

import argparse
import json

import jax
import numpy as np
import pytest

from samo_jax.experiments.studies.toy import command as toy
from samo_jax.experiments.studies.toy import descent
from samo_jax.experiments.studies.toy.landscapes import (
    LANDSCAPES,
    cagrad_losses,
    pareto_front,
)

SHARP, FLAT = (-1.0, 0.0), (1.5, 0.0)


def arguments(*words):
    parser = argparse.ArgumentParser()
    toy.add_arguments(parser)
    return parser.parse_args(words)


def test_plain_mean_is_adam_on_the_mean_loss():
    paths = descent.descend("cagrad", "mean", seed=0)
    starts = LANDSCAPES["cagrad"].starts
    assert paths.shape == (len(starts), 3001, 2)
    np.testing.assert_array_equal(paths[:, 0], starts)
    gradient = jax.jit(jax.grad(lambda params: sum(cagrad_losses(params).values()) / 2))
    params, first, second = starts[-1].astype(float), 0.0, 0.0
    for step in range(1, 31):
        g = np.asarray(gradient(params))
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        ratio = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        params = params - 0.01 * first / (1 - 0.9**step) / ratio
        np.testing.assert_allclose(paths[-1, step], params, atol=1e-4)


@pytest.mark.slow
def test_sharpness_aware_methods_leave_the_sharp_valley():
    is_flat = LANDSCAPES["valleys"].is_flat
    share = {
        method: is_flat(descent.ends_of(descent.descend("valleys", method, 0))).mean()
        for method in ("mean", "mean+samo")
    }
    assert share["mean"] < 0.2
    assert share["mean+samo"] > 0.9


def test_noise_is_the_seeds_and_each_starts_own():
    paths, again, other = (
        descent.descend("valleys", "mean", seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(paths, again)
    assert np.all(np.any(paths[:, 1] != other[:, 1], axis=-1))
    moves = paths[:, 1] - paths[:, 0]
    assert len(np.unique(moves, axis=0)) == len(moves)


def test_ends_are_the_mean_of_the_last_steps():
    paths = np.random.default_rng(0).normal(size=(3, 80, 2))
    np.testing.assert_allclose(descent.ends_of(paths), paths[:, 30:].mean(axis=1))


def test_measure_by_hand():
    landscape, front = LANDSCAPES["valleys"], pareto_front(LANDSCAPES["valleys"])
    end = descent.measure(landscape, front, np.array([SHARP, FLAT, FLAT, (1.5, 3)]))
    np.testing.assert_allclose(end.losses["a"], (0.5 * 3 + 2) / 4, atol=1e-5)
    np.testing.assert_allclose(end.losses["b"], (0.5 * 3 + 8) / 4, atol=1e-5)
    # (2, 8) is 6 from the front's end (0, 2), and 2 to its right.
    np.testing.assert_allclose(end.distance, 40**0.5 / 4, atol=1e-3)
    np.testing.assert_allclose(end.sharpness, (20 + 3 * 1) / 4, atol=1e-3)
    assert end.flat == 0.75
    assert descent.measure(LANDSCAPES["cagrad"], front, np.array([SHARP])).flat is None


def test_sharpness_is_the_largest_eigenvalue():
    values = descent.sharpness_at(LANDSCAPES["valleys"].losses, np.array([SHARP, FLAT]))
    np.testing.assert_allclose(values, [20, 1], atol=1e-4)


@pytest.mark.slow
def test_reports(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--methods", "mean", "mean+local_sam", "mgda+f_mtl", "--out", str(out)]
    assert toy.run(arguments(*words, "--seed", "3")) == 0
    document = json.loads((out / "results.json").read_text())
    assert document["config"]["methods"] == words[1:4]
    table, printed = (out / "report.md").read_text(), capsys.readouterr().out
    assert [run["method"] for run in document["runs"]] == words[1:4]
    assert "samo_jax.local_sam(rho=0.3)" in table
    assert (out / "report.html").read_text().count("<img") == len(LANDSCAPES)
    for run in document["runs"]:
        assert run["seed"] == 3
        assert set(run["ends"]) == set(LANDSCAPES)
        assert run["ends"]["cagrad"]["flat"] is None
        assert f"| {run['method']} |" in table
        assert f"{100 * run['ends']['valleys']['flat']:.0f} |" in table
        assert run["method"] in printed
    for name in LANDSCAPES:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="not an empty folder"):
        toy.run(arguments(*words))


@pytest.mark.parametrize("option", ["--methods", "--landscapes"])
def test_wrong_names(option, capsys):
    with pytest.raises(SystemExit):
        arguments(option, "none")
    assert f"argument {option}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("single-task", "a landscape has no parameters of one task alone"),
        ("modo", "needs a second, independent batch, and a landscape cannot"),
        ("mean+efficient_sam", "needs the losses of single examples"),
        ("constant(weights=[1.0])", "weights"),
    ],
)
def test_methods_that_a_landscape_is_not_for(method, wrong, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=wrong):
        toy.run(arguments("--methods", method, "--out", str(out)))
    assert not out.exists()
