"""The modalities experiment, end to end at a small size."""

import argparse
import json

import numpy as np
import pytest

from samo_jax.experiments import modalities
from samo_jax.experiments.__main__ import main
from samo_jax.experiments.data.halves import half_digits, masked
from samo_jax.experiments.modalities import METHODS, Run, train_all

import small_runs

RHOS = (0.02, 0.2)


@pytest.fixture
def few_radii(monkeypatch):
    monkeypatch.setattr(modalities, "RHOS", RHOS)


def test_data():
    splits = half_digits()
    assert [len(split.digits) for split in splits] == [900, 300, 597]
    for split, again in zip(splits, half_digits(), strict=True):
        np.testing.assert_array_equal(split.halves, again.halves)
        assert split.halves.shape == (len(split.digits), 2, 32)
        assert set(split.digits) == set(range(10))
        assert 0 <= split.halves[:, 0].min() < split.halves[:, 0].max() <= 1
        assert split.halves[:, 1].min() < -1
    train, _, test = ({half.tobytes() for half in s.halves[:, 0]} for s in splits)
    assert len(train & test) <= 3  # chance lookalikes
    upper = masked(splits[0].halves, (True, False))
    np.testing.assert_array_equal(upper[:, 0], splits[0].halves[:, 0])
    assert not np.any(upper[:, 1])


@pytest.mark.slow
@pytest.mark.usefixtures("few_radii")
def test_learns_and_reports(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--seeds", "1", "--epochs", "8", "--out", str(out)]
    assert main(["modalities", *arguments]) == 0
    printed = capsys.readouterr().out
    document = json.loads((out / "results.json").read_text())
    assert document["config"]["epochs"] == 8
    runs = document["runs"]
    assert {(r["method"], r["seed"]) for r in runs} == {(m, 0) for m in METHODS}
    table = (out / "table.md").read_text()
    for r in runs:
        assert r["accuracy"]["both"] > 0.75
        assert r["accuracy"]["both"] > r["accuracy"]["upper"] > r["accuracy"]["lower"]
        scores = r["validation_scores"]
        assert r["rho"] == float(max(scores, key=scores.get))
        plain = r["method"] in ("plain", "unimodal")
        assert len(scores) == (1 if plain else len(RHOS))
        assert f"| {r['method']} |" in table
        assert r["method"] in printed


@pytest.mark.slow
@pytest.mark.usefixtures("few_radii")
def test_early_fusion_learns():
    runs = train_all("batch", argparse.Namespace(fusion="early", seeds=1, epochs=8))
    assert runs[0].accuracy["both"] > 0.75


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seeds", "0"], "argument --seeds: must be a positive integer, got '0'"),
        (["--epochs", "x"], "argument --epochs: must be a positive integer, got 'x'"),
        (["--fusion", "none"], "argument --fusion: invalid choice: 'none'"),
        (["--out", "."], "--out: . exists and is not an empty folder"),
    ],
)
def test_wrong_values_get_one_line(monkeypatch, tmp_path, capsys, args, message):
    (tmp_path / "taken").touch()
    monkeypatch.chdir(tmp_path)
    assert message in small_runs.last_line(capsys, "modalities", *args)


@pytest.mark.slow
def test_interrupted_and_resumed_as_uninterrupted(monkeypatch, tmp_path):
    calls = []

    def train(method, args):
        calls.append(method)
        if len(calls) == 3:
            raise KeyboardInterrupt
        accuracy = {"both": 0.9, "upper": 0.8, "lower": len(method) / 10}
        run = Run(accuracy, accuracy, 0.1, {"0.1": 0.8})
        return dict.fromkeys(range(args.seeds), run)

    monkeypatch.setattr(modalities, "train_all", train)
    with pytest.raises(SystemExit, match="130"):
        main(["modalities", "--out", str(tmp_path / "out")])
    assert main(["modalities", "--resume", str(tmp_path / "out")]) == 0
    methods = list(METHODS)
    assert calls == [*methods[:3], *methods[2:]]
    table = (tmp_path / "out/table.md").read_text().splitlines()
    assert [line.split(" | ")[0][2:] for line in table[2:9]] == methods
