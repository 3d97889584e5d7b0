"""The toy experiment: methods against loops by hand, and end to end."""

import argparse
import json

import jax
import numpy as np
import pytest

from samo_jax.experiments.toy import experiment as toy
from samo_jax.experiments.toy.landscapes import (
    LANDSCAPES,
    cagrad_losses,
    pareto_front,
)
from samo_jax.experiments.toy.plots import COLORS

SHARP, FLAT = (-1.0, 0.0), (1.5, 0.0)


def arguments(*words):
    parser = argparse.ArgumentParser()
    toy.add_arguments(parser)
    return parser.parse_args(words)


def test_plain_mean_is_adam_on_the_mean_loss():
    paths = toy.descend("cagrad", "mean", "plain", seed=0)
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
        method: is_flat(toy.ends_of(toy.descend("valleys", "mean", method, 0))).mean()
        for method in ("plain", "samo")
    }
    assert share["plain"] < 0.2
    assert share["samo"] > 0.9


def test_noise_is_the_seeds_and_each_starts_own():
    paths, again, other = (
        toy.descend("valleys", "mean", "plain", seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(paths, again)
    assert np.all(np.any(paths[:, 1] != other[:, 1], axis=-1))
    moves = paths[:, 1] - paths[:, 0]
    assert len(np.unique(moves, axis=0)) == len(moves)


def test_ends_are_the_mean_of_the_last_steps():
    paths = np.random.default_rng(0).normal(size=(3, 80, 2))
    np.testing.assert_allclose(toy.ends_of(paths), paths[:, 30:].mean(axis=1))


def test_measure_by_hand():
    landscape, front = LANDSCAPES["valleys"], pareto_front(LANDSCAPES["valleys"])
    end = toy.measure(landscape, front, np.array([SHARP, FLAT, FLAT, (1.5, 3)]))
    np.testing.assert_allclose(end.losses["a"], (0.5 * 3 + 2) / 4, atol=1e-5)
    np.testing.assert_allclose(end.losses["b"], (0.5 * 3 + 8) / 4, atol=1e-5)
    # (2, 8) is 6 from the front's end (0, 2), and 2 to its right.
    np.testing.assert_allclose(end.distance, 40**0.5 / 4, atol=1e-3)
    np.testing.assert_allclose(end.sharpness, (20 + 3 * 1) / 4, atol=1e-3)
    assert end.flat == 0.75
    assert toy.measure(LANDSCAPES["cagrad"], front, np.array([SHARP])).flat is None


def test_sharpness_is_the_largest_eigenvalue():
    values = toy.sharpness_at(LANDSCAPES["valleys"].losses, np.array([SHARP, FLAT]))
    np.testing.assert_allclose(values, [20, 1], atol=1e-4)


@pytest.mark.slow
def test_reports(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--combiners", "mean", "--sharpness", "plain", "local", "--out", str(out)]
    assert toy.run(arguments(*words, "--seed", "3")) == 0
    document = json.loads((out / "results.json").read_text())
    assert document["config"]["sharpness"] == ["plain", "local"]
    table, printed = (out / "table.md").read_text(), capsys.readouterr().out
    assert [run["method"] for run in document["runs"]] == ["mean", "mean+local"]
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


@pytest.mark.parametrize("option", ["--combiners", "--sharpness", "--landscapes"])
def test_wrong_names(option, capsys):
    with pytest.raises(SystemExit):
        arguments(option, "none")
    assert f"argument {option}: invalid choice: 'none'" in capsys.readouterr().err


def test_every_sharpness_method_has_a_colour():
    assert set(COLORS) == set(toy.SHARPNESS)
