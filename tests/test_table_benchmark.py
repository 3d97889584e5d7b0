"""A table of the user's own: kinds of columns, gaps, faults, and training."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from samo_jax.experiments.__main__ import main as command
from samo_jax.experiments.problems import registry
from samo_jax.experiments.problems.tabular_tasks import BINARY, CLASSES

from small_runs import main


def write_table(path, count=200):
    """Two numbers and a text in; a number, a text of two or three values out."""
    rng = np.random.default_rng(0)
    rows = ["size,age,colour,price,sold,quality,grade,name"]
    for k in range(count):
        size, age = rng.uniform(10, 20), rng.integers(0, 9)
        colour = rng.choice(["red", "green"])
        price = 100 * size - 30 * age + 200 * (colour == "red")
        sold = "yes" if price > 1400 else "no"
        quality = ["low", "middle", "high"][int(age) // 3]
        fields = [f"{size:.3f}", age, colour, f"{price:.1f}", sold, quality, age % 3]
        if k % 11 == 0:
            fields[0] = "NA"
        if k % 7 == 0:
            fields[3] = ""
        if k % 5 == 0:
            fields[4] = ""
        rows.append(",".join(map(str, [*fields, f"n{k}"])))
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "houses.csv"
    write_table(path)
    return path


def load(path, **options):
    return registry.load("table", path, "test", 20, **options)


INPUTS = ["size", "age", "colour"]


def test_columns(path):
    """Standardised numbers, an indicator of gaps, one input for each text."""
    found = load(path, inputs=INPUTS, tasks=["price", "sold", "quality"])
    inputs = found.train.inputs
    assert inputs.shape == (160, 2 + 1 + 2)
    np.testing.assert_allclose(inputs[:, :2].mean(axis=0), 0, atol=1e-5)
    assert {*inputs[:, 2].tolist()} == {0.0, 1.0}
    np.testing.assert_array_equal(inputs[:, 3:].sum(axis=1), 1)
    assert not np.isnan(inputs).any()
    assert found.tasks["sold"] is BINARY
    assert found.tasks["quality"] is CLASSES
    assert found.tasks["price"].higher_is_better == {"error": False}
    labels = found.train.labels["price"]
    np.testing.assert_allclose(np.nanmean(labels), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(labels), 1, rtol=1e-5)
    assert 0 < np.isnan(labels).sum() < 40
    assert {*found.train.labels["quality"].tolist()} == {0.0, 1.0, 2.0}


def test_defaults_and_classes(path):
    """Inputs are all other columns; numbers can be classes."""
    tasks = ["price", "sold", "quality", "grade"]
    found = load(path, tasks=tasks, classes=["grade"])
    assert found.tasks["grade"] is CLASSES
    assert load(path, tasks=tasks).tasks["grade"] is not CLASSES
    # 160 names are as good as none: those of one row are one input.
    assert found.train.inputs.shape[1] <= 2 + 1 + 2 + 101


def test_the_error_is_in_the_column_s_own_unit(path):
    task = load(path, inputs=INPUTS, tasks=["price"]).tasks["price"]
    [deviation] = task.metrics([task.observe(np.ones(3), np.zeros(3))]).values()
    prices = [float(row.split(",")[3] or "nan") for row in path.read_text().split()[1:]]
    np.testing.assert_allclose(deviation, np.nanstd(prices), rtol=0.1)


def test_any_names_of_columns(path):
    """Of layers, with slashes; a column without a name is an index, and no input."""
    text = path.read_text().replace("price,", "Dense_0,").replace("sold,", "a/b,", 1)
    header, *rows = text.splitlines()
    numbered = [f"{k},{row}" for k, row in enumerate(rows)]
    path.write_text("\n".join([f",{header}", *numbered]) + "\n")
    tasks = ["Dense_0", "a/b"]
    found = load(path, tasks=tasks, classes=[])
    assert load(path, tasks=tasks, inputs=["", *INPUTS]).train.inputs.shape[1] == 6
    net = found.net(tasks)
    params = jax.eval_shape(
        partial(net.init, train=False), jax.random.key(0), found.train.inputs[:1]
    )["params"]
    assert {*tasks} < {*params}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--tasks must name the columns to be predicted, of size, age"),
        ({"tasks": ["cost"]}, "must have a column 'cost', got size, age, colour"),
        ({"tasks": ["price"], "inputs": ["x"]}, "must have a column 'x'"),
        ({"tasks": ["price"], "inputs": ["price", "age"]}, "must not share columns"),
        ({"tasks": ["price"], "classes": ["age"]}, "--classes must be among --tasks"),
        (
            {"tasks": ["name"]},
            "task name must be numbers, or at most 100 classes, got 2",
        ),
    ],
)
def test_wrong_columns(path, options, message):
    with pytest.raises(ValueError, match=message):
        load(path, **options)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (3, "7", "task price must vary in the training part, got only 7"),
        (3, "", "task price must have labels in each part, got none in train"),
        (3, "inf", "task price must be numbers, or at most"),
        (4, "no", "task sold must have two classes or more, got one"),
        (0, "", "input size must have a number in the training part"),
    ],
)
def test_columns_without_content(path, column, value, message):
    header, *rows = path.read_text().splitlines()
    changed = [
        ",".join(value if k == column else of for k, of in enumerate(row.split(",")))
        for row in rows
    ]
    if value == "inf":
        changed[5:] = [
            row.replace("inf", f"{k}.5") for k, row in enumerate(changed[5:])
        ]
    path.write_text("\n".join([header, *changed]) + "\n")
    with pytest.raises(ValueError, match=message):
        load(path, inputs=INPUTS, tasks=["price", "sold"])


def test_too_few_rows_and_no_tasks(tmp_path, path):
    write_table(path, 12)
    out = tmp_path / "out"
    for tasks, message in (
        ([], "--data: .*--tasks must name"),
        (["--tasks", "age"], "must have 64 training examples, got 9"),
    ):
        with pytest.raises(SystemExit, match=message):
            command(["table", "--data", str(path), "--out", str(out), *tasks])


@pytest.mark.slow
def test_trains_from_a_file_of_settings(path, tmp_path):
    """As README shows: columns in TOML, and a table that says what was learnt."""
    settings, out = tmp_path / "houses.toml", tmp_path / "out"
    settings.write_text(
        f'data = "{path}"\n'
        'inputs = ["size", "age", "colour"]\n'
        'tasks = ["price", "sold", "quality"]\n'
        'methods = ["mean", "fairgrad+global_sam"]\n'
        "epochs = 40\nseeds = 1\nbatch_size = 20\n"
    )
    main("table", "--config", settings, "--out", out)
    document = json.loads((out / "results.json").read_text())
    for finished in document["runs"]:
        metrics = finished["metrics"]
        assert metrics["price"]["error"] < 120
        assert metrics["sold"]["auc"] > 90
        assert metrics["quality"]["accuracy"] > 70
    main("table", "--resume", out)
