"""The study of real data: tuning, gains, files of runs, and the command."""

import json

import numpy as np
import pytest

from samo_jax.experiments.studies.real import cells, runs
from samo_jax.experiments.studies.real.cells import (
    CONSTANT,
    DATA_SETS,
    GLOBAL,
    LEARNING_RATES,
    RHOS,
    label_of,
    method_for,
)
from samo_jax.experiments.studies.real.runs import Outcome, Setting, outcomes
from samo_jax.experiments.studies.real.study import Study, gains
from samo_jax.experiments.training.columns import Column
from samo_jax.experiments.training.methods import MEAN, SINGLE_TASK

from miniatures import write_molecules
from small_runs import main, small_digits


@pytest.fixture
def digits(monkeypatch):
    """The data set of that name, small."""
    small = cells.DataSet(lambda _, split: small_digits(split)._replace(epochs=1))
    monkeypatch.setattr(cells, "DATA_SETS", {"digits": small})
    monkeypatch.setattr(runs, "DATA_SETS", {"digits": small})
    runs._trainers.cache_clear()
    runs.benchmark_of.cache_clear()
    yield
    runs._trainers.cache_clear()
    runs.benchmark_of.cache_clear()


@pytest.mark.parametrize("name", DATA_SETS)
def test_cells(name):
    """The mean and global SAM, which others are compared with, are in each."""
    texts = DATA_SETS[name].methods
    assert {MEAN, GLOBAL} <= {*texts}
    assert len({*texts}) == len(texts)
    for text in texts:
        method_for(text, 3, draw=0)


def test_labels():
    texts = {text for data_set in DATA_SETS.values() for text in data_set.methods}
    assert len({label_of(text) for text in texts}) == len(texts)
    for text, label in (
        ("mean", "mean"),
        ("fairgrad+samo", "fairgrad, SAMO"),
        ("fairgrad+f_mtl(direction='global', weights_every=10)", "kept 10"),
        ("upgrad+memory_sam(decay=0.9)", "upgrad, memory_sam(decay=0.9)"),
        (DATA_SETS["toxcast"].methods[5], "fairgrad, global SAM, cheap"),
    ):
        assert label_of(text).endswith(label)


def test_constant_weights_are_drawn_from_the_simplex():
    weights = [
        method_for(CONSTANT, 5, draw).combiner.arguments["weights"]
        for draw in (0, 0, 1)
    ]
    np.testing.assert_allclose([sum(of) for of in weights], 5)
    assert weights[0] == weights[1] != weights[2]
    assert min(map(min, weights)) >= 0


def test_gains():
    """Points of percentages; else percent of the other's errors."""
    auc, error = Column("a", "auc", True, "%"), Column("b", "error", False, "m")
    values, reference = np.array([[80.0, 1.0]]), np.array([[75.0, 2.0]])
    np.testing.assert_allclose(gains([auc], values[:, :1], reference[:, :1]), 5)
    np.testing.assert_allclose(gains([error], values[:, 1:], reference[:, 1:]), 50)
    both = gains([auc, error], values, reference)
    np.testing.assert_allclose(both, (100 * 5 / 75 + 50) / 2)


def fake(study, setting, values):
    """Runs of a setting with these accuracies."""
    found = [
        Outcome(seed, {task: {"accuracy": value} for task in ("left", "right")}, 0.01)
        for seed, value in values.items()
    ]
    file = setting.file(study.folder)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps([of._asdict() for of in found]))


@pytest.mark.usefixtures("digits")
def test_the_best_of_each_stage_goes_on(tmp_path):
    """The learning rate of the mean, then the radius; NaN is never the best."""
    study = Study("digits", tmp_path, None, seeds=2, tuning_seeds=1, given=[CONSTANT])
    assert study.methods() == [MEAN, GLOBAL, CONSTANT]
    stages = iter(study.stages())
    first = next(stages)
    assert [of.learning_rate for group in first for of in group.settings] == [
        *LEARNING_RATES
    ]
    for group, value in zip(first, (80.0, 90.0, np.nan, 85.0), strict=True):
        assert group.seeds == [1000]
        fake(study, group.settings[0], {1000: value})
    assert study.learning_rate() == LEARNING_RATES[1]
    radii, *draws = next(stages)
    assert [of.rho for of in radii.settings] == [*RHOS]
    for setting, value in zip(radii.settings, (70.0, 71.0, 73.0, 72.0), strict=True):
        assert setting.split == "validation"
        fake(study, setting, {1000: value})
    for group, value in zip(draws, range(len(draws)), strict=True):
        fake(study, group.settings[0], {1000: 50.0 + value})
    finals = [group.settings[0] for group in next(stages)]
    assert [of.method for of in finals] == [MEAN, GLOBAL, CONSTANT]
    assert [of.rho for of in finals] == [None, RHOS[2], None]
    assert finals[2].draw == len(draws) - 1
    assert {of.split for of in finals} == {"test"}
    assert {of.learning_rate for of in finals} == {LEARNING_RATES[1]}


@pytest.mark.slow
@pytest.mark.usefixtures("digits")
def test_runs_are_kept_and_not_trained_again(tmp_path, monkeypatch):
    setting = Setting("digits", "test", GLOBAL, 1e-3, epochs=1, rho=0.1)
    setting.file(tmp_path).parent.mkdir()
    runs.train([setting], [0, 1], tmp_path, None)
    found = outcomes(setting, tmp_path)
    assert sorted(found) == [0, 1]
    monkeypatch.setattr(runs, "_run", None)
    runs.train([setting], [0, 1], tmp_path, None)
    setting.file(tmp_path).write_text("[{")
    with pytest.raises(SystemExit, match="cannot be read"):
        outcomes(setting, tmp_path)


@pytest.mark.slow
def test_command(tmp_path):
    """Two processes on a miniature of Tox21; a resumed study trains nothing."""
    write_molecules(tmp_path / "tox21.csv.gz", 300)
    out = tmp_path / "out"
    options = ["--data-sets", "tox21", "--seeds", 2, "--tuning-seeds", 1]
    methods = [SINGLE_TASK, 'fairgrad+f_mtl(direction="global", weights_every=10)']
    main(
        *("real", "--data", tmp_path, "--out", out, *options, "--epochs", 1),
        *("--methods", *methods),
    )
    page = (out / "report.md").read_text()
    for text in (MEAN, GLOBAL, *methods):
        assert f"| {label_of(text)} |" in page.replace("\\", "")
    files = {file: file.read_bytes() for file in (out / "tox21").iterdir()}
    assert len(files) == len(LEARNING_RATES) + 2 * len(RHOS) + 4
    main("real", "--resume", out)
    assert {file: file.read_bytes() for file in (out / "tox21").iterdir()} == files


def test_data_are_asked_for(tmp_path):
    with pytest.raises(SystemExit, match=r"--data: a folder with tox21.csv.gz is req"):
        main("real", "--data-sets", "tox21", "--out", tmp_path / "out")
    args = "--data-sets", "tox21", "--data", tmp_path, "--out", tmp_path / "other"
    with pytest.raises(SystemExit, match=r"--data: .*tox21.csv.gz is missing"):
        main("real", *args)
