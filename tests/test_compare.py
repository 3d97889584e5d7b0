"""Comparing finished runs."""

import argparse

import numpy as np
import pytest
from scipy import stats

from samo_jax.experiments.reports import compare
from samo_jax.experiments.reports.tables import half_width, interval
from samo_jax.experiments.training.columns import Column
from samo_jax.experiments.training.records import Records
from samo_jax.experiments.training.runs import Run

COLUMNS = [Column("left", "accuracy", True, "%"), Column("right", "error", False)]
SINGLE = {0: (90.0, 2.0), 1: (94.0, 2.4), 2: (92.0, 2.2)}
MEAN = {0: (91.0, 2.5), 1: (95.5, 2.4), 2: (91.5, 2.9)}
SAMO = {1: (93.0, 2.0), 2: (90.0, 2.1), 3: (99.0, 1.0)}


def write(folder, methods, split="test", benchmark="hand-made"):
    folder.mkdir()
    config = {"benchmark": benchmark, "split": split}
    records = Records(folder, config, COLUMNS, {})
    for method, seeds in methods.items():
        for seed, (left, right) in seeds.items():
            metrics = {"left": {"accuracy": left}, "right": {"error": right}}
            records.finished(method, seed, Run(metrics, [], [], 0.1))
    return folder


@pytest.fixture
def first(tmp_path):
    return write(tmp_path / "first", {"single-task": SINGLE, "mean": MEAN})


def run(*runs, baseline=None, out=None):
    args = argparse.Namespace(runs=list(runs), baseline=baseline, out=out)
    return compare.run(args)


def text(values, error, decimals):
    mean = np.round(np.mean(values), decimals) + 0.0  # no "-0.0"
    return f"{mean:.{decimals}f} ± {error:.{decimals}f}"


def confidence(values):
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    return (high - low) / 2


def test_half_width():
    rng = np.random.default_rng(0)
    for count in (2, 3, 30):
        values = rng.normal(size=count)
        np.testing.assert_allclose(half_width(values), confidence(values), rtol=1e-10)
    assert interval([1.5]) == "1.50"


def test_tables(tmp_path, first, capsys):
    second = write(tmp_path / "second", {"mgda+samo": SAMO})
    out = tmp_path / "out"
    assert run(first, second, baseline="mean", out=out) == 0
    page = (out / "comparison.md").read_text().replace("\\", "")
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in page.splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    header, single, mean, samo, minus, less_single, less_samo = rows
    columns = ["seeds", "left accuracy [%]", "right error", "Δm [%]"]
    assert header == ["method", *columns]
    assert minus == ["minus mean", *columns]

    names = ["single-task", "mean", "mgda+samo"]
    assert [row[0] for row in rows] == ["method", *names, "minus mean", *names[::2]]
    left, right = np.transpose(list(SINGLE.values())).mean(axis=1)
    scores = {}
    for row, of in zip((single, mean, samo), (SINGLE, MEAN, SAMO), strict=True):
        scores[row[0]] = {
            seed: (a, b, 50 * ((left - a) / left + (b - right) / right))
            for seed, (a, b) in of.items()
        }
        values = np.transpose(list(scores[row[0]].values()))
        assert row[1] == "3"
        for cell, column, decimals in zip(row[2:], values, (1, 2, 2), strict=True):
            assert cell == text(column, confidence(column), decimals)

    for row, common in ((less_single, [0, 1, 2]), (less_samo, [1, 2])):
        ours, theirs = (
            np.array([scores[name][seed] for seed in common])
            for name in (row[0], "mean")
        )
        assert row[1] == str(len(common))
        low, high = stats.ttest_rel(ours, theirs).confidence_interval()
        for k, (cell, decimals) in enumerate(zip(row[2:], (1, 2, 2), strict=True)):
            column = ours[:, k] - theirs[:, k]
            assert cell == text(column, (high - low)[k] / 2, decimals)
    printed = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert all(cell in printed for row in rows[1:4] for cell in row)


def test_a_method_of_several_folders_is_named_with_its_folder(tmp_path, first):
    second = write(tmp_path / "second", {"mean": {7: (1.0, 1.0)}, "mgda": MEAN})
    _, results = compare.gather([first, second])
    names = ["single-task", f"mean ({first})", f"mean ({second})", "mgda"]
    assert list(results) == names
    _, differences = compare.compare(results, COLUMNS, f"mean ({first})")
    assert differences[2] == [f"mean ({second})", "0", "-", "-", "-"]
    # Of one seed there is no interval.
    table, _ = compare.compare(results, COLUMNS, "mgda")
    assert table[3][1:4] == ["1", "1.0", "1.00"]


def test_refused(tmp_path, first):
    other = write(tmp_path / "other", {"mean": MEAN}, benchmark="digits")
    with pytest.raises(SystemExit, match=r"other has benchmark 'digits', but .*first"):
        run(first, other)
    validation = write(tmp_path / "validation", {"mean": MEAN}, split="validation")
    with pytest.raises(SystemExit, match="validation has split 'validation', but"):
        run(first, validation)
    empty = write(tmp_path / "empty", {})
    with pytest.raises(SystemExit, match=f"no run has finished; .* --resume {empty}"):
        run(first, empty)
    with pytest.raises(SystemExit, match="a folder is given twice"):
        run(first, first)
    with pytest.raises(SystemExit, match="no 'adam', only 'single-task', 'mean'"):
        run(first, baseline="adam")
