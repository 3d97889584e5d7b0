"""The study of modalities, end to end at a small size."""

import argparse
import json

import numpy as np
import pytest

from samo_jax.experiments.__main__ import main
from samo_jax.experiments.data.halves import half_digits, masked
from samo_jax.experiments.studies import modalities
from samo_jax.experiments.studies.modalities import LABELS, Recognition, train_all

import small_runs

RHOS = (0.02, 0.2)
BATCH = "mean+modality_aware_sam(decay=0.9)"


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
    assert {(r["method"], r["seed"]) for r in runs} == {(m, 0) for m in LABELS}
    table = (out / "report.md").read_text()
    for r in runs:
        assert r["accuracy"]["both"] > 0.75
        assert r["accuracy"]["both"] > r["accuracy"]["upper"] > r["accuracy"]["lower"]
        scores = r["validation_scores"]
        assert r["rho"] == float(max(scores, key=scores.get))
        label = LABELS[r["method"]]
        plain = label in ("plain", "unimodal")
        assert len(scores) == (1 if plain else len(RHOS))
        assert f"| {label} |" in table
        assert label in printed


@pytest.mark.slow
@pytest.mark.usefixtures("few_radii")
def test_early_fusion_learns():
    runs = train_all(BATCH, argparse.Namespace(fusion="early", seeds=1, epochs=8))
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
        run = Recognition(accuracy, accuracy, 0.1, {"0.1": 0.8})
        return dict.fromkeys(range(args.seeds), run)

    monkeypatch.setattr(modalities, "train_all", train)
    with pytest.raises(SystemExit, match="130"):
        main(["modalities", "--out", str(tmp_path / "out")])
    assert main(["modalities", "--resume", str(tmp_path / "out")]) == 0
    methods = list(LABELS)
    assert calls == [*methods[:3], *methods[2:]]
    page = (tmp_path / "out/report.md").read_text().splitlines()
    rows = [line.split(" | ")[0][2:] for line in page if line.startswith("| ")]
    assert rows[2:] == list(LABELS.values())


@pytest.mark.slow
@pytest.mark.usefixtures("few_radii")
def test_other_methods(tmp_path, capsys):
    out = tmp_path / "out"
    methods = ["mean+efficient_sam(rho=0.1)", "mgda+adaptive_sam"]
    arguments = ["--methods", *methods, "--seeds", "1", "--epochs", "1"]
    assert main(["modalities", *arguments, "--out", str(out)]) == 0
    table = (out / "report.md").read_text()
    assert f"| {methods[0]} | 0 |" in table
    assert "1 epoch, 1 seed." in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit, match="needs a second, independent batch"):
        main(["modalities", "--methods", "modo", "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
